"""Whose output it is: one process, one input, one configuration."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from helpers import ended, killed, part_bytes, table, until, written
from test_output_belongs_to_its_run import DECIDING

from drills.frame import Drill, Job, begun, cut, go_on, identical, job, last_line

# 8

SECONDS = 2.0
"""To refuse within, where each run has a core; on fewer cores they share the time."""


def many_at_once(trials: int, seed: int, folder: Path) -> str:
    """Two to eight runs begun together on one output: one works, the others know it."""
    random, refused, slowest, spread, cores = Random(seed), 0, 0.0, 0.0, os.cpu_count() or 1
    with job(folder, rows=160, rows_per_part=50, max_in_flight=32, seconds=0.1) as one:
        for trial in range(trials):
            out, count = folder / f"out-{trial}", random.randint(2, 8)
            before = one.server.ledger()["requests"]
            began = time.monotonic()
            processes = [begun([*one.command(out), "--max-in-flight", 4]) for _ in range(count)]
            spread = max(spread, time.monotonic() - began)
            ends: list[tuple[int, float, str]] = []
            threads = [
                threading.Thread(target=_note_end, args=(process, began, ends))
                for process in processes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            where = f"{count} runs at once, seed {seed}"
            codes = sorted(code for code, _, _ in ends)
            assert codes == [0, *[75] * (count - 1)], f"{where}: exit codes {codes}"
            sent = one.server.ledger()["requests"] - before
            assert sent == len(one.contents), f"{where}: {sent} requests for {len(one.contents)}"
            identical(one, out)
            latest = max(seconds for code, seconds, _ in ends if code == 75)
            share = max(1, count / cores)
            late = latest > SECONDS * share and latest > SECONDS * share + _start_of(count)
            assert not late, f"{where}: refused only after {latest:.1f} s"
            assert all(
                "another batchrank is at work on this output" in stderr
                for code, _, stderr in ends
                if code == 75
            ), f"{where}: {ends}"
            refused += count - 1
            slowest = max(slowest, latest / share)
    return (
        f"{trials} times one of 2 to 8, begun within {spread * 1000:.0f} ms, worked; {refused} "
        f"were refused and sent nothing, the slowest after {slowest:.2f} s (times runs per core)"
    )


# 37


def many_states(trials: int, seed: int, folder: Path) -> str:
    """Runs on one output, each with a state of its own: one works, and nothing is paid twice."""
    random, refused = Random(seed), 0
    with job(folder, rows=160, rows_per_part=50, max_in_flight=32, seconds=0.1) as one:
        for trial in range(trials):
            out, count = folder / f"out-{trial}", random.randint(2, 4)
            before = one.server.ledger()["requests"]
            states = [folder / f"state-{trial}-{number}" for number in range(count)]
            commands = [[*one.command(out), "--max-in-flight", 4, "--state-dir"] for _ in states]
            ends = [
                ended(process, 120)
                for process in [
                    begun([*command, state])
                    for command, state in zip(commands, states, strict=True)
                ]
            ]
            where = f"{count} states, seed {seed}"
            codes = sorted(code for code, _, _ in ends)
            assert codes == [0, *[75] * (count - 1)], f"{where}: exit codes {codes}"
            sent = one.server.ledger()["requests"] - before
            assert sent == len(one.contents), f"{where}: {sent} requests for {len(one.contents)}"
            identical(one, out)
            refused += count - 1
    return f"{trials} times one of 2 to 4 with their own states worked; {refused} sent nothing"


def _start_of(count: int) -> float:
    """How long so many commands that load what a run loads, and do nothing, take together: a busy
    machine is not to blame.
    """
    began = time.monotonic()
    for process in [begun(["plan", "/nowhere.parquet"]) for _ in range(count)]:
        ended(process, 120)
    return time.monotonic() - began


def _note_end(process: Any, began: float, ends: list[tuple[int, float, str]]) -> None:
    code, _, stderr = ended(process, 120)
    ends.append((code, time.monotonic() - began, stderr))


# 9


class Change(NamedTuple):
    """What is not as it was, and how the run must then end: 0, to the same output."""

    what: str
    code: int
    named: str
    """A text of the message."""
    source: Path | None = None
    settings: dict[str, dict[str, Any]] = {}  # noqa: RUF012  (never written to)


OPERATIONAL: list[dict[str, dict[str, Any]]] = [
    {"rate": {"max_in_flight": 3}},
    {"rate": {"requests_per_minute": 60_000, "ramp_seconds": 0}},
    {"rate": {"tokens_per_minute": 1_000_000_000}},
    {"endpoint": {"timeout_seconds": 7}},
    {"endpoint": {"headers": {"X-Trace": "1"}}},
    {"endpoint": {"api_key_env": "ANOTHER_KEY"}},
]


def changed(trials: int, seed: int, folder: Path) -> str:
    """Another input or a setting that decides results is refused by name; any other goes on."""
    random, ended_with = Random(seed), Counter[int]()
    with job(folder, rows=240, rows_per_part=40, max_in_flight=8, seconds=0.01) as one:
        states = [_begun(one, folder / f"begun-{parts}", parts) for parts in (0, 3)]
        states.append(folder / "oracle")
        cases = [(state, change) for change in _changes(folder) for state in states]
        for state, change in random.sample(cases, min(trials, len(cases))):
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(state, out)
            parts, sent = part_bytes(out), one.server.received
            before = one.server.ledger()["requests"] - len(one.contents)
            code, _, stderr = ended(begun(_changed(one, change, folder).command(out)), 60)
            where = (
                f"{change.what}, {state.name} (seed {seed}): ended with {code}: {last_line(stderr)}"
            )
            assert code == change.code, where
            if code:
                assert change.named in stderr and len(stderr.splitlines()) == 1, where
                assert one.server.received == sent, f"{where}: refused, but something was sent"
                assert part_bytes(out) == parts, f"{where}: published parts were touched"
                left = cut(one, out, folder / "copy")
                go_on(one, out, left, before=before)
            else:
                identical(one, out)
            ended_with[code] += 1
    figures = ", ".join(f"{count} times {code}" for code, count in sorted(ended_with.items()))
    done = f"{min(trials, len(cases))} of {len(cases)} changes"
    return f"{done}: {figures}; the unchanged command went on, to identical output"


def _changes(folder: Path) -> list[Change]:
    rows = pq.read_table(folder / "in.parquet")
    swapped = pa.concat_tables([rows.slice(60, 60), rows.slice(0, 60), rows.slice(120)])
    inputs = {
        "rows added": (pa.concat_tables([rows, rows.slice(0, 5)]), "had 240 rows, now 245"),
        "rows taken away": (rows.slice(0, 200), "had 240 rows, now 200"),
        "rewritten": (table(240, tag="other"), "is not what it was"),
        "row groups in another order": (swapped, "is not what it was"),
    }
    changes = [
        Change(
            what,
            65,
            text,
            written(folder / what.replace(" ", "-") / "in.parquet", new, row_group_size=60),
        )
        for what, (new, text) in inputs.items()
    ]
    changes += [
        Change(f"{section}.{field}", 78, f"{section}.{field} = ", None, {section: {field: value}})
        for section, field, value in DECIDING
    ]
    return changes + [Change(str(given), 0, "", None, given) for given in OPERATIONAL]


def _changed(one: Job, change: Change, folder: Path) -> Job:
    settings = {"output": {"rows_per_part": one.rows_per_part}}
    for section, values in change.settings.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = folder / "changed.toml"
    config.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
            for section, values in settings.items()
        )
    )
    return one._replace(source=change.source or one.source, options=["-c", config])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def _begun(one: Job, out: Path, parts: int) -> Path:
    """An output whose run was killed once so many parts were published."""
    before = one.server.received
    process = begun(one.command(out))
    enough: Callable[[], bool] = (
        (out / f"part-{parts - 1:05}.parquet").exists
        if parts
        else lambda: one.server.received > before
    )
    until(enough, f"{parts} parts are published")
    assert killed(process) == -signal.SIGKILL
    return out


DRILLS = [
    Drill((8,), "many-at-once", many_at_once, 1, 50),
    Drill((9,), "changed", changed, 3, 60),
    Drill((37,), "many-states", many_states, 1, 20),
]

"""After `--limit` the same command with a larger one, or without, goes on: paid once, and the same
bytes as without a trial. `_SUCCESS` goes first, the trial's last part is replaced by one rename.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import (
    PROGRAM,
    Server,
    clean,
    fast,
    inside,
    output,
    part_bytes,
    program,
    scores_of,
    started,
    table,
    until,
    written,
)

Serve = Callable[..., Server]
ROWS, TRIAL, PART = 47, 25, 10


def configuration(folder: Path, *, reusable: bool = True, top_n: int = 0) -> Path:
    file = folder / f"c-{reusable}-{top_n}.toml"
    file.write_text(
        f"[output]\nrows_per_part = {PART}\ntop_n = {top_n}\nreusable = {str(reusable).lower()}\n"
    )
    return file


def source_of(folder: Path, tag: str) -> Path:
    rows = table(ROWS, 4, tag=tag)
    priority = [(row * 7) % 11 for row in range(ROWS)]
    return written(folder / "in.parquet", rows.append_column("priority", [priority]))


def side_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("_pairs/part-*"))}


def files(out: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return part_bytes(out), side_files(out)


def receipt_of(out: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads((out / "_run.json").read_bytes())
    return receipt


@pytest.mark.parametrize("reusable", [True, False])
@pytest.mark.parametrize("top_n", [0, 2])
@pytest.mark.parametrize("limits", [[TRIAL], [3], [PART], [1, 12, 20, 46], [ROWS + 5]])
def test_the_whole_pays_nothing_twice_and_is_the_same_bytes(
    server: Server, tmp_path: Path, reusable: bool, top_n: int, limits: list[int]
) -> None:
    source = source_of(tmp_path, f"whole{reusable}{top_n}{limits}")
    config = configuration(tmp_path, reusable=reusable, top_n=top_n)
    before = server.received
    tokens = 0
    out = tmp_path / "out"
    run = [*fast(server, out, source), "-c", config]
    for limit in limits:
        assert inside(*run, "--limit", limit).returncode == 0
        assert output(out).num_rows == min(limit, ROWS)
        assert (out / "_SUCCESS").exists()
        tokens = receipt_of(out)["tokens_billed"]
    done = inside(*run)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.received - before == ROWS, "a row is one request, each sent once"
    receipt = receipt_of(out)
    assert (receipt["rows"], receipt["rows_scored"], receipt["requests"]) == (ROWS, ROWS, ROWS)
    assert receipt["tokens_billed"] > tokens or limits[-1] > ROWS
    assert sum(part["counts"]["rows"] for part in receipt["parts"]) == ROWS
    assert inside("verify", out).returncode == 0
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")
    fresh = receipt_of(tmp_path / "fresh")
    assert (receipt["tokens_billed"], receipt["cost_usd"]) == (
        fresh["tokens_billed"],
        fresh["cost_usd"],
    )
    assert inside(*run).returncode == 0 and server.received - before == 2 * ROWS


def test_a_smaller_limit_than_before_is_refused(server: Server, tmp_path: Path) -> None:
    source, config = source_of(tmp_path, "smaller"), configuration(tmp_path)
    out = tmp_path / "out"
    run = [*fast(server, out, source), "-c", config]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    kept = files(out)
    refused = inside(*run, "--limit", TRIAL - 1)
    assert refused.returncode == 78
    assert f"begun with --limit {TRIAL}, now {TRIAL - 1} (0: all rows)" in refused.stderr
    assert inside(*run).returncode == 0
    refused = inside(*run, "--limit", TRIAL)
    assert refused.returncode == 78 and "begun with" in refused.stderr
    assert (out / "_SUCCESS").exists() and files(out) != kept
    assert inside(*run, "--limit", ROWS).returncode == 0, "as many rows, said in another way"


def test_a_trial_that_was_stopped_goes_on_as_the_whole(server: Server, tmp_path: Path) -> None:
    source, config = source_of(tmp_path, "stopped"), configuration(tmp_path)
    out, before = tmp_path / "out", server.received
    run = [*fast(server, out, source), "-c", config]
    stopped = inside(*run, "--limit", TRIAL, "--max-cost", "0.00015")
    assert stopped.returncode == 4 and 0 < server.received - before < TRIAL
    assert inside(*run).returncode == 0
    assert server.received - before == ROWS
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


def test_success_goes_before_anything_else_changes(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    source, config = source_of(tmp_path, "first"), configuration(tmp_path)
    out = tmp_path / "out"
    run = [*fast(own, out, source), "-c", config, "--max-in-flight", 2]
    assert inside(*fast(own, out, source), "-c", config, "--limit", TRIAL).returncode == 0
    trial = part_bytes(out)
    sent = own.received
    process = started(*run)
    until(lambda: own.received > sent + 2, "the whole is sent")
    assert not (out / "_SUCCESS").exists() and part_bytes(out) == trial
    assert json.loads(inside("status", out, "--json").stdout)["state"] == "running"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert part_bytes(out).items() >= {name: trial[name] for name in list(trial)[:2]}.items()
    stopped = receipt_of(out)
    assert stopped["rows"] == ROWS and stopped["rows_open"] > 0
    assert stopped["left"]["rows"] == ROWS - TRIAL - stopped["rows_kept"]
    assert inside("verify", out).returncode == 65
    assert inside(*fast(own, out, source), "-c", config).returncode == 0
    assert own.received == ROWS
    assert receipt_of(out)["requests"] == ROWS


def test_rows_that_failed_in_the_trial_are_asked_again_only_if_told(
    serve: Serve, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 22 " }\n')
    source, config = source_of(tmp_path, "refused"), configuration(tmp_path, top_n=2)
    out = tmp_path / "out"
    run = [*fast(own, out, source), "-c", config]
    assert inside(*run, "--limit", TRIAL).returncode == 3
    sent = own.received
    assert inside(*run, "--max-failed-rows", 1).returncode == 0
    assert own.received - sent == ROWS - TRIAL
    receipt = receipt_of(out)
    assert receipt["rows_failed"] == 1
    assert receipt["parts"][2]["counts"]["failed_offsets"] == [2]
    fresh = [*fast(own, tmp_path / "fresh", source), "-c", config, "--max-failed-rows", 1]
    assert inside(*fresh).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


def test_failed_rows_and_new_ones_are_sent_by_one_command(server: Server, tmp_path: Path) -> None:
    source, config = source_of(tmp_path, "retried"), configuration(tmp_path)
    out = tmp_path / "out"
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 22 " }\n')
    from helpers import serving

    with serving("--faults", str(faults)) as own:
        assert inside(*fast(own, out, source), "-c", config, "--limit", TRIAL).returncode == 3
    before = server.received
    run = [*fast(server, out, source), "-c", config]
    assert inside(*run, "--retry-failed").returncode == 0
    assert server.received - before == ROWS - TRIAL + 1
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


def test_priorities_hold_for_what_the_trial_left(server: Server, tmp_path: Path) -> None:
    source, config = source_of(tmp_path, "priority"), configuration(tmp_path)
    out, before = tmp_path / "out", server.received
    run = [*fast(server, out, source), "-c", config, "--priority-column", "priority"]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    assert inside(*run).returncode == 0
    assert server.received - before == ROWS
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


@pytest.mark.parametrize("lost", [False, True])
def test_a_state_elsewhere_grows_too_and_may_be_lost(
    server: Server, tmp_path: Path, lost: bool
) -> None:
    source, config = source_of(tmp_path, f"elsewhere{lost}"), configuration(tmp_path, top_n=2)
    out, before = tmp_path / "out", server.received
    run = [*fast(server, out, source), "-c", config, "--state-dir", tmp_path / "state"]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    if lost:
        shutil.rmtree(tmp_path / "state")
    assert inside(*run).returncode == 0
    assert server.received - before == ROWS
    assert inside(*run, "--limit", TRIAL).returncode == 78
    shutil.rmtree(tmp_path / "state")
    assert inside(*run, "--limit", TRIAL).returncode == 78, "the output says so too"
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


# In shards


def shard(server: Server, out: Path, source: Path, config: Path, number: int, *more: Any) -> int:
    of = ["--shard", f"{number}/3"]
    return inside(*fast(server, out, source), "-c", config, *of, *more).returncode


def test_shards_go_on_one_after_the_other(server: Server, tmp_path: Path) -> None:
    source, config = source_of(tmp_path, "shards"), configuration(tmp_path)
    out, before = tmp_path / "out", server.received
    for number in range(3):
        assert shard(server, out, source, config, number, "--limit", TRIAL) == 0
    assert (out / "_SUCCESS").exists()
    # The first to come is one whose own parts of the trial were whole.
    assert shard(server, out, source, config, 0) == 0
    assert not (out / "_SUCCESS").exists()
    assert inside("finish", out).returncode == 75
    assert shard(server, out, source, config, 1, "--limit", TRIAL) == 78
    states = {
        one["shard"]: one["state"]
        for one in json.loads(inside("status", out, "--json").stdout)["shards"]
    }
    assert states["0/3"] == "finished" and "finished" not in (states["1/3"], states["2/3"])
    for number in (1, 2):
        assert shard(server, out, source, config, number) == 0
    assert server.received - before == ROWS
    receipt = receipt_of(out)
    assert (receipt["rows"], receipt["requests"], receipt["rows_open"]) == (ROWS, ROWS, 0)
    assert inside("verify", out).returncode == 0
    assert inside(*fast(server, tmp_path / "fresh", source), "-c", config).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


def test_a_worker_without_parts_does_not_finish_what_has_grown(
    server: Server, tmp_path: Path
) -> None:
    source, out = source_of(tmp_path, "noparts"), tmp_path / "out"
    config = tmp_path / "large.toml"
    config.write_text("[output]\nrows_per_part = 1000\n")
    for number in range(3):
        assert shard(server, out, source, config, number, "--limit", TRIAL) == 0
    assert shard(server, out, source, config, 2) == 0
    assert not (out / "_SUCCESS").exists() and output(out).num_rows == TRIAL
    assert shard(server, out, source, config, 0) == 0
    assert output(out).num_rows == ROWS
    assert (out / "_SUCCESS").exists() and inside("verify", out).returncode == 0


# Rows that share requests, and an earlier output


def test_rows_that_share_a_query_go_on_without_the_trials(server: Server, tmp_path: Path) -> None:
    """Rows of the trial keep their requests, so the ids of requests differ, and nothing else."""
    rows = table(ROWS, 3, tag="united")
    rows = rows.set_column(1, "query", [[f"united {row % 5}" for row in range(ROWS)]])
    source, config = written(tmp_path / "in.parquet", rows), configuration(tmp_path)
    out = tmp_path / "out"
    run = [*fast(server, out, source), "-c", config, "--unite-rows"]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    before = server.received
    assert inside(*run).returncode == 0
    # Five queries in each of the three parts that have new rows.
    assert server.received - before == receipt_of(out)["requests_this_session"] == 15
    assert inside("verify", out).returncode == 0
    fresh = [*fast(server, tmp_path / "fresh", source), "-c", config, "--unite-rows"]
    assert inside(*fresh).returncode == 0
    assert scores_of(out) == scores_of(tmp_path / "fresh")


def test_a_stopped_trial_of_rows_that_share_requests_is_finished_first(
    server: Server, tmp_path: Path
) -> None:
    rows = table(ROWS, 3, tag="unfinished")
    rows = rows.set_column(1, "query", [[f"unfinished {row % 5}" for row in range(ROWS)]])
    source, config = written(tmp_path / "in.parquet", rows), configuration(tmp_path)
    run = [*fast(server, tmp_path / "out", source), "-c", config, "--unite-rows"]
    stopped = inside(*run, "--limit", TRIAL, "--max-cost", "0.0002")
    assert stopped.returncode == 4 and receipt_of(tmp_path / "out")["rows_kept"]
    refused = inside(*run)
    assert refused.returncode == 78 and f"--limit {TRIAL} again" in refused.stderr
    assert inside(*run, "--limit", TRIAL).returncode == 0
    assert inside(*run).returncode == 0


def test_what_an_earlier_output_gave_the_trial_stays(server: Server, tmp_path: Path) -> None:
    rows = table(ROWS, 4, tag="reuse")
    first = written(tmp_path / "1.parquet", rows.slice(0, 30))
    source, config = written(tmp_path / "in.parquet", rows), configuration(tmp_path)
    night = tmp_path / "night"
    assert inside(*fast(server, night, first), "-c", config).returncode == 0
    before, out = server.received, tmp_path / "out"
    run = [*fast(server, out, source), "-c", config, "--reuse", night]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    assert server.received == before
    (night / "_pairs").rename(night / "away")
    assert inside(*run, "--limit", TRIAL).returncode == 0, "finished: the night is wanted no more"
    assert inside(*run).returncode == 66, "the other rows want it"
    assert (out / "_SUCCESS").exists()
    (night / "away").rename(night / "_pairs")
    assert inside(*run).returncode == 0
    assert server.received - before == ROWS - 30
    fresh = [*fast(server, tmp_path / "fresh", source), "-c", config, "--reuse", night]
    assert inside(*fresh).returncode == 0
    assert files(out) == files(tmp_path / "fresh")


def test_many_more_parts_than_names_have_digits_for_are_refused(
    server: Server, tmp_path: Path
) -> None:
    rows = table(1, tag="digits").take([0] * 100_001)
    source, config = written(tmp_path / "in.parquet", rows), tmp_path / "one.toml"
    config.write_text("[output]\nrows_per_part = 1\n")
    run = [*fast(server, tmp_path / "out", source), "-c", config]
    assert inside(*run, "--limit", 2).returncode == 0
    refused = inside(*run)
    assert refused.returncode == 78 and "--reuse" in refused.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


# Killed


@pytest.mark.parametrize("reusable", [True, False])
def test_killed_at_each_step_it_goes_on_to_the_same_bytes(
    server: Server, tmp_path: Path, reusable: bool
) -> None:
    """At every call that makes something durable while the trial grows, until one ends unharmed."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    source = source_of(tmp_path, f"killed{reusable}")
    config = configuration(tmp_path, reusable=reusable, top_n=2)
    trial, out = tmp_path / "trial", tmp_path / "out"
    common = [source, "-c", config, "--base-url", server.base_url, "--requests-per-minute", 0]
    assert inside("run", *common, "-o", out, "--limit", TRIAL).returncode == 0
    out.rename(trial)
    assert inside("run", *common, "-o", tmp_path / "fresh").returncode == 0
    kills = 0
    for call in ("unlink", "rename", "fsync"):
        for when in (1, 2, 3, 4, 6, 9):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(trial, out)
            before = server.received
            code = _killed_at(call, when, ["run", *common, "-o", out])
            if code == 0:
                break
            kills += 1
            if (out / "_SUCCESS").exists():  # as before the first step, or after the last one
                assert files(out) in (files(trial), files(tmp_path / "fresh")), (call, when)
            sent = server.received - before
            done = program("run", *common, "-o", out)
            assert done.returncode == 0, (call, when, done.stderr)
            assert files(out) == files(tmp_path / "fresh"), (call, when)
            twice = server.received - before - (ROWS - TRIAL)
            assert 0 <= twice <= sent, (call, when)
    assert kills >= 9


def _killed_at(call: str, when: int, arguments: list[Any]) -> int:
    inject = f"inject={call}:signal=KILL:when={when}"
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject),
            *PROGRAM,
            *map(str, arguments),
        ],
        env=clean(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode


def test_a_part_of_a_trial_is_never_seen_with_other_rows(server: Server, tmp_path: Path) -> None:
    """The one name that is written twice holds the trial's rows or all, each whole."""
    source, config = source_of(tmp_path, "seen"), configuration(tmp_path)
    out = tmp_path / "out"
    run = [*fast(server, out, source), "-c", config]
    assert inside(*run, "--limit", TRIAL).returncode == 0
    process = started(*run)
    seen = set()
    while process.poll() is None:
        seen.add(pq.read_table(out / "part-00002.parquet").num_rows)
    process.communicate()
    assert seen <= {TRIAL % PART, PART}

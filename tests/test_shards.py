"""Several workers fill one output: each its own parts, its share of the rates, and nobody else's.

Workers at once are threads here and processes where they are killed (`scripts/drill shards`).
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import floor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import (
    Server,
    clean,
    ended,
    fast,
    inside,
    part_bytes,
    program,
    score,
    settings,
    started,
    table,
    until,
    written,
)

import batchrank
from batchrank.config.limits import AIM, RateLimits
from batchrank.errors import BatchrankError, ConfigInvalid, InputBad, OutputUnusable
from batchrank.output.receipt import Receipt
from batchrank.session import job
from batchrank.state.shards import Shard, of_environment, parsed, share_of

Serve = Callable[..., Server]
ROWS, ROWS_PER_PART = 95, 10
SLURM_SCRIPT = Path(__file__).parents[1] / "configs" / "slurm.sh"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ninety-five rows: ten parts of ten, the last one half."""
    return written(tmp_path / "in.parquet", table(ROWS, tag=tmp_path.name), row_group_size=20)


@pytest.fixture
def parts(tmp_path: Path) -> list[object]:
    """Options that make parts of ten rows."""
    path = tmp_path / "parts.toml"
    path.write_text(f"[output]\nrows_per_part = {ROWS_PER_PART}\n")
    return ["-c", path]


def work(
    server: Server, source: Path, out: Path, shard: tuple[int, int] | None, **more: Any
) -> Receipt:
    """One worker's run, in this process."""
    request = job.Request(inputs=[str(source)], out=out, shard=shard, **more)
    config = settings(server.base_url, output={"rows_per_part": ROWS_PER_PART})
    return job.run(config, request, lambda progress: None)


def oracle(server: Server, source: Path, folder: Path) -> dict[str, bytes]:
    """What a run by itself publishes."""
    score(server, source, folder, output={"rows_per_part": ROWS_PER_PART})
    return part_bytes(folder)


# Who does what


@pytest.mark.parametrize(("parts_there", "workers"), [(10, 4), (3, 8), (1, 1), (17, 17)])
def test_every_part_is_one_workers(parts_there: int, workers: int) -> None:
    shares = [list(Shard(number, workers).parts(parts_there)) for number in range(workers)]
    assert sorted(part for share in shares for part in share) == list(range(parts_there))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/", "a/b", "1/0", "1/8/9", "²/8", ""])
def test_what_is_no_shard_is_bad_usage(source: Path, tmp_path: Path, text: str) -> None:
    done = inside("run", source, "-o", tmp_path / "out", "--shard", text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no shard; " in done.stderr
    assert not (tmp_path / "out").exists()


def test_counting_from_1_is_told_how_to_count() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        parsed("8/8")
    assert str(refused.value) == ("8/8 is no shard; they are counted from 0: the last of 8 is 7/8.")


# The scheduler's word

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "30",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "40",
    "SLURM_ARRAY_TASK_STEP": "10",
    "SLURM_ARRAY_TASK_COUNT": "4",
}


@pytest.mark.parametrize(
    ("given", "shard"),
    [
        ({"JOB_COMPLETION_INDEX": "0", "BATCHRANK_SHARDS": "8"}, Shard(0, 8)),
        ({"JOB_COMPLETION_INDEX": "7", "BATCHRANK_SHARDS": "8"}, Shard(7, 8)),
        (ARRAY, Shard(2, 4)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "10"}, Shard(0, 4)),
        # one task of an array given again by itself: Slurm's count is 1
        (
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "BATCHRANK_SHARDS": "8"},
            Shard(3, 8),
        ),
    ],
)
def test_the_environment_says_which_worker_this_is(given: dict[str, str], shard: Shard) -> None:
    assert of_environment(given) == shard


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "neither JOB_COMPLETION_INDEX"),
        ({"BATCHRANK_SHARDS": "8"}, "neither JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "1"}, "set BATCHRANK_SHARDS to the Job's completions"),
        ({"JOB_COMPLETION_INDEX": "8", "BATCHRANK_SHARDS": "8"}, "8/8 is no shard"),
        ({"JOB_COMPLETION_INDEX": "x", "BATCHRANK_SHARDS": "8"}, "the index is 'x'"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_MIN is ''"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "3"}, "the Slurm array has gaps"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "25"}, "the Slurm array has gaps"),
    ],
)
def test_an_environment_that_does_not_say_it_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        of_environment(given)
    assert said in str(refused.value)


def test_auto_and_the_variable_reach_the_command(
    server: Server,
    source: Path,
    tmp_path: Path,
    parts: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    run = [*fast(server, out, source), *parts]
    done = inside(*run, "--shard", "auto")
    assert (done.returncode, "neither JOB_COMPLETION_INDEX" in done.stderr) == (78, True)
    monkeypatch.setenv("BATCHRANK_SHARD", "auto")
    monkeypatch.setenv("BATCHRANK_SHARDS", "5")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert inside(*run).returncode == 0
    assert sorted(part_bytes(out)) == ["part-00003.parquet", "part-00008.parquet"]


def test_the_slurm_script_runs_its_task(server: Server, source: Path, tmp_path: Path) -> None:
    """As Slurm runs it: with a shell, in the array's environment."""
    out = tmp_path / "out"
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "batchrank"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m batchrank "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    for task in ("30", "10", "20", "40"):
        done = subprocess.run(
            ["sh", SLURM_SCRIPT, *map(str, fast(server, out, source)[1:])],
            env={**clean(PATH=path), **ARRAY, "SLURM_ARRAY_TASK_ID": task},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (out / "_SUCCESS").exists()


# The account's limits


@pytest.mark.parametrize("workers", [2, 3, 7, 8, 12, 64, 100, 999])
@pytest.mark.parametrize("limit", [5400.0, 1000.0, 60_000.0, 601.5])
def test_together_they_never_pass_a_minutes_limit(limit: float, workers: int) -> None:
    """A gate passes at most one request, 4 ms of rate, and the window's own rate."""
    if limit < workers:
        with pytest.raises(ConfigInvalid, match="less than one for each of"):
            share_of(RateLimits(requests_per_minute=limit), workers)
        return
    share = share_of(RateLimits(requests_per_minute=limit), workers).requests_per_minute
    assert workers * floor(1 + share / 60 * AIM * 60.004) <= limit
    assert limit / workers >= share >= 0.5 * limit / workers


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 6, 8, 9, 10, 15, 30, 90])
def test_where_it_costs_little_they_never_pass_a_seconds_share_either(workers: int) -> None:
    share = share_of(RateLimits(requests_per_minute=5400), workers).requests_per_minute
    assert workers * floor(1 + share / 60 * AIM * 1.004) <= 90
    assert share >= 0.98 * 5400 / workers


def test_a_share_keeps_the_margin_that_it_is_reckoned_with() -> None:
    whole = RateLimits(requests_per_minute=5400, held_per_second=False)
    assert share_of(whole, 1).aim > AIM == share_of(whole, 2).aim


def test_tokens_and_nothing_else_are_divided_too() -> None:
    whole = RateLimits(requests_per_minute=0, tokens_per_minute=8000, max_in_flight=9)
    assert share_of(whole, 4) == msgspec.structs.replace(whole, tokens_per_minute=2000)
    assert share_of(whole, 1) == whole


def test_a_limit_of_less_than_one_each_is_refused_before_there_is_an_output(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = [*fast(server, tmp_path / "out", source), "--requests-per-minute", 7]
    done = inside(*run, "--shard", "0/8")
    assert (done.returncode, done.stderr) == (
        78,
        "batchrank: rate.requests_per_minute = 7 is less than one for each of 8 shards. "
        "Take fewer shards.\n",
    )
    assert not (tmp_path / "out").exists()


def test_each_may_spend_its_share_of_the_cost(server: Server, source: Path, tmp_path: Path) -> None:
    """Worker 0 has 30 of 95 rows, more than a quarter of the whole's cost."""
    whole = work(server, source, tmp_path / "one", None, max_cost_usd=1.0)
    assert (whole.exit_code, whole.rows_open) == (0, 0)
    receipt = work(server, source, tmp_path / "out", (0, 4), max_cost_usd=whole.cost_usd)
    assert receipt.exit_code == 4
    assert receipt.cost_usd <= whole.cost_usd / 4


# At once


def test_four_workers_at_once_write_what_one_run_writes(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    own, out = serve('[[fault]]\nkind = "slow"\nseconds = 0.02\n'), tmp_path / "out"
    with ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda n: work(own, source, out, (n, 4)), range(4)))
    assert [receipt.exit_code for receipt in receipts] == [0, 0, 0, 0]
    assert [receipt.rows for receipt in receipts] == [30, 25, 20, 20]
    assert part_bytes(out) == oracle(server, source, tmp_path / "one")
    assert (out / "_SUCCESS").exists()
    ledger = own.ledger()
    assert (ledger["requests"], ledger["unique"]) == (ROWS, ROWS)
    assert inside("verify", out).returncode == 0
    assert {path.stat().st_mode & 0o777 for path in (out / "_batchrank").glob("shard-*")} == {0o700}


def test_processes_begun_together_make_one_output(
    server: Server, source: Path, tmp_path: Path, parts: list[object]
) -> None:
    out = tmp_path / "out"
    run = [*fast(server, out, source), *parts, "--shard"]
    ends = [ended(one) for one in [started(*run, f"{n}/3") for n in range(3)]]
    assert ends == [(0, "", "")] * 3
    assert part_bytes(out) == oracle(server, source, tmp_path / "one")
    assert (out / "_SUCCESS").exists()


def test_more_workers_than_parts_have_nothing_to_do_and_end_well(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(12, tag="few"))
    out = tmp_path / "out"
    for number in (4, 3, 0, 2, 1):
        receipt = work(server, source, out, (number, 5))
        assert (receipt.exit_code, receipt.rows) == (0, {0: 10, 1: 2}.get(number, 0))
        assert (out / "_SUCCESS").exists() == (number == 1)


def test_an_input_without_rows_is_finished_by_its_one_part(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(1, tag="none").slice(0, 0))
    for number in (1, 0):
        assert work(server, source, tmp_path / "out", (number, 2), allow_empty=True).exit_code == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()
    score(server, source, tmp_path / "one", allow_empty=True)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "one")


def test_a_second_worker_of_the_same_number_ends_with_75(
    serve: Serve, source: Path, tmp_path: Path, parts: list[object]
) -> None:
    slow, out = serve('[[fault]]\nkind = "slow"\nseconds = 0.3\n'), tmp_path / "out"
    run = [*fast(slow, out, source), *parts, "--max-in-flight", 4, "--shard", "1/3"]
    first = started(*run)
    until(lambda: slow.received > 0, "the first sends")
    second = inside(*run)
    assert (second.returncode, second.stderr) == (
        75,
        f"batchrank: {out}: shard 1/3: another batchrank is at work on this output.\n",
    )
    assert ended(first)[0] == 0
    assert slow.ledger()["requests"] == slow.ledger()["unique"]


def test_python_takes_a_shard_too(server: Server, source: Path, tmp_path: Path) -> None:
    config = {
        "endpoint": {"base_url": server.base_url},
        "rate": {"requests_per_minute": 0},
        "output": {"rows_per_part": ROWS_PER_PART},
    }
    for number in range(2):
        receipt = batchrank.run(config, source, tmp_path / "out", shard=(number, 2))
        assert (receipt.exit_code, receipt.shard) == (0, f"{number}/2")
    assert batchrank.finish(tmp_path / "out").rows == ROWS
    with pytest.raises(ConfigInvalid, match="2/2 is no shard"):
        batchrank.run(config, source, tmp_path / "out", shard=(2, 2))


# Whose output it is


def refusal(kind: type[BatchrankError], server: Server, *arguments: Any, **more: Any) -> str:
    """The message that a worker is refused with; nothing is sent and no part is touched."""
    out = arguments[1]
    before, there = server.received, part_bytes(out)
    with pytest.raises(kind) as refused:
        work(server, *arguments, **more)
    assert (server.received, part_bytes(out)) == (before, there)
    return str(refused.value)


def test_another_number_of_shards_is_refused(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work(server, source, out, (0, 4))
    assert refusal(OutputUnusable, server, source, out, (0, 3)) == (
        f"{out}: begun in 4 shards, now 3: what those have answered and not published would be "
        "paid for again. Go on in 4, or choose a new output."
    )
    assert not list((out / "_batchrank").glob("*-of-003"))


@pytest.mark.parametrize("more", [{}, {"restart": True}, {"state_dir": True}])
def test_a_run_by_itself_is_refused_where_shards_began(
    server: Server, source: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    work(server, source, out, (0, 4))
    more = {**more, "state_dir": tmp_path / "state"} if "state_dir" in more else more
    assert refusal(OutputUnusable, server, source, out, None, **more) == (
        f"{out}: begun in 4 shards, whose answers would be paid for again. Go on with --shard 0/4 "
        "and the others, or choose a new output."
    )


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_shard_is_refused_where_a_run_by_itself_began(
    server: Server, source: Path, tmp_path: Path, restart: bool, elsewhere: bool
) -> None:
    out = tmp_path / "out"
    work(server, source, out, None, state_dir=tmp_path / "state" if elsewhere else None)
    (out / "_SUCCESS").unlink()
    assert refusal(OutputUnusable, server, source, out, (0, 4), restart=restart) == (
        f"{out}: begun without --shard. Go on without it, or choose a new output."
    )


def test_a_shard_waits_for_no_run_by_itself_that_is_at_work(
    serve: Serve, source: Path, tmp_path: Path, parts: list[object]
) -> None:
    slow, out = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n'), tmp_path / "out"
    run = [*fast(slow, out, source), *parts, "--max-in-flight", 4]
    first = started(*run)
    until(lambda: slow.received > 0, "it sends")
    done = inside(*run, "--shard", "0/2")
    assert (done.returncode, "begun without --shard" in done.stderr) == (73, True)
    assert ended(first)[0] == 0


def test_another_input_or_configuration_is_refused_by_every_shard(
    server: Server, source: Path, tmp_path: Path, parts: list[object]
) -> None:
    """Those that have begun and those that have not."""
    out = tmp_path / "out"
    work(server, source, out, (0, 4))
    for number in (0, 1):
        done = inside(*fast(server, out, source), "--shard", f"{number}/4")
        assert (done.returncode, done.stderr) == (
            78,
            f"batchrank: {out}: begun with output.rows_per_part = 10, now 10000, which would mix "
            "results. Give the -c and the options that it was begun with, or choose a new output "
            "and --reuse this one to pay nothing twice.\n",
        )
    written(source, table(ROWS + 1, tag="more"))
    for number in (0, 1):
        assert "had 95 rows, now 96" in refusal(InputBad, server, source, out, (number, 4))


def test_somebody_elses_folder_is_refused(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "part-00000.parquet").write_bytes(b"precious")
    with pytest.raises(OutputUnusable):
        work(server, source, out, (0, 2))
    assert [path.name for path in out.iterdir()] == ["part-00000.parquet"]


def test_restart_takes_back_one_shard_alone(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(3):
        work(server, source, out, (number, 3))
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    content, before = part_bytes(out), server.received
    receipt = work(server, source, out, (1, 3), restart=True)
    assert (receipt.exit_code, server.received - before) == (0, 30)
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert {int(name[5:10]) for name in now if now[name] != there[name]} == {1, 4, 7}
    assert part_bytes(out) == content
    assert (out / "_SUCCESS").exists()
    assert inside("verify", out).returncode == 0


def test_a_damaged_state_is_one_shards_and_restart_mends_it(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work(server, source, out, (0, 2))
    database = out / "_batchrank" / "shard-000-of-002" / "checkpoint.sqlite"
    database.write_bytes(b"query,candidates\n" * 1000)
    assert "is damaged" in refusal(OutputUnusable, server, source, out, (0, 2))
    assert work(server, source, out, (1, 2)).exit_code == 0
    assert (out / "_SUCCESS").exists()  # the parts and the receipt of 0/2 are whole


def test_a_lost_state_keeps_the_shards_parts(server: Server, source: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    work(server, source, out, (0, 2), state_dir=state)
    folder = state / "shard-000-of-002"
    assert (folder / "checkpoint.sqlite").exists()
    assert not (out / "_batchrank" / "shard-000-of-002" / "checkpoint.sqlite").exists()
    for file in folder.iterdir():
        file.unlink()
    (out / "part-00002.parquet").unlink()
    before = server.received
    assert work(server, source, out, (0, 2), state_dir=state).exit_code == 0
    assert server.received - before == ROWS_PER_PART
    assert work(server, source, out, (1, 2), state_dir=state).exit_code == 0
    assert inside("verify", out).returncode == 0


def test_the_command_line_of_a_shard_says_what_it_takes(
    server: Server, source: Path, tmp_path: Path, parts: list[object]
) -> None:
    run = [*fast(server, tmp_path / "out", source), *parts, "--requests-per-minute", 60_000]
    done = program(*run, "--shard", "1/4", "--log-level", "info")
    assert done.returncode == 0
    assert 'shard 1/4: {"requests_per_minute":15000.0,' in done.stderr
    assert "25 rows, 0 of 3 parts published" in done.stderr

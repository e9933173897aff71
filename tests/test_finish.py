"""The end of a run in shards: whichever worker is last, once, and only when all of it is there."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import (
    Server,
    fast,
    inside,
    part_bytes,
    score,
    settings,
    started,
    table,
    until,
    written,
)
from test_shards import Serve

from batchrank.analysis.status import status
from batchrank.errors import OutputUnusable
from batchrank.output.receipt import Receipt
from batchrank.session import job
from batchrank.session.finish_shards import NotFinished, finish
from batchrank.state.history import Kept, Point, together

ROWS, SHARDS = 60, 3
REFUSED = """
[[fault]]
kind = "status"
status = 400
code = "InvalidParameter"
where = { marker = "row 13 text" }
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows: six parts of ten."""
    return written(tmp_path_factory.mktemp("finish") / "in.parquet", table(ROWS, tag="finish"))


@pytest.fixture(scope="module")
def whole(server: Server, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run by itself."""
    out = tmp_path_factory.mktemp("whole") / "out"
    score(server, source, out, output={"rows_per_part": 10})
    return out


@pytest.fixture(scope="module")
def filled(server: Server, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output that three workers have finished; copy it."""
    out = tmp_path_factory.mktemp("filled") / "out"
    for number in range(SHARDS):
        work(server, source, out, number)
    return out


@pytest.fixture
def out(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(filled, tmp_path / "out")
    return tmp_path / "out"


def work(server: Server, source: Path, out: Path, number: int, **more: Any) -> Receipt:
    """A worker's run, in this process."""
    request = job.Request(inputs=[str(source)], out=out, shard=(number, SHARDS), **more)
    config = settings(server.base_url, output={"rows_per_part": 10})
    return job.run(config, request, lambda progress: None)


def reopened(out: Path) -> None:
    """Take back the end alone."""
    for name in ("_SUCCESS", "_run.json"):
        (out / name).unlink()


def receipt_of(out: Path, number: int) -> Path:
    return out / "_batchrank" / f"shard-{number:03}-of-{SHARDS:03}" / "_run.json"


def test_the_last_worker_finishes_in_every_order(
    server: Server, source: Path, whole: Path, tmp_path: Path
) -> None:
    for order in permutations(range(SHARDS)):
        out = tmp_path / "".join(map(str, order))
        for number in order:
            assert not (out / "_SUCCESS").exists()
            assert work(server, source, out, number).exit_code == 0
        assert (out / "_SUCCESS").exists()
        assert part_bytes(out) == part_bytes(whole)


def test_the_receipt_is_the_sum_of_the_shards(filled: Path, whole: Path) -> None:
    receipt, alone = (
        msgspec.json.decode((one / "_run.json").read_bytes()) for one in (filled, whole)
    )
    same = (
        *("status", "exit_code", "message", "config", "input", "rows", "rows_scored", "rows_open"),
        *("requests", "retries", "possibly_paid", "tokens_billed", "cost_usd", "parts"),
    )
    assert {name: receipt[name] for name in same} == {name: alone[name] for name in same}
    assert [one["shard"] for one in receipt["shards"]] == ["0/3", "1/3", "2/3"]
    assert sum(one["requests"] for one in receipt["shards"]) == receipt["requests"] == ROWS
    assert "shard" not in receipt and "shards" not in alone


def test_finish_says_which_shards_lack_what_and_writes_nothing(out: Path) -> None:
    reopened(out)
    (out / "part-00004.parquet").unlink()
    receipt_of(out, 1).unlink()
    shutil.rmtree(out / "_batchrank" / "shard-002-of-003")
    (out / "part-00002.parquet").unlink()
    done = inside("finish", out)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == (
        f"batchrank: {out}: shards 1/3 (stopped), 2/3 (not begun) are not finished; missing: "
        "part-00002.parquet, part-00004.parquet.\n"
    )
    assert not (out / "_SUCCESS").exists()
    assert not (out / "_run.json").exists()


def test_parts_without_their_workers_word_are_not_enough(
    server: Server, source: Path, out: Path
) -> None:
    """A worker that was killed after its last part has still to say what it paid."""
    reopened(out)
    receipt_of(out, 1).unlink()
    with pytest.raises(NotFinished) as refused:
        finish(out)
    assert str(refused.value) == (
        f"{out}: all parts are there, but shard 1/3 (stopped) is not finished: run again."
    )
    before = server.received
    assert work(server, source, out, 1).exit_code == 0
    assert server.received == before
    assert (out / "_SUCCESS").exists()


def test_a_worker_that_is_at_work_is_said_to_be(serve: Serve, source: Path, tmp_path: Path) -> None:
    slow, out = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n'), tmp_path / "out"
    first = started(*fast(slow, out, source), "--max-in-flight", 2, "--shard", "0/1")
    until(lambda: slow.received > 0, "it sends")
    done = inside("finish", out)
    assert (done.returncode, "shard 0/1 (running) is not finished" in done.stderr) == (75, True)
    shown = inside("status", out).stdout
    assert ("state      running\n" in shown, "shards     1 of 1 running" in shown) == (True, True)
    first.terminate()
    assert first.wait(timeout=60) == 143
    first.communicate()


def test_finish_again_changes_nothing(out: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for _ in range(2):
        done = inside("finish", out, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["rows_scored"] == ROWS
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_many_may_finish_at_once(out: Path, filled: Path) -> None:
    reopened(out)
    with ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(lambda _: finish(out), range(8)))
    assert all(receipt == receipts[0] for receipt in receipts)
    assert (out / "_run.json").read_bytes() == (filled / "_run.json").read_bytes()
    assert (out / "_SUCCESS").exists()


def test_a_finished_output_sends_nothing_for_any_shard(
    server: Server, source: Path, out: Path
) -> None:
    before, receipt = server.received, (out / "_run.json").read_bytes()
    for shard in [*((number, SHARDS) for number in range(SHARDS)), (0, 8), None]:
        request = job.Request(inputs=[str(source)], out=out, shard=shard)
        config = settings(server.base_url, output={"rows_per_part": 10})
        assert job.run(config, request, lambda progress: None).exit_code == 0
    assert (server.received, (out / "_run.json").read_bytes()) == (before, receipt)


@pytest.mark.parametrize("harm", ["flipped", "cut", "another's", "one more"])
def test_a_part_that_is_not_what_was_published_is_found(out: Path, harm: str) -> None:
    reopened(out)
    part = out / "part-00003.parquet"
    content = bytearray(part.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif harm == "cut":
        part.write_bytes(content[:-9])
    elif harm == "another's":
        shutil.copy(out / "part-00002.parquet", part)
    else:
        shutil.copy(part, out / "part-00006.parquet")
    done = inside("finish", out)
    said = (
        "part-00006.parquet is no part of the run" if harm == "one more" else "part-00003.parquet"
    )
    assert (done.returncode, done.stdout, said in done.stderr) == (65, "", True)
    assert not (out / "_SUCCESS").exists()


def test_failed_rows_are_counted_over_the_whole(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    """A worker's own failures do not end it badly: the last one, or `finish`, says 3."""
    faulty, out = serve(REFUSED), tmp_path / "out"
    codes = [work(faulty, source, out, number).exit_code for number in (1, 0, 2)]
    assert codes == [0, 0, 3]
    assert not (out / "_SUCCESS").exists()
    done = inside("finish", out)
    assert (done.returncode, done.stderr) == (
        3,
        "batchrank: 1 rows failed, more than --max-failed-rows 0; their reasons are in column "
        f'"error" of {out}.\n',
    )
    assert "stopped" in inside("status", out).stdout
    assert work(server, source, out, 1, retry_failed=True).exit_code == 0
    assert (out / "_SUCCESS").exists()
    assert inside("verify", out).returncode == 0


def test_as_many_failed_rows_as_are_allowed_end_well(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    faulty, out = serve(REFUSED), tmp_path / "out"
    for number in range(SHARDS):
        work(faulty, source, out, number)
    assert inside("finish", out, "--max-failed-rows", 1).returncode == 0
    assert (out / "_SUCCESS").exists()


def test_failed_rows_are_asked_again_by_their_shard_alone(
    serve: Serve, server: Server, source: Path, whole: Path, tmp_path: Path
) -> None:
    faulty, out = serve(REFUSED), tmp_path / "out"
    for number in range(SHARDS):
        work(faulty, source, out, number, max_failed_rows=1)
    assert (out / "_SUCCESS").exists()
    before = server.received
    for number in (0, 1, 2):
        assert work(server, source, out, number, retry_failed=True).exit_code == 0
    assert server.received - before == 1
    assert part_bytes(out) == part_bytes(whole)
    assert json.loads((out / "_run.json").read_bytes())["rows_failed"] == 0


def test_what_is_being_written_again_is_not_finished(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    """The end is taken back before the first request, whatever becomes of the worker."""
    faulty, out = serve(REFUSED), tmp_path / "out"
    for number in range(SHARDS):
        work(faulty, source, out, number, max_failed_rows=1)
    stuck = serve('[[fault]]\nkind = "stall"\n')
    again = started(
        *fast(stuck, out, source), "--shard", "1/3", "--retry-failed", "-c", _parts(tmp_path)
    )
    until(lambda: stuck.received > 0, "it asks again")
    again.kill()
    again.communicate()
    assert not (out / "_SUCCESS").exists()
    assert inside("finish", out, "--max-failed-rows", 1).returncode == 75
    assert inside("verify", out).returncode == 73


def _parts(folder: Path) -> Path:
    path = folder / "parts.toml"
    path.write_text("[output]\nrows_per_part = 10\n")
    return path


def test_a_run_by_itself_has_nothing_to_finish(whole: Path, tmp_path: Path) -> None:
    for out in (whole, tmp_path / "nothing"):
        with pytest.raises(OutputUnusable, match="was not begun in shards"):
            finish(out)


# Looking on


def test_status_is_the_sum_of_the_shards(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work(server, source, out, 1)
    seen = status(out)
    assert (seen.state, seen.receipt) == ("stopped", None)
    assert seen.progress is not None
    assert (seen.progress.rows, seen.progress.rows_done, seen.progress.requests) == (ROWS, 20, 20)
    each = json.loads(inside("status", out, "--json").stdout)["shards"]
    assert [(one["shard"], one["state"], one["rows_done"]) for one in each] == [
        ("0/3", "waiting", 0),
        ("1/3", "finished", 20),
        ("2/3", "waiting", 0),
    ]
    assert inside("status", out).stdout.splitlines()[-2:] == [
        "shards     1 of 3 finished",
        "shards     2 of 3 not begun: 0/3, 2/3",
    ]


def test_status_finds_states_that_are_elsewhere(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    work(server, source, out, 2, state_dir=state)
    for options in ([], ["--state-dir", state]):
        each = json.loads(inside("status", out, "--json", *options).stdout)["shards"]
        assert [one["rows_done"] for one in each] == [0, 0, 20]


def test_the_other_commands_take_an_output_of_shards(
    out: Path, whole: Path, tmp_path: Path
) -> None:
    assert inside("verify", out).stdout == f"{out}: 60 rows in 6 parts, all whole.\n"
    for arguments in (["evaluate", "--json"], ["export", "--format", "trec"]):
        name, *options = arguments
        mine, alone = (inside(name, one, *options) for one in (out, whole))
        assert (mine.returncode, mine.stdout) == (0, alone.stdout)
    assert inside("report", out, "-o", tmp_path / "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert "No series was kept" not in page and "60" in page


def test_the_report_adds_up_what_workers_did_at_once() -> None:
    def course(*sent: int) -> Kept:
        points = [
            Point(session=1, seconds=1.0, limit=60.0, sent=one, answered=one, latency={3: one})
            for one in sent
        ]
        return Kept(points=points, reasons={"429": sum(sent)})

    both = together([course(1, 2, 3), course(10, 20)])
    assert [(one.sent, one.limit, one.seconds) for one in both.points] == [
        (11, 120.0, 1.0),
        (22, 120.0, 1.0),
        (3, 60.0, 1.0),
    ]
    assert both.reasons == {"429": 36}
    assert both.points[0].latency == {3: 11}
    assert together([]) == Kept()

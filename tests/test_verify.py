"""`verify` says 0 of a whole output, and 65 with the place of any damage."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    Server,
    ended,
    fast,
    inside,
    killed,
    output,
    program,
    score,
    started,
    table,
    until,
    written,
)


@pytest.fixture(scope="module")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output in parts of ten rows."""
    folder = tmp_path_factory.mktemp("verify")
    source = written(folder / "in.parquet", table(35, tag="verify"))
    score(server, source, folder / "out", output={"rows_per_part": 10})
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def complaint(out: Path) -> str:
    """What `verify` says, which is one line with code 65."""
    done = inside("verify", out)
    assert (done.returncode, done.stdout) == (65, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"batchrank: {out}: ")
    return done.stderr.removeprefix(f"batchrank: {out}: ").rstrip("\n")


def test_a_whole_output_is_0_and_verify_writes_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = program("verify", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: 35 rows in 4 parts, all whole.\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_missing_part_is_named(out: Path) -> None:
    (out / "part-00002.parquet").unlink()
    assert complaint(out).startswith("part-00002.parquet is missing; ")


@pytest.mark.parametrize("where", [10, 0.3, 0.6, -20])
def test_a_changed_byte_is_seen_wherever_it_is(out: Path, where: float) -> None:
    path = out / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    at = int(where * len(content)) if isinstance(where, float) else int(where)
    content[at] ^= 1
    path.write_bytes(content)
    said = {
        "part-00001.parquet is not the file that was published",
        "part-00001.parquet cannot be read",
    }
    assert complaint(out).rstrip(".").split("; ")[0] in said


def test_a_truncated_and_an_empty_part_are_seen(out: Path) -> None:
    path = out / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    (out / "part-00003.parquet").write_bytes(b"")
    assert "part-00000.parquet cannot be read" in complaint(out)
    assert "part-00003.parquet cannot be read" in complaint(out)


def test_a_file_that_does_not_belong_is_named(out: Path) -> None:
    shutil.copy(out / "part-00000.parquet", out / "part-00004.parquet")
    assert complaint(out) == "part-00004.parquet is no part of the run."
    shutil.move(out / "part-00004.parquet", out / "extra.parquet")
    assert complaint(out) == "extra.parquet is no part of the run."


def test_a_part_of_another_run_is_seen(server: Server, out: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "other.parquet", table(35, tag="another run"))
    score(server, source, tmp_path / "other", output={"rows_per_part": 10})
    shutil.copy(tmp_path / "other" / "part-00001.parquet", out / "part-00001.parquet")
    assert complaint(out) == "part-00001.parquet is not the file that was published."


def test_two_parts_that_changed_places_are_seen(out: Path) -> None:
    one, two = out / "part-00000.parquet", out / "part-00001.parquet"
    shutil.move(one, out / "third")
    shutil.move(two, one)
    shutil.move(out / "third", two)
    (out / "third").unlink(missing_ok=True)
    assert complaint(out) == (
        "part-00000.parquet is not the file that was published; "
        "part-00001.parquet is not the file that was published."
    )


def test_the_command_line_says_it_in_one_line(out: Path) -> None:
    (out / "part-00003.parquet").write_bytes(b"")
    done = program("verify", out)
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == (f"batchrank: {out}: part-00003.parquet cannot be read.\n")


def test_more_than_five_complaints_are_counted(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(80, tag="many"))
    score(server, source, tmp_path / "out", output={"rows_per_part": 10})
    for path in (tmp_path / "out").glob("part-*"):
        path.write_bytes(b"")
    assert complaint(tmp_path / "out").endswith("; and 3 more.")


def forged(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """A part rewritten by a batchrank that is wrong: its receipt agrees with its bytes."""
    from batchrank.output.parts import read_record

    path = out / "part-00000.parquet"
    rows = pq.read_table(path)
    pq.write_table(change(rows).replace_schema_metadata(rows.schema.metadata), path)
    receipt = json.loads((out / "_run.json").read_bytes())
    receipt["parts"][0]["sha256"] = read_record(path).sha256
    receipt["parts"][0]["size"] = path.stat().st_size
    (out / "_run.json").write_text(json.dumps(receipt))


def with_results(rows: pa.Table, change: Callable[[list[dict[str, object]]], object]) -> pa.Table:
    """The table with the results of its third row changed in place."""
    results = rows.column("results").to_pylist()
    change(results[2])
    place = rows.schema.get_field_index("results")
    return rows.set_column(place, "results", pa.array(results, rows.schema.field(place).type))


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results[1].update(relevance_score=float("nan")),
        lambda results: results[0].update(relevance_score=float("inf")),
        lambda results: results[2].update(relevance_score=None, rank=None),
        lambda results: results[2].update(rank=2),
        lambda results: results[0].update(relevance_score=-1.0),
        lambda results: results[1].update(index=results[0]["index"]),
    ],
    ids=["nan", "infinite", "unscored", "rank twice", "out of order", "index twice"],
)
def test_scores_that_are_not_whole_are_seen_under_a_right_hash(
    out: Path, change: Callable[[list[dict[str, object]]], object]
) -> None:
    forged(out, lambda rows: with_results(rows, change))
    assert "part-00000.parquet: a row of 0 to 9 is not whole" in complaint(out)


def test_a_candidate_less_is_seen_under_a_right_hash(out: Path) -> None:
    forged(out, lambda rows: with_results(rows, lambda results: results.pop()))
    assert re.search(r"part-00000.parquet has \d+ results instead of \d+", complaint(out))


def test_a_row_less_is_seen_under_a_right_hash(out: Path) -> None:
    forged(out, lambda rows: rows.slice(0, 9))
    assert "part-00000.parquet has 9 rows instead of 10" in complaint(out)


def test_a_run_that_stopped_is_not_finished(serve: Callable[..., Server], tmp_path: Path) -> None:
    own, out = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n'), tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(60, tag="unfinished"))
    run = [*fast(own, out, source), "--max-in-flight", 4]
    process = started(*run)
    until(lambda: own.received > 4, "some are answered")
    process.terminate()
    assert ended(process)[0] == 143
    assert complaint(out).startswith("not finished: no _SUCCESS, 60 rows not done")
    assert inside(*run, "--max-in-flight", 64).returncode == 0
    assert inside("verify", out).returncode == 0
    assert output(out).num_rows == 60


def test_a_run_that_was_killed_is_not_finished(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own, out = serve('[[fault]]\nkind = "stall"\n'), tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(20, tag="killed"))
    process = started(*fast(own, out, source))
    until(lambda: own.received > 0, "it sends")
    during = inside("verify", out)
    killed(process)
    for done in (during, inside("verify", out)):
        assert done.returncode in (65, 73)
        assert done.stderr == f"batchrank: {out}: has no _run.json; has the run ended?\n"


def test_rows_that_failed_are_whole_when_they_say_so(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 3 " }\n')
    source = written(tmp_path / "in.parquet", table(9, tag="said"))
    done = inside(*fast(own, tmp_path / "out", source), "--max-failed-rows", 1)
    assert done.returncode == 0
    assert inside("verify", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("what", ["nothing there", "an empty folder", "a file"])
def test_what_is_no_output_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "out"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("")
    done = inside("verify", path)
    assert (done.returncode, done.stdout) == (73, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"batchrank: {path}")


def test_a_damaged_receipt_is_refused(out: Path) -> None:
    (out / "_run.json").write_text("{")
    done = inside("verify", out)
    assert done.returncode == 73
    assert done.stderr == (
        f"batchrank: {out / '_run.json'}: is damaged. The command that made the output writes it "
        "anew; what is there is not sent again.\n"
    )

"""An output folder belongs to one process, one input and one configuration; the rest is refused."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import (
    Server,
    ended,
    fast,
    inside,
    namespaced,
    output,
    part_bytes,
    program,
    score,
    started,
    table,
    until,
    written,
)

from batchrank.errors import BatchrankError, ConfigInvalid, InputBad, OutputUnusable
from batchrank.records import plan_id

TAKE_OVER = " and --reuse this one to pay nothing twice"
LAST = "; --restart would throw away what it holds."
ADVICE = f"Give that input again, or choose a new output{TAKE_OVER}{LAST}"
OF_SCORES = ("model", "instruct", "max_tokens_per_document")
SLOW = '[[fault]]\nkind = "slow"\nseconds = {}\n'
Serve = Callable[..., Server]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty rows in row groups of ten."""
    return written(tmp_path / "in.parquet", table(40, tag="mine"), row_group_size=10)


@pytest.fixture
def stopped(server: Server, source: Path, tmp_path: Path) -> Path:
    """The output of a run that was killed before its last part of four."""
    out = tmp_path / "out"
    score(server, source, out, output={"rows_per_part": 10})
    for name in ("part-00003.parquet", "_SUCCESS", "_run.json"):
        (out / name).unlink()
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        database.execute("DELETE FROM parts WHERE part = 3")
        database.commit()
    return out


def again(server: Server, source: Any, out: Path, **sections: dict[str, Any]) -> None:
    """The same command once more."""
    sections = {**sections, "output": {"rows_per_part": 10, **sections.get("output", {})}}
    score(server, source, out, **sections)


def refusal(
    server: Server, kind: type[BatchrankError], source: Any, out: Path, **sections: dict[str, Any]
) -> str:
    """The message that the command is refused with; nothing is sent, no part is touched."""
    before, parts = server.received, part_bytes(out)
    with pytest.raises(kind) as refused:
        again(server, source, out, **sections)
    assert server.received == before
    assert part_bytes(out) == parts
    return str(refused.value)


# One process at a time


def test_a_second_process_ends_with_75_and_sends_nothing(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    slow, out = serve(SLOW.format(0.2)), tmp_path / "out"
    first = started(*fast(slow, out, source), "--max-in-flight", 2)
    until(lambda: slow.received > 0, "the first run sends")
    before = server.received
    second = program(*fast(server, out, source))
    assert (second.returncode, second.stdout) == (75, "")
    assert second.stderr == f"batchrank: {out}: another batchrank is at work on this output.\n"
    restart = inside(*fast(server, out, source), "--restart")
    assert restart.returncode == 75
    assert server.received == before
    assert ended(first)[0] == 0
    assert output(out).num_rows == 40
    assert slow.ledger()["requests"] == 40


def test_of_three_processes_begun_together_one_works(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    slow = serve(SLOW.format(0.3))
    run = [*fast(slow, tmp_path / "out", source), "--max-in-flight", 4]
    codes = [ended(process)[0] for process in [started(*run) for _ in range(3)]]
    assert sorted(codes) == [0, 75, 75]
    assert slow.ledger()["requests"] == 40


def test_looking_at_an_output_never_looks_like_a_run(stopped: Path) -> None:
    """What a `status` holds for an instant must neither lie to another nor turn a run away."""
    from concurrent.futures import ThreadPoolExecutor

    from batchrank.analysis.status import status

    def look(times: int) -> set[str]:
        return {status(stopped).state for _ in range(times)}

    with ThreadPoolExecutor(4) as threads:
        assert set.union(*threads.map(look, [1000] * 4)) == {"stopped"}


# Another input


def test_rows_added_to_the_input_are_refused(server: Server, source: Path, stopped: Path) -> None:
    written(source, table(50, tag="mine"))
    assert refusal(server, InputBad, source, stopped) == (
        f"{stopped}: begun with another input (in.parquet had 40 rows, now 50). {ADVICE}"
    )


def test_a_rewritten_input_is_refused(server: Server, source: Path, stopped: Path) -> None:
    written(source, table(40, tag="other"), row_group_size=10)
    assert refusal(server, InputBad, source, stopped) == (
        f"{stopped}: begun with another input (in.parquet is not what it was). {ADVICE}"
    )


def test_reordered_row_groups_are_refused(server: Server, source: Path, stopped: Path) -> None:
    rows = table(40, tag="mine")
    swapped = pa.concat_tables([rows.slice(10, 10), rows.slice(0, 10), rows.slice(20)])
    written(source, swapped, row_group_size=10)
    assert refusal(server, InputBad, source, stopped) == (
        f"{stopped}: begun with another input (in.parquet is not what it was). {ADVICE}"
    )


def test_one_more_file_is_refused(
    server: Server, source: Path, stopped: Path, tmp_path: Path
) -> None:
    more = written(tmp_path / "more.parquet", table(5, tag="more"))
    assert refusal(server, InputBad, [source, more], stopped) == (
        f"{stopped}: begun with another input (1 files, now 2). {ADVICE}"
    )


def test_files_in_another_order_are_refused(server: Server, tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.parquet", table(10, tag=name)) for name in "ab"]
    again(server, files, tmp_path / "out")
    message = refusal(server, InputBad, files[::-1], tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'out'}: begun with another input (")


def test_the_same_file_in_another_folder_goes_on(
    server: Server, source: Path, stopped: Path, tmp_path: Path
) -> None:
    (tmp_path / "moved").mkdir()
    moved = shutil.move(source, tmp_path / "moved" / source.name)
    before = server.received
    again(server, moved, stopped)
    assert server.received - before == 10


def test_a_changed_input_is_refused_by_a_finished_output_too(
    server: Server, source: Path, tmp_path: Path
) -> None:
    again(server, source, tmp_path / "out")
    written(source, table(41, tag="mine"))
    assert "had 40 rows, now 41" in refusal(server, InputBad, source, tmp_path / "out")


# Another configuration

DECIDING: list[tuple[str, str, Any]] = [
    ("endpoint", "model", "gte-rerank-v2"),
    ("endpoint", "instruct", "Find the answer."),
    ("limits", "max_documents", 2),
    ("limits", "max_tokens_per_document", 100),
    ("limits", "max_tokens_per_request", 30_000),
    ("limits", "max_bytes_per_request", 100_000),
    ("input", "keep_columns", ["query"]),
    ("output", "rows_per_part", 20),
    ("output", "top_n", 2),
    ("output", "compression", "snappy"),
]


@pytest.mark.parametrize(("section", "field", "value"), DECIDING)
def test_a_setting_that_decides_results_is_refused_by_name(
    server: Server, source: Path, stopped: Path, section: str, field: str, value: Any
) -> None:
    message = refusal(server, ConfigInvalid, source, stopped, **{section: {field: value}})
    assert message.startswith(f"{stopped}: begun with {section}.{field} = ")
    fits = "" if field in OF_SCORES else TAKE_OVER
    assert message.endswith(
        f", now {value!r}, which would mix results. Give the -c and the options that it was begun "
        f"with, or choose a new output{fits}{LAST}"
    )


@pytest.mark.parametrize(
    ("field", "column"),
    [("query_column", "question"), ("candidates_column", "passages"), ("id_column", "number")],
)
def test_another_column_is_refused_by_name(
    server: Server, tmp_path: Path, field: str, column: str
) -> None:
    rows = table(10, tag=column)
    twin = {"question": "query", "passages": "candidates", "number": "query_id"}[column]
    source = written(tmp_path / "in.parquet", rows.append_column(column, rows.column(twin)))
    again(server, source, tmp_path / "out")
    message = refusal(server, ConfigInvalid, source, tmp_path / "out", input={field: column})
    assert f"begun with input.{field} = '{twin}', now '{column}'" in message


def test_fewer_rows_than_it_was_begun_with_are_refused(
    server: Server, source: Path, stopped: Path
) -> None:
    before = server.received
    with pytest.raises(ConfigInvalid) as refused:
        score(server, source, stopped, limit_rows=20, output={"rows_per_part": 10})
    assert str(refused.value) == (
        f"{stopped}: begun with --limit 0, now 20 (0: all rows). Give at least as many rows to go "
        "on, or choose a new output and --reuse this one to pay nothing twice."
    )
    assert server.received == before


@pytest.mark.parametrize(
    "section",
    [
        {"rate": {"requests_per_minute": 60_000, "ramp_seconds": 0}},
        {"rate": {"tokens_per_minute": 1e9, "ramp_seconds": 0}},
        {"rate": {"max_in_flight": 3}},
        {"endpoint": {"timeout_seconds": 5}},
        {"endpoint": {"headers": {"X-Trace": "1"}}},
        {"endpoint": {"api_key_env": "ANOTHER_KEY"}},
    ],
    ids=str,
)
def test_an_operational_setting_goes_on(
    server: Server, source: Path, stopped: Path, section: dict[str, dict[str, Any]]
) -> None:
    before = server.received
    again(server, source, stopped, **section)
    assert server.received - before == 10
    assert output(stopped).column("query_id").to_pylist() == list(range(40))


def test_another_address_of_the_same_provider_goes_on(
    serve: Serve, source: Path, stopped: Path
) -> None:
    other = serve()
    again(other, source, stopped)
    assert other.received == 10


# Folders that are not ours


def test_a_folder_of_something_else_is_refused_with_and_without_restart(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "part-00000.parquet").write_bytes(b"precious")
    for option in ([], ["--restart"]):
        done = inside(*fast(server, out, source), *option)
        assert (done.returncode, done.stdout) == (73, "")
        assert done.stderr == (
            f"batchrank: {out}: is not empty, and no run of batchrank. Choose another.\n"
        )
    assert [path.read_bytes() for path in out.iterdir()] == [b"precious"]


def test_an_output_that_is_a_file_is_refused(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    message = refusal(server, OutputUnusable, source, out)
    assert message == f"{out}: is a file; the output is a folder."
    assert out.read_text() == "precious"


def test_an_output_below_a_file_is_refused(server: Server, source: Path, tmp_path: Path) -> None:
    message = refusal(server, OutputUnusable, source, source / "out")
    assert message == f"{source / 'out'}: cannot be made or written: Not a directory."


def test_the_folder_of_the_input_is_refused_as_output(
    server: Server, source: Path, tmp_path: Path
) -> None:
    before = source.read_bytes()
    message = refusal(server, OutputUnusable, tmp_path, tmp_path)
    assert message == f"{tmp_path}: is not empty, and no run of batchrank. Choose another."
    assert source.read_bytes() == before


def test_an_output_inside_the_input_folder_can_be_resumed(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "in" / "scores"
    (tmp_path / "in").mkdir()
    shutil.move(source, tmp_path / "in" / source.name)
    again(server, tmp_path / "in", out)
    before = server.received
    again(server, tmp_path / "in", out)
    assert server.received == before


def test_an_output_that_cannot_be_written_is_refused(
    server: Server, source: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    before = server.received
    code, stderr = namespaced(
        f"mount --bind {locked} {locked} && mount -o remount,ro,bind {locked}",
        fast(server, locked / "out", source),
    )
    assert code == 73
    assert stderr.startswith(f"batchrank: {locked / 'out'}: cannot be made or written: ")
    assert len(stderr.splitlines()) == 1
    assert server.received == before


def test_a_run_whose_folder_has_become_read_only_is_refused(
    server: Server, source: Path, stopped: Path
) -> None:
    before = server.received
    code, stderr = namespaced(
        f"mount --bind {stopped} {stopped} && mount -o remount,ro,bind {stopped}",
        [*fast(server, stopped, source)],
    )
    assert (code, len(stderr.splitlines())) == (73, 1), stderr
    assert server.received == before


def test_parts_that_nothing_says_whose_they_are_are_refused(
    server: Server, source: Path, stopped: Path
) -> None:
    for path in [*(stopped / "_batchrank").iterdir(), stopped / "_batchrank.json"]:
        path.unlink()
    assert refusal(server, OutputUnusable, source, stopped) == (
        f"{stopped}: has parts but not the state of their run (_batchrank/). Is that elsewhere, "
        f"pass its --state-dir; else choose a new output{TAKE_OVER}."
    )


# Restart


def test_restart_throws_the_earlier_run_away_and_scores_all_again(
    server: Server, source: Path, stopped: Path
) -> None:
    written(source, table(35, tag="anew"))
    (stopped / "notes.txt").write_text("precious")
    before = server.received
    done = inside(*fast(server, stopped, source), "--restart", "--yes", "--top-n", 1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.received - before == 35
    found = output(stopped)
    assert found.num_rows == 35
    assert {len(results) for results in found.column("results").to_pylist()} == {1}
    assert (stopped / "notes.txt").read_text() == "precious"
    assert inside("verify", stopped).returncode == 0


def test_restart_begins_a_new_output_as_any_run_does(
    server: Server, source: Path, tmp_path: Path
) -> None:
    assert inside(*fast(server, tmp_path / "out", source), "--restart").returncode == 0
    assert output(tmp_path / "out").num_rows == 40


# A damaged checkpoint


def database_of(out: Path) -> Path:
    return out / "_batchrank" / "checkpoint.sqlite"


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_short(path: Path) -> None:
    os.truncate(path, 50)


def flipped(path: Path) -> None:
    """A few bytes in the header of every page but the first."""
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        for at in range(start, start + 8):
            content[at] ^= 0x5A
    path.write_bytes(content)


def flipped_at_the_start(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(8, 100):
        content[at] ^= 0x5A
    path.write_bytes(content)


def a_schema_that_is_no_text(path: Path) -> None:
    """SQLite quotes it in its complaint, which is no UTF-8 then."""
    content = path.read_bytes()
    assert b"CREATE INDEX" in content
    path.write_bytes(content.replace(b"CREATE INDEX", b"CREATE\xa0INDEX"))


def not_a_database(path: Path) -> None:
    path.write_bytes(b"query,candidates\n" * 1000)


def without_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE meta")


def without_answers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE answers")


def a_note_that_is_no_text(path: Path) -> None:
    values = f"{plan_id(30, 0)}, 3, x'00', NULL, 0, CAST(x'ff' AS TEXT), x'00', NULL, NULL"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"INSERT INTO answers VALUES ({values})")
        database.commit()


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        cut_short,
        flipped,
        flipped_at_the_start,
        a_schema_that_is_no_text,
        not_a_database,
        without_tables,
        without_answers,
        a_note_that_is_no_text,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_refused_with_what_to_do(
    server: Server, source: Path, stopped: Path, damage: Callable[[Path], None]
) -> None:
    damage(database_of(stopped))
    assert refusal(server, OutputUnusable, source, stopped) == (
        f"{database_of(stopped)}: is damaged. The published parts are whole: choose a new output "
        "and --reuse this one, to score the rest; --restart would throw the parts away too."
    )


def test_an_emptied_checkpoint_beside_parts_is_refused(
    server: Server, source: Path, stopped: Path
) -> None:
    os.truncate(database_of(stopped), 0)
    assert "has parts but not the state of their run" in refusal(
        server, OutputUnusable, source, stopped
    )


def test_a_checkpoint_of_a_newer_version_is_refused(
    server: Server, source: Path, stopped: Path
) -> None:
    with closing(sqlite3.connect(database_of(stopped))) as database:
        database.execute("PRAGMA user_version=99")
    assert refusal(server, OutputUnusable, source, stopped) == (
        f"{database_of(stopped)}: was written by a newer batchrank (state version 99; this one "
        "knows 3). Update batchrank, or choose a new output."
    )


def test_a_checkpoint_of_another_run_is_refused(
    server: Server, source: Path, stopped: Path, tmp_path: Path
) -> None:
    other = written(tmp_path / "other" / "in.parquet", table(40, tag="another"), row_group_size=10)
    again(server, other, tmp_path / "others")
    shutil.copy(database_of(tmp_path / "others"), database_of(stopped))
    assert "begun with another input" in refusal(server, InputBad, source, stopped)


def test_a_flipped_bit_in_a_committed_score_never_reaches_the_output(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    slow, out = serve(SLOW.format(0.1)), tmp_path / "out"
    process = started(*fast(slow, out, source), "--max-in-flight", 4)
    until(lambda: slow.received >= 20, "half of it is sent")
    process.terminate()
    assert ended(process)[0] == 143
    with closing(sqlite3.connect(database_of(out))) as database:
        scores = database.execute("SELECT scores FROM answers ORDER BY plan").fetchone()[0]
    content = bytearray(database_of(out).read_bytes())
    content[content.index(scores) + 6] ^= 0x08  # in the mantissa: a score like any other
    database_of(out).write_bytes(content)
    score(server, source, tmp_path / "oracle")
    code = inside(*fast(server, out, source)).returncode
    assert code == 73 or part_bytes(out) == part_bytes(tmp_path / "oracle")


def test_restart_puts_a_damaged_checkpoint_right(
    server: Server, source: Path, stopped: Path
) -> None:
    truncated(database_of(stopped))
    assert inside(*fast(server, stopped, source), "--restart", "--yes").returncode == 0
    assert output(stopped).num_rows == 40

"""`export` hands an output to other tools: TREC runs, pairs, JSON lines; whole, or not at all."""

import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    CANDIDATES,
    PROGRAM,
    RESULTS,
    Server,
    clean,
    ended,
    inside,
    one_row,
    output,
    program,
    score,
    started,
    table,
    until,
    written,
)

FORMS = ["trec", "pairs", "jsonl"]


@pytest.fixture(scope="module")
def out(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows in four parts, the texts of the seventh blank but for one, the ninth without any;
    columns of several kinds are kept.
    """
    folder = tmp_path_factory.mktemp("export")
    rows = table(40, documents=12, tag="export")
    lists = rows["candidates"].to_pylist()
    lists[7] = [
        {**one, "text": one["text"] if place == 3 else " "} for place, one in enumerate(lists[7])
    ]
    lists[9] = []
    rows = rows.set_column(2, "candidates", pa.array(lists, CANDIDATES))
    rows = rows.append_column("raw", pa.array([bytes([row, 255]) for row in range(40)]))
    rows = rows.append_column("tags", pa.array([["a", None]] * 40))
    source = written(folder / "in.parquet", rows)
    kept = {"keep_columns": ["raw", "tags"]}
    score(server, source, folder / "out", input=kept, output={"rows_per_part": 10})
    return folder / "out"


def lines_of(out: Path) -> list[dict[str, Any]]:
    """A dictionary per candidate, from the parts themselves."""
    return [
        {"query_id": row["query_id"], **result}
        for row in output(out).to_pylist()
        for result in row["results"]
    ]


def hand_made(out: Path, ids: pa.Array, doc_ids: list[list[str | None]]) -> Path:
    """An output of one part with these ids, finished."""
    results = [
        [
            {"doc_id": doc, "index": index, "rank": index + 1, "relevance_score": 1 / (index + 1)}
            for index, doc in enumerate(row)
        ]
        for row in doc_ids
    ]
    columns = {"query_id": ids, "results": pa.array(results, RESULTS)}
    written(out / "part-00000.parquet", pa.table(columns))
    (out / "_SUCCESS").touch()
    return out


def test_a_trec_run_comes_back_through_another_reader(out: Path) -> None:
    """Six columns, read by ir-measures; only candidates with a score, each score bit for bit."""
    shown = inside("export", out, "--format", "trec")
    assert (shown.returncode, shown.stderr) == (0, "")
    read = [
        (one.query_id, one.doc_id, one.score) for one in ir_measures.read_trec_run(shown.stdout)
    ]
    scored = [one for one in lines_of(out) if one["rank"] is not None]
    assert read == [(str(one["query_id"]), one["doc_id"], one["relevance_score"]) for one in scored]
    assert len(scored) == 38 * 12 + 1
    first = shown.stdout.splitlines()[0].split(" ")
    assert (first[1], first[3], first[5]) == ("Q0", "1", "batchrank")


def test_pairs_come_back_from_tsv_with_those_without_a_score(out: Path) -> None:
    shown = inside("export", out, "--format", "pairs")
    assert (shown.returncode, shown.stderr) == (0, "")
    read = list(csv.DictReader(shown.stdout.splitlines(), delimiter="\t"))
    assert read == [
        {name: "" if value is None else str(value) for name, value in one.items()}
        for one in lines_of(out)
    ]
    assert sum(one["rank"] == "" for one in read) == 11


def test_pairs_in_a_parquet_file_keep_their_types(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    shown = inside("export", out, "--format", "pairs", "-o", file)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    read = pq.read_table(file)
    assert read.to_pylist() == lines_of(out)
    assert read.schema.types == [pa.int64(), pa.string(), pa.int32(), pa.int32(), pa.float64()]


def test_json_lines_hold_every_column_and_bytes_as_base64(out: Path) -> None:
    shown = inside("export", out, "--format", "jsonl")
    assert (shown.returncode, shown.stderr) == (0, "")
    read = [json.loads(line) for line in shown.stdout.splitlines()]
    rows = output(out).to_pylist()
    assert [one.pop("raw") for one in read][:2] == ["AP8=", "Af8="]
    assert read == [{name: row[name] for name in row if name != "raw"} for row in rows]
    assert list(read[0]) == [
        *["query_id", "tags", "results", "status", "error", "requests", "truncated"]
    ]


def test_a_candidate_without_doc_id_is_called_by_its_index(server: Server, tmp_path: Path) -> None:
    rows = pa.table({"query": ["q"], "candidates": [["one text", "another"]]})
    out = tmp_path / "out"
    score(server, written(tmp_path / "in.parquet", rows), out)
    lines = inside("export", out, "--format", "trec").stdout.splitlines()
    named = {(line.split()[0], line.split()[2]) for line in lines}
    assert named == {("0", "0"), ("0", "1")}


@pytest.mark.parametrize(
    "unfit", ["two words", "", "tab\tbed", "new\nline", "wide\u3000space", None]
)
def test_an_id_that_would_shift_the_columns_is_refused(tmp_path: Path, unfit: str | None) -> None:
    ids = pa.array(["fine", unfit], pa.string())
    made = hand_made(tmp_path / "out", ids, [["a"], ["b"]])
    file = tmp_path / "file.run"
    done = inside("export", made, "--format", "trec", "-o", file)
    assert (done.returncode, list(tmp_path.iterdir())) == (65, [made])
    assert done.stderr == (
        f"batchrank: {made}: query_id {unfit!r} cannot stand in a TREC file, whose columns are "
        "separated by spaces. Use --format pairs or jsonl.\n"
    )
    assert inside("export", made, "--format", "pairs", "-o", file).returncode == 0
    with file.open(newline="") as lines:
        read = list(csv.reader(lines, delimiter="\t"))
    assert [row[0] for row in read] == ["query_id", "fine", unfit or ""]


def test_a_doc_id_with_a_space_is_refused_by_name(tmp_path: Path) -> None:
    made = hand_made(tmp_path / "out", pa.array([1]), [["fine", "my doc"]])
    done = inside("export", made, "--format", "trec")
    assert done.returncode == 65
    assert "doc_id 'my doc' cannot stand in a TREC file" in done.stderr


def test_an_id_that_is_no_text_is_refused_before_the_first_line(tmp_path: Path) -> None:
    made = hand_made(tmp_path / "out", pa.array([{"a": 1}]), [["d"]])
    done = inside("export", made, "--format", "pairs")
    assert (done.returncode, done.stdout) == (65, "")
    assert "column 'query_id' is struct<a: int64>, which cannot be written as text" in done.stderr
    file = tmp_path / "pairs.parquet"
    assert inside("export", made, "--format", "pairs", "-o", file).returncode == 0
    assert pq.read_table(file)["query_id"].to_pylist() == [{"a": 1}]


def test_bytes_within_a_kept_list_have_no_form_in_json(tmp_path: Path) -> None:
    made = hand_made(tmp_path / "out", pa.array([1]), [["d"]])
    part = made / "part-00000.parquet"
    written(part, pq.read_table(part).append_column("raw", pa.array([[b"\xff"]])))
    done = inside("export", made, "--format", "jsonl")
    assert (done.returncode, done.stdout) == (65, "")
    assert "column 'raw' is list<element: binary>, which has no form in JSON" in done.stderr


# Runs that have not ended, outputs that are none


def test_an_unfinished_run_gives_what_is_published_and_says_so(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    source, out = written(tmp_path / "in.parquet", table(100, tag="unfinished")), tmp_path / "out"
    config = written_text(tmp_path / "c.toml", "[output]\nrows_per_part = 5\n")
    run = ["run", source, "-o", out, "--base-url", own.base_url, "-c", config]
    process = started(*run, "--requests-per-minute", 0, "--max-in-flight", 2)
    until(lambda: len(list(out.glob("part-*"))) >= 2, "two parts are published")
    done = inside("export", out, "--format", "trec")
    process.terminate()
    ended(process)
    parts = len({int(line.split()[0]) // 5 for line in done.stdout.splitlines()})
    assert done.returncode == 0 and parts >= 2
    tags = [line.split()[-1] for line in done.stdout.splitlines()]
    assert tags.count("batchrank") % 15 == 0 and tags.count("batchrank") >= 30
    assert done.stderr.startswith(f"batchrank: {out}: is not finished; this reads the ")


def written_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_output_is_refused(tmp_path: Path, form: str) -> None:
    done = inside("export", tmp_path, "--format", form)
    assert (done.returncode, done.stdout) == (73, "")
    assert done.stderr == (
        f"batchrank: {tmp_path}: has no parts; is it the output of `batchrank run`?\n"
    )
    other = written(tmp_path / "part-00000.parquet", one_row("q", ["a"]))
    done = inside("export", tmp_path, "--format", form)
    assert (done.returncode, done.stderr) == (
        73,
        f"batchrank: {other}: is no part that batchrank wrote.\n",
    )


def test_a_finished_output_that_lost_a_part_is_refused(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(4, tag="lost"))
    score(server, source, out, output={"rows_per_part": 2})
    (out / "part-00001.parquet").unlink()
    done = inside("export", out, "--format", "trec")
    assert (done.returncode, done.stdout) == (73, "")
    assert "part-00001.parquet is missing" in done.stderr


def test_an_output_without_rows_is_an_empty_file(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(1).slice(0, 0))
    score(server, source, out, allow_empty=True)
    shown = {form: inside("export", out, "--format", form).stdout for form in FORMS}
    assert shown["trec"] == shown["jsonl"] == ""
    assert shown["pairs"] == "query_id\tdoc_id\tindex\trank\trelevance_score\n"
    file = tmp_path / "pairs.parquet"
    assert inside("export", out, "--format", "pairs", "-o", file).returncode == 0
    assert pq.read_table(file).num_rows == 0


# Where it goes


@pytest.mark.parametrize("form", FORMS)
def test_a_file_holds_what_standard_output_would_get(out: Path, tmp_path: Path, form: str) -> None:
    file = written_text(tmp_path / "file", "what was there before")
    done = inside("export", out, "--format", form, "-o", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text() == inside("export", out, "--format", form).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("form", FORMS)
def test_a_failed_export_leaves_the_file_that_was_there(
    out: Path, tmp_path: Path, form: str
) -> None:
    """The limit on file size stands for a full disk; the third part is broken besides."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in out.glob("part-*"):
        (broken / path.name).write_bytes(path.read_bytes())
    damaged = broken / "part-00002.parquet"
    content = bytearray(damaged.read_bytes())
    content[4:400] = bytes(396)
    damaged.write_bytes(content)
    file = written_text(tmp_path / "file", "before")
    done = inside("export", broken, "--format", form, "-o", file)
    assert (done.returncode, file.read_text()) == (73, "before")
    assert "part-00002.parquet: cannot be read" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]

    small = subprocess.run(
        [*PROGRAM, "export", str(out), "--format", form, "-o", str(file)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
        env=clean(),
        check=False,
    )
    assert (small.returncode, file.read_text()) == (74, "before")
    assert small.stderr == f"batchrank: {file}: cannot be written: File too large.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]


def test_a_device_is_written_to_and_stays_one(out: Path) -> None:
    assert inside("export", out, "--format", "trec", "-o", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["pairs.parquet", "part-00000.parquet", "_run.json", "_SUCCESS"])
def test_a_name_that_is_the_runs_own_is_refused(out: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    for command in (["export", out, "--format", "pairs"], ["report", out]):
        done = inside(*command, "-o", out / name)
        assert done.returncode == 73
        assert done.stderr == (
            f"batchrank: {out / name}: would be taken for a file of the run; choose another name.\n"
        )
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path, form: str) -> None:
    """Far more than a pipe holds, so that writing is under way when the reader goes."""
    ids = [[f"d{place}" for place in range(1000)]] * 300
    made = hand_made(tmp_path / "out", pa.array(range(300)), ids)
    process = subprocess.Popen(
        [*PROGRAM, "export", str(made), "--format", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean(),
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def test_a_full_standard_output_is_an_error(out: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "export", str(out), "--format", "trec"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean(),
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr == (
        "batchrank: standard output: cannot be written: No space left on device.\n"
    )


def test_memory_does_not_grow_with_the_output(tmp_path: Path) -> None:
    """Eight times the parts, and less than a third more memory at its most."""
    peaks = []
    for parts in (2, 16):
        made = tmp_path / f"out{parts}"
        ids = [[f"document-{place}" for place in range(100)]] * 2000
        hand_made(made, pa.array(range(2000)), ids)
        for part in range(1, parts):
            os.link(made / "part-00000.parquet", made / f"part-{part:05}.parquet")
        code = (
            "import sys, resource; from pathlib import Path;"
            "from batchrank.analysis.export import export;"
            "export(Path(sys.argv[1]), 'jsonl', open('/dev/null', 'wb'));"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, made], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] * 4 / 3


def test_the_program_exports_too(out: Path) -> None:
    done = program("export", out, "--format", "trec")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == inside("export", out, "--format", "trec").stdout

"""Rows that were answered and whose part is not complete: paid for, so they can be read."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    Server,
    fast,
    inside,
    killed,
    output,
    program,
    rows_of,
    score,
    serving,
    started,
    table,
    until,
    written,
)

from batchrank.analysis.evaluation import evaluate
from batchrank.analysis.export import TAG_UNPUBLISHED

ONE_AT_A_TIME = ["--max-in-flight", 1]
SLOWLY = ["--requests-per-minute", 900]


def cost(rows: int) -> list[object]:
    """Enough for about so many rows of three documents, and not for forty."""
    return ["--max-cost", 0.00002 * rows + 0.00002]


def lines(out: object, *options: object) -> list[dict[str, Any]]:
    done = inside("export", out, "--format", "jsonl", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All files below, with their times and bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    facts = ((path, path.stat()) for path in files)
    return {str(path): (stat.st_mtime_ns, stat.st_ino, path.read_bytes()) for path, stat in facts}


def finished(server: Server, source: Path, folder: Path, *options: object) -> list[dict[str, Any]]:
    """The rows of the same input, scored to the end."""
    done = inside(*fast(server, folder / "finished", source), *options)
    assert done.returncode == 0, done.stderr
    return lines(folder / "finished")


def without(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def check_is_some_of(found: Sequence[dict[str, Any]], all_rows: Sequence[dict[str, Any]]) -> None:
    """Some rows, not all, in their order, with every value."""
    plain = without(found, "published")
    assert 0 < len(plain) < len(all_rows)
    assert [row for row in all_rows if row in plain] == plain


@pytest.fixture(params=["stopped at its cost", "killed"])
def stopped(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path
) -> Iterator[tuple[Path, Path]]:
    """An input of 40 rows, and an output of it without a part."""
    source = written(tmp_path / "in.parquet", table(40, tag="paid"))
    out = tmp_path / "out"
    if request.param == "killed":
        with serving() as own:
            run = started(*fast(own, out, source), *SLOWLY)
            until(lambda: own.received > 8, "some requests came")
            assert killed(run) == -9
    else:
        done = inside(*fast(server, out, source), *cost(10), *ONE_AT_A_TIME)
        assert done.returncode == 4
    assert not list(out.glob("part-*"))
    yield source, out


def test_rows_are_what_the_finished_output_has(
    server: Server, tmp_path: Path, stopped: tuple[Path, Path]
) -> None:
    source, out = stopped
    before = tree(out)
    found = lines(out)
    assert {row["published"] for row in found} == {False}
    check_is_some_of(found, finished(server, source, tmp_path))
    pairs = inside("export", out, "--format", "pairs").stdout.splitlines()
    assert pairs[0].split("\t")[-1] == "published"
    assert len(pairs) == 1 + 3 * len(found)
    assert all(line.endswith("\tfalse") for line in pairs[1:])
    trec = inside("export", out, "--format", "trec").stdout.splitlines()
    assert len(trec) == 3 * len(found)
    assert {line.split(" ")[-1] for line in trec} == {TAG_UNPUBLISHED}
    assert inside("evaluate", out, "--json").returncode == 0
    assert tree(out) == before
    assert inside("report", out, "-o", tmp_path / "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert f"with {len(found)} answered rows of parts that are not complete" in page
    assert tree(out) == before


def test_the_command_says_what_it_reads(stopped: tuple[Path, Path]) -> None:
    _, out = stopped
    done = inside("export", out, "--format", "jsonl")
    count = len(done.stdout.splitlines())
    assert done.stderr == (
        f"batchrank: {out}: is not finished; this reads the 0 rows of its 0 published parts, "
        f"and {count} answered rows of other parts. See `batchrank status`.\n"
    )


def test_the_same_run_still_goes_on_and_pays_nothing_twice(
    server: Server, tmp_path: Path, stopped: tuple[Path, Path]
) -> None:
    source, out = stopped
    found = lines(out)
    before = server.received
    assert inside(*fast(server, out, source)).returncode == 0
    assert server.received - before == 40 - len(found)
    assert all("published" not in row for row in lines(out))


def test_published_and_answered_rows_come_in_the_order_of_the_input(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="order"))
    config = tmp_path / "parts.toml"
    config.write_text("[output]\nrows_per_part = 4\n")
    out, options = tmp_path / "out", ["-c", config]
    done = inside(*fast(server, out, source), *options, *cost(13), *ONE_AT_A_TIME)
    assert done.returncode == 4
    found = lines(out)
    check_is_some_of(found, finished(server, source, tmp_path, *options))
    published = 4 * len(list(out.glob("part-*")))
    assert 0 < published < len(found)
    assert [row["published"] for row in found] == sorted(
        (row["published"] for row in found), reverse=True
    )
    assert sum(row["published"] for row in found) == published
    file = tmp_path / "pairs.parquet"
    assert inside("export", out, "--format", "pairs", "-o", file).returncode == 0
    assert pq.read_table(file)["published"].to_pylist().count(True) == 3 * published


def test_the_most_valuable_rows_are_those_that_were_bought(server: Server, tmp_path: Path) -> None:
    rows = table(40, tag="first").append_column("value", pa.array([n % 10 for n in range(40)]))
    source = written(tmp_path / "in.parquet", rows)
    out = tmp_path / "out"
    bound = ["--priority-column", "value", *cost(3), *ONE_AT_A_TIME, "--keep", "value"]
    assert inside(*fast(server, out, source), *bound).returncode == 4
    found = lines(out)
    assert {row["value"] for row in found} <= {8, 9}
    check_is_some_of(found, finished(server, source, tmp_path, "--keep", "value"))


def test_a_row_that_lacks_an_answer_is_open(server: Server, tmp_path: Path) -> None:
    """Six documents in three requests; the cap falls between two of a row's."""
    source = written(tmp_path / "in.parquet", table(20, 6, tag="open"))
    config = tmp_path / "split.toml"
    config.write_text("[limits]\nmax_documents = 2\n")
    whole = {row["query_id"]: row for row in finished(server, source, tmp_path, "-c", config)}
    seen = set()
    for number in range(3):
        out = tmp_path / f"out{number}"
        bound = ["--max-cost", 0.0002 + 0.0000121 * number, *ONE_AT_A_TIME, "-c", config]
        assert inside(*fast(server, out, source), *bound).returncode == 4
        *others, last = lines(out)
        assert {row["status"] for row in others} == {"scored"}
        seen.add(last["status"])
        if last["status"] != "open":
            continue
        assert last["requests"] in (1, 2)
        assert last["error"] == f"{3 - last['requests']} of 3 requests not answered yet"
        scores = {
            one["index"]: one["relevance_score"] for one in whole[last["query_id"]]["results"]
        }
        bought = [one for one in last["results"] if one["rank"] is not None]
        assert len(bought) == 2 * last["requests"]
        assert all(one["relevance_score"] == scores[one["index"]] for one in bought)
        moved = json.loads(inside("evaluate", out, "--json").stdout)
        assert moved["rows"] == len(others)
    assert "open" in seen


@pytest.mark.parametrize("shape", ["pairs", "ids"])
def test_other_shapes_of_input_are_read_again(server: Server, tmp_path: Path, shape: str) -> None:
    count = range(120)
    queries = [f"q{n % 40}" for n in count]
    texts = [f"{shape} text {n}" for n in count]
    ids = [f"d{n}" for n in count]
    source, options = tmp_path / "in.parquet", list[object]()
    if shape == "pairs":
        columns = {"query_id": queries, "query": queries, "doc_id": ids, "text": texts}
        written(source, pa.table(columns))
    else:
        written(source, pa.table({"query_id": queries, "doc_id": ids}))
        written(tmp_path / "q.parquet", pa.table({"_id": queries[:40], "text": queries[:40]}))
        written(tmp_path / "c.parquet", pa.table({"_id": ids, "text": texts}))
        options = ["--queries", tmp_path / "q.parquet", "--corpus", tmp_path / "c.parquet"]
    out = tmp_path / "out"
    done = inside(*fast(server, out, source), *options, *cost(8), *ONE_AT_A_TIME)
    assert done.returncode == 4, done.stderr
    check_is_some_of(lines(out), finished(server, source, tmp_path, *options))


def test_rows_that_share_requests_are_read(server: Server, tmp_path: Path) -> None:
    rows = rows_of(*((f"query {n % 20}", [f"text {n}", f"more {n}"]) for n in range(40)))
    rows = rows.set_column(0, "query_id", pa.array(range(40)))
    source = written(tmp_path / "in.parquet", rows)
    out = tmp_path / "out"
    done = inside(*fast(server, out, source), "--unite-rows", *cost(4), *ONE_AT_A_TIME)
    assert done.returncode == 4
    check_is_some_of(lines(out), finished(server, source, tmp_path, "--unite-rows"))


def test_scores_of_an_earlier_output_are_there_as_well(server: Server, tmp_path: Path) -> None:
    lists = [(f"query {n}", [f"old {n}", f"new {n}"]) for n in range(40)]
    score(
        server,
        written(tmp_path / "1.parquet", rows_of(*((query, texts[:1]) for query, texts in lists))),
        tmp_path / "night1",
    )
    rows = rows_of(*lists).set_column(0, "query_id", pa.array(range(40)))
    source = written(tmp_path / "in.parquet", rows)
    options = ["--reuse", tmp_path / "night1"]
    out = tmp_path / "out"
    done = inside(*fast(server, out, source), *options, *cost(5), *ONE_AT_A_TIME)
    assert done.returncode == 4
    found = lines(out)
    check_is_some_of(found, finished(server, source, tmp_path, *options))
    (tmp_path / "night1").rename(tmp_path / "moved")
    done = inside("export", out, "--format", "jsonl")
    assert done.returncode == 73
    assert f"left out: {len(found)} answered rows: " in done.stderr


def test_shards_are_read_together(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="shards"))
    config = tmp_path / "parts.toml"
    config.write_text("[output]\nrows_per_part = 8\n")
    out, options = tmp_path / "out", ["-c", config, *ONE_AT_A_TIME]
    run = [*fast(server, out, source), *options]
    assert inside(*run, "--shard", "0/3", "--max-cost", 0.00055).returncode == 4
    assert inside(*run, "--shard", "1/3", "--max-cost", 0.0003).returncode == 4
    done = inside("export", out, "--format", "jsonl")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    check_is_some_of(found, finished(server, source, tmp_path, "-c", config))
    assert {row["query_id"] // 8 % 3 for row in found} == {0, 1}
    assert "left out: shard 2/3: its state is not here." in done.stderr


def test_a_state_elsewhere_is_named(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="elsewhere"))
    out, state = tmp_path / "out", ["--state-dir", tmp_path / "state"]
    done = inside(*fast(server, out, source), *state, *cost(8), *ONE_AT_A_TIME)
    assert done.returncode == 4
    before = tree(tmp_path / "state")
    check_is_some_of(lines(out, *state), finished(server, source, tmp_path))
    for command in (["evaluate", out, "--json"], ["report", out, "-o", tmp_path / "page.html"]):
        assert inside(*command, *state).returncode == 0
    assert tree(tmp_path / "state") == before
    done = inside("export", out, "--format", "jsonl")
    assert (done.returncode, done.stdout) == (73, "")
    assert "pass its --state-dir" in done.stderr


def test_another_working_folder_finds_the_input(server: Server, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    written(tmp_path / "there" / "in.parquet", table(40, tag="cwd"))
    run = fast(server, Path("out"), Path("in.parquet"))
    done = program(*run, *cost(8), *ONE_AT_A_TIME, cwd=tmp_path / "there")
    assert done.returncode == 4, done.stderr
    assert len(lines(tmp_path / "there" / "out")) > 0


@pytest.mark.parametrize("what", ["gone", "grown", "rewritten"])
def test_without_its_input_the_published_parts_alone_are_read(
    server: Server, tmp_path: Path, what: str
) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="lost"))
    config = tmp_path / "parts.toml"
    config.write_text("[output]\nrows_per_part = 4\n")
    out = tmp_path / "out"
    done = inside(*fast(server, out, source), "-c", config, *cost(13), *ONE_AT_A_TIME)
    assert done.returncode == 4
    whole = lines(out)
    if what == "gone":
        source.unlink()
    else:
        written(source, table(41 if what == "grown" else 40, tag="lost" + "t" * (what != "grown")))
    done = inside("export", out, "--format", "jsonl")
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == without([row for row in whole if row["published"]], "published")
    answered = len(whole) - len(found)
    (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
    assert f"left out: {answered} answered rows: " in line


def test_a_run_at_work_is_read_and_not_disturbed(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(80, tag="working"))
    config = tmp_path / "parts.toml"
    config.write_text("[output]\nrows_per_part = 8\n")
    out = tmp_path / "out"
    with serving() as own:
        run = started(*fast(own, out, source), "-c", config, *SLOWLY)
        until(lambda: own.received > 4, "some requests came")
        counts = []
        while run.poll() is None:
            done = program("export", out, "--format", "jsonl", timeout=60)
            if done.returncode == 73 and "has no parts" in done.stderr:
                continue
            assert done.returncode == 0, done.stderr
            found = [json.loads(line)["query_id"] for line in done.stdout.splitlines()]
            assert found == sorted(set(found))
            counts.append(len(found))
        run.communicate()
        assert run.returncode == 0
        assert own.received == 80
    assert counts == sorted(counts)
    assert len(set(counts)) > 1


def test_qrels_judge_what_was_bought(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="judged"))
    out = tmp_path / "out"
    assert inside(*fast(server, out, source), *cost(10), *ONE_AT_A_TIME).returncode == 4
    qrels = pa.table(
        {
            "query_id": [str(n) for n in range(40)],
            "doc_id": [f"d{n}-1" for n in range(40)],
            "relevance": [1] * 40,
        }
    )
    judged = evaluate(out, written(tmp_path / "qrels.parquet", qrels))
    assert judged.queries == len(lines(out))
    assert judged.judged_queries_not_in_output == 40 - judged.queries


def test_a_copy_without_the_shared_memory_is_read(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="copied"))
    out = tmp_path / "out"
    with serving() as own:
        run = started(*fast(own, out, source), *SLOWLY)
        until(lambda: own.received > 8, "some requests came")
        assert killed(run) == -9
    expected = lines(out)
    os.unlink(out / "_batchrank" / "checkpoint.sqlite-shm")
    before = tree(out)
    assert lines(out) == expected
    assert tree(out) == before


def test_nothing_of_a_finished_output_changed(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="done"))
    score(server, source, tmp_path / "out")
    source.unlink()
    assert [row["query_id"] for row in lines(tmp_path / "out")] == list(range(5))
    assert output(tmp_path / "out").num_rows == 5
    assert inside("export", tmp_path / "out", "--format", "trec").stderr == ""

"""A path is the file that is called so, whatever signs it has; only an INPUT may be a pattern."""

import gzip
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import Server, fast, inside, part_bytes, settings, table, written

import batchrank

NAMES = ["run[1]", "run*", "run?", "run{1,2}", "run%31", "run 1", "query_id=9", "run[[]1]", "#run"]
SIBLINGS = ["run1", "run2"]


def qrels_of(folder: Path, rows: pa.Table) -> Path:
    """Judgments by which the first candidate of each row is relevant."""
    firsts = [candidates[0]["doc_id"] for candidates in rows["candidates"].to_pylist()]
    columns = {"query_id": rows["query_id"], "doc_id": firsts, "relevance": [1] * len(rows)}
    return written(folder / "qrels.parquet", pa.table(columns))


def done(*arguments: object) -> str:
    result = inside(*arguments)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_an_output_by_its_name(
    server: Server, tmp_path: Path, name: str
) -> None:
    rows = table(6, tag="names")
    for sibling in SIBLINGS:
        other = written(tmp_path / "other" / f"{sibling}.parquet", table(2, tag="other"))
        done(*fast(server, tmp_path / sibling, other))
    source = written(tmp_path / name / "in.parquet", rows)
    out, again, plain = tmp_path / f"{name}.out", tmp_path / f"{name}.again", tmp_path / "plain"
    done(*fast(server, plain, source))
    done(*fast(server, out, source))
    for sibling in SIBLINGS:
        (tmp_path / sibling).rename(tmp_path / f"{sibling}.out")
    before = server.received
    done(*fast(server, again, source), "--reuse", out)
    assert server.received == before, "all is taken from the folder that was named"
    qrels = qrels_of(tmp_path / name, rows)
    figures = json.loads(done("evaluate", out, "--qrels", qrels, "--against", again, "--json"))
    expected = json.loads(done("evaluate", plain, "--qrels", qrels, "--json"))
    assert figures["queries"] == 6
    assert figures["after"] == expected["after"] == figures["against"]["means"]
    assert json.loads(done("evaluate", out, "--json"))["rows"] == 6
    assert "6 rows" in done("verify", out)
    assert "6 of 6" in done("status", out)
    for form in ("trec", "pairs", "jsonl"):
        assert done("export", out, "--format", form) == done("export", plain, "--format", form)
    file = tmp_path / f"{name}.pairs.parquet"
    done("export", out, "--format", "pairs", "-o", file)
    assert pq.ParquetFile(file).metadata.num_rows == 18
    assert Path(done("report", out).strip()).parent == out


@pytest.mark.parametrize("name", NAMES)
def test_input_queries_and_corpus_that_are_there_are_taken_literally(
    server: Server, tmp_path: Path, name: str
) -> None:
    for folder in (name, *SIBLINGS):
        (tmp_path / folder).mkdir()
        for kind, key in (("query", "q"), ("document", "d")):
            line = json.dumps({"_id": key, "text": f"{kind} of {folder}"}) + "\n"
            packed = tmp_path / folder / f"{folder}.{kind}.jsonl.gz"
            packed.write_bytes(gzip.compress(line.encode()))
        (tmp_path / folder / f"{folder}.trec").write_text("q Q0 d 1 2.0 t\n")
    place = tmp_path / name
    run, queries = place / f"{name}.trec", place / f"{name}.query.jsonl.gz"
    corpus = place / f"{name}.document.jsonl.gz"
    done(*fast(server, tmp_path / "ids", run), "--queries", queries, "--corpus", corpus)
    rows = pa.table({"query_id": ["q"], "query": [f"query of {name}"]}).append_column(
        "candidates", pa.array([[{"doc_id": "d", "text": f"document of {name}"}]])
    )
    written(place / "rows" / f"{name}.parquet", rows)
    done(*fast(server, tmp_path / "file", place / "rows" / f"{name}.parquet"))
    done(*fast(server, tmp_path / "folder", place / "rows"))
    expected = part_bytes(tmp_path / "file")
    assert part_bytes(tmp_path / "ids") == part_bytes(tmp_path / "folder") == expected


@pytest.mark.parametrize("name", NAMES)
def test_python_takes_paths_as_they_are(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "run1.parquet", table(2, tag="other"))
    source = written(tmp_path / f"{name}.parquet", table(5, tag="python"))
    scratch = tmp_path / f"{name} scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    config = settings(server.base_url)
    by_path = batchrank.rerank(source, config=config, out=tmp_path / name, progress=False)
    by_frame = batchrank.rerank(pl.read_parquet(source, glob=False), config=config, progress=False)
    assert len(by_path) == 5
    assert by_path.equals(by_frame)


def test_a_pattern_is_one_only_where_nothing_is_called_so(tmp_path: Path) -> None:
    written(tmp_path / "a1.parquet", table(2, tag="a1"))
    name = tmp_path / "a[1].parquet"
    assert json.loads(done("plan", name, "--summary", "json"))["rows"] == 2
    written(name, table(3, tag="a[1]"))
    assert json.loads(done("plan", name, "--summary", "json"))["rows"] == 3


@pytest.mark.parametrize("folder", ["data[1]", "data*", "data?", "[d]ata1"])
def test_a_folder_before_a_pattern_is_none_where_it_is_there(tmp_path: Path, folder: str) -> None:
    written(tmp_path / "data1" / "part.parquet", table(2, tag="sibling"))
    pattern = tmp_path / folder / "*.parquet"
    assert json.loads(done("plan", pattern, "--summary", "json"))["rows"] == 2
    written(tmp_path / folder / "part.parquet", table(3, tag="named"))
    assert json.loads(done("plan", pattern, "--summary", "json"))["rows"] == 3


def test_a_link_that_leads_nowhere_is_no_pattern(tmp_path: Path) -> None:
    written(tmp_path / "a1.parquet", table(2, tag="a1"))
    (tmp_path / "a[1].parquet").symlink_to(tmp_path / "nowhere")
    result = inside("plan", tmp_path / "a[1].parquet")
    assert (result.returncode, len(result.stderr.splitlines())) == (66, 1)
    assert "a[1].parquet" in result.stderr

"""Runs, queries, corpora and qrels as editors, tools and shells leave them: read, or one clear line
that says which line or row is to blame.
"""

import bz2
import gzip
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import RESULTS, Server, fast, inside, output, written

from batchrank.analysis.evaluation import evaluate
from batchrank.analysis.qrels import read_qrels
from batchrank.errors import InputBad
from batchrank.input.input_file import InputFile
from batchrank.input.line_files import TrecLines

Change = Callable[[bytes], bytes]
BOM = b"\xef\xbb\xbf"


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def in_two(content: bytes) -> bytes:
    """Two files packed and put one after the other, as `cat a.gz b.gz` does."""
    half = content.index(b"\n") + 1
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


CHANGES: dict[str, Change] = {
    "byte order mark": lambda content: BOM + content,
    "byte order marks of joined files": lambda content: content.replace(b"\n", b"\n" + BOM, 1),
    "Windows line ends": lambda content: content.replace(b"\n", b"\r\n"),
    "Windows line ends twice": lambda content: content.replace(b"\n", b"\r\r\n"),
    "old Mac line ends": lambda content: content.replace(b"\n", b"\r"),
    "blank last lines": lambda content: content + b"\n \n\t\r\n",
    "blank lines": lambda content: b"\n\n" + content.replace(b"\n", b"\n\n"),
    "no last line end": lambda content: content.rstrip(b"\n"),
    "all of it": lambda content: BOM + content.replace(b"\n", b"\r\n") + b"\r\n",
    "gzip": gzip.compress,
    "gzip in two": in_two,
    "bzip2": bz2.compress,
    "zstd": zstd,
    "zstd with a mark": lambda content: zstd(BOM + content),
}


def texts(names: Sequence[str], what: str) -> bytes:
    lines = (json.dumps({"_id": name, "text": f"{what} {name}"}) + "\n" for name in names)
    return "".join(lines).encode()


class Files:
    """A run of three queries with two documents each, its texts, and judgments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queries = texts([f"q{one}" for one in range(3)], "query")
        self.corpus = texts(["a", "b", "unused"], "document")
        lines = [
            f"q{one} Q0 {d} {r} {9.5 - r} bm25\n" for one in range(3) for r, d in enumerate("ab")
        ]
        self.run = "".join(lines).encode()

    def arguments(self, change: Change = bytes) -> list[object]:
        """The arguments of `run`, once the changed files are written."""
        self.folder.mkdir(exist_ok=True)
        paths = {name: self.folder / name for name in ("run.trec", "queries.jsonl", "corpus.jsonl")}
        contents = (self.run, self.queries, self.corpus)
        for path, content in zip(paths.values(), contents, strict=True):
            path.write_bytes(change(content))
        run, queries, corpus = paths.values()
        return [run, "--queries", queries, "--corpus", corpus]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_runs_and_texts_are_read_whoever_wrote_them(
    server: Server, tmp_path: Path, change: Change
) -> None:
    files = Files(tmp_path / "files")
    assert inside(*fast(server, tmp_path / "plain", *files.arguments())).returncode == 0
    done = inside(*fast(server, tmp_path / "out", *files.arguments(change)))
    assert (done.returncode, done.stderr) == (0, "")
    assert output(tmp_path / "out").equals(output(tmp_path / "plain"))


def test_rows_behind_blank_lines_are_found_again(tmp_path: Path) -> None:
    """Reading begins at any row, as a run does that goes on; a message counts as an editor does."""
    path = tmp_path / "run.trec"
    line = "q{0} Q0 d 1 2.0 t\n"
    path.write_text("\n\r\n" + "\n \n".join(line.format(number) for number in range(50_000)))
    lines = TrecLines([InputFile(path), InputFile(path)], "query_id", "doc_id")
    for first in (0, 1, 30_000, 49_999, 50_001, 99_999, 100_000):
        found = [
            one for batch in lines.batches(["query_id"], first) for one in batch[0].to_pylist()
        ]
        assert found == [f"q{number % 50_000}" for number in range(first, 100_000)]
    assert lines.where(0) == lines.where(50_000) == "run.trec, line 3"
    assert lines.where(10) == "run.trec, line 33"


QRELS = b"q0 0 a 1\nq1 0 b 2\nq2 0 a 0\n"
JUDGED = {"q0": {"a": 1}, "q1": {"b": 2}, "q2": {"a": 0}}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_qrels_are_read_whoever_wrote_them(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(change(QRELS))
    assert read_qrels(path) == JUDGED


BEIR = b"query-id\tcorpus-id\tscore\nq0\ta\t1\nq1\tb\t2\nq2\ta\t0\n"


@pytest.mark.parametrize(
    "content",
    [
        BEIR,
        BOM + BEIR.replace(b"\n", b"\r\n"),
        BEIR.partition(b"\n")[2],
        gzip.compress(BEIR),
        b"query_id\titeration\tdoc_id\trelevance\n" + QRELS.replace(b" ", b"\t"),
        b"qid Q0 docno rel\n" + QRELS,
        QRELS.replace(b"1\n", b"1.0\n"),
        QRELS.replace(b" ", b"  \t "),
    ],
    ids=["BEIR", "BEIR of Windows", "no names", "packed", "names", "more names", "1.0", "padded"],
)
def test_names_of_columns_and_the_three_columns_of_beir_are_known(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "test.tsv"
    path.write_bytes(content)
    assert read_qrels(path) == JUDGED


def test_parquet_with_the_names_of_beir_is_read(tmp_path: Path) -> None:
    columns = {"query-id": ["q"], "corpus-id": [7], "score": [1]}
    assert read_qrels(written(tmp_path / "qrels", pa.table(columns))) == {"q": {"7": 1}}


ODD = ["Boeing 747", "a\u2028b", "a\u00a0b", "a\x85b", "a\x1cb", "a\u3000b", "#", '"x"', "7 8  9"]


@pytest.mark.parametrize("name", ODD)
def test_ids_between_tabs_may_hold_anything_else(server: Server, tmp_path: Path, name: str) -> None:
    """The decoy is what would be found were the line split at the first space."""
    decoy = name.split()[0] + "-" if name.split()[0] == name else name.split()[0]
    files = Files(tmp_path / "files")
    files.queries = texts(["q 1", "q"], "query")
    files.corpus = texts([decoy, name], "document")
    files.run = f"q 1\tQ0\t{name}\t1\t3.5\tmy run\n".encode()
    assert inside(*fast(server, tmp_path / "out", *files.arguments())).returncode == 0
    rows = output(tmp_path / "out")
    assert rows["query_id"].to_pylist() == ["q 1"]
    assert [result["doc_id"] for result in rows["results"][0].as_py()] == [name]
    for line in (f"q 1\t0\t{name}\t1\n", f"q 1\t{name}\t1\n"):
        (tmp_path / "qrels").write_text(line, "utf-8")
        assert read_qrels(tmp_path / "qrels") == {"q 1": {name: 1}}
        assert evaluate(tmp_path / "out", tmp_path / "qrels").after["MRR@10"] == 1


def test_an_id_with_a_space_and_a_column_too_few_is_no_other_document(
    server: Server, tmp_path: Path
) -> None:
    files = Files(tmp_path / "files")
    for line in (b"q0\tBoeing 747\t1\t3.5\n", b"q0\tQ0\tBoeing 747\t1\t3.5\tx\ty\n"):
        files.run = b"q0 Q0 a 1 2.0 t\n\n" + line
        done = inside(*fast(server, tmp_path / "out", *files.arguments()))
        assert done.returncode == 65
        assert done.stderr.startswith("batchrank: run.trec, line 3: expected the six columns")


@pytest.mark.parametrize("opening", ["fifo", "/dev/fd"])
def test_qrels_may_be_a_pipe(tmp_path: Path, opening: str) -> None:
    """More than a pipe holds, so that it is read while it is written, and only once."""
    lines = "".join(f"q{one:07} 0 d 1\n" for one in range(20_000)).encode()
    result = [{"doc_id": "d", "index": 0, "rank": 1, "relevance_score": 0.5}]
    ids = [f"q{one:07}" for one in range(20_000)]
    columns = {"query_id": ids, "results": pa.array([result] * len(ids), RESULTS)}
    out = written(tmp_path / "out" / "part-00000.parquet", pa.table(columns)).parent
    if opening == "fifo":
        os.mkfifo(tmp_path / "pipe")
        path, reading = tmp_path / "pipe", -1
    else:
        reading, writing = os.pipe()
        path = Path(f"/dev/fd/{reading}")

    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY) if opening == "fifo" else writing
        with open(descriptor, "wb") as stream:
            stream.write(lines)

    writer = threading.Thread(target=write)
    writer.start()
    found = evaluate(out, path)
    writer.join()
    if opening != "fifo":
        os.close(reading)
    assert (found.queries, found.queries_not_judged) == (20_000, 0)


def refused(server: Server, folder: Path, files: Files) -> str:
    done = inside(*fast(server, folder / "out", *files.arguments()))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (65, "", 1)
    return done.stderr.removeprefix("batchrank: ").removesuffix("\n")


HALVES = [r"\ud83d", r"\ude00", r"a\ud83d\ud83d\ude00 b", r"\ude00\ud83d"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("where", ["text", "title", "metadata", "_id"])
def test_half_a_character_counts_only_where_a_run_names_the_document(
    server: Server, tmp_path: Path, half: str, where: str
) -> None:
    record = {"_id": "half", "title": "t", "text": "x", "metadata": "m"}
    line = json.dumps(record).replace(json.dumps(record[where]), f'"{half}"', 1)
    files = Files(tmp_path / "files")
    files.corpus += f"\n{line}\n".encode()
    assert inside(*fast(server, tmp_path / "out", *files.arguments())).returncode == 0
    if where == "_id":
        return
    files.run += b"q2 Q0 half 9 0.5 bm25\n"
    if where == "metadata":
        assert inside(*fast(server, tmp_path / "m", *files.arguments())).returncode == 0
        return
    assert refused(server, tmp_path, files) == (
        "corpus.jsonl, line 5: the text of 'half' holds half of a character (a surrogate without "
        "its other half), which is no text; write it anew."
    )


@pytest.mark.parametrize("which", ["run", "queries", "corpus"])
def test_what_is_not_utf_8_is_named_by_its_line(server: Server, tmp_path: Path, which: str) -> None:
    files = Files(tmp_path / "files")
    content = getattr(files, which)
    bad = {"run": b"caf\xe9 Q0 a 1 2 t\n", "queries": b'{"_id":"x","text":"caf\xe9"}\n'}
    setattr(files, which, b"\n" + content + bad.get(which, bad["queries"]))
    name = {"run": "run.trec"}.get(which, f"{which}.jsonl")
    line = content.count(b"\n") + 2
    assert refused(server, tmp_path, files).startswith(f"{name}, line {line}: is not UTF-8")
    setattr(files, which, content.decode().encode("utf-16"))
    assert refused(server, tmp_path, files).startswith(f"{name}, line 1: is not UTF-8 but UTF-16")


def test_qrels_that_are_not_utf_8_are_named_by_line_or_row(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(QRELS + b"\nq 0 caf\xe9 1\n")
    with pytest.raises(InputBad, match="qrels, line 5: is not UTF-8"):
        read_qrels(path)
    path.write_bytes(QRELS.decode().encode("utf-16"))
    with pytest.raises(InputBad, match="qrels, line 1: is not UTF-8 but UTF-16"):
        read_qrels(path)
    ids = spoilt(["a", "b", "c"], 1, pa.string())
    columns = {"query_id": ["q", "q", "q"], "doc_id": ids, "relevance": [1, 0, 1]}
    with pytest.raises(InputBad, match="qrels, row 2: column 'doc_id' is not UTF-8"):
        read_qrels(written(path, pa.table(columns)))


def spoilt(values: list[str], row: int, kind: pa.DataType) -> pa.Array:
    """These texts, one of them with a byte that is none."""
    content = [value.encode() for value in values]
    content[row] = b"caf\xe9"
    binary = pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
    return pa.Array.from_buffers(kind, len(values), pa.array(content, binary).buffers())


@pytest.mark.parametrize("which", ["run", "queries", "corpus"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_parquet_that_is_not_utf_8_is_named_by_its_row(
    server: Server, tmp_path: Path, which: str, kind: pa.DataType
) -> None:
    many = 3_000
    numbers = [str(number) for number in range(many)]
    columns = {
        "run": {"query_id": ["q"] * many, "doc_id": numbers},
        "queries": {"_id": ["q", *numbers], "text": ["query"] * (many + 1)},
        "corpus": {"_id": numbers, "text": numbers},
    }
    name = {"run": "doc_id"}.get(which, "text")
    spoilt_column = spoilt(columns[which][name], 2_500, kind)
    tables = {one: pa.table(each) for one, each in columns.items()}
    at = tables[which].schema.get_field_index(name)
    tables[which] = tables[which].set_column(at, name, spoilt_column)
    paths = {one: tmp_path / f"{one}.parquet" for one in tables}
    for one, each in tables.items():
        pq.write_table(each, paths[one], row_group_size=1_000)
    options = ["--queries", paths["queries"], "--corpus", paths["corpus"]]
    done = inside(*fast(server, tmp_path / "out", paths["run"], *options))
    assert (done.returncode, done.stderr) == (
        65,
        f"batchrank: {which}.parquet: cannot be read: row 2,501, column '{name}' is not UTF-8.\n",
    )


def listed(texts: pa.Array, ids: pa.Array) -> pa.Array:
    """A candidate for each of so many rows."""
    structs = pa.StructArray.from_arrays([ids, texts], ["doc_id", "text"])
    return pa.ListArray.from_arrays(pa.array(range(len(ids) + 1), pa.int32()), structs)


@pytest.mark.parametrize("which", ["query_id", "query", "text", "doc_id", "extra", "tags", "plain"])
def test_rows_that_are_not_utf_8_are_named(server: Server, tmp_path: Path, which: str) -> None:
    """In whichever column: a part with such bytes could not be read by anybody."""
    texts = [str(number) for number in range(2_000)]
    columns: dict[str, pa.Array] = dict.fromkeys(
        ("query_id", "query", "text", "doc_id", "extra", "tags"), pa.array(texts)
    )
    columns[which] = spoilt(texts, 1_500, pa.string())
    one_each = pa.array(range(2_001), pa.int32())
    candidates = listed(columns["text"], columns["doc_id"])
    if which == "plain":
        candidates = pa.ListArray.from_arrays(one_each, columns["plain"])
    kept = {"extra": columns["extra"], "tags": pa.ListArray.from_arrays(one_each, columns["tags"])}
    rows = {"query_id": columns["query_id"], "query": columns["query"], "candidates": candidates}
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(rows | kept), path, row_group_size=700)
    keep = ["--keep", "extra", "--keep", "tags"]
    done = inside(*fast(server, tmp_path / "out", path), *keep)
    column = "candidates" if which in ("text", "doc_id", "plain") else which
    said = f"{path}: cannot be read: row 1,501, column '{column}' is not UTF-8."
    assert (done.returncode, done.stderr) == (65, f"batchrank: {said}\n")


def test_a_separator_or_a_zero_within_a_json_text_is_part_of_it(
    server: Server, tmp_path: Path
) -> None:
    files = Files(tmp_path / "files")
    odd = "one\u2028two\u0085three\x1cfour"
    files.corpus = (json.dumps({"_id": "a", "text": odd}, ensure_ascii=False) + "\n").encode()
    files.corpus += b'{"_id":"b","text":"zero \\u0000 in it","score":NaN}\n'
    assert inside(*fast(server, tmp_path / "out", *files.arguments())).returncode == 0
    files.corpus += b'{"_id":"c","text":"raw \0 zero"}\n'
    assert refused(server, tmp_path, files).startswith("corpus.jsonl, line 3: expected an object")


@pytest.mark.parametrize("rank", [b"9223372036854775808", b"1" * 5000, b"one"])
def test_a_rank_that_is_no_number_of_64_bits_is_refused(
    server: Server, tmp_path: Path, rank: bytes
) -> None:
    files = Files(tmp_path / "files")
    files.run += b"q2 Q0 unused " + rank + b" 1.0 t\n"
    assert refused(server, tmp_path, files).startswith("run.trec, line 7: expected the six columns")


def test_a_packed_file_that_ends_too_early_is_refused(server: Server, tmp_path: Path) -> None:
    files = Files(tmp_path / "files")
    files.corpus = gzip.compress(files.corpus)[:-20]
    assert "corpus.jsonl: cannot be read: " in refused(server, tmp_path, files)
    (tmp_path / "qrels").write_bytes(gzip.compress(QRELS)[:-12])
    with pytest.raises(InputBad, match="qrels: cannot be read as qrels"):
        read_qrels(tmp_path / "qrels")


def test_a_grade_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("q 0 d 1000000000\n")
    with pytest.raises(InputBad, match="relevance 1,000,000,000; expected at most 1,000,000"):
        read_qrels(path)
    path.write_text(f"q 0 d {10**40}\n")
    with pytest.raises(InputBad, match=r"line 1: relevance '10+' is no whole number"):
        read_qrels(path)

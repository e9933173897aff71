"""Judgments: Parquet with query_id, doc_id, relevance, or lines: TREC's four columns, or the three
of BEIR's tab-separated files.

Ids are compared as text, as trec_eval does, which also counts grades below 0 as 0 (the Web tracks
have -2 for spam). A pair that is judged twice is refused: neither grade is more right. The file is
opened once, so that it may be a pipe, and may be packed.
"""

import re
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchrank.errors import InputBad, InputMissing
from batchrank.files.text_form import as_text, is_known_to_polars
from batchrank.input.text_lines import read_lines, split_columns, unpacked
from batchrank.input.utf8 import find_invalid_row, is_utf8

Qrels = dict[str, dict[str, int]]
"""Each query's judged documents with their grades."""

_COLUMNS = ["query_id", "doc_id", "relevance"]
_BEIR = ["query-id", "corpus-id", "score"]
_EXPECTED = (
    "expected Parquet with query_id, doc_id, relevance, or lines of TREC: "
    "query_id, iteration, doc_id, relevance"
)
_HEADERS = {
    0: {"query_id", "qid", "query", "topic", "topic_id"},
    -2: {"corpus_id", "doc_id", "docid", "docno", "pid", "passage_id", "document_id"},
    -1: {"score", "relevance", "rel", "label", "grade"},
}
"""Names of a first line that is no judgment, by column."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_MOST = 1_000_000
"""trec_eval has a counter for every grade up to the highest, and would take all memory."""


def read_qrels(path: Path) -> Qrels:
    """The judgments in a file. Raises `InputMissing`, or `InputBad` with what is wrong where."""
    try:
        content = path.read_bytes()
        table = _parquet(path, content) if content.startswith(b"PAR1") else _lines(path, content)
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: no such file.") from error
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise InputBad(f"{path}: cannot be read as qrels; {_EXPECTED}.") from error
    twice = table.filter(table.select("query_id", "doc_id").is_duplicated())
    if len(twice):
        query, document, _ = twice.row(0)
        raise InputBad(
            f"{path}: document {document!r} of query {query!r} is judged more than once, as are "
            f"{twice.n_unique(['query_id', 'doc_id']) - 1:,} other pairs."
        )
    qrels: Qrels = {}
    for query, document, relevance in table.iter_rows():
        if relevance > _MOST:
            raise InputBad(
                f"{path}: document {document!r} of query {query!r} has relevance {relevance:,}; "
                f"expected at most {_MOST:,}."
            )
        qrels.setdefault(query, {})[document] = max(relevance, 0)
    return qrels


def _parquet(path: Path, content: bytes) -> pl.DataFrame:
    table = pq.read_table(pa.BufferReader(content))
    names = _BEIR if set(_BEIR) <= set(table.column_names) else _COLUMNS
    missing = [name for name in names if table.column_names.count(name) != 1]
    if missing:
        raise InputBad(
            f"{path}: cannot be read as qrels; it has columns {', '.join(table.column_names)}, not "
            f"{', '.join(missing)}; {_EXPECTED}."
        )
    columns = [table[name].combine_chunks() for name in names]
    for name, column in zip(names, columns, strict=True):
        row = find_invalid_row(column)
        if row is not None:
            raise InputBad(f"{path}, row {row + 1:,}: column {name!r} is not UTF-8.")
    if not is_known_to_polars(columns[2].type):
        raise InputBad(f"{path}: {names[2]} is {columns[2].type}; {_EXPECTED}.")
    grades = pl.Series(columns[2])
    whole = grades.cast(pl.Int64)
    if any(column.null_count for column in columns) or (whole != grades).any():
        raise InputBad(f"{path}: has nulls, or grades that are no whole numbers.")
    ids = [pl.Series(as_text(column)) for column in columns[:2]]
    return pl.DataFrame(dict(zip(_COLUMNS, [*ids, whole], strict=True)))


def _lines(path: Path, content: bytes) -> pl.DataFrame:
    judgments: list[tuple[str, str, int]] = []
    with unpacked(pa.BufferReader(content)) as stream:
        for first, lines in read_lines(stream, str(path)):
            for number, line in enumerate(lines, first):
                if b"\0" in line and not is_utf8(line):
                    raise InputBad(f"{path}: cannot be read as qrels; {_EXPECTED}.")  # no text file
                judgment = _judgment(line, f"{path}, line {number}", header=not judgments)
                if judgment is not None:
                    judgments.append(judgment)
    kinds = {"query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int64}
    return pl.DataFrame(judgments, schema=kinds, orient="row")


def _judgment(line: bytes, where: str, *, header: bool) -> tuple[str, str, int] | None:
    """A line's judgment; None for a blank one and, before the first judgment, names of columns."""
    if not line:
        return None
    if not is_utf8(line):
        raise InputBad(f"{where}: is not UTF-8; {_EXPECTED}.")
    columns = _columns(line)
    if columns is None:
        columns = line.decode().split("\t" if line.count(b"\t") > 1 else None)
        raise InputBad(f"{where}: has {len(columns)} columns; {_EXPECTED}.")
    query, document, relevance = columns[0], columns[-2], columns[-1]
    if header and all(
        columns[at].lower().replace("-", "_") in names for at, names in _HEADERS.items()
    ):
        return None
    if not _WHOLE.fullmatch(relevance):
        raise InputBad(f"{where}: relevance {relevance!r} is no whole number.")
    return query, document, int(relevance.partition(".")[0])


def _columns(line: bytes) -> list[str] | None:
    """TREC's four columns; or three, where tabs separate them or it is a line of names."""
    counts = (3, 4) if line.count(b"\t") == 2 else (4,)
    columns = split_columns(line, *counts)
    return None if columns is None else [column.decode() for column in columns]

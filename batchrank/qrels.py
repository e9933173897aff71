"""Judgments: Parquet with query_id, doc_id, relevance, or TREC's lines of four columns.

Ids are compared as text, as trec_eval does, which also counts grades below 0 as 0 (the Web tracks
have -2 for spam). A pair that is judged twice is refused: neither grade is more right.
"""

from pathlib import Path

import polars as pl

from batchrank.errors import InputBad, InputMissing

Qrels = dict[str, dict[str, int]]
"""Each query's judged documents with their grades."""

_COLUMNS = ["query_id", "doc_id", "relevance"]
_EXPECTED = (
    "expected Parquet with query_id, doc_id, relevance, or lines of TREC: "
    "query_id, iteration, doc_id, relevance"
)


def read_qrels(path: Path) -> Qrels:
    """The judgments in a file. Raises `InputMissing`, or `InputBad` with what is wrong where."""
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        table = _parquet(path) if is_parquet else _trec(path)
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: no such file.") from error
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
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
        qrels.setdefault(query, {})[document] = max(relevance, 0)
    return qrels


def _parquet(path: Path) -> pl.DataFrame:
    table = pl.read_parquet(path)
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise InputBad(
            f"{path}: cannot be read as qrels; it has columns {', '.join(table.columns)}, not "
            f"{', '.join(missing)}; {_EXPECTED}."
        )
    grades = table["relevance"]
    whole = grades.cast(pl.Int64)
    if table.select(_COLUMNS).null_count().sum_horizontal().item() or (whole != grades).any():
        raise InputBad(f"{path}: has nulls, or grades that are no whole numbers.")
    ids = [pl.col(name).cast(pl.String) for name in ("query_id", "doc_id")]
    return table.select(*ids, whole)


def _trec(path: Path) -> pl.DataFrame:
    lines = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 4:
            raise InputBad(f"{path}, line {number}: has {len(columns)} columns; {_EXPECTED}.")
        try:
            lines.append((columns[0], columns[2], int(columns[3])))
        except ValueError as error:
            raise InputBad(
                f"{path}, line {number}: relevance {columns[3]!r} is no whole number."
            ) from error
    kinds = {"query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int64}
    return pl.DataFrame(lines, schema=kinds, orient="row")

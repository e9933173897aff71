"""The input as every subject reads it, and a Parquet file of scores as most of them write it.

Rows come a bounded batch at a time, each row's texts made Python strings when it is taken. A
`Sheet` is such a batch and its scores; it is written once they are all there, 10,000 rows to a row
group. Nothing is checked and nothing is synced: this is what a throw-away script does, done well.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 64
GROUP_ROWS = 10_000
RESULT = pa.struct([("doc_id", pa.string()), ("relevance_score", pa.float64())])
SCHEMA = pa.schema([("query_id", pa.int64()), ("results", pa.list_(RESULT))])

Score = Callable[[str, list[str]], Awaitable[list[float]]]


class Sheet:
    """A batch of the input, and the scores of its rows in the order of their candidates."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        candidates = batch.column("candidates")
        self._ids = batch.column("query_id")
        self._doc_ids = candidates.flatten().field("doc_id")
        self._texts = candidates.flatten().field("text")
        first = candidates.offsets[0].as_py()
        self._offsets = [offset - first for offset in candidates.offsets.to_pylist()]
        self._queries = batch.column("query").to_pylist()
        self._scores: list[list[float]] = [[]] * len(batch)
        self._waiting = len(batch)

    def rows(self) -> Iterator[tuple["Sheet", int, str, list[str]]]:
        """Each row with its place here, its query and its texts."""
        for place, query in enumerate(self._queries):
            start, end = self._offsets[place : place + 2]
            yield self, place, query, self._texts.slice(start, end - start).to_pylist()

    def settle(self, place: int, scores: list[float]) -> bool:
        """Take a row's scores; whether all rows have theirs."""
        self._scores[place] = scores
        self._waiting -= 1
        return not self._waiting

    def results(self) -> pa.RecordBatch:
        """The batch to write."""
        scores = pa.array(chain.from_iterable(self._scores), pa.float64())
        structs = pa.StructArray.from_arrays([self._doc_ids, scores], fields=list(RESULT))
        results = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), structs)
        return pa.RecordBatch.from_arrays([self._ids, results], schema=SCHEMA)


class Scores:
    """The file that is written, and what went into it."""

    def __init__(self, path: str) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._held: list[pa.RecordBatch] = []
        self._rows_held = self.rows = self.scores = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Write a batch, some later together with others."""
        self._held.append(batch)
        self._rows_held += len(batch)
        if self._rows_held >= GROUP_ROWS:
            self._write()

    def close(self) -> None:
        """Write the rest, and say on standard output what there is."""
        self._write()
        self._writer.close()
        told(self.rows, self.scores)

    def _write(self) -> None:
        if self._held:
            table = pa.Table.from_batches(self._held)
            self._writer.write_table(table, row_group_size=len(table))
            self.rows += len(table)
            self.scores += len(table["results"].combine_chunks().flatten())
        self._held, self._rows_held = [], 0


def arguments() -> tuple[str, str, str, int, int]:
    """What every subject is given: IN OUT BASE_URL ROWS IN_FLIGHT."""
    path, out, base_url, rows, in_flight = sys.argv[1:]
    return path, out, base_url, int(rows), int(in_flight)


def told(rows: int, scores: int) -> None:
    """The line by which `scripts/bench` sees that nothing is missing."""
    print(json.dumps({"rows": rows, "scores": scores}))


def sheets(path: str, rows: int) -> Iterator[Sheet]:
    """The first `rows` rows of the input."""
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
            if rows <= 0:
                return
            yield Sheet(batch.slice(0, rows))
            rows -= len(batch)


async def score_all(path: str, out: str, rows: int, in_flight: int, score: Score) -> None:
    """Every row through `score`, so many at a time."""
    import asyncio

    upcoming = chain.from_iterable(sheet.rows() for sheet in sheets(path, rows))
    scores = Scores(out)

    async def worker() -> None:
        for sheet, place, query, texts in upcoming:
            if sheet.settle(place, await score(query, texts)):
                scores.add(sheet.results())

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    scores.close()


def in_order(results: list[dict[str, Any]]) -> list[float]:
    """The scores of an answer in the order of the documents."""
    scores = [0.0] * len(results)
    for result in results:
        scores[result["index"]] = result["relevance_score"]
    return scores

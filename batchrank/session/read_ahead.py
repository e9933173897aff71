"""Rows read and planned in a thread, one chunk ahead of whoever takes them.

The thread works while the event loop sends; it never gets further ahead than that one chunk. Where
rows that share a query are united, a chunk comes with the plans of those rows, of this chunk or
before, that wait for no other any more; with a part's last chunk come all that are left of it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from batchrank.input.parquet_rows import Chunk, Flags, Source
from batchrank.planning.planner import Planner
from batchrank.planning.shared_requests import Again, Waiting
from batchrank.records import PlannedRow, Row

Known = Callable[[Row], Row]
"""A row with the names of its pairs, and what is known of them."""


class Feed:
    """The rows of `ranges` (first, stop) in order, cut at the borders of parts, with their plans.

    `waited_seconds`: how long whoever takes them has waited. Rows that share a query are planned
    together if there is an `again` (empty where nothing is asked again). Raises as reading does.
    """

    def __init__(
        self,
        source: Source,
        planner: Planner,
        ranges: Sequence[tuple[int, int]],
        rows_per_part: int,
        known: Known,
        again: Again | None = None,
    ) -> None:
        self._source = source
        self._planner = planner
        self._ranges = ranges
        self._rows_per_part = rows_per_part
        self._known = known
        self._again = again
        self.waited_seconds = 0.0
        self.is_waited_for = False

    async def chunks(
        self, only: Flags | None = None
    ) -> AsyncGenerator[tuple[Chunk, list[PlannedRow]], None]:
        """The chunks, in order; with their rows that have a flag in `only`."""
        chunks = self.planned(only)
        with ThreadPoolExecutor(1, "planning") as thread:
            upcoming = thread.submit(next, chunks, None)
            while True:
                began = time.monotonic()
                self.is_waited_for = True
                item = await asyncio.wrap_future(upcoming)
                self.is_waited_for = False
                self.waited_seconds += time.monotonic() - began
                if item is None:
                    return
                upcoming = thread.submit(next, chunks, None)
                yield item

    def planned(self, only: Flags | None) -> Iterator[tuple[Chunk, list[PlannedRow]]]:
        """Yield the chunks in order, in this thread; with their rows that have a flag in `only`."""
        for first, stop in self._ranges:
            if self._again is None:
                for chunk in self._source.chunks(first, stop, self._rows_per_part, only):
                    yield chunk, [self._planner.plan(self._known(row)) for row in chunk.rows]
                continue
            assert only is None, "rows that are sent together have no bands"
            for chunk, groups in gathered(
                self._source, first, stop, self._rows_per_part, self._known, self._again
            ):
                planned = [
                    row
                    for rows in groups
                    for row in self._planner.plan_together(rows, self._again.piece(rows[0].index))
                ]
                yield chunk, planned


def gathered(
    source: Source,
    first: int,
    stop: int,
    rows_per_part: int,
    known: Known,
    again: Again,
) -> Iterator[tuple[Chunk, list[list[Row]]]]:
    """The chunks of some rows, each with the groups of rows of one query that it makes ready."""
    queries = (
        query if again.is_open(row) else None
        for row, query in enumerate(source.queries(first, stop), first)
    )
    border = first
    for chunk in source.chunks(first, stop, rows_per_part):
        if chunk.first == border:
            border = min((border // rows_per_part + 1) * rows_per_part, stop)
            waiting = Waiting(chunk.first, islice(queries, border - chunk.first))
        rows = map(again.row, map(known, chunk.rows))
        yield chunk, [group for row in rows for group in waiting.take(row)]

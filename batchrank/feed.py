"""Rows read and planned in a thread, one chunk ahead of whoever takes them.

The thread works while the event loop sends; it never gets further ahead than that one chunk.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from batchrank.planning import Planner
from batchrank.records import PlannedRow, Row
from batchrank.source import Chunk, Flags, Source


class Feed:
    """The rows of `ranges` (first, stop) in order, cut at the borders of parts, with their plans.

    `known` is asked for each row with what is known of it. `waited_seconds`: how long whoever takes
    them has waited. Raises as reading does.
    """

    def __init__(
        self,
        source: Source,
        planner: Planner,
        ranges: Sequence[tuple[int, int]],
        rows_per_part: int,
        known: Callable[[Row], Row] | None = None,
    ) -> None:
        self._source = source
        self._planner = planner
        self._ranges = ranges
        self._rows_per_part = rows_per_part
        self._known = known
        self.waited_seconds = 0.0

    async def chunks(
        self, only: Flags | None = None
    ) -> AsyncGenerator[tuple[Chunk, list[PlannedRow]], None]:
        """The chunks, in order; with their rows that have a flag in `only`."""
        chunks = self._planned(only)
        with ThreadPoolExecutor(1, "planning") as thread:
            upcoming = thread.submit(next, chunks, None)
            while True:
                began = time.monotonic()
                item = await asyncio.wrap_future(upcoming)
                self.waited_seconds += time.monotonic() - began
                if item is None:
                    return
                upcoming = thread.submit(next, chunks, None)
                yield item

    def _planned(self, only: Flags | None) -> Iterator[tuple[Chunk, list[PlannedRow]]]:
        for first, stop in self._ranges:
            for chunk in self._source.chunks(first, stop, self._rows_per_part, only):
                rows = chunk.rows if self._known is None else map(self._known, chunk.rows)
                yield chunk, [self._planner.plan(row) for row in rows]

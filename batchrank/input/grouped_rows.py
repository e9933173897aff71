"""Grouped lines as a `Source`: each group made a nested row, which is then read as any other.

So a row's texts, ids and kept columns come out of the same few lines of `source`, and parts have
the same bytes in whatever shape the same data was given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import pyarrow as pa
from msgspec.structs import replace
from numpy.typing import NDArray

from batchrank.errors import InputBad, StorageFailed
from batchrank.files.no_memory import lack_of_memory
from batchrank.files.paths import plain
from batchrank.files.text_form import plain_array
from batchrank.input.grouping import Gathered, Groups, pieces
from batchrank.input.input_file import InputFile
from batchrank.input.parquet_rows import (
    BATCH_ROWS,
    Chunk,
    FileIdentity,
    Flags,
    Source,
    as_numbers,
)
from batchrank.input.schema import Columns
from batchrank.input.spill import give_back

_CHUNK_BYTES = 4 << 20


class Grouped(Source):
    """Rows made of groups of lines. `gather` looks at all of the input, when first asked for."""

    rows_follow_files = False

    def __init__(
        self,
        paths: Sequence[InputFile],
        files: Sequence[FileIdentity],
        columns: Columns,
        has_id: bool,
        gather: Callable[[], tuple[Groups, int]],
        nest: Callable[[Gathered], pa.RecordBatch],
        asked: Callable[[Gathered], pa.Array],
        no_rows: Callable[[], pa.RecordBatch],
    ) -> None:
        super().__init__(paths, files, replace(columns, doc_id="doc_id", text="text"), has_id)
        self._gather = gather
        self._nest = nest
        self._asked = asked
        self._no_rows = no_rows
        self._row_bytes = _CHUNK_BYTES // 4

    @cached_property
    def _groups(self) -> tuple[Groups, int]:
        with self._told_of():
            groups = self._gather()
        give_back()
        return groups

    @property
    def total_rows(self) -> int:
        """How many queries there are."""
        return self._groups[1]

    def chunks(
        self, first: int, stop: int, rows_per_part: int, only: Flags | None = None
    ) -> Iterator[Chunk]:
        """Rows `first` up to `stop`, in order; no chunk reaches over a part's border. With flags in
        `only`, chunks have but the rows with one.
        """
        if first >= stop:
            return
        groups, _ = self._groups
        with self._told_of():
            for gathered in groups.read(first, stop):
                for piece in pieces(gathered, first, stop, rows_per_part, self._most_rows):
                    end = piece.first + len(piece.offsets) - 1
                    if only is not None and not only[piece.first : end].any():
                        yield Chunk(piece.first, [], self.empty())  # whoever waits may give up
                        continue
                    nested = self._nest(piece)
                    self._row_bytes = max(1, nested.nbytes // nested.num_rows)
                    yield self._chunk(piece.first, nested, only)

    def priorities(self) -> Iterator[NDArray[np.float64]]:
        """The priorities of the queries' first lines."""
        groups, rows = self._groups
        with self._told_of():
            for gathered in groups.read(0, rows) if rows else ():
                column = gathered.lines.column(self._columns.priority)
                yield as_numbers(column.take(pa.array(gathered.offsets[:-1])))

    def queries(self, first: int, stop: int) -> Iterator[str | None]:
        """The queries of rows `first` up to `stop`, without their candidates' texts being made."""
        if first >= stop:
            return
        groups, _ = self._groups
        with self._told_of():
            for gathered in groups.read(first, stop):
                for piece in pieces(gathered, first, stop, stop, lambda: BATCH_ROWS):
                    yield from plain_array(self._asked(piece)).to_pylist()

    @contextmanager
    def _told_of(self) -> Iterator[None]:
        """What is no text in a text column shows only when it is used, and what has been read of a
        file that changed in any way.
        """
        try:
            yield
        except StorageFailed:
            raise
        except (pa.ArrowException, UnicodeDecodeError) as error:
            self.check()
            bad = InputBad(f"{self.files[0].name}: cannot be read: {plain(error)}")
            raise lack_of_memory(error) or bad from error
        except Exception:
            self.check()
            raise

    def _most_rows(self) -> int:
        """As many as make a few megabytes; the rows before say how large rows are."""
        return max(1, min(BATCH_ROWS, _CHUNK_BYTES // self._row_bytes))

    def empty(self) -> pa.RecordBatch:
        """What the sink needs to write a part without rows."""
        return self._chunk(0, self._no_rows()).kept


def listed(gathered: Gathered, doc_ids: pa.Array | None, texts: pa.Array) -> pa.ListArray:
    """The candidate lists of some groups."""
    fields = {"doc_id": doc_ids, "text": texts}
    given = {name: column for name, column in fields.items() if column is not None}
    structs = pa.StructArray.from_arrays(list(given.values()), list(given))
    return pa.ListArray.from_arrays(pa.array(gathered.offsets, pa.int32()), structs)


def first_lines(gathered: Gathered, names: Sequence[str], schema: pa.Schema) -> dict[str, pa.Array]:
    """Columns of each group's first line, of the types that they have in the input."""
    firsts = pa.array(gathered.offsets[:-1])
    columns = {name: gathered.lines.column(name).take(firsts) for name in dict.fromkeys(names)}
    return {
        name: column
        if column.type == schema.field(name).type
        else column.cast(schema.field(name).type)
        for name, column in columns.items()
    }

"""Parquet into rows, a bounded batch at a time; schema and footers are checked at the door.

`iter_batches` of a `ParquetFile` without pre-buffering reads page by page, so memory follows the
batch and not the row group (190-230 MB of process for any row-group size, and the fastest reader
measured: 700 MB of text per CPU second). The batch follows the rows: the first few of a row group
are read to see how large they are. Texts become Python strings row by row, which is 2.4 times as
fast as a batch at once (cache). This file does not know what a request is.
"""

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import types

from batchrank.errors import InputBad
from batchrank.files.paths import Place, Remote, plain
from batchrank.files.text_form import plain_array
from batchrank.input.arguments import found
from batchrank.input.candidates import Candidates
from batchrank.input.input_columns import InputColumns
from batchrank.input.input_file import InputFile, looking_at, unreadable
from batchrank.input.row_check import MOST_ROW_BYTES, RowChecker
from batchrank.input.schema import Columns, check
from batchrank.input.utf8 import checking_texts
from batchrank.records import Row

BATCH_ROWS = 256
_BATCH_BYTES = 2 << 20
_PROBE_ROWS = 4
_BATCH_MOST_BYTES = 128 << 20
_PACKED = 10
"""Text shrinks to a third or a fifth; what shrinks to so small a part repeats itself, and may take
far more than its footer says. See `row_check`."""
ROW_COLUMN = "row"
STATE = "_batchrank"
MARKER = "_batchrank.json"
"""In an output whose state is elsewhere, what says whose output it is."""
DOC_IDS = "doc_ids"
_PRIORITY_ROWS = 1 << 16
Flags = NDArray[np.bool_]


class FileIdentity(msgspec.Struct, frozen=True):
    """What tells one input file from another that took its name: a changed file changes its
    footer, which holds every page's place and size. Of a text file, its lines and all of it.
    `modified` (a time or an ETag) differs where a file may have been written again with the same
    footer; of a text file there is none.
    """

    name: str
    size: int
    rows: int
    footer_sha256: str
    modified: str = ""


class Chunk(msgspec.Struct, frozen=True):
    """Some consecutive rows of one part: `rows` for planning, and for the sink an Arrow batch of
    the id column (or `row`), the kept columns and `doc_ids` (list<string>, one per candidate).
    """

    first: int
    rows: list[Row]
    kept: pa.RecordBatch


class Source:
    """All input files as one sequence of rows. Made by `open_source`."""

    rows_follow_files = True
    """Whether the rows are those of the first file, then those of the second, and so on."""

    def __init__(
        self,
        paths: Sequence[InputFile],
        files: Sequence[FileIdentity],
        columns: Columns,
        has_id: bool,
        parts: InputColumns | None = None,
    ) -> None:
        self._parts = parts or InputColumns((), ())
        self.paths = paths
        self.files = files
        self._columns = columns
        self._has_id = has_id
        self._checker = RowChecker()
        self._measured: dict[tuple[object, ...], tuple[int, int]] = {}

    @property
    def total_rows(self) -> int:
        """How many rows there are."""
        return sum(file.rows for file in self.files)

    def chunks(
        self, first: int, stop: int, rows_per_part: int, only: Flags | None = None
    ) -> Iterator[Chunk]:
        """Rows `first` up to `stop`, in order; no chunk reaches over a part's border. Row groups
        outside are not read. Raises `InputBad` where a page cannot be decoded.

        With a flag for each row of the input in `only`, chunks have but the rows with it, or none,
        and row groups without any are not read.
        """
        start = 0
        for path, file in zip(self.paths, self.files, strict=True):
            if start + file.rows > first and start < stop:
                with path.explaining():
                    for at, piece in self._pieces(
                        path, file.size, start, first, stop, rows_per_part, self._names, only
                    ):
                        with checking_texts(str(path), piece, self._kept_names, at - start):
                            chunk = self._chunk(at, piece, only)
                        yield chunk
            start += file.rows

    def queries(self, first: int, stop: int) -> Iterator[str | None]:
        """The queries of rows `first` up to `stop`, without their candidates. Raises `InputBad`."""
        start, name = 0, self._columns.query
        for path, file in zip(self.paths, self.files, strict=True):
            if start + file.rows > first and start < stop:
                with path.explaining():
                    for _, piece in self._pieces(path, file.size, start, first, stop, stop, [name]):
                        yield from plain_array(piece.column(name)).to_pylist()
            start += file.rows

    def priorities(self) -> Iterator[NDArray[np.float64]]:
        """The column of priorities as numbers, some rows at a time; NaN where there is none."""
        for path in self.paths:
            names = self._columns.ordering
            stored = self._parts.stored(path, names)
            with path.read() as file, open_parquet(file) as parquet:
                for batch in parquet.iter_batches(
                    _PRIORITY_ROWS, columns=stored, use_threads=False
                ):
                    yield as_numbers(self._parts.alike(path, batch, names).column(0))

    def check(self, *, everything: bool = False) -> None:
        """Compare the files with what they were when they were first opened: those that rows were
        read from since they were last compared, or `everything`. Raises `InputBad`.
        """
        for path in self.paths:
            if everything:
                path.check()
            else:
                path.check_if_read()

    def empty(self) -> pa.RecordBatch:
        """What the sink needs to write a part without rows."""
        with self.paths[0].read() as file:
            schema = pq.read_schema(file)
        columns = [pa.array([], field.type) for field in schema]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        return self._chunk(0, self._parts.alike(self.paths[0], batch, self._names)).kept

    @property
    def _names(self) -> list[str]:
        return [self._columns.query, self._columns.candidates, *self._kept_names]

    @property
    def _kept_names(self) -> list[str]:
        """The columns that nobody reads before they are written."""
        return [*self._columns.keep, *([self._columns.id] if self._has_id else [])]

    def _pieces(
        self,
        path: InputFile,
        size: int,
        start: int,
        first: int,
        stop: int,
        rows_per_part: int,
        names: Sequence[str],
        only: Flags | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """These columns of a file whose first row is row `start` of all."""
        stored = self._parts.stored(path, names)
        with path.read() as file, open_parquet(file) as parquet:
            groups = range(parquet.num_row_groups)
            encoded = sum(parquet.metadata.row_group(group).total_byte_size for group in groups)
            packed = encoded > _PACKED * size
            for group in groups:
                end = start + parquet.metadata.row_group(group).num_rows
                if end > first and start < stop and (only is None or only[start:end].any()):
                    rows = min(end, stop) - start
                    most = self._most_row_bytes(path, group, stored, rows) if packed else 0
                    for batch in _batches(parquet, group, stored, most):
                        _check_size(path, group, batch.nbytes, batch.num_rows)
                        batch = self._parts.alike(path, batch, names)
                        yield from _cut(batch, start, first, stop, rows_per_part)
                        start += batch.num_rows
                        if start >= stop:
                            return  # the rest of a row group can be a second's work
                    if start != end:
                        raise InputBad(f"{path}: row group {group} lacks rows that it claims.")
                start = end

    def _most_row_bytes(self, path: InputFile, group: int, names: list[str], rows: int) -> int:
        """Measure a packed row group's first rows. Raises `InputBad` where one is too large."""
        group_columns = (str(path), group, *names)
        measured, most = self._measured.get(group_columns, (0, 0))
        if measured < rows:
            most = self._checker.most_row_bytes(path.place, group, names, rows)
            path.check()
            if most > MOST_ROW_BYTES:
                raise InputBad(
                    f"{path}: a row of row group {group} takes more than {MOST_ROW_BYTES >> 20} MB "
                    "once it is decoded. Shorten its texts, of which only a part would be read."
                )
            self._measured[group_columns] = rows, most
        return most

    def _chunk(self, first: int, batch: pa.RecordBatch, only: Flags | None = None) -> Chunk:
        candidates = Candidates(batch.column(self._columns.candidates), self._columns)
        queries = plain_array(batch.column(self._columns.query)).to_pylist()
        rows = [
            Row(first + offset, query, candidates.texts(offset))
            for offset, query in enumerate(queries)
            if only is None or only[first + offset]
        ]
        if self._has_id:
            names, ids = [self._columns.id], [batch.column(self._columns.id)]
        else:
            names, ids = [ROW_COLUMN], [pa.array(range(first, first + len(queries)), pa.int64())]
        kept = [batch.column(name) for name in self._columns.keep]
        return Chunk(
            first,
            rows,
            pa.RecordBatch.from_arrays(
                [*ids, *kept, candidates.doc_ids()], [*names, *self._columns.keep, DOC_IDS]
            ),
        )


def open_source(inputs: Sequence[str], columns: Columns) -> Source:
    """Find the files, check every footer and the columns' types.

    Raises `InputMissing` for a path or pattern without a file, `InputBad` for anything that is not
    Parquet or whose columns do not fit.
    """
    paths = input_files(inputs)
    footers = [footer(path) for path in paths]
    parts = InputColumns(paths, [schema for _, schema in footers])
    for path, own in zip(paths, parts.schemas, strict=True):
        check(path.place, own, columns)
    schema = parts.unite(paths, [columns.id, *columns.keep, *columns.ordering])
    files = [identity for identity, _ in footers]
    has_id = columns.id in schema.names
    if not has_id and ROW_COLUMN in columns.keep:
        raise InputBad(
            f'there is no column "{columns.id}", so the output counts rows in a column "row": '
            'a kept column "row" would be a second one.'
        )
    return Source(paths, files, columns, has_id, parts)


def input_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files that the arguments mean, each once."""
    paths: list[Place] = []
    for argument in inputs:
        with looking_at(argument):
            paths += found(argument, [".parquet"], (STATE, MARKER))
    seen = set()
    for path in paths:
        with looking_at(path):
            identity = _identity(path)
        if identity in seen:
            raise InputBad(f"{path}: given twice; its rows would be scored and paid for twice.")
        seen.add(identity)
    return [InputFile(path) for path in paths]


def _identity(path: Place) -> object:
    """What a file is under any of its names."""
    if isinstance(path, Remote):
        return str(path)
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def footer(path: InputFile) -> tuple[FileIdentity, pa.Schema]:
    """A Parquet file's identity and columns. Raises `InputBad` where it is none."""
    with path.read() as file:
        size = file.size()
        file.seek(max(0, size - 8))
        file.seek(max(0, size - 8 - int.from_bytes(file.read(4), "little")))
        digest = hashlib.sha256(file.read()).hexdigest()
        try:
            with pq.ParquetFile(file) as parquet:
                metadata = parquet.metadata
                groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
                if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
                    raise InputBad(f"{path}: its footer contradicts itself.")
                for group, rows in enumerate(groups):
                    _check_size(path, group, metadata.row_group(group).total_byte_size, rows)
                identity = FileIdentity(path.name, size, metadata.num_rows, digest, path.modified)
                return identity, parquet.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            path.check()
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
                raise unreadable(path.place, error) from error
            raise InputBad(f"{path}: not a readable Parquet file: {plain(error)}") from error


def open_parquet(file: pa.NativeFile) -> pq.ParquetFile:
    """Read an open file as Parquet, page by page."""
    return pq.ParquetFile(
        file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )


def _batches(
    parquet: pq.ParquetFile, group: int, names: list[str], most_row_bytes: int
) -> Iterator[pa.RecordBatch]:
    """A row group's batches, as many rows at a time as make a few megabytes. `most_row_bytes`: the
    size of the largest row, 0 where that is not known.
    """

    def read(rows: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
            rows, row_groups=[group], columns=names, use_threads=False
        )
        return batches

    probe = next(read(_PROBE_ROWS), None)
    if probe is None or not probe.num_rows:
        return
    row_bytes = max(1, probe.nbytes // probe.num_rows)
    if row_bytes > MOST_ROW_BYTES:  # it will be refused: not read twice
        yield probe
        return
    del probe
    most = _BATCH_MOST_BYTES // max(1, most_row_bytes)
    yield from read(max(1, min(BATCH_ROWS, _BATCH_BYTES // row_bytes, most)))


def _check_size(path: InputFile, group: int, size: int, rows: int) -> None:
    if rows and size > rows * MOST_ROW_BYTES:
        raise InputBad(
            f"{path}: {rows} rows of row group {group} take {size >> 20:,} MB, and a row may take "
            f"{MOST_ROW_BYTES >> 20}. Shorten their texts, of which only a part would be read."
        )


def _cut(
    batch: pa.RecordBatch, start: int, first: int, stop: int, rows_per_part: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The pieces of a batch that begins at row `start`: those wanted, cut at part borders."""
    at, end = max(start, first), min(start + batch.num_rows, stop)
    while at < end:
        border = min(end, (at // rows_per_part + 1) * rows_per_part)
        yield at, batch.slice(at - start, border - at)
        at = border


def as_numbers(column: pa.Array) -> NDArray[np.float64]:
    """Priorities in their order: times count from 1970, and nulls are NaN."""
    if types.is_date32(column.type):
        column = column.cast(pa.int32())
    elif types.is_temporal(column.type):
        column = column.cast(pa.int64())
    numbers: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(
        zero_copy_only=False
    )
    return numbers

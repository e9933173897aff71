"""Files of lines, read in order and from any line: Parquet, or a TREC run of six columns.

A line is a pair (query, document) or names one. Which lines belong together is for `groups`.
"""

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from batchrank.errors import BatchrankError, InputBad
from batchrank.files.text_form import takeable
from batchrank.input.input_columns import InputColumns
from batchrank.input.input_file import InputFile
from batchrank.input.parquet_rows import FileIdentity, footer, open_parquet
from batchrank.input.schema import check_once
from batchrank.input.text_lines import (
    read_lines,
    split_columns,
    unpacked,
)
from batchrank.input.utf8 import check_texts, is_utf8

BATCH_LINES = 1 << 14
_BATCH_BYTES = 4 << 20
_PROBE_LINES = 16


class ParquetLines:
    """The lines of some Parquet files, one after the other."""

    def __init__(self, paths: Sequence[InputFile], columns: Sequence[str] = ()) -> None:
        footers = [footer(path) for path in paths]
        self.paths = paths
        self.files = [identity for identity, _ in footers]
        self._parts = InputColumns(paths, [schema for _, schema in footers])
        for path, schema in zip(paths, self._parts.schemas, strict=True):
            check_once(path.name, schema, columns)
        self.schema: pa.Schema = self._parts.unite(paths, columns)
        self.total = sum(file.rows for file in self.files)

    def where(self, line: int) -> str:
        """A line's file and its number there, for a message."""
        return line_name(self.files, line)

    def batches(self, names: Sequence[str], first: int = 0) -> Iterator[pa.RecordBatch]:
        """These columns of the lines from `first` on. Raises `InputBad`."""
        for path, file in zip(self.paths, self.files, strict=True):
            if first < file.rows:
                at = first
                for batch in _parquet_batches(path, self._parts.stored(path, names), first):
                    check_texts(path.name, batch, batch.schema.names, at)
                    yield _movable(self._parts.alike(path, batch, names))
                    at += batch.num_rows
            first = max(0, first - file.rows)


class TrecLines:
    """The lines of TREC runs: query, Q0, document, rank, score and maybe a tag, between tabs (then
    an id may hold spaces) or white space. Blank lines do not count.
    """

    def __init__(self, paths: Sequence[InputFile], query_id: str, doc_id: str) -> None:
        self.paths = paths
        self.files = [text_identity(path) for path in paths]
        self.total = sum(file.rows for file in self.files)
        self.schema = pa.schema(
            [
                (query_id, pa.string()),
                (doc_id, pa.string()),
                ("rank", pa.int64()),
                ("score", pa.float64()),
            ]
        )

    def where(self, line: int) -> str:
        """A line's file and its number there, for a message."""
        for path in self.paths:
            for number, lines in text_lines(path):
                for at, content in enumerate(lines, number):
                    line -= bool(content)
                    if line < 0:
                        return f"{path.name}, line {at:,}"
        return f"{self.files[-1].name}, at its end"

    def batches(self, names: Sequence[str], first: int = 0) -> Iterator[pa.RecordBatch]:
        """These columns of the lines from `first` on. Raises `InputBad`."""
        for path in self.paths:
            for number, lines in text_lines(path):
                full = [line for line in lines if line]
                if first >= len(full):
                    first -= len(full)
                    continue
                for at in range(first, len(full), BATCH_LINES):
                    batch = self._batch(full[at : at + BATCH_LINES])
                    if batch is None:
                        raise _no_run_line(path, number, lines)
                    yield batch.select(list(dict.fromkeys(names)))
                first = 0

    def _batch(self, lines: list[bytes]) -> pa.RecordBatch | None:
        """The lines as columns; None where one of them is no line of a run."""
        fields = [split_columns(line, 5, 6) for line in lines]
        try:
            columns = [
                [six[0].decode() for six in fields],  # type: ignore[index] # caught below
                [six[2].decode() for six in fields],  # type: ignore[index]
                [int(six[3]) for six in fields],  # type: ignore[index]
                [float(six[4]) for six in fields],  # type: ignore[index]
            ]
            return pa.record_batch(columns, schema=self.schema)
        except (TypeError, ValueError, OverflowError):
            return None


Lines = ParquetLines | TrecLines


def line_name(files: Sequence[FileIdentity], line: int) -> str:
    """The file that a line of all is in, and its number there."""
    for file in files:
        if line < file.rows:
            return f"{file.name}, line {line + 1:,}"
        line -= file.rows
    return f"{files[-1].name}, at its end"


def text_lines(path: InputFile) -> Iterator[tuple[int, list[bytes]]]:
    """A text file's lines, as `read_lines` gives them. Raises `InputBad`."""
    with path.read() as file, unpacked(file) as stream:
        yield from read_lines(stream, path.name)


def text_identity(path: InputFile) -> FileIdentity:
    """A text file's identity: it has no footer, so all of it is read."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with path.read() as packed:
        size = packed.size()
        with unpacked(packed) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                lines += block.count(b"\n")
                last = block[-1:]
    return FileIdentity(path.name, size, lines + (last != b"\n"), digest.hexdigest())


def is_parquet(path: InputFile) -> bool:
    """Whether a file begins as Parquet does. Why one cannot be opened is told by who reads it."""
    try:
        with path.read() as file:
            return bool(file.read(4) == b"PAR1")
    except BatchrankError:
        return True


def _no_run_line(path: InputFile, number: int, lines: Sequence[bytes]) -> InputBad:
    """The first of these lines that is no line of a run, and why."""
    for at, line in enumerate(lines, number):
        if line and not is_utf8(line):
            return InputBad(f"{path.name}, line {at:,}: is not UTF-8.")
        if line and not _is_run_line(line):
            number = at
            break
    return InputBad(
        f"{path.name}, line {number:,}: expected the six columns of a TREC run: query_id, Q0, "
        "doc_id, rank, score, tag. An id that holds spaces needs tabs between all columns."
    )


def _is_run_line(line: bytes) -> bool:
    fields = split_columns(line, 5, 6)
    try:
        return fields is not None and abs(int(fields[3])) < 1 << 63 and float(fields[4]) is not None
    except ValueError:
        return False


def _parquet_batches(path: InputFile, names: list[str], first: int) -> Iterator[pa.RecordBatch]:
    with path.read() as file, open_parquet(file) as parquet:
        start = 0
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            if end > first:
                for batch in _group_batches(parquet, group, names):
                    if start + batch.num_rows > first:
                        yield batch.slice(max(0, first - start))
                    start += batch.num_rows
                if start != end:
                    raise InputBad(f"{path}: row group {group} lacks lines that it claims.")
            start = end


def _movable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of which rows can be taken (see `grouped.first_lines`)."""
    return pa.RecordBatch.from_arrays(list(map(takeable, batch.columns)), batch.schema.names)


def _group_batches(
    parquet: pq.ParquetFile, group: int, names: list[str]
) -> Iterator[pa.RecordBatch]:
    """A row group's batches, as many lines at a time as make a few megabytes."""

    def read(lines: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
            lines, row_groups=[group], columns=names, use_threads=False
        )
        return batches

    probe = next(read(_PROBE_LINES), None)
    if probe is None or not probe.num_rows:
        return
    line_bytes = max(1, probe.nbytes // probe.num_rows)
    yield from read(max(1, min(BATCH_LINES, _BATCH_BYTES // line_bytes)))

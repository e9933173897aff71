"""The published parts of an output, read back a batch at a time.

A run may be at work meanwhile: what is published when reading begins is what is read. Nothing here
is larger than a batch, however large the output.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchrank.errors import OutputUnusable
from batchrank.places import opened as opened_file
from batchrank.receipt import FORMER_RECEIPT, RECEIPT, read_receipt
from batchrank.sink import RESULT, SUCCESS, read_counts

_BATCH_ROWS = 1000


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What is published of a run. `rows` are those of the parts; the id is the first column.
    `left_out` counts candidates that `top_n` left out, as far as the parts say so.
    """

    folder: Path
    parts: Sequence[Path]
    schema: pa.Schema
    rows: int
    finished: bool
    left_out: int = 0

    @property
    def identity(self) -> str:
        """The name of the column that identifies a row."""
        name: str = self.schema.names[0]
        return name

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in the order of the input. Raises `OutputUnusable` at a part that is broken."""
        for path in self.parts:
            try:
                with opened_file(path) as file, pq.ParquetFile(file) as parquet:
                    yield from parquet.iter_batches(_BATCH_ROWS, columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise OutputUnusable(f"{path}: cannot be read; see `batchrank verify`.") from error


def opened(out: Path) -> Output:
    """The output in this folder. Raises `OutputUnusable` where there is none, or a part is lost."""
    finished = (out / SUCCESS).exists()
    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        raise OutputUnusable(f"{out}: has no parts; is it the output of `batchrank run`?")
    footers = [_footer(path) for path in parts]
    if finished:
        _check_complete(out, {path.name for path in parts})
    return Output(
        folder=out,
        parts=parts,
        schema=footers[0].schema.to_arrow_schema(),
        rows=sum(footer.num_rows for footer in footers),
        finished=finished,
        left_out=sum(map(_left_out, footers)),
    )


class Depth:
    """How many candidates of a row an output lists at most, and whether `top_n` left some out:
    then places in the input are missing, or the parts say so.
    """

    def __init__(self, output: Output) -> None:
        self._is_cut = output.left_out > 0
        self._most = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at some rows."""
        results = batch.column("results")
        lengths = results.value_lengths().fill_null(0).to_numpy()
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return
        index = results.flatten().field("index").to_numpy(zero_copy_only=False)
        last = np.maximum.reduceat(index, np.cumsum(lengths) - lengths)
        self._most = max(self._most, int(lengths.max()))
        self._is_cut |= bool((last >= lengths).any())

    @property
    def top_n(self) -> int:
        """The most candidates that a row lists, once all rows were added; 0 where none are left
        out.
        """
        return self._most if self._is_cut else 0


def check_place(file: Path, out: Path) -> None:
    """Raises `OutputUnusable` for a file that would stand among the parts, or replace the run's."""
    taken = file.suffix == ".parquet" or file.name in (RECEIPT, FORMER_RECEIPT, SUCCESS)
    if taken and file.resolve().parent == out.resolve():
        raise OutputUnusable(f"{file}: would be taken for a file of the run; choose another name.")


def long(batch: pa.RecordBatch, identity: str) -> pa.Table:
    """A line per candidate: query_id, doc_id, index, rank, relevance_score."""
    results = batch.column("results")
    row_of = pc.list_parent_indices(results)
    columns = [batch.column(identity).take(row_of), *results.flatten().flatten()]
    return pa.table(columns, names=["query_id", *(field.name for field in RESULT)])


def scored(
    batch: pa.RecordBatch,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """How many candidates of each row have a score; of these, best first, places in the input and
    scores.
    """
    results = batch.column("results")
    flat = results.flatten()
    known = flat.field("rank").is_valid().to_numpy(zero_copy_only=False)
    before = np.concatenate(([0], np.cumsum(known)))
    offsets = results.offsets.to_numpy() - results.offsets[0].as_py()
    index = flat.field("index").to_numpy(zero_copy_only=False)[known].astype(np.int64)
    scores = flat.field("relevance_score").to_numpy(zero_copy_only=False)[known]
    return np.diff(before[offsets]), index, scores


def _footer(path: Path) -> pq.FileMetaData:
    try:
        with opened_file(path) as file:
            footer = pq.read_metadata(file)
        if footer.schema.to_arrow_schema().field("results").type == pa.list_(RESULT):
            return footer
    except (pa.ArrowException, OSError, KeyError) as error:
        raise OutputUnusable(f"{path}: is no part that batchrank wrote.") from error
    raise OutputUnusable(f"{path}: is no part that batchrank wrote.")


def _left_out(footer: pq.FileMetaData) -> int:
    counts = read_counts(footer.metadata)
    return 0 if counts is None else counts.left_out


def _check_complete(out: Path, names: set[str]) -> None:
    """A finished run says which parts it has; one that was copied without its receipt does not."""
    try:
        receipt = read_receipt(out)
    except OutputUnusable:
        return
    for part in receipt.parts if receipt is not None else ():
        if part.name not in names:
            raise OutputUnusable(f"{out}: {part.name} is missing; see `batchrank verify`.")


def score_range(output: Output) -> tuple[float, float]:
    """Bounds of all scores, from the footers: 0 to 1 where they fit between."""
    lows, highs = [0.0], [1.0]
    for path in output.parts:
        with opened_file(path) as file:
            footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            for place in range(footer.num_columns):
                column = footer.row_group(group).column(place)
                if not column.path_in_schema.startswith("results."):
                    continue
                if column.path_in_schema.endswith(".relevance_score"):
                    found = column.statistics
                    if found is not None and found.has_min_max:
                        lows.append(found.min)
                        highs.append(found.max)
    return min(lows), max(highs)

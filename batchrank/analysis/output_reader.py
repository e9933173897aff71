"""The rows of an output, read back a batch at a time.

Of an output that is not finished these are the published parts, and the answered rows of the other
parts from the run's state (`unpublished`). A run may be at work meanwhile: what is published and
answered when reading begins is what is read. Nothing is written, and nothing is larger than a part.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchrank.errors import OutputUnusable
from batchrank.files.paths import Place, is_same
from batchrank.files.paths import opened as opened_file
from batchrank.files.text_form import takeable
from batchrank.output.parts import OPEN, RESULT, SUCCESS, read_counts
from batchrank.output.receipt_file import FORMER_RECEIPT, RECEIPT, read_receipt

if TYPE_CHECKING:  # what plans an input again takes a second to load; only some outputs need it
    from batchrank.session.unpublished_rows import Unpublished

_log = logging.getLogger(__name__)
_BATCH_ROWS = 1000
_PARTS = "part-*.parquet"


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What is there of a run. `rows` are those of the published parts; `rows_answered` those of the
    other parts that had an answer when the output was opened. The id is the first column.
    `left_out` counts candidates that `top_n` left out, as far as the parts say so.
    """

    folder: Place
    parts: Sequence[Place]
    schema: pa.Schema
    rows: int
    finished: bool
    left_out: int = 0
    rows_answered: int = 0
    unpublished: "Unpublished | None" = None

    @property
    def identity(self) -> str:
        """The name of the column that identifies a row."""
        name: str = self.schema.names[0]
        return name

    def batches(
        self, columns: Sequence[str] | None = None, *, open_rows: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """All rows in the order of the input; `open_rows` are those that lack an answer. Raises
        `OutputUnusable` at a part that is broken.
        """
        for _, batch in self.marked_batches(columns, open_rows=open_rows):
            if len(batch):
                yield batch

    def marked_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        open_rows: bool = True,
        everything: bool = False,
    ) -> Iterator[tuple[bool, pa.RecordBatch]]:
        """Yield whether a part is published, and rows of it. With `everything` also those rows of
        other parts that have no answer.
        """
        if self.unpublished is None:
            for path in self.parts:
                yield from _published(path, columns)
            return
        more = set(self.unpublished.all_parts if everything else self.unpublished.parts())
        paths = {_number(path): path for path in self.folder.glob(_PARTS)}  # looked up after those
        for part in sorted({*paths, *more}):
            path = paths.get(part) or self.folder / self.unpublished.name(part)
            came = False
            if not path.exists():
                for batch in self.unpublished.batches(part, everything=everything):
                    came = True
                    if not open_rows:
                        batch = batch.filter(pc.not_equal(batch.column("status"), OPEN))
                    yield False, batch if columns is None else batch.select(columns)
            if not came and path.exists():  # published a moment ago, and its answers are gone
                yield from _published(path, columns)


def opened(out: Place, state_dir: Path | None = None, *, everything: bool = False) -> Output:
    """Open the output in a folder; its state, of a run that is not finished, may be elsewhere.

    Raises `OutputUnusable` where there is none, or a part is lost. What cannot be read of the state
    is a warning. `everything`: the rows without an answer will be asked for too.
    """
    finished = (out / SUCCESS).exists()
    parts: list[Place] = sorted(out.glob(_PARTS), key=str)
    footers = [_footer(path) for path in parts]
    if finished:
        _check_complete(out, {path.name for path in parts})
    output = Output(
        folder=out,
        parts=parts,
        schema=footers[0].schema.to_arrow_schema() if footers else pa.schema([]),
        rows=sum(footer.num_rows for footer in footers),
        finished=finished,
        left_out=sum(map(_left_out, footers)),
    )
    if not finished and out.is_dir():
        output = _with_unpublished(output, state_dir, everything=everything)
    if not output.schema.names:
        raise OutputUnusable(f"{out}: has no parts; is it the output of `batchrank run`?")
    return output


def _with_unpublished(output: Output, state_dir: Path | None, *, everything: bool) -> Output:
    """Add what a state has of a run that is not finished, and say so."""
    from batchrank.session.unpublished_rows import find_unpublished

    published = {_number(path) for path in output.parts}
    found = find_unpublished(output.folder, state_dir, published, everything=everything)
    answered = sum(found.count_rows({part}) for part in found.parts() - published)
    schema = output.schema if output.parts else found.schema
    if schema is not None and not everything:
        _log.warning(
            "%s: is not finished; this reads the %s rows of its %s published parts, and %s "
            "answered rows of other parts. See `batchrank status`.",
            output.folder,
            f"{output.rows:,}",
            f"{len(output.parts):,}",
            f"{answered:,}",
        )
    for words in found.left_out:
        _log.warning("%s: left out: %s", output.folder, words)
    if not answered and not everything:
        return output
    return msgspec.structs.replace(
        output, schema=schema or output.schema, rows_answered=answered, unpublished=found
    )


def _published(path: Place, columns: Sequence[str] | None) -> Iterator[tuple[bool, pa.RecordBatch]]:
    try:
        with opened_file(path) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                yield True, batch
    except (pa.ArrowException, OSError) as error:
        raise OutputUnusable(f"{path}: cannot be read; see `batchrank verify`.") from error


def _number(part: Place) -> int:
    """The number of a part, by the name of its file."""
    return int(part.name.removeprefix("part-").partition(".")[0])


class Depth:
    """How many candidates of a row an output lists at most, and whether `top_n` left some out:
    then places in the input are missing, or the parts say so.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
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
        more = self._output.unpublished
        is_cut = self._is_cut or (more is not None and more.cut_candidates > 0)
        return self._most if is_cut else 0


def check_place(file: Place, out: Place) -> None:
    """Raises `OutputUnusable` for a file that would stand among the parts, or replace the run's."""
    taken = file.name.endswith(".parquet") or file.name in (RECEIPT, FORMER_RECEIPT, SUCCESS)
    if taken and is_same(file.parent, out):
        raise OutputUnusable(f"{file}: would be taken for a file of the run; choose another name.")


def long(batch: pa.RecordBatch, identity: str) -> pa.Table:
    """A line per candidate: query_id, doc_id, index, rank, relevance_score."""
    results = batch.column("results")
    row_of = pc.list_parent_indices(results)
    columns = [takeable(batch.column(identity)).take(row_of), *results.flatten().flatten()]
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


def _footer(path: Place) -> pq.FileMetaData:
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


def _check_complete(out: Place, names: set[str]) -> None:
    """A finished run says which parts it has; one that was copied without its receipt does not."""
    try:
        receipt = read_receipt(out)
    except OutputUnusable:
        return
    for part in receipt.parts if receipt is not None else ():
        if part.name not in names:
            raise OutputUnusable(f"{out}: {part.name} is missing; see `batchrank verify`.")


def score_range(output: Output) -> tuple[float, float]:
    """Bounds of all scores, from the footers and the state: 0 to 1 where they fit between."""
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
    if output.unpublished is not None:
        for low, high in output.unpublished.score_ranges():
            lows.append(low)
            highs.append(high)
    return min(lows), max(highs)

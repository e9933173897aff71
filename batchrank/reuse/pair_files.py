"""Which pairs a run has scored, for a later one: digests and scores, a side file for each part.

OUT/_pairs/part-00000.arrow lies beside part-00000.parquet: parts hold no texts, and `top_n` cuts
them. Whoever reads OUT/*.parquet does not see it. How a pair is known is told in `digests`.

Arrow's file format, uncompressed, some thousand pairs a batch: digests and scores do not shrink
(20 % under zstd, most of it zeros that are not written now), and a batch is read in 10 us where
zstd takes 200 and Parquet 350 (measured; batches of 4,000 pairs). Each row has a seal: what a disk
or a copy has changed is not used.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from batchrank.errors import StorageFailed
from batchrank.files.atomic import sync_folder
from batchrank.files.paths import Place, opened
from batchrank.output.parts import whole, write_whole
from batchrank.records import RowScores
from batchrank.state.output_folder import PAIRS

VERSION = 1
SUFFIX = ".arrow"
_BEGUN = "run.json"
_BATCH_PAIRS = 4096
_BATCH_ROWS = 1024
_EPOCH = date(1970, 1, 1)
_SCHEMA = pa.schema(
    [
        ("query", pa.binary(16)),
        ("seal", pa.uint64()),
        ("together", pa.uint8()),
        ("texts", pa.list_(pa.uint64())),
        ("scores", pa.list_(pa.float64())),
        (
            "since",
            pa.list_(pa.uint16()),
        ),  # as long as the others, or empty where nothing was reused
    ]
)


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """Of which run the side files are: the day it was begun (which is when its scores were given,
    as far as a reader is told) and what decides its scores.
    """

    version: int
    begun: date
    scoring: dict[str, Any]


class Foot(msgspec.Struct, frozen=True):
    """What a side file says of itself; the seal is of all its rows."""

    rows: int
    seal: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A row of an earlier run. `since`: the day of each score, 0 where there is none."""

    texts: "array[int]"
    scores: "array[float]"
    since: "array[int]"
    together: bool

    @property
    def complete(self) -> bool:
        """Whether every text that is not blank has a score."""
        return self.since.count(0) == self.texts.count(0)


class SideFiles:
    """The side files of one output. `beside` is the folder for files not yet whole."""

    def __init__(self, out: Place, beside: Path) -> None:
        self._folder = out / PAIRS
        self._beside = beside

    def begin(self, scoring: Mapping[str, Any], today: date) -> None:
        """Say whose they are, once. Raises `StorageFailed`."""
        if (self._folder / _BEGUN).exists():
            return
        if isinstance(self._folder, Path):
            try:
                self._folder.mkdir(exist_ok=True)
                sync_folder(self._folder.parent)
            except OSError as error:
                raise StorageFailed(f"{self._folder}: cannot be made: {error.strerror}.") from error
        begun = Begun(version=VERSION, begun=today, scoring=dict(scoring))
        write_whole(self._folder / _BEGUN, msgspec.json.encode(begun), self._beside)

    def publish(self, part: str, rows: Sequence[RowScores]) -> None:
        """Write the side file of a part of finished rows. Raises `StorageFailed`."""
        foot = msgspec.json.encode(_foot(rows))
        with whole(self._folder / _name(part), self._beside) as file:
            schema = _SCHEMA.with_metadata({b"batchrank": foot})
            with pa.ipc.new_file(file, schema) as writer:
                for some in _blocks(rows):
                    writer.write_batch(_batch(some))

    def remove(self, part: str) -> None:
        """A part is written anew without a side file: an older one would not fit. Raises
        `StorageFailed`.
        """
        try:
            (self._folder / _name(part)).unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(f"{self._folder}: cannot be cleared: {error.strerror}.") from error

    def scores(self, part: str) -> "list[array[float] | None]":
        """Every score of a part's rows, those that `top_n` cut off too; nothing if that is lost."""
        try:
            file = SideFile(self._folder / _name(part))
            return [None if row is None else row.scores for row in file.all_rows()]
        except DAMAGE:
            return []


def begun(out: Place) -> Begun | None:
    """Of which run an output's side files are. Raises as msgspec does where that is damaged."""
    try:
        return msgspec.json.decode((out / PAIRS / _BEGUN).read_bytes(), type=Begun)
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(out: Place) -> list[Place]:
    """The side files of an output, in the order of the parts."""
    found: list[Place] = sorted((out / PAIRS).glob("part-*" + SUFFIX), key=str)
    return found


DAMAGE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError, StorageFailed)
"""What reading a damaged side file raises."""


class SideFile:
    """A side file, to be read at any place. Raises `DAMAGE`."""

    def __init__(self, path: Place) -> None:
        self._file = opened(path)
        self._all = self._reader(None)
        self.foot = msgspec.json.decode(self._all.schema.metadata[b"batchrank"], type=Foot)
        if not self._all.schema.equals(_SCHEMA):
            raise ValueError("other columns")
        self.batches: int = self._all.num_record_batches
        if not 0 <= self.foot.rows <= self.batches * _BATCH_ROWS:
            raise ValueError("a number of rows that it cannot have")

    def queries(self) -> Iterator[NDArray[np.uint64]]:
        """The first half of each row's name, a batch at a time: nothing else is read."""
        reader = self._reader([0])
        for place in range(self.batches):
            column = _valid(reader.get_batch(place)).column(0)
            yield _values(column, "<u8")[::2]

    def block(self, place: int) -> "Block":
        """The rows of a batch."""
        return Block(_valid(self._all.get_batch(place)))

    def all_rows(self) -> Iterator[Stored | None]:
        """Every row, None for one that is damaged."""
        for place in range(self.batches):
            block = self.block(place)
            yield from (block.row(offset, 1) for offset in range(len(block)))

    def _reader(self, columns: list[int] | None) -> pa.ipc.RecordBatchFileReader:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        return pa.ipc.open_file(self._file, options=options)


class Block:
    """Some consecutive rows of a side file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._names: bytes = _values(batch.column(0), "u1").tobytes()
        self._seals = batch.column(1).to_numpy()
        self._together = batch.column(2).to_numpy()
        self._lists = [
            (column.offsets.to_numpy(), column.values.to_numpy()) for column in batch.columns[3:]
        ]

    def __len__(self) -> int:
        return len(self._seals)

    def query(self, offset: int) -> bytes:
        """A row's name."""
        return self._names[16 * offset : 16 * (offset + 1)]

    def row(self, offset: int, today: int) -> Stored | None:
        """A row, whose new scores are of `today`; None if it is not what was written."""
        texts, scores, since = (
            values[offsets[offset] : offsets[offset + 1]] for offsets, values in self._lists
        )
        together = int(self._together[offset])
        seal = _seal(
            self.query(offset), texts.tobytes(), scores.tobytes(), since.tobytes(), together
        )
        if seal != self._seals[offset] or len(texts) != len(scores):
            return None
        days = since if len(since) else np.zeros(len(scores), np.uint16)
        days = np.where(np.isnan(scores), 0, np.where(days == 0, today, days))
        return Stored(
            array("Q", texts.tobytes()),
            array("d", scores.tobytes()),
            array("H", days.astype(np.uint16).tobytes()),
            bool(together),
        )


def days_of(day: date) -> int:
    """A day as a side file counts it."""
    return (day - _EPOCH).days


def _name(part: str) -> str:
    return part.removesuffix(".parquet") + SUFFIX


def _valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    if any(column.null_count for column in batch.columns):
        raise ValueError("a value is missing")
    return batch


def _values(column: pa.Array, kind: str) -> NDArray[Any]:
    """The bytes of names, as numbers of this kind."""
    start, stop = 16 * column.offset, 16 * (column.offset + len(column))
    return np.frombuffer(column.buffers()[1], "u1")[start:stop].view(kind)


def _seal(query: bytes, texts: bytes, scores: bytes, since: bytes, together: int) -> int:
    return xxhash.xxh3_64_intdigest(b"".join((query, texts, scores, since, bytes([together]))))


def _sealed(row: RowScores) -> int:
    pairs = row.pairs
    assert pairs is not None, "a row without names"
    since = b"" if pairs.since is None else pairs.since.tobytes()
    texts, scores = pairs.texts.tobytes(), row.relevance_scores.tobytes()
    return _seal(pairs.query, texts, scores, since, _together(row))


def _together(row: RowScores) -> int:
    """Whether the scores are of one answer, to just these texts."""
    assert row.pairs is not None
    if row.pairs.since is not None:
        return int(row.pairs.together and not row.requests)
    return int(row.requests == 1 and not row.pairs.shared)


def _foot(rows: Sequence[RowScores]) -> Foot:
    seals = array("Q", map(_sealed, rows))
    return Foot(len(rows), xxhash.xxh3_128_hexdigest(seals.tobytes()))


def _blocks(rows: Sequence[RowScores]) -> Iterator[Sequence[RowScores]]:
    start = pairs = 0
    for place, row in enumerate(rows, 1):
        pairs += len(row.relevance_scores)
        if pairs >= _BATCH_PAIRS or place - start == _BATCH_ROWS:
            yield rows[start:place]
            start, pairs = place, 0
    if start < len(rows):
        yield rows[start:]


def _batch(rows: Sequence[RowScores]) -> pa.RecordBatch:
    named = [row.pairs for row in rows if row.pairs is not None]
    columns = [
        pa.array([pairs.query for pairs in named], pa.binary(16)),
        pa.array([_sealed(row) for row in rows], pa.uint64()),
        pa.array([_together(row) for row in rows], pa.uint8()),
        _lists([pairs.texts for pairs in named], pa.uint64()),
        _lists([row.relevance_scores for row in rows], pa.float64()),
        _lists([pairs.since or array("H") for pairs in named], pa.uint16()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _lists(lists: "Sequence[array[Any]]", kind: pa.DataType) -> pa.ListArray:
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    values = pa.py_buffer(b"".join(lists))
    return pa.ListArray.from_arrays(
        _numbers(pa.int32(), len(offsets), pa.py_buffer(offsets)),
        _numbers(kind, int(offsets[-1]), values),
    )


def _numbers(kind: pa.DataType, count: int, values: pa.Buffer) -> pa.Array:
    """Not by `pa.array`, which loads numpy's masked arrays before its first (13 ms of CPU)."""
    return pa.Array.from_buffers(kind, count, [None, values])

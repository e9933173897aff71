"""How an output stands: which of a run's parts are there, which rows failed, what is answered.

Looked up once, when a session begins; from then on it is kept up to date as parts are published.
"""

import logging
from array import array
from datetime import UTC, datetime
from math import ceil, isnan

import msgspec

from batchrank.config.settings import JobConfig
from batchrank.errors import TryLater
from batchrank.files.paths import sizes
from batchrank.output.assembly import Part
from batchrank.output.part_files import PATTERN, missing_parts, shortened
from batchrank.output.parts import PartRecord, Sink
from batchrank.output.receipt import total
from batchrank.records import RowScores
from batchrank.reuse.pair_files import SideFiles
from batchrank.state.checkpoint import Checkpoint
from batchrank.state.output_folder import Claim
from batchrank.state.shard_folder import reopen
from batchrank.state.shards import Shard, rows_in, rows_of

_log = logging.getLogger(__name__)


class Standing:
    """What of a run's own parts is done. `superseded` are the records of parts that are written
    again because rows of them had failed, or because a trial had fewer rows of them; `reopened` are
    their rows; `others` are other shards' parts.
    """

    def __init__(
        self, config: JobConfig, claim: Claim, rows: int, *, reusing: bool, retry_failed: bool
    ) -> None:
        self._claim = claim
        self._rows = rows
        self._rows_per_part = config.output.rows_per_part
        self._retry_failed = retry_failed
        self._reusable = config.output.reusable
        part_count = max(1, ceil(rows / self._rows_per_part))
        shard = claim.shard or Shard(0, 1)
        self.parts = shard.parts(part_count)
        self.others = set(range(part_count)) - set(self.parts)
        self.own_rows = rows_in(self.parts, rows, self._rows_per_part)
        self._sink = Sink(
            claim.folder,
            claim.beside,
            parts=part_count,
            top_n=config.output.top_n,
            compression=config.output.compression,
            request_ids=config.endpoint.unite_rows,
            reusing=reusing,
            provenance={
                "batchrank_provider": config.endpoint.provider,
                "batchrank_scorer": config.scorer,
            },
        )
        self._side_files = SideFiles(claim.folder, claim.beside)
        if self._reusable:
            self._side_files.begin(config.scoring(), datetime.now(UTC).date())
        self.checkpoint = Checkpoint(claim.database)
        self.published = self._parts_that_exist()
        self.superseded: dict[int, PartRecord] = {}
        self.reopened = self._reopen()
        self.rows_before = total(self.published.values(), "rows")
        self.failed_before = total(self.published.values(), "failed")
        self.partial_before = total(self.published.values(), "partial")
        there, of = len(self.published), len(self.parts)
        _log.info("%d rows, %d of %d parts published", self.own_rows, there, of)

    @property
    def some_are_missing(self) -> bool:
        """Whether a part is to be published yet."""
        return len(self.published) < len(self.parts)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The rows of the parts that are not published, as ranges (first, stop)."""
        missing = [part for part in self.parts if part not in self.published]
        return rows_of(missing, self._rows_per_part, self._rows)

    def settled(self) -> tuple[int, int]:
        """Rows that are done, and those of them that are kept: they wait for others of their part.
        Those that failed and are asked for again are not done. Raises `StorageFailed`.
        """
        kept = self.checkpoint.rows_kept(self.published, scored=self._retry_failed)
        again = [one for part, one in self.superseded.items() if part not in self.published]
        failed = sum(len(one.counts.failed_offsets) for one in again) if self._retry_failed else 0
        return kept + total([*self.published.values(), *again], "rows") - failed, kept

    def open_offsets(self) -> dict[int, list[int]]:
        """The rows, from the part's first, of parts that are written again that are to be sent."""
        return {
            part: [
                *(one.counts.failed_offsets if self._retry_failed else ()),
                *range(one.counts.rows, self._size(part)),
            ]
            for part, one in self.superseded.items()
        }

    def _size(self, part: int) -> int:
        """The rows that a part has once it is whole."""
        return min(self._rows_per_part, self._rows - part * self._rows_per_part)

    def write(self, part: Part) -> PartRecord:
        """Put a finished part into the output, for good. Raises `StorageFailed`.

        The side file comes first: there is no part then that a later run cannot reuse.
        """
        rows, name = part.finished(), self._sink.name(part.index)
        if self._reusable:
            self._side_files.publish(name, rows)
        else:
            self._side_files.remove(name)
        return self._sink.publish(part.index, rows, part.kept)

    def came(self, part: int, record: PartRecord) -> None:
        """A part is published: its answers are needed no more."""
        self.published[part] = record
        _log.info("%s published: %d rows", record.name, record.counts.rows)
        self.checkpoint.forget(part, msgspec.json.encode(record))

    def check_parts(self) -> None:
        """Look for every part that counts as published, by name and size.

        Raises `TryLater` where one is gone, whose rows are then to be scored again, and
        `OutputUnusable` where one is another file.
        """
        gone = missing_parts(self._claim.folder, self.published.values())
        if gone:
            self.published = {at: one for at, one in self.published.items() if one.name not in gone}
            raise TryLater(
                f"{self._claim.folder}: {shortened(gone)} went away while the run was at work. The "
                "same command scores those rows again."
            )

    def _parts_that_exist(self) -> dict[int, PartRecord]:
        """A part that exists is done, also when the run was killed before it could note that: at
        its first writing, or, where rows of it had failed or were left out, at its second.
        """
        recorded, there = self.checkpoint.parts(), sizes(self._claim.folder, PATTERN)
        known = {part: self.checkpoint.decoded(one, PartRecord) for part, one in recorded.items()}
        # Killed between a part's second writing and its note, the file is right and the note old.
        settled = [one for at, one in known.items() if not self._may_be_written_again(at, one)]
        for name in missing_parts(self._claim.folder, settled):
            _log.warning("%s: is gone; its rows are scored again", self._claim.folder / name)
        published = {}
        for part in self.parts:
            if self._sink.name(part) not in there:
                continue
            record = known.get(part)
            if record is None or self._may_be_written_again(part, record):
                found = self._sink.read(part)
                if found != record:
                    self.checkpoint.forget(part, msgspec.json.encode(found))
                record = found
            published[part] = record
        return published

    def _may_be_written_again(self, part: int, known: PartRecord) -> bool:
        return bool(known.counts.failed_offsets) or known.counts.rows < self._size(part)

    def _reopen(self) -> dict[int, list[RowScores]]:
        """Take back parts to be written again: with failed rows, if these are asked for again, and
        with fewer rows than they have by now. Their files stay until then.
        """
        again = [
            part
            for part, known in self.published.items()
            if known.counts.rows < self._size(part)
            or (self._retry_failed and known.counts.failed_offsets)
        ]
        if again:
            reopen(self._claim)
        self.superseded = {part: self.published.pop(part) for part in again}
        return {part: self._rows_of(part) for part in again}

    def _rows_of(self, part: int) -> list[RowScores]:
        """The rows of a published part, with what `top_n` cut off where that is kept."""
        rows = self._sink.rows(part, part * self._rows_per_part)
        # Killed between the two, a side file is there before its part, and has more rows.
        kept = self._side_files.scores(self._sink.name(part))[: len(rows)]
        if len(kept) != len(rows):
            return rows
        return [
            row
            if scores is None or not _continues(row.relevance_scores, scores)
            # The part is the judge: a side file may be of another writing of it.
            else msgspec.structs.replace(row, relevance_scores=scores)
            for row, scores in zip(rows, kept, strict=True)
        ]


def _continues(listed: "array[float]", scores: "array[float]") -> bool:
    """Whether these scores are those that a part lists for a row, and those that it has cut off."""
    given = zip(listed, scores, strict=False)
    return len(scores) >= len(listed) and all(isnan(one) or one == other for one, other in given)

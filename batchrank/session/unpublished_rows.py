"""The answered rows of parts that are not complete, as rows of the output.

They were paid for, and lie in the state until the last row of their part is answered. The input is
read and planned again to find which candidate each score belongs to; the rows are then what the
part would hold. A row that still lacks an answer has the status `open`. Nothing is written.
"""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from batchrank.config.settings import JobConfig
from batchrank.errors import BatchrankError, ConfigInvalid, InputBad, OutputUnusable
from batchrank.files.paths import Place, place
from batchrank.input import Inputs, open_inputs
from batchrank.input.parquet_rows import Chunk, Source
from batchrank.output.assembly import assemble
from batchrank.output.parts import OPEN, Sink, part_name
from batchrank.planning.shared_requests import Again
from batchrank.planning.text_hashes import Digests
from batchrank.records import Failed, Outcome, PlannedRow, RowScores, Spent
from batchrank.reuse.index import Reuse, identity_of, opened
from batchrank.session.earlier_answers import is_given_to
from batchrank.session.origin import Origin, read_origin
from batchrank.session.read_ahead import Feed
from batchrank.session.request import columns_of, planner_of
from batchrank.state.answer_rows import Answer
from batchrank.state.fingerprint import Fingerprint
from batchrank.state.kept_answers import KeptAnswers
from batchrank.state.output_folder import DATABASE, decoded, marked_in, state_of
from batchrank.state.shards import Shard

_log = logging.getLogger(__name__)
_BATCH_ROWS = 1000


class _State:
    """The state of one run, or shard, and how its input is planned."""

    def __init__(self, out: Place, state: Path, kept: KeptAnswers) -> None:
        begun = decoded(kept.fingerprint(), state / DATABASE)
        origin = read_origin(state)
        config = origin.job_config
        self.kept = kept
        self._source = _source_of(begun, origin, config)
        total = self._source.total_rows
        self.rows = min(total, begun.limit_rows or total)
        self._size = config.output.rows_per_part
        self.parts = max(1, ceil(self.rows / self._size))
        self._top_n = config.output.top_n
        self.cut_candidates = 0
        self._flags = np.zeros(total, np.bool_)
        self._united = config.endpoint.unite_rows
        self._known = Digests(config.scoring()).named
        if origin.reuse:
            previous = [
                opened(place(one), config, rows_only=origin.reuse_rows_only) for one in origin.reuse
            ]
            if identity_of(previous) != begun.config.get("--reuse"):
                raise InputBad("an output that it reuses is not what it was.")
            self._known = Reuse(config, previous)
        self._planner = planner_of(config, exact=False)
        self._sink = Sink(
            out,
            Path(),
            parts=self.parts,
            top_n=config.output.top_n,
            compression=config.output.compression,
            request_ids=self._united,
            reusing=bool(origin.reuse),
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns of the output."""
        return self._sink.table([], pa.Table.from_batches([self._source.empty()])).schema

    def batches(self, part: int, *, everything: bool) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a part that have an answer, or `everything`, in the input's order."""
        answers, answered = self.kept.answers(part)
        if not answered and not everything:
            return
        ids: list[pa.RecordBatch] = []
        numbers: list[int] = []
        found: dict[int, RowScores] = {}
        for chunk, planned in self._planned(part, None if everything else answered):
            own = range(chunk.first, chunk.first + len(chunk.kept))
            wanted = [row for row in own if everything or row in answered]
            ids.append(chunk.kept.take(pa.array([row - own.start for row in wanted], pa.int64())))
            numbers += wanted
            for row in planned:
                if everything or (row.index in answered and not _has_other_texts(row, answers)):
                    found[row.index] = _scored_so_far(row, answers)
        if len(found) < len(numbers):
            lost = len(numbers) - len(found)
            _log.warning(
                "%d answered rows of part %d are left out: their texts changed", lost, part
            )
        there = pa.array([place for place, row in enumerate(numbers) if row in found], pa.int64())
        kept = pa.Table.from_batches(ids).take(there)
        yield from self._as_in_a_part([found[row] for row in numbers if row in found], kept)

    def _as_in_a_part(self, rows: Sequence[RowScores], kept: pa.Table) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), _BATCH_ROWS):
            some = rows[start : start + _BATCH_ROWS]
            if self._top_n:
                lengths = [len(row.relevance_scores) for row in some]
                self.cut_candidates += sum(max(0, length - self._top_n) for length in lengths)
            table = self._sink.table(some, kept.slice(start, len(some)))
            yield from table.combine_chunks().to_batches()

    def _planned(
        self, part: int, only: set[int] | None
    ) -> Iterator[tuple[Chunk, list[PlannedRow]]]:
        first = part * self._size
        stop = min(first + self._size, self.rows)
        again = Again() if self._united else None
        feed = Feed(self._source, self._planner, [(first, stop)], self._size, self._known, again)
        flags = None
        if only is not None and not self._united:  # united rows depend on all rows of their part
            flags = self._flags
            flags[first:stop] = False
            flags[sorted(only)] = True
        yield from feed.planned(flags)
        self._source.check()


def _source_of(begun: Fingerprint, origin: Origin, config: JobConfig) -> Source:
    """Open the input that a run was begun with. Raises `InputMissing`, `InputBad`."""
    inputs = Inputs(origin.inputs, origin.queries, origin.corpus)
    source = open_inputs(inputs, columns_of(config))
    for before, now in zip(begun.files, source.files, strict=False):
        if before != msgspec.structs.replace(now, modified=before.modified):
            raise InputBad(f"{now.name}: is not what it was when it was scored.")
    if len(begun.files) != len(source.files):
        raise InputBad(f"{origin.inputs[0]}: there are other files than when it was scored.")
    return source


def _has_other_texts(planned: PlannedRow, answers: Mapping[int, Answer]) -> bool:
    """Whether an answer is there that was given to other texts than the row's."""
    return any(
        plan.plan_id in answers and not is_given_to(answers[plan.plan_id], plan)
        for plan in planned.plans
    )


def _scored_so_far(planned: PlannedRow, answers: Mapping[int, Answer]) -> RowScores:
    """Return a row with the scores that are there."""
    outcomes: dict[int, Outcome] = {}
    for plan in planned.plans:
        answer = answers.get(plan.plan_id)
        if answer is not None and is_given_to(answer, plan):
            outcomes[plan.plan_id] = answer.outcome
    missing = [plan for plan in planned.plans if plan.plan_id not in outcomes]
    for plan in missing:
        outcomes[plan.plan_id] = Failed(plan.plan_id, "", Spent())
    row = assemble(planned, outcomes)
    if not missing:
        return row
    words = f"{len(missing)} of {len(planned.plans)} requests not answered yet"
    error = words if row.error is None else f"{row.error}; {words}"
    return msgspec.structs.replace(row, status=OPEN, error=error)


class Unpublished:
    """The answered rows of an output's parts that are not published. `states` are those that can be
    read, by number of shard; `left_out` says in words what cannot be.
    """

    def __init__(self, states: Mapping[int, _State], shards: int, left_out: Sequence[str]) -> None:
        self._states = states
        self._shards = shards
        self.left_out = left_out

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the output; None where no state can be read."""
        return next((state.schema for state in self._states.values()), None)

    @property
    def all_parts(self) -> range:
        """Every part that the output will have, as far as that is known."""
        return range(max((state.parts for state in self._states.values()), default=0))

    def name(self, part: int) -> str:
        """Return the name of a part's file."""
        return part_name(part, len(self.all_parts))

    def parts(self) -> set[int]:
        """Return the parts that have answers."""
        return {part for state in self._states.values() for part in state.kept.parts()}

    def count_rows(self, parts: Container[int]) -> int:
        """Return how many rows of these parts have answers."""
        return sum(state.kept.count_rows(parts) for state in self._states.values())

    def batches(self, part: int, *, everything: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a part that have an answer, or `everything`, in the input's order."""
        state = self._states.get(part % self._shards)
        if state is not None:
            yield from state.batches(part, everything=everything)

    @property
    def cut_candidates(self) -> int:
        """How many candidates `top_n` left out of the rows that were read."""
        return sum(state.cut_candidates for state in self._states.values())

    def score_ranges(self) -> list[tuple[float, float]]:
        """Return bounds of the scores of each state that has some."""
        found = (state.kept.score_range() for state in self._states.values())
        return [one for one in found if one is not None]


def find_unpublished(
    out: Place, state_dir: Path | None, published: Container[int], *, everything: bool = False
) -> Unpublished:
    """Find the answered rows of an output that are in none of its `published` parts.

    `everything`: open the input even where there are none.
    """
    marked = marked_in(out)
    shards = marked.shards if marked is not None else 0
    states: dict[int, _State] = {}
    left_out: list[str] = []
    for number in range(shards or 1):
        shard = Shard(number, shards) if shards else None
        of_shard = "" if shard is None else f"shard {shard}: "
        try:
            state = _local_state(out, state_dir, shard)
            if state is not None:
                kept = KeptAnswers(state / DATABASE)
                waiting = kept.count_rows(_AllBut(published))
                again = kept.count_rows(kept.parts_written_again())
                if again:
                    left_out.append(f"{of_shard}{again:,} rows: {_ASKED_AGAIN}")
                if waiting or everything:
                    of_shard += f"{waiting:,} answered rows: "
                    states[number] = _State(out, state, kept)
        except BatchrankError as error:
            left_out.append(f"{of_shard}{error}")
    return Unpublished(states, shards or 1, left_out)


_ASKED_AGAIN = (
    "of parts that are written again (rows had failed, or a trial had fewer of them); the same "
    "command goes on and publishes them."
)


class _AllBut:
    """The numbers that are in no other container."""

    def __init__(self, others: Container[int]) -> None:
        self._others = others

    def __contains__(self, number: object) -> bool:
        return number not in self._others


def _local_state(out: Place, state_dir: Path | None, shard: Shard | None) -> Path | None:
    """Return where a state is; None where a run has only begun. Raises `OutputUnusable` where it is
    on another machine, or nobody said where.
    """
    try:
        state = state_of(out, state_dir, shard)
    except ConfigInvalid:
        raise OutputUnusable(_ELSEWHERE) from None
    if (state / DATABASE).exists():
        return state
    if shard is not None:
        raise OutputUnusable("its state is not here.")
    marked = marked_in(out)
    if marked is not None and not marked.own_state:
        raise OutputUnusable(_ELSEWHERE)
    return None


_ELSEWHERE = "rows that are answered and not published are in its state: pass its --state-dir."

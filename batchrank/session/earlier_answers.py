"""Answers that are there before their part is read: from a session before this one, or from a band
that was sent ahead (`bands`). They lie in the checkpoint and are fetched a part at a time.

An outcome that comes while its part is being read, or whose part is being fetched, is taken note
of here as well; one that is still on its way when its row's turn comes is waited for, not asked
for again.
"""

import asyncio
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from batchrank.errors import InputBad
from batchrank.planning.priority_bands import Bands, Flags, Numbers, gathered
from batchrank.planning.text_hashes import digest_before
from batchrank.records import Dropped, Failed, Outcome, PlannedRow, RequestPlan, row_of
from batchrank.state.answer_rows import Answer
from batchrank.state.checkpoint import Checkpoint


class Ahead:
    """The answers of one part, that which is being read. `parts` are those that have answers. Of
    rows with a flag in `again` those that failed in an earlier session do not count.
    `lenient`: what is sent of a row depends on an earlier output, which may be damaged by now.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: set[int],
        again: Flags,
        bands: Bands | None,
        *,
        lenient: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._parts = parts
        self._again = again
        self._lenient = lenient
        self.bands = bands
        self._part = -1
        self._known: dict[int, Answer] = {}
        self._awaited: set[int] = set()
        self._rows = Counter[int]()
        self._sent = False

    @property
    def rows(self) -> int:
        """Rows that are settled, and whose part's turn is yet to come."""
        return 0 if self.bands is None else self.bands.ahead

    @property
    def held(self) -> int:
        """Answers in memory: no more than a part has."""
        return len(self._known)

    def send(self, part: int, plans: Sequence[RequestPlan]) -> None:
        """A row's plans are sent before its part's turn."""
        self._parts.add(part)
        self._sent = True
        for plan in plans:
            self._awaited.add(plan.plan_id)
            self._rows[row_of(plan.plan_id)] += 1
            self._again[row_of(plan.plan_id)] = False  # whatever comes of it is this session's

    def came(self, part: int, plan: RequestPlan, outcome: Outcome, *, begun: bool) -> None:
        """A plan's outcome, handed over to the checkpoint already; `begun`: its row has its turn,
        and so the outcome its place.
        """
        if plan.plan_id not in self._awaited or isinstance(outcome, Dropped):
            return
        self._awaited.remove(plan.plan_id)
        if part == self._part and not begun:
            self._known[plan.plan_id] = Answer(plan.digest, outcome)
        row = row_of(plan.plan_id)
        self._rows[row] -= 1
        if not self._rows[row]:
            del self._rows[row]
            if self.bands is not None and not begun:
                self.bands.settle(row)

    async def turn_to(self, part: int) -> None:
        """A part is read from now on; the answers of the one before are let go of."""
        if part == self._part:
            return
        self._part, self._known = part, {}
        if part not in self._parts:
            return
        if self._sent:  # an outcome that came by now may still be on its way to the disk
            self._sent = bool(self._awaited)
            await self._checkpoint.durable()
        fetched = await asyncio.to_thread(self._checkpoint.answers, part)
        counting = {plan: one for plan, one in fetched.items() if self._counts(plan, one)}
        self._known = {**counting, **self._known}

    def begin(self, row: PlannedRow) -> None:
        """A row's turn has come with its part's."""
        if self.bands is not None:
            self.bands.begin(row.index)

    def awaits(self, plan: RequestPlan) -> bool:
        """Whether a plan's outcome is on its way."""
        return plan.plan_id in self._awaited

    def outcome(self, plan: RequestPlan) -> Outcome | None:
        """A plan's outcome, if it was given to these very texts; None where it is to be asked for.

        Raises `InputBad` where the texts were others.
        """
        answer = self._known.pop(plan.plan_id, None)
        if answer is not None and not is_given_to(answer, plan):
            if self._lenient:
                return None
            raise InputBad(
                f"row {row_of(plan.plan_id)} is not what it was when it was scored. "
                "Give the input as it was, or choose a new output and --reuse this one."
            )
        return None if answer is None else answer.outcome

    def _counts(self, plan: int, answer: Answer) -> bool:
        return not (isinstance(answer.outcome, Failed) and self._again[row_of(plan)])


def is_given_to(answer: Answer, plan: RequestPlan) -> bool:
    """Whether an answer was given to these very texts; earlier versions had another digest."""
    if answer.digest == plan.digest:
        return True
    return answer.digest == digest_before(plan.query, plan.documents)


def look_ahead(
    checkpoint: Checkpoint,
    rows: int,
    rows_per_part: int,
    *,
    published: Container[int],
    failed: Mapping[int, Sequence[int]],
    retry_failed: bool,
    priorities: Iterable[Numbers] | None,
    lenient: bool = False,
) -> Ahead:
    """What is answered already, and (with priorities) which of the other rows go first.

    Of parts that are written again only the rows that `failed` or were left out are to be sent. A
    row with an answer that counts is in no band, though another of its requests may lack one: that
    goes with its part.
    """
    parts, settled, again = set(), np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    for part, plan, is_scored in checkpoint.answered():
        if part not in published:
            parts.add(part)
            (settled if is_scored or not retry_failed else again)[row_of(plan)] = True
    if priorities is None:
        return Ahead(checkpoint, parts, again, None, lenient=lenient)
    wanted = np.ones(rows, np.bool_)
    for first in range(0, rows, rows_per_part):
        part = first // rows_per_part
        if part in published or part in failed:
            wanted[first : first + rows_per_part] = False
            wanted[[first + offset for offset in failed.get(part, ())]] = True
    bands = Bands(gathered(priorities, rows), wanted & ~settled, settled)
    return Ahead(checkpoint, parts, again, bands, lenient=lenient)

"""Decide what a failure is about: the request's own texts, the moment, or the account.

Pure: instants are given, in seconds of any one clock. What one reply means is decided elsewhere
(`retry`); this file knows which plans failed, whether others were scored meanwhile, and since when.

While many different plans fail and nothing is scored, it is the moment (an outage, a gateway that
restarts) or, if the replies refuse the account, the account. A plan that fails alone is to blame
itself.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from math import ceil, inf, log2

import msgspec

ENOUGH_FAILURES = 10
"""Failures held against a plan that is known to fail while others are scored. With one in five
failing at random, one plan in ten million has so many."""

DIFFERENT_PLANS = 3
"""So many different plans that fail without a score between are no coincidence."""

REFUSED_SECONDS = 12.0
"""The account is at fault once refusals have lasted so long: a gateway that restarts takes less."""

TRIAL_SECONDS = 0.5
"""While the account is in question one request goes in so long a time."""

_KNOWN_FAILURES = 2
_FEWEST_FAILURES = 3
_PATIENCE = 1 / 3
_THROTTLED_PATIENCE = (3 / 4, 65.0)
"""A server's minute that is used up passes within 65 s."""
_LONGEST_PAUSE_SECONDS = 5.0
_PAUSES_OF_OUTAGE = 30
_FRUITLESS_SEARCHES = 10


class Fault(Enum):
    """What a failure is about. `SETTLED`: the payload, and it was asked for often enough."""

    MOMENT = "moment"
    PAYLOAD = "payload"
    SETTLED = "settled"
    ACCOUNT = "account"


class _Record(msgspec.Struct):
    """Failures held against a plan. `known`: those while others were scored, or of earlier starts.
    `scores` and `throttles` are the totals at its last failure.
    """

    since: float
    scores: int
    throttles: int
    failures: int = 0
    known: int = 0
    answered: bool = False


class Blame:
    """The evidence of a session. `kept`: failures of earlier starts by plan id; `keep` is given
    what is to be kept for a next one whenever that changes. `scored_before`: earlier starts had
    scores. `max_in_flight`: so many scores may be of requests that were sent before a failure.
    """

    def __init__(
        self,
        max_outage_seconds: float = inf,
        kept: Mapping[int, int] | None = None,
        keep: Callable[[Mapping[int, int]], None] = lambda _: None,
        *,
        scored_before: bool = False,
        max_in_flight: float = inf,
    ) -> None:
        self._max_outage_seconds = max_outage_seconds
        self._kept = dict(kept or {})
        self._keep = keep
        self._scored_before = scored_before
        self._max_in_flight = max_in_flight
        self._records: dict[int, _Record] = {}
        self._failing: set[int] = set()
        self._refused: set[int] = set()
        self._refused_since = 0.0
        self._next_trial = 0.0
        self._throttles = 0
        self._searches_left = _FRUITLESS_SEARCHES
        self.scores = 0

    def note_score(self) -> None:
        """Note that a request was scored: the endpoint serves this account at this moment."""
        self.scores += 1
        self._failing.clear()
        self._refused.clear()

    def note_failure(
        self,
        plan: int,
        now: float,
        *,
        sent: bool = True,
        throttled: bool = False,
        answered: bool = False,
    ) -> Fault:
        """Note that a request of a plan failed; return what that is about. What was not `sent`
        cannot be refused for its texts; what the endpoint itself `answered` is no outage.
        """
        record = self._record(plan, now)
        record.answered = answered
        others_scored = self.scores > record.scores
        # More than were under way at its last failure: the endpoint still served after that.
        is_proven = self.scores > record.scores + self._max_in_flight
        others_throttled = throttled and self._throttles > record.throttles
        self._throttles += throttled
        record.scores, record.throttles = self.scores, self._throttles
        if is_proven and not others_throttled:
            record.known = max(record.known, _KNOWN_FAILURES)
        if not self.is_known(plan):
            self._failing.add(plan)
        is_alone = sent and len(self._failing) < DIFFERENT_PLANS
        may_judge = self.scores > 0 or self._scored_before or self.is_known(plan)
        if others_throttled or not may_judge or not (others_scored or is_alone):
            return Fault.MOMENT
        record.failures += 1
        record.known += others_scored
        if record.failures >= _KNOWN_FAILURES:
            self._kept[plan] = record.failures
            self._keep(self._kept)
        if not self._is_enough(plan, now, throttled):
            return Fault.PAYLOAD
        record.known = max(record.known, _KNOWN_FAILURES)  # its parts need no proof of their own
        return Fault.SETTLED

    def note_refusal(self, plan: int, now: float, *, sent: bool = True) -> Fault:
        """Note a reply that refuses the account; return what that is about."""
        if not self.is_known(plan):
            if not self._refused:
                self._refused_since = now
            self._refused.add(plan)
        fault = self.note_failure(plan, now, sent=sent, answered=sent)
        if self._account_is_in_question and now - self._refused_since >= REFUSED_SECONDS:
            return Fault.ACCOUNT
        return fault

    def note_stop(self, plan: int) -> None:
        """Note that the run ends by a refusal of this plan before anything was scored. Where
        earlier starts had scores, and it comes again at the next ones, it is the plan's own.
        """
        if not self._scored_before:
            return
        self._kept[plan] = self._kept.get(plan, 0) + 1
        self._keep(self._kept)

    def forget(self, plan: int) -> None:
        """A plan is settled: hold nothing against it any more."""
        self._failing.discard(plan)
        self._refused.discard(plan)
        self._records.pop(plan, None)
        if self._kept.pop(plan, None) is not None:
            self._keep(self._kept)

    def is_known(self, plan: int) -> bool:
        """Whether a plan has failed while others were scored, or at earlier starts."""
        record = self._records.get(plan)
        if record is not None:
            return record.known >= _KNOWN_FAILURES
        return self._kept.get(plan, 0) >= _KNOWN_FAILURES

    def wait(self, now: float) -> float:
        """Return seconds until a request may go; 0, and it is taken for the trial, if it may."""
        if not self._account_is_in_question:
            return 0.0
        if now < self._next_trial:
            return self._next_trial - now
        self._next_trial = now + TRIAL_SECONDS
        return 0.0

    def longest_pause(self, plan: int, *, throttled: bool) -> float:
        """Return how long the next try of a plan that is held to blame waits at the most."""
        if throttled or self.is_known(plan) or self._records[plan].answered:
            return _LONGEST_PAUSE_SECONDS
        return max(1.0, min(60.0, self._max_outage_seconds / _PAUSES_OF_OUTAGE))

    def may_search(self) -> bool:
        """Whether to look for the document to blame by halves: not for ever where none helps."""
        return self._searches_left > 0

    def note_search(self, *, helped: bool) -> bool:
        """Note whether a search found documents that are scored; True when it was the last."""
        if helped:
            self._searches_left = _FRUITLESS_SEARCHES
            return False
        self._searches_left -= 1
        return self._searches_left == 0

    @property
    def _account_is_in_question(self) -> bool:
        return len(self._refused) >= DIFFERENT_PLANS

    def _record(self, plan: int, now: float) -> _Record:
        record = self._records.get(plan)
        if record is None:
            before = self._kept.get(plan, 0)
            record = _Record(now, self.scores, self._throttles, before, before)
            self._records[plan] = record
        return record

    def _is_enough(self, plan: int, now: float, throttled: bool) -> bool:
        record = self._records[plan]
        if self.is_known(plan) and record.failures >= ENOUGH_FAILURES:
            return True
        patience = self._max_outage_seconds * _PATIENCE
        if record.answered:
            patience = min(patience, REFUSED_SECONDS)
        if throttled:
            share, seconds = _THROTTLED_PATIENCE
            patience = max(patience, min(seconds, self._max_outage_seconds * share))
        return record.failures >= _FEWEST_FAILURES and now - record.since >= patience


def most_in_vain(documents: int) -> int:
    """Return how many requests of a search among so many documents may fail before one is scored:
    what it takes to find one document.
    """
    return 2 * ceil(log2(max(2, documents))) + 2

"""What a worker may use of an account at an instant: the lease, or what is safe without one.

While its lease lasts, what it was given. When that has run out and no answer came, what of it lies
in its own home, at least the floor: nobody else can have that. Two lease times after its last
answer every other lease must have run out too, if the coordinator is gone, and the whole home is
its own: 1/N of the account. It is never none, and in sum never more than the limit.

A worker that has never been answered knows its home by its number among the shards, and begins
with the floor: the home may still be lent for a lease. (Whom the coordinator is out of reach of
while others reach it cannot know that; see README, Many workers.)

Pure: time is given, in the seconds of the worker's own clock.
"""

from math import inf

from batchrank.account.cells import Seats, of_runs, runs
from batchrank.account.coordinator import LEASE_SECONDS, MARGIN, REST_SECONDS, Ask, Lease
from batchrank.pacing.request_numbers import Arcs

HUNGRY = 0.8
"""Of the time somebody waits for the share: the worker could use more."""

_HEADROOM = 1.25
"""And one a second besides, or as many as it uses: of a small share each is long waited for."""

_FADING = 0.7
"""Of what it could use a second ago: a worker that sends now and then is not idle in between."""


class Holding:
    """One worker's share. `shard` is its number and their count; `offset` what is to be added to
    its clock to make the coordinator's Unix time. `used` is what it was seen to use lately.
    """

    def __init__(
        self,
        worker: str,
        now: float,
        *,
        requests_per_minute: float,
        tokens_per_minute: float = 0,
        shard: tuple[int, int] | None = None,
        offset: float = 0.0,
    ) -> None:
        self.offset = offset
        self.wants = 1.0
        self._worker = worker
        self._limits = (requests_per_minute, tokens_per_minute)
        self._rest = REST_SECONDS if tokens_per_minute else 0.0
        self._fixed = shard is not None
        self._seat, workers = shard or (0, 1)
        self._seats = Seats(workers)
        self._granted = 0
        self._until = -inf
        self._home_from = now + LEASE_SECONDS * MARGIN + self._rest if shard else inf
        self._serial = 0
        self._seated = shard is not None
        self._dropped: list[tuple[float, int]] = []
        self._seen = 0
        self._arcs: tuple[int, Arcs] = (0, [])

    def ask(self, now: float, *, leaving: bool = False) -> Ask:
        """What to ask the coordinator for. An answer counts from now."""
        self._serial += 1
        requests, tokens = self._limits
        return Ask(
            worker=self._worker,
            serial=self._serial,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            seat=self._seat if self._seated else None,
            workers=self._seats.workers if self._seated else None,
            fixed=self._fixed,
            holding=runs(self._reported(now)),
            wants=self.wants,
            leaving=leaving,
        )

    def answered(self, lease: Lease, asked_at: float, now: float) -> bool:
        """A lease came; whether something is lost by it, which the coordinator waits to hear of."""
        before = self.cells(now)
        low, high = lease.instant - now, lease.instant - asked_at
        self.offset = min(max(self.offset, low), high)
        if lease.workers != self._seats.workers:
            self._seats = Seats(lease.workers)
            self._seen, self._dropped = 0, []
        self._seat, self._seated = lease.seat, True
        self._granted = of_runs(lease.cells)
        self._until = asked_at + lease.seconds
        self._home_from = asked_at + 2 * lease.seconds + self._rest
        self._reported(now)
        return bool(before & ~self._granted)

    def unseated(self) -> None:
        """Another has the seat: nothing may be used until there is a lease again."""
        self._seated, self._granted, self._until = False, 0, -inf

    def cells(self, now: float) -> int:
        """What may be used at this instant."""
        if now < self._until:
            return self._granted
        if not self._seated:
            return 0
        home = self._seats.home(self._seat)
        if now >= self._home_from:
            return home
        return self._granted & home | self._seats.floor(self._seat)

    def changes_at(self, now: float) -> float:
        """When it will be another share without an answer."""
        if now < self._until:
            return self._until
        return self._home_from if now < self._home_from else inf

    @property
    def fair(self) -> float:
        """The part of the account that is nobody else's for good."""
        return 1 / self._seats.workers

    def share(self, now: float) -> float:
        """What part of the account may be used at this instant."""
        return self._seats.share(self.cells(now))

    def arcs(self, now: float) -> Arcs:
        """Which of the account's requests are the worker's at this instant."""
        cells = self.cells(now)
        if cells != self._arcs[0]:
            self._arcs = (cells, self._seats.arcs(cells))
        return self._arcs[1]

    def used(self, requests: int, tokens: int, waited: float, seconds: float, now: float) -> None:
        """What went out in the last so many seconds, and how long somebody waited for the share."""
        if waited >= HUNGRY * seconds:
            self.wants = 1.0
            return
        limits = zip((requests, tokens), self._limits, strict=True)
        used = max((60 * had / limit / seconds for had, limit in limits if limit), default=0.0)
        one_a_second = used / max(1.0, requests / seconds)
        before = min(self.wants, self.share(now))  # who is not hungry has enough
        self.wants = min(1.0, max(_HEADROOM * used + one_a_second, _FADING * before))

    def _reported(self, now: float) -> int:
        """What is used, and what was until lately where that still counts in the minute."""
        cells = self.cells(now)
        if self._rest:
            if gone := self._seen & ~cells:
                self._dropped.append((now, gone))
            self._dropped = [(at, gone) for at, gone in self._dropped if now < at + self._rest]
        self._seen = cells
        for _, gone in self._dropped:
            cells |= gone
        return cells

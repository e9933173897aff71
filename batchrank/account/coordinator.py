"""An account's limit, leased to workers in shares: the coordinator's side.

A worker asks again and again, and says what it holds and what it could use. What it wants of its
own home it gets; what others do not want of theirs is lent, in equal shares, to those who want
more. A cell is given to one only once it was given back by another, or the lease it was given
under has run out: so all that is in use at any instant is never above the limit. The worker counts
a lease from before it asked, the coordinator from after it answered and a tenth longer, for clocks
that run unevenly.

A coordinator begins without memory. Until old leases have run out, or every seat has said what it
holds, it lets each worker keep what it holds of its own home, and lends nothing.

Where tokens a minute are limited a cell rests for a minute before another worker may have it: what
was spent under it is still in the account's minute.

Pure: time is given, in seconds of any clock that never goes back.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from batchrank.account.cells import CELLS, Runs, Seats, first, of_runs, runs

LEASE_SECONDS = 10.0
MARGIN = 1.1
"""By how much longer than the worker the coordinator counts a lease."""

REST_SECONDS = 60.05


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's request. `worker` is a name that no other process has, `serial` counts its asks.

    `seat` is the one it sits on, if `fixed` by its number among the shards of `workers`. `wants`
    is the share of the account that it could use.
    """

    worker: Annotated[str, Meta(min_length=1, max_length=64)]
    serial: int
    requests_per_minute: float
    tokens_per_minute: float
    seat: Annotated[int, Meta(ge=0)] | None = None
    workers: int | None = None
    fixed: bool = False
    holding: Runs = []
    wants: Annotated[float, Meta(ge=0, le=1)] = 1.0
    leaving: bool = False


class Lease(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The cells that are a worker's for so many seconds from its ask, and when to ask again.

    `instant` is the coordinator's Unix time: all workers count the account's requests by it.
    """

    seat: int
    workers: int
    cells: Runs
    seconds: float
    again_seconds: float
    instant: float = 0.0


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Why there is no lease, and whether asking later may help. `unseated`: another worker has the
    seat, and all that went with it.
    """

    reason: str
    later: bool
    unseated: bool = False


class _Worker:
    """What is known of a process that asked. `held`: all that it may be using."""

    def __init__(self, seat: int) -> None:
        self.seat = seat
        self.serial = -1
        self.held = 0
        self.until = 0.0
        self.wanted = 0


class Coordinator:
    """Divides an account of these limits among so many workers."""

    def __init__(
        self,
        workers: int,
        now: float,
        *,
        requests_per_minute: float,
        tokens_per_minute: float = 0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.seats = Seats(workers)
        self._limits = (requests_per_minute, tokens_per_minute)
        self._seconds = lease_seconds
        self._rest = REST_SECONDS if tokens_per_minute else 0.0
        self._sure_from = now + lease_seconds * MARGIN + self._rest
        self._heard: set[int] = set()
        self._known: dict[str, _Worker] = {}
        self._sitting: list[str | None] = [None] * workers
        self._own = [1] * workers
        self._taken = 0
        self._reserved = self.seats.floors
        self._level: int | None = None

    @property
    def shares(self) -> dict[int, float]:
        """What part of the account each seat's worker may be using."""
        return {
            seat: self.seats.share(self._known[name].held)
            for seat, name in enumerate(self._sitting)
            if name is not None
        }

    def renew(self, ask: Ask, now: float) -> Lease | Refusal:
        """Give a worker its lease, in place of all that it was given before. Raises `ValueError`
        for an ask that no worker makes.
        """
        asked = self._holding(ask)
        self._forget_the_lost(now)
        refusal = self._misfit(ask)
        if refusal is not None:
            return refusal
        seat = self._seat_for(ask)
        if seat is None:
            reason = f"all {self.seats.workers} seats are taken; `--workers` says how many."
            return Refusal(reason=reason, later=True, unseated=True)
        worker = self._sit(ask, seat)
        others = self._taken & ~worker.held
        holding = asked & ~others
        worker.serial = ask.serial
        if ask.leaving:
            self._leave(ask.worker, worker, holding, now)
            return self._lease(seat, 0)
        self._want(worker, min(self.seats.cells, -int(-ask.wants * self.seats.cells // 1)))
        if ask.workers in (None, self.seats.workers):
            self._heard.add(seat)
        granted = self._share_of(worker, holding, others, now)
        self._hold(worker, holding | granted, now + self._seconds * MARGIN + self._rest)
        due = self._own[seat] + self._loan_to(worker)
        return self._lease(seat, granted, lacking=granted.bit_count() < due)

    def _holding(self, ask: Ask) -> int:
        """What a worker may be using; anything, while it divides the account by another count."""
        if ask.workers not in (None, self.seats.workers):
            return self.seats.all
        if len(ask.holding) > self.seats.cells // 2:  # pieces are apart from each other
            raise ValueError(f"{len(ask.holding)} pieces of {self.seats.cells} cells")
        return of_runs(ask.holding) & self.seats.all

    def _misfit(self, ask: Ask) -> Refusal | None:
        """An ask that cannot be granted, now or ever."""
        given = (ask.requests_per_minute, ask.tokens_per_minute)
        if given != self._limits:
            return Refusal(
                reason="the coordinator divides {:g} requests and {:g} tokens a minute, and this "
                "run is configured for {:g} and {:g}. Give both the same.".format(
                    *self._limits, *given
                ),
                later=False,
            )
        workers = self.seats.workers
        if ask.fixed and ask.workers != workers:
            reason = f"the coordinator has {workers} workers, and --shard says {ask.workers}."
            return Refusal(reason=reason, later=False)
        known = self._known.get(ask.worker)
        if known is not None and ask.serial <= known.serial:
            return Refusal(reason="a later ask was answered", later=True)
        return None

    def _seat_for(self, ask: Ask) -> int | None:
        known = self._known.get(ask.worker)
        if known is not None and self._sitting[known.seat] == ask.worker:
            return known.seat
        there_is = ask.seat is not None and 0 <= ask.seat < self.seats.workers
        if there_is and (ask.fixed or self._sitting[ask.seat or 0] is None):
            return ask.seat
        vacant = [seat for seat, name in enumerate(self._sitting) if name is None]
        return vacant[0] if vacant else None

    def _sit(self, ask: Ask, seat: int) -> _Worker:
        """The worker on its seat. Whoever sat there before keeps what it has until that runs out:
        a process that was killed cannot tell.
        """
        before = self._sitting[seat]
        if before is not None and before != ask.worker:
            self._known[before].wanted = 0
        self._sitting[seat] = ask.worker
        worker = self._known.setdefault(ask.worker, _Worker(seat))
        worker.seat = seat
        return worker

    def _want(self, worker: _Worker, cells: int) -> None:
        own = min(max(cells, 1), CELLS)
        if cells != worker.wanted or own != self._own[worker.seat]:
            worker.wanted = cells
            self._reserve(worker.seat, own)

    def _reserve(self, seat: int, cells: int) -> None:
        """So many cells of a seat's home are not lent."""
        self._own[seat], self._level = cells, None
        self._reserved &= ~self.seats.home(seat)
        self._reserved |= self.seats.home(seat, cells)

    def _share_of(self, worker: _Worker, holding: int, others: int, now: float) -> int:
        """The worker's cells from now on: its own, and loans, those it has before any new ones."""
        home = self.seats.home(worker.seat)
        if now < self._sure_from and len(self._heard) < self.seats.workers:
            return (holding & home | self.seats.floor(worker.seat)) & ~others
        own = self.seats.home(worker.seat, self._own[worker.seat]) & ~others
        loan = self._loan_to(worker)
        lendable = self.seats.all & ~self._reserved & ~others
        kept = first(lendable & holding, loan)
        return own | kept | first(lendable & ~kept, loan - kept.bit_count())

    def _loan_to(self, worker: _Worker) -> int:
        if self._level is None:
            sitting = [self._known[name] for name in self._sitting if name is not None]
            extras = [other.wanted - CELLS for other in sitting if other.wanted > CELLS]
            self._level = _level(self.seats.cells - sum(self._own), extras)
        return min(max(0, worker.wanted - CELLS), self._level)

    def _hold(self, worker: _Worker, cells: int, until: float) -> None:
        self._taken = self._taken & ~worker.held | cells
        worker.held, worker.until = cells, until

    def _leave(self, name: str, worker: _Worker, holding: int, now: float) -> None:
        self._hold(worker, holding if self._rest else 0, now + self._rest)
        self._stand_up(name, worker)

    def _forget_the_lost(self, now: float) -> None:
        for name, worker in [(n, w) for n, w in self._known.items() if now >= w.until]:
            self._hold(worker, 0, now)
            self._stand_up(name, worker)
            del self._known[name]

    def _stand_up(self, name: str, worker: _Worker) -> None:
        worker.wanted = 0
        if self._sitting[worker.seat] == name:
            self._sitting[worker.seat] = None
            self._reserve(worker.seat, 1)

    def _lease(self, seat: int, cells: int, *, lacking: bool = False) -> Lease:
        """`lacking`: somebody is about to give back what is missing."""
        return Lease(
            seat=seat,
            workers=self.seats.workers,
            cells=runs(cells),
            seconds=self._seconds,
            again_seconds=self._seconds / (8 if lacking else 2),
        )


def _level(pool: int, extras: Sequence[int]) -> int:
    """Up to where a pool fills vessels of these sizes, if it is poured into all alike."""
    for left, extra in zip(range(len(extras), 0, -1), sorted(extras), strict=True):
        if extra * left >= pool:
            return pool // left
        pool -= extra
    return pool

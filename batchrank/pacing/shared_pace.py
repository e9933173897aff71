"""The turns of a worker that shares an account: those of its requests that are dealt to it.

`ticks` says which they are; here they are waited for. Clock and waiting are given.
"""

from collections.abc import Awaitable, Callable
from math import ceil
from typing import Protocol

from batchrank.pacing.request_numbers import Arcs, narrowed, next_number

AIM_SHARED = 0.97
"""The share of a shared account's limit that is used. What it leaves free of a second, 30 ms, is
for the workers' clocks and for `_LATE_SECONDS`.
"""

_LATE_SECONDS = 0.008
"""A request whose instant is so long past may still go: timers are late."""

_LOOK_SECONDS = 0.25


class Held(Protocol):
    """What part of the account may be used, and which of its requests that are."""

    offset: float
    """From the throttle's clock to the Unix time that all who share the account count by."""

    @property
    def fair(self) -> float:
        """The part that each of those who share can be sure of, sooner or later."""

    def share(self, now: float) -> float:
        """The part, from 0 to 1."""

    def arcs(self, now: float) -> Arcs:
        """The part, as arcs of the circle of requests."""

    def changes_at(self, now: float) -> float:
        """When it is another by itself."""


class Dealt:
    """Those of an account's requests that are this worker's, one turn after the other."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float],
        held: Held,
        wait: Callable[[float], Awaitable[None]],
    ) -> None:
        self._rate = per_second * AIM_SHARED
        self._clock = clock
        self._held = held
        self._wait = wait
        self._arcs: Arcs = []
        self._next = 0

    @property
    def limited(self) -> bool:
        return self._rate > 0

    async def turn(self, speed: Callable[[], float]) -> None:
        """Wait for the next one. At half speed there are half as many."""
        while self._rate > 0:
            in_use = speed()
            now = self._clock()
            number = self._number(now, in_use)
            wait = _LOOK_SECONDS if number is None else self._instant(number) - now
            if number is not None and wait <= 0:
                self._next = number + 1
                return
            await self._wait(max(0.002, wait if in_use == 1 else min(wait, _LOOK_SECONDS)))

    def _number(self, now: float, speed: float) -> int | None:
        """The next request of ours. One just gained may have been its former worker's an instant
        ago: of those none is late.
        """
        arcs = self._held.arcs(now)
        if arcs is not self._arcs:
            self._arcs = arcs
            self._next = max(self._next, ceil((now + self._held.offset) * self._rate))
        late = ceil((now + self._held.offset - _LATE_SECONDS) * self._rate)
        return next_number(max(self._next, late), narrowed(arcs, speed)) if speed > 0 else None

    def _instant(self, number: int) -> float:
        return number / self._rate - self._held.offset

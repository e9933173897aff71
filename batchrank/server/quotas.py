"""Rate limits as the hosted API enforces them, in models that are given the time.

Model Studio ("Rate limits", June 2026): requests and tokens per minute; the service may also hold
each second to a sixtieth of them; and a sudden rise is refused far below the limits, by a threshold
that is not published. Whether its minute is fixed or sliding is not documented: both are here.
No clock is read: the server passes the loop's time, and tests in virtual time use the same models
to judge the client. A request that is refused counts for nothing.
"""

from collections import deque
from collections.abc import Sequence
from math import ceil, floor
from typing import Literal, NamedTuple, Protocol

import msgspec

RATE_QUOTA = "Throttling.RateQuota"
ALLOCATION_QUOTA = "Throttling.AllocationQuota"
BURST_RATE = "Throttling.BurstRate"


class Window(Protocol):
    """An amount per time. `take` follows a `fits` of the same instant that said yes."""

    def fits(self, now: float, amount: float) -> bool:
        """Whether `amount` may pass at `now` (seconds, never going back)."""

    def take(self, now: float, amount: float) -> None:
        """Count `amount` at `now`."""


class FixedWindow:
    """At most `limit` in each window of so many seconds, windows starting at multiples of them.

    With `carries`, an amount above the limit passes when nothing was taken yet, and what is above
    it counts against the following windows: a large request is late, not impossible.
    """

    def __init__(self, limit: float, seconds: float, *, carries: bool = False) -> None:
        self._limit = limit
        self._seconds = seconds
        self._carries = carries
        self._window = 0
        self._taken = 0.0

    def fits(self, now: float, amount: float) -> bool:
        self._turn(now)
        return self._taken + amount <= self._limit or (self._carries and self._taken == 0)

    def take(self, now: float, amount: float) -> None:
        self._turn(now)
        self._taken += amount

    def _turn(self, now: float) -> None:
        window = floor(now / self._seconds)
        passed = window - self._window
        if passed > 0:
            self._taken = max(0.0, self._taken - passed * self._limit) if self._carries else 0.0
            self._window = window


class SlidingWindow:
    """At most `limit` in any stretch of so many seconds."""

    def __init__(self, limit: float, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._taken = 0.0
        self._passed: deque[tuple[float, float]] = deque()

    def fits(self, now: float, amount: float) -> bool:
        while self._passed and self._passed[0][0] <= now - self._seconds:
            self._taken -= self._passed.popleft()[1]
        return self._taken + amount <= self._limit

    def take(self, now: float, amount: float) -> None:
        self._passed.append((now, amount))
        self._taken += amount


class Growth:
    """At most `factor` times the stretch of so many seconds before, or `base` if that is more."""

    def __init__(self, base: float, factor: float, seconds: float) -> None:
        self._base = base
        self._factor = factor
        self._seconds = seconds
        self._earlier: deque[float] = deque()
        self._recent: deque[float] = deque()

    def fits(self, now: float, amount: float) -> bool:
        while self._recent and self._recent[0] <= now - self._seconds:
            self._earlier.append(self._recent.popleft())
        while self._earlier and self._earlier[0] <= now - 2 * self._seconds:
            self._earlier.popleft()
        return len(self._recent) + 1 <= max(self._base, self._factor * len(self._earlier))

    def take(self, now: float, amount: float) -> None:
        self._recent.append(now)


class Gate(NamedTuple):
    """A window, what it counts, and the code of the 429 where it is full."""

    window: Window
    counts: Literal["requests", "tokens"]
    code: str


class Quota:
    """Several gates that a request passes all at once or not at all."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._gates = tuple(gates)

    def admit(self, now: float, tokens: int) -> str | None:
        """None, or the code of the first gate that refuses a request of so many tokens."""
        for gate in self._gates:
            if not gate.window.fits(now, tokens if gate.counts == "tokens" else 1):
                return gate.code
        for gate in self._gates:
            gate.window.take(now, tokens if gate.counts == "tokens" else 1)
        return None


def fixed_minute(requests_per_minute: float, tokens_per_minute: float = 0) -> list[Gate]:
    """Both limits over minutes of the clock that `admit` is given (0: no such limit)."""
    return _gates(
        FixedWindow(requests_per_minute, 60) if requests_per_minute else None,
        FixedWindow(tokens_per_minute, 60) if tokens_per_minute else None,
    )


def sliding_minute(requests_per_minute: float, tokens_per_minute: float = 0) -> list[Gate]:
    """Both limits over any 60 seconds (0: no such limit)."""
    return _gates(
        SlidingWindow(requests_per_minute, 60) if requests_per_minute else None,
        SlidingWindow(tokens_per_minute, 60) if tokens_per_minute else None,
    )


def per_second(requests_per_minute: float, tokens_per_minute: float = 0) -> list[Gate]:
    """A sixtieth of both limits in each second, rounded up; one in 60/RPM seconds below 60 RPM.

    A request of more tokens than a second's share passes in an unused second and delays the next.
    """
    requests = tokens = None
    if requests_per_minute:
        seconds = max(1.0, 60 / requests_per_minute)
        requests = FixedWindow(ceil(requests_per_minute / 60), seconds)
    if tokens_per_minute:
        tokens = FixedWindow(tokens_per_minute / 60, 1, carries=True)
    return _gates(requests, tokens)


def growth(base: float, factor: float = 2, seconds: float = 1) -> list[Gate]:
    """Requests may grow by `factor` from one stretch to the next; `base` of them always pass."""
    return [Gate(Growth(base, factor, seconds), "requests", BURST_RATE)]


def _gates(requests: Window | None, tokens: Window | None) -> list[Gate]:
    gates = []
    if requests is not None:
        gates.append(Gate(requests, "requests", RATE_QUOTA))
    if tokens is not None:
        gates.append(Gate(tokens, "tokens", ALLOCATION_QUOTA))
    return gates


WINDOWS = {
    "fixed_minute": fixed_minute,
    "sliding_minute": sliding_minute,
    "per_second": per_second,
}


class QuotaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the account (0: none), the windows they are held to, and the growth limit.

    `growth_base` above 0 turns the growth limit on: so many requests pass in any
    `growth_seconds`, and beyond them `growth_factor` times those of the stretch before.
    `retry_after_seconds` adds that header to a 429 (the vendor documents none).
    """

    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    windows: tuple[Literal["fixed_minute", "sliding_minute", "per_second"], ...] = ("fixed_minute",)
    growth_base: float = 0
    growth_factor: float = 2
    growth_seconds: float = 1
    retry_after_seconds: int | None = None

    def quota(self) -> Quota:
        """These limits, with nothing taken yet."""
        gates = [
            gate
            for window in self.windows
            for gate in WINDOWS[window](self.requests_per_minute, self.tokens_per_minute)
        ]
        if self.growth_base:
            gates += growth(self.growth_base, self.growth_factor, self.growth_seconds)
        return Quota(gates)

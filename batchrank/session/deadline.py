"""When a run has to be gone: `--finish-by`, a time of day or an instant, by the wall clock.

The wall clock is asked again at every tick rather than once at the start: so neither a suspended
machine nor a clock that is set anew makes a run overrun by more than a tick.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

import msgspec

from batchrank.errors import DeadlineReached
from batchrank.output.receipt import Left, left_words
from batchrank.sending.halt import DRAIN_SECONDS

ENDING_SECONDS = DRAIN_SECONDS + 2.5
"""Sending stops so long before: answers in flight are drained, and what is finished is written."""

_DAYTIME = re.compile(r"(\d{1,2}):(\d{2})", re.ASCII)


class Deadline(msgspec.Struct, frozen=True):
    """The instant by which the process is gone, and how the user said it."""

    instant: datetime
    text: str
    clock: Callable[[], float] = time.time

    @property
    def reached(self) -> bool:
        """Nothing more may be sent."""
        return self.clock() >= self.instant.timestamp() - ENDING_SECONDS

    def missed(self, left: Left | None = None) -> DeadlineReached:
        """Why the run has ended, and what is to be done yet."""
        returns = _DAYTIME.fullmatch(self.text) is not None
        then = "the same command" if returns else "the same command with a later time"
        done = "" if left is None else f"; left: {left_words(left)}"
        return DeadlineReached(
            f"stopped by --finish-by {self.text}{done}; {then} goes on from here."
        )


def deadline(
    text: str, *, zone: tzinfo | None = None, clock: Callable[[], float] = time.time
) -> Deadline:
    """The next HH:MM in this zone (None: the machine's), or an ISO date and time, which is in this
    zone if it names none. Raises ValueError with what is wrong.

    A local time that the clock leaves out, when summer time begins, is the moment when it jumps;
    of one that comes twice the next is meant: a run is never late.
    """
    now = clock()
    daytime = _DAYTIME.fullmatch(text)
    if daytime is not None:
        hour, minute = map(int, daytime.groups())
        if hour > 23 or minute > 59:
            raise ValueError(f"{text} is no time of day.")
        today = datetime.fromtimestamp(now, zone).replace(
            hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None, fold=0
        )
        instants = [
            one for days in range(3) for one in _instants(today + timedelta(days=days), zone)
        ]
    else:
        instants = _written(text, zone)
    ahead = [one for one in instants if one > now]
    if not ahead:
        raise ValueError(f"{text} is past.")
    return Deadline(datetime.fromtimestamp(min(ahead), UTC), text, clock)


def _written(text: str, zone: tzinfo | None) -> list[float]:
    """The instants that an ISO date and time may mean."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is None or ":" not in text:
        raise ValueError(
            f"{text} is no time; write HH:MM, or a date and time as 2026-11-25T06:00, with or "
            "without an offset (+01:00)."
        )
    return _instants(given, zone) if given.tzinfo is None else [given.timestamp()]


def _instants(local: datetime, zone: tzinfo | None) -> list[float]:
    """When clocks of this zone show a local time: once, twice, or (as they jump) from it on."""
    later, earlier = (local.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    shown = [one for one in {later, earlier} if _shown(one, zone) == local]
    if shown:
        return shown
    seconds = range(int(earlier), int(later) + 1)
    return [float(seconds[bisect_left(seconds, local, key=lambda second: _shown(second, zone))])]


def _shown(instant: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None, fold=0)

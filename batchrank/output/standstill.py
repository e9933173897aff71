"""Say why nothing succeeds: since when, for which reason, and until when the run goes on trying.

Pure: instants are given, in seconds of any one clock, and with them the wall clock's time.
"""

from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

SAY_AFTER_SECONDS = 5.0
"""A pause this long between two successes is nothing to speak of."""

CHANGE_SECONDS = 5.0
"""A reason that is another for a shorter time is not logged: failures may take turns."""


class Cause(NamedTuple):
    """Why nothing succeeds. `kind` is one word for it, `gives_up_seconds` from now (None: never).
    It is no `trouble` where the user's own limits ask for it.
    """

    kind: str
    reason: str
    gives_up_seconds: float | None = None
    trouble: bool = True
    say_after_seconds: float = SAY_AFTER_SECONDS


class Standstill(msgspec.Struct, frozen=True, kw_only=True):
    """A time without success: `since` and `until` (when the run gives up, if it does) are ISO
    times in UTC.
    """

    kind: str
    reason: str
    since: str
    seconds: float
    until: str | None = None
    trouble: bool = True


class StandstillWatch:
    """Notices when nothing has succeeded for a while. `marker` is another after every success."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._marker: Hashable = None

    def exclude(self, seconds: float) -> None:
        """Do not count so long a time, in which the process was stopped."""
        self._since += seconds

    def look(
        self, now: float, wall: datetime, marker: Hashable, find_cause: Callable[[], Cause | None]
    ) -> Standstill | None:
        """Return the standstill at this instant, if there is one."""
        if marker != self._marker:
            self._marker, self._since = marker, now
        seconds = now - self._since
        cause = find_cause() if seconds >= SAY_AFTER_SECONDS else None
        if cause is None or seconds < cause.say_after_seconds:
            return None
        left = cause.gives_up_seconds
        return Standstill(
            kind=cause.kind,
            reason=cause.reason,
            since=_iso(wall - timedelta(seconds=seconds)),
            seconds=round(seconds, 1),
            until=None if left is None else _iso(wall + timedelta(seconds=min(left, 1e9))),
            trouble=cause.trouble,
        )


class StandstillLog:
    """Decides what of a standstill is logged: once, at each change, and when it is over."""

    def __init__(self) -> None:
        self._logged: Standstill | None = None
        self._latest: Standstill | None = None
        self._logged_at = float("-inf")

    def line(self, now: float, standstill: Standstill | None) -> str | None:
        """Return the line that is due, if one is."""
        before, self._latest = self._latest, standstill
        if standstill is None or not standstill.trouble:
            if self._logged is None or standstill is not None:
                return None
            self._logged = None
            return f"goes on after {before.seconds:.0f} s" if before is not None else None
        known = self._logged is not None and self._logged.reason == standstill.reason
        if known or now - self._logged_at < CHANGE_SECONDS:
            return None
        self._logged, self._logged_at = standstill, now
        return describe(standstill)


def describe(standstill: Standstill) -> str:
    """Say a standstill in words, with the times of this machine's zone."""
    until = standstill.until
    trying = "" if until is None else f"; goes on trying until {_local(until)}"
    since = f"since {_local(standstill.since)} ({standstill.seconds:.0f} s)"
    return f"nothing has succeeded {since}: {standstill.reason}{trying}"


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _local(moment: str) -> str:
    """Show a time of day, with its date where that is not today's."""
    there, today = datetime.fromisoformat(moment).astimezone(), datetime.now().astimezone()
    return f"{there:%H:%M:%S}" if there.date() == today.date() else f"{there:%Y-%m-%d %H:%M:%S}"

"""What share of the configured rate the endpoint bears, learnt from its 429s.

A 429 tells the speed at which there was too much. The speed falls by three tenths, since the
endpoint's second or minute is used up, returns to just below where it was refused and stays there
for a while, since a true limit seldom moves; then it feels its way up, slowly at first and faster
for as long as nothing is refused. TCP's CUBIC remembers the last refusal in the same way (RFC
9438). Another 429 says that the limit is lower: the share of requests that was let in since the
fall tells how much lower, and where nothing was let in nothing is known.

Against a server that bears a third of what was configured, a second and a minute at a time, 50 ms
away: 97.5 % of what it bears over five minutes with 0.3 % refused; falling and creeping back alone
came to 88 % and 1.1 % (virtual time; `scripts/bench limit` has real time).
"""

from math import inf

FALL = 0.7
STAY_BELOW = 0.97
LEAST_SPEED = 0.01
CREEP_PER_SECOND = 0.02
_RETURN_PER_SECOND = 0.25
_HOLD_SECONDS = 10.0
_LONGEST_HOLD = 20.0
_SAME = 0.025
_STAY_NEARER = 0.98
_FEELER = 0.01
_FEELER_DOUBLES_SECONDS = 5.0
_ONE_CONGESTION_SECONDS = 1.0


class Congestion:
    """The highest share of the rate that may be used. All instants are the caller's, in seconds."""

    def __init__(self, now: float) -> None:
        self._level = 1.0
        self._since = now
        self._slowed_at = -inf
        self._refused_at: float | None = None
        self._stay_below, self._hold_seconds = STAY_BELOW, _HOLD_SECONDS
        self._let_in = self._refused = 0

    def ceiling(self, now: float) -> float:
        """The share at this instant: 1 until something was refused."""
        elapsed = now - self._since
        if self._refused_at is None:
            return min(1.0, self._level + CREEP_PER_SECOND * elapsed)
        stay = self._stay_below * self._refused_at
        return_per_second = _RETURN_PER_SECOND * self._refused_at
        back = (stay - self._level) / return_per_second
        if elapsed < back:
            return self._level + return_per_second * elapsed
        feeling = max(0.0, elapsed - back - self._hold_seconds)
        doublings = min(20.0, feeling / _FEELER_DOUBLES_SECONDS)
        return min(1.0, stay * (1 + _FEELER * (2**doublings - 1)))

    def succeeded(self) -> None:
        """A request was let in."""
        self._let_in += 1

    def forget(self, now: float) -> None:
        """What was refused was not refused for the rate: feel the way up from here."""
        self._level, self._since, self._refused_at = self.ceiling(now), now, None

    def refused(self, now: float, sent_at: float, speed: float) -> None:
        """A request sent at that instant was too much; `speed` is the share in use now.

        What was sent within a second of the last fall is of the same congestion: a fall each for
        64 requests in flight, or for the rest of a second that is used up, would be 64 too many.
        """
        if sent_at >= self._slowed_at:
            self._refused += 1
        if sent_at < self._slowed_at + _ONE_CONGESTION_SECONDS:
            return
        borne = speed
        if self._slowed_at > -inf:
            borne *= self._let_in / (self._let_in + self._refused)
        self._confirm(borne)
        self._refused_at = borne or None
        self._level = max(LEAST_SPEED, FALL * borne)
        self._since = self._slowed_at = now
        self._let_in = self._refused = 0

    def _confirm(self, borne: float) -> None:
        """Stay longer and nearer where the limit is found at the same place again."""
        same = self._refused_at and abs(borne / self._refused_at - 1) < _SAME
        self._stay_below = _STAY_NEARER if same else STAY_BELOW
        self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD) if same else _HOLD_SECONDS

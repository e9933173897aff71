"""Whether the endpoint serves at all: retries are free while most requests succeed.

Pure: instants are given, in seconds of any one clock. Nothing here sends or waits.
"""


class Health:
    """Whether the endpoint serves at all. Retries are free while most requests succeed: a success
    earns a unit of credit, a failure costs one. Without credit the breaker is open: one request
    every `PROBE_SECONDS` goes as a probe, until one succeeds.

    Times are given in seconds of any one clock.
    """

    PROBE_SECONDS = 5.0
    BROKEN_AT_FIRST = 20

    def __init__(self, now: float, credit: int) -> None:
        self._most = self._credit = credit
        self._failing_since: float | None = None
        self._blamed_since: float | None = None
        self._probe_at = now
        self.last_reason = ""
        self.successes = 0
        self._broken = 0

    def succeeded(self, now: float) -> None:
        """A request was answered."""
        self.successes += 1
        self._credit = self._most if self._credit <= 0 else min(self._most, self._credit + 1)
        self._failing_since = self._blamed_since = None

    def failed(self, now: float, reason: str, *, broken: bool, blamed: bool = False) -> None:
        """A request was not; `broken`: what came is no rerank answer. One that is `blamed`
        for its failures tells nothing of the endpoint: they cost no credit, which would hold up
        whatever else is sent, and the time that they take is no outage.
        """
        self.last_reason = reason
        if self._failing_since is None:
            self._failing_since = now
        self._broken += broken
        if blamed:
            self._blamed_since = now if self._blamed_since is None else self._blamed_since
            return
        self._blamed_since = None
        self._credit -= 1
        if self._credit == 0:
            self._probe_at = now + self.PROBE_SECONDS

    def exclude(self, seconds: float) -> None:
        """Do not count these seconds as an outage: nothing was asked in them."""
        if self._failing_since is not None:
            self._failing_since += seconds
        if self._blamed_since is not None:
            self._blamed_since += seconds

    @property
    def is_well(self) -> bool:
        """The breaker is closed, and the last request to be heard of was answered."""
        return self._failing_since is None

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: only probes go."""
        return self._credit <= 0

    @property
    def speaks_otherwise(self) -> bool:
        """Nothing but answers that break the contract has come: it is no rerank API."""
        return not self.successes and self._broken >= self.BROKEN_AT_FIRST

    def wait(self, now: float) -> float:
        """Seconds until a request may go; 0, and it is taken for the probe, when it may now."""
        if self._credit > 0:
            return 0.0
        if now < self._probe_at:
            return self._probe_at - now
        self._probe_at = now + self.PROBE_SECONDS
        return 0.0

    def down_for(self, now: float) -> float:
        """Seconds since the first failure after the last success; 0 after a success. It stands
        still while nothing fails but what is to blame for it.
        """
        if self._failing_since is None:
            return 0.0
        return (now if self._blamed_since is None else self._blamed_since) - self._failing_since

"""Find out what a run waits for when nothing succeeds: asked by the monitor, decides nothing.

The first that applies is given: the disk, the coordinator, what the endpoint has answered, requests
that have no answer yet, the user's own limits, the input.
"""

from collections.abc import Callable, Mapping

from batchrank.account.coordinator import LEASE_SECONDS
from batchrank.account.worker import Leasing
from batchrank.config.settings import JobConfig
from batchrank.output.standstill import Cause
from batchrank.pacing.circuit_breaker import Health
from batchrank.pacing.throttle import Throttle
from batchrank.sending.paced_endpoint import Link
from batchrank.session.read_ahead import Feed

NO_ANSWER_SECONDS = 8.0
"""A request that takes so long is worth a word; one that is slower than those before it only."""

_SLOWER = 1.5
_DISK_SECONDS = 2.0


class DiskProbe:
    """Times how long the disk takes: a commit that is asked for now and then, and a part's file.

    `flush` calls back, from any thread, when all answers so far are durable.
    """

    def __init__(self, flush: Callable[[Callable[[], object]], None]) -> None:
        self._flush = flush
        self._asked_at: float | None = None
        self._answered_at = float("-inf")
        self._part: tuple[str, float] | None = None

    def begin_part(self, name: str, now: float) -> None:
        """Note that a part is being written, until `end_part`."""
        self._part = (name, now)

    def end_part(self) -> None:
        """Note that it is there."""
        self._part = None

    def cause(self, now: float) -> Cause | None:
        """Return what is slow, and ask for a commit where none is awaited."""
        if self._part is not None and now - self._part[1] >= _DISK_SECONDS:
            return Cause("disk", f"waiting for the disk: {self._part[0]} is not written yet")
        if self._asked_at is not None:
            late = now - self._asked_at >= _DISK_SECONDS
            return Cause("disk", "waiting for the disk: answers are not synced") if late else None
        if now - self._answered_at >= _DISK_SECONDS:
            self._asked_at = now
            self._flush(lambda: self._note_answer(now))
        return None

    def _note_answer(self, asked_at: float) -> None:
        self._asked_at, self._answered_at = None, asked_at


class Causes:
    """What a session can wait for, as far as it is there yet."""

    def __init__(
        self, config: JobConfig, feed: Feed, disk: DiskProbe, coordinator: str | None
    ) -> None:
        self._config = config
        self._feed = feed
        self.disk = disk
        self._coordinator = coordinator
        self._link: Link | None = None
        self._asked_pauses: Mapping[int, tuple[float, str]] = {}
        self._throttle: Throttle | None = None
        self._leasing: Leasing | None = None

    def begin(
        self,
        link: Link,
        throttle: Throttle,
        leasing: Leasing | None,
        asked_pauses: Mapping[int, tuple[float, str]],
    ) -> None:
        """Note what the session sends through, and the pauses of its single requests."""
        self._link, self._throttle, self._leasing = link, throttle, leasing
        self._asked_pauses = asked_pauses

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return 0 if self._link is None else self._link.unanswered[0]

    def find(self, now: float) -> Cause | None:
        """Return why nothing succeeds at this instant; None where no reason is known."""
        if (slow := self.disk.cause(now)) is not None:
            return slow
        if self._link is None or self._throttle is None:
            if self._coordinator is None:
                return None
            reason = "waiting for a first lease from the coordinator"
            return Cause("coordinator", reason, LEASE_SECONDS)
        return (
            self._of_coordinator(self._throttle)
            or self._of_endpoint(self._throttle)
            or self._of_unanswered(self._link)
            or self._of_asked_pauses(now)
            or self._of_limits(self._throttle)
            or self._of_input()
        )

    def _of_coordinator(self, throttle: Throttle) -> Cause | None:
        if self._leasing is None or throttle.waits_for not in ("requests", "tokens"):
            return None
        if not self._leasing.has_share:
            return Cause("coordinator", "waiting for a share of the account from the coordinator")
        return None

    def _of_endpoint(self, throttle: Throttle) -> Cause | None:
        trouble = throttle.trouble
        if trouble is None:
            return None
        reason = trouble.reason or "the endpoint asks for a pause"
        if trouble.pause_seconds > 0:
            return Cause("pause", f"{reason}; it asks for a pause", trouble.gives_up_seconds)
        if trouble.only_probes:
            reason += f"; one request goes every {Health.PROBE_SECONDS:g} s as a probe"
        return Cause("endpoint", reason, trouble.gives_up_seconds)

    def _of_unanswered(self, link: Link) -> Cause | None:
        count, seconds = link.unanswered
        if not count:
            return None
        endpoint = self._config.endpoint
        left = endpoint.timeout_seconds - seconds + endpoint.max_outage_seconds
        return Cause(
            "unanswered",
            "the endpoint has not answered yet; a request is given up after "
            f"{endpoint.timeout_seconds:g} s",
            max(0.0, left),
            say_after_seconds=max(NO_ANSWER_SECONDS, _SLOWER * link.slowest_seconds),
        )

    def _of_asked_pauses(self, now: float) -> Cause | None:
        """The pauses that replies to single requests asked for; the first to end is told."""
        pauses = self._asked_pauses.values()
        if not pauses:
            return None
        until, reason = min(pauses)
        which = "1 request waits" if len(pauses) == 1 else f"{len(pauses):,} requests wait"
        return Cause("pause", f"{reason}, and asks for a pause; {which}", max(0.0, until - now))

    def _of_limits(self, throttle: Throttle) -> Cause | None:
        if throttle.waits_for not in ("requests", "tokens"):
            return None
        limit = f"rate.{throttle.waits_for}_per_minute"
        return Cause("limit", f"waiting for the turn that {limit} allows", trouble=False)

    def _of_input(self) -> Cause | None:
        if not self._feed.is_waited_for:
            return None
        return Cause("input", "waiting for the input: rows are read and planned")

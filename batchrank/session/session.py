"""The composition point: one session of a run, from what is there to its receipt. The only file
that knows the others.

Who may send is `throttle`'s, what is sent `dispatch`'s, what counts `checkpoint`'s; here they meet.
Reading and planning happen in one thread a chunk ahead of sending, parts are written in another,
answers are committed in a third; the event loop only carries requests.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    closing,
    nullcontext,
    suppress,
)
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from math import inf
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from batchrank.account.worker import Leasing, kept, leased
from batchrank.config.addresses import request_url
from batchrank.config.settings import JobConfig
from batchrank.errors import (
    BatchrankError,
    DeadlineReached,
    ExitCode,
    RowsFailed,
    Stopped,
    StorageFailed,
    TryLater,
)
from batchrank.input.parquet_rows import Source
from batchrank.output.assembly import Assembly, Part, outcomes_before
from batchrank.output.parts import SUCCESS, PartRecord, write_whole
from batchrank.output.receipt import Left, Progress, Receipt
from batchrank.output.receipt_file import write_receipt
from batchrank.output.standstill import StandstillWatch
from batchrank.pacing.budget import Budget
from batchrank.pacing.throttle import Throttle
from batchrank.planning.shared_requests import Again, complete
from batchrank.planning.text_hashes import Digests
from batchrank.records import Outcome, PlannedRow, RequestPlan, RowScores, row_of, widened
from batchrank.reuse.earlier_rows import Previous
from batchrank.reuse.index import Reuse
from batchrank.sending.blame import Blame
from batchrank.sending.dispatch import Sender, dispatch
from batchrank.sending.halt import DRAIN_SECONDS, Halt, Halted
from batchrank.sending.http_client import Transport
from batchrank.sending.paced_endpoint import Link
from batchrank.server.child_process import LocalServer, local_server
from batchrank.session.causes import Causes, DiskProbe
from batchrank.session.earlier_answers import Ahead, look_ahead
from batchrank.session.finish_shards import too_many_failed
from batchrank.session.monitor import Monitor
from batchrank.session.output_state import Standing
from batchrank.session.process import rarely_collected
from batchrank.session.read_ahead import Feed, Known
from batchrank.session.request import Request, allowed_by, planner_of
from batchrank.session.signals import Signals, heard
from batchrank.session.totals import Figures
from batchrank.state.history import Series
from batchrank.state.output_folder import Claim
from batchrank.state.shards import share_of

_log = logging.getLogger(__name__)

MAX_OPEN_PARTS = 4
"""Parts that may be in memory at once, those that are being written included: a slow request, or a
slow disk, holds up reading only this far behind."""

Connect = Callable[..., AbstractAsyncContextManager[Transport]]
InLoop = Callable[[Coroutine[Any, Any, Halt]], Halt]


class Session:
    """One session of a run: made, taken to the end, and thrown away."""

    def __init__(
        self,
        config: JobConfig,
        request: Request,
        source: Source,
        rows: int,
        claim: Claim,
        previous: Sequence[Previous],
        watch: Callable[[Progress], None],
        connect: Connect,
        in_loop: InLoop,
    ) -> None:
        self._config = config
        self._request = request
        self._source = source
        self._rows = rows
        self._claim = claim
        self._watch = watch
        self._connect = connect
        self._in_loop = in_loop
        self._rows_per_part = config.output.rows_per_part
        shards = 1 if claim.shard is None else claim.shard.of
        # With a coordinator the rate is the account's, and the share of it is leased.
        self._rate = config.rate if request.coordinator else share_of(config.rate, shards)
        if claim.shard is not None:
            _log.info("shard %s: %s", claim.shard, msgspec.json.encode(self._rate).decode())
        self._standing = Standing(
            config,
            claim,
            rows,
            reusing=bool(request.reuse),
            retry_failed=request.retry_failed,
        )
        self._checkpoint = self._standing.checkpoint
        self._known: Known = Digests(config.scoring()).named
        if previous:
            self._known = reuse = Reuse(config, previous)
            if self._standing.some_are_missing:
                reuse.prepare()  # while a signal still ends the process at once
        self._deadline = request.finish_by
        until = None if self._deadline is None else self._deadline.text
        self._figures = Figures(config, self._standing.own_rows, self._checkpoint.spent, until)
        united = config.endpoint.unite_rows
        reopened = chain(*self._standing.reopened.values())
        self._again = Again(reopened, retry_failed=request.retry_failed) if united else None
        self._assembly = Assembly(rows, self._rows_per_part, keep_ids=united)
        self._ahead = self._look_ahead()
        self._settled_before, _ = self._standing.settled()
        self._limited_by: str | None = None
        self._throttle: Throttle | None = None
        self._sender: Sender | None = None
        self._server: LocalServer | None = None
        self._series: Series | None = None

    def _look_ahead(self) -> Ahead:
        """What is answered already, and which of the other rows go first."""
        by_priority = self._request.priority_column is not None and self._standing.some_are_missing
        return look_ahead(
            self._checkpoint,
            self._rows,
            self._rows_per_part,
            published={*self._standing.published, *self._standing.others},
            failed=self._standing.open_offsets(),
            retry_failed=self._request.retry_failed,
            priorities=self._source.priorities() if by_priority else None,
            lenient=bool(self._request.reuse),
        )

    def to_the_end(self, key: str | None, signals: Signals | None) -> Receipt:
        """Score what is missing, then write the receipt, and `_SUCCESS` if all is well."""
        error: BatchrankError | None = None
        with nullcontext(signals) if signals else heard() as self._signals:
            try:
                if self._standing.some_are_missing:
                    self._score(key)
                    self._source.check(everything=True)
                self._standing.check_parts()
                error = self._too_many_failed()
            except BatchrankError as raised:
                error = raised
            self._signals.ending()
            kept, left = self._what_is_left()
            if self._deadline is not None and isinstance(error, DeadlineReached):
                error = self._deadline.missed(left)
            there = {**self._standing.superseded, **self._standing.published}
            files, limited_by = self._source.files, self._limited_by
            receipt = self._figures.receipt(
                error,
                files,
                there,
                limited_by,
                priority_column=self._request.priority_column,
                rows_kept=kept,
                left=left,
            )
            if self._claim.shard is not None:
                receipt = replace(receipt, shard=str(self._claim.shard))
            write_receipt(self._claim.receipt, receipt, self._claim.beside)
            if error is None and self._claim.shard is None:
                write_whole(self._claim.folder / SUCCESS, b"", self._claim.beside)
        return receipt

    def _what_is_left(self) -> tuple[int, Left | None]:
        """Rows that are kept, and what is to be done yet; where the state can be read."""
        if self._standing.some_are_missing:
            with suppress(StorageFailed):
                settled, kept = self._standing.settled()
                left = self._standing.own_rows - settled
                return kept, self._figures.left(left, settled, settled - self._settled_before)
        return 0, None

    def _score(self, key: str | None) -> None:
        """Send what is missing. Raises what ended it early, once all that came is on disk."""
        url = self._config.endpoint.base_url or self._config.provider.base_url
        server = nullcontext() if url else local_server(self._config.endpoint.local_scorer)
        with server as self._server, closing(self._checkpoint), rarely_collected():
            base_url = self._server.base_url if self._server else url or ""
            halt = self._in_loop(self._send(base_url, key if url else None))
        reason = halt.reason or self._checkpoint.error
        in_time = isinstance(reason, DeadlineReached) and not self._standing.some_are_missing
        if reason is not None and not in_time:
            raise reason
        assert not self._standing.some_are_missing, "a part is missing, and nobody said why"

    async def _send(self, base_url: str, key: str | None) -> Halt:
        self._halt = Halt()
        self._feed = self._feed_of_missing()
        disk, coordinator = DiskProbe(self._checkpoint.flush), self._request.coordinator
        self._causes = Causes(self._config, self._feed, disk, coordinator)
        self._standstills = StandstillWatch(time.monotonic())
        self._finished: asyncio.Queue[Part | None] = asyncio.Queue()
        self._unwritten = 0
        self._part_left = asyncio.Event()
        self._durable = asyncio.Event()
        loop = asyncio.get_running_loop()

        def storage_failed(error: BatchrankError) -> None:
            with suppress(RuntimeError):  # the loop may have ended: `_score` looks as well
                loop.call_soon_threadsafe(self._storage_failed, error)

        def stop(stopped: Stopped) -> None:
            loop.call_soon_threadsafe(partial(self._stop, stopped))

        self._checkpoint.start(storage_failed)
        endpoint, rate = self._config.endpoint, self._config.rate
        headers = dict(endpoint.headers)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        share = leased(
            self._request.coordinator,
            self._request.shard,
            rate,
            self._halt.unless_halted,
        )
        series = Series(self._claim.state, self._rate.requests_per_minute, time.monotonic())
        monitor = Monitor(self._look, self._watch, self._resume_after, self._claim.state, series)
        with self._signals.told_to(stop):
            async with (
                self._connect(
                    request_url(base_url, self._config.provider.path),
                    headers,
                    timeout_seconds=endpoint.timeout_seconds,
                    max_in_flight=rate.max_in_flight,
                ) as transport,
                asyncio.TaskGroup() as group,
            ):
                ticking = group.create_task(monitor.tick())
                try:
                    async with share as leasing:
                        await self._settle_all(transport, leasing, series)
                except Halted:
                    pass
                except BatchrankError as error:
                    self._halt.set(error)
                finally:
                    ticking.cancel()
        return self._halt

    async def _settle_all(
        self, transport: Transport, leasing: Leasing | None, series: Series
    ) -> None:
        config, halt, in_flight = self._config, self._halt, self._config.rate.max_in_flight
        self._throttle = Throttle(
            self._rate,
            max_outage_seconds=config.endpoint.max_outage_seconds,
            held=leasing.holding if leasing else None,
        )
        link = Link(
            config, transport, self._throttle, self._budget(), self._checkpoint, halt, series
        )
        self._series = series
        self._sender = sender = Sender(
            link,
            max_in_flight=in_flight,
            halt=halt,
            random=Random(),
            price=config.price,
            whole=config.endpoint.scores_lists,
            blame=self._blame(),
            max_outage_seconds=config.endpoint.max_outage_seconds,
        )
        self._causes.begin(link, self._throttle, leasing, sender.asked_pauses)
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(self._publish())
            keeping = group.create_task(kept(leasing, self._throttle))
            await dispatch(
                self._plans(),
                board=sender.board,
                settle=sender.settle,
                record=self._record,
                max_in_flight=in_flight,
                halt=halt,
            )
            self._finished.put_nowait(None)
            await publishing
            keeping.cancel()
        waited = {
            **self._throttle.waited_seconds,
            "input": self._feed.waited_seconds,
            "disk": self._checkpoint.waited_seconds,
        }
        self._limited_by = self._figures.limited_by(waited)

    def _blame(self) -> Blame:
        """What is known of plans that failed at earlier starts."""
        spent = self._checkpoint.spent
        return Blame(
            self._config.endpoint.max_outage_seconds,
            self._checkpoint.attempts,
            self._checkpoint.keep_attempts,
            scored_before=bool(spent.tokens or spent.units),
            max_in_flight=self._config.rate.max_in_flight,
        )

    def _storage_failed(self, error: BatchrankError) -> None:
        self._halt.set(error, drain_seconds=0)
        self._durable.set()

    def _feed_of_missing(self) -> Feed:
        """The rows of the parts that are not published."""
        exact = self._config.rate.tokens_per_minute > 0 or self._request.max_cost_usd is not None
        planner, size = planner_of(self._config, exact=exact), self._rows_per_part
        return Feed(self._source, planner, self._standing.missing, size, self._known, self._again)

    def _budget(self) -> Budget:
        """What may be spent. An earlier session that was killed is taken to have used its lease."""
        cap = self._request.max_cost_usd
        shards = 1 if self._claim.shard is None else self._claim.shard.of
        units = inf if cap is None else self._config.price.affordable(cap / shards)
        spent = self._figures.spent.units + self._figures.spent.units_at_risk
        return Budget(units, max(spent, self._checkpoint.leased))

    async def _plans(self) -> AsyncGenerator[Sequence[RequestPlan], None]:
        """The plans that no committed answer settles, those of a chunk together."""
        try:
            async with aclosing(self._plans_of_bands()) as plans:
                async for of_row in plans:
                    yield of_row
            async with aclosing(self._feed.chunks()) as chunks:
                async for chunk, planned in chunks:
                    part = chunk.first // self._rows_per_part
                    await self._room_for(part)
                    await self._ahead.turn_to(part)
                    self._assembly.keep(chunk.first, chunk.kept)
                    begun = [plan for row in planned for plan in self._begin(row)]
                    yield [plan for plan in begun if not self._settle_known(plan)]
        except BatchrankError as error:
            self._halt.set(error)

    def _settle_known(self, plan: RequestPlan) -> bool:
        """Settle a plan of a row that is begun by the answer that is there; whether there is one,
        or one is on its way.
        """
        if self._ahead.awaits(plan):
            return True
        outcome = self._ahead.outcome(plan)
        if outcome is None:
            return False
        self._finish(*self._assembly.settle(outcome))
        return True

    async def _plans_of_bands(self) -> AsyncGenerator[Sequence[RequestPlan], None]:
        """The plans of the more valuable rows, before their parts' turn; the least valuable rows
        wait for that.
        """
        bands = self._ahead.bands
        for band in range(bands.count - 1 if bands is not None else 0):
            assert bands is not None
            async with aclosing(self._feed.chunks(bands.rows(band))) as chunks:
                async for chunk, planned in chunks:
                    for row in planned:
                        plans = self._missing(row)
                        self._ahead.send(chunk.first // self._rows_per_part, plans)
                        yield plans

    def _missing(self, row: PlannedRow) -> Sequence[RequestPlan]:
        """The plans of a row without an answer that are to be settled."""
        before = self._before(row)
        known = {} if before is None else outcomes_before(row.plans, before)
        return [plan for plan in row.plans if plan.plan_id not in known]

    def _before(self, row: PlannedRow) -> RowScores | None:
        """What a row had, in a part that was published before."""
        part, place = divmod(row.index, self._rows_per_part)
        reopened = self._standing.reopened.get(part)
        if reopened is None or place >= len(reopened):  # a trial had fewer rows of it
            return None
        return widened(reopened[place], row.candidates)

    def _begin(self, row: PlannedRow) -> Sequence[RequestPlan]:
        """Expect a row; the plans that are to be settled, which in a part that was published before
        are those without a score.
        """
        self._ahead.begin(row)
        before = self._before(row)
        if before is None:
            self._finish(self._assembly.begin(row))
            return row.plans if self._again is None else complete(row)
        before = msgspec.structs.replace(before, pairs=row.pairs)
        if not (before.failed_requests and self._request.retry_failed):
            self._finish(self._assembly.place(before))
            return ()
        if self._again is not None:
            self._finish(self._assembly.begin(row, before))
            return complete(row)
        self._finish(self._assembly.begin(row))
        known = outcomes_before(row.plans, before)
        for outcome in known.values():
            self._finish(*self._assembly.settle(outcome))
        return [plan for plan in row.plans if plan.plan_id not in known]

    async def _room_for(self, part: int) -> None:
        """Wait until a part may be begun. Reading stops here when an old request holds one open."""
        while (
            not self._assembly.has(part)
            and self._assembly.open_parts + self._unwritten >= MAX_OPEN_PARTS
        ):
            self._part_left.clear()
            await self._part_left.wait()

    def _record(self, plan: RequestPlan, outcome: Outcome) -> None:
        self._figures.add(outcome.spent)
        part = row_of(outcome.plan_id) // self._rows_per_part
        also = [slot.row for slot in plan.slots[1:]]
        self._checkpoint.record(part, plan.digest, outcome, also)
        begun = self._assembly.expects(outcome.plan_id)
        self._ahead.came(part, plan, outcome, begun=begun)
        if begun:
            self._finish(*self._assembly.settle(outcome))

    def _finish(self, *parts: Part | None) -> None:
        for part in parts:
            if part is not None:
                self._unwritten += 1
                self._finished.put_nowait(part)

    async def _publish(self) -> None:
        """Publish finished parts one after the other. After a failed write nothing more is sent."""
        if self._rows == 0:
            self._finish(Part(0, 0, [], 0, [self._source.empty()]))
        while (part := await self._finished.get()) is not None:
            try:
                self._causes.disk.begin_part(f"part {part.index}", time.monotonic())
                await self._answers_are_durable()
                record = await asyncio.to_thread(self._write, part)
            except BatchrankError as error:
                self._halt.set(error)
                continue
            finally:
                self._causes.disk.end_part()
            self._standing.came(part.index, record)
            del part  # its rows are let go of before the next one comes
            self._unwritten -= 1
            self._part_left.set()

    def _write(self, part: Part) -> PartRecord:
        """Publish a part, unless a file that its rows may be of is not what it was."""
        self._source.check()
        return self._standing.write(part)

    async def _answers_are_durable(self) -> None:
        """A part must not appear before its answers count: were the run killed in between, the
        receipt would lack what they cost.
        """
        loop = asyncio.get_running_loop()
        self._durable.clear()
        if self._checkpoint.error is not None:  # then nobody is left to answer a flush
            raise self._checkpoint.error
        self._checkpoint.flush(partial(loop.call_soon_threadsafe, self._durable.set))
        await self._durable.wait()
        if self._checkpoint.error is not None:
            raise self._checkpoint.error

    def _stop(self, stopped: Stopped) -> None:
        """The first signal drains, a second Ctrl-C waits for nothing more."""
        if self._halt.reason is None:
            self._halt.set(stopped, DRAIN_SECONDS)
        elif stopped.code is ExitCode.INTERRUPTED:
            self._halt.abandon()

    def _look(self) -> Progress:
        """Return the figures of this instant; stop the run if its time is over."""
        if self._deadline is not None and self._deadline.reached:
            self._halt.set(self._deadline.missed(), DRAIN_SECONDS)
        self._look_after_server()
        done = self._standing.rows_before + self._assembly.rows_done + self._ahead.rows
        now, sender, statuses = time.monotonic(), self._sender, self._assembly.statuses
        answered = 0 if self._throttle is None else self._throttle.successes
        return self._figures.progress(
            done,
            requests=0 if sender is None else sender.requests,
            retries=0 if sender is None else sender.retries,
            throttled=0 if self._series is None else self._series.throttled,
            in_flight=self._causes.in_flight,
            pacing=None if self._throttle is None else self._throttle.pacing,
            rows_failed=self._standing.failed_before + statuses["failed"],
            rows_partial=self._standing.partial_before + statuses["partial"],
            standstill=self._standstills.look(
                now, datetime.now(UTC), (answered, done), lambda: self._causes.find(now)
            ),
        )

    def _look_after_server(self) -> None:
        """Stop the run if its local server has ended: nobody else would start it again."""
        if self._server is not None:
            try:
                self._server.check()
            except TryLater as error:
                self._halt.set(error, DRAIN_SECONDS)

    def _resume_after(self, seconds: float) -> None:
        """Go on after the process stood still for so long, which is nobody's failure."""
        self._standstills.exclude(seconds)
        if self._throttle is not None:
            self._throttle.resume_after(seconds)

    def _too_many_failed(self) -> RowsFailed | None:
        if self._claim.shard is not None:  # whoever finishes the whole counts them
            return None
        allowed = allowed_by(self._request)
        return too_many_failed(self._claim.folder, self._standing.published.values(), allowed)

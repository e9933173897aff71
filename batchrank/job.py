"""The composition point: a run from its input to its receipt. The only file that knows the others.

Who may send is `throttle`'s, what is sent `dispatch`'s, what counts `checkpoint`'s; here they meet.
Reading and planning happen in one thread a chunk ahead of sending, parts are written in another,
answers are committed in a third; the event loop only carries requests.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from datetime import UTC, datetime
from functools import partial
from itertools import chain, groupby
from math import ceil, inf
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import uvloop
from msgspec.structs import replace

from batchrank.ahead import Ahead, look_ahead
from batchrank.assembly import Assembly, Part, outcomes_before, widened
from batchrank.budget import Budget
from batchrank.checkpoint import Checkpoint
from batchrank.claim import RECEIPT, Claim, Fingerprint, claimed, state_of
from batchrank.config import JobConfig, check_price, coordinator_key, key_of
from batchrank.deadline import Deadline
from batchrank.dispatch import DRAIN_SECONDS, Halt, Halted, Sender, dispatch
from batchrank.ending import finished_by, too_many_failed
from batchrank.errors import (
    BatchrankError,
    ConfigInvalid,
    DeadlineReached,
    ExitCode,
    RowsFailed,
    Stopped,
    StorageFailed,
)
from batchrank.feed import Feed
from batchrank.figures import TICK_SECONDS, Figures
from batchrank.leasing import Leasing, kept, leased
from batchrank.link import Link, encode
from batchrank.pairs import SideFiles
from batchrank.places import Place, is_same
from batchrank.planning import Planner
from batchrank.records import Outcome, PlannedRow, RequestPlan, RowScores, row_of
from batchrank.report import Left, Progress, Receipt, total, write_live
from batchrank.reuse import Previous, Reuse, opened
from batchrank.schema import Columns
from batchrank.series import Series
from batchrank.server.child import local_server
from batchrank.shapes import Inputs, open_inputs
from batchrank.shards import Shard, rows_in, shard_of, share_of
from batchrank.shared import claimed_shard, is_finished, reopen
from batchrank.signals import Signals, heard
from batchrank.sink import SUCCESS, PartRecord, Sink, write_whole
from batchrank.source import Source
from batchrank.throttle import Throttle
from batchrank.transport import Transport, connected
from batchrank.uniting import Again, complete

_log = logging.getLogger(__name__)

MAX_OPEN_PARTS = 4
"""Parts that may be unfinished at once: a slow request holds up reading only this far behind."""

Connect = Callable[..., AbstractAsyncContextManager[Transport]]
InLoop = Callable[[Coroutine[Any, Any, Halt]], Halt]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked besides its configuration. `limit_rows` 0: all rows. `shard` (i, N): do
    the i-th of N workers' share, counted from 0.
    """

    inputs: Sequence[str]
    queries: str | None = None
    corpus: str | None = None
    out: Place
    state_dir: Path | None = None
    reuse: Place | None = None
    reuse_rows_only: bool = False
    restart: bool = False
    limit_rows: int = 0
    max_cost_usd: float | None = None
    max_failed_rows: int = 0
    retry_failed: bool = False
    shard: tuple[int, int] | None = None
    coordinator: str | None = None
    finish_by: Deadline | None = None
    priority_column: str | None = None


def columns_of(config: JobConfig, priority: str | None = None) -> Columns:
    """Which columns of the input mean what."""
    return Columns(
        config.input.id_column,
        config.input.query_column,
        config.input.candidates_column,
        config.input.keep_columns,
        config.input.doc_id_column,
        config.input.text_column,
        # The longest of Qwen's tokens has 128 bytes: no server reads further than twice that.
        256 * config.limits.max_tokens_per_document,
        priority,
    )


def planner_of(config: JobConfig, *, exact: bool) -> Planner:
    """The planner of a configuration's limits."""
    # Where `top_n` is sent, an envelope without documents has one digit of what may be several.
    digits = len(str(config.limits.max_documents)) if config.provider.fields.top_n else 0
    return Planner(
        config.limits,
        exact=exact,
        envelope_bytes=len(encode(config, "", ())) + digits,
        whole=config.endpoint.scores_lists,
    )


def run(
    config: JobConfig,
    request: Request,
    watch: Callable[[Progress], None],
    signals: Signals | None = None,
    *,
    connect: Connect = connected,
    in_loop: InLoop = uvloop.run,
) -> Receipt:
    """Score the input into `request.out`, or go on where an earlier run stopped.

    Returns the receipt, which is also written as run.json, with the exit code and message of what
    ended the run early, if anything did. Raises what keeps it from beginning. `signals` are those
    that the main thread hears, where the run is not in it. `connect` reaches the endpoint and
    `in_loop` passes the time: a test may stand in for either.
    """
    key = key_of(config)
    if request.max_cost_usd is not None:
        check_price(config)
    if request.priority_column is not None and config.endpoint.unite_rows:
        raise ConfigInvalid(
            "--priority-column and endpoint.unite_rows: rows of one query are sent together, so "
            "none of them can go first. Leave one of the two out."
        )
    shard = None if request.shard is None else shard_of(*request.shard)
    if shard is not None and request.coordinator is None:
        share_of(config.rate, shard.of)  # refused before there is an output
    state = state_of(request.out, request.state_dir, shard)
    inputs = Inputs(request.inputs, request.queries, request.corpus)
    source = open_inputs(inputs, columns_of(config, request.priority_column))
    if request.restart or not state.exists():
        _ = source.total_rows  # bad input is refused before there is an output of it, or none left
    previous = _previous(config, request)
    deciding = {**config.deciding(), "--reuse": None if previous is None else previous.identity}
    fingerprint = Fingerprint(list(source.files), request.limit_rows, deciding)
    if shard is not None:
        rows = min(source.total_rows, request.limit_rows or source.total_rows)
        fingerprint = replace(fingerprint, shards=shard.of, rows=rows)
    anew = request.restart or request.retry_failed
    if not anew and is_finished(request.out, fingerprint):
        return finished_receipt(request.out)
    with _claimed(request, state, fingerprint, shard) as claim:
        if claim.finished and not request.retry_failed:
            return finished_receipt(claim.folder)
        rows = min(source.total_rows, request.limit_rows or source.total_rows)
        session = _Run(config, request, source, rows, claim, previous, watch, connect, in_loop)
        receipt = session.to_the_end(key, signals)
    return receipt if shard is None else finished_by(receipt, request.out, request.max_failed_rows)


def _claimed(
    request: Request, state: Path, fingerprint: Fingerprint, shard: Shard | None
) -> AbstractContextManager[Claim]:
    if shard is None:
        return claimed(request.out, state, fingerprint, restart=request.restart)
    return claimed_shard(request.out, shard, state, fingerprint, restart=request.restart)


def _previous(config: JobConfig, request: Request) -> Previous | None:
    """The earlier output whose scores are to be taken."""
    if request.reuse is None:
        return None
    if is_same(request.reuse, request.out):
        raise ConfigInvalid(f"{request.out}: is to be reused and written; --reuse names another.")
    return opened(request.reuse, config, rows_only=request.reuse_rows_only)


def finished_receipt(out: Place) -> Receipt:
    """The receipt of an output, as it was written."""
    return msgspec.json.decode((out / RECEIPT).read_bytes(), type=Receipt)


class _Run:
    """One session of a run: made, taken to the end, and thrown away."""

    def __init__(
        self,
        config: JobConfig,
        request: Request,
        source: Source,
        rows: int,
        claim: Claim,
        previous: Previous | None,
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
        part_count = max(1, ceil(rows / self._rows_per_part))
        shard = claim.shard or Shard(0, 1)
        self._parts = shard.parts(part_count)
        self._others = set(range(part_count)) - set(self._parts)
        # With a coordinator the rate is the account's, and the share of it is leased.
        self._rate = config.rate if request.coordinator else share_of(config.rate, shard.of)
        self._sink = Sink(
            claim.folder,
            claim.beside,
            parts=part_count,
            top_n=config.output.top_n,
            compression=config.output.compression,
            request_ids=config.endpoint.unite_rows,
            reusing=previous is not None,
        )
        self._side_files = SideFiles(claim.folder, claim.beside)
        if config.output.reusable:
            self._side_files.begin(config.scoring(), datetime.now(UTC).date())
        wanted = config.output.reusable or previous is not None
        self._known = Reuse(config, previous) if wanted else None
        self._checkpoint = Checkpoint(claim.database)
        own_rows = rows_in(self._parts, rows, self._rows_per_part)
        self._own_rows = own_rows
        self._deadline = request.finish_by
        until = None if self._deadline is None else self._deadline.text
        self._figures = Figures(config, own_rows, self._checkpoint.spent, until)
        self._published = self._parts_that_exist()
        self._superseded: dict[int, PartRecord] = {}
        self._reopened = self._reopen() if request.retry_failed else {}
        self._rows_before = total(self._published.values(), "rows")
        united = config.endpoint.unite_rows
        self._again = Again(chain(*self._reopened.values())) if united else None
        self._assembly = Assembly(rows, self._rows_per_part, keep_ids=united)
        self._ahead = self._look_ahead()
        self._settled_before, _ = self._settled()
        there = len(self._published)
        _log.info("%d rows, %d of %d parts published", own_rows, there, len(self._parts))
        if claim.shard is not None:
            _log.info("shard %s: %s", claim.shard, msgspec.json.encode(self._rate).decode())
        self._limited_by: str | None = None

    def _look_ahead(self) -> Ahead:
        """What is answered already, and which of the other rows go first."""
        by_priority = self._request.priority_column is not None and self._some_are_missing
        return look_ahead(
            self._checkpoint,
            self._rows,
            self._rows_per_part,
            published={*self._published, *self._others},
            failed={part: one.counts.failed_offsets for part, one in self._superseded.items()},
            retry_failed=self._request.retry_failed,
            priorities=self._source.priorities() if by_priority else None,
        )

    @property
    def _some_are_missing(self) -> bool:
        return len(self._published) < len(self._parts)

    def _settled(self) -> tuple[int, int]:
        """Rows that are done, and those of them that are kept: they wait for others of their part.
        Those that failed and are asked for again are not done.
        """
        kept = self._checkpoint.rows_kept(self._published, scored=self._request.retry_failed)
        again = [one for part, one in self._superseded.items() if part not in self._published]
        failed = sum(len(one.counts.failed_offsets) for one in again)
        return kept + total([*self._published.values(), *again], "rows") - failed, kept

    def to_the_end(self, key: str | None, signals: Signals | None) -> Receipt:
        """Score what is missing, then write the receipt, and `_SUCCESS` if all is well."""
        error: BatchrankError | None = None
        with nullcontext(signals) if signals else heard() as self._signals:
            try:
                if self._some_are_missing:
                    self._score(key)
                error = self._too_many_failed()
            except BatchrankError as raised:
                error = raised
            self._signals.ending()
            kept, left = self._what_is_left()
            if self._deadline is not None and isinstance(error, DeadlineReached):
                error = self._deadline.missed(left)
            there = {**self._superseded, **self._published}
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
            content = msgspec.json.format(msgspec.json.encode(receipt))
            write_whole(self._claim.receipt, content, self._claim.beside)
            if error is None and self._claim.shard is None:
                write_whole(self._claim.folder / SUCCESS, b"", self._claim.beside)
        return receipt

    def _what_is_left(self) -> tuple[int, Left | None]:
        """Rows that are kept, and what is to be done yet; where the state can be read."""
        if self._some_are_missing:
            with suppress(StorageFailed):
                settled, kept = self._settled()
                left = self._own_rows - settled
                return kept, self._figures.left(left, settled, settled - self._settled_before)
        return 0, None

    def _parts_that_exist(self) -> dict[int, PartRecord]:
        """A part that exists is done, also when the run was killed before it could note that: at
        its first writing, or, where rows of it had failed, at its second.
        """
        recorded, there = self._checkpoint.parts(), self._sink.published()
        published = {}
        for part in self._parts:
            if self._sink.name(part) not in there:
                continue
            known = recorded.get(part)
            record = None if known is None else self._checkpoint.decoded(known, PartRecord)
            if record is None or record.counts.failed_offsets:
                found = self._sink.read(part)
                if found != record:
                    self._checkpoint.forget(part, msgspec.json.encode(found))
                record = found
            published[part] = record
        return published

    def _reopen(self) -> dict[int, list[RowScores]]:
        """Take back parts with failed rows, to be written again; their files stay until then."""
        failed = [part for part, known in self._published.items() if known.counts.failed_offsets]
        if failed:
            reopen(self._claim)
        self._superseded = {part: self._published.pop(part) for part in failed}
        return {part: self._rows_of(part) for part in failed}

    def _rows_of(self, part: int) -> list[RowScores]:
        """The rows of a published part, with what `top_n` cut off where that is kept."""
        rows = self._sink.rows(part, part * self._rows_per_part)
        kept = self._side_files.scores(self._sink.name(part)) or [None] * len(rows)
        return [
            row if scores is None else msgspec.structs.replace(row, relevance_scores=scores)
            for row, scores in zip(rows, kept, strict=True)
        ]

    def _score(self, key: str | None) -> None:
        """Send what is missing. Raises what ended it early, once all that came is on disk."""
        url = self._config.endpoint.base_url or self._config.provider.base_url
        server = nullcontext(url) if url else local_server()
        with server as base_url, closing(self._checkpoint), _rarely_collected():
            halt = self._in_loop(self._send(base_url, key if url else None))
        reason = halt.reason or self._checkpoint.error
        in_time = isinstance(reason, DeadlineReached) and not self._some_are_missing
        if reason is not None and not in_time:
            raise reason
        assert not self._some_are_missing, "a part is missing, and nobody said why"

    async def _send(self, base_url: str, key: str | None) -> Halt:
        self._halt = Halt()
        self._feed = self._feed_of_missing()
        self._finished: asyncio.Queue[Part | None] = asyncio.Queue()
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
            coordinator_key(),
            self._request.shard,
            rate,
            self._halt.unless_halted,
        )
        with self._signals.told_to(stop), suppress(Halted):
            async with (
                self._connect(
                    base_url.rstrip("/") + self._config.provider.path,
                    headers,
                    timeout_seconds=endpoint.timeout_seconds,
                    max_in_flight=rate.max_in_flight,
                ) as transport,
                share as leasing,
            ):
                await self._settle_all(transport, leasing)
        return self._halt

    async def _settle_all(self, transport: Transport, leasing: Leasing | None) -> None:
        config, halt, in_flight = self._config, self._halt, self._config.rate.max_in_flight
        self._throttle = Throttle(
            self._rate,
            max_outage_seconds=config.endpoint.max_outage_seconds,
            held=leasing.holding if leasing else None,
        )
        series = Series(self._claim.state, self._rate.requests_per_minute, time.monotonic())
        link = Link(
            config, transport, self._throttle, self._budget(), self._checkpoint, halt, series
        )
        sender = Sender(
            link,
            max_in_flight=in_flight,
            halt=halt,
            random=Random(),
            price=config.price,
            whole=config.endpoint.scores_lists,
        )
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(self._publish())
            ticking = group.create_task(self._tick(series))
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
            ticking.cancel()
            keeping.cancel()
        waited = {**self._throttle.waited_seconds, "input": self._feed.waited_seconds}
        self._limited_by = self._figures.limited_by(waited)

    def _storage_failed(self, error: BatchrankError) -> None:
        self._halt.set(error, drain_seconds=0)
        self._durable.set()

    def _feed_of_missing(self) -> Feed:
        """The rows of the parts that are not published."""
        exact = self._config.rate.tokens_per_minute > 0 or self._request.max_cost_usd is not None
        size = self._rows_per_part
        missing = [part for part in self._parts if part not in self._published]
        ranges = []
        for _, run in groupby(enumerate(missing), lambda placed: placed[1] - placed[0]):
            parts = [part for _, part in run]  # one after another
            ranges.append((parts[0] * size, min((parts[-1] + 1) * size, self._rows)))
        planner = planner_of(self._config, exact=exact)
        return Feed(self._source, planner, ranges, size, self._known, self._again)

    def _budget(self) -> Budget:
        """What may be spent. An earlier session that was killed is taken to have used its lease."""
        cap = self._request.max_cost_usd
        shards = 1 if self._claim.shard is None else self._claim.shard.of
        units = inf if cap is None else self._config.price.affordable(cap / shards)
        spent = self._figures.spent.units + self._figures.spent.units_at_risk
        return Budget(units, max(spent, self._checkpoint.leased))

    async def _plans(self) -> AsyncGenerator[RequestPlan, None]:
        """The plans that no committed answer settles, as fast as they are taken."""
        try:
            async with aclosing(self._plans_of_bands()) as plans:
                async for plan in plans:
                    yield plan
            async with aclosing(self._feed.chunks()) as chunks:
                async for chunk, planned in chunks:
                    part = chunk.first // self._rows_per_part
                    await self._room_for(part)
                    await self._ahead.turn_to(part)
                    self._assembly.keep(chunk.first, chunk.kept)
                    for plan in (plan for row in planned for plan in self._begin(row)):
                        if self._ahead.awaits(plan):
                            continue
                        outcome = self._ahead.outcome(plan)
                        if outcome is None:
                            yield plan
                        else:
                            self._finish(*self._assembly.settle(outcome))
        except BatchrankError as error:
            self._halt.set(error)

    async def _plans_of_bands(self) -> AsyncGenerator[RequestPlan, None]:
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
                        for plan in plans:
                            yield plan

    def _missing(self, row: PlannedRow) -> Sequence[RequestPlan]:
        """The plans of a row without an answer that are to be settled."""
        reopened = self._reopened.get(row.index // self._rows_per_part)
        if reopened is None:
            return row.plans
        before = widened(reopened[row.index % self._rows_per_part], row.candidates)
        known = outcomes_before(row.plans, before)
        return [plan for plan in row.plans if plan.plan_id not in known]

    def _begin(self, row: PlannedRow) -> Sequence[RequestPlan]:
        """Expect a row; the plans that are to be settled, which in a part that was published before
        are those without a score.
        """
        self._ahead.begin(row)
        reopened = self._reopened.get(row.index // self._rows_per_part)
        if reopened is None:
            self._finish(self._assembly.begin(row))
            return row.plans if self._again is None else complete(row)
        before = widened(reopened[row.index % self._rows_per_part], row.candidates)
        before = msgspec.structs.replace(before, pairs=row.pairs)
        if not before.failed_requests:
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
        while not self._assembly.has(part) and self._unpublished >= MAX_OPEN_PARTS:
            self._part_left.clear()
            await self._part_left.wait()

    @property
    def _unpublished(self) -> int:
        return self._assembly.open_parts + self._finished.qsize()

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
                self._finished.put_nowait(part)

    async def _publish(self) -> None:
        """Publish finished parts one after the other. After a failed write nothing more is sent."""
        if self._rows == 0:
            self._finish(Part(0, 0, [], 0, [self._source.empty()]))
        while (part := await self._finished.get()) is not None:
            try:
                await self._answers_are_durable()
                record = await asyncio.to_thread(self._write, part)
            except BatchrankError as error:
                self._halt.set(error)
                continue
            self._published[part.index] = record
            _log.info("%s published: %d rows", record.name, record.counts.rows)
            self._checkpoint.forget(part.index, msgspec.json.encode(record))
            self._part_left.set()

    def _write(self, part: Part) -> PartRecord:
        """The side file comes first: there is no part then that a later run cannot reuse."""
        rows = part.finished()
        if self._config.output.reusable:
            self._side_files.publish(self._sink.name(part.index), rows)
        return self._sink.publish(part.index, rows, part.kept)

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

    async def _tick(self, series: Series) -> None:
        try:
            while True:
                if self._deadline is not None and self._deadline.reached:
                    self._halt.set(self._deadline.missed(), DRAIN_SECONDS)
                done = self._rows_before + self._assembly.rows_done + self._ahead.rows
                progress = self._figures.progress(done)
                self._watch(progress)
                write_live(self._claim.state, progress)
                series.tick(time.monotonic())
                await asyncio.sleep(TICK_SECONDS)
        finally:
            series.end(time.monotonic())

    def _too_many_failed(self) -> RowsFailed | None:
        if self._claim.shard is not None:  # whoever finishes the whole counts them
            return None
        allowed = self._request.max_failed_rows
        return too_many_failed(self._claim.folder, self._published.values(), allowed)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """Look for garbage in circles once in 50,000 objects instead of 700, and only among those made
    since: a request makes some thirty that die by themselves, and the search took a tenth of a
    run's time (1.2 s of 20,000 requests).
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

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
    aclosing,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from itertools import chain, groupby
from math import ceil, inf
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import uvloop

from batchrank.assembly import Assembly, Part, outcomes_before, widened
from batchrank.budget import Budget
from batchrank.checkpoint import Answer, Checkpoint
from batchrank.claim import RECEIPT, Claim, Fingerprint, claimed, state_of
from batchrank.config import JobConfig, check_price, key_of
from batchrank.dispatch import DRAIN_SECONDS, Halt, Sender, dispatch
from batchrank.errors import (
    BatchrankError,
    ExitCode,
    InputBad,
    RowsFailed,
    Stopped,
)
from batchrank.feed import Feed
from batchrank.figures import TICK_SECONDS, Figures
from batchrank.link import Link, encode
from batchrank.places import Place
from batchrank.planning import Planner
from batchrank.records import Failed, Outcome, PlannedRow, RequestPlan, RowScores, row_of
from batchrank.report import Progress, Receipt, total, write_live
from batchrank.schema import Columns
from batchrank.series import Series
from batchrank.server.child import local_server
from batchrank.shapes import Inputs, open_inputs
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
    """What a run is asked besides its configuration. `limit_rows` 0: all rows."""

    inputs: Sequence[str]
    queries: str | None = None
    corpus: str | None = None
    out: Place
    state_dir: Path | None = None
    restart: bool = False
    limit_rows: int = 0
    max_cost_usd: float | None = None
    max_failed_rows: int = 0
    retry_failed: bool = False


def columns_of(config: JobConfig) -> Columns:
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
    state = state_of(request.out, request.state_dir)
    inputs = Inputs(request.inputs, request.queries, request.corpus)
    source = open_inputs(inputs, columns_of(config))
    if request.restart or not state.exists():
        _ = source.total_rows  # bad input is refused before there is an output of it, or none left
    fingerprint = Fingerprint(list(source.files), request.limit_rows, config.deciding())
    with claimed(request.out, state, fingerprint, restart=request.restart) as claim:
        if claim.finished and not request.retry_failed:
            return finished_receipt(claim.folder)
        rows = min(source.total_rows, request.limit_rows or source.total_rows)
        session = _Run(config, request, source, rows, claim, watch, connect, in_loop)
        return session.to_the_end(key, signals)


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
        self._part_count = max(1, ceil(rows / self._rows_per_part))
        self._sink = Sink(
            claim.folder,
            claim.state,
            parts=self._part_count,
            top_n=config.output.top_n,
            compression=config.output.compression,
            request_ids=config.endpoint.unite_rows,
        )
        self._checkpoint = Checkpoint(claim.database)
        self._figures = Figures(config, rows, self._checkpoint.spent)
        self._answers = {
            plan: answer
            for plan, answer in self._checkpoint.answers().items()
            if not (request.retry_failed and isinstance(answer.outcome, Failed))
        }
        self._published = self._parts_that_exist()
        self._superseded: dict[int, PartRecord] = {}
        self._reopened = self._reopen() if request.retry_failed else {}
        self._rows_before = total(self._published.values(), "rows")
        united = config.endpoint.unite_rows
        self._again = Again(chain(*self._reopened.values())) if united else None
        self._assembly = Assembly(rows, self._rows_per_part, keep_ids=united)
        _log.info("%d rows, %d of %d parts published", rows, len(self._published), self._part_count)
        self._limited_by: str | None = None

    def to_the_end(self, key: str | None, signals: Signals | None) -> Receipt:
        """Score what is missing, then write the receipt, and `_SUCCESS` if all is well."""
        error: BatchrankError | None = None
        with nullcontext(signals) if signals else heard() as self._signals:
            try:
                if len(self._published) < self._part_count:
                    self._score(key)
                error = self._too_many_failed()
            except BatchrankError as raised:
                error = raised
            self._signals.ending()
            there = {**self._superseded, **self._published}
            files, limited_by = self._source.files, self._limited_by
            receipt = self._figures.receipt(error, files, there, limited_by)
            content = msgspec.json.format(msgspec.json.encode(receipt))
            write_whole(self._claim.folder / RECEIPT, content, self._claim.state)
            if error is None:
                write_whole(self._claim.folder / SUCCESS, b"", self._claim.state)
        return receipt

    def _parts_that_exist(self) -> dict[int, PartRecord]:
        """A part that exists is done, also when the run was killed before it could note that: at
        its first writing, or, where rows of it had failed, at its second.
        """
        recorded, there = self._checkpoint.parts(), self._sink.published()
        published = {}
        for part in range(self._part_count):
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
            (self._claim.folder / SUCCESS).unlink(missing_ok=True)
        self._superseded = {part: self._published.pop(part) for part in failed}
        return {part: self._sink.rows(part, part * self._rows_per_part) for part in failed}

    def _score(self, key: str | None) -> None:
        """Send what is missing. Raises what ended it early, once all that came is on disk."""
        url = self._config.endpoint.base_url or self._config.provider.base_url
        server = nullcontext(url) if url else local_server()
        with server as base_url, closing(self._checkpoint), _rarely_collected():
            halt = self._in_loop(self._send(base_url, key if url else None))
        reason = halt.reason or self._checkpoint.error
        if reason is not None:
            raise reason
        assert len(self._published) == self._part_count, "a part is missing, and nobody said why"

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
        with self._signals.told_to(stop):
            async with self._connect(
                base_url.rstrip("/") + self._config.provider.path,
                headers,
                timeout_seconds=endpoint.timeout_seconds,
                max_in_flight=rate.max_in_flight,
            ) as transport:
                await self._settle_all(transport)
        return self._halt

    async def _settle_all(self, transport: Transport) -> None:
        config, halt, in_flight = self._config, self._halt, self._config.rate.max_in_flight
        self._throttle = Throttle(
            config.rate, max_outage_seconds=config.endpoint.max_outage_seconds
        )
        series = Series(self._claim.state, config.rate.requests_per_minute, time.monotonic())
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
            await dispatch(
                self._plans(),
                settle=sender.settle,
                record=self._record,
                max_in_flight=in_flight,
                halt=halt,
            )
            self._finished.put_nowait(None)
            await publishing
            ticking.cancel()
        waited = {**self._throttle.waited_seconds, "input": self._feed.waited_seconds}
        self._limited_by = self._figures.limited_by(waited)

    def _storage_failed(self, error: BatchrankError) -> None:
        self._halt.set(error, drain_seconds=0)
        self._durable.set()

    def _feed_of_missing(self) -> Feed:
        """The rows of the parts that are not published."""
        exact = self._config.rate.tokens_per_minute > 0 or self._request.max_cost_usd is not None
        size = self._rows_per_part
        ranges = []
        for missing, run in groupby(
            range(self._part_count), lambda part: part not in self._published
        ):
            parts = list(run)
            if missing:
                ranges.append((parts[0] * size, min((parts[-1] + 1) * size, self._rows)))
        planner = planner_of(self._config, exact=exact)
        return Feed(self._source, planner, ranges, size, self._again)

    def _budget(self) -> Budget:
        """What may be spent. An earlier session that was killed is taken to have used its lease."""
        cap = self._request.max_cost_usd
        units = inf if cap is None else self._config.price.affordable(cap)
        spent = self._figures.spent.units + self._figures.spent.units_at_risk
        return Budget(units, max(spent, self._checkpoint.leased))

    async def _plans(self) -> AsyncGenerator[RequestPlan, None]:
        """The plans that no committed answer settles, as fast as they are taken."""
        try:
            async with aclosing(self._feed.chunks()) as chunks:
                async for chunk, planned in chunks:
                    await self._room_for(chunk.first // self._rows_per_part)
                    self._assembly.keep(chunk.first, chunk.kept)
                    for plan in (plan for row in planned for plan in self._begin(row)):
                        answer = self._answers.pop(plan.plan_id, None)
                        if answer is None:
                            yield plan
                        else:
                            self._finish(*self._assembly.settle(_checked(answer, plan)))
        except BatchrankError as error:
            self._halt.set(error)

    def _begin(self, row: PlannedRow) -> Sequence[RequestPlan]:
        """Expect a row; the plans that are to be settled, which in a part that was published before
        are those without a score.
        """
        reopened = self._reopened.get(row.index // self._rows_per_part)
        if reopened is None:
            self._finish(self._assembly.begin(row))
            return row.plans if self._again is None else complete(row)
        before = widened(reopened[row.index % self._rows_per_part], row.candidates)
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
        self._checkpoint.record(part, plan.digest, outcome)
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
                record = await asyncio.to_thread(
                    self._sink.publish, part.index, part.finished(), part.kept
                )
            except BatchrankError as error:
                self._halt.set(error)
                continue
            self._published[part.index] = record
            _log.info("%s published: %d rows", record.name, record.counts.rows)
            self._checkpoint.forget(part.index, msgspec.json.encode(record))
            self._part_left.set()

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
                done = self._rows_before + self._assembly.rows_done
                progress = self._figures.progress(done)
                self._watch(progress)
                write_live(self._claim.state, progress)
                series.tick(time.monotonic())
                await asyncio.sleep(TICK_SECONDS)
        finally:
            series.end(time.monotonic())

    def _too_many_failed(self) -> RowsFailed | None:
        failed = sum(len(part.counts.failed_offsets) for part in self._published.values())
        allowed = self._request.max_failed_rows
        if failed <= allowed:
            return None
        return RowsFailed(
            f"{failed:,} rows failed, more than --max-failed-rows {allowed:,}; their reasons are "
            f'in column "error" of {self._claim.folder}.'
        )


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


def _checked(answer: Answer, plan: RequestPlan) -> Outcome:
    """A committed outcome, if it was given to these very texts."""
    if answer.digest != plan.digest:
        raise InputBad(
            f"row {row_of(plan.plan_id)} is not what it was when it was scored. "
            "Choose a new output, or pass --restart."
        )
    return answer.outcome

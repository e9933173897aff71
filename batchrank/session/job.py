"""A run from the outside: what is refused, whose output it is, and what is finished already.

What is left of it is done by a `session`.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import uvloop
from msgspec.structs import replace

from batchrank.config.providers import EMBEDDED_SCORER
from batchrank.config.settings import JobConfig, check_coordinator, check_price, key_of
from batchrank.errors import ConfigInvalid, InputBad, InputMissing, OutputUnusable
from batchrank.files.paths import Place, is_same
from batchrank.input import Inputs, open_inputs
from batchrank.output.part_files import is_whole
from batchrank.output.receipt import Progress, Receipt
from batchrank.output.receipt_file import RECEIPT, read_receipt
from batchrank.reuse.earlier_rows import Previous
from batchrank.reuse.index import identity_of, opened
from batchrank.sending.descriptors import fit_in_flight
from batchrank.sending.http_client import connected
from batchrank.session.finish_shards import finished_by
from batchrank.session.origin import write_origin
from batchrank.session.published_rows import check_published_rows
from batchrank.session.request import Request, allowed_by, check_numbers, check_rows, columns_of
from batchrank.session.session import Connect, InLoop, Session
from batchrank.session.signals import Signals
from batchrank.state.checkpoint import renew
from batchrank.state.fingerprint import Fingerprint, is_larger
from batchrank.state.output_folder import Claim, claimed, state_of
from batchrank.state.shard_folder import (
    begun_of_finished,
    claimed_shard,
    finished_run,
    grow,
    reopen,
)
from batchrank.state.shards import Shard, shard_of, share_of

_log = logging.getLogger(__name__)

NOBODY_CHOSE = (
    f"nobody chose an endpoint: the {EMBEDDED_SCORER} gives the scores, not a hosted model. Choose "
    "one with --provider (see `batchrank providers`), --base-url or a configuration that sets "
    'endpoint.provider; "local" is this one, without this line.'
)

__all__ = ["Request", "run"]


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

    Returns the receipt, which is also written as _run.json, with the exit code and message of what
    ended the run early, if anything did. Raises what keeps it from beginning. `watch` is told in a
    thread how far the run is, now and then. `signals` are those that the main thread hears, where
    the run is not in it. `connect` reaches the endpoint and `in_loop` passes the time: a test may
    stand in for either.
    """
    key = key_of(config)
    check_numbers(request)
    if request.max_cost_usd is not None:
        check_price(config)
    if request.priority_column is not None and config.endpoint.unite_rows:
        raise ConfigInvalid(
            "--priority-column and endpoint.unite_rows: rows of one query are sent together, so "
            "none of them can go first. Leave one of the two out."
        )
    if request.coordinator is not None:
        check_coordinator(request.coordinator)
    shard = None if request.shard is None else shard_of(*request.shard)
    if shard is not None and request.coordinator is None:
        share_of(config.rate, shard.of)  # refused before there is an output
    in_flight = fit_in_flight(config.rate.max_in_flight)
    config = replace(config, rate=replace(config.rate, max_in_flight=in_flight))
    state = state_of(request.out, request.state_dir, shard)
    inputs = Inputs(request.inputs, request.queries, request.corpus)
    source = open_inputs(inputs, columns_of(config, request.priority_column))
    # Bad input is refused before there is an output of it, or none left.
    check_rows(request.inputs, source, min_rows=request.min_rows, allow_empty=request.allow_empty)
    anew = request.restart or request.retry_failed
    previous, identity = _reused(config, request, None if anew else state)
    if config.is_embedded and not config.endpoint_chosen:
        _log.warning(NOBODY_CHOSE)
    deciding = {"endpoint.embedded": config.is_embedded, **config.deciding(), "--reuse": identity}
    rows = min(source.total_rows, request.limit_rows or source.total_rows)
    fingerprint = Fingerprint(list(source.files), request.limit_rows, deciding, rows=rows)
    if shard is not None:
        fingerprint = replace(fingerprint, shards=shard.of)
    if request.reuse and not previous:
        begun = begun_of_finished(request.out, state)
        if begun is not None and is_larger(fingerprint, begun):
            _ = _reused(config, request, None)  # raises: the rows to come want it after all
    done = None if anew else finished_run(request.out, fingerprint)
    if done is not None:
        check_published_rows(request.out, source, config, rows, done)
        whole = _whole_receipt(request.out)
        if whole is not None:
            return whole
    with _claimed(request, state, fingerprint, shard) as claim:
        begun = claim.begun
        if begun and check_published_rows(request.out, source, config, rows, begun, shard):
            renew(claim.database, msgspec.json.encode(replace(begun, files=fingerprint.files)))
        if begun and is_larger(fingerprint, begun):
            grow(claim, fingerprint, begun)
            claim = replace(claim, finished=False)
        whole = _whole_receipt(request.out) if claim.finished else None
        if whole is not None and not request.retry_failed:
            return whole
        if claim.finished and whole is None:
            reopen(claim)
        write_origin(claim.state, request, config)
        session = Session(config, request, source, rows, claim, previous, watch, connect, in_loop)
        receipt = session.to_the_end(key, signals)
    return receipt if shard is None else finished_by(receipt, request.out, allowed_by(request))


def _claimed(
    request: Request, state: Path, fingerprint: Fingerprint, shard: Shard | None
) -> AbstractContextManager[Claim]:
    if shard is None:
        return claimed(
            request.out, state, fingerprint, restart=request.restart, agree=request.agree
        )
    return claimed_shard(
        request.out, shard, state, fingerprint, restart=request.restart, agree=request.agree
    )


def _reused(
    config: JobConfig, request: Request, state: Path | None
) -> tuple[list[Previous], str | None]:
    """Open the earlier outputs whose scores are to be taken; also return what they are known by.
    With a `state` they may be gone by now, if the output is finished.
    """
    if any(is_same(one, request.out) for one in request.reuse):
        raise ConfigInvalid(f"{request.out}: is to be reused and written; --reuse names another.")
    try:
        previous = [opened(one, config, rows_only=request.reuse_rows_only) for one in request.reuse]
    except (InputMissing, InputBad):
        done = None if state is None else begun_of_finished(request.out, state)
        if done is None:
            raise
        return [], done.config.get("--reuse")
    return previous, identity_of(previous)


def _whole_receipt(out: Place) -> Receipt | None:
    """Read the receipt of a finished output; None where it or a part went away or is damaged."""
    if (out / RECEIPT).is_dir():
        raise OutputUnusable(f"{out / RECEIPT}: is a folder, where the receipt should be. Move it.")
    try:
        receipt = read_receipt(out)
    except OutputUnusable:
        receipt = None
    if receipt is None:
        _log.warning(
            "%s: its receipt is lost or damaged; it is written anew from what is there", out
        )
        return None
    return receipt if is_whole(out, receipt.parts) else None

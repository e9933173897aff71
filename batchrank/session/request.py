"""What a run is asked, and how its configuration reads an input and plans its requests."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from batchrank.config.settings import JobConfig
from batchrank.errors import ConfigInvalid, InputBad
from batchrank.files.paths import Place
from batchrank.input.parquet_rows import Source
from batchrank.input.schema import Columns
from batchrank.planning.planner import Planner
from batchrank.sending.paced_endpoint import encode
from batchrank.session.deadline import Deadline
from batchrank.session.finish_shards import Allowed
from batchrank.state.losses import Agree, agree


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked besides its configuration. `limit_rows` 0: all rows. An input with fewer
    than `min_rows`, or none unless `allow_empty`, is refused. `shard` (i, N): do the i-th of N
    workers' share, counted from 0. A `restart` must `agree` to what it throws away.
    """

    inputs: Sequence[str]
    queries: str | None = None
    corpus: str | None = None
    out: Place
    state_dir: Path | None = None
    reuse: Sequence[Place] = ()
    reuse_rows_only: bool = False
    restart: bool = False
    agree: Agree = agree
    limit_rows: int = 0
    min_rows: int = 0
    allow_empty: bool = False
    max_cost_usd: float | None = None
    max_failed_rows: int = 0
    max_partial_rows: int | None = None
    retry_failed: bool = False
    shard: tuple[int, int] | None = None
    coordinator: str | None = None
    finish_by: Deadline | None = None
    priority_column: str | None = None


_MOST_ROWS = 1 << 62
_MOST_USD = 1e12


def check_numbers(request: Request) -> None:
    """Refuse numbers of a program that mean nothing: below 0, or no number. Raises
    `ConfigInvalid`.
    """
    for name in ("limit_rows", "min_rows", "max_failed_rows", "max_partial_rows"):
        rows = getattr(request, name)
        if rows is not None and not 0 <= rows <= _MOST_ROWS:
            raise ConfigInvalid(f"{name} is {rows}; expected a number of rows, 0 or more.")
    cost = request.max_cost_usd
    if cost is not None and not 0 <= cost <= _MOST_USD:
        raise ConfigInvalid(f"max_cost_usd is {cost}; expected dollars, 0 or more.")


def allowed_by(request: Request) -> Allowed:
    """Return how many rows of a run may fail or be partial."""
    return Allowed(request.max_failed_rows, request.max_partial_rows)


def check_rows(inputs: Sequence[str], source: Source, *, min_rows: int, allow_empty: bool) -> None:
    """Refuse an input that is smaller than it may be. Raises `InputBad`."""
    rows = source.total_rows
    name = inputs[0] + (f" and {len(inputs) - 1:,} more" if len(inputs) > 1 else "")
    if rows < min_rows:
        raise InputBad(
            f"{name}: the input has {rows:,} rows, fewer than --min-rows {min_rows:,}. Nothing was "
            "sent. Is what writes it done?"
        )
    if not rows and not allow_empty:
        raise InputBad(
            f"{name}: the input has no rows. Nothing was sent. Is what writes it done? Pass "
            "--allow-empty if it may be empty."
        )


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
        config.chosen_columns,
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

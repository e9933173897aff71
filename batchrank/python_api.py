"""From Python: a frame in and a frame out, or a whole run; the same engine as the command's.

The run has a thread of its own, so that it can be called where an event loop is at work already, as
in a notebook. Ctrl-C, or a notebook's stop button, ends it as it ends the command: drained, and to
be gone on with where `out` was given.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchrank.analysis.output_reader import opened
from batchrank.cli.logs import warnings_to_stderr
from batchrank.cli.progress_bar import bar
from batchrank.config.settings import JobConfig, check_known, load, sections_of
from batchrank.errors import BatchrankError, ExitCode, InputBad
from batchrank.files.paths import Place, place, plain
from batchrank.files.text_form import as_text, has_text_form, is_known_to_polars, shown
from batchrank.output.parts import OPEN
from batchrank.output.receipt import Receipt
from batchrank.session import job
from batchrank.session.deadline import deadline
from batchrank.session.finish_shards import Allowed
from batchrank.session.finish_shards import finish as finished
from batchrank.session.signals import heard
from batchrank.state.losses import agree, refuse_losses

Configuration = JobConfig | Mapping[str, Any] | str | Path | None
"""A TOML file's path, its sections as a mapping, or what `batchrank.config.load` returns."""


def rerank(
    source: Any,
    *,
    config: Configuration = None,
    queries: Any = None,
    corpus: Any = None,
    out: str | Path | None = None,
    state_dir: str | Path | None = None,
    reuse: str | Path | Sequence[str | Path] | None = None,
    reuse_rows_only: bool = False,
    limit_rows: int = 0,
    min_rows: int = 0,
    allow_empty: bool = False,
    max_cost_usd: float | None = None,
    progress: bool = True,
    **settings: Any,
) -> pl.DataFrame:
    """Score a frame (polars, pyarrow, pandas), or files by their path, and return the output.

    `settings` are keys of the configuration by their names: provider="dashscope", top_n=10.
    `queries` and `corpus` go beside a run of ids; `reuse` is an earlier output, or several.
    An input with fewer than `min_rows`, or none unless `allow_empty`, is refused. Rows that failed
    are in the output, with their reason in `error`. With `out` the scores are kept there too, and
    the same call goes on where an earlier one stopped; without it, when
    `max_cost_usd` is reached, what was bought is returned: rows without an answer have the status
    "open". Raises `BatchrankError`, without `out` with what was bought in its `scores`.
    """
    if reuse_rows_only and not reuse:
        raise ValueError("reuse_rows_only needs reuse, the folder of an earlier output")
    with TemporaryDirectory(prefix="batchrank-") as scratch:
        folder = place(str(out)) if out is not None else Path(scratch) / "out"
        request = job.Request(
            inputs=[_path(source, Path(scratch), "frame")],
            queries=None if queries is None else _path(queries, Path(scratch), "queries"),
            corpus=None if corpus is None else _path(corpus, Path(scratch), "corpus"),
            out=folder,
            state_dir=None if state_dir is None else Path(state_dir),
            reuse=_places(reuse),
            reuse_rows_only=reuse_rows_only,
            limit_rows=limit_rows,
            min_rows=min_rows,
            allow_empty=allow_empty,
            max_cost_usd=max_cost_usd,
            max_failed_rows=1 << 62,
        )
        receipt = _ended(_configured(config, settings), request, progress)
        if receipt.exit_code and out is not None:
            raise _error(receipt)
        if receipt.exit_code:
            return _bought(folder, receipt)
        return _output(folder, receipt)


def run(
    config: Configuration,
    inputs: str | Path | list[str | Path],
    out: str | Path,
    *,
    queries: str | Path | None = None,
    corpus: str | Path | None = None,
    state_dir: str | Path | None = None,
    reuse: str | Path | Sequence[str | Path] | None = None,
    reuse_rows_only: bool = False,
    restart: bool = False,
    yes: bool = False,
    retry_failed: bool = False,
    limit_rows: int = 0,
    min_rows: int = 0,
    allow_empty: bool = False,
    max_cost_usd: float | None = None,
    max_failed_rows: int = 0,
    max_partial_rows: int | None = None,
    shard: tuple[int, int] | None = None,
    finish_by: str | None = None,
    priority_column: str | None = None,
    progress: bool = False,
) -> Receipt:
    """Score files into `out`, or go on where an earlier run stopped: `batchrank run` as a function.

    `restart` throws away what `out` holds; it refuses that, and says what would go, without `yes`.
    `shard` (i, N): be the i-th of N workers on one `out`, counted from 0; see `finish`.

    Returns the receipt, whose `exit_code` and `message` say how the run ended. Raises
    `BatchrankError` for what keeps it from beginning, ValueError for a `finish_by` that is no time
    to come.
    """
    request = job.Request(
        inputs=[str(one) for one in (inputs if isinstance(inputs, list) else [inputs])],
        queries=None if queries is None else str(queries),
        corpus=None if corpus is None else str(corpus),
        out=place(str(out)),
        state_dir=None if state_dir is None else Path(state_dir),
        reuse=_places(reuse),
        reuse_rows_only=reuse_rows_only,
        restart=restart,
        agree=agree if yes else partial(refuse_losses, out=out),
        retry_failed=retry_failed,
        limit_rows=limit_rows,
        min_rows=min_rows,
        allow_empty=allow_empty,
        max_cost_usd=max_cost_usd,
        max_failed_rows=max_failed_rows,
        max_partial_rows=max_partial_rows,
        shard=shard,
        finish_by=None if finish_by is None else deadline(finish_by),
        priority_column=priority_column,
    )
    return _ended(_configured(config, {}), request, progress)


def finish(
    out: str | Path, *, max_failed_rows: int = 0, max_partial_rows: int | None = None
) -> Receipt:
    """Close an output that was filled in shards: `batchrank finish` as a function. The last worker
    does it by itself. Raises `BatchrankError` while a shard is not finished, or for what is wrong.
    """
    return finished(place(str(out)), Allowed(max_failed_rows, max_partial_rows))


def _ended(config: JobConfig, request: job.Request, progress: bool) -> Receipt:
    with (
        warnings_to_stderr(),
        bar(wanted=progress) as watch,
        heard() as signals,
        ThreadPoolExecutor(1, "batchrank") as thread,
    ):
        return thread.submit(job.run, config, request, watch, signals).result()


def _configured(config: Configuration, settings: Mapping[str, Any]) -> JobConfig:
    over = sections_of(settings)
    if config is None:
        return load(None, over)
    if isinstance(config, str | Path):
        return load(Path(config), over)
    if isinstance(config, JobConfig) and not settings:
        return config
    given = dict(msgspec.to_builtins(config))
    chosen = given.pop("endpoint_chosen", True)
    if isinstance(config, JobConfig):
        del given["named_columns"]
        given["input"] = {key: given["input"][key] for key in config.chosen_columns}
    check_known(given, "config")
    names = {**given, **over}
    loaded = load(None, {name: {**given.get(name, {}), **over.get(name, {})} for name in names})
    if chosen or load(None, over).endpoint_chosen:
        return loaded
    return msgspec.structs.replace(loaded, endpoint_chosen=False)


def _places(reuse: str | Path | Sequence[str | Path] | None) -> list[Place]:
    """Return the earlier outputs that an argument names: one, several or none."""
    given = [reuse] if isinstance(reuse, str | PathLike) else [] if reuse is None else reuse
    if not isinstance(given, list | tuple) or not all(isinstance(x, str | PathLike) for x in given):
        raise TypeError(
            "reuse is the folder of an earlier output (or several); keep one with out=…"
        )
    return [place(str(one)) for one in given]


def _path(source: Any, folder: Path, name: str) -> str:
    """Where the engine reads a frame from: a file that is gone after the call."""
    if isinstance(source, str | Path):
        return str(source)
    if not hasattr(source, "__arrow_c_stream__"):
        raise InputBad(
            f"{type(source).__name__}: no frame; expected polars, pyarrow or pandas, or a path."
        )
    path = folder / f"{name}.parquet"
    try:
        if isinstance(source, pa.Table) and not all(map(is_known_to_polars, source.schema.types)):
            pq.write_table(source, path, row_group_size=10_000)
        else:
            pl.DataFrame(source).write_parquet(path, row_group_size=10_000)
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise InputBad(f"{type(source).__name__}: cannot be read: {plain(error)}") from error
    return str(path)


def _output(folder: Place, receipt: Receipt) -> pl.DataFrame:
    return pl.concat([_frame((folder / part.name).read_bytes()) for part in receipt.parts])


def _frame(part: bytes) -> pl.DataFrame:
    if all(map(is_known_to_polars, pq.read_schema(BytesIO(part)).types)):
        return pl.read_parquet(BytesIO(part))
    return _readable(pq.read_table(BytesIO(part)))


def _readable(table: pa.Table) -> pl.DataFrame:
    """A frame of a table; columns that polars has no type for are text."""
    for at, field in enumerate(table.schema):
        if not is_known_to_polars(field.type):
            column = table.column(at).combine_chunks()
            text = as_text(column) if has_text_form(field.type) else pa.array(shown(column))
            table = table.set_column(at, field.name, text)
    return pl.DataFrame(table)


def _bought(folder: Place, receipt: Receipt) -> pl.DataFrame:
    """Return all rows of a run that ended early and whose output will be gone: those without an
    answer are `open`. Raises what ended it, with the rows, unless that was the cost.
    """
    output = opened(folder, everything=True)
    batches = [batch for _, batch in output.marked_batches(everything=True)]
    rows = _readable(pa.Table.from_batches(batches))
    left = rows.filter(pl.col("status") == OPEN).height
    words = f'{left:,} of {len(rows):,} rows lack an answer (status "open")'
    if receipt.exit_code == ExitCode.BOUND_REACHED:
        message = (
            f"max_cost_usd is reached: {words}. Keep the scores with out=… to go on from them."
        )
        warnings.warn(message, stacklevel=3)
        return rows
    error = _error(receipt)
    error.args = (
        f"{error} {words}. What was scored is in this exception's scores, and nowhere else.",
    )
    error.scores = rows
    raise error


def _error(receipt: Receipt) -> BatchrankError:
    error = BatchrankError(receipt.message or "")
    error.code = ExitCode(receipt.exit_code)
    return error

"""What a state keeps of a run's input and configuration, to read its answers again without them.

Answers are kept by request, without ids and texts. Whoever reads them plans the input again: so the
state holds where that is, and what decides the plans. Each session writes this anew, since an input
may have moved. No key and no header's value is in it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from batchrank.config.settings import JobConfig
from batchrank.errors import OutputUnusable
from batchrank.input.parquet_rows import input_files
from batchrank.output.parts import write_state_file
from batchrank.session.request import Request

_NAME = "origin.json"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the input of a run is, its configuration, and the earlier outputs that it reuses. Paths
    are absolute.
    """

    inputs: Sequence[str]
    queries: str | None
    corpus: str | None
    config: dict[str, Any]
    reuse: Sequence[str]
    reuse_rows_only: bool

    @property
    def job_config(self) -> JobConfig:
        """The configuration, without headers."""
        return msgspec.convert(self.config, JobConfig)


def write_origin(state: Path, request: Request, config: JobConfig) -> None:
    """Keep where a run's input is. Raises `StorageFailed`."""
    shown = config.shown()
    shown["endpoint"]["headers"] = {}
    origin = Origin(
        inputs=[_absolute(str(file)) for file in input_files(request.inputs)],
        queries=None if request.queries is None else _absolute(request.queries),
        corpus=None if request.corpus is None else _absolute(request.corpus),
        config=shown,
        reuse=[_absolute(str(one)) for one in request.reuse],
        reuse_rows_only=request.reuse_rows_only,
    )
    # Not by msgspec, which has no form for a name that is not UTF-8.
    write_state_file(state / _NAME, json.dumps(msgspec.to_builtins(origin)).encode())


def read_origin(state: Path) -> Origin:
    """Return where the input is of the run whose state this is. Raises `OutputUnusable`."""
    try:
        return msgspec.convert(json.loads((state / _NAME).read_bytes()), Origin)
    except (OSError, ValueError, RecursionError) as error:
        raise OutputUnusable(
            f"{state / _NAME}: does not say where the input is; the next run of it does."
        ) from error


def _absolute(argument: str) -> str:
    return argument if "://" in argument else str(Path(argument).absolute())

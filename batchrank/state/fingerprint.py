"""What a run is known by, and a trial that goes on as the whole: more rows of the same input, into
the same output.

Parts that hold all of their rows stay. The last one of a trial may hold fewer: it is replaced by
one rename once its other rows are scored; its own rows keep their scores. Whatever is interrupted,
a part that has fewer rows than it should is known by that alone. Nothing here reads or writes.
"""

from math import inf
from typing import Any

import msgspec

from batchrank.errors import ConfigInvalid
from batchrank.files.paths import Place
from batchrank.input.parquet_rows import FileIdentity
from batchrank.output.parts import part_name


class Fingerprint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What decides the results of a run, how many rows it has, and shards, if it is in any.

    `own_state`, in an output's marker: the state is in the output itself, or was.
    """

    files: list[FileIdentity]
    limit_rows: int
    config: dict[str, Any]
    shards: int = 0
    rows: int = 0
    own_state: bool = False


def is_larger(now: Fingerprint, begun: Fingerprint) -> bool:
    """Whether a run has more rows than the one that its output was begun with."""
    return _rows(now) > _rows(begun)


def check_limit(out: Place, begun: Fingerprint, now: Fingerprint) -> None:
    """Refuse fewer rows than an output was begun with. Raises `ConfigInvalid`."""
    if _rows(now) < _rows(begun):
        raise ConfigInvalid(
            f"{out}: begun with --limit {begun.limit_rows}, now {now.limit_rows} (0: all rows). "
            "Give at least as many rows to go on, or choose a new output and --reuse this one to "
            "pay nothing twice."
        )
    before, after = _parts(begun), _parts(now)
    if part_name(0, before) != part_name(0, after):
        raise ConfigInvalid(
            f"{out}: begun with {before:,} parts, now {after:,}, whose names have more digits. "
            "Choose a new output, and --reuse this one to pay nothing twice."
        )


def check_unites(out: Place, begun: Fingerprint) -> None:
    """Refuse more rows before all answers are in parts, where rows share requests: which of them do
    depends on how many there are. Raises `ConfigInvalid`.
    """
    if begun.config.get("endpoint.unite_rows"):
        raise ConfigInvalid(
            f"{out}: its first {begun.rows:,} rows are not finished, and which rows share requests "
            f"(endpoint.unite_rows) depends on how many there are. Give --limit {begun.limit_rows} "
            "again to finish them, then the larger one."
        )


def _rows(run: Fingerprint) -> float:
    """The rows of a run; earlier versions kept only what it was limited to."""
    return run.rows or run.limit_rows or inf


def _parts(run: Fingerprint) -> int:
    return max(1, -(-run.rows // int(run.config.get("output.rows_per_part", 1))))

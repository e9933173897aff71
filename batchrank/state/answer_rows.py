"""Answers as rows of the checkpoint's table, and back.

Each row has a seal: SQLite's own check does not look into values, and a flipped bit of a score
would pass it.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import xxhash

from batchrank.records import Dropped, Failed, Outcome, Scored, Share, Spent

TABLE = """
CREATE TABLE answers (
    plan INTEGER PRIMARY KEY, part INTEGER NOT NULL, digest BLOB NOT NULL,
    scores BLOB, requests INTEGER NOT NULL, note TEXT, seal BLOB NOT NULL, shares BLOB, also TEXT
);
CREATE INDEX answers_of_part ON answers (part);
"""
COLUMNS = "plan, digest, scores, requests, note, shares, seal"
"""Those that an answer is read from."""
_ROWS_PER_STATEMENT = 64
"""Older builds of SQLite take 999 values, of which a row has nine."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A committed outcome, and the digest of the texts that it was given to."""

    digest: bytes
    outcome: Scored | Failed


class Settled(msgspec.Struct, frozen=True, gc=False):
    """An outcome to be kept. `also` are the rows that share it with the one of the plan's id."""

    part: int
    digest: bytes
    outcome: Outcome
    also: Sequence[int]


def insertions(items: Sequence[Settled]) -> Iterator[tuple[str, list[object]]]:
    """Yield the statements that write these outcomes, each with its values.

    They are few, and of few lengths: SQLite compiles one for each length.
    """
    rows = [row for item in items if (row := _row(item)) is not None]
    start = 0
    while start < len(rows):
        count = min(_ROWS_PER_STATEMENT, 1 << ((len(rows) - start).bit_length() - 1))
        places = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * count)
        values = [value for row in rows[start : start + count] for value in row]
        yield f"INSERT OR REPLACE INTO answers ({COLUMNS}, part, also) VALUES {places}", values
        start += count


def is_whole(sealed: Sequence[Any], seal: bytes) -> bool:
    """Whether the values of `COLUMNS` but for the seal are what was written."""
    return seal == _seal(*sealed)


def read_answer(
    plan: int,
    digest: bytes,
    scores: bytes | None,
    requests: int,
    note: str | None,
    shares: bytes | None,
) -> Answer:
    """Make an answer of a row that is whole."""
    each = msgspec.msgpack.decode(shares, type=list[Share]) if shares else ()
    if scores is None:
        return Answer(digest, Failed(plan, note or "", Spent(), each))
    values = array("d")
    values.frombytes(scores)
    return Answer(digest, Scored(plan, values, requests, Spent(), note, each))


def _row(item: Settled) -> tuple[object, ...] | None:
    """The values of a row; None for an outcome that settles nothing."""
    values: tuple[int, bytes, bytes | None, int, str | None]
    match item.outcome:
        case Scored(plan_id=plan, relevance_scores=scores, requests=requests, note=note):
            values = (plan, item.digest, scores.tobytes(), requests, note)
        case Failed(plan_id=plan, reason=reason):
            values = (plan, item.digest, None, 0, reason)
        case Dropped():
            return None
    shares = msgspec.msgpack.encode(item.outcome.shares) if item.outcome.shares else None
    also = msgspec.json.encode(item.also).decode() if item.also else None
    return (*values, shares, _seal(*values, shares), item.part, also)


def _seal(*values: object) -> bytes:
    """The digest of a row's values; `shares`, the last, was once no column."""
    sealed = values if values[-1] is not None else values[:-1]
    return xxhash.xxh3_64_digest(msgspec.msgpack.encode(sealed))

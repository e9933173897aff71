"""The fault script: which request is answered wrongly, and how. Pure and repeatable.

A script is TOML: a seed, and any number of `[[fault]]` tables, each with its kind, the kind's own
keys and an optional `where`. The first fault that applies to a request is the one that happens.

    seed = 7

    [[fault]]
    kind = "status"
    where = { probability = 0.05 }
    status = 503
    code = "ModelUnavailable"
    retry_after = 2

    [[fault]]
    kind = "content_refusal"
    where = { marker = "poison" }

Probabilities are drawn from seed, place in the script, content and attempt, not from the order of
arrival: the same requests meet the same faults at any concurrency. `breakage` carries them out.
"""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from batchrank.errors import ConfigInvalid, InputMissing


class Kind(NamedTuple):
    """`scored`: whether the request is scored, and so billed, before its answer breaks; `either`:
    whether a script may say otherwise; `keys`: what a fault of the kind may set.
    """

    scored: bool
    either: bool = False
    keys: frozenset[str] = frozenset()


_ERROR = frozenset({"code", "message", "nested", "retry_after", "retry_after_date"})
_RESULTS = Kind(scored=True)
_RESET = frozenset({"abrupt"})

KINDS = {
    # An error envelope of any status, 200 included.
    "status": Kind(scored=False, either=True, keys=_ERROR | {"status"}),
    # 400 DataInspectionFailed for `where.marker`; `names_document` adds "document index:k".
    "content_refusal": Kind(scored=False, either=True, keys=_ERROR | {"names_document"}),
    # 413, or a 400 that talks of size, over `where.documents_over` or `where.bytes_over`.
    "size_refusal": Kind(scored=False, either=True, keys=_ERROR | {"status"}),
    # A proxy's page, with 502 or any other status.
    "html": Kind(scored=False, either=True, keys=frozenset({"status"})),
    # 307, or another 3xx, to `location`.
    "redirect": Kind(scored=False, either=True, keys=frozenset({"status", "location"})),
    # A connection that ends: before the body is read, before, inside and after the headers.
    "reset_unread": Kind(scored=False, keys=_RESET),
    "reset_before_headers": Kind(scored=False, either=True, keys=_RESET),
    "reset_inside_headers": Kind(scored=True, either=True, keys=_RESET),
    "reset_inside_body": Kind(scored=True, either=True, keys=_RESET),
    # The request is read, and no answer ever comes.
    "stall": Kind(scored=False, either=True),
    # A right answer, after so many seconds, or at so many bytes a second.
    "slow": Kind(scored=True, keys=frozenset({"seconds"})),
    "drip": Kind(scored=True, keys=frozenset({"bytes_per_second"})),
    # A right answer behind so many megabytes of blanks, compressed although nobody asked.
    "gzip_bomb": Kind(scored=True, keys=frozenset({"megabytes"})),
    # The first half of the answer under an honest length, and a body that never was JSON.
    "truncated_body": Kind(scored=True),
    "bad_json": Kind(scored=True, either=True),
    # Results that do not fit the request. The order of `shuffled` is the only harm in it.
    "shuffled": _RESULTS,
    "partial": _RESULTS,
    "duplicate_index": _RESULTS,
    "index_out_of_range": _RESULTS,
    "negative_index": _RESULTS,
    "nan_score": _RESULTS,
    "infinite_score": _RESULTS,
    "null_score": _RESULTS,
    "string_score": _RESULTS,
    "extra_results": _RESULTS,
}


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions that must all hold; none at all means every request. Ordinals start at 1.

    `first` = K: the first K times that a content comes. `marker`: a text that the query or a
    document contains. `documents_over`, `bytes_over`: the request (its body) is larger.
    """

    probability: float | None = None
    every: int | None = None
    from_ordinal: int = msgspec.field(default=1, name="from")
    to_ordinal: int | None = msgspec.field(default=None, name="to")
    first: int | None = None
    marker: str | None = None
    documents_over: int | None = None
    bytes_over: int | None = None

    def __post_init__(self) -> None:
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError("probability is from 0 to 1")
        if self.every is not None and self.every < 1:
            raise ValueError("every is 1 or more")

    @property
    def needs_content(self) -> bool:
        """Whether the body must have been read to tell."""
        conditions = (self.first, self.marker, self.documents_over, self.bytes_over)
        return any(condition is not None for condition in conditions)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[fault]]` table; which keys go with which kind is in `KINDS`.

    `retry_after` is the header as given (a number of seconds or any text), `retry_after_date` an
    HTTP date so many seconds from now. `abrupt`: the connection ends with RST, otherwise with FIN.
    """

    kind: str
    where: Where = Where()
    scored: bool | None = None
    status: int | None = None
    code: str | None = None
    message: str | None = None
    nested: bool | None = None
    retry_after: float | str | None = None
    retry_after_date: float | None = None
    names_document: bool | None = None
    location: str | None = None
    abrupt: bool | None = None
    seconds: float | None = None
    bytes_per_second: float | None = None
    megabytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = get_close_matches(self.kind, KINDS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f'unknown kind "{self.kind}".{hint}')
        kind = KINDS[self.kind]
        for key in set(self.__struct_fields__) - {"kind", "where", "scored"} - kind.keys:
            if getattr(self, key) is not None:
                raise ValueError(f'kind "{self.kind}" has no key {key}')
        if self.scored not in (None, kind.scored) and not kind.either:
            raise ValueError(f'kind "{self.kind}" is {"always" if kind.scored else "never"} scored')
        missing = _missing(self)
        if missing:
            raise ValueError(f'kind "{self.kind}" needs {missing}')

    @property
    def is_scored(self) -> bool:
        """Whether the request is scored, and so billed, before its answer breaks."""
        return KINDS[self.kind].scored if self.scored is None else self.scored


def _missing(fault: Fault) -> str | None:
    match fault.kind:
        case "status" if fault.status is None or not 200 <= fault.status <= 599:
            return "a status from 200 to 599"
        case "redirect" if fault.location is None:
            return "a location"
        case "slow" if fault.seconds is None:
            return "seconds"
        case "content_refusal" if fault.where.marker is None:
            return "where.marker"
        case "size_refusal" if (fault.where.documents_over, fault.where.bytes_over) == (None, None):
            return "where.documents_over or where.bytes_over"
        case "reset_unread" if fault.where.needs_content:
            return "a where without first, marker, documents_over and bytes_over"
    return None


class FaultScript(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A seed and its faults, in order of precedence."""

    seed: int = 0
    faults: tuple[Fault, ...] = msgspec.field(default=(), name="fault")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request when its fate is decided; at the door only `ordinal` is."""

    ordinal: int
    content: bytes = b""
    attempt: int = 0
    query: str = ""
    documents: Sequence[str] = ()
    body_bytes: int = 0


def read_script(path: Path) -> FaultScript:
    """The fault script at `path`. Raises `InputMissing`, `ConfigInvalid`."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=FaultScript)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such fault script") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: {error}") from None


def choose(script: FaultScript, seen: Seen, *, at_door: bool = False) -> Fault | None:
    """The fault that happens to this request; at the door only `reset_unread` can."""
    for place, fault in enumerate(script.faults):
        if (fault.kind == "reset_unread") is at_door and _applies(script, place, seen):
            return fault
    return None


def chance(script: FaultScript, place: int, seen: Seen) -> Random:
    """The source of every random choice about this request under the fault at this place."""
    content = seen.content or seen.ordinal.to_bytes(8, "big")
    start = f"{script.seed}:{place}:{seen.attempt}:".encode()
    return Random(hashlib.blake2b(start + content, digest_size=8).digest())


def _applies(script: FaultScript, place: int, seen: Seen) -> bool:
    where = script.faults[place].where
    return (
        where.from_ordinal <= seen.ordinal
        and (where.to_ordinal is None or seen.ordinal <= where.to_ordinal)
        and (where.every is None or seen.ordinal % where.every == 0)
        and (where.first is None or seen.attempt <= where.first)
        and (where.documents_over is None or len(seen.documents) > where.documents_over)
        and (where.bytes_over is None or seen.body_bytes > where.bytes_over)
        and (where.marker is None or has_marker(seen, where.marker))
        and (where.probability is None or chance(script, place, seen).random() < where.probability)
    )


def has_marker(seen: Seen, marker: str) -> bool:
    """Whether the query or any document contains the marker."""
    return marker in seen.query or any(marker in document for document in seen.documents)

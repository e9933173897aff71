"""Envelopes of sound scores in which something beside the scores has an odd type.

Some servers number their answers, some write `usage` as a string, a float or a list. `normalize`
makes such a body again with the types that `answers` reads; the results are taken over byte by
byte, so what is wrong with those is found, and named, there. It costs a usual answer nothing: only
a body that could not be decoded comes here. A count may be absurd: below 0 where it is no number at
all, at most `_MOST`. What becomes of it is decided elsewhere.
"""

import json
from collections.abc import Callable, Mapping
from math import ceil, isfinite
from typing import Any

import msgspec

_BOM = b"\xef\xbb\xbf"
_MOST = 10**18

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def strip_lead(body: bytes) -> bytes:
    """Take off a byte order mark and white space before the JSON."""
    return body.removeprefix(_BOM).lstrip()


def normalize(body: bytes) -> bytes:
    """Return the body with texts, numbers and usage in their usual types; what cannot be read as
    one is left out. Raises msgspec.DecodeError where the body is no JSON object.
    """
    fields = dict(_object.decode(body))
    for name in fields.keys() & _READERS.keys():
        fields[name] = msgspec.Raw(msgspec.json.encode(_READERS[name](_value(fields[name]))))
    for name in _unused_places(fields):
        fields.pop(name, None)
    return msgspec.json.encode(fields)


def replace_nan(body: bytes) -> bytes:
    """Return the body with counts in place of NaN and infinities that stand for such. Raises
    `ValueError` where it is no JSON with these either, or where they stand elsewhere.
    """
    answer = json.loads(body, parse_int=whole_number)
    meta = answer.get("meta") if isinstance(answer, dict) else None
    for holder in (answer, meta):
        if isinstance(holder, dict):
            for name in _COUNTED & holder.keys():
                said = holder[name]
                if isinstance(said, dict):
                    holder[name] = {field: _count(value) for field, value in said.items()}
    return json.dumps(answer, allow_nan=False).encode()


def whole_number(digits: str) -> int:
    """Read an integer of however many digits; beyond `_MOST` it is that."""
    if len(digits) > 18:
        return -_MOST if digits.startswith("-") else _MOST
    return int(digits)


def _unused_places(fields: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """The fields that might hold results elsewhere, and do not where others hold them."""
    if _value(fields.get("results")) is not None:
        return ("output", "data")
    output = _value(fields.get("output"))
    return ("data",) if isinstance(output, dict) and "results" in output else ("output",)


def _value(raw: msgspec.Raw | None) -> Any:
    """The value. A number that is out of range is read as `_MOST`, or as infinite."""
    try:
        return None if raw is None else _anything.decode(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw or b"null"), parse_int=whole_number)


def _text(value: Any) -> str | None:
    """A text, a number as text, or the texts of a list one after the other."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value))) or None
    if isinstance(value, dict):
        return _text(value.get("message") or value.get("msg") or value.get("detail"))
    return str(value) if isinstance(value, str | float) or _is_int(value) else None


def _error(value: Any) -> dict[str, str | None] | str | None:
    """An error's code, type and message; or its text."""
    if isinstance(value, dict):
        return {name: _text(value.get(name)) for name in ("code", "type", "message")}
    return _text(value)


def _count(value: Any) -> int | None:
    """A whole number, however it is written; rounded up. Below 0 where it is absurd."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().isdecimal() else whole_number(value.strip())
        except ValueError:
            return None
    if isinstance(value, float):
        value = ceil(min(value, _MOST)) if isfinite(value) else -1
    if isinstance(value, bool):
        return -1
    return max(-1, min(value, _MOST)) if _is_int(value) else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _usage(value: Any) -> dict[str, int | None] | None:
    """The tokens of an object, of a list's first object, or the number itself."""
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        value = {"total_tokens": value}
    return {name: _count(value.get(name)) for name in _USAGE}


def _meta(value: Any) -> dict[str, Any] | None:
    """What was billed, where it stands under `meta`."""
    if not isinstance(value, dict):
        return None
    billed = value.get("billed_units")
    if isinstance(billed, dict):
        billed = {name: _count(billed.get(name)) for name in ("search_units", "total_tokens")}
    else:
        billed = None
    tokens = value.get("tokens")
    return {"billed_units": billed, "tokens": None if tokens is None else _usage(tokens)}


_COUNTED = {"usage", "tokens", "billed_units"}
_USAGE = ("total_tokens", "input_tokens", "prompt_tokens")
_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("id", "request_id", "code", "message", "error_type", "detail"), _text),
    **dict.fromkeys(("usage", "tokens"), _usage),
    "error": _error,
    "meta": _meta,
}

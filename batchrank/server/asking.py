"""A request's body into an `Ask` that can be scored, or the refusal that the real API gives.

One empty document refuses the whole request, and the message names its index: that is the
vendor's rule, and the reason why the client sends none. Limits in tokens are `weighing`'s.
"""

from typing import Any

import msgspec

from batchrank.server.refusals import Refused, invalid_request, invalid_value
from batchrank.wire import DIALECTS, Ask, Dialect

_FLAT, _NATIVE = DIALECTS["flat"], DIALECTS["dashscope-native"]


class _Wrapper(msgspec.Struct, frozen=True):
    parameters: dict[str, msgspec.Raw] | None = None


_wrapper = msgspec.json.Decoder(_Wrapper)


def read_ask(body: bytes, dialect: Dialect) -> tuple[Ask, Dialect]:
    """The request, and the dialect it was written in: the native route takes flat bodies too."""
    try:
        return _read(body, dialect)
    except msgspec.ValidationError as error:
        flat = dialect is _NATIVE and _looks_flat(body)
        return read_ask(body, _FLAT) if flat else _refuse(body, dialect, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid_request("The body is not JSON.") from None


def check_ask(ask: Ask, models: tuple[str, ...], max_documents: int) -> None:
    """Refuse what the real API refuses, in its order and words. Raises `Refused`."""
    if not ask.model:
        raise Refused(400, "BadRequest.EmptyModel")
    if ask.model not in models:
        raise Refused(404, "ModelNotFound")
    if not 0 < len(ask.documents) <= max_documents:
        raise invalid_value(
            "batch size of documents is invalid, it should not be empty or larger than "
            f"{max_documents}.",
            "input.documents",
        )
    if not ask.query.strip():
        raise invalid_value("text input should not be empty.", "input.query")
    for index, document in enumerate(ask.documents):
        if not document or document.isspace():
            raise invalid_value(f"document index:{index} should not be empty.", "input.documents")
    if ask.top_n is not None and ask.top_n < 1:
        raise invalid_value(
            "top_n is invalid, it should be larger than or equal to 1.", "parameters.top_n"
        )


def _read(body: bytes, dialect: Dialect) -> tuple[Ask, Dialect]:
    ask = dialect.read_request(body)
    if dialect is _NATIVE and _wrapper.decode(body).parameters is None:
        raise Refused(400, "BadRequest.EmptyParameters")
    return ask, dialect


def _looks_flat(body: bytes) -> bool:
    fields = _fields(body)
    return "input" not in fields and ("documents" in fields or "query" in fields)


def _fields(body: bytes) -> dict[str, Any]:
    """The body's fields as they came; it is read twice only on the way to a refusal."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid_request("The body is not JSON.") from None
    return fields if isinstance(fields, dict) else {}


def _refuse(body: bytes, dialect: Dialect, error: msgspec.ValidationError) -> tuple[Ask, Dialect]:
    """Tell what is missing from what is of the wrong type. Always raises `Refused`."""
    fields = _fields(body)
    if not fields:
        raise invalid_request("The body is not an object, or is empty.") from None
    if fields.get("model") is None:
        raise Refused(400, "BadRequest.EmptyModel") from None
    given = fields.get("input") if dialect is _NATIVE else fields
    if given is None or (
        isinstance(given, dict) and (given.get("query") is None or given.get("documents") is None)
    ):
        raise Refused(400, "BadRequest.EmptyInput") from None
    if dialect is _NATIVE and fields.get("parameters", {}) is None:
        raise Refused(400, "BadRequest.EmptyParameters") from None
    raise invalid_request(f"{error}.") from None

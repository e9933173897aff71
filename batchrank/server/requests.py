"""A request's body into an `Ask` that can be scored, or the refusal that the real API gives.

One empty document refuses the whole request, and the message names its index: that is the
vendor's rule, and the reason why the client sends none. Limits in tokens are `weighing`'s.
"""

from typing import Any

import msgspec

from batchrank.server.errors import Refused, invalid_request, invalid_value
from batchrank.server.routes import COMPATIBLE, NATIVE, TEI, TEI_DOCUMENTS, Voice
from batchrank.wire import Ask


class _Wrapper(msgspec.Struct, frozen=True):
    parameters: dict[str, msgspec.Raw] | None = None


_wrapper = msgspec.json.Decoder(_Wrapper)


def read_ask(body: bytes, voice: Voice) -> tuple[Ask, Voice]:
    """The request, and the voice to answer it in: the native route takes flat bodies too."""
    try:
        return _read(body, voice), voice
    except msgspec.ValidationError as error:
        if voice is NATIVE and _looks_flat(body):
            return read_ask(body, COMPATIBLE)
        raise _refusal(body, voice, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid_request("The body is not JSON.") from None


def check_ask(ask: Ask, voice: Voice, models: tuple[str, ...], max_documents: int) -> None:
    """Refuse what Model Studio refuses, in its order and words. Raises `Refused`."""
    if not ask.model and voice is not TEI:
        raise Refused(400, "BadRequest.EmptyModel")
    if voice.own_models and ask.model not in models:
        raise Refused(404, "ModelNotFound")
    if voice is TEI and len(ask.documents) > TEI_DOCUMENTS:
        what = f"batch size {len(ask.documents)} > maximum allowed batch size {TEI_DOCUMENTS}"
        raise Refused(422, "Validation", what)
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


def _read(body: bytes, voice: Voice) -> Ask:
    ask = voice.dialect.read_request(body)
    if voice is NATIVE and _wrapper.decode(body).parameters is None:
        raise Refused(400, "BadRequest.EmptyParameters")
    return ask


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


def _refusal(body: bytes, voice: Voice, error: msgspec.ValidationError) -> Refused:
    """What is missing, told from what is of the wrong type. Raises `Refused` itself for no JSON."""
    fields = _fields(body)
    if not fields:
        return invalid_request("The body is not an object, or is empty.")
    if voice is not TEI and fields.get("model") is None:
        return Refused(400, "BadRequest.EmptyModel")
    given = fields.get("input") if voice is NATIVE else fields
    documents = "texts" if voice is TEI else "documents"
    if given is None or (
        isinstance(given, dict) and (given.get("query") is None or given.get(documents) is None)
    ):
        return Refused(400, "BadRequest.EmptyInput")
    if voice is NATIVE and fields.get("parameters", {}) is None:
        return Refused(400, "BadRequest.EmptyParameters")
    return invalid_request(f"{error}.")

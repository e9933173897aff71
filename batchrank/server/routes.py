"""Which path answers in which dialect, and in which envelope its errors come.

Two paths serve two dialects each, told apart by the fields that SDKs send: `/v1/rerank` is Jina's,
and Voyage's where `top_k`, `truncation` or one of its models is there; `/rerank` is that of vLLM,
Infinity, llama.cpp and LiteLLM, and Text Embeddings Inference's where the documents are `texts`.
Only Model Studio's own routes know its models by name.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from batchrank.server.errors import Refused
from batchrank.wire import DIALECTS, Dialect

COMPATIBLE_BASE = "/compatible-api/v1"
NATIVE_BASE = "/api/v1"
TEI_DOCUMENTS = 32
"""`--max-client-batch-size` of Text Embeddings Inference, by default."""

Envelope = Callable[[Refused, str], dict[str, Any]]


def _flat(refused: Refused, request_id: str) -> dict[str, Any]:
    return {"code": refused.code, "message": refused.message, "request_id": request_id}


def _nested(refused: Refused, request_id: str) -> dict[str, Any]:
    error = {
        "code": refused.code,
        "param": None,
        "message": refused.message,
        "type": refused.code,
    }
    return {"error": error, "id": request_id, "request_id": request_id}


def _message(refused: Refused, request_id: str) -> dict[str, Any]:
    return {"id": request_id, "message": refused.message}


def _detail(refused: Refused, request_id: str) -> dict[str, Any]:
    return {"detail": refused.message}


def _openai(refused: Refused, request_id: str) -> dict[str, Any]:
    error = {
        "message": refused.message,
        "type": refused.code,
        "param": None,
        "code": refused.status,
    }
    return {"error": error}


def _tei(refused: Refused, request_id: str) -> dict[str, Any]:
    kind = {424: "Backend", 429: "Overloaded", 503: "Unhealthy"}.get(refused.status, "Validation")
    return {"error": refused.message, "error_type": kind}


class Voice(msgspec.Struct, frozen=True):
    """A dialect and its errors. `own_models`: only the server's own models are known by name."""

    dialect: Dialect
    envelope: Envelope
    own_models: bool = False

    def error(self, refused: Refused, request_id: str, *, nested: bool) -> bytes:
        """The body of an error answer; `nested`: in OpenAI's envelope, on Model Studio's routes."""
        if self.own_models and (nested if refused.nested is None else refused.nested):
            return msgspec.json.encode(_nested(refused, request_id))
        return msgspec.json.encode(self.envelope(refused, request_id))


COMPATIBLE = Voice(DIALECTS["flat"], _flat, own_models=True)
NATIVE = Voice(DIALECTS["dashscope-native"], _flat, own_models=True)
COHERE = Voice(DIALECTS["cohere"], _message)
JINA = Voice(DIALECTS["flat"], _detail)
VOYAGE = Voice(DIALECTS["voyage"], _detail)
SELF_HOSTED = Voice(DIALECTS["served"], _openai)
TEI = Voice(DIALECTS["tei"], _tei)

COMPATIBLE_PATH = COMPATIBLE_BASE + "/reranks"
NATIVE_PATH = NATIVE_BASE + "/services/rerank/text-rerank/text-rerank"
ROUTES = {
    COMPATIBLE_PATH: COMPATIBLE,
    NATIVE_PATH: NATIVE,
    "/v2/rerank": COHERE,
    "/v1/rerank": JINA,
    "/rerank": SELF_HOSTED,
}


class _Telling(msgspec.Struct, frozen=True):
    """The fields that tell two dialects of one path apart."""

    texts: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: str = ""
    top_k: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    truncation: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_VOYAGE_MODELS = re.compile(r"rerank-(lite-)?\d(\.\d)?(-lite)?")
_telling = msgspec.json.Decoder(_Telling)


def told_apart(voice: Voice, body: bytes) -> Voice:
    """The voice that a request's fields ask for; the path's own for what is no JSON object."""
    if voice is not JINA and voice is not SELF_HOSTED:
        return voice
    try:
        fields = _telling.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return voice
    if voice is SELF_HOSTED:
        return voice if fields.texts is msgspec.UNSET else TEI
    set_fields = (fields.top_k, fields.truncation) != (msgspec.UNSET, msgspec.UNSET)
    return VOYAGE if set_fields or _VOYAGE_MODELS.fullmatch(fields.model) else voice

"""The local server's own description: `GET /openapi.json`, OpenAPI 3.1.

It says what this server does, which is what Model Studio's pages and captured replies say of the
hosted API; the vendor publishes no such document. Fuzzers read it (see tests/test_openapi.py).
"""

import json
from typing import Any

from batchrank.server.routes import COMPATIBLE_PATH, NATIVE_PATH, TEI_DOCUMENTS
from batchrank.server.settings import ServerSettings

_TEXT = {"type": "string", "minLength": 1}
_RESULTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "relevance_score"],
        "properties": {
            "index": {"type": "integer", "minimum": 0},
            "relevance_score": {"type": "number", "minimum": 0, "maximum": 1},
            "document": {"type": "object", "properties": {"text": {"type": "string"}}},
        },
    },
}
_USAGE = {
    "type": "object",
    "required": ["total_tokens"],
    "properties": {"total_tokens": {"type": "integer", "minimum": 1}},
}
_TEI_ANSWER = {
    "type": "array",
    "items": {"type": "object", "required": ["index", "score"]},
}
_ERROR = {"type": "object"}
_STATUSES = {
    "400": "the request is refused; the message says why",
    "401": "the key is refused",
    "404": "no such model",
    "413": "the body is too large",
    "422": "too many texts for one request",
    "429": "a limit of the account is reached",
}


def document(settings: ServerSettings) -> bytes:
    """The description under these settings, as JSON."""
    flat, others = _flat_request(settings), _flat_request(settings, _TEXT)
    voyage, tei = _voyage_request(settings), _tei_request()
    paths = {
        COMPATIBLE_PATH: _operation("rerank", flat, _flat_answer()),
        NATIVE_PATH: _operation("rerankNative", _native_request(settings), _native_answer()),
        "/v2/rerank": _operation("rerankCohere", others, _cohere_answer()),
        "/v1/rerank": _operation(
            "rerankJina", {"anyOf": [others, voyage]}, {"anyOf": [_flat_answer(), _voyage_answer()]}
        ),
        "/rerank": _operation(
            "rerankSelfHosted", {"anyOf": [others, tei]}, {"anyOf": [_flat_answer(), _TEI_ANSWER]}
        ),
        "/health": {"get": {"operationId": "health", "responses": _ok({"type": "object"})}},
        "/ledger": {"get": {"operationId": "ledger", "responses": _ok({"type": "object"})}},
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "batchrank's local rerank API", "version": "1"},
        "paths": paths,
    }
    if settings.api_key is not None:
        bearer = {"type": "http", "scheme": "bearer"}
        described["components"] = {"securitySchemes": {"key": bearer}}
        described["security"] = [{"key": []}]
    return json.dumps(described).encode()


def _operation(name: str, request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    refusals = {
        status: {"description": what, "content": {"application/json": {"schema": _ERROR}}}
        for status, what in _STATUSES.items()
    }
    return {
        "post": {
            "operationId": name,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request}},
            },
            "responses": {**_ok(answer), **refusals},
        }
    }


def _ok(schema: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "ok", "content": {"application/json": {"schema": schema}}}}


def _documents(settings: ServerSettings) -> dict[str, Any]:
    most = settings.limits.max_documents
    return {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": most}


def _flat_request(settings: ServerSettings, model: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model", "query", "documents"],
        "properties": {
            "model": model or {"enum": list(settings.models)},
            "query": _TEXT,
            "documents": _documents(settings),
            "top_n": {"type": "integer", "minimum": 1},
            "instruct": {"type": "string"},
            "return_documents": {"type": "boolean"},
        },
    }


def _native_request(settings: ServerSettings) -> dict[str, Any]:
    parameters = {
        "top_n": {"type": "integer", "minimum": 1},
        "instruct": {"type": "string"},
        "return_documents": {"type": "boolean"},
    }
    return {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": {"enum": list(settings.models)},
            "input": {
                "type": "object",
                "required": ["query", "documents"],
                "properties": {"query": _TEXT, "documents": _documents(settings)},
            },
            "parameters": {"type": "object", "properties": parameters},
        },
    }


def _flat_answer() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["object", "results", "model", "id", "usage"],
        "properties": {
            "object": {"enum": ["list", "rerank"]},
            "results": _RESULTS,
            "usage": _USAGE,
        },
    }


def _voyage_request(settings: ServerSettings) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model", "query", "documents", "truncation"],
        "properties": {
            "model": _TEXT,
            "query": _TEXT,
            "documents": _documents(settings),
            "top_k": {"type": ["integer", "null"], "minimum": 1},
            "truncation": {"type": "boolean"},
            "return_documents": {"type": "boolean"},
        },
    }


def _voyage_answer() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["object", "data", "model", "usage"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array"}, "usage": _USAGE},
    }


def _tei_request() -> dict[str, Any]:
    texts = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": TEI_DOCUMENTS}
    flags = {name: {"type": "boolean"} for name in ("truncate", "return_text")}
    return {
        "type": "object",
        "required": ["query", "texts"],
        "properties": {"query": _TEXT, "texts": texts, **flags},
    }


def _cohere_answer() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "results", "meta"],
        "properties": {"results": _RESULTS, "meta": {"type": "object"}},
    }


def _native_answer() -> dict[str, Any]:
    output = {"type": "object", "required": ["results"], "properties": {"results": _RESULTS}}
    return {
        "type": "object",
        "required": ["output", "usage", "request_id"],
        "properties": {"output": output, "usage": _USAGE},
    }

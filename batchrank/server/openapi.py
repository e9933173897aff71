"""The local server's own description: `GET /openapi.json`, OpenAPI 3.1.

It says what this server does, which is what Model Studio's pages and captured replies say of the
hosted API; the vendor publishes no such document. Fuzzers read it (see tests/test_openapi.py).
"""

import json
from typing import Any

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
_ERROR = {"type": "object"}
_STATUSES = {
    "400": "the request is refused; the message says why",
    "401": "the key is refused",
    "404": "no such model",
    "413": "the body is too large",
    "429": "a limit of the account is reached",
}


def document(settings: ServerSettings, flat_path: str, native_path: str) -> bytes:
    """The description under these settings, as JSON."""
    paths = {
        flat_path: _operation("rerank", _flat_request(settings), _flat_answer()),
        native_path: _operation("rerankNative", _native_request(settings), _native_answer()),
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


def _flat_request(settings: ServerSettings) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model", "query", "documents"],
        "properties": {
            "model": {"enum": list(settings.models)},
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
        "properties": {"object": {"const": "list"}, "results": _RESULTS, "usage": _USAGE},
    }


def _native_answer() -> dict[str, Any]:
    output = {"type": "object", "required": ["results"], "properties": {"results": _RESULTS}}
    return {
        "type": "object",
        "required": ["output", "usage", "request_id"],
        "properties": {"output": output, "usage": _USAGE},
    }

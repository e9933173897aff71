"""The stub of scripts/bench is a fair endpoint: it counts what it is asked and answers in full."""

import json
import subprocess
import sys
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from batchrank.wire import replies as answers

ROOT = Path(__file__).parents[1]
TEXTS = [
    ["plain"],
    ["a", "b", "c"],
    ['she said "no"', 'ends with a quote"', '", "', '","', '"],"'],
    ["back\\slash", 'both \\"', "\\", "\\\\"],
    ["]", '["documents"', "你好", "\u2028 \n \t"],
    [f"document {place}" for place in range(500)],
]


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.stub"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def posted(url: str, body: bytes) -> bytes:
    with urlopen(Request(f"{url}/reranks", body), timeout=60) as answer:
        content: bytes = answer.read()
    return content


def stats(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/stats", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("texts", TEXTS, ids=len)
def test_every_document_gets_one_score(
    stub: str, texts: list[str], compact: bool, ascii_only: bool
) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    ask = {"model": "m", "query": 'what is "x"?', "documents": texts}
    body = json.dumps(ask, separators=separators, ensure_ascii=ascii_only).encode()
    found = answers.read(posted(stub, body), len(texts))
    assert isinstance(found, answers.Scores)
    assert len(found.relevance_scores) == len(texts)
    assert all(map(isfinite, found.relevance_scores))
    assert found.tokens


def test_a_body_larger_than_its_buffer_is_read(stub: str) -> None:
    texts = ["x" * 500_000] * 5
    body = json.dumps({"query": "q", "documents": texts}).encode()
    assert isinstance(answers.read(posted(stub, body), 5), answers.Scores)


def test_its_counts_are_those_since_the_last_look(stub: str) -> None:
    stats(stub)
    for texts in (["a"], ["a", "b"]):
        posted(stub, json.dumps({"query": "q", "documents": texts}).encode())
    first = stats(stub)
    assert (first["requests"], first["documents"]) == (2, 3)
    assert first["first"] is not None
    assert stats(stub) == {"requests": 0, "documents": 0, "first": None}

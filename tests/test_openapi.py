"""The local server does what it publishes of itself: a fuzzer that reads the description finds no
answer that is not in it, and no server error.
"""

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from helpers import Server, clean


def test_every_route_is_described(server: Server) -> None:
    with urlopen(f"{server.host}/openapi.json") as answer:
        described = json.load(answer)
    assert set(described["paths"]) == {
        "/compatible-api/v1/reranks",
        "/api/v1/services/rerank/text-rerank/text-rerank",
        "/v2/rerank",
        "/v1/rerank",
        "/rerank",
        "/health",
        "/ledger",
    }


def test_a_fuzzer_finds_no_answer_that_is_not_described(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{server.host}/openapi.json",
            "--checks=not_a_server_error,status_code_conformance,response_schema_conformance",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=60",
            "--seed=7",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean(),
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert "No issues found" in found.stdout
    assert "Tested: 7" in found.stdout

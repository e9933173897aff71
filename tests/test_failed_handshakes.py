"""A TLS handshake that fails between others is asked again; a certificate is only "not trusted"
where verification said so.
"""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import make_certificate, server_context
from helpers import program, table, written
from raw_server import Peer, http, raw_server

ROWS = 60
ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""A fatal `internal_error`, in place of the server's part of the handshake."""
BAD_HANDSHAKES = {
    "alert": ALERT,
    "end": b"",
    "plain 503": http(b"", 503),
    "plain 400": http(b"The plain HTTP request was sent to HTTPS port", 400),
    "other bytes": b"\x00" * 64,
    "half a record": b"\x16\x03\x03\x40\x00\x02",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")


def run_against(
    certificate: Path,
    folder: Path,
    says: Callable[[int], bytes | None],
    *,
    is_trusted: bool = True,
) -> tuple["subprocess.CompletedProcess[str]", int]:
    """Run some rows through a server whose connections, by number, say something in place of the
    handshake; return how it ended and the number of its answers.
    """
    source = written(folder / "in.parquet", table(ROWS))
    (folder / "b.toml").write_text("[endpoint]\nmax_outage_seconds = 8\n")
    answers = 0

    async def serve(peer: Peer) -> None:
        nonlocal answers
        for turn in range(5):
            _, body = await peer.read_request()
            count = len(json.loads(body)["documents"])
            results = [{"index": place, "relevance_score": 0.5} for place in range(count)]
            answers += 1
            peer.say(http({"results": results}, 200, *["Connection: close"] * (turn == 4)))
            await peer.writer.drain()

    async def accept(peer: Peer) -> None:
        said = says(peer.number)
        if said is not None:
            await peer.reader.read(4096)
            peer.say(said)
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def run() -> "subprocess.CompletedProcess[str]":
        nonlocal behind
        async with (
            raw_server(serve, server_context(certificate)) as endpoint,
            raw_server(accept) as front,
        ):
            behind = endpoint.port
            url = f"https://localhost:{front.port}"
            where = ["--provider", "vllm", "--model", "m", "--base-url", url]
            trust = {"SSL_CERT_FILE": str(certificate)} if is_trusted else {}
            command = ["run", source, "-o", folder / "out", "-c", folder / "b.toml", *where]
            return await asyncio.to_thread(program, *command, "--max-in-flight", 2, **trust)

    behind = 0
    return asyncio.run(run()), answers


@pytest.mark.parametrize("said", BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES)
def test_one_between_others_is_asked_again(certificate: Path, tmp_path: Path, said: bytes) -> None:
    done, answers = run_against(
        certificate, tmp_path, lambda number: said if number in (4, 5, 7) else None
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert answers == ROWS


@pytest.mark.parametrize("said", [ALERT, b""], ids=["alert", "end"])
def test_one_after_the_other_is_an_outage(certificate: Path, tmp_path: Path, said: bytes) -> None:
    done, answers = run_against(certificate, tmp_path, lambda number: said)
    assert done.returncode == 75
    assert "certificate" not in done.stderr
    assert answers == 0


def test_an_address_that_speaks_no_tls_at_all_is_of_the_settings(
    certificate: Path, tmp_path: Path
) -> None:
    done, _ = run_against(certificate, tmp_path, lambda number: BAD_HANDSHAKES["plain 400"])
    assert done.returncode == 78
    assert "does not speak TLS" in done.stderr


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    certificate: Path, tmp_path: Path
) -> None:
    done, answers = run_against(certificate, tmp_path, lambda number: None, is_trusted=False)
    assert done.returncode == 78
    assert "certificate is not trusted" in done.stderr
    assert answers == 0

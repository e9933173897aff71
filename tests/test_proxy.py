"""A proxy learns where to connect to, and no more; what it refuses is said, and is not paid."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import make_certificate, server_context
from helpers import KEY, program, table, written
from raw_server import Peer, http, raw_server

from batchrank.config.proxy import Proxy, find_proxy
from batchrank.errors import ConfigInvalid
from batchrank.sending.http_client import connected
from batchrank.sending.verdicts import Exchange, Unanswered

ENDPOINT = "https://rerank.example/v1"
SECRETS = {"Authorization": f"Bearer {KEY}", "X-Team": "hunter2"}


@pytest.fixture(autouse=True)
def no_proxies_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# Which one it is


@pytest.mark.parametrize(
    ("variables", "url", "address"),
    [
        ({"HTTPS_PROXY": "http://p.example:3128"}, ENDPOINT, "http://p.example:3128"),
        ({"https_proxy": "http://p.example:3128"}, ENDPOINT, "http://p.example:3128"),
        ({"HTTPS_PROXY": "p.example:3128"}, ENDPOINT, "http://p.example:3128"),
        ({"HTTPS_PROXY": "me:word@p.example:3128"}, ENDPOINT, "http://me:word@p.example:3128"),
        ({"HTTPS_PROXY": "http://[::1]:3128/"}, ENDPOINT, "http://[::1]:3128/"),
        ({"ALL_PROXY": "p.example:3128"}, ENDPOINT, "http://p.example:3128"),
        (
            {"ALL_PROXY": "a.example:1", "HTTPS_PROXY": "p.example:2"},
            ENDPOINT,
            "http://p.example:2",
        ),
        ({"HTTP_PROXY": "http://p.example:3128"}, ENDPOINT, None),
        ({"HTTP_PROXY": "http://p.example:1"}, "http://rerank.example", "http://p.example:1"),
        ({"HTTPS_PROXY": ""}, ENDPOINT, None),
        ({"HTTPS_PROXY": "  "}, ENDPOINT, None),
        ({}, ENDPOINT, None),
    ],
)
def test_the_variable_of_the_scheme_names_it(
    variables: dict[str, str], url: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = find_proxy(url)
    assert (found and found.address) == address


@pytest.mark.parametrize(
    ("excluded", "url"),
    [
        ("rerank.example", ENDPOINT),
        ("other, .example", ENDPOINT),
        ("*.example", ENDPOINT),
        ("*", ENDPOINT),
        ("10.0.0.0/8", "https://10.1.2.3/v1"),
        ("fd00::/8", "https://[fd00::7]/v1"),
        ("10.1.2.3", "https://10.1.2.3/v1"),
        ("", "http://127.0.0.1:8000"),
        ("", "http://127.9.9.9:8000"),
        ("", "http://localhost:8000"),
        ("", "http://[::1]:8000"),
    ],
)
def test_a_host_of_no_proxy_or_of_this_machine_has_none(
    excluded: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://p.example:3128")
    monkeypatch.setenv("NO_PROXY", excluded)
    assert find_proxy(url) is None


@pytest.mark.parametrize("excluded", ["other.example", "ample", "10.0.0.0/8", "rerank.example.org"])
def test_another_host_of_no_proxy_changes_nothing(
    excluded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p.example:3128")
    monkeypatch.setenv("NO_PROXY", excluded)
    assert find_proxy(ENDPOINT) is not None


@pytest.mark.parametrize(
    "value",
    [
        "http://",
        "http://me:s3cret@",
        "http://p.example:99999",
        "http://p.example:0",
        "ftp://me:s3cret@p.example:21",
        "http://me:s3cret#more@p.example:3128",
        "http://me:12/34s3cret@p.example:3128",
        "http://p example:3128",
        "socks5://me:s3cret@p.example:1080",
        "socks5h://p.example:1080",
        "not an address",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigInvalid, match=r"^HTTPS_PROXY: ") as refused:
        find_proxy(ENDPOINT)
    assert "s3cret" not in str(refused.value)


def test_its_name_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://me:s3cret@p.example:3128")
    assert find_proxy(ENDPOINT) == Proxy(
        "http://me:s3cret@p.example:3128", "the proxy of ALL_PROXY (p.example:3128)"
    )


# What it sees


def exchanges(
    monkeypatch: pytest.MonkeyPatch,
    say: Callable[[Peer, str], None],
    *,
    url: str = ENDPOINT,
    count: int = 1,
    credentials: str = "",
) -> tuple[list[Exchange], list[str]]:
    """What came back through a proxy that answers CONNECT with `say`, and all that it was sent."""
    heard: list[str] = []

    async def serve(peer: Peer) -> None:
        head, body = await peer.read_request()
        heard.append(head + body.decode())
        say(peer, head)
        await peer.writer.drain()

    async def run() -> list[Exchange]:
        async with raw_server(serve) as server:
            where = f"http://{credentials}127.0.0.1:{server.port}"
            monkeypatch.setenv("ALL_PROXY", where)
            async with connected(url, SECRETS, timeout_seconds=2, max_in_flight=4) as transport:
                return [await transport.exchange(b'{"canary": 1}', 1) for _ in range(count)]

    return asyncio.run(run()), heard


def refuse(status: int) -> Callable[[Peer, str], None]:
    return lambda peer, _: peer.say(http(b"", status))


def test_it_sees_connect_and_host_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    _, heard = exchanges(monkeypatch, refuse(403))
    assert heard == ["CONNECT rerank.example:443 HTTP/1.1\r\nHost: rerank.example\r\n\r\n"]


def test_it_is_told_its_own_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    _, heard = exchanges(monkeypatch, refuse(407), credentials="me:w%40rd@")
    assert heard[0].split("\r\n")[2] == "Proxy-Authorization: Basic bWU6d0ByZA=="
    assert KEY not in heard[0] and "hunter2" not in heard[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of rerank.example, in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "rerank.example")


def run_behind(
    certificate: Path, folder: Path, refuses: Callable[[int], bool]
) -> tuple["subprocess.CompletedProcess[str]", list[str], list[str]]:
    """A run of 40 rows through a proxy that refuses some connections (by number) with 403: how it
    ended, what the proxy was sent, and the heads that the endpoint was sent.
    """
    context = server_context(certificate)
    source = written(folder / "in.parquet", table(40))
    at_proxy: list[str] = []
    at_endpoint: list[str] = []

    async def serve(peer: Peer) -> None:
        head, body = await peer.read_request()
        at_endpoint.append(head)
        count = len(json.loads(body)["documents"])
        results = [{"index": place, "relevance_score": 0.5} for place in range(count)]
        more = ["Connection: close"] if len(at_endpoint) % 5 == 0 else []
        peer.say(http({"results": results, "usage": {"total_tokens": 9}}, 200, *more))
        if not more:
            await serve(peer)

    async def tunnel(peer: Peer) -> None:
        head, _ = await peer.read_request()
        at_proxy.append(head)
        if refuses(len(at_proxy) - 1):
            peer.say(http(b"", 403))
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint_port)
        peer.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def run() -> "subprocess.CompletedProcess[str]":
        nonlocal endpoint_port
        async with raw_server(serve, context) as endpoint, raw_server(tunnel) as proxy:
            endpoint_port = endpoint.port
            arguments = ["run", source, "-o", folder / "out", "--provider", "dashscope"]
            return await asyncio.to_thread(
                program,
                *[*arguments, "--base-url", ENDPOINT, "--max-in-flight", 2, "--summary", "json"],
                DASHSCOPE_API_KEY=KEY,
                HTTPS_PROXY=f"me:word@127.0.0.1:{proxy.port}",
                SSL_CERT_FILE=str(certificate),
            )

    endpoint_port = 0
    return asyncio.run(run()), at_proxy, at_endpoint


def test_an_endpoint_behind_it_gets_the_key_and_the_proxy_does_not(
    certificate: Path, tmp_path: Path
) -> None:
    done, at_proxy, at_endpoint = run_behind(certificate, tmp_path, lambda number: False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(at_endpoint) == 40
    assert len(at_proxy) <= 12, "connections are not used again"
    for head in at_endpoint:
        assert f"Authorization: Bearer {KEY}" in head and "Proxy" not in head
        assert "Content-Type: application/json" in head and "Accept-Encoding: identity" in head
    for head in at_proxy:
        assert sorted(head.split("\r\n")) == [
            "",
            "",
            "CONNECT rerank.example:443 HTTP/1.1",
            "Host: rerank.example",
            "Proxy-Authorization: Basic bWU6d29yZA==",
        ]


def test_a_refusal_between_answers_is_an_outage(certificate: Path, tmp_path: Path) -> None:
    done, at_proxy, at_endpoint = run_behind(
        certificate, tmp_path, lambda number: number in (3, 4, 6)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(at_proxy) > 6 and len(at_endpoint) == 40
    assert json.loads(done.stdout)["possibly_paid"] == 0


# What it refuses


@pytest.mark.parametrize("status", [400, 403, 404, 405, 407, 301])
def test_a_refusal_from_the_first_request_on_is_of_the_settings(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = exchanges(monkeypatch, refuse(status))
    (one,) = found
    assert isinstance(one, Unanswered)
    assert (one.sent, one.hopeless) == (False, True)
    assert f"answered {status} to CONNECT" in one.reason and "ALL_PROXY" in one.reason


@pytest.mark.parametrize(
    "said",
    [
        http(b"", 502),
        http(b"", 503),
        http(b"", 504),
        http(b"", 429),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02",
        b"HTTP/1.1 2",
        b"",
    ],
)
def test_a_fault_or_garbage_passes_and_is_not_paid(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = exchanges(monkeypatch, lambda peer, _: peer.say(said))
    (one,) = found
    assert isinstance(one, Unanswered)
    assert (one.sent, one.hopeless) == (False, False)
    assert "ALL_PROXY" in one.reason


def test_a_proxy_that_says_nothing_was_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> Exchange:
        async def serve(peer: Peer) -> None:
            await peer.read_request()
            await peer.reader.read()

        async with raw_server(serve) as server:
            monkeypatch.setenv("ALL_PROXY", server.url)
            async with connected(ENDPOINT, {}, timeout_seconds=1, max_in_flight=4) as transport:
                return await transport.exchange(b"{}", 1)

    found = asyncio.run(run())
    assert isinstance(found, Unanswered)
    assert not found.sent and "gave no answer within 1 s" in found.reason


# The whole run


def test_a_proxy_that_cannot_be_used_ends_the_run_with_78(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(20))
    run = ["run", source, "-o", tmp_path / "out", "--provider", "dashscope"]
    done = program(*run, DASHSCOPE_API_KEY=KEY, HTTPS_PROXY="socks5://me:s3cret@p.example:1080")
    assert done.returncode == 78
    assert done.stderr.startswith("batchrank: HTTPS_PROXY: names a SOCKS proxy")
    assert "s3cret" not in done.stderr and len(done.stderr.splitlines()) == 1

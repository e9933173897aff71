"""An answer that no request asked for is given to no request, whenever it arrives."""

import asyncio
import json
import time

import pytest
from raw_server import Peer, RawServer, Serve, http, raw_server, raw_server_beside

from batchrank.retry import Answered, Exchange, Unanswered
from batchrank.transport import connected

ASKED = range(30)


def answer(number: int) -> bytes:
    """The answer to the request of this number."""
    return http({"number": number})


def number_in(body: bytes) -> int:
    return int(json.loads(body)["number"])


async def ask(
    server: RawServer, *, pause_seconds: float = 0.005, timeout_seconds: float = 5
) -> list[Exchange]:
    """What came back to requests that go one after the other."""
    found = []
    async with connected(
        server.url, {}, timeout_seconds=timeout_seconds, max_in_flight=1
    ) as transport:
        for number in ASKED:
            found.append(await transport.exchange(json.dumps({"number": number}).encode(), 1))
            await asyncio.sleep(pause_seconds)
    return found


def asked(serve: Serve, pause_seconds: float = 0.005) -> tuple[list[Exchange], int]:
    """What came back, and how many connections it took."""

    async def run() -> tuple[list[Exchange], int]:
        async with raw_server(serve) as server:
            return await ask(server, pause_seconds=pause_seconds), server.connections

    return asyncio.run(run())


def assert_right(found: list[Exchange]) -> None:
    for number, exchange in zip(ASKED, found, strict=True):
        assert isinstance(exchange, Answered), exchange
        assert number_in(exchange.body) == number


def test_one_connection_serves_them_all_where_nothing_is_wrong() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(answer(number_in(body)))

    found, connections = asked(serve)
    assert_right(found)
    assert connections == 1


def test_an_answer_in_many_pieces_is_no_stray() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            for byte in answer(number_in(body)):
                peer.say(bytes([byte]))
                await asyncio.sleep(0)

    found, connections = asked(serve, pause_seconds=0)
    assert_right(found)
    assert connections == 1


def test_a_large_answer_in_chunks_is_no_stray() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in (b'{"number": %d, "more": "' % number_in(body), b"x" * 200_000, b'"}'):
                peer.say(b"%x\r\n%s\r\n" % (len(piece), piece))
                await peer.writer.drain()
            peer.say(b"0\r\n\r\n")

    found, connections = asked(serve, pause_seconds=0)
    assert_right(found)
    assert connections == 1


@pytest.mark.parametrize("after_seconds", [0.0, 0.001, 0.01])
def test_an_answer_that_comes_twice_closes_its_connection(after_seconds: float) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(answer(number_in(body)))
            await asyncio.sleep(after_seconds)
            peer.say(answer(number_in(body)))

    found, connections = asked(serve, pause_seconds=0.05)
    assert_right(found)
    assert connections == len(ASKED)


def test_an_answer_that_comes_twice_at_once_is_taken_once() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(answer(number_in(body)), answer(number_in(body) + 1000))

    found, connections = asked(serve, pause_seconds=0)
    assert_right(found)
    assert connections == len(ASKED)


def test_the_beginning_of_a_second_answer_is_never_put_before_the_next() -> None:
    """The rest of it would come after the next request was written."""

    async def serve(peer: Peer) -> None:
        _, body = await peer.read_request()
        stray = answer(number_in(body) + 1000)
        peer.say(answer(number_in(body)), stray[:20])
        _, body = await peer.read_request()
        peer.say(stray[20:], answer(number_in(body)))

    found, _ = asked(serve, pause_seconds=0)
    for number, exchange in zip(ASKED, found, strict=True):
        if isinstance(exchange, Answered):
            assert number_in(exchange.body) == number
        else:
            assert exchange.sent


def test_a_stray_that_lies_unread_in_the_socket_is_found_before_a_request_is_written() -> None:
    """The client's loop is busy with something else while the stray answer arrives."""

    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(answer(number_in(body)))
            await asyncio.sleep(0.01)
            peer.say(answer(number_in(body) + 1000))

    async def ask_and_sleep(server: RawServer) -> list[Exchange]:
        found = []
        async with connected(server.url, {}, timeout_seconds=5, max_in_flight=1) as transport:
            for number in ASKED:
                found.append(await transport.exchange(json.dumps({"number": number}).encode(), 1))
                time.sleep(0.03)  # nothing that arrives is read meanwhile
        return found

    with raw_server_beside(serve) as server:
        assert_right(asyncio.run(ask_and_sleep(server)))
    assert server.connections == len(ASKED)


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt() -> None:
    async def serve(peer: Peer) -> None:
        _, body = await peer.read_request()
        peer.say(answer(number_in(body)))

    found, connections = asked(serve, pause_seconds=0)
    assert_right(found)
    assert connections == len(ASKED)


def test_an_answer_before_any_request_is_no_answer() -> None:
    async def serve(peer: Peer) -> None:
        peer.say(answer(1000))
        await peer.read_request()

    found, _ = asked(serve, pause_seconds=0)
    assert not [exchange for exchange in found if isinstance(exchange, Answered)]


def test_interim_answers_are_passed_over() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
            peer.say(early, early, answer(number_in(body)))

    found, connections = asked(serve)
    assert_right(found)
    assert connections == 1


def test_interim_answers_without_end_are_cut_off() -> None:
    sent = 0

    async def serve(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        while True:
            peer.say(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
            sent += 25_000
            await peer.writer.drain()

    async def run() -> Exchange:
        async with (
            raw_server(serve) as server,
            connected(server.url, {}, timeout_seconds=60, max_in_flight=1) as transport,
        ):
            return await transport.exchange(b"{}", 1)

    found = asyncio.run(run())
    assert found == Unanswered("no answer within the first 65,536 bytes", sent=True)
    assert sent < 30_000_000  # what the sockets hold, and not what a time-out lasts for

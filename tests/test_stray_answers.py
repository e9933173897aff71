"""An answer that no request asked for is given to no request, whenever it arrives."""

import asyncio
import json
from random import Random
from threading import Event

import pytest
from raw_server import Peer, RawServer, Serve, http, raw_server, raw_server_beside

from batchrank.sending.http_client import connected
from batchrank.sending.verdicts import Answered, Exchange, Unanswered

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
    arrived = Event()

    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            peer.say(answer(number_in(body)))
            await asyncio.sleep(0.01)
            peer.say(answer(number_in(body) + 1000))
            arrived.set()

    async def ask_and_sleep(server: RawServer) -> list[Exchange]:
        found = []
        async with connected(server.url, {}, timeout_seconds=5, max_in_flight=1) as transport:
            for number in ASKED:
                found.append(await transport.exchange(json.dumps({"number": number}).encode(), 1))
                assert arrived.wait(10)  # and nothing is read meanwhile
                arrived.clear()
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


# While the next request is under way


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_that_comes_twice_is_never_given_to_a_later_request(seed: int) -> None:
    """At full speed: hundreds of requests are under way when the others' answers come again."""
    random, rows = Random(seed), 600
    twice = 0

    async def serve(peer: Peer) -> None:
        nonlocal twice
        loop = asyncio.get_running_loop()
        while True:
            _, body = await peer.read_request()
            await asyncio.sleep(random.uniform(0, 0.01))
            peer.say(answer(number_in(body)))
            if random.random() < 0.5:
                loop.call_later(random.uniform(0, 0.1), peer.say, answer(number_in(body)))
                twice += 1

    async def run() -> list[Exchange]:
        async with (
            raw_server(serve) as server,
            connected(server.url, {}, timeout_seconds=5, max_in_flight=8) as transport,
        ):
            room = asyncio.Semaphore(8)

            async def one(number: int) -> Exchange:
                async with room:
                    return await transport.exchange(json.dumps({"number": number}).encode(), 1)

            return await asyncio.gather(*map(one, range(rows)))

    found = asyncio.run(run())
    wrong = [
        number
        for number, one in enumerate(found)
        if isinstance(one, Answered) and number_in(one.body) != number
    ]
    assert twice > rows / 3
    assert not wrong
    assert all(isinstance(one, Answered) for one in found)


def test_a_server_whose_answers_are_all_alike_is_believed() -> None:
    served = 0

    async def serve(peer: Peer) -> None:
        nonlocal served
        while True:
            await peer.read_request()
            served += 1
            peer.say(http({"number": 1}))

    async def run() -> int:
        async with (
            raw_server(serve) as server,
            connected(server.url, {}, timeout_seconds=5, max_in_flight=4) as transport,
        ):
            for _ in range(500):
                found = await transport.exchange(b"{}", 1)
                assert isinstance(found, Answered) and number_in(found.body) == 1
            return server.connections

    assert asyncio.run(run()) == 1
    assert served == 500

"""Each exchange has its own time, though one timer looks after all of them."""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from socket import SocketType, create_connection, create_server

import pytest
import uvloop
from helpers import serving
from raw_server import Peer, http, raw_server_beside
from virtual_time import Jump, VirtualLoop, run

from batchrank.sending.http_client import TimeLimit, connected
from batchrank.sending.verdicts import Answered, Exchange, Unanswered

SECONDS = 60.0
CLOSE = 1e-3
"""In virtual time every pass of the loop takes a microsecond."""


async def exchange(limit: TimeLimit, takes: float) -> float:
    """Something under the limit; when it ended. Raises `TimeoutError`."""
    async with asyncio.timeout(None) as mine:
        limit.begin(mine)
        try:
            await asyncio.sleep(takes)
        finally:
            limit.end(mine)
    return asyncio.get_running_loop().time()


async def later(limit: TimeLimit, begins: float, takes: float) -> tuple[str, float]:
    """What became of an exchange that begins then, and how long it took."""
    await asyncio.sleep(begins)
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        await exchange(limit, takes)
    except TimeoutError:
        return "late", clock() - began
    return "in time", clock() - began


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_ends_at_the_time_of_each(seed: int) -> None:
    random = Random(seed)
    # Beginnings in bunches, pauses longer than the limit among them.
    begins = [random.choice([0, 1, 200]) * random.random() for _ in range(100)]
    takes = [random.choice([0, 1, SECONDS, 10 * SECONDS]) * random.random() for _ in range(100)]

    async def all_of_them() -> list[tuple[str, float]]:
        limit = TimeLimit(SECONDS)
        return await asyncio.gather(*map(later, [limit] * 100, begins, takes))

    for took, (became, seconds) in zip(takes, run(all_of_them()), strict=True):
        assert became == ("late" if took > SECONDS else "in time")
        assert seconds == pytest.approx(min(took, SECONDS), abs=CLOSE)


def test_a_cancel_from_outside_stays_one() -> None:
    async def cancelled() -> None:
        limit = TimeLimit(SECONDS)
        tasks = [asyncio.create_task(exchange(limit, 1000)) for _ in range(3)]
        await asyncio.sleep(1)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert list(map(type, found)) == [asyncio.CancelledError, TimeoutError, TimeoutError]

    run(cancelled())


def test_nothing_is_left_once_it_is_closed() -> None:
    async def closed() -> None:
        limit = TimeLimit(SECONDS)
        await exchange(limit, 1)
        limit.close()
        await asyncio.Event().wait()

    jump = Jump()
    with (
        pytest.raises(AssertionError, match="will never come"),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(jump)) as runner,
    ):
        runner.run(closed())
    assert jump.now == pytest.approx(1, abs=CLOSE), "a timer was waited for"


def test_a_server_that_never_answers_is_not_waited_for_and_the_next_is_served(
    tmp_path: Path,
) -> None:
    script = tmp_path / "stall.toml"
    script.write_text('[[fault]]\nkind = "stall"\nwhere = { marker = "stall" }\n')

    async def asked(base_url: str) -> list[Answered | Unanswered]:
        async with connected(
            base_url + "/reranks", {}, timeout_seconds=1, max_in_flight=4
        ) as transport:
            bodies = [
                b'{"model": "qwen3-rerank", "query": "%s", "documents": ["d"]}' % query
                for query in (b"stall", b"good", b"stall", b"good")
            ]
            together = await asyncio.gather(*(transport.exchange(body, 1) for body in bodies))
            return [*together, await transport.exchange(bodies[1], 1)]

    with serving("--faults", str(script)) as server:
        found = asyncio.run(asked(server.base_url))
    late = Unanswered("no answer within 1 s", sent=True)
    assert [found[0], found[2]] == [late, late]
    for answered in (found[1], found[3], found[4]):
        assert isinstance(answered, Answered)
        assert answered.status == 200


def test_who_cannot_be_reached_was_sent_nothing() -> None:
    """A host behind a firewall that drops what comes: nothing is paid there."""

    async def asked(port: int) -> Answered | Unanswered:
        async with connected(
            f"http://127.0.0.1:{port}/reranks", {}, timeout_seconds=60, max_in_flight=1
        ) as transport:
            return await transport.exchange(b"{}", 1)

    with ExitStack() as sockets:
        server = sockets.enter_context(create_server(("127.0.0.1", 0), backlog=0))
        _fill(server, sockets)
        found = asyncio.run(asked(server.getsockname()[1]))
    assert found == Unanswered("no connection within 10 s", sent=False)


def _fill(server: SocketType, sockets: ExitStack) -> None:
    """Connect until nobody else can: nothing is ever accepted."""
    with pytest.raises(TimeoutError):
        for _ in range(10):
            sockets.enter_context(create_connection(server.getsockname(), timeout=0.5))


@pytest.mark.parametrize("stops_for", [1.3, 2.5, 5.0])
def test_what_was_answered_while_the_process_stood_still_is_taken(stops_for: float) -> None:
    """Ten requests under a limit of 1 s are answered after 0.2 s, and nobody reads that."""

    async def serve(peer: Peer) -> None:
        while True:
            await peer.read_request()
            await asyncio.sleep(0.2)
            peer.say(http({"results": []}))

    async def asked(port: int) -> list[Exchange]:
        async with connected(
            f"http://127.0.0.1:{port}/reranks", {}, timeout_seconds=1, max_in_flight=10
        ) as transport:
            tasks = []
            for _ in range(10):
                tasks.append(asyncio.create_task(transport.exchange(b"{}", 1)))
                await asyncio.sleep(0.01)
            time.sleep(stops_for)
            return await asyncio.gather(*tasks)

    with raw_server_beside(serve) as server:
        for runner in (asyncio.run, uvloop.run):
            found = runner(asked(server.port))
            assert all(isinstance(one, Answered) for one in found), found


def test_who_is_still_not_answered_after_a_standstill_ends_one_time_limit_later() -> None:
    async def serve(peer: Peer) -> None:
        await peer.reader.read()

    async def asked(port: int) -> tuple[Exchange, float]:
        async with connected(
            f"http://127.0.0.1:{port}/reranks", {}, timeout_seconds=1, max_in_flight=10
        ) as transport:
            task = asyncio.create_task(transport.exchange(b"{}", 1))
            await asyncio.sleep(0.1)
            time.sleep(3)
            began = time.monotonic()
            return await task, time.monotonic() - began

    with raw_server_beside(serve) as server:
        found, seconds = asyncio.run(asked(server.port))
    assert found == Unanswered("no answer within 1 s", sent=True)
    assert seconds > 0.9

"""A rerank endpoint in a thread of the drill, which keeps the bill: fast, and of any manners.

What it answers is a function of the request. It knows each request's content, when it came, what it
would be billed, and whether it was answered; so it is the judge of what was paid twice and of what
was sent when.
"""

import asyncio
import json
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

Answer = Callable[["Asked"], bytes | None]
"""What is sent for a request; None: the connection breaks instead."""


class Asked(NamedTuple):
    """A request: its number from 0, its path, its body, and the tokens that it weighs."""

    number: int
    path: str
    body: dict[str, Any]

    @property
    def documents(self) -> list[str]:
        documents: list[str] = self.body["documents"]
        return documents


class Till:
    """The endpoint. `seconds` is how long each answer takes."""

    def __init__(self, answer: Answer, seconds: float = 0.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.url = ""

    @property
    def requests(self) -> int:
        return len(self.times)

    @property
    def paid_twice(self) -> int:
        return self.requests - len(self.asked)

    def most_within(self, seconds: float) -> int:
        """The most requests that came within so long."""
        ends = (bisect_left(self.times, start + seconds) for start in self.times)
        return max((end - start for start, end in enumerate(ends)), default=0)

    def take(self, head: bytes, body: bytes) -> bytes | None:
        """A request has come; the whole HTTP answer, or None."""
        number = len(self.times)
        self.times.append(time.monotonic())
        name = sha256(body).hexdigest()[:16]
        self.asked[name] += 1
        self.answered.add(name)
        return self.answer(Asked(number, head.split(b" ")[1].decode(), json.loads(body)))


class _Connection(asyncio.Protocol):
    def __init__(self, till: Till, connections: set[asyncio.Transport]) -> None:
        self._till = till
        self._connections = connections
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if len(body) < int(length or 0):
            return
        self._buffer = b""
        if not head.startswith(b"POST"):
            self._send(http(b"{}", 404))
            return
        answer = self._till.take(head, body)
        if self._till.seconds:
            asyncio.get_running_loop().call_later(self._till.seconds, self._send, answer)
        else:
            self._send(answer)

    def _send(self, answer: bytes | None) -> None:
        if answer is None:
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.write(answer)


@contextmanager
def till(answer: Answer, seconds: float = 0.0) -> Iterator[Till]:
    """An endpoint that stays up while the block runs, over all kills."""
    one, ready = Till(answer, seconds), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    connections = set[asyncio.Transport]()

    async def serve() -> None:
        server = await loop.create_server(
            lambda: _Connection(one, connections), "127.0.0.1", 0, backlog=2048
        )
        one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await over.wait()
        server.close()
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0.01)  # they are closed in the loop's next pass

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="till")
    thread.start()
    try:
        assert ready.wait(30), "the endpoint did not start"
        yield one
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def http(body: bytes, status: int = 200, *headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [
        f"HTTP/1.1 {status} As it is",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def scored(asked: Asked, **more: Any) -> dict[str, Any]:
    """A sound answer; `more` are fields beside the results, such as `usage`."""
    query, documents = asked.body["query"], asked.documents
    results = [
        {"index": place, "relevance_score": _score(query, text)}
        for place, text in enumerate(documents)
    ]
    return {"results": results, "id": "x", **more}


def _score(query: str, text: str) -> float:
    digest = sha256(f"{query}\0{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

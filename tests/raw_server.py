"""A server of raw bytes on loopback: what it says is a function of what it is sent."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from queue import Queue
from threading import Thread
from typing import Any


class Peer:
    """One connection, seen from the server. `number`: which one it is, from 0."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def read_request(self) -> tuple[str, bytes]:
        """The next request: its head and its body. Raises `IncompleteReadError` at the end."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1")
        lengths = [line[15:] for line in head.lower().split("\r\n") if line[:15] == LENGTH]
        return head, await self.reader.readexactly(int(lengths[0]) if lengths else 0)

    def say(self, *content: bytes) -> None:
        """Write bytes, all at once."""
        self.writer.write(b"".join(content))


LENGTH = "content-length:"
Serve = Callable[[Peer], Awaitable[None]]


class RawServer:
    """Where it listens, and how many have connected to it."""

    def __init__(self) -> None:
        self.port = self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def raw_server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve every connection with `serve` while the block runs."""
    server = RawServer()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await serve(Peer(server.connections - 1, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 26, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@contextmanager
def raw_server_beside(serve: Serve) -> Iterator[RawServer]:
    """Serve every connection in another thread, whose loop goes on when ours does not."""
    ready: Queue[RawServer] = Queue()

    async def run(over: asyncio.Event) -> None:
        async with raw_server(serve) as server:
            ready.put(server)
            await over.wait()

    with asyncio.Runner() as runner:
        loop, over = runner.get_loop(), asyncio.Event()
        thread = Thread(target=runner.run, args=(run(over),))
        thread.start()
        try:
            yield ready.get(timeout=10)
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()


def http(body: Any, status: int = 200, *headers: str) -> bytes:
    """A whole answer; what is not bytes goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin1") + content

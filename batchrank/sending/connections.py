"""Connections that carry one answer for each request, and nothing else.

aiohttp takes whatever arrives on a connection for the answer to the request written last. A server
that answers twice, or too late, would so give a row its neighbour's scores. Here bytes that no
request asked for close their connection: while it waits in the pool, and between its choice and the
first byte of a request, when they may still be unread in the socket. An answer that comes twice may
also arrive while the next request is under way: one that equals an earlier answer of its connection
waits a moment for another to follow.

This module does not know what a request or an answer means.
"""

import asyncio
import logging
import select
from functools import partial
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from xxhash import xxh3_64_intdigest

MOST_BEFORE_HEAD = 64 * 1024
"""Bytes that may come before an answer's head is whole, interim answers (`100 Continue`) included.
aiohttp itself reads those without end."""

_ANSWERS_KNOWN = 128
"""Answers that a connection knows again: those of a tenth of a second from a fast server."""
_LEAST_DOUBT_SECONDS = 0.05
_MOST_FALSE_ALARMS = 20
"""Equal answers to different requests, after which they are taken to be the server's nature."""

_PIECE = 1 << 20
_GOOD = b"HTTP/1.1 200"
_NOT_FOR_A_PROXY = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING)

_log = logging.getLogger(__name__)


class StaleConnection(aiohttp.ClientError):
    """A kept connection was closed, or held bytes that nobody asked for; nothing was written."""


class EndlessHead(aiohttp.ClientError):
    """More came before an answer's head than any head needs."""


class Doubts:
    """How often an answer that equalled an earlier one was right all the same."""

    def __init__(self) -> None:
        self.false_alarms = 0


class GuardedProtocol(ResponseHandler):
    """aiohttp's client protocol, which reads an answer only after a request was written."""

    def __init__(self, loop: asyncio.AbstractEventLoop, doubts: Doubts) -> None:
        super().__init__(loop)
        self._doubts = doubts
        self._answers: dict[int, None] = {}
        self._digest = 0
        self._asked_at = self._slowest_seconds = 0.0
        self._doubted: bytes | None = None
        self._doubt: asyncio.TimerHandle | None = None
        self._awaits_answer = False
        self._was_used = False
        self._came_early = False
        self._has_head = False
        self._bytes_before_head = 0
        self._poll: select.poll | None = None

    @property
    def was_used(self) -> bool:
        """Whether an answer has come over this connection."""
        return self._was_used

    def expect_answer(self) -> bool:
        """Listen for the answer to a request that is written next. Return False, and close the
        connection, if it must not be used: it is closed already, or bytes came before the request.
        """
        if self._came_early or not self.is_connected() or self._has_unread_bytes():
            self._close_for("bytes or an end came before a request was written")
            return False
        self._awaits_answer, self._has_head, self._bytes_before_head = True, False, 0
        self._asked_at = self._loop.time()
        return True

    def data_received(self, data: bytes) -> None:
        if data and not self._awaits_answer:
            if self._was_used:
                self._close_for("bytes came on an idle connection")
                return
            self._came_early = True  # unless this is a proxy's answer to CONNECT
        if self._has_head:
            self._digest = 0  # it comes in pieces
            super().data_received(data)
        else:
            if self._awaits_answer and not self._bytes_before_head:
                data = self._sift(data)
            self._receive_head(data)
        if self._awaits_answer and self._has_head and self._payload_is_whole():
            self._end_answer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._take_doubted()
        super().connection_lost(exc)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a message from the parser: the answer's, and no interim or second one."""
        code = data[0].code
        if 100 <= code < 200 and code != 101:
            return
        if self._has_head and self._awaits_answer:
            self._close_for("two answers came to one request")
            return
        self._has_head = True
        super().feed_data(data, size)

    def _receive_head(self, data: bytes) -> None:
        """Parse bytes that precede the answer's body, a bounded number at a time."""
        super().data_received(data[:MOST_BEFORE_HEAD])
        self._bytes_before_head += len(data)
        if self._has_head:
            if len(data) > MOST_BEFORE_HEAD:
                super().data_received(data[MOST_BEFORE_HEAD:])
        elif self._bytes_before_head > MOST_BEFORE_HEAD:
            self.set_exception(EndlessHead())
            self._close_for("no end of what comes before the answer")

    def _sift(self, data: bytes) -> bytes:
        """Leave earlier answers out of the first bytes after a request. What equals one, and has
        nothing behind it, is put aside: it is taken where nothing follows for twice as long as any
        answer has taken.
        """
        if self._doubted is not None or data.find(_GOOD, 1) > 0:
            data = self._pass_over_repeats(data)
        seconds = self._loop.time() - self._asked_at
        if seconds > self._slowest_seconds:
            self._slowest_seconds = seconds
        self._digest = xxh3_64_intdigest(data) if data.startswith(_GOOD) else 0
        if self._digest not in self._answers or self._doubts.false_alarms >= _MOST_FALSE_ALARMS:
            return data
        self._doubted = data
        patience = _LEAST_DOUBT_SECONDS + 2 * self._slowest_seconds
        self._doubt = self._loop.call_later(patience, self._take_doubted)
        return b""

    def _pass_over_repeats(self, data: bytes) -> bytes:
        """Drop what was put aside, since more has come, and earlier answers before the last."""
        is_repeated = self._stop_doubting() is not None
        while (end := data.find(_GOOD, 1)) > 0 and xxh3_64_intdigest(data[:end]) in self._answers:
            data, is_repeated = data[end:], True
        if is_repeated:
            self._doubts.false_alarms = 0
            self.force_close()
            _log.debug("an answer that came twice was passed over")
        return data

    def _stop_doubting(self) -> bytes | None:
        """Forget the answer that was put aside, and return it."""
        if self._doubt is not None:
            self._doubt.cancel()
        data, self._doubted, self._doubt = self._doubted, None, None
        return data

    def _take_doubted(self) -> None:
        """Take the answer that was put aside, since no other came."""
        data = self._stop_doubting()
        if data is not None:
            self._doubts.false_alarms += 1
            self._receive_head(data)
            if self._has_head and self._payload_is_whole():
                self._end_answer()

    def _end_answer(self) -> None:
        self._awaits_answer, self._was_used = False, True
        if self._digest:
            self._answers[self._digest] = None
            if len(self._answers) > _ANSWERS_KNOWN:
                del self._answers[next(iter(self._answers))]

    def _payload_is_whole(self) -> bool:
        return self._payload is not None and self._payload.is_eof()

    def _has_unread_bytes(self) -> bool:
        """Ask the socket itself: the event loop may not have read what has arrived. A new TLS
        connection is not asked, since session tickets may lie there.
        """
        if self._poll is None:
            assert self.transport is not None
            if not self._was_used and self.transport.get_extra_info("ssl_object") is not None:
                return False
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def _close_for(self, reason: str) -> None:
        """Close the connection. An answer that is whole can still be read."""
        _log.debug("a connection was closed: %s", reason)
        self._stop_doubting()
        self._awaits_answer, self._was_used = False, True
        self.force_close()
        if self.transport is not None:
            self.transport.close()


class GuardedConnector(aiohttp.TCPConnector):
    """aiohttp's pool of connections, each of them guarded. A proxy is told nothing but where to
    connect to.
    """

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._factory = partial(GuardedProtocol, self._loop, Doubts())  # type: ignore[assignment]

    def _update_proxy_auth_header_and_build_proxy_req(
        self, req: aiohttp.ClientRequest
    ) -> aiohttp.ClientRequest:
        built = super()._update_proxy_auth_header_and_build_proxy_req(req)
        for name in _NOT_FOR_A_PROXY:
            built.headers.pop(name, None)
        return built


class RequestBody(aiohttp.Payload):
    """A request's body. It knows whether any byte of the request may have left: head and body
    are written together. `is_stale`: it met a kept connection that is of no use any more.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content, content_type="application/json")
        self._content = content
        self._size = len(content)
        self.is_begun = self.is_stale = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._content, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        protocol = writer.protocol  # type: ignore[attr-defined]
        self.is_stale = protocol.was_used
        if not protocol.expect_answer():
            raise StaleConnection
        self.is_begun, self.is_stale = True, False
        for start in range(0, len(self._content) or 1, _PIECE):
            await writer.write(self._content[start : start + _PIECE])

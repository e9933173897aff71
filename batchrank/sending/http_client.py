"""One HTTP client: bytes out, a whole answer or the reason why none came back.

What aiohttp does by default and must not do here: follow a redirect (a 307 takes body and key
headers along), raise for a status (the exception's repr prints the key), count time spent queueing
as time-out, unpack gzip without a bound, keep cookies. It never sends a POST twice by itself.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from email.utils import formatdate

import aiohttp
from multidict import CIMultiDict

from batchrank.config.proxy import Proxy, find_proxy
from batchrank.sending.connections import (
    MOST_BEFORE_HEAD,
    EndlessHead,
    GuardedConnector,
    RequestBody,
)
from batchrank.sending.packed_bodies import unpack
from batchrank.sending.verdicts import Answered, Exchange, Unanswered

CONNECT_SECONDS = 10.0
STANDSTILL_SECONDS = 1.0
"""No timer of a loop at work is as late as this; one that is late by `_DELAY_SECONDS` may be."""
_DELAY_SECONDS = 0.02
_READING_SECONDS = 0.25

_BYTES_PER_RESULT = 512
_BYTES_BESIDES = 256 * 1024
_MOST_ECHOED = 6
"""Bytes of an answer for each that was sent: vLLM and Infinity echo the documents, whether asked to
or not, and no escape of JSON makes more than six bytes of one."""
_PASSING_PROXY_STATUSES = {408, 425, 429}
"""A proxy's 5xx pass as well; its other answers to CONNECT do not."""
_ADVICE = {
    403: ": it does not let requests to this endpoint through",
    407: ": it wants a name and password, as http://name:password@host:port",
}


class Transport:
    """Sends request bodies to one URL. Made by `connected`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: CIMultiDict[str] | None,
        limit: "TimeLimit",
        proxy: Proxy | None,
    ) -> None:
        self._session = session
        self._url = url
        self._headers = headers
        self._limit = limit
        self._proxy = proxy
        self._was_answered = False

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        """Send one request of so many documents; the answer, or why there is none.

        A kept connection that turns out to be of no use before a byte is written gives way to the
        next one: there are as many at the most as there are connections.
        """
        while True:
            request = RequestBody(body)
            try:
                async with asyncio.timeout(None) as mine:
                    self._limit.begin(mine)
                    try:
                        return await self._exchanged(request, documents)
                    finally:
                        self._limit.end(mine)
            except (aiohttp.ClientError, TimeoutError) as error:
                if not request.is_stale:
                    return self._unanswered(error, sent=request.is_begun)

    async def _exchanged(self, request: RequestBody, documents: int) -> Exchange:
        async with self._session.post(
            self._url, data=request, headers=self._headers, allow_redirects=False
        ) as response:
            self._was_answered = True
            cap = (
                _BYTES_BESIDES + documents * _BYTES_PER_RESULT + _MOST_ECHOED * (request.size or 0)
            )
            content, encoding = await _capped(response, cap), None
            if content is not None and content[:1] not in (b"{", b"["):
                encoding = response.headers.get("Content-Encoding")
                content, encoding = unpack(content, encoding, cap)
            if content is None and response.status >= 400:
                content = b""  # an error that echoes the request, as pydantic's do
            if content is None:
                return Unanswered(f"the answer is larger than {cap:,} bytes", sent=True)
            headers = response.headers
            retry_after = headers.get("Retry-After")
            date = None if retry_after is None else headers.get("Date") or formatdate(usegmt=True)
            tokens = headers.get("x-compute-tokens")
            return Answered(response.status, content, retry_after, date, tokens, encoding)

    def _unanswered(self, error: aiohttp.ClientError | TimeoutError, *, sent: bool) -> Unanswered:
        """Say why no answer came. `sent`: a byte of the request may have left."""
        match error:
            case aiohttp.ClientConnectorCertificateError():
                reason = "the endpoint's certificate is not trusted"
                return Unanswered(reason, sent=False, hopeless=True)
            case aiohttp.ClientConnectorSSLError():
                return self._without_tls(error)
            case _ if self._proxy is not None and not sent:
                return self._unanswered_by_proxy(self._proxy, error)
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                return Unanswered(_connection(error), sent=False)
            case TimeoutError():  # aiohttp's of a connection is one as well: after that
                return Unanswered(f"no answer within {self._limit.seconds:g} s", sent=sent)
            case EndlessHead():
                reason = f"no answer within the first {MOST_BEFORE_HEAD:,} bytes"
                return Unanswered(reason, sent=sent)
        # The name only: an aiohttp message can hold headers.
        return Unanswered(f"the connection broke ({type(error).__name__})", sent=sent)

    def _without_tls(self, error: aiohttp.ClientConnectorSSLError) -> Unanswered:
        """Say that a handshake failed, which may pass, unless nobody there speaks TLS."""
        why = getattr(error.os_error, "reason", None) or type(error.os_error).__name__
        if why == "WRONG_VERSION_NUMBER" and not self._was_answered:
            reason = "the endpoint does not speak TLS; does it want an http:// address"
            return Unanswered(reason, sent=False, hopeless=True)
        return Unanswered(f"the TLS handshake failed ({why})", sent=False)

    def _unanswered_by_proxy(
        self, proxy: Proxy, error: aiohttp.ClientError | TimeoutError
    ) -> Unanswered:
        """Say what a proxy did in place of connecting. The request was not sent. A refusal is a
        mistake in the settings where nothing was ever answered through this proxy.
        """
        hopeless = False
        match error:
            case aiohttp.ClientHttpProxyError(status=status):
                what = f"answered {status} to CONNECT{_ADVICE.get(status, '')}"
                hopeless = not 500 <= status < 600 and status not in _PASSING_PROXY_STATUSES
            case aiohttp.ClientConnectorDNSError(os_error=os_error):
                what = "cannot be resolved"
                hopeless = os_error.errno == socket.EAI_NONAME
            case aiohttp.ClientConnectorError():
                what = "refused the connection"
            case aiohttp.ConnectionTimeoutError():
                what = f"gave no connection within {CONNECT_SECONDS:g} s"
            case TimeoutError():
                what = f"gave no answer within {self._limit.seconds:g} s"
            case _:
                what = "did not answer CONNECT as a proxy does"
        return Unanswered(
            f"{proxy.name} {what}", sent=False, hopeless=hopeless and not self._was_answered
        )


class TimeLimit:
    """How long each exchange may take: the same for all, so the first to begin is the first that
    is late, and one timer waits for that. A timer for each cost 11 us of the 75 that an exchange
    takes of the CPU.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ends: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = 0.0
        self._reads_first = False

    def begin(self, exchange: asyncio.Timeout) -> None:
        """An exchange begins; its block ends with `TimeoutError` when its time is up."""
        end = self._ends[exchange] = self._loop.time() + self.seconds
        if self._timer is None:
            self._look_at(end)

    def end(self, exchange: asyncio.Timeout) -> None:
        """It has ended, in time or not."""
        self._ends.pop(exchange, None)

    def close(self) -> None:
        """Nothing begins any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """End those that are late, and look again when the next one will be.

        A timer that is late itself tells that the process stood still: it was stopped, or the
        machine slept. What was answered meanwhile lies unread in the sockets, and is paid. After a
        short delay the loop reads it first; after a long one everybody has the whole time again.
        """
        now = self._loop.time()
        delay = now - self._next_look
        if delay > STANDSTILL_SECONDS:
            self._ends = dict.fromkeys(self._ends, now + self.seconds)
        elif delay > _DELAY_SECONDS and not self._reads_first:
            self._reads_first = True
            self._look_at(now + _READING_SECONDS)
            return
        self._timer, self._reads_first = None, False
        for exchange, end in list(self._ends.items()):
            if end > now:
                self._look_at(end)
                return
            del self._ends[exchange]
            exchange.reschedule(now)

    def _look_at(self, end: float) -> None:
        self._next_look = end
        self._timer = self._loop.call_at(end, self._look)


@asynccontextmanager
async def connected(
    url: str, headers: Mapping[str, str], *, timeout_seconds: float, max_in_flight: int
) -> AsyncIterator[Transport]:
    """A transport to `url` over at most `max_in_flight` connections. Raises `ConfigInvalid` where
    the environment names a proxy that cannot be used.
    """
    # Looked up once: aiohttp's `trust_env` asks a thread, and reads ~/.netrc, at every request (a
    # fifth of its cost, measured).
    proxy = find_proxy(url)
    sent = CIMultiDict({"Content-Type": "application/json", "Accept-Encoding": "identity"})
    for name, value in headers.items():
        sent[name] = value  # the last of those that are alike but for the case
    # A session's own headers go to its proxy as well, in clear, with the key among them: through a
    # proxy they go with each request, which costs 6 % of it.
    async with aiohttp.ClientSession(
        connector=GuardedConnector(limit=max_in_flight, keepalive_timeout=10),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "User-Agent"),
        headers=sent if proxy is None else None,
        proxy=None if proxy is None else proxy.address,
    ) as session:
        with closing(TimeLimit(timeout_seconds)) as limit:
            yield Transport(session, url, None if proxy is None else sent, limit, proxy)


async def _capped(response: aiohttp.ClientResponse, cap: int) -> bytes | None:
    """The body, or None as soon as it proves larger than `cap` (its connection is dropped)."""
    if response.content_length is not None:
        if response.content_length <= cap:
            return await response.read()
        response.close()
        return None
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > cap:
            response.close()
            return None
    return bytes(body)


def _connection(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the endpoint's name cannot be resolved"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {CONNECT_SECONDS:g} s"
    return "the connection was refused"

"""One HTTP client: bytes out, a whole answer or the reason why none came back.

What aiohttp does by default and must not do here: follow a redirect (a 307 takes body and key
headers along), raise for a status (the exception's repr prints the key), count time spent queueing
as time-out, unpack gzip without a bound, keep cookies. It never sends a POST twice by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from email.utils import formatdate
from io import BytesIO
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from batchrank.retry import Answered, Exchange, Unanswered

CONNECT_SECONDS = 10.0
_BYTES_PER_RESULT = 512
_LARGE = 1 << 20
_BYTES_BESIDES = 256 * 1024


class Transport:
    """Sends request bodies to one URL. Made by `connected`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, limit: "TimeLimit") -> None:
        self._session = session
        self._url = url
        self._limit = limit

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        """Send one request of so many documents; the answer, or why there is none."""
        try:
            async with asyncio.timeout(None) as mine:
                self._limit.begin(mine)
                try:
                    return await self._exchanged(body, documents)
                finally:
                    self._limit.end(mine)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
            reason = "the endpoint's certificate is not trusted"
            return Unanswered(reason, sent=False, hopeless=True)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Unanswered(_connection(error), sent=False)
        except TimeoutError:  # aiohttp's of a connection is one as well: after that
            return Unanswered(f"no answer within {self._limit.seconds:g} s", sent=True)
        except aiohttp.ClientError as error:
            # The name only: an aiohttp message can hold headers.
            return Unanswered(f"the connection broke ({type(error).__name__})", sent=True)

    async def _exchanged(self, body: bytes, documents: int) -> Exchange:
        async with self._session.post(
            self._url, data=_payload(body), allow_redirects=False
        ) as response:
            cap = _BYTES_BESIDES + documents * _BYTES_PER_RESULT
            content = await _capped(response, cap)
            if content is None and response.status >= 400:
                content = b""  # an error that echoes the request, as pydantic's do
            if content is None:
                return Unanswered(f"the answer is larger than {cap:,} bytes", sent=True)
            headers = response.headers
            retry_after = headers.get("Retry-After")
            date = None if retry_after is None else headers.get("Date") or formatdate(usegmt=True)
            tokens = headers.get("x-compute-tokens")
            return Answered(response.status, content, retry_after, date, tokens)


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

    def begin(self, exchange: asyncio.Timeout) -> None:
        """An exchange begins; its block ends with `TimeoutError` when its time is up."""
        end = self._ends[exchange] = self._loop.time() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._look)

    def end(self, exchange: asyncio.Timeout) -> None:
        """It has ended, in time or not."""
        self._ends.pop(exchange, None)

    def close(self) -> None:
        """Nothing begins any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """End those that are late, and look again when the next one will be."""
        self._timer, now = None, self._loop.time()
        for exchange, end in list(self._ends.items()):
            if end > now:
                self._timer = self._loop.call_at(end, self._look)
                return
            del self._ends[exchange]
            exchange.reschedule(now)


@asynccontextmanager
async def connected(
    url: str, headers: Mapping[str, str], *, timeout_seconds: float, max_in_flight: int
) -> AsyncIterator[Transport]:
    """A transport to `url` over at most `max_in_flight` connections."""
    connector = aiohttp.TCPConnector(limit=max_in_flight, keepalive_timeout=10)
    async with aiohttp.ClientSession(
        connector=connector,
        headers={
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        },
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "User-Agent"),
        proxy=_proxy(url),
    ) as session:
        with closing(TimeLimit(timeout_seconds)) as limit:
            yield Transport(session, url, limit)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this URL, looked up once: aiohttp's `trust_env`
    asks a thread, and reads ~/.netrc, at every request (a fifth of its cost, measured).
    """
    parts = urlsplit(url)
    if parts.hostname in {"127.0.0.1", "localhost", "::1"} or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


def _payload(body: bytes) -> aiohttp.BytesPayload | BytesIO:
    """As aiohttp keeps it, which spares it finding out what this is; it wants a large body as a
    file, to write it in pieces.
    """
    if len(body) < _LARGE:
        return aiohttp.BytesPayload(body, content_type="application/json")
    return BytesIO(body)


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

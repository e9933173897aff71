"""The coordinator as a process: leases over HTTP, on loopback unless told otherwise.

POST /lease takes an `Ask` and answers with a `Lease` or a `Refusal`; GET /health says ok and what
each worker may be using. A lease is given for a secret, which goes as it is: keep it, and the port,
inside a network of one's own. No text and no key of the endpoint comes here.

A web page in a browser on this machine reaches loopback too, under a name of its own that it points
there. So what a browser says for a page (an `Origin`, another host's name, a form's content type)
is refused before anything is read.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import msgspec
import uvloop
from aiohttp import web
from msgspec.structs import replace

from batchrank.account.coordinator import Ask, Coordinator, Lease
from batchrank.account.secret import is_loopback, make_secret, remove_secret
from batchrank.config.settings import COORDINATOR_KEY
from batchrank.errors import ConfigInvalid
from batchrank.server.http_server import bears, bound

MOST_BYTES = 1 << 20
SHUTDOWN_SECONDS = 1.0
_JSON = "application/json"

# aiohttp's own reports quote request lines and headers, the secret among them.
_silent = logging.Logger("batchrank.account.service.http", logging.CRITICAL + 1)


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LeaseApi:
    """A coordinator's door, open to those who bear the secret and name one of these hosts, as in
    `127.0.0.1:8766`. Without `hosts` every name will do: it may have many in a network.
    """

    def __init__(
        self, coordinator: Coordinator, secret: str, hosts: frozenset[str] | None = None
    ) -> None:
        self._coordinator = coordinator
        self._secret = secret
        self._hosts = hosts
        # Counted on from one reading: the machine's clock may be put right meanwhile.
        self._unix_from = time.time() - time.monotonic()

    def application(self) -> web.Application:
        """The routes, as aiohttp serves them."""

        @web.middleware
        async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            refused = self._refusal(request)
            return await handler(request) if refused is None else _answer({"error": refused}, 403)

        app = web.Application(client_max_size=MOST_BYTES, middlewares=[guard])
        app.router.add_post("/lease", self._lease)
        app.router.add_get("/health", self._health)
        return app

    def _refusal(self, request: web.Request) -> str | None:
        """Return why this cannot come from a worker, or a person's own tool."""
        names = [name.lower() for name in request.headers.getall("Host", [])]
        if len(names) != 1 or (self._hosts is not None and names[0] not in self._hosts):
            return "the Host is another's"
        if "Origin" in request.headers:
            return "a web page may not ask"
        if request.method not in ("GET", "HEAD") and request.content_type != _JSON:
            return f"the content type must be {_JSON}"
        return None

    async def _health(self, request: web.Request) -> web.Response:
        shares = {str(seat): round(share, 4) for seat, share in self._coordinator.shares.items()}
        return _answer({"status": "ok", "shares": shares})

    async def _lease(self, request: web.Request) -> web.Response:
        if not bears(request, self._secret):
            return _answer({"error": "the secret is wrong or missing"}, 401)
        try:
            ask = msgspec.json.decode(await request.read(), type=Ask)
            answer = self._coordinator.renew(ask, time.monotonic())
        except (msgspec.DecodeError, ValueError, RecursionError):
            return _answer({"error": "not an ask for a lease"}, 400)
        if isinstance(answer, Lease):
            answer = replace(answer, instant=time.monotonic() + self._unix_from)
        return _answer(answer)


def _answer(what: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(what), status=status, content_type=_JSON)


def run(
    make: Callable[[float], Coordinator],
    secret: str | None,
    host: str,
    port: int,
    announce: Callable[[str], None],
) -> None:
    """Coordinate until SIGTERM or SIGINT. `make` makes the coordinator of that instant; `announce`
    gets the URL once it answers.
    """
    if secret is None and not is_loopback(host):
        raise ConfigInvalid(
            f"--host {host} is reached from other machines, and there is no secret to ask for: set "
            f"{COORDINATOR_KEY} here and for the workers."
        )
    uvloop.run(_coordinate(make(time.monotonic()), secret, host, port, announce))


async def _coordinate(
    coordinator: Coordinator,
    secret: str | None,
    host: str,
    port: int,
    announce: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(coordinator, secret, host, port) as url:
        announce(url)
        await stop.wait()


@asynccontextmanager
async def serving(
    coordinator: Coordinator, secret: str | None, host: str, port: int
) -> AsyncIterator[str]:
    """Answer while the block runs; the URL. Port 0 is any free one. Without a secret there is one
    in a file, for the same user on the same machine. Raises `ConfigInvalid`.
    """
    with bound(host, port) as door, ExitStack() as leaving:
        if secret is None and port == 0:  # nobody comes back to a port that nobody chose
            leaving.callback(lambda: remove_secret(port))
        port = door.getsockname()[1]
        # The port is ours now, and nobody is let in before the secret is in its file.
        api = LeaseApi(coordinator, secret or make_secret(port), own_hosts(host, port))
        runner = web.AppRunner(
            api.application(), access_log=None, logger=_silent, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await runner.setup()
        try:
            await web.SockSite(runner, door).start()
            yield f"http://{_bracketed(host)}:{port}"
        finally:
            await runner.cleanup()


def own_hosts(host: str, port: int) -> frozenset[str] | None:
    """Return what a request to a coordinator at this address may name as its host; None for any."""
    if not is_loopback(host):
        return None
    names = ("localhost", "127.0.0.1", "[::1]", _bracketed(host))
    own = frozenset(f"{name}:{port}" for name in names)
    return own | frozenset(names) if port == 80 else own


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

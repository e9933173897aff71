"""The coordinator as a process: leases over HTTP, on loopback unless told otherwise.

POST /lease takes an `Ask` and answers with a `Lease` or a `Refusal`; GET /health says ok and what
each worker may be using. Beyond loopback a secret is asked for, which goes as it is: keep it, and
the port, inside a network of one's own. No text and no key of the endpoint comes here.
"""

import asyncio
import ipaddress
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import uvloop
from aiohttp import web
from msgspec.structs import replace

from batchrank.errors import ConfigInvalid
from batchrank.lease import Ask, Coordinator, Lease
from batchrank.server.door import bears, listen

MOST_BYTES = 1 << 20
SHUTDOWN_SECONDS = 1.0
_JSON = "application/json"

# aiohttp's own reports quote request lines and headers, the secret among them.
_silent = logging.Logger("batchrank.coordinator.http", logging.CRITICAL + 1)


class LeaseApi:
    """A coordinator's door. `secret` None: everybody who reaches it may come in."""

    def __init__(self, coordinator: Coordinator, secret: str | None) -> None:
        self._coordinator = coordinator
        self._secret = secret
        # Counted on from one reading: the machine's clock may be put right meanwhile.
        self._unix_from = time.time() - time.monotonic()

    def application(self) -> web.Application:
        """The routes, as aiohttp serves them."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/lease", self._lease)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        shares = {str(seat): round(share, 4) for seat, share in self._coordinator.shares.items()}
        return _answer({"status": "ok", "shares": shares})

    async def _lease(self, request: web.Request) -> web.Response:
        if self._secret is not None and not bears(request, self._secret):
            return _answer({"error": "the secret is wrong or missing"}, 401)
        try:
            ask = msgspec.json.decode(await request.read(), type=Ask)
            answer = self._coordinator.renew(ask, time.monotonic())
        except (msgspec.DecodeError, ValueError):
            return _answer({"error": "not an ask for a lease"}, 400)
        if isinstance(answer, Lease):
            answer = replace(answer, instant=time.monotonic() + self._unix_from)
        return _answer(answer)


def _answer(what: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(what), status=status, content_type=_JSON)


def is_loopback(host: str) -> bool:
    """Whether nobody from another machine can knock there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
            "BATCHRANK_COORDINATOR_KEY here and for the workers."
        )
    uvloop.run(_coordinate(LeaseApi(make(time.monotonic()), secret), host, port, announce))


async def _coordinate(api: LeaseApi, host: str, port: int, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(api, host, port) as url:
        announce(url)
        await stop.wait()


@asynccontextmanager
async def serving(api: LeaseApi, host: str, port: int) -> AsyncIterator[str]:
    """Answer while the block runs; the URL. Port 0 is any free one."""
    runner = web.AppRunner(
        api.application(), access_log=None, logger=_silent, shutdown_timeout=SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        yield await listen(runner, host, port)
    finally:
        await runner.cleanup()

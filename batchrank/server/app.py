"""The local rerank API as a server on loopback, and only there.

`serving` is for tests, in their own loop; `run` is the process behind `batchrank serve`, and the
child that `batchrank run` starts for its default provider.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from batchrank.planning import tokens
from batchrank.server.api import RerankApi
from batchrank.server.http_server import listen
from batchrank.server.routes import COMPATIBLE_BASE
from batchrank.server.settings import ServerSettings

if TYPE_CHECKING:
    from batchrank.server.scorers.embedded import Scorer

__all__ = ["ServerSettings", "run", "serving"]

KEEP_ALIVE_SECONDS = 75.0
SHUTDOWN_SECONDS = 2.0
BACKLOG = 1024

# aiohttp's own reports quote request lines and headers, the key among them.
_silent = logging.Logger("batchrank.server.http", logging.CRITICAL + 1)


@asynccontextmanager
async def serving(settings: ServerSettings, scorer: "Scorer", port: int = 0) -> AsyncIterator[str]:
    """Serve on 127.0.0.1 while the block runs; yields http://127.0.0.1:PORT. Port 0: any free."""
    await asyncio.to_thread(tokens.count, "")  # the vocabulary loads once, and not in a request
    api = RerankApi(settings, scorer)
    runner = web.AppRunner(
        api.application(),
        access_log=None,
        logger=_silent,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        yield await listen(runner, "127.0.0.1", port, BACKLOG)
    finally:
        await runner.cleanup()
        api.close()


def run(
    settings: ServerSettings,
    scorer_factory: Callable[[], "Scorer"],
    port: int,
    announce: Callable[[str], None],
    *,
    until_stdin_closes: bool,
) -> None:
    """Serve until SIGTERM, SIGINT or, on demand, the end of standard input.

    `announce` gets the OpenAI-compatible base URL once requests are answered.
    """
    uvloop.run(_serve(settings, scorer_factory, port, announce, until_stdin_closes))


async def _serve(
    settings: ServerSettings,
    scorer_factory: Callable[[], "Scorer"],
    port: int,
    announce: Callable[[str], None],
    until_stdin_closes: bool,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # Before the scorer loads: a process 1 without handlers does not even hear SIGTERM.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    scorer = await asyncio.to_thread(scorer_factory)
    async with serving(settings, scorer, port) as host:
        announce(host + COMPATIBLE_BASE)
        await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Read to the end in a thread: an event loop cannot watch every kind of standard input."""
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)

"""What each server of ours does at its door: listen, or say why not, and ask for a secret."""

import hmac
import os

from aiohttp import web

from batchrank.errors import ConfigInvalid


async def listen(runner: web.AppRunner, host: str, port: int, backlog: int = 128) -> str:
    """Listen there; the URL. Port 0 is any free one. Raises `ConfigInvalid`."""
    try:
        await web.TCPSite(runner, host, port, backlog=backlog).start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigInvalid(
            f"{host}, port {port}: {reason}. Choose another port, or 0 for any."
        ) from None
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{runner.addresses[0][1]}"


def bears(request: web.Request, secret: str) -> bool:
    """Whether a request has the secret; however much of it is right, that takes as long."""
    given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, f"Bearer {secret}".encode())

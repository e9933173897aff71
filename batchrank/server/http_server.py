"""What each server of ours does at its door: listen, or say why not, and ask for a secret."""

import hmac
import os
import socket

from aiohttp import web

from batchrank.errors import ConfigInvalid


async def listen(runner: web.AppRunner, host: str, port: int, backlog: int = 128) -> str:
    """Listen there; the URL. Port 0 is any free one. Raises `ConfigInvalid`."""
    try:
        await web.TCPSite(runner, host, port, backlog=backlog).start()
    except OSError as error:
        raise _refused(host, port, error) from None
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{runner.addresses[0][1]}"


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has this address, and listens once it is served. Port 0 is any free one.
    Raises `ConfigInvalid`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        door = socket.socket(family, kind, protocol)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
        except OSError:
            door.close()
            raise
    except OSError as error:
        raise _refused(host, port, error) from None
    return door


def _refused(host: str, port: int, error: OSError) -> ConfigInvalid:
    reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    return ConfigInvalid(f"{host}, port {port}: {reason}. Choose another port, or 0 for any.")


def bears(request: web.Request, secret: str) -> bool:
    """Whether a request has the secret; however much of it is right, that takes as long."""
    given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, f"Bearer {secret}".encode())

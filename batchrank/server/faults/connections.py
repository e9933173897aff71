"""A chosen fault, carried out on the connection.

What decides is `faults`; what is billed is `app`'s. Here a request and, where it was scored, the
bytes of its right answer become what the client gets to see. `None` instead of a response: the
connection is gone, and no status was answered.
"""

import asyncio
import os
import socket
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache
from random import Random

from aiohttp import web

from batchrank.server.errors import MESSAGES, Refused, invalid_value
from batchrank.server.faults.replies import damaged
from batchrank.server.faults.script import Fault, Seen

JSON = "application/json"
# Long enough for the peer to have read what came before a reset: on loopback an RST overtakes
# bytes that are still in the receiver's queue.
SETTLE_SECONDS = 0.02
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
# Stands in for an answer where the fault says that nothing was scored.
_STAND_IN = b'{"object":"list","results":[{"index":0,"relevance_score":0.5}]}'


async def break_answer(
    request: web.Request, fault: Fault, seen: Seen, answer: bytes | None, random: Random
) -> web.StreamResponse | None:
    """Answer as the fault says. Raises `Refused` for an error envelope."""
    body = _STAND_IN if answer is None else answer
    match fault.kind:
        case "status" | "content_refusal" | "size_refusal":
            raise refusal(fault, seen)
        case "html":
            return _page(fault.status or 502)
        case "redirect":
            location = {"Location": fault.location or ""}
            return web.Response(status=fault.status or 307, headers=location)
        case "slow":
            await asyncio.sleep(fault.seconds or 0)
            return web.Response(body=body, content_type=JSON)
        case "drip":
            return await _drip(request, body, fault.bytes_per_second or 1)
        case "gzip_bomb":
            return await _bomb(body, fault.megabytes or 300)
        case "stall":
            await asyncio.Event().wait()  # until the client leaves: the handler is then cancelled
            return None
        case "reset_unread" | "reset_before_headers" | "reset_inside_headers" | "reset_inside_body":
            await _reset(request, _before_reset(fault.kind, body), fault.abrupt is not False)
            return None
        case kind:
            changed = damaged(kind, body, len(seen.documents), random)
            return web.Response(body=changed, content_type=JSON)


def refusal(fault: Fault, seen: Seen) -> Refused:
    """The error envelope of a fault that answers with one."""
    defaults: dict[str, Callable[[Fault, Seen], Refused]] = {
        "content_refusal": _content_refusal,
        "size_refusal": _size_refusal,
    }
    usual = defaults.get(fault.kind, _status)(fault, seen)
    return Refused(
        fault.status or usual.status,
        fault.code or usual.code,
        fault.message or usual.message,
        retry_after=_retry_after(fault),
        nested=fault.nested,
    )


def _status(fault: Fault, seen: Seen) -> Refused:
    return Refused(fault.status or 500, fault.code or "InternalError")


def _content_refusal(fault: Fault, seen: Seen) -> Refused:
    code = "DataInspectionFailed"
    marker = fault.where.marker or ""
    named = [index for index, document in enumerate(seen.documents) if marker in document]
    if not (fault.names_document and named):
        return Refused(400, code)
    return Refused(400, code, f"{MESSAGES[code]} document index:{named[0]}: input.documents")


def _size_refusal(fault: Fault, seen: Seen) -> Refused:
    if fault.status != 400:
        return Refused(413, "BadRequest.TooLarge")
    limit = (
        f"{fault.where.documents_over} documents"
        if fault.where.documents_over is not None
        else f"{fault.where.bytes_over} bytes"
    )
    return invalid_value(
        f"the request is too long, it should not be larger than {limit}", "input.documents"
    )


def _retry_after(fault: Fault) -> str | None:
    if fault.retry_after_date is not None:
        date = datetime.now(UTC) + timedelta(seconds=fault.retry_after_date)
        return format_datetime(date, usegmt=True)
    if fault.retry_after is None:
        return None
    if isinstance(fault.retry_after, float):
        return f"{fault.retry_after:g}"
    return str(fault.retry_after)


def _page(status: int) -> web.Response:
    title = "502 Bad Gateway" if status == 502 else f"{status} from a proxy"
    return web.Response(status=status, text=_PAGE.format(title), content_type="text/html")


async def _drip(request: web.Request, body: bytes, bytes_per_second: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = len(body)
    await response.prepare(request)
    for byte in body:
        await response.write(bytes((byte,)))
        await asyncio.sleep(1 / bytes_per_second)
    await response.write_eof()
    return response


async def _bomb(body: bytes, megabytes: int) -> web.Response:
    packed = await asyncio.to_thread(_packed, body, megabytes)
    return web.Response(body=packed, content_type=JSON, headers={"Content-Encoding": "gzip"})


def _packed(body: bytes, megabytes: int) -> bytes:
    blanks, so_far = _blanks(megabytes)
    gzip = so_far.copy()
    return blanks + gzip.compress(body) + gzip.flush()


@lru_cache(maxsize=4)
def _blanks(megabytes: int) -> "tuple[bytes, zlib._Compress]":
    """Compressed blanks and the compressor after them: 300 MB take a second, once."""
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = b" " * 2**20
    return b"".join(gzip.compress(megabyte) for _ in range(megabytes)), gzip


def _before_reset(kind: str, body: bytes) -> bytes:
    head = _HEAD.format(len(body)).encode()
    if kind == "reset_inside_headers":
        return head[: len(head) // 2]
    if kind == "reset_inside_body":
        return head + body[: len(body) // 2]
    return b""


async def _reset(request: web.Request, first: bytes, abrupt: bool) -> None:
    """End the connection after `first`: with RST, or with FIN as a peer that closes early."""
    transport = request.transport
    if transport is None:
        return
    if first:
        transport.write(first)
        await asyncio.sleep(SETTLE_SECONDS)
    if abrupt:
        _linger_zero(transport.get_extra_info("socket").fileno())
    transport.abort()


def _linger_zero(descriptor: int) -> None:
    """Have the kernel send RST when this connection is closed.

    The option belongs to the connection, so a second descriptor sets it as well; uvloop's own
    socket objects do not take options.
    """
    with socket.socket(fileno=os.dup(descriptor)) as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

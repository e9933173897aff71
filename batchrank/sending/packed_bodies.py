"""Bodies that come packed although nobody asked for that: some gateways compress whatever passes.

Unpacked within a bound, since 284 KB of gzip can make 300 MB.
"""

import zlib

_ANY_HEADER = zlib.MAX_WBITS | 32
_NO_HEADER = -zlib.MAX_WBITS
_GZIP = b"\x1f\x8b"


def unpack(body: bytes, encoding: str | None, cap: int) -> tuple[bytes | None, str | None]:
    """Return the plain body, or None if it is larger than `cap`; and the encoding that it still
    has, where that is none of gzip and deflate.
    """
    name = (encoding or "").strip().lower()
    if name in ("gzip", "x-gzip", "deflate") or body.startswith(_GZIP):
        for header in (_ANY_HEADER, _NO_HEADER):
            try:
                return _inflate(body, header, cap), None
            except zlib.error:
                continue
    return body, None if name in ("", "identity") else name


def _inflate(body: bytes, header: int, cap: int) -> bytes | None:
    """Unpack a body of one member, or of several one after the other. Raises `zlib.error`."""
    plain = bytearray()
    while body:
        member = zlib.decompressobj(header)
        plain += member.decompress(body, cap + 1 - len(plain))
        if len(plain) > cap:
            return None
        if not member.eof:
            raise zlib.error("cut off")
        body = member.unused_data
    return bytes(plain)

"""Where an endpoint is, and what is sent along with each request: checked before anything is."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from batchrank.config.proxy import is_loopback
from batchrank.errors import ConfigInvalid

_OWNED = {
    *("host", "content-length", "content-encoding", "transfer-encoding", "te", "trailer"),
    *("connection", "keep-alive", "upgrade", "expect", "accept-encoding"),
    *("proxy-authorization", "proxy-connection"),
}
"""Headers that say how a request travels: the client's own."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


def check_base_url(url: str, name: str, *, insecure_http: bool) -> None:
    """Refuse what no request could go to, or not safely. `name` is the configuration's. Raises
    `ConfigInvalid`.
    """
    where = f"{name}: endpoint.base_url"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigInvalid(f"{where} is not a URL.") from None
    if not url.isprintable() or " " in url:
        raise ConfigInvalid(f"{where} has a space or a sign that no URL has.")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigInvalid(f"{where} must begin with https:// and name a host.")
    if parts.username or parts.password:
        raise ConfigInvalid(f"{where} must not hold a user or password.")
    if port == 0:
        raise ConfigInvalid(f"{where} names port 0, where nobody can listen.")
    if "#" in url:
        raise ConfigInvalid(
            f"{where} has a fragment (from # on), which is never sent: leave it out."
        )
    if parts.scheme == "http" and not insecure_http and not is_loopback(host):
        raise ConfigInvalid(
            f"{where} is http://, which would send texts and key unencrypted. "
            "Use https://, or pass --allow-insecure-http."
        )


def check_headers(headers: Mapping[str, str], name: str) -> None:
    """Refuse a header that cannot be sent, or that is the client's own. Raises `ConfigInvalid`;
    no value is part of the message.
    """
    for header, value in headers.items():
        where = f"{name}: endpoint.headers: {header}"
        if not _NAME.fullmatch(header):
            raise ConfigInvalid(f"{where} is no header's name.")
        if header.lower() in _OWNED:
            raise ConfigInvalid(f"{where} is set by the client itself: leave it out.")
        if not _VALUE.fullmatch(value):
            raise ConfigInvalid(f"{where}: its value has a line feed or another control character.")


def request_url(base_url: str, path: str) -> str:
    """The URL of requests: the path behind the base's own, before its query string."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def hide_query(url: str) -> str:
    """The URL without the values of its query string, among which a key may be."""
    base, sign, _ = url.partition("?")
    return f"{base}?set" if sign else base

"""The HTTP proxy that the environment names for an endpoint, as curl and requests understand it.

The variables are those of `urllib`: HTTPS_PROXY or HTTP_PROXY by the endpoint's scheme, else
ALL_PROXY, in capitals or not, and NO_PROXY. A loopback endpoint never goes through a proxy. Nothing
that is said about a proxy holds its password.
"""

from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from batchrank.errors import ConfigInvalid

_PORTS = {"http": 80, "https": 443}


class Proxy(msgspec.Struct, frozen=True):
    """A proxy's address, with its credentials if it has any, and its name in messages: the
    variable that it comes from, its host and port.
    """

    address: str
    name: str


def find_proxy(url: str) -> Proxy | None:
    """Return the proxy that requests to `url` go through, or None. Raises `ConfigInvalid` for an
    address that no request can go through.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    known = getproxies()
    if is_loopback(host) or proxy_bypass(parts.netloc) or _is_excluded(host, known.get("no", "")):
        return None
    scheme = parts.scheme if known.get(parts.scheme) else "all"
    value = known.get(scheme, "").strip()
    if not value:
        return None
    variable = f"{scheme.upper()}_PROXY"
    address = value if "://" in value else f"http://{value}"
    server = _read_address(address)
    if server is not None and server.scheme.startswith("socks"):
        raise ConfigInvalid(
            f"{variable}: names a SOCKS proxy; only HTTP proxies can be used, such as "
            "http://host:3128. To go without one, put the endpoint's host into NO_PROXY."
        )
    if server is None or server.scheme not in _PORTS:
        raise ConfigInvalid(f"{variable}: is no address of a proxy, such as http://host:3128.")
    port = server.port or _PORTS[server.scheme]
    return Proxy(address, f"the proxy of {variable} ({server.hostname}:{port})")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_address(address: str) -> SplitResult | None:
    """Take an address apart; None where it is none. A sign that a password should have escaped
    would make a part of it the host: an @ behind the host is refused.
    """
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname
    except ValueError:
        return None
    behind = parts.path + parts.query + parts.fragment
    odd = not address.isprintable() or any(sign in (host or "") for sign in " \\%<>^|\"'`{}")
    return None if not host or port == 0 or "@" in behind or odd else parts


def _is_excluded(host: str, listed: str) -> bool:
    """Whether NO_PROXY names the host in one of the forms that `urllib` does not know: a network
    (10.0.0.0/8) or *.example.com.
    """
    for entry in listed.replace(",", " ").split():
        if entry.startswith("*.") and host.endswith(entry[1:].lower()):
            return True
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False

"""The secret that a coordinator on loopback and the workers of the same user share by a file.

Everybody on a machine reaches its loopback, and so does every web page in a browser there. The file
lies in the user's home, is named after the port, and is readable by its owner only. It outlives the
coordinator: one that is begun anew has the same secret, so its workers go on.
"""

import os
import secrets
import stat
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from batchrank.config.settings import COORDINATOR_KEY, coordinator_key
from batchrank.errors import ConfigInvalid

_BYTES = 32
_MOST_BYTES = 1000


def is_loopback(host: str) -> bool:
    """Return whether this host is reached from its own machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secret_file(port: int) -> Path:
    """Return the place of the secret of the coordinator at this port. Raises `RuntimeError` for a
    user without a home.
    """
    return Path.home() / ".local" / "state" / "batchrank" / f"coordinator-{port}.key"


def find_secret(url: str) -> str | None:
    """Return the secret for a coordinator: the environment's, else the file's where the coordinator
    is on loopback; None where there is neither.
    """
    parts = urlsplit(url)
    given = coordinator_key()
    if given is not None or not is_loopback(parts.hostname or ""):
        return given
    with suppress(OSError, RuntimeError):
        return _read(secret_file(parts.port or 80))
    return None


def make_secret(port: int) -> str:
    """Return the secret for this port, which is now in its file. Raises `ConfigInvalid`."""
    try:
        path = secret_file(port)
        with suppress(OSError):
            if (secret := _read(path)) is not None:
                return secret
        secret = secrets.token_urlsafe(_BYTES)
        _write(path, secret)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigInvalid(
            f"the coordinator's secret cannot be written into the home folder: {reason}. Set "
            f"{COORDINATOR_KEY} here and for the workers."
        ) from None
    return secret


def remove_secret(port: int) -> None:
    """Remove the file of a coordinator that will not be begun anew, if it is still there."""
    with suppress(OSError, RuntimeError):
        secret_file(port).unlink()


def _read(path: Path) -> str | None:
    """Read a secret; None where somebody else can read, or has written, what is there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077 or facts.st_uid != os.geteuid():
            return None
        secret = file.read(_MOST_BYTES).decode("latin1").strip()
    return secret if len(secret) >= _BYTES and secret.isascii() and secret.isprintable() else None


def _write(path: Path, secret: str) -> None:
    """Make the file whole and private, or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            file.write(secret + "\n")
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise

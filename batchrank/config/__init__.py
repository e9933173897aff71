"""What a run is told: settings, limits, prices, providers. `batchrank.config.load` reads a file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrank.config.settings import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'batchrank.config' has no attribute {name!r}")
    from batchrank.config import settings

    return getattr(settings, name)

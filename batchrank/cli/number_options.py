"""Numbers as options: finite, and no larger than what can be meant."""

from math import isfinite
from typing import Any

import click

_MOST = 10**12


class Amount(click.FloatRange):
    """A number with or without a fraction. `nan` passes click's own comparisons, and is none."""

    def __init__(self, least: float = 0, most: float = _MOST) -> None:
        super().__init__(least, most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Fails as click does."""
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is no number that can be kept to.", param, ctx)
        return number


def count(least: int = 0) -> click.IntRange:
    """A whole number from `least` on."""
    return click.IntRange(least, _MOST)

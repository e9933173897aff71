"""An account's requests, dealt out: which of them are a worker's own.

Workers that each space their own requests evenly still meet: eight of them pass a limit per second
by chance, a hundred always. So the account's requests have numbers. Number k goes out at k / rate
of the Unix clock, and stands at a point of a circle, each a golden section further than the last
(Knuth, TAOCP 3, 6.4: such points divide any arc evenly, with gaps of three sizes at most). A worker
sends those whose points lie on its arcs. While arcs do not overlap no number is sent twice, so all
workers together are spaced as one, however their shares move.

Pure, and exact: points are integers, and no number is tried in vain.
"""

from collections.abc import Sequence

CIRCLE = 2**32
_SECTION = 2654435769  # 2**32 / golden ratio, odd: every point is visited

Arcs = Sequence[tuple[int, int]]
"""From a point up to before another, in order; none passes the end of the circle."""


def next_number(first: int, arcs: Arcs) -> int | None:
    """The smallest number from `first` on whose point is on the arcs; None without an arc."""
    at = first * _SECTION % CIRCLE
    steps = [_steps((start - at) % CIRCLE, stop - start) for start, stop in arcs if stop > start]
    return first + min(steps) if steps else None


def narrowed(arcs: Arcs, share: float) -> Arcs:
    """The first `share` of every arc, and never nothing."""
    if share >= 1:
        return arcs
    return [(start, start + max(1, int((stop - start) * share))) for start, stop in arcs]


def _steps(ahead: int, length: int) -> int:
    """How many steps to an arc of that length that begins so far ahead on the circle."""
    if ahead == 0 or ahead + length > CIRCLE:
        return 0
    return _first_between(_SECTION, CIRCLE, ahead, ahead + length - 1)


def _first_between(step: int, circle: int, low: int, high: int) -> int:
    """The smallest n with `low <= n * step % circle <= high`, by Euclid's algorithm."""
    if low == 0:
        return 0
    if 2 * step > circle:  # as well go round the other way
        return _first_between(circle - step, circle, circle - high, circle - low)
    steps = -(-low // step)
    if steps * step <= high:
        return steps
    rounds = _first_between(circle % step, step, -high % step, -low % step)
    return (low + circle * rounds + step - 1) // step

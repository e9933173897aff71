"""An event loop without waiting: when nothing is ready, the clock jumps to the next timer.

Every pass moves the clock by a microsecond besides, since aiolimiter's float arithmetic can ask
again and again for a wait too short to change a clock that stands still. Sockets and threads have
no place here: a loop with neither timer nor ready callback is a deadlock, and fails at once.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PASS_SECONDS = 1e-6


class Jump(selectors.SelectSelector):
    """Selects nothing; waiting is done by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("every task waits for something that will never come")
        self.now += max(timeout, 0.0) + PASS_SECONDS
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` begins at 0 and passes only where somebody waits."""

    def __init__(self, jump: Jump | None = None) -> None:
        self._jump = jump or Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, its waits skipped."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)

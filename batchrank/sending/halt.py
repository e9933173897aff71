"""The end of sending: set once, heard by whoever waits."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from batchrank.errors import BatchrankError

DRAIN_SECONDS = 2.5
"""How long a stopped run waits for answers in flight; Airflow kills 5 s after its SIGTERM."""

T = TypeVar("T")
_Tasks = set[asyncio.Task[object]]


class Halt:
    """Set once, with the reason; whoever waits in `unless_halted` is woken and sends nothing."""

    def __init__(self) -> None:
        self.reason: BatchrankError | None = None
        self._waiting: _Tasks = set()
        self._sending: _Tasks = set()

    def set(self, reason: BatchrankError, drain_seconds: float | None = None) -> None:
        """Stop sending. Answers in flight are waited for, `drain_seconds` at the most if given."""
        if self.reason is not None:
            return
        self.reason = reason
        for task in self._waiting - {asyncio.current_task()}:
            task.cancel()
        if drain_seconds is not None:
            asyncio.get_running_loop().call_later(drain_seconds, self.abandon)

    def abandon(self) -> None:
        """Wait for no answer any longer: their outcomes stay unknown."""
        for task in self._sending:
            task.cancel()

    def unless_halted(self, step: Awaitable[T]) -> Awaitable[T]:
        """Await a step that may be given up when the run ends. Raises `Halted` then."""
        if self.reason is not None:
            if asyncio.iscoroutine(step):
                step.close()
            raise Halted
        return self._within(self._waiting, step)

    def unless_abandoned(self, step: Awaitable[T]) -> Awaitable[T]:
        """Await an answer that has been asked for. Raises `Halted` when no longer waited for."""
        return self._within(self._sending, step)

    async def place(self, room: asyncio.Semaphore) -> None:
        """Take a place, at once where one is free. Raises `Halted`."""
        if self.reason is None and not room.locked():
            await room.acquire()
        else:
            await self.unless_halted(room.acquire())

    async def _within(self, tasks: _Tasks, step: Awaitable[T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            return await step
        except asyncio.CancelledError:
            if self.reason is None:
                raise
            task.uncancel()
            raise Halted from None
        finally:
            tasks.discard(task)


class Halted(Exception):
    """The run is ending, and this step was given up for it."""

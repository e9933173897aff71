"""A session of the real program in virtual time, its threads in step: one order, always the same.

Reading and planning happen where they are asked for, the writing of parts a little later. The
checkpoint keeps its thread, but that and the event loop take turns: it writes when its wait for
more to write is over, in virtual time too, so an answer is as long on its way to the disk as in
earnest. What the program does of note is a step; at any of them it can be told to stop, or the
power can go.
"""

import asyncio
import selectors
import shutil
import signal
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from virtual_time import Jump, VirtualLoop

from batchrank.files import atomic as atomic_files
from batchrank.output import parts as sink
from batchrank.output import receipt_file as receipt
from batchrank.session import monitor, session
from batchrank.session import read_ahead as feed
from batchrank.state import checkpoint

T = TypeVar("T")

LONGEST_SECONDS = 7200.0
"""A session that takes longer never ends: all that is waited for is shorter by far."""


THREAD_SECONDS = 0.08
"""Until a thread has written a part: others commit meanwhile."""


class Killed(BaseException):
    """The power went; what was on the disk then is in the image."""


class Stage:
    """Where a session plays: its clock, its steps, and its end before its time, if it has one."""

    def __init__(
        self, out: Path, image: Path, *, seed: int, kill_at: int = 0, stop_at: int = 0
    ) -> None:
        self.dead = self.stopped = False
        self.seconds = 0.0
        self._out, self._image = out, image
        self._seed = seed
        self._kill_at, self._stop_at = kill_at, stop_at
        self._steps = 0
        self._loop: _Loop | None = None
        self._turns = _Turns(self.step)

    def step(self) -> None:
        """Something is done or about to be; it may be the last thing, or the last but an end."""
        if self.dead:
            return
        self._steps += 1
        # Before it is heard a signal ends the process, here that of the test.
        heard = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        if self._stop_at and not self.stopped and heard and self._steps >= self._stop_at:
            self.stopped = True
            signal.raise_signal(signal.SIGTERM)
        if self._steps == self._kill_at:
            self._kill()

    def _kill(self) -> None:
        # SQLite makes the -shm file anew, and a power cut would not leave it.
        shutil.copytree(self._out, self._image, ignore=shutil.ignore_patterns("*-shm"))
        self.dead = True
        if self._loop is None:
            raise Killed
        self._loop.stop()

    def in_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `uvloop.run` is to a session in earnest. Raises `Killed`."""
        self._loop = loop = self._turns.loop = _Loop(_Patient(self._turns))
        try:
            task = loop.create_task(coroutine)
            try:
                return loop.run_until_complete(task)
            except RuntimeError:
                if self.dead:
                    raise Killed from None
                raise
        finally:
            self.seconds, self._loop = loop.time(), None
            self._turns.over(dead=self.dead)
            _dismantle(loop)

    @contextmanager
    def set(self) -> Iterator[None]:
        """Put this stage under the program while the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "SimpleQueue", lambda: self._turns)
            patch.setattr(checkpoint, "Event", lambda: _Pause(self._turns))
            for module in (feed, monitor):
                patch.setattr(module, "ThreadPoolExecutor", _AtOnce)
            patch.setattr(session, "Random", lambda: Random(self._seed))
            for module in (sink, session, receipt):
                patch.setattr(module, "write_whole", self._around(module.write_whole))
            patch.setattr(atomic_files, "sync_folder", self._around(atomic_files.sync_folder))
            yield

    def _around(self, write: Callable[..., None]) -> Callable[..., None]:
        def stepped(*arguments: object, **named: object) -> None:
            self.step()
            write(*arguments, **named)
            self.step()

        return stepped


class _Turns:
    """The checkpoint's queue and clock: its thread runs only while the loop stands and waits."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.loop: _Loop | None = None
        self._step = step
        self._items: deque[Any] = deque()
        self._turn = threading.Condition()
        self._writes = True  # until it has come to its first wait
        self._asleep = self._over = self._dead = False

    # The thread's side

    def get(self) -> Any:
        self._wait()
        with self._turn:
            self._turn.wait_for(lambda: self._items or self._dead)
        self._go_down_with_the_power()
        return self._items.popleft()

    def sleep(self, seconds: float) -> None:
        if not self._over:
            assert self.loop is not None
            self._asleep = True
            self.loop.call_later(seconds, self._wake)
            self._wait()
        self._go_down_with_the_power()

    def empty(self) -> bool:
        return not self._items

    def _wait(self) -> None:
        with self._turn:
            self._writes = False
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._writes or self._over)

    def _go_down_with_the_power(self) -> None:
        if self._dead:
            raise sqlite3.OperationalError("no power")

    # The loop's side

    def put(self, item: object) -> None:
        with self._turn:
            self._items.append(item)
            self._turn.notify_all()

    def settle(self) -> bool:
        """Let the thread take up what is there to be written; whether it did."""
        self._let_write(self._writes)
        if self._over or self._asleep or not self._items:
            return False
        self._let_write()
        return True

    def _wake(self) -> None:
        self._step()
        self._asleep = False
        self._let_write()
        self._step()

    def _let_write(self, now: bool = True) -> None:
        if self._over:
            return
        thread = next((one for one in threading.enumerate() if one.name == "checkpoint"), None)
        with self._turn:
            self._writes = now and thread is not None
            self._turn.notify_all()
            done = self._turn.wait_for(lambda: not self._writes, timeout=30)
        assert done, "the checkpoint's thread does not come back"

    def over(self, *, dead: bool) -> None:
        """The loop has ended: from now on the thread need not wait for it."""
        with self._turn:
            self._over, self._dead = True, dead
            self._turn.notify_all()


class _Pause:
    """The wait for more to write: as long as ever, since half a group never comes within it."""

    def __init__(self, turns: _Turns) -> None:
        self.wait = turns.sleep

    def set(self) -> None:
        raise AssertionError("half a group of answers within a commit's time: play with fewer")

    def clear(self) -> None:
        pass


class _Patient(Jump):
    """Time passes only when the checkpoint's thread has nothing to take up either."""

    def __init__(self, turns: _Turns) -> None:
        super().__init__()
        self._turns = turns

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.now < LONGEST_SECONDS, "the session never ends"
        if timeout != 0 and self._turns.settle():
            return []
        return super().select(timeout)


class _Loop(VirtualLoop):
    """An event loop that does other threads' work itself, a little later."""

    def run_in_executor(self, executor: object, function: Any, *arguments: Any) -> Any:
        done = self.create_future()

        def do() -> None:
            try:
                done.set_result(function(*arguments))
            except Exception as error:
                done.set_exception(error)

        self.call_later(THREAD_SECONDS, lambda: None if done.cancelled() else do())
        return done


class _AtOnce(Executor):
    """A pool that does in its caller's thread what it is given."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> "Future[T]":
        done: Future[T] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


def _dismantle(loop: _Loop) -> None:
    """Cancel what a kill has left behind, and close the loop."""
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))
    assert not asyncio.all_tasks(loop), "a task cannot be cancelled"
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

"""SIGTERM, SIGHUP and Ctrl-C, from a run's first moment to its last.

Before there is anything to drain the first signal ends the run at once; while requests are in
flight a listener is told; after that the run is ending anyway and signals change nothing. A run in
another thread cannot be ended from here: its listener is told as soon as there is one. Handlers
of the event loop would not do: they are gone, and SIGTERM deadly again, before the receipt is
written.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from batchrank.errors import Stopped
from batchrank.session.leaving import CODES, NAMES, is_ignored, watched_in_loop


class Signals:
    """What has been heard so far. Made by `heard`."""

    def __init__(self) -> None:
        self._listener: Callable[[Stopped], None] | None = None
        self._ending = False
        self._early: Stopped | None = None

    @contextmanager
    def told_to(self, listener: Callable[[Stopped], None]) -> Iterator[None]:
        """Tell `listener` of each signal while the block runs; afterwards nobody."""
        self._listener = listener
        try:
            if self._early is not None:
                listener(self._early)
            with watched_in_loop():
                yield
        finally:
            self._listener = None
            self.ending()

    def ending(self) -> None:
        """Nothing is left to be stopped: from now on signals change nothing."""
        self._ending = True

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal has come. Raises `Stopped` when nobody listens yet."""
        known = signal.Signals(number)
        stopped = Stopped(
            f"stopped by {NAMES[known]}; the same command goes on from here.", CODES[known]
        )
        if self._listener is not None:
            self._listener(stopped)
        elif not self._ending:
            self._ending = True
            self._early = stopped
            raise stopped


@contextmanager
def heard() -> Iterator[Signals]:
    """Hear these signals while the block runs; in the main thread only, as Python wants it."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    heard = [number for number in CODES if not is_ignored(number)]
    before = {number: signal.signal(number, signals.hear) for number in heard}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

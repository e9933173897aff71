"""Leave the process in time after a signal, whatever hangs.

A disk that does not answer, a silent name server or a library that computes for a minute can hold
up any thread, the main one too, in which Python runs the handlers of signals. So a thread of its
own reads each signal from a pipe, to which Python's C code writes at once, and ends the process
when its time is over. What is durable by then counts, and files are whole or not there: only the
receipt of this session may be missing.

Only the command is watched (`start`). A program that calls `job.run` ends when it wants to.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf

from batchrank.errors import ExitCode

LEAVE_SECONDS = 3.3
"""From the first signal on: the drain takes 2.5 s, what came is committed after it, and Airflow
kills 5 s after its SIGTERM."""

AT_ONCE_SECONDS = 0.7
"""From a second Ctrl-C on, and from the moment when the exit code is decided."""

CODES = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}

_SAY_SECONDS = 0.1
_POKE = b"\0"


class Watchdog:
    """Ends the process at a moment that each signal may bring nearer. `say` prints a message."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._forward_to = -1
        self._leaves_at = inf
        self._code: int | None = None
        self._first: signal.Signals | None = None
        self._is_decided = False

    def listen(self) -> int:
        """Have signals written to the pipe; return the descriptor that they were written to."""
        return signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    @contextmanager
    def listen_too(self) -> Iterator[None]:
        """Hand signals on, while the block runs, to whoever is told of them now."""
        self._forward_to = before = self.listen()
        try:
            yield
        finally:
            self._forward_to = -1
            signal.set_wakeup_fd(before)

    def decide(self, code: int) -> None:
        """The exit code and its message are out: what still hangs is not waited for."""
        self._is_decided, self._code = True, code
        self._leave_within(AT_ONCE_SECONDS)
        with suppress(OSError):  # full: the watching thread has enough to wake for
            os.write(self._write, _POKE)

    def watch(self) -> None:
        """Read signals until it is time to leave."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while (left := self._leaves_at - time.monotonic()) > 0:
            if poll.poll(None if left == inf else left * 1000):
                self._note(os.read(self._read, 4096))
        self._leave()

    def _note(self, numbers: bytes) -> None:
        for number in numbers:
            if number in CODES and signal.getsignal(number) is not signal.SIG_IGN:
                self._note_signal(signal.Signals(number))
        if self._forward_to >= 0:
            with suppress(OSError):
                os.write(self._forward_to, numbers)

    def _note_signal(self, known: signal.Signals) -> None:
        if self._first is None:
            self._first = known
            if not self._is_decided:
                self._code = CODES[known]
            self._leave_within(LEAVE_SECONDS)
        elif known is signal.SIGINT:
            self._leave_within(AT_ONCE_SECONDS)

    def _leave_within(self, seconds: float) -> None:
        self._leaves_at = min(self._leaves_at, time.monotonic() + seconds)

    def _leave(self) -> None:
        """End the process. Another thread says why: a terminal may hang as well."""
        if not self._is_decided and self._first is not None:
            message = (
                f"stopped by {NAMES[self._first]}, without waiting for what hangs (a disk, a name "
                "server, a library); the same command goes on from here."
            )
            threading.Thread(target=self._say, args=(message,), daemon=True).start()
            time.sleep(_SAY_SECONDS)
        os._exit(ExitCode.BUG if self._code is None else self._code)


_watchdog: Watchdog | None = None


def start(say: Callable[[str], None]) -> None:
    """Watch over this process until it ends. In the main thread only; `say` prints a message."""
    global _watchdog
    _watchdog = Watchdog(say)
    _watchdog.listen()
    threading.Thread(target=_watchdog.watch, name="leaving", daemon=True).start()


@contextmanager
def watched_in_loop() -> Iterator[None]:
    """Go on watching within an event loop, which takes signals for itself."""
    if _watchdog is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _watchdog.listen_too():
        yield


def decide(code: int) -> None:
    """The process ends with this code, in a moment at the latest, if it is watched."""
    if _watchdog is not None:
        _watchdog.decide(code)


def is_ignored(number: int) -> bool:
    """Tell whether a signal is not ours to hear: `nohup` has SIGHUP ignored."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN

"""What a process of ours is told before it works.

A program that calls `job.run` is asked for none of this but `rarely_collected`, which is taken back
when the run ends.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from threading import Lock

_changing = Lock()
_found: list[tuple[int, int, int]] = []


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Look for garbage in circles once in 50,000 objects instead of 700: a request makes some
    thirty that die by themselves, and the search took a tenth of a run's time (1.2 s of 20,000
    requests) and of its start (35 ms of 0.4 s). Until the last of those who ask for it is done.
    """
    with _changing:
        _found.append(gc.get_threshold())
        gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        with _changing:
            found = _found.pop()  # those above the first are of this making
            if not _found:
                gc.set_threshold(*found)


def spare_threads() -> None:
    """Have numpy load without a pool of threads for linear algebra, of which a run does none: they
    spin for 0.12 s of CPU on two cores, a fifth of what a run of one row takes. Before numpy loads.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def spare_memory() -> None:
    """Have Arrow take memory from the C library, which gives it back: its own allocator keeps 30 MB
    more of a run that reads batch after batch, and is no faster here. And hide pandas from it,
    which it imports, where it is installed, to make its first array (0.2 s of CPU, 42 MB). For a
    whole process, none of whose commands knows a pandas frame.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    sys.meta_path.insert(0, _NoPandas())


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used here", name=fullname)

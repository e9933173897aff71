"""A worker's share of a run that several do: which parts are its own, how much of the account's.

Pure. Of N workers the i-th, counted from 0, takes every part k with k % N = i; so the shares differ
by a part at the most, and who does what is known without anybody being asked.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import floor
from typing import NamedTuple

import msgspec

from batchrank.config.limits import RateLimits
from batchrank.errors import ConfigInvalid

COUNT = "BATCHRANK_SHARDS"
KUBERNETES = "JOB_COMPLETION_INDEX"
SLURM = "SLURM_ARRAY_TASK_ID"
_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("MIN", "MAX", "STEP", "COUNT"))
VARIABLES = (COUNT, KUBERNETES, SLURM, *_ARRAY)
"""Kubernetes tells a pod of an Indexed Job its index and not how many there are; Slurm both
(kubernetes.io/docs/concepts/workloads/controllers/job, slurm.schedmd.com/job_array.html)."""

_WHOLE = 1.01
"""A throttle that aims at 0.985 of a limit of 1.01 k passes at most k in a window, wherever that
begins: it holds back 0.5 % more than the one request that may come early."""
_MOST_GIVEN_UP = 0.02


class Shard(NamedTuple):
    """Worker `number`, from 0, `of` so many. Made by `shard_of`, `parsed` or `of_environment`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"shard-{self.number:03}-of-{self.of:03}"

    def parts(self, parts: int) -> range:
        """Its own of so many parts."""
        return range(self.number, parts, self.of)

    def owns(self, part: str) -> bool:
        """Whether a part is its own, by the name of its file."""
        return int(part.removeprefix("part-").partition(".")[0]) % self.of == self.number


def shard_of(index: int, count: int) -> Shard:
    """A worker of so many. Raises `ConfigInvalid` where there is no such one."""
    if count < 1 or not 0 <= index < count:
        last = f": the last of {count} is {count - 1}/{count}" if count > 0 else ""
        raise ConfigInvalid(f"{index}/{count} is no shard; they are counted from 0{last}.")
    return Shard(index, count)


def parsed(text: str) -> Shard:
    """A worker as it is written, i/N. Raises `ConfigInvalid`."""
    index, _, count = text.partition("/")
    if not (_is_number(index) and _is_number(count)):
        raise ConfigInvalid(f"{text!r} is no shard; expected i/N, such as 0/8 to 7/8, or auto.")
    return shard_of(int(index), int(count))


def of_environment(given: Mapping[str, str]) -> Shard:
    """The worker that a Kubernetes Indexed Job or a Slurm array says we are. Raises
    `ConfigInvalid` where neither does, or not all of it.
    """
    index = next((given[name] for name in (KUBERNETES, SLURM) if name in given), None)
    if index is None:
        raise ConfigInvalid(
            f"--shard auto: neither {KUBERNETES} (a Kubernetes Indexed Job) nor {SLURM} (a Slurm "
            "array) is set; expected one, or --shard i/N."
        )
    if COUNT in given:
        return shard_of(_number(index, "the index"), _number(given[COUNT], COUNT))
    if KUBERNETES in given:
        raise ConfigInvalid(
            f"--shard auto: Kubernetes does not tell a pod how many there are: set {COUNT} to the "
            "Job's completions."
        )
    return _of_slurm(given)


def _of_slurm(given: Mapping[str, str]) -> Shard:
    """An array such as 0-7, or 10-80:10; one with gaps is somebody's second try at some of them."""
    task, first, last, step, count = (
        _number(given.get(name, ""), name) for name in (SLURM, *_ARRAY)
    )
    step = max(step, 1)
    if last != first + step * (count - 1) or (task - first) % step:
        raise ConfigInvalid(
            f"--shard auto: the Slurm array has gaps. Number its tasks from 0 and set {COUNT} to "
            "how many shards there are."
        )
    return shard_of((task - first) // step, count)


def share_of(rate: RateLimits, count: int) -> RateLimits:
    """What each of `count` workers may send, so that they never send more than `rate` together.

    Each is spaced by itself, so at the worst all are early at once: of 5.4 requests a minute a
    worker may send 6 in one. A share is therefore such that the whole requests of a minute fit,
    and those of a second too where that costs next to nothing. Raises `ConfigInvalid` where a
    worker would have less than one a minute.
    """
    if count == 1:
        return rate
    requests = rate.requests_per_minute / count
    if 0 < requests < 1:
        raise ConfigInvalid(
            f"rate.requests_per_minute = {rate.requests_per_minute:g} is less than one for each of "
            f"{count} shards. Take fewer shards."
        )
    a_minute = min(requests, _WHOLE * floor(requests))
    a_second = min(requests, _WHOLE * 60 * floor(requests / 60))
    spaced = a_second if a_second >= (1 - _MOST_GIVEN_UP) * a_minute else a_minute
    return msgspec.structs.replace(
        rate,
        requests_per_minute=spaced,
        tokens_per_minute=rate.tokens_per_minute / count,
        held_per_second=True,  # the margin that `_WHOLE` reckons with
    )


def rows_in(parts: range, rows: int, rows_per_part: int) -> int:
    """How many of so many rows are in these parts."""
    return sum(min(rows_per_part, rows - part * rows_per_part) for part in parts)


def _number(text: str, name: str) -> int:
    if not _is_number(text):
        raise ConfigInvalid(f"--shard auto: {name} is {text!r}; expected a number.")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def rows_of(parts: Sequence[int], rows_per_part: int, rows: int) -> list[tuple[int, int]]:
    """The rows of these parts (rising), as ranges (first, stop)."""
    ranges = []
    for _, run in groupby(enumerate(parts), lambda placed: placed[1] - placed[0]):
        together = [part for _, part in run]  # one after another
        first, last = together[0], together[-1]
        ranges.append((first * rows_per_part, min((last + 1) * rows_per_part, rows)))
    return ranges

"""What an earlier run has scored already, looked up row by row: `run --reuse PREVIOUS_OUT`.

Several earlier outputs may be given. Each pair takes its score from the first that has it. How the
rows of one are found is told in `earlier`.
"""

import logging
from array import array
from collections.abc import Sequence
from functools import partial
from math import nan

import msgspec
import numpy as np
import xxhash

from batchrank.config.settings import JobConfig
from batchrank.errors import ConfigInvalid, InputBad, InputMissing, StorageFailed
from batchrank.files.paths import Place, Remote, plain
from batchrank.output.parts import REUSED, SUCCESS
from batchrank.planning.text_hashes import Digests
from batchrank.records import Pairs, Row
from batchrank.reuse.earlier_rows import EarlierRows, Found, Previous
from batchrank.reuse.pair_files import DAMAGE, VERSION, SideFile, begun, days_of, listed
from batchrank.reuse.score_table import Table, list_key, tabulate_lists, tabulate_pairs

_log = logging.getLogger(__name__)


def opened(out: Place, config: JobConfig, *, rows_only: bool) -> Previous:
    """An earlier output whose scores are to be taken. Raises `InputMissing`, `InputBad`, or
    `ConfigInvalid` where none of its scores could be used.
    """
    if not out.is_dir():
        raise InputMissing(f"{out}: no such folder; --reuse names the output of an earlier run.")
    if REUSED in (config.input.id_column, *config.input.keep_columns):
        raise ConfigInvalid(f"input: with --reuse the output has a column {REUSED} of its own.")
    try:
        run = begun(out)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputBad(
            f"{out}: what it says of its pairs is damaged. Leave --reuse out."
        ) from error
    files = listed(out)
    if run is None or not files:
        raise InputMissing(
            f"{out}: has no scores to reuse: it is no output of `batchrank run`, has no part yet "
            "(finish it first), or was written with output.reusable = false."
        )
    if run.version != VERSION:
        raise InputBad(f"{out}: its _pairs/ are of another batchrank. Leave --reuse out.")
    now = config.scoring()
    for name in dict.fromkeys([*now, *run.scoring]):
        value = now.get(name)
        if run.scoring.get(name) != value:
            raise ConfigInvalid(
                f"{out}: was scored with {name} = {run.scoring.get(name)!r}, now {value!r}: none "
                "of its scores fit. Leave --reuse out to score everything."
            )
    sound = [(path, foot) for path in files if (foot := _foot(path)) is not None]
    if not sound:
        raise InputBad(f"{out}: all of its _pairs/ are damaged. Leave --reuse out.")
    _warn_of_gaps(out, len(files))
    rows_only = rows_only or config.endpoint.scores_lists
    named = [run.begun.isoformat(), *(f"{path.name} {foot}" for path, foot in sound)]
    return Previous(
        out=out,
        files=[path for path, _ in sound],
        rows=[rows for _, (rows, _) in sound],
        begun=days_of(run.begun),
        rows_only=rows_only,
        identity=xxhash.xxh3_128_hexdigest("\n".join(named).encode())
        + (" rows only" if rows_only else ""),
    )


def identity_of(previous: Sequence[Previous]) -> str | None:
    """Return what earlier outputs, in their order, are known by; None where there are none."""
    return ", then ".join(one.identity for one in previous) or None


def _foot(path: Place) -> tuple[int, str] | None:
    try:
        foot = SideFile(path).foot
    except DAMAGE as error:
        unreached = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if unreached and isinstance(path, Remote):  # not damage: what is in it would be paid again
            raise StorageFailed(f"{path}: cannot be read: {plain(error)}.") from error
        _log.warning("%s: is damaged; its pairs are scored again", path)
        return None
    return foot.rows, foot.seal


def _warn_of_gaps(out: Place, files: int) -> None:
    if not (out / SUCCESS).exists():
        _log.warning("%s: is not finished (no _SUCCESS); what it has published is reused", out)
    parts = sum(1 for _ in out.glob("part-*.parquet"))
    if parts > files:
        _log.warning("%s: %d of %d parts have no _pairs/; not reused", out, parts - files, parts)


class Reuse:
    """Tells rows what earlier outputs have scored of them."""

    def __init__(self, config: JobConfig, previous: Sequence[Previous]) -> None:
        self._digests = Digests(config.scoring())
        self._lists = config.endpoint.scores_lists
        self._previous = previous
        self._rows_only = any(one.rows_only for one in previous)
        self._earlier: list[EarlierRows] = []

    @property
    def rows_read(self) -> int:
        """How many earlier rows have been read, each as often as it was."""
        return sum(one.rows_read for one in self._earlier)

    def prepare(self) -> None:
        """Read the index of each earlier output: seconds for millions of rows."""
        tabulate = tabulate_pairs
        if self._rows_only:
            tabulate = partial(tabulate_lists, ordered=self._lists)
        if not self._earlier:
            self._earlier = [EarlierRows(one, tabulate) for one in self._previous]

    def __call__(self, row: Row) -> Row:
        """The row with the names of its pairs and the scores that are known."""
        pairs = self._digests.of(row)
        if not any(pairs.texts):
            return Row(row.index, row.query, row.texts, None, pairs)
        self.prepare()
        scores, since, together = self._known(pairs)
        if not any(since):
            return Row(row.index, row.query, row.texts, None, pairs)
        pairs = Pairs(pairs.query, pairs.texts, since, together)
        return Row(row.index, row.query, row.texts, scores, pairs)

    def _known(self, pairs: Pairs) -> "_Taken":
        """The scores that any earlier output has, of the first that has each."""
        known = _NOTHING
        for earlier in self._earlier:
            found = earlier.find(pairs.query)
            if not found.rows:
                continue
            if self._rows_only:
                known = self._whole(pairs.texts, earlier, found)
                if any(known[1]):
                    break
                continue
            more = _each(pairs.texts, earlier, found)
            known = _both(known, more) if any(known[1]) else more
            if known[1] and known[1].count(0) == pairs.texts.count(0):
                break
        return known

    def _whole(self, texts: "array[int]", earlier: EarlierRows, found: Found) -> "_Taken":
        """The scores of an earlier row of the same texts, all of one answer: the latest."""
        key = np.array([list_key(texts, ordered=self._lists)], np.uint64)
        (number,), (day,) = earlier.table(found).find(key)
        one = earlier.row(int(number), found.query) if day else None
        kind = list if self._lists else set
        if one is None or kind(filter(None, one.texts)) != kind(filter(None, texts)):
            return _NOTHING
        if not self._lists:
            return (*_matched(texts, tabulate_pairs([(0, one)])), True)
        given = iter([pair for pair in zip(one.scores, one.since, strict=True) if pair[1]])
        pairs = [next(given) if text else _UNKNOWN for text in texts]
        return (
            array("d", [score for score, _ in pairs]),
            array("H", [day for _, day in pairs]),
            True,
        )


_Taken = tuple["array[float]", "array[int]", bool]
_NOTHING: _Taken = array("d"), array("H"), False
_UNKNOWN = (nan, 0)


def _each(texts: "array[int]", earlier: EarlierRows, found: Found) -> _Taken:
    """The score of each pair that any of these rows has."""
    if found.rows == 1:  # nearly every row
        (number,) = earlier.numbers(found)
        one = earlier.row(number, found.query)
        if one is None:
            return _NOTHING
        if one.texts == texts:
            return one.scores, one.since, one.together and one.complete
        return (*_matched(texts, tabulate_pairs([(0, one)])), False)
    return (*_matched(texts, earlier.table(found)), False)


def _matched(texts: "array[int]", table: Table) -> "tuple[array[float], array[int]]":
    scores, since = table.find(np.frombuffer(texts, np.uint64))
    return array("d", scores.tobytes()), array("H", since.tobytes())


def _both(first: _Taken, second: _Taken) -> _Taken:
    """The scores of the first, and where it has none those of the second."""
    if not any(second[1]):
        return first
    mine = np.frombuffer(first[1], np.uint16) > 0
    scores = np.where(mine, np.frombuffer(first[0]), np.frombuffer(second[0]))
    since = np.where(mine, np.frombuffer(first[1], np.uint16), np.frombuffer(second[1], np.uint16))
    return array("d", scores.tobytes()), array("H", since.tobytes()), False

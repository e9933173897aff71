"""A reused row costs few reads in whatever order queries come. Reads are counted, not time.

Of two queries in turn, all earlier rows once were read again for each row.
"""

from array import array
from collections.abc import Sequence
from datetime import date
from math import nan
from pathlib import Path
from random import Random

import pytest

from batchrank.config.settings import load
from batchrank.planning.text_hashes import Digests
from batchrank.records import Row, RowScores
from batchrank.reuse.earlier_rows import Previous
from batchrank.reuse.index import Reuse, opened
from batchrank.reuse.pair_files import SideFiles

CONFIG = load(None, {})
ROWS = 600
Listed = Sequence[tuple[str, list[str]]]


def night(folder: Path, rows: Listed, *, rows_only: bool = False) -> Previous:
    """An earlier output of these rows, whose scores are 0, 1, 2, … in their order, blanks aside."""
    folder.mkdir()
    side_files = SideFiles(folder, folder)
    side_files.begin(CONFIG.scoring(), date(2026, 11, 1))
    digests, count, scored = Digests(CONFIG.scoring()), 0, []
    for place, (query, texts) in enumerate(rows):
        scores = array("d", [n if text else nan for n, text in enumerate(texts, count)])
        count += len(texts)
        pairs = digests.of(Row(place, query, texts))
        scored.append(RowScores(place, scores, "scored", None, 1, 0, 0, pairs))
    for part, first in enumerate(range(0, len(rows), 100)):
        side_files.publish(f"part-{part:05}.parquet", scored[first : first + 100])
    return opened(folder, CONFIG, rows_only=rows_only)


def rows_in(order: str, queries: int) -> list[tuple[str, list[str]]]:
    rows = [(f"query {n % queries}", [f"text {n} {place}" for place in "ab"]) for n in range(ROWS)]
    if order == "sorted":
        rows.sort()
    elif order == "shuffled":
        Random(7).shuffle(rows)
    return rows


@pytest.mark.parametrize("rows_only", [False, True], ids=["pairs", "whole rows"])
@pytest.mark.parametrize("queries", [1, 2, 7, 100, ROWS])
@pytest.mark.parametrize("order", ["in turn", "sorted", "shuffled"])
def test_no_earlier_row_is_read_more_than_a_few_times(
    tmp_path: Path, order: str, queries: int, rows_only: bool
) -> None:
    rows = rows_in(order, queries)
    reuse = Reuse(CONFIG, [night(tmp_path / "night", rows, rows_only=rows_only)])
    expected = 0.0
    for place, (query, texts) in enumerate(rows):
        known = reuse(Row(place, query, texts)).known
        assert known is not None and list(known) == [expected, expected + 1]
        expected += 2
    assert reuse.rows_read <= (2 + rows_only) * ROWS


def test_few_rows_of_a_query_are_read_again_rather_than_written_down(tmp_path: Path) -> None:
    rows = rows_in("in turn", ROWS // 4)
    reuse = Reuse(CONFIG, [night(tmp_path / "night", rows)])
    for place, (query, texts) in enumerate(rows):
        reuse(Row(place, query, texts))
    assert reuse.rows_read <= 4 * ROWS


def test_any_order_gives_the_scores_that_a_plain_search_finds(tmp_path: Path) -> None:
    """Texts that come back, that are blank, that are new, and rows of other lists than before."""
    random = Random(11)
    texts = [f"text {number}" for number in range(40)] + [""]
    rows = [
        (f"query {random.randrange(6)}", random.choices(texts, k=random.randrange(1, 9)))
        for _ in range(ROWS)
    ]
    reuse = Reuse(CONFIG, [night(tmp_path / "night", rows)])
    plain: dict[tuple[str, str], int] = {}
    count = 0
    for query, listed in rows:
        for text in listed:
            plain.setdefault((query, text), count)  # all of one day: the first counts
            count += 1
    for place in range(ROWS):
        query, asked = f"query {random.randrange(7)}", random.choices([*texts, "new"], k=5)
        row = reuse(Row(place, query, asked))
        found = [None] * 5 if row.known is None else [None if s != s else s for s in row.known]
        assert found == [plain.get((query, text)) if text else None for text in asked]

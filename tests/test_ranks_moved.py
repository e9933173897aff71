"""Without judgments `evaluate` says how far ranks moved from the input order, and the ties."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from helpers import CANDIDATES, RESULTS, Server, inside, score, table, written
from scipy.stats import kendalltau

from batchrank.analysis.evaluation import moved
from batchrank.analysis.rank_changes import Movement, Moves, words

Row = list[tuple[int, float]]
"""A row's scored candidates, best first: place in the input, score."""


def movement(*batches: list[Row]) -> Movement:
    moves = Moves()
    for rows in batches:
        flat = [one for row in rows for one in row]
        lengths = np.array([len(row) for row in rows], np.int64)
        index = np.array([index for index, _ in flat], np.int64)
        moves.add(lengths, index, np.array([score for _, score in flat], np.float64))
    return moves.result()


def ordered(scores: list[float]) -> Row:
    """Candidates with these scores, as an output has them: ties by place."""
    return sorted(enumerate(scores), key=lambda one: (-one[1], one[0]))


def test_an_order_that_stays_has_not_moved() -> None:
    assert movement([ordered([0.9, 0.5, 0.1])]) == Movement(
        rows=1,
        candidates=3,
        mean_displacement=0,
        kendall_tau=1,
        top_1_changed=0,
        top_10_changed=0,
        tied_candidates=0,
        rows_with_ties=0,
    )


def test_an_order_turned_round_has_moved_as_far_as_it_can() -> None:
    """Of four, the outer two move by 3 and the inner two by 1; the ten of the top stay together."""
    found = movement([ordered([0.1, 0.2, 0.3, 0.4])])
    assert (found.mean_displacement, found.kendall_tau) == (2, -1)
    assert (found.top_1_changed, found.top_10_changed) == (1, 0)


def test_the_top_10_has_changed_when_one_from_below_is_in_it() -> None:
    stays = [float(-place) for place in range(12)]
    rises = [*stays[:11], -8.5]
    found = movement([ordered(stays), ordered(rises)])
    assert (found.top_1_changed, found.top_10_changed) == (0, 0.5)
    assert found.mean_displacement == pytest.approx((2 + 1 + 1) / 24)


def test_ties_are_counted_within_their_row_alone() -> None:
    found = movement([ordered([0.5, 0.5, 0.5, 0.2]), ordered([0.2, 0.1]), ordered([0.1, 0.1])])
    assert (found.tied_candidates, found.rows_with_ties) == (5, 2)


def test_tau_is_scipys_whatever_the_lengths_and_the_ties() -> None:
    random = Random(5)
    rows = [
        [random.choice([random.random(), 0.5, 0.25]) for _ in range(random.choice([2, 3, 17, 40]))]
        for _ in range(60)
    ]
    taus = [kendalltau([-place for place in range(len(row))], row).statistic for row in rows]
    found = movement([ordered(row) for row in rows[:25]], [ordered(row) for row in rows[25:]])
    assert found.kendall_tau == pytest.approx(np.nanmean(taus), abs=1e-12)


def test_tau_is_undefined_where_nothing_decides() -> None:
    assert movement([ordered([0.5, 0.5]), ordered([0.1])]).kendall_tau is None
    assert movement([]).kendall_tau is None
    assert "tau        undefined" in words(movement([]))


def test_batches_add_up_to_one() -> None:
    random = Random(9)
    rows = [ordered([random.random() for _ in range(20)]) for _ in range(10)]
    whole, halves = movement(rows), movement(rows[:3], [[]], rows[3:])
    assert halves.kendall_tau == pytest.approx(whole.kendall_tau)
    assert halves.mean_displacement == whole.mean_displacement


def test_an_output_is_read_with_its_skipped_and_blank_ones_left_out(
    server: Server, tmp_path: Path
) -> None:
    rows = table(30, documents=15, tag="moved")
    lists = rows["candidates"].to_pylist()
    lists[3], lists[4] = [], None
    lists[5][0]["text"] = " "
    rows = rows.set_column(2, "candidates", pa.array(lists, CANDIDATES))
    out = tmp_path / "out"
    score(server, written(tmp_path / "in.parquet", rows), out, output={"rows_per_part": 8})
    found = moved(out)
    assert (found.rows, found.candidates) == (28, 28 * 15 - 1)
    assert found.kendall_tau is not None and abs(found.kendall_tau) < 0.2, "hashes are random"
    assert 4 < found.mean_displacement < 6, "a third of 15, by chance"
    assert found.top_1_changed > 0.7


def test_the_command_says_it_in_words_and_json(tmp_path: Path) -> None:
    result = [
        {"doc_id": None, "index": index, "rank": rank, "relevance_score": score}
        for rank, (index, score) in enumerate([(1, 0.5), (0, 0.25), (2, 0.25)], 1)
    ]
    blank = {"doc_id": None, "index": 3, "rank": None, "relevance_score": None}
    columns = {"row": [0], "results": pa.array([[*result, blank]], RESULTS)}
    out = tmp_path / "out"
    written(out / "part-00000.parquet", pa.table(columns))
    (out / "_SUCCESS").touch()
    shown = inside("evaluate", out)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "rows       1 with 3 scored candidates\n"
        "moved      0.7 places on the mean, up or down\n"
        "tau        0.000 (Kendall's tau-b with the input order, mean of rows)\n"
        "top 1      another in 100.0% of rows\n"
        "top 10     others in 0.0% of rows\n"
        "ties       2 candidates (66.7%) share their score with another of their row, in 1 rows\n"
    )
    figures = json.loads(inside("evaluate", out, "--json").stdout)
    assert figures["tied_candidates"] == 2
    assert figures["kendall_tau"] == 0

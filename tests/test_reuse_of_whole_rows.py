"""Where a score is relative to its request, a row is taken whole, as one answer gave it, or not."""

from pathlib import Path
from typing import Any

import pytest
from helpers import Server, output, reused, rows_of, score, scores_of, written

Texts = list[str | None]
LISTS = {"endpoint": {"scores_lists": True}}


def second(
    server: Server,
    folder: Path,
    first: list[Texts],
    then: Texts,
    *,
    rows_only: bool = True,
    **also: Any,
) -> Any:
    """The receipt of the night after one whose rows all had the same query."""
    written(folder / "1.parquet", rows_of(*(("lift", texts) for texts in first)))
    score(server, folder / "1.parquet", folder / "night1", **also)
    written(folder / "2.parquet", rows_of(("lift", then)))
    return score(
        server,
        folder / "2.parquet",
        folder / "night2",
        reuse=folder / "night1",
        reuse_rows_only=rows_only,
        **also,
    )


@pytest.mark.parametrize(
    ("then", "taken"),
    [
        (["wings", "bees"], 2),
        (["bees", "wings"], 2),
        (["bees", "", "wings", "bees"], 3),
        (["wings"], 0),
        (["wings", "bees", "air"], 0),
    ],
    ids=["same", "turned", "blank and repeated", "fewer", "more"],
)
def test_a_row_of_the_same_texts_is_taken(
    server: Server, tmp_path: Path, then: Texts, taken: int
) -> None:
    receipt = second(server, tmp_path, [["wings", "bees"]], then)
    assert (receipt.pairs_reused, receipt.requests) == (taken, int(not taken))
    score(server, tmp_path / "2.parquet", tmp_path / "fresh")
    assert scores_of(tmp_path / "night2") == scores_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("then", "taken"),
    [
        (["wings", "bees", "wings"], 3),
        (["wings", " ", "bees", "wings"], 3),
        (["bees", "wings", "wings"], 0),
        (["wings", "bees"], 0),
    ],
    ids=["same", "blank", "turned", "once"],
)
def test_a_model_of_lists_wants_the_same_list(
    server: Server, tmp_path: Path, then: Texts, taken: int
) -> None:
    """Without being asked for it: there is no other way to reuse such scores."""
    first: Texts = ["wings", "bees", "wings"]
    receipt = second(server, tmp_path, [first], then, rows_only=False, **LISTS)
    assert (receipt.pairs_reused, receipt.requests) == (taken, int(not taken))


def test_two_earlier_rows_do_not_make_one(server: Server, tmp_path: Path) -> None:
    earlier: list[Texts] = [["wings"], ["bees"]]
    assert second(server, tmp_path, earlier, ["wings", "bees"]).pairs_reused == 0


def test_a_row_of_several_answers_is_not_taken(server: Server, tmp_path: Path) -> None:
    texts: Texts = ["wings", "bees", "air"]
    receipt = second(server, tmp_path, [texts], texts, limits={"max_documents": 2})
    assert (receipt.pairs_reused, receipt.requests) == (0, 2)


def test_a_row_that_was_taken_whole_can_be_taken_again(server: Server, tmp_path: Path) -> None:
    texts: Texts = ["wings", "bees"]
    second(server, tmp_path, [texts], texts)
    also: Any = {"reuse": tmp_path / "night2", "reuse_rows_only": True}
    receipt = score(server, tmp_path / "2.parquet", tmp_path / "night3", **also)
    assert (receipt.requests, receipt.pairs_reused) == (0, 2)
    assert reused(tmp_path / "night3") == reused(tmp_path / "night2")


def test_a_row_mixed_of_two_nights_is_not_taken_whole(server: Server, tmp_path: Path) -> None:
    second(server, tmp_path, [["wings", "bees"]], ["wings", "air"], rows_only=False)
    also: Any = {"reuse": tmp_path / "night2", "reuse_rows_only": True}
    receipt = score(server, tmp_path / "2.parquet", tmp_path / "night3", **also)
    assert (receipt.requests, receipt.pairs_reused) == (1, 0)
    assert output(tmp_path / "night3")["requests"].to_pylist() == [1]

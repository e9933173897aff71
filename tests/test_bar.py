"""The bar drops columns where there is no room, and never cuts a number."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrank.cli.progress_bar import lines
from batchrank.output.receipt import Progress
from batchrank.output.standstill import Standstill

WHY = Standstill(
    kind="pause",
    reason="the endpoint answered 429 Throttling; it asks for a pause",
    since="2026-11-30T20:00:00+00:00",
    seconds=1234.0,
    until="2026-11-30T20:15:00+00:00",
)
WHOLE = Progress(
    rows=5_000_000,
    rows_done=1_234_567,
    requests=1_300_000,
    tokens=98_765_432_109,
    cost_usd=9876.54,
    cost_is_real=True,
    seconds=5000.0,
    requests_per_second=87.6,
    seconds_left=42_000.0,
    rows_failed=1_234,
    rows_partial=12,
    retries=23_456,
    throttled=3_456,
)
FIGURES = {
    *("1,234,567/5,000,000", "25%", "87.6 requests/s", "98,765,432,109 tokens", "$9,876.54"),
    *("1,234 failed", "12 partial", "23,456 sent again", "3,456 throttled"),
    *("11 h 40 min left",),
}


def figures_of(line: str) -> list[str]:
    return re.split(r" {2,}|rows [━╌=-]* ?", line.strip())


@pytest.mark.parametrize("width", [4, *range(20, 200)])
def test_every_figure_is_whole_at_any_width(width: int) -> None:
    (line,) = lines(WHOLE, width)
    assert len(line) <= width
    shown = [figure for figure in figures_of(line) if figure]
    assert shown and set(shown) <= FIGURES


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (40, "1,234,567/5,000,000"),
        (80, "11 h 40 min left"),
        (140, "87.6 requests/s"),
    ],
)
def test_what_matters_most_is_there(width: int, line: str) -> None:
    assert line in lines(WHOLE, width)[0]


def test_the_reason_is_broken_between_words_below_the_bar() -> None:
    shown = lines(replace(WHOLE, standstill=WHY), 40)
    assert len(shown) > 2 and all(len(line) <= 40 for line in shown)
    said = " ".join(shown[1:])
    assert "(1234 s): the endpoint answered 429 Throttling; it asks for a pause" in said


@given(
    width=st.integers(20, 200),
    done=st.integers(0, 10**7),
    cost=st.floats(0, 10**6),
    left=st.none() | st.floats(0, 10**7),
)
def test_no_line_is_wider_than_the_terminal(
    width: int, done: int, cost: float, left: float | None
) -> None:
    fields = _fields(WHOLE) | {
        "rows": 10**7,
        "rows_done": done,
        "cost_usd": cost,
        "seconds_left": left,
    }
    for plain in (False, True):
        (line,) = lines(Progress(**fields), width, plain=plain)
        assert len(line) <= width
        assert not plain or line.isascii()


def _fields(progress: Progress) -> dict[str, object]:
    return {name: getattr(progress, name) for name in progress.__struct_fields__}

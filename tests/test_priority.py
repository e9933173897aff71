"""`--priority-column`: the most valuable rows are sent first, and the output is as without it.

The server's ledger lists requests in the order of their first bill, which with one request in
flight is the order in which they were sent.
"""

import asyncio
import signal
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import (
    Server,
    content,
    fast,
    inside,
    killed,
    part_bytes,
    score,
    settings,
    started,
    table,
    until,
    written,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from batchrank.output.receipt import Progress, Receipt
from batchrank.planning.priority_bands import BANDS, Bands
from batchrank.records import RequestPlan, Scored, Spent, plan_id
from batchrank.session import job
from batchrank.session.deadline import Deadline
from batchrank.session.earlier_answers import Ahead, look_ahead
from batchrank.state.checkpoint import Checkpoint, begin

SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.05\n'
PART = {"rows_per_part": 20}


def prioritised(rows: pa.Table, values: Sequence[Any] | pa.Array) -> pa.Table:
    return rows.append_column("value", values if isinstance(values, pa.Array) else pa.array(values))


def by_priority(
    server: Server,
    source: Path,
    out: Path,
    *,
    in_flight: int = 1,
    watch: Callable[[Progress], None] = lambda progress: None,
    **asked: Any,
) -> Receipt:
    config = settings(server.base_url, rate={"max_in_flight": in_flight}, output=PART)
    request = job.Request(inputs=[str(source)], out=out, priority_column="value", **asked)
    return job.run(config, request, watch)


def sent(server: Server, rows: pa.Table) -> list[int]:
    """The rows in the order in which they were sent; each of them once."""
    ledger = server.ledger(full=True)
    assert ledger["requests"] == ledger["unique"]
    row_of = {content(row): index for index, row in enumerate(rows.to_pylist())}
    return [row_of[digest] for digest in ledger["per_content"]]


@dataclass
class Two:
    """Two hundred rows of any order, and the order in which they are to be sent."""

    rows: pa.Table
    source: Path
    order: list[int]
    oracle: dict[str, bytes]


@pytest.fixture(scope="module")
def two(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("priority")
    values = Random(7).sample(range(-100, 100), 200)
    rows = prioritised(table(200, tag="priority"), values)
    source = written(folder / "in.parquet", rows, row_group_size=30)
    falling = sorted(range(200), key=lambda row: -values[row])
    order = [row for band in range(0, 200, 20) for row in sorted(falling[band : band + 20])]
    score(server, source, folder / "oracle", output=PART)
    return Two(rows, source, order, part_bytes(folder / "oracle"))


def test_tenths_of_the_rows_go_one_after_the_other_and_the_parts_are_the_same(
    serve: Callable[..., Server], two: Two, tmp_path: Path
) -> None:
    own = serve()
    receipt = by_priority(own, two.source, tmp_path / "out")
    assert (receipt.exit_code, receipt.priority_column) == (0, "value")
    assert sent(own, two.rows) == two.order
    assert part_bytes(tmp_path / "out") == two.oracle


def test_what_a_cap_on_the_cost_buys_is_the_most_valuable_rows(
    serve: Callable[..., Server], two: Two, tmp_path: Path
) -> None:
    """Over two nights, and a third without the option."""
    own, out = serve(), tmp_path / "out"
    whole = by_priority(serve(), two.source, tmp_path / "whole").cost_usd
    for share in (0.3, 0.7):
        receipt = by_priority(own, two.source, out, max_cost_usd=share * whole)
        bought = sent(own, two.rows)
        assert receipt.exit_code == 4
        assert 200 * (share - 0.1) < len(bought) <= 200 * share
        assert set(bought) <= set(two.order[: len(bought) + 20])
        assert receipt.left is not None
        assert receipt.rows_kept == len(bought) == 200 - receipt.left.rows
        assert part_bytes(out) == {}
    assert score(own, two.source, out, output=PART).exit_code == 0
    assert len(sent(own, two.rows)) == 200
    assert part_bytes(out) == two.oracle


def test_what_a_deadline_leaves_is_the_least_valuable_rows(
    serve: Callable[..., Server], two: Two, tmp_path: Path
) -> None:
    own, now = serve(SLOW), [0.0]

    def watch(progress: Progress) -> None:
        now[0] = 2000.0 if progress.rows_done >= 30 else 0.0

    end = Deadline(datetime.fromtimestamp(1000, UTC), "06:00", lambda: now[0])
    receipt = by_priority(own, two.source, tmp_path / "out", watch=watch, finish_by=end)
    bought = sent(own, two.rows)
    assert receipt.exit_code == 4
    assert 30 <= len(bought) < 200
    assert bought == two.order[: len(bought)]


@pytest.mark.parametrize("with_priority", [True, False])
def test_killed_in_a_band_it_goes_on_with_the_option_or_without(
    serve: Callable[..., Server], two: Two, tmp_path: Path, with_priority: bool
) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    config = tmp_path / "batchrank.toml"
    config.write_text("[output]\nrows_per_part = 20\n")
    run = [*fast(own, out, two.source), "--max-in-flight", 4, "-c", config]
    process = started(*run, "--priority-column", "value")
    until(lambda: own.received > 60, "some are sent")
    assert killed(process) == -signal.SIGKILL
    assert part_bytes(out) == {}
    done = inside(*run, *(["--priority-column", "value"] if with_priority else []))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert part_bytes(out) == two.oracle
    ledger = own.ledger()
    assert ledger["unique"] == 200
    assert ledger["requests"] - 200 <= 4 + 4 * 2, "more paid twice than in flight and uncommitted"


def test_an_answer_that_is_late_is_waited_for_and_not_asked_for_again(
    serve: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    """All other rows are done, and their parts read, before the first one is answered."""
    own = serve('[[fault]]\nkind = "slow"\nseconds = 1.5\nwhere = { marker = "row 41 " }\n')
    rows = prioritised(table(60, tag="late"), [int(row == 41) for row in range(60)])
    source = written(tmp_path / "in.parquet", rows)
    assert by_priority(own, source, tmp_path / "out", in_flight=8).exit_code == 0
    assert len(sent(own, rows)) == 60
    assert own.ledger()["faults"] == {"slow": 1}
    score(server, source, tmp_path / "oracle", output=PART)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "oracle")


def test_what_failed_in_its_band_is_not_tried_again_before_it_is_asked_to(
    serve: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    poison = '[[fault]]\nkind = "content_refusal"\nwhere = { marker = "text 0" }\n'
    rows = table(40, 1, tag="refused")
    rows = prioritised(rows, list(range(40)))
    source, out = written(tmp_path / "in.parquet", rows), tmp_path / "out"
    receipt = by_priority(serve(poison), source, out)
    assert (receipt.exit_code, receipt.rows_failed, receipt.requests) == (3, 40, 40)
    own = serve()
    receipt = by_priority(own, source, out, retry_failed=True)
    assert (receipt.exit_code, receipt.rows_scored) == (0, 40)
    bands = [[*range(first, first + 4)] for first in range(36, -1, -4)]
    assert sent(own, rows) == [row for band in bands for row in band]
    score(server, source, tmp_path / "oracle", output=PART)
    assert part_bytes(out) == part_bytes(tmp_path / "oracle")


KINDS = {
    "int8": pa.array([3, None, 1, 2, 1], pa.int8()),
    "float": pa.array([0.3, float("nan"), -float("inf"), float("inf"), None]),
    "decimal": pa.array([Decimal("3.20"), None, Decimal("3.19"), Decimal("-1.00"), None]),
    "date": pa.array([20_000, None, 19_999, 20_001, 0], pa.int32()).cast(pa.date32()),
    "timestamp": pa.array([10**15 + 1, None, 10**15, 0, -1], pa.timestamp("us", "UTC")),
    "null": pa.array([None, None, None, None, None], pa.int64()),
}
ORDERS = {
    "int8": [0, 3, 2, 4, 1],
    "float": [3, 0, 2, 1, 4],
    "decimal": [0, 2, 3, 1, 4],
    "date": [3, 0, 2, 4, 1],
    "timestamp": [0, 2, 3, 4, 1],
    "null": [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize("kind", KINDS)
def test_few_values_are_taken_one_by_one_and_rows_without_one_last(
    serve: Callable[..., Server], tmp_path: Path, kind: str
) -> None:
    own, rows = serve(), prioritised(table(5, tag=kind), KINDS[kind])
    by_priority(own, written(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert sent(own, rows) == ORDERS[kind]


def test_pairs_have_the_priority_of_their_first_line(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own, rows = serve(), table(5, tag="pairs")
    lines = [
        {
            "query_id": row["query_id"],
            "query": row["query"],
            **candidate,
            "value": (row["query_id"] * 3 % 5) * (1 if at == 0 else -7),
        }
        for row in rows.to_pylist()
        for at, candidate in enumerate(row["candidates"])
    ]
    source = written(tmp_path / "in.parquet", pa.Table.from_pylist(lines))
    receipt = by_priority(own, source, tmp_path / "out")
    assert (receipt.exit_code, receipt.rows) == (0, 5)
    assert sent(own, rows) == [3, 1, 4, 2, 0]
    assert by_priority(serve(), source, tmp_path / "again").parts == receipt.parts


def test_a_run_of_ids_may_go_by_its_own_scores(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Its lines in no order: they are grouped before they are read by bands."""
    own, rows = serve(), table(5, tag="ids")
    documents = [
        {"_id": f"{row['query_id']}", "doc_id": one["doc_id"], "text": one["text"]}
        for row in rows.to_pylist()
        for one in row["candidates"]
    ]
    run = [
        {"query_id": one["_id"], "doc_id": one["doc_id"], "value": int(one["_id"]) * 3 % 5}
        for at in range(3)
        for one in documents[at::3]
    ]
    queries = [{"_id": f"{row['query_id']}", "text": row["query"]} for row in rows.to_pylist()]
    corpus = [{"_id": one["doc_id"], "text": one["text"]} for one in documents]
    for name, lines in {"run": run, "queries": queries, "corpus": corpus}.items():
        written(tmp_path / f"{name}.parquet", pa.Table.from_pylist(lines))
    beside = {name: str(tmp_path / f"{name}.parquet") for name in ("queries", "corpus")}
    receipt = by_priority(own, tmp_path / "run.parquet", tmp_path / "out", **beside)
    assert (receipt.exit_code, receipt.rows) == (0, 5)
    assert sent(own, rows) == [3, 1, 4, 2, 0]


def test_only_the_rows_of_the_limit_are_put_in_order(
    serve: Callable[..., Server], two: Two, tmp_path: Path
) -> None:
    own = serve()
    receipt = by_priority(own, two.source, tmp_path / "out", limit_rows=25)
    assert (receipt.exit_code, receipt.rows) == (0, 25)
    assert sorted(sent(own, two.rows)) == [*range(25)]


def test_an_input_without_rows_is_done_as_ever(server: Server, tmp_path: Path) -> None:
    none = prioritised(table(1), [1]).slice(0, 0)
    source = written(tmp_path / "in.parquet", none)
    receipt = by_priority(server, source, tmp_path / "out", allow_empty=True)
    assert (receipt.exit_code, receipt.rows, len(receipt.parts)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("worth", 'no column "worth" for --priority-column; it has query_id, query, candidates.'),
        ("query", 'column "query" is string; expected numbers, dates or timestamps, as'),
    ],
)
def test_a_column_without_an_order_is_refused(
    server: Server, tmp_path: Path, column: str, said: str
) -> None:
    source, before = written(tmp_path / "in.parquet", table(2)), server.received
    done = inside(*fast(server, tmp_path / "out", source), "--priority-column", column)
    assert (done.returncode, server.received) == (65, before)
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_that_are_sent_together_have_no_order(server: Server, tmp_path: Path) -> None:
    rows = prioritised(table(2), [1, 2])
    source, before = written(tmp_path / "in.parquet", rows), server.received
    run = [*fast(server, tmp_path / "out", source), "--priority-column", "value", "--unite-rows"]
    done = inside(*run)
    assert (done.returncode, server.received) == (78, before)
    assert "--priority-column and endpoint.unite_rows" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


NUMBERS = st.floats(allow_nan=True, width=32) | st.integers(0, 3).map(float)


@given(values=st.lists(st.tuples(NUMBERS, st.booleans(), st.booleans()), max_size=80))
@hypothesis_settings(deadline=None, derandomize=True)
def test_no_row_of_a_band_is_worth_less_than_one_of_a_later_band(
    values: list[tuple[float, bool, bool]],
) -> None:
    priorities = np.array([value for value, _, _ in values], np.float64)
    wanted = np.array([is_wanted for _, is_wanted, _ in values], bool)
    settled = np.array([is_settled for _, _, is_settled in values], bool) & ~wanted
    bands = Bands(priorities, wanted, settled)
    flags = [bands.rows(band) for band in range(bands.count)]
    assert (sum(flags, np.zeros(len(values), int)) == wanted).all()
    assert bands.count <= BANDS + 1
    known = [priorities[one & ~np.isnan(priorities)] for one in flags]
    assert all(
        earlier.min() > later.max() for earlier, later in pairwise(one for one in known if len(one))
    )
    for band in flags[:-1]:
        assert not np.isnan(priorities[band]).any() or wanted.sum() == np.isnan(priorities).sum()
    assert bands.ahead == settled.sum()


async def _held(ahead: Ahead, parts: int) -> list[int]:
    held = []
    for part in range(parts):
        await ahead.turn_to(part)
        held.append(ahead.held)
    return held


def test_answers_are_held_for_one_part_at_a_time(tmp_path: Path) -> None:
    """However many a stopped run has left: as many as the largest part has."""
    path = tmp_path / "checkpoint.sqlite"
    begin(path, b"{}")
    checkpoint = Checkpoint(path)
    checkpoint.start(lambda error: pytest.fail(str(error)))
    for row in range(5000):
        scores = Scored(plan_id(row, 0), array("d", [row]), 1, Spent())
        checkpoint.record(row // 100, b"digest", scores)
    checkpoint.close()
    ahead = look_ahead(
        checkpoint, 5000, 100, published=(), failed={}, retry_failed=False, priorities=None
    )
    assert asyncio.run(_held(ahead, 50)) == [100] * 50
    plan = RequestPlan(plan_id(4950, 0), "query", ["text"], [], 1, 1, b"digest")
    assert ahead.outcome(plan) == Scored(plan.plan_id, array("d", [4950]), 1, Spent())
    assert ahead.outcome(plan) is None

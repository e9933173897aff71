"""Rows that share a query share requests, if asked for: the scores are those of a run apart, and
which requests they came from is told; killed, refused or failed, it is right for each row.
"""

import json
import signal
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from math import nan
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pytest
import xxhash
from helpers import (
    CANDIDATES,
    Server,
    fast,
    inside,
    killed,
    output,
    part_bytes,
    started,
    until,
    written,
)
from test_resume_after_kill import SLOW, settled
from test_same_bytes import SHUFFLED

import batchrank
from batchrank.errors import BatchrankError
from batchrank.input import Inputs, open_inputs
from batchrank.planning.text_hashes import digest_before
from batchrank.records import Failed, Scored, Share, Spent, plan_id, plan_of, row_of
from batchrank.session.request import columns_of
from batchrank.state import checkpoint
from batchrank.state.checkpoint import Checkpoint

ROWS_PER_PART = 60
QUERIES, RETRIEVERS = 40, 4
POISON = """
[[fault]]
kind = "content_refusal"
where = { marker = "poison" }
"""


def rows(tag: str, queries: int = QUERIES, poisonous: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Each query once for each retriever, whose lists overlap; one retriever after the other. The
    texts of these numbers are poisonous; a list has the numbers 2 r to 2 r + 5.
    """
    return [
        {
            "query_id": f"{query}-{retriever}",
            "query": f"query {query} of {tag}",
            "candidates": [
                {
                    "doc_id": f"d{number}",
                    "text": f"{tag} {query} {number}{' poison' * (number in poisonous)}",
                }
                for number in range(2 * retriever, 2 * retriever + 6)
            ],
        }
        for retriever in range(RETRIEVERS)
        for query in range(queries)
    ]


def nested(content: list[dict[str, Any]]) -> pa.Table:
    names = {"query_id": pa.string(), "query": pa.string(), "candidates": CANDIDATES}
    return pa.Table.from_pylist(content, pa.schema(names))


def command(own: Server, out: Path, source: Path, *options: object) -> list[object]:
    """A run with rows united, in small parts."""
    config = out.parent / "parts.toml"
    config.write_text(f"[output]\nrows_per_part = {ROWS_PER_PART}\n")
    return [*fast(own, out, source), "--unite-rows", "-c", config, *options]


def apart(own: Server, out: Path, source: Path) -> list[object]:
    """The same run with a request for each row."""
    return [word for word in command(own, out, source) if word != "--unite-rows"]


def scores(out: Path) -> list[dict[str, Any]]:
    """The rows without what tells of requests."""
    table = output(out)
    told = [name for name in ("requests", "request_ids") if name in table.column_names]
    found: list[dict[str, Any]] = table.drop_columns(told).to_pylist()
    return found


def shared(out: Path) -> dict[int, set[int]]:
    """The rows of each request."""
    by_request = defaultdict(set)
    for row, ids in enumerate(output(out)["request_ids"].to_pylist()):
        for request in ids:
            by_request[request].add(row)
    return by_request


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows of 40 queries, and among them some with nothing to send."""
    content = rows("same")
    content[3]["candidates"][0]["text"] = " "
    content[5]["query"] = None
    content[7]["candidates"] = []
    content[130]["candidates"][2]["text"] = content[130]["candidates"][4]["text"]
    return written(tmp_path_factory.mktemp("united") / "in.parquet", nested(content))


@pytest.fixture(scope="module")
def oracle(server: Server, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run with rows united."""
    out = tmp_path_factory.mktemp("united") / "out"
    assert inside(*command(server, out, source)).returncode == 0
    return out


def test_scores_are_those_of_a_run_apart_to_the_last_bit(
    serve: Callable[..., Server], source: Path, oracle: Path, tmp_path: Path
) -> None:
    own = serve()
    assert inside(*apart(own, tmp_path / "apart", source)).returncode == 0
    assert own.received == 158
    assert scores(oracle) == scores(tmp_path / "apart")
    assert output(tmp_path / "apart").column_names[-1] == "truncated"


def test_rows_of_a_part_with_one_query_are_one_request_and_say_so(
    source: Path, oracle: Path
) -> None:
    table = output(oracle)
    assert table.column_names[-1] == "request_ids"
    assert table.schema.field("request_ids").type == pa.list_(pa.int64())
    queries = pa.parquet.read_table(source)["query"].to_pylist()
    together = defaultdict(set)
    for row, (query, status) in enumerate(zip(queries, table["status"].to_pylist(), strict=True)):
        if status != "skipped":
            together[row // ROWS_PER_PART, query].add(row)
    assert sorted(map(sorted, together.values())) == sorted(map(sorted, shared(oracle).values()))
    assert [len(ids) for ids in table["request_ids"].to_pylist()] == table["requests"].to_pylist()
    receipt = json.loads((oracle / "_run.json").read_bytes())
    assert receipt["requests"] == len(together)


@pytest.mark.parametrize(("max_in_flight", "seed"), [(1, 1), (64, 3)])
def test_concurrency_leaves_no_trace(
    serve: Callable[..., Server],
    source: Path,
    oracle: Path,
    tmp_path: Path,
    max_in_flight: int,
    seed: int,
) -> None:
    own = serve(SHUFFLED.format(seed) if max_in_flight > 1 else "")
    run = command(own, tmp_path / "out", source, "--max-in-flight", max_in_flight)
    assert inside(*run).returncode == 0
    assert part_bytes(tmp_path / "out") == part_bytes(oracle)
    assert inside("verify", tmp_path / "out").returncode == 0


def waiting(out: Path) -> set[int]:
    """Plans whose answers are on disk; those of a part may still be there when it is."""
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        return {plan for (plan,) in database.execute("SELECT plan FROM answers")}


def committed(out: Path) -> int:
    """Requests whose answers are on disk."""
    parts = [plan_of(request) for path in out.glob("part-*") for request in ids_of(path)]
    return len(waiting(out).union(parts))


def ids_of(part: Path) -> set[int]:
    """The requests that a part's scores came from."""
    lists = pa.parquet.read_table(part, columns=["request_ids"])["request_ids"].to_pylist()
    return {request for ids in lists for request in ids}


def test_killed_and_resumed_it_is_the_same_bytes_and_what_was_answered_is_not_sent_again(
    serve: Callable[..., Server], source: Path, oracle: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    run = command(own, out, source, "--max-in-flight", 4)
    for sent in (20, 60):
        process = started(*run)
        until(lambda sent=sent: own.received >= sent, f"{sent} requests are sent")  # type: ignore[misc]
        assert killed(process) == -signal.SIGKILL
    ledger, known = settled(own), committed(out)
    assert known > 20
    assert inside(*run).returncode == 0
    assert part_bytes(out) == part_bytes(oracle)
    requests = len(shared(oracle))
    assert own.ledger()["unique"] == requests
    assert own.ledger()["requests"] - ledger["requests"] == requests - known


def test_a_refused_document_is_told_in_each_row_by_its_own_index_and_harms_no_other(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own = serve(POISON)
    source = written(tmp_path / "in.parquet", nested(rows("bad", 10, poisonous=(4, 9))))
    assert inside(*command(own, tmp_path / "out", source)).returncode == 0
    assert inside(*apart(own, tmp_path / "apart", source)).returncode == 0
    assert scores(tmp_path / "out") == scores(tmp_path / "apart")
    assert [row["status"] for row in scores(tmp_path / "out")] == ["partial"] * 40
    last = output(tmp_path / "out").to_pylist()[-1]  # its list begins with number 6
    assert last["error"].startswith("document 3: ")
    assert len(last["request_ids"]) == last["requests"]


def test_a_row_of_nothing_but_poison_fails_by_itself_and_is_asked_again_by_itself(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", nested(rows("all", 10, poisonous=(0, 1, 2, 3, 4, 5))))
    poisoned, well, out = serve(POISON), serve(), tmp_path / "out"
    run = command(poisoned, out, source)
    assert inside(*run).returncode == 3
    assert inside(*apart(poisoned, tmp_path / "apart", source)).returncode == 3
    before = output(out).to_pylist()
    assert [row["status"] for row in before] == ["failed"] * 10 + ["partial"] * 20 + ["scored"] * 10
    assert [row["error"] for row in before] == [row["error"] for row in scores(tmp_path / "apart")]

    run = command(well, out, source, "--retry-failed")
    assert inside(*run).returncode == 0
    after = output(out).to_pylist()
    assert after[10:] == before[10:]
    assert [row["status"] for row in after[:10]] == ["scored"] * 10
    assert well.received == 10
    old = {request for row in before for request in row["request_ids"]}
    new = {request for row in after[:10] for request in row["request_ids"]}
    assert not old & new


def test_only_what_failed_is_asked_again_and_no_good_score_is_touched(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """A request for each text, and those of two texts that all rows of a query have fail."""
    content = rows("retry", 3)
    for row in content:
        row["candidates"] += [
            {"doc_id": f"x{number}", "text": f"{row['query']} {number} poison"} for number in (1, 2)
        ]
        row["candidates"].append({"doc_id": "long", "text": "word " * 100})
    source = written(tmp_path / "in.parquet", nested(content))
    limits = tmp_path / "parts.toml"
    small = f"[output]\nrows_per_part = {ROWS_PER_PART}\n[limits]\nmax_documents = 1\n"
    small += "max_tokens_per_document = 50\n"

    def run(own: Server, *options: object) -> int:
        limits.write_text(small)
        words = [*fast(own, tmp_path / "out", source), "--unite-rows", "-c", limits, *options]
        return inside(*words).returncode

    poisoned, well = serve(POISON), serve()
    assert run(poisoned) == 3
    before = output(tmp_path / "out").to_pylist()
    assert {row["status"] for row in before} == {"partial"}
    assert run(well, "--retry-failed") == 0
    after = output(tmp_path / "out").to_pylist()
    assert {row["status"] for row in after} == {"scored"}
    assert {row["error"] for row in after} == {None}
    assert well.received == 6  # for each of three queries two texts that all its rows lack
    for old, new in zip(before, after, strict=True):
        scored = {one["index"]: one["relevance_score"] for one in new["results"]}
        known = {one["index"]: one["relevance_score"] for one in old["results"] if one["rank"]}
        assert known.items() <= scored.items() and len(known) == 7
        assert set(old["request_ids"]) < set(new["request_ids"])
        assert new["requests"] == len(new["request_ids"])
        assert old["truncated"] == new["truncated"] == 1
    assert run(well, "--retry-failed") == 0
    assert well.received == 6


@pytest.mark.parametrize(("first", "stop"), [(0, 160), (37, 41), (90, 131), (159, 160), (5, 5)])
def test_queries_are_those_of_the_rows_from_any_row_to_any_other(
    tmp_path: Path, first: int, stop: int
) -> None:
    content = rows("read")
    content[91]["query"] = None
    pairs = [
        {"query_id": row["query_id"], "query": row["query"], "text": one["text"]}
        for row in content
        for one in row["candidates"]
    ]
    for name, table in (("rows", nested(content)), ("pairs", pa.Table.from_pylist(pairs))):
        half = 100 * (table.num_rows // len(content))
        written(tmp_path / name / "a.parquet", table.slice(0, half), row_group_size=17)
        written(tmp_path / name / "b.parquet", table.slice(half), row_group_size=40)
        source = open_inputs(
            Inputs([str(tmp_path / name)]), columns_of(batchrank.config.settings.load(None, {}))
        )
        assert source.total_rows == len(content)
        assert list(source.queries(first, stop)) == [row["query"] for row in content[first:stop]]


def test_pairs_with_two_ids_for_one_query_give_the_bytes_of_rows(
    server: Server, tmp_path: Path
) -> None:
    content = rows("pairs", 12)
    pairs = [
        {"query_id": row["query_id"], "query": row["query"], **one}
        for row in content
        for one in row["candidates"]
    ]
    for name, table in (("rows", nested(content)), ("pairs", pa.Table.from_pylist(pairs))):
        source = written(tmp_path / f"{name}.parquet", table)
        assert inside(*command(server, tmp_path / name, source)).returncode == 0
    assert part_bytes(tmp_path / "pairs") == part_bytes(tmp_path / "rows")
    assert len(shared(tmp_path / "rows")) == 12


def test_ids_with_one_text_for_two_queries_share_requests(server: Server, tmp_path: Path) -> None:
    content = rows("ids", 12)
    run = [(row["query_id"], one["doc_id"]) for row in content for one in row["candidates"]]
    trec = "".join(f"{query} Q0 {document} 1 0 x\n" for query, document in run)
    (tmp_path / "run.trec").write_text(trec)
    texts = {one["doc_id"]: f"text of {one['doc_id']}" for r in content for one in r["candidates"]}
    for name, known in (
        ("queries", {row["query_id"]: row["query"] for row in content}),
        ("corpus", texts),
    ):
        lines = [json.dumps({"_id": one, "text": text}) for one, text in known.items()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    read = ["--queries", tmp_path / "queries.jsonl", "--corpus", tmp_path / "corpus.jsonl"]
    source, out = tmp_path / "run.trec", tmp_path / "out"
    assert inside(*command(server, out, source, *read)).returncode == 0
    assert len(shared(out)) == 12
    assert inside(*apart(server, tmp_path / "apart", source), *read).returncode == 0
    assert scores(out) == scores(tmp_path / "apart")


def test_a_frame_comes_back_with_the_ids_of_its_requests(server: Server) -> None:
    frame = pl.DataFrame(pl.from_arrow(nested(rows("frame", 5))))
    scored = batchrank.rerank(
        frame, base_url=server.base_url, requests_per_minute=0, unite_rows=True, progress=False
    )
    assert scored["request_ids"].explode().n_unique() == 5


def test_plan_tells_the_saving_whether_it_is_asked_for_or_not(source: Path, tmp_path: Path) -> None:
    config = tmp_path / "parts.toml"
    config.write_text(f"[output]\nrows_per_part = {ROWS_PER_PART}\n")
    plain = inside("plan", source, "-c", config).stdout
    united = inside("plan", source, "-c", config, "--unite-rows").stdout
    saving = "120 requests instead of 158, 9,218 tokens instead of 10,978"
    assert f"78 rows share their query; --unite-rows would send {saving}" in plain
    assert "requests   158; no fewer than 158" in plain
    assert f"78 rows share their query; --unite-rows sends {saving}" in united
    assert "requests   120; no fewer than 120" in united


def test_plan_says_nothing_of_it_where_no_query_comes_twice(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", nested(rows("once", 5)[:5]))
    assert "uniting" not in inside("plan", source).stdout


def test_a_model_that_scores_lists_is_refused(source: Path, tmp_path: Path) -> None:
    done = inside(
        *("run", source, "-o", tmp_path / "out", "--unite-rows"),
        *("--provider", "jina", "--model", "jina-reranker-v3"),
    )
    assert done.returncode == 78
    assert "scores a list as a whole" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_begun_with_a_request_for_each_row_goes_on_so(
    server: Server, source: Path, tmp_path: Path
) -> None:
    assert inside(*apart(server, tmp_path / "out", source)).returncode == 0
    done = inside(*command(server, tmp_path / "out", source))
    assert done.returncode == 78
    assert "endpoint.unite_rows = False, now True" in done.stderr


def test_an_output_cannot_have_a_second_column_of_that_name() -> None:
    kept: dict[str, Any] = {"keep_columns": ["request_ids"]}
    with pytest.raises(BatchrankError, match="second column request_ids"):
        batchrank.config.settings.load(None, {"input": kept, "endpoint": {"unite_rows": True}})
    assert batchrank.config.settings.load(None, {"input": kept}).input.keep_columns == [
        "request_ids"
    ]


def test_a_run_of_an_earlier_version_goes_on(
    serve: Callable[..., Server], source: Path, tmp_path: Path
) -> None:
    """Its state knows neither the key nor the columns, and its answers have other digests."""
    own, out = serve(SLOW), tmp_path / "out"
    run = apart(own, out, source)
    process = started(*run, "--max-in-flight", 4)
    until(lambda: own.received >= 40, "some requests are sent")
    assert killed(process) == -signal.SIGKILL
    before, known = settled(own)["requests"], len(waiting(out))
    assert known and not part_bytes(out)
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        database.execute("ALTER TABLE answers DROP COLUMN shares")
        database.execute("ALTER TABLE answers DROP COLUMN also")
        kept = "plan, scores, requests, note"
        rows = pl.read_parquet(source)
        for plan, *values in database.execute(f"SELECT {kept} FROM answers").fetchall():
            row = rows.row(row_of(plan), named=True)
            texts = dict.fromkeys(one["text"] for one in row["candidates"] if one["text"].strip())
            other = digest_before(row["query"], list(texts))
            answer = msgspec.msgpack.encode((plan, other, *values))
            sealed = other, xxhash.xxh3_64_digest(answer), plan
            database.execute("UPDATE answers SET digest = ?, seal = ? WHERE plan = ?", sealed)
        begun = database.execute("SELECT value FROM meta WHERE name = 'fingerprint'").fetchone()[0]
        fingerprint = json.loads(begun)
        del fingerprint["config"]["endpoint.unite_rows"]
        value = json.dumps(fingerprint).encode()
        database.execute("UPDATE meta SET value = ? WHERE name = 'fingerprint'", (value,))
        database.execute("PRAGMA user_version=1")
        database.commit()
    assert inside(*run).returncode == 0
    assert own.ledger()["requests"] - before == 158 - known
    assert inside("verify", out).returncode == 0


def test_what_each_row_has_of_a_halved_request_is_kept(tmp_path: Path) -> None:
    shares = [Share([0, 2], None), Share([1], "document 3: refused")]
    scored = Scored(7, array("d", [0.5, nan]), 3, Spent(), None, shares)
    failed = Failed(8, "given up", Spent(), [Share([], "document 1: given up")] * 2)
    checkpoint.begin(tmp_path / "checkpoint.sqlite", b"")
    state = Checkpoint(tmp_path / "checkpoint.sqlite")
    state.start(lambda error: pytest.fail(str(error)))
    for outcome in (scored, failed):
        state.record(0, b"digest", outcome)
    state.close()
    found = {plan: answer.outcome for plan, answer in state.answers(0).items()}
    assert [list(map(repr, found[plan].shares)) for plan in (7, 8)] == [
        list(map(repr, one.shares)) for one in (scored, failed)
    ]


def test_all_rows_of_a_request_are_kept_with_its_answer(tmp_path: Path) -> None:
    """What a report says is left counts rows, however many share an answer."""
    checkpoint.begin(tmp_path / "checkpoint.sqlite", b"")
    state = Checkpoint(tmp_path / "checkpoint.sqlite")
    state.start(lambda error: pytest.fail(str(error)))
    scores = array("d", [0.5])
    state.record(0, b"digest", Scored(plan_id(3, 0), scores, 1, Spent()), [5, 9])
    state.record(0, b"digest", Scored(plan_id(3, 1), scores, 1, Spent()), [9, 11])
    state.record(0, b"digest", Failed(plan_id(4, 0), "given up", Spent()), [11, 12])
    state.record(1, b"digest", Scored(plan_id(70, 0), scores, 1, Spent()))
    state.record(2, b"digest", Scored(plan_id(140, 0), scores, 1, Spent()), [141])
    state.close()
    assert state.rows_kept({2}, scored=False) == len({3, 5, 9, 11, 4, 12, 70})
    assert state.rows_kept({2}, scored=True) == len({3, 5, 9, 11, 70})

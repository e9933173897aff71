"""An output is set beside its input order and another output, with intervals and a paired test."""

import json
from pathlib import Path
from random import Random

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from helpers import RESULTS, inside, written
from ir_measures import RR, R, nDCG
from scipy.stats import permutation_test

from batchrank.analysis.evaluation import evaluate, words
from batchrank.errors import InputBad, OutputUnusable

DOCUMENTS = 30


def output_of(out: Path, orders: dict[str, list[int]]) -> Path:
    """An output with these orders: of each query the input places, best first."""
    results = [
        [
            {"doc_id": f"d{index}", "index": index, "rank": rank, "relevance_score": 1 / rank}
            for rank, index in enumerate(order, 1)
        ]
        for order in orders.values()
    ]
    columns = {"query_id": list(orders), "results": pa.array(results, RESULTS)}
    written(out / "part-00000.parquet", pa.table(columns))
    (out / "_SUCCESS").touch()
    return out


def drawn(seed: int, queries: int = 40) -> dict[str, list[int]]:
    random = Random(seed)
    return {f"q{one}": random.sample(range(DOCUMENTS), DOCUMENTS) for one in range(queries)}


def qrels_of(folder: Path, seed: int = 3, queries: int = 40) -> Path:
    """Every query has documents of grades 0 to 3; d0 is at least 1."""
    random = Random(seed)
    lines = [
        f"q{one} 0 d{place} {max(random.choice([0, 0, 0, 1, 2, 3]), int(place == 0))}"
        for one in range(queries)
        for place in range(DOCUMENTS)
    ]
    path = folder / "qrels.txt"
    path.write_text("\n".join(lines))
    return path


def test_the_measures_of_an_exported_run_are_the_same_to_another_judge(tmp_path: Path) -> None:
    """`export --format trec`, then ir-measures: nothing of ours is between but the file."""
    out, path = output_of(tmp_path / "out", drawn(1)), qrels_of(tmp_path)
    run = tmp_path / "run"
    assert inside("export", out, "--format", "trec", "-o", run).returncode == 0
    found = evaluate(out, path, ks=(1, 5, 20))
    wanted = {f"{name}@{k}": measure @ k for k in (1, 5, 20) for name, measure in BOTH.items()}
    theirs = ir_measures.calc_aggregate(
        wanted.values(),
        list(ir_measures.read_trec_qrels(str(path))),
        list(ir_measures.read_trec_run(str(run))),
    )
    assert found.after == pytest.approx({name: theirs[one] for name, one in wanted.items()})


BOTH = {"nDCG": nDCG, "MRR": RR, "recall": R}


def test_cuts_are_the_measures_names_in_order(tmp_path: Path) -> None:
    out, path = output_of(tmp_path / "out", drawn(1)), qrels_of(tmp_path)
    assert list(evaluate(out, path, ks=(20, 5, 5)).after) == [
        *["nDCG@5", "nDCG@20", "MRR@5", "MRR@20", "recall@5", "recall@20"]
    ]
    assert list(evaluate(out, path).after) == ["nDCG@10", "MRR@10", "recall@10", "recall@100"]


def test_intervals_hold_the_mean_and_are_the_same_every_time(tmp_path: Path) -> None:
    out, path = output_of(tmp_path / "out", drawn(1)), qrels_of(tmp_path)
    found = evaluate(out, path)
    assert found == evaluate(out, path)
    for name, interval in found.intervals.items():
        assert interval is not None
        assert interval[0] <= found.after[name] <= interval[1]
        gain = found.gains[name]
        assert gain.mean == pytest.approx(found.after[name] - found.before[name])
        assert gain.interval is not None
        assert gain.interval[0] <= gain.mean <= gain.interval[1]
    low, high = found.intervals["nDCG@10"] or (0, 0)
    assert 0 < high - low < 0.3


def test_an_interval_is_four_standard_errors_wide(tmp_path: Path) -> None:
    """MRR@1 is 1 or 0 here, for half of 400 queries each: its standard error is 0.025."""
    orders = {f"q{one}": [0, 1] if one % 2 else [1, 0] for one in range(400)}
    path = tmp_path / "qrels.txt"
    path.write_text("".join(f"q{one} 0 d0 1\n" for one in range(400)))
    found = evaluate(output_of(tmp_path / "out", orders), path, ks=(1,))
    low, high = found.intervals["MRR@1"] or (0, 0)
    assert found.after["MRR@1"] == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)


def test_one_query_has_no_interval_and_no_significance(tmp_path: Path) -> None:
    out, path = output_of(tmp_path / "out", drawn(1, 1)), qrels_of(tmp_path, queries=1)
    found = evaluate(out, path)
    assert set(found.intervals.values()) == {None}
    assert {(gain.interval, gain.p) for gain in found.gains.values()} == {(None, 1.0)}


def test_an_output_beside_itself_gains_nothing(tmp_path: Path) -> None:
    out, path = output_of(tmp_path / "out", drawn(1)), qrels_of(tmp_path)
    beside = evaluate(out, path, against=out).against
    assert beside is not None
    figures = {(gain.mean, gain.interval, gain.p) for gain in beside.gains.values()}
    assert figures == {(0.0, (0.0, 0.0), 1.0)}


def test_a_clear_gain_is_told_from_chance(tmp_path: Path) -> None:
    """The best order there is beside a random one, and two random ones beside each other."""
    best = {f"q{one}": list(range(DOCUMENTS)) for one in range(40)}
    path = tmp_path / "qrels.txt"
    path.write_text("".join(f"q{one} 0 d{place} 1\n" for one in range(40) for place in range(3)))
    out = output_of(tmp_path / "best", best)
    random, other = (output_of(tmp_path / f"r{seed}", drawn(seed)) for seed in (1, 2))
    found = evaluate(out, path, against=random)
    assert found.against is not None
    gain = found.against.gains["nDCG@10"]
    assert found.after["nDCG@10"] == 1
    assert found.against.means["nDCG@10"] == pytest.approx(1 - gain.mean)
    assert gain.p < 0.001 and gain.interval is not None and gain.interval[0] > 0.5
    chance = evaluate(other, path, against=random).against
    assert chance is not None and chance.gains["nDCG@10"].p > 0.05


def test_p_is_that_of_the_paired_randomisation_test(tmp_path: Path) -> None:
    """scipy's own test, over all signs where they can be counted."""
    path = qrels_of(tmp_path, queries=10)
    out, other = (output_of(tmp_path / f"o{seed}", drawn(seed, 10)) for seed in (5, 6))
    found = evaluate(out, path, against=other)
    assert found.against is not None
    each = [
        evaluate(output_of(tmp_path / "one", {query: order}), path).after["nDCG@10"]
        - evaluate(output_of(tmp_path / "one", {query: drawn(6, 10)[query]}), path).after["nDCG@10"]
        for query, order in drawn(5, 10).items()
    ]
    exact = permutation_test(
        (np.array(each),), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert found.against.gains["nDCG@10"].p == pytest.approx(exact, abs=0.02)


def test_only_queries_of_both_outputs_are_compared(tmp_path: Path) -> None:
    path, orders = qrels_of(tmp_path), drawn(1)
    out = output_of(tmp_path / "out", {query: orders[query] for query in list(orders)[:30]})
    other = output_of(tmp_path / "other", {query: orders[query] for query in list(orders)[10:]})
    found = evaluate(out, path, against=other)
    assert found.queries == 20
    assert found.against is not None and found.against.queries_in_one_only == 20
    assert words(found).endswith("20 judged queries in one of them only, left out")
    apart = output_of(tmp_path / "apart", {"q35": orders["q35"]})
    with pytest.raises(InputBad, match=f"judges no query that is in both {out} and {apart}"):
        evaluate(out, path, against=apart)


def test_a_query_with_several_rows_is_refused(tmp_path: Path) -> None:
    out = output_of(tmp_path / "out", drawn(1, 2))
    part = (out / "part-00000.parquet").read_bytes()
    (out / "part-00001.parquet").write_bytes(part)
    with pytest.raises(OutputUnusable, match=r"query 'q[01]' has several rows"):
        evaluate(out, qrels_of(tmp_path))


def test_the_command_prints_both_tables_and_the_same_as_json(tmp_path: Path) -> None:
    path = qrels_of(tmp_path)
    out, other = (output_of(tmp_path / f"o{seed}", drawn(seed)) for seed in (1, 2))
    line = ["evaluate", out, "--qrels", path, "--against", other, "--k", 3]
    shown = inside(*line)
    assert (shown.returncode, shown.stderr) == (0, "")
    figures = json.loads(inside(*line, "--json").stdout)
    gain = figures["against"]["gains"]["nDCG@3"]
    rows = [row.split() for row in shown.stdout.splitlines()]
    last = next(row for row in reversed(rows) if row[:1] == ["nDCG@3"])
    assert last[1:] == [
        f"{figures['against']['means']['nDCG@3']:.4f}",
        f"{figures['after']['nDCG@3']:.4f}",
        f"{gain['mean']:+.4f}",
        f"{gain['interval'][0]:+.4f}",
        "to",
        f"{gain['interval'][1]:+.4f}",
        f"{gain['p']:.4f}",
    ]
    assert f"beside {other}:" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_another_output_without_judgments_is_a_wrong_use() -> None:
    done = inside("evaluate", "out", "--against", "other")
    assert done.returncode == 2
    assert "--against and --k need --qrels." in done.stderr

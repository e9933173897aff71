"""A run against qrels: nDCG@k, MRR@k and recall@k of the output beside the input order, or beside
another output; without qrels, how far the ranks moved.

The metrics are trec_eval's, through pytrec-eval-terrier: linear gains, the ideal from all
judgments, an unjudged document counts 0. Means are over the queries that have a judgment above 0.
A query of the qrels that is not in the output is left out, and counted.

How sure a mean is depends on the queries: the 95 % intervals are percentiles of 2,000 bootstrap
samples of them (scipy), p is that of a two-sided paired randomisation test with 10,000 random
signs (Smucker, Allan, Carterette, CIKM 2007). The seed is fixed: the same output, the same figures.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batchrank.errors import InputBad, OutputUnusable
from batchrank.movement import Movement, Moves
from batchrank.output import Output, opened, scored
from batchrank.qrels import Qrels, read_qrels
from batchrank.source import ROW_COLUMN

_SEED = 7
_BOOTSTRAP_SAMPLES = 2_000
_RANDOM_SIGNS = 10_000
_RECALL = (10, 100)
Run = dict[str, dict[str, float]]
Figures = dict[str, NDArray[np.float64]]
"""Each measure's values, one per query, always in the same order of queries."""


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What the output has more than what it is beside, its 95 % interval (none of one query), and
    the probability of a difference as large were both alike.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """Another output over the same queries: its means, and this output's gains over it.
    `queries_in_one_only` are judged, but left out since only one of the outputs has them.
    """

    output: str
    means: dict[str, float]
    gains: dict[str, Gain]
    queries_in_one_only: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Means of each measure, of the output (`after`, with 95 % intervals) and of the input order
    (`before`), and the gains of the one over the other.
    """

    queries: int
    queries_not_judged: int
    judged_queries_not_in_output: int
    before: dict[str, float]
    after: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    gains: dict[str, Gain]
    against: Against | None = None


def evaluate(
    out: Path, qrels_path: Path, *, against: Path | None = None, ks: Sequence[int] = ()
) -> Evaluation:
    """Judge an output by qrels, at the cuts `ks` (none: nDCG and MRR at 10, recall at 10 and 100).

    Raises `OutputUnusable` for an output without ids, `InputBad` for qrels that are none, or are of
    other queries.
    """
    qrels = read_qrels(qrels_path)
    judged = {query for query, grades in qrels.items() if max(grades.values()) > 0}
    rows, known = _queries(out, qrels)
    others = known if against is None else _queries(against, qrels)[1]
    chosen = sorted(known & judged & others)
    if not chosen:
        raise InputBad(_no_query_fits(qrels_path, qrels, judged, out, known, against))
    results = _candidates(out, chosen)
    before = _measured(qrels, _run(results, "index"), chosen, ks)
    after = _measured(qrels, _run(results, "place"), chosen, ks)
    beside = None
    if against is not None:
        other = _measured(qrels, _run(_candidates(against, chosen), "place"), chosen, ks)
        beside = Against(
            output=str(against),
            means=_means(other),
            gains=_gains(after, other),
            queries_in_one_only=len((known ^ others) & judged),
        )
    return Evaluation(
        queries=len(chosen),
        queries_not_judged=rows - len(known & judged),
        judged_queries_not_in_output=len(judged - known),
        before=_means(before),
        after=_means(after),
        intervals={name: _interval(values) for name, values in after.items()},
        gains=_gains(after, before),
        against=beside,
    )


def moved(out: Path) -> Movement:
    """How far the ranks of an output are from the order of its input, and how many ties it has."""
    moves = Moves()
    for batch in opened(out).batches(["results"]):
        moves.add(*scored(batch))
    return moves.result()


def words(evaluation: Evaluation) -> str:
    """Tables of the measures, and what they are over."""
    lines = [f"{'':11} {'input order':>11} {'output':>8} {'95 % interval':>16}{_HEAD}"]
    for name, after in evaluation.after.items():
        interval = _span(evaluation.intervals[name], "")
        lines.append(
            f"{name:11} {evaluation.before[name]:>11.4f} {after:>8.4f} {interval:>16}"
            f"{_gain(evaluation.gains[name])}"
        )
    lines.append(
        f"{evaluation.queries:,} judged queries; {evaluation.queries_not_judged:,} without a "
        f"judgment above 0, {evaluation.judged_queries_not_in_output:,} judged but not in the "
        "output, both left out"
    )
    other = evaluation.against
    if other is not None:
        lines += ["", f"beside {other.output}:", f"{'':11} {'the other':>11} {'output':>8}{_HEAD}"]
        lines += [
            f"{name:11} {mean:>11.4f} {evaluation.after[name]:>8.4f}{_gain(other.gains[name])}"
            for name, mean in other.means.items()
        ]
        if other.queries_in_one_only:
            lines.append(
                f"{other.queries_in_one_only:,} judged queries in one of them only, left out"
            )
    return "\n".join(lines)


_HEAD = f" {'gain':>8} {'95 % interval':>18} {'p':>7}"


def _gain(gain: Gain) -> str:
    return f" {gain.mean:>+8.4f} {_span(gain.interval, '+'):>18} {gain.p:>7.4f}"


def _span(interval: tuple[float, float] | None, sign: str) -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _queries(out: Path, qrels: Qrels) -> tuple[int, set[str]]:
    """How many queries an output has, and those that the qrels know. Raises `OutputUnusable` where
    it has no ids.
    """
    output = opened(out)
    if output.identity == ROW_COLUMN:
        raise OutputUnusable(f"{out}: has no query ids, so no judgments fit it.")
    ids = _ids(output)
    known = ids.filter(pl.col("query_id").is_in(list(qrels))).unique().collect()
    return ids.select(pl.col("query_id").n_unique()).collect().item(), set(known.to_series())


def _ids(output: Output) -> pl.LazyFrame:
    parts = pl.scan_parquet(list(output.parts))
    return parts.select(query_id=pl.col(output.identity).cast(pl.String))


def _no_query_fits(
    path: Path, qrels: Qrels, judged: set[str], out: Path, known: set[str], against: Path | None
) -> str:
    """What to say when nothing can be judged: nobody sees at once that "7" is not "q7"."""
    if not known:
        output = opened(out)
        kind, some = output.schema.field(0), _ids(output).drop_nulls().head(2).collect()
        return (
            f"{path}: judges no query of {out}. Its query_id are like {_like(qrels)}; those of "
            f"{out} (column {kind.name!r}, {kind.type}) like {_like(some.to_series())}."
        )
    if not known & judged:
        return f"{path}: has no judgment above 0 for a query of {out}."
    return f"{path}: judges no query that is in both {out} and {against}."


def _like(ids: Iterable[str]) -> str:
    return ", ".join(repr(one) for one in islice(ids, 2))


def _candidates(out: Path, queries: Sequence[str]) -> pl.DataFrame:
    """One line per candidate: query_id, doc_id, index, and its place in the output from 0."""
    output = opened(out)
    parts = pl.scan_parquet(list(output.parts))
    rows = (
        parts.select(pl.col(output.identity).cast(pl.String).alias("query_id"), "results")
        .filter(pl.col("query_id").is_in(list(queries)))
        .collect()
    )
    twice = rows.filter(rows["query_id"].is_duplicated())
    if len(twice):
        raise OutputUnusable(
            f"{out}: query {twice['query_id'][0]!r} has several rows, and judgments are of one "
            "list a query."
        )
    results = (
        rows.filter(pl.col("results").list.len() > 0)
        .explode("results")
        .unnest("results")
        .with_columns(place=pl.int_range(pl.len()).over("query_id"))
    )
    if results["doc_id"].is_null().any():
        raise OutputUnusable(f"{out}: has candidates without doc_id, so no judgments fit it.")
    return results


def _run(results: pl.DataFrame, order: str) -> Run:
    """trec_eval ranks by score alone, so the place itself, negated, is the score it is given. An
    output of the top n lacks documents of the input order: nameless ones stand in for them.
    """
    run: Run = {}
    rows = results.select("query_id", "doc_id", order).sort("query_id", order).iter_rows()
    for query, document, place in rows:
        documents = run.setdefault(query, {})
        for gap in range(len(documents), place):
            documents[f"\0{gap}"] = -float(gap)
        documents.setdefault(document, -float(place))
    return run


def _measured(qrels: Qrels, run: Run, queries: Sequence[str], ks: Sequence[int]) -> Figures:
    """Each measure of each query; one without candidates, and so not in the run, has 0."""
    from pytrec_eval import RelevanceEvaluator  # 0.1 s that no other command needs

    tops, recalls = sorted(set(ks)) or [10], sorted(set(ks)) or _RECALL
    cuts = {"ndcg_cut." + ",".join(map(str, tops)), "recall." + ",".join(map(str, recalls))}
    found = RelevanceEvaluator(qrels, cuts).evaluate(run)
    figures = {f"nDCG@{k}": _of(found, f"ndcg_cut_{k}", queries) for k in tops}
    for k in tops:
        best = {query: dict(list(documents.items())[:k]) for query, documents in run.items()}
        ranks = RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(best)
        figures[f"MRR@{k}"] = _of(ranks, "recip_rank", queries)
    return figures | {f"recall@{k}": _of(found, f"recall_{k}", queries) for k in recalls}


def _of(
    found: dict[str, dict[str, float]], key: str, queries: Sequence[str]
) -> NDArray[np.float64]:
    return np.array([found[query][key] if query in found else 0.0 for query in queries])


def _means(figures: Figures) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in figures.items()}


def _gains(output: Figures, beside: Figures) -> dict[str, Gain]:
    gains = {}
    for name, values in output.items():
        differences = values - beside[name]
        gains[name] = Gain(
            mean=float(values.mean() - beside[name].mean()),
            interval=_interval(differences),
            p=_p(differences),
        )
    return gains


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Where the mean lies in 95 % of bootstrap samples; of one query nothing can be said."""
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap  # 0.5 s that no other command needs

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_BOOTSTRAP_SAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _p(differences: NDArray[np.float64]) -> float:
    """How often random signs make a mean at least as far from 0. (scipy's test takes 40 times as
    long for thousands of queries.) The difference itself counts as one of the draws.
    """
    random = np.random.default_rng(_SEED)
    least = abs(differences.sum()) * (1 - 1e-12)
    as_far = 0
    for _ in range(0, _RANDOM_SIGNS, 100):
        signs = random.integers(0, 2, (100, len(differences)), np.int8) * 2 - 1
        as_far += int((np.abs(signs @ differences) >= least).sum())
    return (as_far + 1) / (_RANDOM_SIGNS + 1)

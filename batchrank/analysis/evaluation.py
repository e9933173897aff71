"""A run against qrels: nDCG@k, MRR@k and recall@k of the output beside the input order, or beside
another output; without qrels, how far the ranks moved.

The metrics are trec_eval's, through pytrec-eval-terrier: linear gains, the ideal from all
judgments, an unjudged document counts 0. Means are over the queries that have a judgment above 0.
A query of the qrels that is not in the output is left out, and counted. A document that a row has
twice is judged once, at its better place. Where `top_n` left candidates out, the order of the
input is not in the output, and nothing is said of it.

How sure a mean is depends on the queries: the 95 % intervals are percentiles of 2,000 bootstrap
samples of them (scipy), p is that of a two-sided paired randomisation test with 10,000 random
signs (Smucker, Allan, Carterette, CIKM 2007). The seed is fixed: the same output, the same figures.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchrank.analysis.output_reader import Depth, Output, opened, scored
from batchrank.analysis.qrels import Qrels, read_qrels
from batchrank.analysis.rank_changes import Movement, Moves
from batchrank.analysis.rankings import Documents, Ranking, distinct, query_ids, read_rankings
from batchrank.errors import InputBad, OutputUnusable
from batchrank.files.paths import Place

_SEED = 7
_BOOTSTRAP_SAMPLES = 2_000
_RANDOM_SIGNS = 10_000
_RECALL = (10, 100)
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
    `queries_in_one_only` are judged, but left out since only one of the outputs has them. `top_n`
    as in `Evaluation`.
    """

    output: str
    means: dict[str, float]
    gains: dict[str, Gain]
    queries_in_one_only: int
    top_n: int = 0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Means of each measure, of the output (`after`, with 95 % intervals) and of the input order
    (`before`), and the gains of the one over the other.

    `top_n`: the output lists so many candidates of a row and leaves others out (0: it lists all).
    Then the input order is not known, and `before` and `gains` are empty. `queries_unscored` have
    candidates without a score; `candidates_without_id` cannot be judged and count 0.
    """

    queries: int
    queries_not_judged: int
    judged_queries_not_in_output: int
    before: dict[str, float]
    after: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    gains: dict[str, Gain]
    against: Against | None = None
    top_n: int = 0
    queries_unscored: int = 0
    candidates_without_id: int = 0


def evaluate(
    out: Place,
    qrels_path: Path,
    *,
    against: Place | None = None,
    ks: Sequence[int] = (),
    state_dir: Path | None = None,
) -> Evaluation:
    """Judge an output by qrels, at the cuts `ks` (none: nDCG and MRR at 10, recall at 10 and 100).

    Raises `OutputUnusable` for an output without ids, `InputBad` for qrels that are none, or are of
    other queries.
    """
    qrels = read_qrels(qrels_path)
    judged = {query for query, grades in qrels.items() if max(grades.values()) > 0}
    own = read_rankings(out, judged, state_dir)
    other = own if against is None else read_rankings(against, judged)
    known, others = own.by_query.keys(), other.by_query.keys()
    chosen = sorted(known & others)
    if not chosen:
        raise InputBad(_no_query_fits(qrels_path, qrels, known, own.output, against))
    rankings = _chosen(own.by_query, chosen, out)
    grades = [qrels[query] for query in chosen]
    after = _measured(grades, [ranking.after for ranking in rankings], ks)
    before = {} if own.top_n else _measured(grades, [one.before for one in rankings], ks)
    beside = None
    if against is not None:
        theirs = _chosen(other.by_query, chosen, against)
        measured = _measured(grades, [ranking.after for ranking in theirs], ks)
        beside = Against(
            output=str(against),
            means=_means(measured),
            gains=_gains(after, measured),
            queries_in_one_only=len(known ^ others),
            top_n=other.top_n,
        )
    return Evaluation(
        queries=len(chosen),
        queries_not_judged=own.queries - len(known),
        judged_queries_not_in_output=len(judged - known),
        before=_means(before),
        after=_means(after),
        intervals={name: _interval(values) for name, values in after.items()},
        gains=_gains(after, before) if before else {},
        against=beside,
        top_n=own.top_n,
        queries_unscored=sum(ranking.unscored for ranking in rankings),
        candidates_without_id=sum(one.after.count(None) for one in rankings),
    )


def moved(out: Place, state_dir: Path | None = None) -> Movement:
    """How far the ranks of an output are from the order of its input, and how many ties it has."""
    output = opened(out, state_dir)
    moves, depth = Moves(), Depth(output)
    for batch in output.batches(["results"], open_rows=False):
        moves.add(*scored(batch))
        depth.add(batch)
    return moves.result(depth.top_n)


def words(evaluation: Evaluation) -> str:
    """Tables of the measures, and what they are over."""
    lines = _table(evaluation) if evaluation.before else _table_of_output(evaluation)
    lines.append(
        f"{evaluation.queries:,} judged queries; {evaluation.queries_not_judged:,} without a "
        f"judgment above 0, {evaluation.judged_queries_not_in_output:,} judged but not in the "
        "output, both left out"
    )
    lines += _notes(evaluation)
    other = evaluation.against
    if other is not None:
        lines += ["", f"beside {other.output}:", f"{'':11} {'the other':>11} {'output':>8}{_HEAD}"]
        lines += [
            f"{name:11} {mean:>11.4f} {evaluation.after[name]:>8.4f}{_gain(other.gains[name])}"
            for name, mean in other.means.items()
        ]
        if other.top_n:
            lines.append(f"the other lists {other.top_n:,} candidates of a row (top_n)")
        if other.queries_in_one_only:
            lines.append(
                f"{other.queries_in_one_only:,} judged queries in one of them only, left out"
            )
    return "\n".join(lines)


def _table(evaluation: Evaluation) -> list[str]:
    lines = [f"{'':11} {'input order':>11} {'output':>8} {'95 % interval':>16}{_HEAD}"]
    for name, after in evaluation.after.items():
        interval = _span(evaluation.intervals[name], "")
        lines.append(
            f"{name:11} {evaluation.before[name]:>11.4f} {after:>8.4f} {interval:>16}"
            f"{_gain(evaluation.gains[name])}"
        )
    return lines


def _table_of_output(evaluation: Evaluation) -> list[str]:
    """The table without an input order to set beside."""
    lines = [f"{'':11} {'output':>8} {'95 % interval':>16}"]
    for name, after in evaluation.after.items():
        interval = _span(evaluation.intervals[name], "")
        lines.append(f"{name:11} {after:>8.4f} {interval:>16}".rstrip())
    return lines


def _notes(evaluation: Evaluation) -> Iterable[str]:
    """Lines that a reader of the figures needs, where there is cause."""
    if evaluation.top_n:
        yield (
            f"the output lists {evaluation.top_n:,} candidates of a row (top_n); the input order "
            "had more, and is not judged"
        )
    if evaluation.candidates_without_id:
        yield (
            f"{evaluation.candidates_without_id:,} candidates without doc_id, counted as not "
            "relevant"
        )
    if evaluation.queries_unscored:
        yield (
            f"{evaluation.queries_unscored:,} of these queries have candidates without a score, "
            "which come last in input order"
        )


_HEAD = f" {'gain':>8} {'95 % interval':>18} {'p':>7}"


def _gain(gain: Gain) -> str:
    return f" {gain.mean:>+8.4f} {_span(gain.interval, '+'):>18} {gain.p:>7.4f}"


def _span(interval: tuple[float, float] | None, sign: str) -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _no_query_fits(
    path: Path, qrels: Qrels, judged: Iterable[str], output: Output, against: Place | None
) -> str:
    """What to say when nothing can be judged: nobody sees at once that "7" is not "q7"."""
    out = output.folder
    if any(judged):
        return f"{path}: judges no query that is in both {out} and {against}."
    some: list[str] = []
    for batch in output.batches([output.identity]):
        ids = query_ids(batch.column(0)).drop_nulls()
        if any(query in qrels for query in ids):
            return f"{path}: has no judgment above 0 for a query of {out}."
        some = some or ids.head(2).to_list()
    kind = output.schema.field(0)
    return (
        f"{path}: judges no query of {out}. Its query_id are like {_like(qrels)}; those of "
        f"{out} (column {kind.name!r}, {kind.type}) like {_like(some)}."
    )


def _like(ids: Iterable[str]) -> str:
    return ", ".join(repr(one) for one in islice(ids, 2))


def _chosen(by_query: dict[str, Ranking], queries: Sequence[str], out: Place) -> Sequence[Ranking]:
    """The rankings of these queries. Raises `OutputUnusable` where no candidate has an id."""
    rankings = [by_query[query] for query in queries]
    named = any(document is not None for one in rankings for document in one.after)
    if not named and any(one.after for one in rankings):
        raise OutputUnusable(f"{out}: has candidates without doc_id, so no judgments fit it.")
    return rankings


def _measured(
    grades: Sequence[dict[str, int]], orders: Sequence[Documents], ks: Sequence[int]
) -> Figures:
    """Each measure of each query; one without candidates, and so not in the run, has 0."""
    from pytrec_eval import RelevanceEvaluator  # 0.1 s that no other command needs

    tops, recalls = sorted(set(ks)) or [10], sorted(set(ks)) or _RECALL
    cuts = {"ndcg_cut." + ",".join(map(str, tops)), "recall." + ",".join(map(str, recalls))}
    qrels, run = _numbered(grades, orders)
    found = RelevanceEvaluator(qrels, cuts).evaluate(run)
    figures = {f"nDCG@{k}": _of(found, f"ndcg_cut_{k}", len(grades)) for k in tops}
    for k in tops:
        best = {query: dict(islice(documents.items(), k)) for query, documents in run.items()}
        ranks = RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(best)
        figures[f"MRR@{k}"] = _of(ranks, "recip_rank", len(grades))
    return figures | {f"recall@{k}": _of(found, f"recall_{k}", len(grades)) for k in recalls}


def _numbered(
    grades: Sequence[dict[str, int]], orders: Sequence[Documents]
) -> tuple[Qrels, dict[str, dict[str, float]]]:
    """Qrels and a run as trec_eval takes them, with numbers for names: it reads names as C does,
    up to a zero byte. It ranks by score alone, so the place, negated, is the score it is given.
    """
    qrels: Qrels = {}
    run: dict[str, dict[str, float]] = {}
    for query, (judged, order) in enumerate(zip(grades, orders, strict=True)):
        names = {document: f"judged {number}" for number, document in enumerate(judged)}
        qrels[str(query)] = {names[document]: grade for document, grade in judged.items()}
        run[str(query)] = {}
        for place, document in enumerate(distinct(order)):
            unjudged = f"unjudged {place}"
            name = unjudged if document is None else names.get(document, unjudged)
            run[str(query)][name] = -float(place)
    return qrels, run


def _of(found: dict[str, dict[str, float]], key: str, queries: int) -> NDArray[np.float64]:
    return np.array([found.get(str(query), {}).get(key, 0.0) for query in range(queries)])


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

"""A run against qrels: nDCG@10, MRR@10 and recall@k of the output beside the input order.

The metrics are trec_eval's, through pytrec-eval-terrier: linear gains, the ideal from all
judgments, an unjudged document counts 0. Means are over the queries that have a judgment above 0.
A query of the qrels that is not in the output is left out, and counted.
"""

from pathlib import Path

import msgspec
import polars as pl

from batchrank.errors import InputBad, InputMissing, OutputUnusable

MEASURES = {
    "nDCG@10": "ndcg_cut_10",
    "MRR@10": "recip_rank",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
}
_CUT = 10


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Means of each measure, of the output (`after`) and of the input order (`before`)."""

    queries: int
    queries_not_judged: int
    judged_queries_not_in_output: int
    before: dict[str, float]
    after: dict[str, float]


def evaluate(out: Path, qrels_path: Path) -> Evaluation:
    """Judge an output by qrels (Parquet: query_id, doc_id, relevance).

    Raises `OutputUnusable` for an output without ids, `InputBad` for qrels that are none.
    """
    qrels = _qrels(qrels_path)
    frame = _output(out)
    queries = set(frame["query_id"].unique())
    judged = {query for query, grades in qrels.items() if max(grades.values()) > 0}
    if not queries & judged:
        raise InputBad(f"{qrels_path}: judges no query of {out}.")
    results = _candidates(frame.filter(pl.col("query_id").is_in(list(judged))), out)
    return Evaluation(
        queries=len(queries & judged),
        queries_not_judged=len(queries - judged),
        judged_queries_not_in_output=len(judged - queries),
        before=_means(qrels, _run(results, "index"), len(queries & judged)),
        after=_means(qrels, _run(results, "place"), len(queries & judged)),
    )


def words(evaluation: Evaluation) -> str:
    """A table of the measures, before and after."""
    lines = [f"{'':12}{'input order':>12}{'output':>10}{'gain':>10}"]
    for name in MEASURES:
        before, after = evaluation.before[name], evaluation.after[name]
        lines.append(f"{name:12}{before:>12.4f}{after:>10.4f}{after - before:>+10.4f}")
    lines.append(
        f"{evaluation.queries:,} judged queries; {evaluation.queries_not_judged:,} without a "
        f"judgment above 0, {evaluation.judged_queries_not_in_output:,} judged but not in the "
        "output, both left out"
    )
    return "\n".join(lines)


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    if not path.exists():
        raise InputMissing(f"{path}: no such file.")
    try:
        table = pl.read_parquet(path).select(
            pl.col("query_id").cast(pl.String),
            pl.col("doc_id").cast(pl.String),
            pl.col("relevance").cast(pl.Int64),
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputBad(
            f"{path}: cannot be read as qrels; expected Parquet with query_id, doc_id, relevance."
        ) from error
    qrels: dict[str, dict[str, int]] = {}
    for query, document, relevance in table.iter_rows():
        qrels.setdefault(query, {})[document] = relevance
    return qrels


def _output(out: Path) -> pl.DataFrame:
    """The output's rows: query_id and results."""
    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        raise OutputUnusable(f"{out}: has no parts; is it the output of `batchrank run`?")
    frame = pl.read_parquet(parts)
    identity = frame.columns[0]
    if identity == "row":
        raise OutputUnusable(f"{out}: has no query ids, so no judgments fit it.")
    return frame.select(pl.col(identity).cast(pl.String).alias("query_id"), "results")


def _candidates(frame: pl.DataFrame, out: Path) -> pl.DataFrame:
    """One line per candidate: query_id, doc_id, index, and its place in the output from 0."""
    results = (
        frame.filter(pl.col("results").list.len() > 0)
        .explode("results")
        .unnest("results")
        .with_columns(place=pl.int_range(pl.len()).over("query_id"))
    )
    if results["doc_id"].is_null().any():
        raise OutputUnusable(f"{out}: has candidates without doc_id, so no judgments fit it.")
    return results


def _run(results: pl.DataFrame, order: str) -> dict[str, dict[str, float]]:
    """trec_eval ranks by score alone, so the place itself, negated, is the score it is given. An
    output of the top n lacks documents of the input order: nameless ones stand in for them.
    """
    run: dict[str, dict[str, float]] = {}
    rows = results.select("query_id", "doc_id", order).sort("query_id", order).iter_rows()
    for query, document, place in rows:
        documents = run.setdefault(query, {})
        for gap in range(len(documents), place):
            documents[f"\0{gap}"] = -float(gap)
        documents.setdefault(document, -float(place))
    return run


def _means(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], queries: int
) -> dict[str, float]:
    """Means over so many queries; one without candidates, and so not in the run, has 0."""
    from pytrec_eval import RelevanceEvaluator  # 0.1 s that no other command needs

    evaluator = RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10,100"})
    of_query = evaluator.evaluate(run)
    tops = {query: dict(list(documents.items())[:_CUT]) for query, documents in run.items()}
    for query, measures in RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(tops).items():
        of_query[query].update(measures)
    return {
        name: sum(measures[key] for measures in of_query.values()) / queries
        for name, key in MEASURES.items()
    }

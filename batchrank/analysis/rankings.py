"""The order in which an output ranks the documents of the queries that are judged.

Everything is read through `Output.batches`, so no path is a pattern and memory follows the judged
queries. A candidate is a document's id here, or None where it has none: such a candidate cannot be
judged, but it holds its place.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from batchrank.analysis.output_reader import Depth, Output, opened
from batchrank.errors import OutputUnusable
from batchrank.files.paths import Place
from batchrank.files.text_form import as_text
from batchrank.input.parquet_rows import ROW_COLUMN

Documents = Sequence[str | None]


class Ranking(msgspec.Struct, frozen=True):
    """A row's candidates in the order of the output and in that of the input; `unscored` says
    whether some have no score.
    """

    after: Documents
    before: Documents
    unscored: bool


class Rankings(msgspec.Struct, frozen=True):
    """An output's rankings by query. `queries` counts all queries of the output. `top_n` is how
    many candidates of a row it lists at most, 0 where it lists all.
    """

    output: Output
    by_query: dict[str, Ranking]
    queries: int
    top_n: int


def read_rankings(out: Place, judged: Collection[str], state_dir: Path | None = None) -> Rankings:
    """Read the rankings of the judged queries, but for rows that lack an answer.

    Raises `OutputUnusable` for an output without ids, or one in which such a query has two rows.
    """
    output = opened(out, state_dir)
    if output.identity == ROW_COLUMN:
        raise OutputUnusable(f"{out}: has no query ids, so no judgments fit it.")
    wanted = pl.Series(list(judged), dtype=pl.String).implode()
    depth = Depth(output)
    ids: list[pl.Series] = []
    by_query: dict[str, Ranking] = {}
    for batch in output.batches([output.identity, "results"], open_rows=False):
        depth.add(batch)
        ids.append(query_ids(batch.column(output.identity)))
        chosen = ids[-1].is_in(wanted).fill_null(False).arg_true()
        results = batch.column("results").take(chosen.to_arrow())
        names = ids[-1].gather(chosen).to_list()
        for query, ranking in zip(names, _rankings(results), strict=True):
            if query in by_query:
                raise OutputUnusable(
                    f"{out}: query {query!r} has several rows, and judgments are of one list a "
                    "query."
                )
            by_query[query] = ranking
    return Rankings(output, by_query, pl.concat(ids).n_unique() if ids else 0, depth.top_n)


def query_ids(column: pa.Array) -> pl.Series:
    """Query ids as text, which is how judgments name them."""
    return pl.Series(as_text(column))


def distinct(documents: Iterable[str | None]) -> Documents:
    """The documents in this order, each once, at its best place; those without an id all stay."""
    seen: set[str] = set()
    once: list[str | None] = []
    for document in documents:
        if document is None or document not in seen:
            once.append(document)
        if document is not None:
            seen.add(document)
    return once


def _rankings(results: pa.ListArray) -> Iterable[Ranking]:
    flat = results.flatten()
    documents = np.array(flat.field("doc_id").to_pylist(), object)
    index = flat.field("index").to_numpy(zero_copy_only=False)
    unscored = flat.field("rank").is_null().to_numpy(zero_copy_only=False)
    start = 0
    for length in results.value_lengths().fill_null(0).to_pylist():
        end = start + length
        own = documents[start:end]
        yield Ranking(
            own.tolist(),
            own[np.argsort(index[start:end], kind="stable")].tolist(),
            bool(unscored[start:end].any()),
        )
        start = end

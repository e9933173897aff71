"""Ids into rows: a run (query_id, doc_id) beside the files that hold the queries and the corpus.

The habit of BEIR and TREC. Queries come in the order of the run; a query's candidates by `rank` and
then `score`, where the run has them, and otherwise as they stand. All ids are looked up before the
first request: what is missing is said at once.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from batchrank.config.suggestion import listing, nearest
from batchrank.errors import InputBad
from batchrank.files.text_form import as_text
from batchrank.input.corpus import TextFile, Texts, text_files
from batchrank.input.grouped_rows import Grouped, first_lines, listed
from batchrank.input.grouping import Gathered, Groups, gather
from batchrank.input.id_hashes import Distinct, Hashes, hashes, places_in
from batchrank.input.input_file import InputFile
from batchrank.input.line_files import Lines, ParquetLines, TrecLines, is_parquet
from batchrank.input.schema import Columns, check_id, check_priority

_ORDERS = ("rank", "score")
_NAMED = 3


def open_ids(paths: Sequence[InputFile], queries: str, corpus: str, columns: Columns) -> Grouped:
    """A run as rows. Raises `InputMissing`, and `InputBad` where columns or ids do not fit."""
    if "candidates_column" in columns.chosen:
        raise InputBad(
            f'no column "{columns.candidates}": beside --queries and --corpus the input is a run, '
            "which has no column of candidates. Leave out --candidates-column."
        )
    lines = _run(paths, columns)
    orders = [name for name in _ORDERS if name in lines.schema.names]
    run = _Run(
        lines,
        columns,
        orders,
        text_files(queries, _ids_beside(columns, "id_column", columns.id), _query_texts(columns)),
        text_files(corpus, _ids_beside(columns, "doc_id_column", columns.doc_id), [columns.text]),
        queries,
        corpus,
    )
    beside = [*run.query_files, *run.corpus_files]
    return Grouped(
        [*lines.paths, *(file.path for file in beside)],
        [*lines.files, *(file.identity for file in beside)],
        columns,
        True,
        run.gather,
        run.nested,
        run.asked,
        run.no_rows,
    )


def _query_texts(columns: Columns) -> list[str]:
    """The names that the queries' texts may have: only the one that somebody chose, if so."""
    return [columns.query] if "query_column" in columns.chosen else ["text", columns.query]


def _ids_beside(columns: Columns, key: str, name: str) -> list[str]:
    """The names that ids may have beside a run, where BEIR has `_id`: first the one chosen."""
    return [name, "_id"] if key in columns.chosen else ["_id", name]


def _run(paths: Sequence[InputFile], columns: Columns) -> Lines:
    if not any(map(is_parquet, paths)):
        lines: Lines = TrecLines(paths, columns.id, columns.doc_id)
    else:
        names = [columns.id, columns.doc_id, *_ORDERS, *columns.keep, *columns.ordering]
        lines = ParquetLines(paths, names)
    for name in [columns.id, columns.doc_id, *columns.keep]:
        if name not in lines.schema.names:
            raise InputBad(
                f'{lines.files[0].name}: no column "{name}"; it has '
                f"{listing(lines.schema.names)}.{nearest(name, lines.schema.names)} Beside "
                "--queries and --corpus the input is a run: "
                f'"{columns.id}", "{columns.doc_id}" and maybe "rank" or "score".'
            )
    check_priority(lines.files[0].name, lines.schema, columns.priority)
    for name in (columns.id, columns.doc_id):
        check_id(lines.files[0].name, lines.schema, name)
    for name in _ORDERS:
        kind = lines.schema.field(name).type if name in lines.schema.names else pa.int64()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise InputBad(f'{lines.files[0].name}: column "{name}" is {kind}; expected a number.')
    return lines


class _Run:
    """A run and where its texts are."""

    def __init__(
        self,
        lines: Lines,
        columns: Columns,
        orders: Sequence[str],
        query_files: Sequence[TextFile],
        corpus_files: Sequence[TextFile],
        queries: str,
        corpus: str,
    ) -> None:
        self._lines = lines
        self._columns = columns
        self._orders = orders
        self.query_files, self.corpus_files = query_files, corpus_files
        self._names = {columns.id: queries, columns.doc_id: corpus}

    def gather(self) -> tuple[Groups, int]:
        """The groups of the run, once all of its ids have texts."""
        columns = self._columns
        names = [columns.id, columns.doc_id, *self._orders, *columns.keep, *columns.ordering]
        groups, rows = gather(self._lines, columns.id, list(dict.fromkeys(names)), None)
        queries, documents = Distinct(), Distinct()
        for gathered in groups.read(0, rows) if rows else ():
            queries.add(hashes(_ids(gathered.lines, columns.id)), 0)
            found = hashes(_ids(gathered.lines, columns.doc_id))
            documents.add(found, 0)
            self._check_twice(gathered, found)
        self._queries = self._texts(columns.id, self.query_files, queries)
        self._documents = self._texts(columns.doc_id, self.corpus_files, documents)
        return groups, rows

    def nested(self, run: Gathered) -> pa.RecordBatch:
        """The rows of some groups."""
        columns = self._columns
        nested = first_lines(run, [columns.id, *columns.keep], self._lines.schema)
        nested[columns.query] = self.asked(run)
        doc_ids = _ids(run.lines, columns.doc_id).take(pa.array(self._order(run)))
        nested[columns.candidates] = listed(run, doc_ids, self._documents.of(doc_ids))
        return pa.RecordBatch.from_pydict(nested)

    def asked(self, run: Gathered) -> pa.Array:
        """The queries of some groups."""
        ids = first_lines(run, [self._columns.id], self._lines.schema)[self._columns.id]
        return self._queries.of(_strings(ids))

    def no_rows(self) -> pa.RecordBatch:
        """What the sink needs to write a part without rows."""
        none = {field.name: pa.array([], field.type) for field in self._lines.schema}
        none[self._columns.query] = pa.array([], pa.string())
        none[self._columns.candidates] = pa.array([], pa.list_(pa.string()))
        return pa.RecordBatch.from_pydict(none)

    def _order(self, run: Gathered) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """The lines by query, rank, falling score, and their place in the run; nulls last."""
        groups = np.repeat(np.arange(len(run.offsets) - 1), np.diff(run.offsets))
        keys = [groups]
        for name, sign in (("rank", 1), ("score", -1)):
            if name in self._orders:
                values = run.lines.column(name).cast(pa.float64(), safe=False)
                keys.append(sign * values.to_numpy(zero_copy_only=False))
        return np.lexsort(keys[::-1])

    def _check_twice(self, run: Gathered, documents: Hashes) -> None:
        groups = np.repeat(np.arange(len(run.offsets) - 1), np.diff(run.offsets))
        order = np.lexsort((documents, groups))
        same = (np.diff(groups[order]) == 0) & (documents[order][1:] == documents[order][:-1])
        if same.any():
            line = run.lines.slice(order[1:][same][0], 1)
            query, document = (
                as_text(line.column(name))[0].as_py()
                for name in (self._columns.id, self._columns.doc_id)
            )
            raise InputBad(
                f"{self._lines.files[0].name}: query {query} has document {document} twice. A run "
                "names each document of a query once."
            )

    def _texts(self, column: str, files: Sequence[TextFile], ids: Distinct) -> Texts:
        wanted, _ = ids.found()
        texts = Texts(files, wanted)
        missing = texts.missing()
        if len(missing):
            what = "queries" if column == self._columns.id else "documents"
            more = ", …" if len(missing) > _NAMED else ""
            raise InputBad(
                f"{self._names[column]}: lacks {len(missing):,} of the {len(wanted):,} {what} "
                f"that the run names: {', '.join(self._named(column, missing))}{more}."
            )
        return texts

    def _named(self, column: str, missing: Hashes) -> list[str]:
        """The first ids of these hashes, in the order of the run."""
        named: dict[str, None] = {}
        for batch in self._lines.batches([column]):
            ids = _ids(batch, column)
            absent = places_in(missing, hashes(ids)) >= 0
            named.update(dict.fromkeys(ids.filter(pa.array(absent)).to_pylist()))
            if len(named) >= _NAMED:
                break
        return list(named)[:_NAMED]


def _ids(batch: pa.RecordBatch, column: str) -> pa.Array:
    ids = batch.column(column)
    if ids.null_count:
        raise InputBad(f'the run has a line without "{column}"; every line needs one.')
    return _strings(ids)


def _strings(ids: pa.Array) -> pa.Array:
    """Ids as text: that is how they are looked up, whatever the files hold them as."""
    return as_text(ids).cast(pa.large_string())

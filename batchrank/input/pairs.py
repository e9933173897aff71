"""Long pairs into rows: one line each of query_id, query, doc_id and text.

The lines of a query are its candidates, in their order; a kept column has the value of the query's
first line. Without a column of query ids the query's text is what tells queries apart.
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from batchrank.errors import InputBad
from batchrank.input.grouped_rows import Grouped, first_lines, listed
from batchrank.input.grouping import Gathered, gather
from batchrank.input.input_file import InputFile
from batchrank.input.line_files import ParquetLines
from batchrank.input.schema import (
    Columns,
    check_chosen,
    check_id,
    check_names,
    check_priority,
    is_text,
)


def open_pairs(paths: Sequence[InputFile], columns: Columns) -> Grouped:
    """Pairs as rows. Raises `InputBad` where columns do not fit."""
    wanted = [columns.id, columns.query, columns.doc_id, columns.text, *columns.keep]
    wanted += columns.ordering
    lines = ParquetLines(paths, wanted)
    schema = lines.schema
    name = lines.files[0].name
    check_chosen(name, schema, columns, ["id_column", "doc_id_column"])
    check_names(name, schema, [columns.query, columns.text, *columns.keep])
    check_priority(name, schema, columns.priority)
    has_id = columns.id in schema.names
    for column in [columns.query, columns.text]:
        check_text(schema, column, name)
    key = columns.id if has_id else columns.query
    for column in (key, columns.doc_id):
        check_id(name, schema, column)
    present = [column for column in wanted if column in schema.names]
    return Grouped(
        lines.paths,
        lines.files,
        columns,
        has_id,
        partial(gather, lines, key, present, columns.query if has_id else None),
        partial(_nested, schema, columns),
        partial(_asked, schema, columns.query),
        partial(_no_rows, schema, columns),
    )


def check_text(schema: pa.Schema, column: str, name: str) -> None:
    """Refuse a column that holds no texts. Raises `InputBad`."""
    kind = schema.field(column).type
    if not is_text(kind):
        raise InputBad(f'{name}: column "{column}" is {kind}; expected string.')


def _nested(schema: pa.Schema, columns: Columns, pairs: Gathered) -> pa.RecordBatch:
    ids = [columns.id] if columns.id in schema.names else []
    nested = first_lines(pairs, [columns.query, *columns.keep, *ids], schema)
    nested[columns.candidates] = listed(
        pairs,
        pairs.lines.column(columns.doc_id) if columns.doc_id in schema.names else None,
        pairs.lines.column(columns.text),
    )
    return pa.RecordBatch.from_pydict(nested)


def _asked(schema: pa.Schema, query: str, pairs: Gathered) -> pa.Array:
    return first_lines(pairs, [query], schema)[query]


def _no_rows(schema: pa.Schema, columns: Columns) -> pa.RecordBatch:
    none = {field.name: pa.array([], field.type) for field in schema}
    none[columns.candidates] = pa.array([], pa.list_(pa.string()))
    return pa.RecordBatch.from_pydict(none)

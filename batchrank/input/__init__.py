"""Input in whatever shape it comes, as rows: which shape it is, its columns and the options say.

Nested rows are read by `source` itself; pairs and ids are made nested rows on their way.
"""

from collections.abc import Sequence

import msgspec

from batchrank.errors import InputBad
from batchrank.input.input_columns import InputColumns
from batchrank.input.line_files import is_parquet
from batchrank.input.pairs import open_pairs
from batchrank.input.parquet_rows import Source, footer, input_files, open_source
from batchrank.input.run_with_corpus import open_ids
from batchrank.input.schema import Columns, check_chosen


class Inputs(msgspec.Struct, frozen=True):
    """What is to be read: files of rows or pairs, or a run beside its queries and its corpus."""

    paths: Sequence[str]
    queries: str | None = None
    corpus: str | None = None


def open_inputs(inputs: Inputs, columns: Columns) -> Source:
    """The rows of an input of any shape.

    Raises `InputMissing` for a path or pattern without a file, `InputBad` for columns of no shape.
    """
    if inputs.queries is not None or inputs.corpus is not None:
        if inputs.queries is None or inputs.corpus is None:
            given, lacking = "--queries", "--corpus"
            if inputs.queries is None:
                given, lacking = lacking, given
            raise InputBad(f"{given} is given without {lacking}: a run of ids needs both.")
        return open_ids(input_files(inputs.paths), inputs.queries, inputs.corpus, columns)
    first = input_files(inputs.paths)[0]
    if not is_parquet(first):
        if first.name.endswith((".trec", ".run", ".txt", ".tsv")):
            raise InputBad(
                f"{first.name}: not Parquet. If it is a TREC run, pass --queries FILE and "
                "--corpus FILE beside it."
            )
        return open_source(inputs.paths, columns)
    schema = footer(first)[1]
    names = schema.names
    if columns.candidates in names:
        return open_source(inputs.paths, columns)
    keys = ["candidates_column", "query_column", "text_column", "doc_id_column", "id_column"]
    check_chosen(first.name, InputColumns([first], [schema]).schemas[0], columns, keys)
    if columns.query in names and columns.text in names:
        return open_pairs(input_files(inputs.paths), columns)
    raise InputBad(
        f"{first.name}: its columns are {', '.join(names)}. Expected rows "
        f'("{columns.query}", "{columns.candidates}"), pairs ("{columns.query}", '
        f'"{columns.text}"), or a run ("{columns.id}", "{columns.doc_id}") beside --queries FILE '
        "and --corpus FILE. See README, Input."
    )

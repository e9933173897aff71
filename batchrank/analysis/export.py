"""An output in the forms that other tools read: TREC runs, pairs, JSON lines.

A batch at a time, so that any size fits into memory. A file appears whole or not at all; standard
output gets what it can, since a pipe has no other way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchrank.analysis.output_reader import Output, check_place, long, opened
from batchrank.errors import InputBad, StorageFailed
from batchrank.files.atomic import open_target
from batchrank.files.paths import Place
from batchrank.files.text_form import (
    as_text,
    has_json_form,
    has_text_form,
    is_bytes,
    is_written_as_text,
    plain_array,
)

TAG = "batchrank"
TAG_UNPUBLISHED = "batchrank-unpublished"
_SPACE = r"[\s\v\x1c-\x1f\x{85}\p{Z}]|^$"
"""What a reader of TREC files may split at, or an id that would be no column at all."""


def export(
    out: Place,
    form: str,
    stream: IO[bytes],
    *,
    file: Path | None = None,
    state_dir: Path | None = None,
) -> Output:
    """Write an output as "trec", "pairs" or "jsonl" to `file`, or to the stream where there is
    none; what was exported. Pairs become Parquet in a file whose name ends so, else TSV.

    Of an output that is not finished, answered rows of parts that are not complete are exported as
    well. A last column `published` tells them apart; in a TREC run the tag does.

    Raises `OutputUnusable` where there is nothing to export, `InputBad` for ids that the form
    cannot hold, `StorageFailed`, and `BrokenPipeError` once nobody reads the stream any more.
    """
    output = opened(out, state_dir)
    if file is not None:
        check_place(file, out)
    if form == "jsonl":
        _check_types(output.schema, out)
    if file is None:
        with _stored("standard output"):
            _write(output, form, stream)
            stream.flush()
    elif form == "pairs" and file.suffix == ".parquet":
        with _stored(file), open_target(file) as whole:
            _write_parquet(output, whole)
    else:
        with _stored(file), open_target(file) as whole:
            _write(output, form, whole)
    return output


def _write(output: Output, form: str, stream: IO[bytes]) -> None:
    if form != "jsonl":
        nothing = pl.DataFrame(_named(_pairs(_empty(output), output, True), output))
        stream.write(nothing.write_csv(separator="\t").encode() if form == "pairs" else b"")
    columns = None if form == "jsonl" else [output.identity, "results"]
    for published, batch in output.marked_batches(columns):
        text = BytesIO()  # polars would write to a pipe's descriptor in its own threads
        if form == "jsonl":
            _json_lines(_marked(pa.Table.from_batches([batch]), output, published)).write_ndjson(
                text
            )
        elif form == "pairs":
            pairs = pl.DataFrame(_named(_pairs(batch, output, published), output))
            pairs.write_csv(text, separator="\t", include_header=False)
        else:
            tag = TAG if published else TAG_UNPUBLISHED
            lines = _trec(_named(long(batch, output.identity), output), output, tag)
            lines.write_csv(text, separator=" ", include_header=False, quote_style="never")
        stream.write(text.getbuffer())


def _write_parquet(output: Output, stream: IO[bytes]) -> None:
    batches = output.marked_batches([output.identity, "results"])
    tables = (_pairs(batch, output, published) for published, batch in batches)
    first = next(tables, None)
    if first is None:
        first = _pairs(_empty(output), output, True)
    with pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))


def _pairs(batch: pa.RecordBatch, output: Output, published: bool) -> pa.Table:
    return _marked(long(batch, output.identity), output, published)


def _marked(table: pa.Table, output: Output, published: bool) -> pa.Table:
    """Rows with the column `published`, if the output has rows that are not."""
    if not output.rows_answered:
        return table
    return table.append_column("published", pa.repeat(published, len(table)))


def _empty(output: Output) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=output.schema)


def _trec(pairs: pa.Table, output: Output, tag: str) -> pl.DataFrame:
    """Six columns for each scored candidate. A candidate without doc_id is called by its index."""
    pairs = pairs.filter(pc.is_valid(pairs["rank"]))
    documents = pc.coalesce(pairs["doc_id"], pairs["index"].cast(pa.string()))
    for name, ids in ((output.identity, pairs["query_id"]), ("doc_id", documents)):
        _check_ids(name, ids, output)
    return pl.DataFrame(
        {
            "query": pairs["query_id"],
            "Q0": pl.repeat("Q0", len(pairs), eager=True),
            "document": documents,
            "rank": pairs["rank"],
            "score": pairs["relevance_score"],
            "tag": pl.repeat(tag, len(pairs), eager=True),
        }
    )


def _named(pairs: pa.Table, output: Output) -> pa.Table:
    """The pairs with their query ids as text."""
    ids = pairs.column(0).combine_chunks()
    if not has_text_form(ids.type):
        raise InputBad(
            f"{output.folder}: column {output.identity!r} is {ids.type}, which cannot be written "
            "as text. Use --format jsonl, or pairs with -o FILE.parquet."
        )
    return pairs.set_column(0, "query_id", as_text(ids))


def _check_ids(name: str, ids: pa.ChunkedArray, output: Output) -> None:
    """An id with a space would shift the columns; one that was changed would fit no judgment."""
    unfit = ids.filter(pc.fill_null(pc.match_substring_regex(ids, _SPACE), True))
    if len(unfit):
        raise InputBad(
            f"{output.folder}: {name} {unfit[0].as_py()!r} cannot stand in a TREC file, whose "
            "columns are separated by spaces. Use --format pairs or jsonl."
        )


def _json_lines(batch: pa.Table) -> pl.DataFrame:
    """All columns. What JSON has no form for is text, as in the other forms; bytes that are no id
    are base64.
    """
    columns = [column.combine_chunks() for column in batch.columns]
    written = [
        as_text(column)
        if is_written_as_text(column.type) and not (place and is_bytes(column.type))
        else plain_array(column)
        for place, column in enumerate(columns)
    ]
    frame = pl.DataFrame(pa.table(written, batch.column_names))
    return frame.with_columns(pl.selectors.binary().bin.encode("base64"))


def _check_types(schema: pa.Schema, out: Place) -> None:
    """Bytes inside of lists or structs have no form in JSON that the writer knows."""
    for field in schema:
        if pa.types.is_nested(field.type) and not has_json_form(field.type):
            raise InputBad(
                f"{out}: column {field.name!r} is {field.type}, which has no form in JSON. "
                "Use --format pairs, or read the parts."
            )


@contextmanager
def _stored(where: object) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageFailed(f"{where}: cannot be written: {error.strerror}.") from error

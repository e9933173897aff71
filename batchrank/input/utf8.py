"""Bytes that should be text: whether they are UTF-8, and which row of a column is not.

Arrow reads strings without looking at them, and what is written of them nobody else can read.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import types

from batchrank.errors import InputBad


def is_utf8(content: bytes) -> bool:
    """Whether these bytes are text."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_texts(file: str, batch: pa.RecordBatch, names: Iterable[str], first: int) -> None:
    """Raise `InputBad` for a text that is not UTF-8 in these columns of a batch, which begins at
    the file's row `first`.
    """
    for name in names:
        row = find_invalid_row(batch.column(name))
        if row is not None:
            raise InputBad(
                f"{file}: cannot be read: row {first + row + 1:,}, column {name!r} is not UTF-8."
            )


@contextmanager
def checking_texts(
    file: str, batch: pa.RecordBatch, names: Iterable[str], first: int
) -> Iterator[None]:
    """As `check_texts`, after a block; all columns are checked where the block cannot read them."""
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError):
        check_texts(file, batch, batch.schema.names, first)
        raise
    check_texts(file, batch, names, first)


def find_invalid_row(column: pa.Array | pa.ChunkedArray) -> int | None:
    """The first row of a column that holds a text whose bytes are not UTF-8, lists and structs of
    texts included. Raises ArrowInvalid where the column is damaged in another way.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    start = 0
    for chunk in chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid:
            for row in range(len(chunk)):
                if _has_invalid_text(chunk.slice(row, 1)):
                    return start + row
            raise
        start += len(chunk)
    return None


def _has_invalid_text(column: pa.Array) -> bool:
    kind = column.type
    if types.is_dictionary(kind):
        return _has_invalid_text(column.dictionary_decode())
    if any(is_one(kind) for is_one in _LISTS):
        return _has_invalid_text(column.flatten())
    if types.is_struct(kind):
        return any(map(_has_invalid_text, column.flatten()))
    if not any(is_one(kind) for is_one in _STRINGS):
        return False
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


_STRINGS = (types.is_string, types.is_large_string, types.is_string_view)
_LISTS = (
    types.is_list,
    types.is_large_list,
    types.is_fixed_size_list,
    types.is_list_view,
    types.is_large_list_view,
)

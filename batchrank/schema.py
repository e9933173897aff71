"""What the columns of an input must be, and what is said where they are not.

Types alone are looked at here, never a value.
"""

from collections.abc import Sequence

import msgspec
import pyarrow as pa
from pyarrow import types

from batchrank.errors import InputBad
from batchrank.places import Place


class Columns(msgspec.Struct, frozen=True):
    """Which columns of the input mean what; `id` may be absent from the data."""

    id: str
    query: str
    candidates: str
    keep: Sequence[str]
    doc_id: str = "doc_id"
    text: str = "text"
    max_characters: int = 1 << 62
    """What is beyond so many characters of a text nobody reads: it is left in Arrow."""
    priority: str | None = None
    """By which rows are sent, highest first."""

    @property
    def ordering(self) -> Sequence[str]:
        """The column of priorities, if there is one."""
        return [] if self.priority is None else [self.priority]


def check(path: Place, schema: pa.Schema, columns: Columns) -> None:
    for name in [columns.query, columns.candidates, *columns.keep]:
        if name not in schema.names:
            raise InputBad(
                f'{path.name}: no column "{name}"; it has {", ".join(schema.names)}. '
                "See README, Input."
            )
    query = schema.field(columns.query).type
    if not is_text(query):
        raise InputBad(f'{path.name}: column "{columns.query}" is {query}; expected string.')
    candidates = schema.field(columns.candidates).type
    if not _is_candidates(candidates):
        raise InputBad(
            f'{path.name}: column "{columns.candidates}" is {candidates}; expected '
            "list<struct<doc_id, text>> or list<string>. See README, Input."
        )
    check_priority(path.name, schema, columns.priority)


def check_priority(file: str, schema: pa.Schema, name: str | None) -> None:
    """Refuse a column of priorities that is not there, or has no order that Parquet knows."""
    if name is None:
        return
    if name not in schema.names:
        raise InputBad(
            f'{file}: no column "{name}" for --priority-column; it has {", ".join(schema.names)}.'
        )
    kind = schema.field(name).type
    if not any(is_one(kind) for is_one in _PRIORITIES):
        raise InputBad(
            f'{file}: column "{name}" is {kind}; expected numbers, dates or timestamps, as '
            "--priority-column."
        )


_PRIORITIES = (
    types.is_integer,
    types.is_floating,
    types.is_decimal,
    types.is_date,
    types.is_timestamp,
)


def check_same(path: Place, schema: pa.Schema, first: pa.Schema, names: Sequence[str]) -> None:
    """Refuse a file whose columns of these names have other types than the first file's."""
    for name in names:
        mine = schema.field(name).type if name in schema.names else "absent"
        theirs = first.field(name).type if name in first.names else "absent"
        if mine != theirs:
            raise InputBad(
                f'{path.name}: column "{name}" is {mine}, and {theirs} in the first file; '
                "one output needs one type."
            )


def _is_candidates(kind: pa.DataType) -> bool:
    lists = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    if not any(is_one(kind) for is_one in lists):
        return False
    item = kind.value_type
    if not types.is_struct(item):
        return is_text(item)
    text, doc_id = item.get_field_index("text"), item.get_field_index("doc_id")
    if text < 0 or not is_text(item.field(text).type):
        return False
    return doc_id < 0 or is_id(item.field(doc_id).type)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(is_one(kind) for is_one in texts)


def is_id(kind: pa.DataType) -> bool:
    """Whether a column holds document ids."""
    return is_text(kind) or types.is_integer(kind)

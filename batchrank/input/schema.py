"""What the columns of an input must be, and what is said where they are not.

Types alone are looked at here, never a value.
"""

from collections.abc import Iterable, Sequence

import msgspec
import pyarrow as pa
from pyarrow import types

from batchrank.config.suggestion import listing, nearest, suggest
from batchrank.errors import InputBad
from batchrank.files.paths import Place
from batchrank.files.text_form import has_text_form, is_string, plain_type


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
    chosen: frozenset[str] = frozenset()
    """Keys of the configuration whose columns somebody named: they must be there."""

    @property
    def ordering(self) -> Sequence[str]:
        """The column of priorities, if there is one."""
        return [] if self.priority is None else [self.priority]


def check(path: Place, schema: pa.Schema, columns: Columns) -> None:
    """Refuse a file whose columns are no rows. Raises `InputBad`."""
    check_chosen(path.name, schema, columns, ["query_column", "candidates_column", "id_column"])
    check_names(path.name, schema, [columns.query, columns.candidates], chosen=False)
    check_names(path.name, schema, columns.keep)
    check_once(path.name, schema, [columns.id])
    if columns.id in schema.names and not has_text_form(schema.field(columns.id).type):
        raise InputBad(
            f'{path.name}: column "{columns.id}" is {schema.field(columns.id).type}; expected ids: '
            "strings, numbers, dates or times, UUIDs or bytes."
        )
    query = schema.field(columns.query).type
    if not is_text(query):
        raise InputBad(f'{path.name}: column "{columns.query}" is {query}; expected string.')
    _check_candidates(path.name, schema.field(columns.candidates).type, columns)
    check_priority(path.name, schema, columns.priority)


def check_chosen(file: str, schema: pa.Schema, columns: Columns, keys: Sequence[str]) -> None:
    """Refuse a column that somebody named by one of these keys of the configuration, and that is
    not there. Raises `InputBad`.
    """
    names = {"id_column": columns.id, "query_column": columns.query, "text_column": columns.text}
    names |= {"doc_id_column": columns.doc_id, "candidates_column": columns.candidates}
    check_names(file, schema, [names[key] for key in keys if key in columns.chosen])


def check_names(file: str, schema: pa.Schema, names: Iterable[str], *, chosen: bool = True) -> None:
    """Refuse columns that are not there, or are there twice; of names that somebody chose, with the
    nearest. Raises `InputBad`.
    """
    for name in names:
        if name not in schema.names:
            near = nearest(name, schema.names) if chosen else ""
            raise InputBad(
                f'{file}: no column "{name}"; it has {listing(schema.names)}.{near} See README, '
                "Input."
            )
        check_once(file, schema, [name])


def check_id(file: str, schema: pa.Schema, name: str) -> None:
    """Refuse a column of ids that is there twice, or of a type without a form as text. Raises
    `InputBad`.
    """
    check_once(file, schema, [name])
    if name in schema.names and not is_id(schema.field(name).type):
        raise InputBad(
            f'{file}: column "{name}" is {schema.field(name).type}; expected a string or an '
            "integer."
        )


def check_once(file: str, schema: pa.Schema, names: Iterable[str]) -> None:
    """Refuse a name that two columns have. Raises `InputBad`."""
    for name in names:
        if schema.names.count(name) > 1:
            raise InputBad(
                f'{file}: has {schema.names.count(name)} columns "{name}"; expected one, since '
                "nothing tells which is meant. Rename the others."
            )


def check_priority(file: str, schema: pa.Schema, name: str | None) -> None:
    """Refuse a column of priorities that is not there, or has no order that Parquet knows."""
    if name is None:
        return
    if name not in schema.names:
        raise InputBad(
            f'{file}: no column "{name}" for --priority-column; it has {listing(schema.names)}.'
            f"{nearest(name, schema.names)}"
        )
    check_once(file, schema, [name])
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


def _check_candidates(file: str, kind: pa.DataType, columns: Columns) -> None:
    """Refuse what is no list of texts, or of structs with the fields that the columns name."""
    where = f'{file}: column "{columns.candidates}" is {kind}'
    item = kind.value_type if any(is_one(kind) for is_one in _LISTS) else None
    if item is None or not (types.is_struct(item) or is_text(item)):
        raise InputBad(f"{where}; {_EXPECTED} See README, Input.")
    fields = [field.name for field in item] if types.is_struct(item) else []
    for key, name, fits in (
        ("text_column", columns.text, is_text),
        ("doc_id_column", columns.doc_id, is_id),
    ):
        count, chosen = fields.count(name), key in columns.chosen
        if count == 1 and fits(item.field(name).type):
            continue
        if chosen or count > 1:
            kind = item.field(name).type if count == 1 else None
            known = suggest(name, fields) if fields else " Texts alone have no fields."
            found = f"{count} fields" if count else "no field"
            how = f'with {found} "{name}".{known}' if kind is None else f'whose "{name}" is {kind}.'
            raise InputBad(f"{where}, {how} See README, Input.")
        if count or (key == "text_column" and types.is_struct(item)):
            raise InputBad(f"{where}; {_EXPECTED} See README, Input.")


_EXPECTED = "expected list<struct<doc_id, text>> or list<string>."
_LISTS = (
    types.is_list,
    types.is_large_list,
    types.is_fixed_size_list,
    types.is_list_view,
    types.is_large_list_view,
)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return is_string(kind) or types.is_null(kind)


def is_id(kind: pa.DataType) -> bool:
    """Whether a column holds ids that equals are found by: fractions are none."""
    return has_text_form(kind) and not types.is_floating(plain_type(kind))

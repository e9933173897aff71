"""The one form in which an id is text, whatever its type: in exports, joins, messages.

A UUID as everybody writes it, bytes as hexadecimal digits, numbers in decimal (7.0 as 7), times as
ISO 8601, those with a zone in UTC. Lists, structs, maps and durations have none: they are no ids.
"""

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_TEXTS = (types.is_string, types.is_large_string, types.is_string_view)
_BYTES = (
    types.is_binary,
    types.is_large_binary,
    types.is_binary_view,
    types.is_fixed_size_binary,
)
_OTHERS = (
    types.is_null,
    types.is_integer,
    types.is_floating,
    types.is_decimal,
    types.is_boolean,
    types.is_date,
    types.is_timestamp,
    types.is_time,
)


_ZEROS = ((r"(\.[0-9]*[1-9])0+(Z?)$", r"\1\2"), (r"\.0+(Z?)$", r"\1"))
"""A second is the same one in whatever unit it is stored: without the zeros of its fraction."""


def is_string(kind: pa.DataType) -> bool:
    """Whether values of a type are strings, however they lie in memory."""
    return any(is_one(plain_type(kind)) for is_one in _TEXTS)


def has_text_form(kind: pa.DataType) -> bool:
    """Whether each value of a type has one form as text."""
    kind = plain_type(kind)
    return any(is_one(kind) for is_one in (*_TEXTS, *_BYTES, *_OTHERS)) or _is_uuid(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without its dictionary, and without what an extension adds; a UUID stays one."""
    while True:
        if types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
            kind = kind.storage_type
        else:
            return kind


def plain_array(column: pa.Array) -> pa.Array:
    """A column without its dictionary, and without what an extension adds; UUIDs stay."""
    while True:
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif isinstance(column, pa.ExtensionArray) and not _is_uuid(column.type):
            column = column.storage
        else:
            return column


def is_known_to_polars(kind: pa.DataType) -> bool:
    """Whether polars has a type for these values. It ends with a panic on decimals of 256 bits, and
    takes a UUID for bytes.
    """
    if types.is_nested(kind):
        return all(is_known_to_polars(kind.field(at).type) for at in range(kind.num_fields))
    kind = plain_type(kind)
    return not (types.is_decimal256(kind) or _is_uuid(kind))


def has_json_form(kind: pa.DataType) -> bool:
    """Whether polars writes values of this type into JSON: bytes within lists or structs it does
    not.
    """
    if types.is_nested(kind):
        return all(has_json_form(kind.field(at).type) for at in range(kind.num_fields))
    return is_known_to_polars(kind) and not is_bytes(plain_type(kind))


def is_written_as_text(kind: pa.DataType) -> bool:
    """Whether JSON has no form of its own for a type of ids, so that it gets the one of text."""
    kind = plain_type(kind)
    return has_text_form(kind) and not (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, however they lie in memory."""
    return any(is_one(kind) for is_one in _BYTES)


def takeable(column: pa.Array) -> pa.Array:
    """A column of which rows can be taken: Arrow cannot yet take any of a view."""
    if types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column


def as_text(column: pa.Array) -> pa.Array:
    """The text form of each value, as a column of strings; null where there is none.

    Raises `ArrowInvalid` for strings that are not UTF-8.
    """
    column = plain_array(column)
    kind = column.type
    if _is_uuid(kind):
        return pa.array([_text(value) for value in column.to_pylist()], pa.string())
    if is_bytes(kind):
        values = column.to_pylist()
        return pa.array([None if value is None else value.hex() for value in values], pa.string())
    if types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))
    if types.is_timestamp(kind) or types.is_time(kind):
        text = pc.replace_substring(column.cast(pa.string()), " ", "T")
        for digits in _ZEROS:
            text = pc.replace_substring_regex(text, *digits)
        return text
    text = column.cast(pa.string())
    text.validate(full=True)
    return text


def shown(ids: pa.Array) -> list[str]:
    """Ids for a person to read, of whatever type."""
    return [str(one) for one in (as_text(ids) if has_text_form(ids.type) else ids).to_pylist()]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.UuidType)

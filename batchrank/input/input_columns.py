"""Many part files as one: each column has one type, and folders called `key=value` give columns.

Programs that write part after part do not always agree with themselves: a column is nullable in one
and not in the next, an integer of 32 bits and of 64, a string of three kinds, all null. What loses
no value is read as one type; the rest is refused before anything is sent.
"""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import types

from batchrank.errors import InputBad
from batchrank.files.text_form import is_bytes, is_string, plain_array, plain_type
from batchrank.input.input_file import InputFile

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NULL = "__HIVE_DEFAULT_PARTITION__"


class InputColumns:
    """The schemas of some files, and what makes their batches alike."""

    def __init__(self, paths: Sequence[InputFile], schemas: Sequence[pa.Schema]) -> None:
        self._partitions = {str(path): _partition(path) for path in paths}
        keys = dict.fromkeys(key for values in self._partitions.values() for key in values)
        self._kinds: dict[str, pa.DataType] = {key: self._kind(key) for key in keys}
        self.schemas = [
            self._extended(path, schema) for path, schema in zip(paths, schemas, strict=True)
        ]
        self._own = {str(path): schema for path, schema in zip(paths, schemas, strict=True)}
        self._types: dict[str, pa.DataType] = {}

    def unite(self, paths: Sequence[InputFile], names: Iterable[str]) -> pa.Schema:
        """Settle one type for each of these columns; the first file's schema with them. Raises
        `InputBad` for a file whose column fits no common type, or that lacks one.
        """
        first = self.schemas[0]
        for name in dict.fromkeys(names):
            kinds: list[pa.DataType] = []
            for path, schema in zip(paths, self.schemas, strict=True):
                mine = schema.field(name).type if name in schema.names else None
                theirs = first.field(name).type if name in first.names else None
                kind = None if mine is None else one_type([*kinds, mine])
                if (mine is None) != (theirs is None) or (mine is not None and kind is None):
                    raise InputBad(
                        f'{path.name}: column "{name}" is {mine or "absent"}, and '
                        f"{theirs or 'absent'} in the first file; one output needs one type."
                    )
                kinds = [] if kind is None else [kind]
            if kinds:
                self._types[name] = kinds[0]
        fields = [pa.field(field.name, self._types.get(field.name, field.type)) for field in first]
        return pa.schema(fields)

    def stored(self, path: InputFile, names: Iterable[str]) -> list[str]:
        """The columns to read from a file, so as to have these: without those of its folders, but
        never none, since batches without a column do not say how long they are.
        """
        own = self._own[str(path)]
        there = [name for name in dict.fromkeys(names) if name in own.names]
        return there or [min(own, key=lambda field: types.is_nested(field.type)).name]

    def alike(self, path: InputFile, batch: pa.RecordBatch, names: Iterable[str]) -> pa.RecordBatch:
        """These columns of a file's batch, of the types that were settled. Raises `ArrowInvalid`
        for a value that is none of its type.
        """
        columns, wanted = [], list(dict.fromkeys(names))
        for name in wanted:
            if name in batch.schema.names:
                column = batch.column(name)
            else:
                column = self._column(path, name, batch.num_rows)
            kind = self._types.get(name, column.type)
            columns.append(column if column.type == kind else plain_array(column).cast(kind))
        return pa.RecordBatch.from_arrays(columns, wanted)

    def _extended(self, path: InputFile, schema: pa.Schema) -> pa.Schema:
        for key in self._partitions[str(path)]:
            if key not in schema.names:
                schema = schema.append(pa.field(key, self._kinds[key]))
        return schema

    def _kind(self, key: str) -> pa.DataType:
        values = [parts[key] for parts in self._partitions.values() if key in parts]
        whole = all(_INTEGER.fullmatch(value) for value in values if value is not None)
        return pa.int64() if whole and any(values) else pa.string()

    def _column(self, path: InputFile, key: str, rows: int) -> pa.Array:
        value = self._partitions[str(path)][key]
        if value is None:
            return pa.nulls(rows, self._kinds[key])
        return pa.repeat(pa.scalar(value).cast(self._kinds[key]), rows)


def one_type(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that holds every value of these types, or None where there is none: 32 and 64 bits
    are one, a number and a string are two.
    """
    kinds = list(dict.fromkeys(kind for kind in kinds if not types.is_null(kind))) or [pa.null()]
    if len(kinds) == 1:
        return kinds[0]
    kinds = list(dict.fromkeys(map(plain_type, kinds)))
    if len(kinds) == 1 or all(map(is_string, kinds)):
        return kinds[0]
    if pa.uint64() in kinds and any(map(types.is_signed_integer, kinds)):
        return None
    if any(all(map(is_one, kinds)) for is_one in _FAMILIES):
        schemas = [pa.schema([("x", kind)]) for kind in kinds]
        try:
            return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except pa.ArrowException:
            return None
    return None


_FAMILIES = (
    types.is_integer,
    types.is_floating,
    types.is_decimal,
    types.is_date,
    types.is_time,
    types.is_timestamp,
    types.is_duration,
    types.is_nested,
    is_bytes,
)


def _partition(path: InputFile) -> dict[str, str | None]:
    """What the folders of a file say, as Hive writes it: `key=value`, escaped as in a URL."""
    values: dict[str, str | None] = {}
    for folder in str(path).split("/")[:-1]:
        key, separator, value = folder.partition("=")
        if key and separator:
            values[unquote(key)] = None if value == _NULL else unquote(value)
    return values

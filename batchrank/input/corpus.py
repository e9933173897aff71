"""Texts by id: the documents of a corpus, the queries of a set, from Parquet or JSONL.

Only texts that are wanted are kept, one after the other in a nameless file (see `spill`); what
stays in memory is 16 bytes for each, its id's hash and its place. A text is fetched with its id,
which is compared: a hash finds, it does not decide. As BEIR does, a title is put before the text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchrank.errors import InputBad
from batchrank.files.text_form import as_text, plain_array
from batchrank.input.arguments import found
from batchrank.input.id_hashes import Hashes, hashes, places_in
from batchrank.input.input_file import InputFile, looking_at
from batchrank.input.line_files import (
    ParquetLines,
    is_parquet,
    text_identity,
    text_lines,
)
from batchrank.input.parquet_rows import MARKER, STATE, FileIdentity
from batchrank.input.schema import check_once, is_id, is_text
from batchrank.input.spill import Nameless
from batchrank.input.utf8 import is_utf8

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_HEADER = Struct("<II")
_READ = 2048
T = TypeVar("T")


class TextFile:
    """A file of ids and texts. `ids` and `texts` are the names that such columns may have."""

    def __init__(self, path: InputFile, ids: Sequence[str], texts: Sequence[str]) -> None:
        self.path = path
        self._ids, self._texts = ids, texts
        self.halves: dict[str, int] = {}
        """Lines, of those read last, whose text holds half of a surrogate pair, by id."""
        self._lines = ParquetLines([path]) if is_parquet(path) else None
        self.identity: FileIdentity
        if self._lines is None:
            self.identity = text_identity(path)
        else:
            self.identity = self._lines.files[0]
            self._names = self._columns(self._lines.schema)

    def batches(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        """The file's ids and texts, some at a time. Raises `InputBad`."""
        if self._lines is None:
            yield from self._json_batches()
            return
        for batch in self._lines.batches(self._names):
            ids, texts, *title = (plain_array(batch.column(name)) for name in self._names)
            texts = texts.cast(pa.large_string())
            named = as_text(ids).cast(pa.large_string())
            yield named, _titled(title[0], texts) if title else texts

    def _columns(self, schema: pa.Schema) -> list[str]:
        """The columns of ids, texts and (if there is one) titles."""
        chosen = []
        for names, fits in ((self._ids, is_id), (self._texts, is_text)):
            name = next((name for name in names if name in schema.names), None)
            check_once(self.path.name, schema, names)
            if name is None or not fits(schema.field(name).type):
                expected = " or ".join(f'"{one}"' for one in names)
                raise InputBad(
                    f"{self.path.name}: expected a column {expected}; it has "
                    f"{', '.join(f'{one.name} ({one.type})' for one in schema)}."
                )
            chosen.append(name)
        check_once(self.path.name, schema, ["title"])
        return [*chosen, *(["title"] if "title" in schema.names else [])]

    def _json_batches(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        for first, lines in text_lines(self.path):
            self.halves = {}
            records = [
                self._record(line, number) for number, line in enumerate(lines, first) if line
            ]
            pairs = [record for record in records if record is not None]
            ids, texts = zip(*pairs, strict=True) if pairs else ((), ())
            yield pa.array(ids, pa.large_string()), pa.array(texts, pa.large_string())

    def _record(self, content: bytes, number: int) -> tuple[str, str | None] | None:
        """A line's id and text; None where the id is no text, so that no run can name it."""
        try:
            record = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
            name, text = self._names_in(record)
            doc_id = str(msgspec.json.decode(record[name], type=str | int))
            return doc_id, _joined({key: _string(raw) for key, raw in _texts(record, text)}, text)
        except (msgspec.DecodeError, StopIteration, UnicodeDecodeError):
            return self._lenient_record(content, number)

    def _lenient_record(self, content: bytes, number: int) -> tuple[str, str | None] | None:
        """The same of a line that a strict reader refuses: JSON may hold half of a surrogate pair,
        which is no text. Where the text has one, it is None and stands in `halves`.
        """
        where = f"{self.path.name}, line {number:,}"
        if not is_utf8(content):
            raise InputBad(f"{where}: is not UTF-8.")
        try:
            record = json.loads(content)
            name, key = self._names_in(record)
            text = _joined(dict(_texts(record, key)), key)
            doc_id = str(msgspec.convert(record[name], str | int))
        except (ValueError, TypeError, StopIteration, RecursionError, msgspec.ValidationError):
            raise InputBad(
                f'{where}: expected an object with "{self._ids[0]}" and "{self._texts[0]}", as '
                "BEIR has them."
            ) from None
        if not _is_text(doc_id):
            return None
        if text is None or _is_text(text):
            return doc_id, text
        self.halves[doc_id] = number
        return doc_id, None

    def _names_in(self, record: Mapping[str, object]) -> tuple[str, str]:
        """The keys of the id and the text. Raises StopIteration where one is missing."""
        return (
            next(name for name in self._ids if name in record),
            next(name for name in self._texts if name in record),
        )


class Texts:
    """The texts of the ids whose hashes are wanted (ascending). Raises as reading does."""

    def __init__(self, files: Sequence[TextFile], wanted: Hashes) -> None:
        self._wanted = wanted
        self._offsets = np.full(len(wanted), -1)
        self._file = Nameless()
        for file in files:
            for ids, texts in file.batches():
                self._add(file, ids, texts)

    def missing(self) -> Hashes:
        """The wanted hashes that no id had."""
        return self._wanted[self._offsets < 0]

    def of(self, ids: pa.Array) -> pa.Array:
        """The text of each id. Raises `InputBad` for one that is not there."""
        if not len(ids):
            return pa.array([], pa.large_string())
        at = places_in(self._wanted, hashes(ids))
        places, firsts, inverse = np.unique(at, return_index=True, return_inverse=True)
        texts: list[bytes | None] = [None] * len(places)
        names = ids.take(pa.array(firsts)).cast(pa.large_binary()).to_pylist()
        offsets = self._offsets[places]
        for place in np.argsort(offsets):
            doc_id, texts[place] = self._read(int(offsets[place]))
            if doc_id != names[place]:
                raise InputBad(f"no text for id {names[place].decode()}.")
        return pa.array(texts, pa.large_binary()).cast(pa.large_string()).take(pa.array(inverse))

    def _add(self, file: TextFile, ids: pa.Array, texts: pa.Array) -> None:
        at = places_in(self._wanted, hashes(ids)) if not ids.null_count else _no_id(file)
        kept = pa.array(np.flatnonzero(at >= 0))
        names = ids.take(kept).cast(pa.large_binary()).to_pylist()
        contents = texts.take(kept).cast(pa.large_binary()).to_pylist()
        if file.halves:
            _check_halves(file, names)
        for place, name, content in zip(at[at >= 0].tolist(), names, contents, strict=True):
            size = 0 if content is None else len(content) + 1
            record = b"".join((_HEADER.pack(len(name), size), name, content or b""))
            if self._offsets[place] < 0:
                self._offsets[place] = self._file.append(record)
            else:
                self._check_same(file, int(self._offsets[place]), name, content)

    def _check_same(self, file: TextFile, offset: int, name: bytes, content: bytes | None) -> None:
        doc_id, text = self._read(offset)
        if doc_id != name:
            raise InputBad(
                f"{file.path.name}: ids {doc_id.decode()} and {name.decode()} have the same hash, "
                "so that they cannot be told apart; rename one of them."
            )
        if text != content:
            raise InputBad(f"{file.path.name}: id {name.decode()} comes twice, with two texts.")

    def _read(self, offset: int) -> tuple[bytes, bytes | None]:
        if offset < 0:
            return b"", None
        content = self._file.read(offset, _READ)
        name, size = _HEADER.unpack_from(content)
        start = _HEADER.size + name
        stop = start + max(0, size - 1)
        if stop > len(content):
            content += self._file.read(offset + len(content), stop - len(content))
        return content[_HEADER.size : start], content[start:stop] if size else None


def text_files(argument: str, ids: Sequence[str], texts: Sequence[str]) -> list[TextFile]:
    """The files of ids and texts that an argument means: a file, a folder's, or a pattern's."""
    with looking_at(argument):
        paths = [InputFile(path) for path in found(argument, SUFFIXES, (STATE, MARKER))]
    return [TextFile(path, ids, texts) for path in paths]


def _texts(record: Mapping[str, T], text: str) -> Iterator[tuple[str, T]]:
    """The record's title, if there is one, and text."""
    return ((key, record[key]) for key in ("title", text) if key in record)


def _string(raw: msgspec.Raw) -> str | None:
    return msgspec.json.decode(raw, type=str | None)


def _joined(texts: Mapping[str, str | None], text: str) -> str | None:
    """A text with its title before it. Raises TypeError where one is no string."""
    if any(one is not None and not isinstance(one, str) for one in texts.values()):
        raise TypeError
    if "title" not in texts:
        return texts[text]
    return f"{texts['title'] or ''} {texts[text] or ''}".strip()


def _is_text(value: str) -> bool:
    """Whether a string has no half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_halves(file: TextFile, names: Iterable[bytes]) -> None:
    for name in names:
        number = file.halves.get(name.decode())
        if number is not None:
            raise InputBad(
                f"{file.path.name}, line {number:,}: the text of {name.decode()!r} holds half of a "
                "character (a surrogate without its other half), which is no text; write it anew."
            )


def _titled(titles: pa.Array, texts: pa.Array) -> pa.Array:
    titles = pc.fill_null(titles.cast(pa.large_string()), "")
    space = pa.scalar(" ", pa.large_string())
    joined = pc.binary_join_element_wise(titles, pc.fill_null(texts, ""), space)
    return pc.utf8_trim_whitespace(joined)


def _no_id(file: TextFile) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    raise InputBad(f"{file.path.name}: a line has no id; every line needs one.")

"""Texts by id: the documents of a corpus, the queries of a set, from Parquet or JSONL.

Only texts that are wanted are kept, one after the other in a nameless file (see `spill`); what
stays in memory is 16 bytes for each, its id's hash and its place. A text is fetched with its id,
which is compared: a hash finds, it does not decide. As BEIR does, a title is put before the text.
"""

from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import islice
from struct import Struct

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchrank.arguments import found
from batchrank.errors import InputBad
from batchrank.input_file import InputFile
from batchrank.schema import is_id, is_text
from batchrank.shapes.hashes import Hashes, hashes, places_in
from batchrank.shapes.lines import (
    BATCH_LINES,
    ParquetLines,
    is_parquet,
    text_identity,
    text_stream,
)
from batchrank.shapes.spill import Nameless
from batchrank.source import MARKER, STATE, FileIdentity, decoded

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_HEADER = Struct("<II")
_READ = 2048


class TextFile:
    """A file of ids and texts. `ids` and `texts` are the names that such columns may have."""

    def __init__(self, path: InputFile, ids: Sequence[str], texts: Sequence[str]) -> None:
        self.path = path
        self._ids, self._texts = ids, texts
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
            ids, texts, *title = (decoded(batch.column(name)) for name in self._names)
            texts = texts.cast(pa.large_string())
            yield ids.cast(pa.large_string()), _titled(title[0], texts) if title else texts

    def _columns(self, schema: pa.Schema) -> list[str]:
        """The columns of ids, texts and (if there is one) titles."""
        chosen = []
        for names, fits in ((self._ids, is_id), (self._texts, is_text)):
            name = next((name for name in names if name in schema.names), None)
            if name is None or not fits(schema.field(name).type):
                expected = " or ".join(f'"{one}"' for one in names)
                raise InputBad(
                    f"{self.path.name}: expected a column {expected}; it has "
                    f"{', '.join(f'{one.name} ({one.type})' for one in schema)}."
                )
            chosen.append(name)
        return [*chosen, *(["title"] if "title" in schema.names else [])]

    def _json_batches(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        line = 0
        with text_stream(self.path) as packed, BufferedReader(packed) as stream:
            while lines := list(islice(stream, BATCH_LINES)):
                pairs = [self._decoded(content, line + at) for at, content in enumerate(lines)]
                line += len(lines)
                ids, texts = zip(*pairs, strict=True)
                yield pa.array(ids, pa.large_string()), pa.array(texts, pa.large_string())

    def _decoded(self, content: bytes, line: int) -> tuple[str, str | None]:
        try:
            record = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
            name = next(name for name in self._ids if name in record)
            doc_id = str(msgspec.json.decode(record[name], type=str | int))
            text = _string(record, next(name for name in self._texts if name in record))
            if "title" in record:
                text = f"{_string(record, 'title') or ''} {text or ''}".strip()
        except (msgspec.DecodeError, StopIteration, UnicodeDecodeError):
            raise InputBad(
                f"{self.path.name}, line {line + 1:,}: expected an object with "
                f'"{self._ids[0]}" and "{self._texts[0]}", as BEIR has them.'
            ) from None
        return doc_id, text


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
        ids.validate(full=True)
        texts.validate(full=True)
        at = places_in(self._wanted, hashes(ids)) if not ids.null_count else _no_id(file)
        kept = pa.array(np.flatnonzero(at >= 0))
        names = ids.take(kept).cast(pa.large_binary()).to_pylist()
        contents = texts.take(kept).cast(pa.large_binary()).to_pylist()
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
    paths = [InputFile(path) for path in found(argument, SUFFIXES, (STATE, MARKER))]
    return [TextFile(path, ids, texts) for path in paths]


def _string(record: dict[str, msgspec.Raw], name: str) -> str | None:
    return msgspec.json.decode(record[name], type=str | None)


def _titled(titles: pa.Array, texts: pa.Array) -> pa.Array:
    titles = pc.fill_null(titles.cast(pa.large_string()), "")
    space = pa.scalar(" ", pa.large_string())
    joined = pc.binary_join_element_wise(titles, pc.fill_null(texts, ""), space)
    return pc.utf8_trim_whitespace(joined)


def _no_id(file: TextFile) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    raise InputBad(f"{file.path.name}: a line has no id; every line needs one.")

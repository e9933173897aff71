"""Text files as lines of bytes, whatever wrote them: packed or not, with a byte order mark or
without, with line ends of Unix, Windows or old Macs, with blank lines.

Lines end at line feeds and carriage returns alone: a U+2028 or U+0085 within a text is part of it.
"""

from collections.abc import Iterator

import pyarrow as pa

from batchrank.errors import InputBad

_BLOCK = 1 << 20
_MOST_LINE_BYTES = 64 << 20
"""A row may take as much; a file of another kind may be one line of any length."""
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_PACKINGS = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
HEAD_BYTES = 10


def unpacked(file: pa.NativeFile) -> pa.NativeFile:
    """The bytes of a file from its beginning, unpacked where they show that they are packed."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    kind = next((kind for magic, kind in _PACKINGS.items() if head.startswith(magic)), None)
    if head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        kind = "bz2"
    return pa.input_stream(file, compression=kind, buffer_size=_BLOCK)


def read_lines(stream: pa.NativeFile, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a stream, some at a time, without their ends, and the number of the first of
    them, counted from 1. Blank lines are empty. Raises `InputBad`, and as reading does.
    """
    number, rest = 1, b""
    while block := stream.read(_BLOCK):
        if number == 1 and not rest and _is_utf_16(block):
            raise InputBad(f"{name}, line 1: is not UTF-8 but UTF-16. Save it as UTF-8.")
        lines = (rest + block).splitlines(keepends=True)
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if len(rest) > _MOST_LINE_BYTES:
            raise InputBad(
                f"{name}, line {number + len(lines):,}: is longer than "
                f"{_MOST_LINE_BYTES >> 20} MB; is this a file of lines?"
            )
        if lines:
            yield number, _bare(lines)
            number += len(lines)
    if rest:
        yield number, _bare([rest])


def split_columns(line: bytes, *counts: int) -> list[bytes] | None:
    """The columns of a line, separated by tabs if that makes one of `counts`, and otherwise by
    white space; None where neither does. An id may hold spaces only between tabs.
    """
    fields = [field.strip() for field in line.split(b"\t")]
    if len(fields) in counts and len(fields) > 1:
        return fields if all(fields) else None
    if len(fields) > 2 and any(len(field.split()) > 1 for field in fields):
        return None  # by tabs, with a column too few or too many: spaces are in an id
    fields = line.split()
    return fields if len(fields) in counts else None


def _is_utf_16(content: bytes) -> bool:
    """Whether these bytes are the beginning of a text as Windows tools write it."""
    return content.startswith(_UTF_16) and not len(content) % 2


def _bare(lines: list[bytes]) -> list[bytes]:
    return [line.strip().removeprefix(_BOM).lstrip() for line in lines]

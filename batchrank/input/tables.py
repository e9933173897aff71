"""Tables of files that keep their own list of what is in them: Delta Lake, Iceberg, Hudi.

Their folders also hold the files of rows that were deleted or rewritten, and only the table's log
says which. Reading that log is the business of libraries of its own (deletion vectors, renamed
columns), so such files are refused, however they are named: as a folder, by a pattern, one by one.
"""

from collections.abc import Iterable

from batchrank.errors import InputBad
from batchrank.files.paths import Place

_READERS = {"Delta Lake": "delta_scan", "Iceberg": "iceberg_scan"}
"""DuckDB's function for each kind; it has none for Hudi."""
_MARKS = {
    "_delta_log": "Delta Lake",
    ".hoodie": "Hudi",
    ".hoodie_partition_metadata": "Hudi",
}
_METADATA, _METADATA_FILES = "metadata", ".metadata.json"


def check_folder(folder: Place) -> None:
    """Refuse files of a folder that is a table, its folder of data, or a partition of it. Raises
    `InputBad`.
    """
    for mark, kind in _MARKS.items():
        if (folder / mark).exists():
            raise _refusal(folder, kind)
    for file in (folder / _METADATA).glob("*" + _METADATA_FILES):
        raise _refusal(file.parent.parent, "Iceberg")
    check_above(folder)


def check_above(folder: Place) -> None:
    """Refuse a folder that is a table's folder of data, or a partition of it. Raises `InputBad`."""
    if "=" in folder.name or folder.name == "data":
        check_folder(folder.parent)


def check_listed(folder: Place, files: Iterable[Place]) -> None:
    """Refuse a folder with a table anywhere below it, by what its list of files has. Raises
    `InputBad`.
    """
    for file in files:
        marks = _MARKS.keys() & set(file.relative_to(folder).parts)  # type: ignore[arg-type]
        if marks:
            mark = marks.pop()
            while file.name != mark:
                file = file.parent
            raise _refusal(file.parent, _MARKS[mark])
        if file.name.endswith(_METADATA_FILES) and file.parent.name == _METADATA:
            raise _refusal(file.parent.parent, "Iceberg")


def _refusal(table: Place, kind: str) -> InputBad:
    how = "with the program that writes it"
    if kind in _READERS:
        how = f"for example with DuckDB: COPY (FROM {_READERS[kind]}('{table}')) TO 'rows.parquet'"
    return InputBad(
        f"{table}: is a table of {kind}, whose folder also holds rows that are no longer in it. "
        f"Write the table's rows into a Parquet file first, {how}."
    )

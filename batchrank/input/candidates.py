"""A column of candidate lists as texts and ids, whatever its physical form."""

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from batchrank.files.text_form import as_text, plain_array
from batchrank.input.schema import Columns


class Candidates:
    """The lists of some rows; a null list is an empty one."""

    def __init__(self, column: pa.Array, columns: Columns) -> None:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        self._offsets = [0]
        for length in lengths:
            self._offsets.append(self._offsets[-1] + length)
        flat = column.flatten()
        if types.is_struct(flat.type):
            text, doc_id = map(flat.type.get_field_index, (columns.text, columns.doc_id))
            self._texts = plain_array(pc.struct_field(flat, [text]))
            self._ids = pc.struct_field(flat, [doc_id]) if doc_id >= 0 else None
        else:
            self._texts, self._ids = plain_array(flat), None
        # A hostile cell of 300 MB would take seven times that as strings and requests.
        if types.is_string_view(self._texts.type) or types.is_null(self._texts.type):
            self._texts = self._texts.cast(pa.large_string())
        if (pc.max(pc.binary_length(self._texts)).as_py() or 0) > columns.max_characters:
            self._texts = pc.utf8_slice_codeunits(self._texts, 0, columns.max_characters)

    def texts(self, row: int) -> list[str | None]:
        """The texts of a row's candidates."""
        first, stop = self._offsets[row], self._offsets[row + 1]
        texts: list[str | None] = self._texts.slice(first, stop - first).to_pylist()
        return texts

    def doc_ids(self) -> pa.ListArray:
        """The ids of each row's candidates, as text; null where they have none."""
        if self._ids is None:
            ids = pa.nulls(self._offsets[-1], pa.string())
        else:
            ids = as_text(self._ids).cast(pa.string())
        return pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), ids)

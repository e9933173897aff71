"""Whether the rows of published parts are still those of the input.

A file that was written again between two starts may have the same size and footer and other rows.
Its time of modification or ETag differs then, but so it does where a file was only copied or
touched. Here the rows of published parts are read again and compared: texts by the digest in each
part's footer, ids, kept columns and document ids by the part itself. Nothing is sent, and no more
than a part is in memory.
"""

import logging
from collections.abc import Collection, Iterable
from itertools import groupby
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchrank.config.settings import JobConfig
from batchrank.errors import InputBad
from batchrank.files.paths import Place, opened
from batchrank.input.parquet_rows import DOC_IDS, Chunk, FileIdentity, Source
from batchrank.output.parts import part_name, read_record
from batchrank.planning.text_hashes import Digests, RowsDigest
from batchrank.state.fingerprint import Fingerprint
from batchrank.state.shards import Shard, rows_of

_log = logging.getLogger(__name__)


def check_published_rows(
    out: Place,
    source: Source,
    config: JobConfig,
    rows: int,
    begun: Fingerprint,
    shard: Shard | None = None,
) -> bool:
    """Compare the published rows of files that were modified since the output was begun; of a
    shard, those of its own parts. False if there is no such file.

    Raises `InputBad` where a row of them is not what it was.
    """
    touched = [now.name for then, now in _files(begun, source) if was_modified(then, now)]
    if not touched:
        return False
    _log.info("%s: modified since %s was begun; published rows are compared", touched, out)
    size, digests = config.output.rows_per_part, Digests(config.scoring())
    count = max(1, ceil(rows / size))
    there = {path.name for path in out.glob("part-*.parquet")}
    parts = [
        part
        for part in sorted(_parts_that_may_differ(source, begun, count, size))
        if part_name(part, count) in there and (shard is None or part in shard.parts(count))
    ]
    for first, stop in rows_of(parts, size, rows):
        chunks = source.chunks(first, stop, size)
        for part, of_part in groupby(chunks, lambda chunk: chunk.first // size):
            name = part_name(part, count)
            if not _is_same(out / name, of_part, digests):
                raise InputBad(
                    f"{out}: begun with another input ({', '.join(touched[:3])}: modified since, "
                    f"and the rows of {name} are not what they were). Give that input again, or "
                    "choose a new output and --reuse this one to pay nothing twice."
                )
    return True


def was_modified(then: FileIdentity, now: FileIdentity) -> bool:
    """Whether a file may have been written again: only its time or ETag says so."""
    return bool(then.modified and now.modified) and then.modified != now.modified


def _files(begun: Fingerprint, source: Source) -> Iterable[tuple[FileIdentity, FileIdentity]]:
    return zip(begun.files, source.files, strict=True)


def _parts_that_may_differ(
    source: Source, begun: Fingerprint, count: int, size: int
) -> Collection[int]:
    """The parts that may have rows of a modified file."""
    if not source.rows_follow_files:
        return range(count)
    found: set[int] = set()
    start = 0
    for then, now in _files(begun, source):
        if was_modified(then, now):
            found.update(range(start // size, min(count, ceil((start + now.rows) / size))))
        start += now.rows
    return found


def _is_same(path: Place, chunks: Iterable[Chunk], digests: Digests) -> bool:
    """Whether a published part has the rows of these chunks; of a trial's, the first of them."""
    record = read_record(path)
    digest, kept, left = RowsDigest(), [], record.counts.rows
    for chunk in chunks:
        for row in chunk.rows[:left]:
            digest.add(digests.of(row))
        kept.append(chunk.kept.slice(0, left))
        left -= min(left, len(chunk.rows))
    ours = pa.Table.from_batches(kept)
    with opened(path) as file:
        table = pq.read_table(file, use_threads=False)
    if record.counts.texts != digest.hex() or table.num_rows != ours.num_rows:
        return False
    doc_ids, ours = ours.column(DOC_IDS), ours.drop_columns([DOC_IDS])
    if not _has_ids(table.column("results"), doc_ids):
        return False
    return bool(_content(_read_back(ours)) == _content(table.select(ours.column_names)))


def _has_ids(results: pa.ChunkedArray, ids: pa.ChunkedArray) -> bool:
    """Whether each result has the document id of its candidate."""
    flat = pc.list_flatten(results)
    rows = pc.list_parent_indices(results).to_numpy()
    lengths = pc.list_value_length(ids).to_numpy()
    index = pc.struct_field(flat, "index").to_numpy()
    if (index >= lengths[rows]).any():
        return False
    starts = np.concatenate(([0], np.cumsum(lengths)))
    expected = pc.list_flatten(ids).take(pa.array(starts[rows] + index))
    found = pc.struct_field(flat, "doc_id")
    return bool(expected.cast(pa.string()).combine_chunks().equals(found.combine_chunks()))


def _read_back(table: pa.Table) -> pa.Table:
    """A table as Parquet gives it back."""
    return pq.read_table(pa.BufferReader(_content(table)), use_threads=False)


def _content(table: pa.Table) -> pa.Buffer:
    """Bytes that are equal where all values are: NaN too, of whatever type and however chunked."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    pq.write_table(
        plain, sink, compression="none", use_dictionary=False, row_group_size=max(1, len(plain))
    )
    return sink.getvalue()

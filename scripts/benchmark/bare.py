"""The bare act of sending: python bare.py ROWS.parquet OUT.parquet URL

aiohttp, uvloop and orjson, 64 in flight; the same Parquet in and out as batchrank, and nothing
else: no plan, no limit, no check, no retry, nothing on disk before the end.
"""

import asyncio
import sys
from collections.abc import Iterator

import aiohttp
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

IN_FLIGHT = 64


def rows(path: str) -> Iterator[tuple[int, str, list[str], list[str]]]:
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(256, use_threads=False):
            candidates = batch.column("candidates")
            offsets = candidates.offsets.to_pylist()
            flat = candidates.values
            texts, ids = flat.field("text"), flat.field("doc_id")
            queries = batch.column("query").to_pylist()
            for at, row in enumerate(batch.column("query_id").to_pylist()):
                first, count = offsets[at], offsets[at + 1] - offsets[at]
                yield (
                    row,
                    queries[at],
                    texts.slice(first, count).to_pylist(),
                    ids.slice(first, count).to_pylist(),
                )


async def main() -> None:
    path, out, url = sys.argv[1:4]
    found: list[tuple[int, list[str], list[dict[str, float]]]] = []
    upcoming = rows(path)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=IN_FLIGHT),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Content-Type": "application/json"},
    ) as session:

        async def worker() -> None:
            for row, query, texts, ids in upcoming:
                body = orjson.dumps({"model": "qwen3-rerank", "query": query, "documents": texts})
                async with session.post(url, data=body) as response:
                    results = orjson.loads(await response.read())["results"]
                found.append((row, ids, results))

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    found.sort(key=lambda one: one[0])
    lengths = [0]
    flat_ids, flat_index, flat_scores = [], [], []
    for _, ids, results in found:
        lengths.append(lengths[-1] + len(results))
        for result in results:
            flat_ids.append(ids[result["index"]])
            flat_index.append(result["index"])
            flat_scores.append(result["relevance_score"])
    structs = pa.StructArray.from_arrays(
        [pa.array(flat_ids), pa.array(flat_index, pa.int32()), pa.array(flat_scores)],
        ["doc_id", "index", "relevance_score"],
    )
    table = pa.table(
        {
            "query_id": [row for row, _, _ in found],
            "results": pa.ListArray.from_arrays(pa.array(lengths, pa.int32()), structs),
        }
    )
    pq.write_table(table, out, compression="zstd")


if __name__ == "__main__":
    uvloop.run(main())

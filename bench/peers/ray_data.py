"""Ray Data: `map_batches` over an actor whose `__call__` is an async generator, to Parquet.

One actor, since there is one core; within a batch 64 requests are in flight. Its processes count
all together.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rows import arguments

BATCH_ROWS = 1024
STORE_BYTES = 1 << 30


class Scorer:
    def __init__(self, url: str, in_flight: int) -> None:
        self._url, self._in_flight = url, in_flight
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._in_flight),
                headers={"Content-Type": "application/json"},
            )
        queries, candidates = batch["query"].to_pylist(), batch["candidates"].to_pylist()
        results: list[list[dict[str, object]]] = [[]] * len(batch)
        upcoming = iter(range(len(batch)))

        async def worker() -> None:
            for place in upcoming:
                results[place] = await self._scored(queries[place], candidates[place])

        await asyncio.gather(*(worker() for _ in range(self._in_flight)))
        yield pa.table({"query_id": batch["query_id"], "results": results})

    async def _scored(
        self, query: str, candidates: list[dict[str, str]]
    ) -> list[dict[str, object]]:
        texts = [candidate["text"] for candidate in candidates]
        ask = {"model": "qwen3-rerank", "query": query, "documents": texts}
        assert self._session is not None
        async with self._session.post(self._url, data=orjson.dumps(ask)) as response:
            answer = orjson.loads(await response.read())
        return [
            {
                "doc_id": candidates[result["index"]]["doc_id"],
                "relevance_score": result["relevance_score"],
            }
            for result in answer["results"]
        ]


def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    ray.init(
        num_cpus=4,  # what it believes: reading, writing and the actor each want one
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_parquet(path).limit(rows).map_batches(
        Scorer,
        fn_constructor_args=(f"{base_url}/reranks", in_flight),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
    ).write_parquet(out)
    ray.shutdown()
    written = pq.read_table(out)
    scores = len(written["results"].combine_chunks().flatten())
    print(orjson.dumps({"rows": len(written), "scores": scores}).decode())


if __name__ == "__main__":
    main(*arguments())

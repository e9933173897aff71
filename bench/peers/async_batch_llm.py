"""async-batch-llm with its SQLite store: `process_stream` over a call of our own.

A prompt is a string there, so it is the request's JSON, and the call posts it with aiohttp; what is
kept in the store is the list of scores. The store's own defaults: durability "balanced", commits of
at most 100 results or 10 ms. Queues are bounded, or the whole input would be taken in at once.
"""

import asyncio
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import aiohttp
import orjson

# This file has the package's name, and its folder comes first on the path.
sys.path.append(sys.path.pop(0))
from async_batch_llm import (
    ArtifactIdentity,
    CallableStrategy,
    CallOutcome,
    ProcessorConfig,
    SqliteArtifactStore,
    process_stream,
)
from rows import arguments, in_order, sheets, told


async def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    identity = ArtifactIdentity(provider="stub", model="qwen3-rerank")
    headers = {"Content-Type": "application/json"}
    url, done, scores = f"{base_url}/reranks", 0, 0
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def invoke(prompt: str, **attempt: Any) -> CallOutcome[list[float]]:
            async with session.post(url, data=prompt.encode()) as response:
                answer = orjson.loads(await response.read())
            tokens = answer["usage"]["total_tokens"]
            usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
            return CallOutcome(in_order(answer["results"]), token_usage=usage)

        config = ProcessorConfig(
            concurrency=in_flight,
            max_queue_size=2 * in_flight,
            max_result_queue_size=2 * in_flight,
        )
        async for result in process_stream(
            CallableStrategy(invoke, identity=identity),
            prompts(path, rows),
            config=config,
            artifact_store=SqliteArtifactStore(out, identity=identity),
        ):
            done += result.success
            scores += len(result.output or ())
    told(done, scores)


def prompts(path: str, rows: int) -> Iterator[tuple[str, str]]:
    upcoming = chain.from_iterable(sheet.rows() for sheet in sheets(path, rows))
    for row, (_, _, query, texts) in enumerate(upcoming):
        ask = {"model": "qwen3-rerank", "query": query, "documents": texts}
        yield str(row), orjson.dumps(ask).decode()


if __name__ == "__main__":
    asyncio.run(main(*arguments()))

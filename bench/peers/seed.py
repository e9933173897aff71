"""The vendor's own example: AsyncOpenAI's generic `.post`, 64 in flight behind a semaphore."""

import asyncio
from typing import Any

from openai import AsyncOpenAI
from rows import arguments, in_order, score_all


async def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    semaphore = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:

        async def score(query: str, texts: list[str]) -> list[float]:
            body = {"model": "qwen3-rerank", "query": query, "documents": texts}
            async with semaphore:
                answer: Any = await client.post("/reranks", body=body, cast_to=object)
            return in_order(answer["results"])

        await score_all(path, out, rows, in_flight, score)


asyncio.run(main(*arguments()))

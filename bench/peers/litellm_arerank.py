"""LiteLLM's `arerank`, 64 in flight, through the provider whose wire is nearest (jina_ai)."""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it asks GitHub for prices
import litellm
from rows import arguments, in_order, score_all


async def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    async def score(query: str, texts: list[str]) -> list[float]:
        answer = await litellm.arerank(
            model="jina_ai/qwen3-rerank",
            query=query,
            documents=texts,
            return_documents=False,
            api_base=base_url,
            api_key="none",
        )
        return in_order(answer.results)

    await score_all(path, out, rows, in_flight, score)


asyncio.run(main(*arguments()))

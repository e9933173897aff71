"""The bare act of sending: aiohttp, uvloop, orjson and a typed decoder; no plan, no pace, no check,
no journal. What batchrank costs beyond this is the price of all these.
"""

import aiohttp
import msgspec
import orjson
import uvloop
from rows import arguments, score_all


class Result(msgspec.Struct, gc=False):
    index: int
    relevance_score: float


class Answer(msgspec.Struct):
    results: list[Result]


async def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    url, decode = f"{base_url}/reranks", msgspec.json.Decoder(Answer).decode
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight),
        headers={"Content-Type": "application/json"},
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:

        async def score(query: str, texts: list[str]) -> list[float]:
            ask = {"model": "qwen3-rerank", "query": query, "documents": texts}
            async with session.post(url, data=orjson.dumps(ask)) as response:
                answer = decode(await response.read())
            scores = [0.0] * len(texts)
            for result in answer.results:
                scores[result.index] = result.relevance_score
            return scores

        await score_all(path, out, rows, in_flight, score)


uvloop.run(main(*arguments()))

"""The Baseten performance client: `batch_post`, a batch of some 64 MB of texts to a call."""

from collections.abc import Iterator
from itertools import chain

from baseten_performance_client import PerformanceClient, RequestProcessingPreference
from rows import Scores, Sheet, arguments, in_order, sheets

BATCH_CHARACTERS = 64_000_000
Row = tuple[Sheet, int, str, list[str]]


def batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row[3]))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    client = PerformanceClient(base_url=base_url, api_key="none")
    preference = RequestProcessingPreference(max_concurrent_requests=in_flight)
    scores = Scores(out)
    for batch in batches(chain.from_iterable(sheet.rows() for sheet in sheets(path, rows))):
        asks = [
            {"model": "qwen3-rerank", "query": query, "documents": texts}
            for _, _, query, texts in batch
        ]
        answers = client.batch_post("/reranks", asks, preference).data if asks else []
        for (sheet, place, _, _), answer in zip(batch, answers, strict=True):
            if sheet.settle(place, in_order(answer["results"])):
                scores.add(sheet.results())
    scores.close()


main(*arguments())

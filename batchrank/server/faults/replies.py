"""Right answers made wrong: the bytes of a 200 answer in, the bytes of a broken one out. Pure."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

Results = list[dict[str, Any]]


def damaged(kind: str, body: bytes, documents: int, random: Random) -> bytes:
    """The answer as the fault's kind breaks it; `documents` is how many the request had."""
    if kind == "truncated_body":
        return body[: len(body) // 2]
    if kind == "bad_json":
        return b'{"object":"list","results":[{"index":0,"relevance_score":}]'
    answer = json.loads(body)
    if isinstance(answer, list):
        answer = DAMAGES[kind](answer, documents, random)
    else:
        holder = answer.get("output", answer)
        where = "results" if "results" in holder else "data"
        holder[where] = DAMAGES[kind](holder[where], documents, random)
    # The standard library writes NaN and Infinity as JavaScript does, which is the point here.
    return json.dumps(answer, separators=(",", ":")).encode()


def _shuffled(results: Results, documents: int, random: Random) -> Results:
    return random.sample(results, len(results))


def _partial(results: Results, documents: int, random: Random) -> Results:
    return results[: -max(1, len(results) // 3)]


def _duplicate_index(results: Results, documents: int, random: Random) -> Results:
    copy = {**results[-1], "index": results[0]["index"]}
    return [*results[:-1], copy] if len(results) > 1 else [*results, copy]


def _extra_results(results: Results, documents: int, random: Random) -> Results:
    return [*results, {**results[0], "index": documents}]


def _last_index(wrong: Callable[[int], int]) -> Callable[[Results, int, Random], Results]:
    def change(results: Results, documents: int, random: Random) -> Results:
        return [*results[:-1], {**results[-1], "index": wrong(documents)}]

    return change


def _one_score(wrong: object) -> Callable[[Results, int, Random], Results]:
    def change(results: Results, documents: int, random: Random) -> Results:
        place = random.randrange(len(results))
        name = "score" if "score" in results[place] else "relevance_score"
        one = {**results[place], name: wrong}
        return [*results[:place], one, *results[place + 1 :]]

    return change


DAMAGES: dict[str, Callable[[Results, int, Random], Results]] = {
    "shuffled": _shuffled,
    "partial": _partial,
    "duplicate_index": _duplicate_index,
    "index_out_of_range": _last_index(lambda documents: documents),
    "negative_index": _last_index(lambda documents: -1),
    "nan_score": _one_score(float("nan")),
    "infinite_score": _one_score(float("inf")),
    "null_score": _one_score(None),
    "string_score": _one_score("0.5"),
    "extra_results": _extra_results,
}

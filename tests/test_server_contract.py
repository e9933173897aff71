"""The local server answers as Model Studio does: shapes, checks, exact texts, bill and ledger."""

import asyncio
import gzip
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest

from batchrank.config.limits import RequestLimits
from batchrank.errors import ConfigInvalid
from batchrank.planning import tokens
from batchrank.server.app import ServerSettings, serving
from batchrank.server.quotas import QuotaSettings
from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT
from batchrank.server.token_counts import head

FLAT = "/compatible-api/v1/reranks"
NATIVE = "/api/v1/services/rerank/text-rerank/text-rerank"
ALGO = "<400> InternalError.Algo.InvalidParameter: Value error, "

Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


def serve(
    check: Callable[[Ask, str], Awaitable[None]],
    settings: ServerSettings | None = None,
    scorer: Any = None,
) -> None:
    """Run `check(ask, host)` beside a server; `ask(body, path)` gives status and JSON."""

    async def main() -> None:
        async with (
            serving(settings or ServerSettings(), scorer or HashScorer()) as host,
            aiohttp.ClientSession(host) as session,
        ):

            async def ask(body: Any, path: str = FLAT, **more: Any) -> tuple[int, Any]:
                content = body if isinstance(body, bytes) else json.dumps(body)
                async with session.post(path, data=content, **more) as response:
                    return response.status, json.loads(await response.read())

            await check(ask, host)

    asyncio.run(main())


def flat(**changes: Any) -> dict[str, Any]:
    """A good flat request, changed; `None` takes a field away."""
    fields = {"model": "qwen3-rerank", "query": "q", "documents": ["a", "b", "c"], **changes}
    return {name: value for name, value in fields.items() if value is not None}


def native(parameters: Any = None, **changes: Any) -> dict[str, Any]:
    """The same request in the nested form."""
    fields = flat(**changes)
    model = fields.pop("model", None)
    body = {"model": model, "input": fields, "parameters": parameters or {}}
    return {name: value for name, value in body.items() if value is not None}


async def ledger(host: str, query: str = "") -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{host}/ledger{query}") as answer:
        return await answer.json()


class Recorder:
    """Keeps what it is asked to score; scores fall with the length of the text."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Sequence[str], str]] = []

    def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
        self.asked.append((query, documents, instruct))
        return [1 / (1 + len(document)) for document in documents]


def test_flat_answer_is_sorted_and_billed() -> None:
    async def check(ask: Ask, host: str) -> None:
        status, answer = await ask(flat(documents=["bb", "a", "cc", "d"]))
        assert status == 200
        assert answer["object"] == "list" and answer["model"] == "qwen3-rerank"
        # Best first; equals stay in the order of their index.
        assert [result["index"] for result in answer["results"]] == [1, 3, 0, 2]
        assert answer["results"][0] == {"index": 1, "relevance_score": 0.5}
        count = tokens.count("bb") + tokens.count("cc") + 2 + 4 * tokens.count("q")
        assert answer["usage"] == {"total_tokens": count + 52}
        assert len(answer["id"]) == 36

    serve(check, scorer=Recorder())


def test_native_answer_is_nested_and_a_flat_body_there_gets_the_flat_one() -> None:
    async def check(ask: Ask, host: str) -> None:
        status, answer = await ask(native({"top_n": 2, "return_documents": True}), NATIVE)
        assert status == 200 and set(answer) == {"output", "usage", "request_id"}
        assert len(answer["output"]["results"]) == 2
        for result in answer["output"]["results"]:
            assert result["document"] == {"text": "abc"[result["index"]]}
        status, answer = await ask(flat(), NATIVE)
        assert status == 200 and len(answer["results"]) == 3

    serve(check)


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (1, 1), (3, 3), (500, 3)])
def test_top_n_cuts_and_more_than_there_are_is_all(top_n: int | None, count: int) -> None:
    async def check(ask: Ask, host: str) -> None:
        status, answer = await ask(flat(top_n=top_n))
        assert (status, len(answer["results"])) == (200, count)

    serve(check)


EMPTY_AT_1 = ALGO + "document index:1 should not be empty.: input.documents"
BATCH_SIZE = (
    ALGO + "batch size of documents is invalid, it should not be empty or larger than 500.: "
    "input.documents"
)
TYPE = "Required parameter(s) missing or invalid, please check the request parameters. "
MODEL_MISSING = 'Required parameter "model" missing from request.'
INPUT_MISSING = "Required input parameter missing from request."
REFUSALS = [
    (flat(documents=["a", "", "c"]), 400, "InvalidParameter", EMPTY_AT_1),
    (flat(documents=["a", " \n\t", "c"]), 400, "InvalidParameter", EMPTY_AT_1),
    (flat(documents=[]), 400, "InvalidParameter", BATCH_SIZE),
    (flat(documents=["a"] * 501), 400, "InvalidParameter", BATCH_SIZE),
    (
        flat(query=" "),
        400,
        "InvalidParameter",
        ALGO + "text input should not be empty.: input.query",
    ),
    (
        flat(top_n=0),
        400,
        "InvalidParameter",
        ALGO + "top_n is invalid, it should be larger than or equal to 1.: parameters.top_n",
    ),
    (flat(model=None), 400, "BadRequest.EmptyModel", MODEL_MISSING),
    (flat(model=""), 400, "BadRequest.EmptyModel", MODEL_MISSING),
    (flat(query=None), 400, "BadRequest.EmptyInput", INPUT_MISSING),
    (flat(documents=None), 400, "BadRequest.EmptyInput", INPUT_MISSING),
    (flat(model="bge-reranker"), 404, "ModelNotFound", "Model can not be found."),
    (
        flat(documents=["a", 1]),
        400,
        "InvalidParameter",
        TYPE + "Expected `str`, got `int` - at `$.documents[1]`.",
    ),
    (
        flat(top_n="2"),
        400,
        "InvalidParameter",
        TYPE + "Expected `int | null`, got `str` - at `$.top_n`.",
    ),
    (b"{", 400, "InvalidParameter", TYPE + "The body is not JSON."),
    (b"[" * 100_000, 400, "InvalidParameter", TYPE + "The body is not JSON."),
    (b'{"query":"\xff"}', 400, "InvalidParameter", TYPE + "The body is not JSON."),
    (b'{"query":"\\ud800"}', 400, "InvalidParameter", TYPE + "The body is not JSON."),
    (b"[]", 400, "InvalidParameter", TYPE + "The body is not an object, or is empty."),
]


def test_refusals_have_the_real_code_and_text() -> None:
    async def check(ask: Ask, host: str) -> None:
        for body, status, code, message in REFUSALS:
            got, answer = await ask(body)
            request_id = answer.pop("request_id")
            assert (got, answer) == (status, {"code": code, "message": message}), body
            assert len(request_id) == 36
        counts = await ledger(host)
        assert (counts["requests"], counts["received"]) == (0, len(REFUSALS))
        assert counts["statuses"] == {"400": len(REFUSALS) - 1, "404": 1}

    serve(check)


def test_native_route_names_the_wrapper_that_is_missing() -> None:
    async def check(ask: Ask, host: str) -> None:
        whole = native()
        for field, code in [
            ("model", "BadRequest.EmptyModel"),
            ("input", "BadRequest.EmptyInput"),
            ("parameters", "BadRequest.EmptyParameters"),
        ]:
            for body in ({**whole, field: None}, {k: v for k, v in whole.items() if k != field}):
                status, answer = await ask(body, NATIVE)
                assert (status, answer["code"]) == (400, code)
        status, answer = await ask(native({"top_n": "x"}), NATIVE)
        assert (status, answer["code"]) == (400, "InvalidParameter")

    serve(check)


def test_all_three_models_are_served() -> None:
    async def check(ask: Ask, host: str) -> None:
        for model in ("qwen3-rerank", "gte-rerank-v2", "qwen3.7-text-rerank"):
            assert (await ask(native(model=model), NATIVE))[0] == 200
            assert (await ask(flat(model=model)))[1]["model"] == model

    serve(check)


def test_nested_envelope_is_a_switch_of_the_compatible_route() -> None:
    async def check(ask: Ask, host: str) -> None:
        _, answer = await ask(flat(documents=["a", ""]))
        assert answer["error"] == {
            "code": "InvalidParameter",
            "param": None,
            "message": EMPTY_AT_1,
            "type": "InvalidParameter",
        }
        assert answer["id"] == answer["request_id"]
        _, answer = await ask(native(documents=[]), NATIVE)
        assert answer["code"] == "InvalidParameter"

    serve(check, ServerSettings(nested_errors=True))


def test_key_is_asked_for_only_where_one_is_set() -> None:
    settings = ServerSettings(api_key="sk-canary")
    assert "canary" not in repr(settings)

    async def check(ask: Ask, host: str) -> None:
        for header in ("", "sk-canary", "Bearer sk-canar", "Bearer sk-canary2", "Bearer ü"):
            status, answer = await ask(flat(), headers={"Authorization": header})
            assert (status, answer["code"]) == (401, "InvalidApiKey")
            assert answer["message"] == "Invalid API-key provided."
        assert (await ask(flat(), headers={"Authorization": "Bearer sk-canary"}))[0] == 200

    serve(check, settings)


def test_request_over_the_token_limit_is_refused_and_one_at_it_is_not() -> None:
    # 3 documents of 1 token and a query of 1 token: 3 x 1 + 3.
    for limit, expected in ((6, 200), (5, 400)):

        async def check(ask: Ask, host: str, limit: int = limit, expected: int = expected) -> None:
            status, answer = await ask(flat())
            assert status == expected
            if status == 400:
                assert answer["code"] == "InvalidParameter"
                assert answer["message"] == (
                    f"{ALGO}total tokens of the request is 6, it should not be larger than "
                    f"{limit}.: input.documents"
                )

        serve(check, ServerSettings(limits=RequestLimits(max_tokens_per_request=limit)))


def test_long_texts_are_cut_before_scoring_and_billed_as_cut() -> None:
    scorer = Recorder()
    long = "word " * 30 + "世界😀" * 20

    async def check(ask: Ask, host: str) -> None:
        _, answer = await ask(flat(documents=[long, "a"], query=long))
        assert answer["usage"]["total_tokens"] == 2 * 10 + 10 + 1 + 52

    serve(check, ServerSettings(limits=RequestLimits(max_tokens_per_document=10)), scorer)
    query, documents, instruct = scorer.asked[0]
    assert query == documents[0] == head(long, 10) == "word" + " word" * 9
    assert documents[1] == "a" and instruct == DEFAULT_INSTRUCT


def test_a_cut_through_a_character_drops_it() -> None:
    text = "\N{EGYPTIAN HIEROGLYPH A001}" * 5
    for count in range(1, tokens.count(text)):
        assert text.startswith(head(text, count))


def test_instruct_reaches_the_scorer_and_the_bill_follows_the_settings() -> None:
    scorer = Recorder()

    async def check(ask: Ask, host: str) -> None:
        _, answer = await ask(flat(instruct="Find code."))
        assert answer["usage"]["total_tokens"] == 6 + 40 + 3 * 17
        _, answer = await ask(native({"instruct": "Find maths."}), NATIVE)

    serve(check, ServerSettings(tokens_per_request=40, tokens_per_document=17), scorer)
    assert [instruct for _, _, instruct in scorer.asked] == ["Find code.", "Find maths."]


def test_ledger_counts_what_was_scored_per_content() -> None:
    async def check(ask: Ask, host: str) -> None:
        for body in (flat(), flat(), flat(instruct="x"), flat(documents=["a", "b"]), flat(top_n=0)):
            await ask(body)
        counts = await ledger(host)
        assert "per_content" not in counts
        assert (counts["requests"], counts["unique"], counts["received"]) == (4, 3, 5)
        assert counts["statuses"] == {"200": 4, "400": 1} and counts["faults"] == {}
        full = (await ledger(host, "?full=1"))["per_content"]
        assert sorted(full.values()) == [[1, 56], [1, 58], [2, 116]]
        assert counts["tokens"] == 56 + 58 + 116

    serve(check)


def test_body_over_the_cap_is_a_413_even_when_it_was_small_on_the_wire() -> None:
    async def check(ask: Ask, host: str) -> None:
        for body, headers in (
            (b" " * 200_000, {}),
            (gzip.compress(b" " * 50_000_000), {"Content-Encoding": "gzip"}),
        ):
            status, answer = await ask(body, headers=headers)
            assert (status, answer["code"]) == (413, "BadRequest.TooLarge")
            assert answer["message"] == "Payload Too Large."
        assert (await ask(flat()))[0] == 200

    serve(check, ServerSettings(limits=RequestLimits(max_bytes_per_request=100_000)))


def test_quota_of_the_account_is_answered_with_a_429() -> None:
    quota = QuotaSettings(requests_per_minute=2, retry_after_seconds=7)

    async def check(ask: Ask, host: str) -> None:
        assert [(await ask(flat()))[0] for _ in range(2)] == [200, 200]
        async with (
            aiohttp.ClientSession() as session,
            session.post(host + FLAT, json=flat()) as response,
        ):
            assert response.status == 429 and response.headers["Retry-After"] == "7"
            answer = await response.json()
        assert answer["code"] == "Throttling.RateQuota"
        assert answer["message"] == "Requests rate limit exceeded, please try again later."
        assert (await ledger(host))["requests"] == 2

    # A sliding minute: a fixed one may end between two requests.
    quota = msgspec.structs.replace(quota, windows=("sliding_minute",))
    serve(check, ServerSettings(quota=quota))


def test_health_answers_while_a_request_is_being_scored() -> None:
    scoring, go_on = threading.Event(), threading.Event()

    class Slow:
        def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
            scoring.set()
            assert go_on.wait(5)
            return [0.5] * len(documents)

    async def check(ask: Ask, host: str) -> None:
        waiting = asyncio.create_task(ask(flat()))
        await asyncio.to_thread(scoring.wait, 5)
        async with aiohttp.ClientSession() as session, session.get(f"{host}/health") as response:
            assert await response.json() == {"status": "ok"}
        assert not waiting.done()
        go_on.set()
        assert (await waiting)[0] == 200

    serve(check, scorer=Slow())


def test_a_client_that_leaves_is_billed_all_the_same() -> None:
    scoring, go_on = threading.Event(), threading.Event()

    class Slow:
        def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
            scoring.set()
            assert go_on.wait(5)
            return [0.5] * len(documents)

    async def check(ask: Ask, host: str) -> None:
        first = asyncio.create_task(ask(flat()))
        await asyncio.to_thread(scoring.wait, 5)
        second = asyncio.create_task(ask(flat(query="queued")))
        while (await ledger(host))["received"] < 2:
            await asyncio.sleep(0.01)
        for task in (first, second):
            task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        async with asyncio.timeout(5):
            while (await ledger(host))["requests"] < 2:
                await asyncio.sleep(0.01)
        assert (await ledger(host))["statuses"] == {}

    serve(check, scorer=Slow())


def test_scores_do_not_depend_on_how_requests_interleave() -> None:
    async def check(ask: Ask, host: str) -> None:
        bodies = [flat(query=f"q{n}", documents=[f"d{k}" for k in range(n)]) for n in range(1, 40)]

        async def results(body: Any) -> Any:
            return (await ask(body))[1]["results"]

        alone = [await results(body) for body in bodies]
        assert await asyncio.gather(*map(results, bodies)) == alone

    serve(check)


def test_slow_connections_do_not_hold_anyone_up() -> None:
    async def check(ask: Ask, host: str) -> None:
        port = int(host.rsplit(":", 1)[1])
        head_only = f"POST {FLAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
        slow = []
        for number in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head_only[: 20 + number])
            slow.append(writer)
        start = time.perf_counter()
        for _ in range(20):
            assert (await ask(flat()))[0] == 200
        assert time.perf_counter() - start < 2
        for writer in slow:
            writer.close()

    serve(check)


def test_a_failing_scorer_is_a_500_and_no_text_or_key_is_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
            raise ValueError(f"cannot score {documents}")

    async def check(ask: Ask, host: str) -> None:
        key = {"Authorization": "Bearer sk-canary"}
        status, answer = await ask(flat(documents=["secret text"]), headers=key)
        assert (status, answer["code"]) == (500, "InternalError")
        port = int(host.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nAuthorization: Bearer sk-canary\r\nbad\x00name: 1\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()

    with caplog.at_level(logging.DEBUG):
        serve(check, ServerSettings(api_key="sk-canary"), Failing())
    assert "ValueError in scores" in caplog.text
    said = caplog.text + "".join(capfd.readouterr())
    assert "canary" not in said and "secret" not in said


def test_unknown_paths_are_a_404_in_the_envelope() -> None:
    async def check(ask: Ask, host: str) -> None:
        status, answer = await ask(flat(), "/compatible-mode/v1/reranks")
        assert (status, answer["code"]) == (404, "NotFound")

    serve(check)


def test_a_port_that_is_taken_is_named() -> None:
    async def check(ask: Ask, host: str) -> None:
        port = int(host.rsplit(":", 1)[1])
        with pytest.raises(ConfigInvalid, match=f"port {port}: Address already in use. Choose"):
            async with serving(ServerSettings(), HashScorer(), port):
                pass

    serve(check)


PROGRAM = """
import sys
from batchrank.server.app import ServerSettings, run
from batchrank.server.scorers.hash import HashScorer
run(ServerSettings(), HashScorer, 0, lambda url: print(url, flush=True),
    until_stdin_closes=sys.argv[1] == "child")
"""


@pytest.mark.parametrize("ending", ["stdin", "SIGTERM", "SIGINT"])
def test_the_process_announces_its_url_and_ends_when_told(ending: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "child" if ending == "stdin" else "alone"],
        stdin=subprocess.PIPE if ending == "stdin" else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:") and url.endswith("/compatible-api/v1")
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in idle.recv(1000)
            if process.stdin is not None:
                process.stdin.close()
            else:
                process.send_signal(signal.Signals[ending])
            assert process.wait(5) == 0
        assert process.stdout.read() == process.stderr.read() == ""

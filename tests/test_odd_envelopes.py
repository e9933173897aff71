"""Sound scores are taken from whatever envelope they come in; what is refused is named."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from raw_server import Peer, http, raw_server

from batchrank.sending.http_client import connected
from batchrank.sending.verdicts import Again, Answered, Exchange, Stop, Unanswered, Verdict, judge
from batchrank.wire.replies import BadAnswer, Scores, read, read_refusal

RESULTS = [{"index": 1, "relevance_score": 0.25}, {"index": 0, "relevance_score": 0.75}]
SOUND = [0.75, 0.25]


def body(**more: Any) -> bytes:
    return json.dumps({"results": RESULTS, **more}).encode()


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"id": 42}, None),
        ({"id": 4.5, "request_id": ["a"]}, None),
        ({"id": {"a": 1}}, None),
        ({"usage": {"total_tokens": 12}}, 12),
        ({"usage": {"total_tokens": "12"}}, 12),
        ({"usage": {"total_tokens": "12.0"}}, 12),
        ({"usage": {"total_tokens": 12.5}}, 13),
        ({"usage": {"total_tokens": None, "prompt_tokens": "7"}}, 7),
        ({"usage": [{"total_tokens": 12}]}, 12),
        ({"usage": []}, None),
        ({"usage": "12"}, 12),
        ({"usage": 12.0}, 12),
        ({"usage": "many"}, None),
        ({"usage": True}, -1),
        ({"usage": {"total_tokens": -3.5}}, -1),
        ({"usage": {"total_tokens": {"read": 12}}}, None),
        ({"usage": "9" * 5000}, 10**18),
        ({"meta": "v1"}, None),
        ({"meta": {"billed_units": "two"}}, None),
        ({"meta": {"billed_units": {"total_tokens": "9"}}}, 9),
        ({"meta": {"tokens": {"input_tokens": 8.0}}}, 8),
        ({"tokens": "8"}, 8),
        ({"message": ["fine"], "code": [0], "error": False}, None),
        ({"code": 0, "message": "success"}, None),
        ({"code": 200, "message": "OK"}, None),
        ({"code": 200.5, "error": []}, None),
        ({"data": "none", "output": 7}, None),
        ({"data": {"a": 1}}, None),
        ({"output": {"text": "x"}}, None),
    ],
)
def test_what_is_odd_beside_the_scores_does_not_matter(
    more: dict[str, Any], tokens: int | None
) -> None:
    found = read(body(**more), 2)
    assert isinstance(found, Scores)
    assert (found.relevance_scores, found.tokens) == (SOUND, tokens)


@pytest.mark.parametrize("form", ["output", "data", "named", "bare"])
@pytest.mark.parametrize("lead", [b"\xef\xbb\xbf", b"\n  ", b"\xef\xbb\xbf \r\n", b""])
def test_any_form_of_results_may_have_one(form: str, lead: bytes) -> None:
    named = [{"index": one["index"], "score": one["relevance_score"]} for one in RESULTS]
    content: Any = {
        "output": {"id": 1, "output": {"results": RESULTS}, "data": "x"},
        "data": {"id": 1, "data": RESULTS, "output": "x"},
        "named": {"id": 1, "results": named},
        "bare": named,
    }[form]
    found = read(lead + json.dumps(content).encode(), 2)
    assert isinstance(found, Scores) and found.relevance_scores == SOUND


def test_the_number_of_an_answer_is_kept_as_its_name() -> None:
    found = read(body(id=42), 2)
    assert isinstance(found, Scores) and found.request_id == "42"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"id": 1, "results": [{"index": 0, "relevance_score": "0.5"}]}, "relevance_score"),
        ({"id": 1, "results": [{"index": 0, "score": "0.5"}]}, "score"),
        ({"id": 1, "results": [{"index": "0", "relevance_score": 0.5}]}, "index"),
        ({"id": 1, "results": [{"relevance_score": 0.5}]}, "index"),
        ({"id": 1, "results": "none"}, "results"),
        ({"id": 1, "results": {"0": 0.5}}, "results"),
    ],
)
def test_a_fault_of_the_scores_is_named_whatever_else_is_odd(content: Any, field: str) -> None:
    with pytest.raises(BadAnswer, match=rf"\W{field}\W"):
        read(json.dumps(content).encode(), 1)


def test_an_error_is_read_from_an_odd_envelope() -> None:
    said = {"id": 7, "code": "Arrearage", "message": ["overdue", "bill"], "error": True}
    refusal = read_refusal(b"\xef\xbb\xbf" + json.dumps(said).encode())
    assert (refusal.code, refusal.message) == ("Arrearage", "overdue bill")
    refusal = read_refusal(
        json.dumps({"error": {"code": 1.5, "message": {"detail": "x"}}}).encode()
    )
    assert (refusal.code, refusal.message) == ("1.5", "x")
    assert read_refusal(b'{"detail": [{"msg": 7}, "too long"]}').message == "7 too long"


# Packed bodies and large ones


def exchanged(
    answer: Callable[[bytes], bytes], request: bytes = b"{}", documents: int = 2
) -> Exchange:
    """What the transport makes of an answer to a request."""

    async def serve(peer: Peer) -> None:
        _, sent = await peer.read_request()
        peer.say(answer(sent))
        await peer.writer.drain()

    async def run() -> Exchange:
        async with (
            raw_server(serve) as server,
            connected(server.url, {}, timeout_seconds=10, max_in_flight=1) as transport,
        ):
            return await transport.exchange(request, documents)

    return asyncio.run(run())


def raw_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def halves(content: bytes) -> bytes:
    return gzip.compress(content[:20]) + gzip.compress(content[20:])


@pytest.mark.parametrize(
    ("pack", "encoding"),
    [
        (gzip.compress, "gzip"),
        (gzip.compress, "X-GZip"),
        (gzip.compress, ""),
        (halves, "gzip"),
        (zlib.compress, "deflate"),
        (raw_deflate, "deflate"),
        (bytes, "gzip"),
        (bytes, "br"),
        (bytes, "identity"),
    ],
)
def test_a_body_that_nobody_asked_to_be_packed_is_unpacked(
    pack: Callable[[bytes], bytes], encoding: str
) -> None:
    headers = [f"Content-Encoding: {encoding}"] if encoding else []
    found = exchanged(lambda _: http(pack(body()), 200, *headers))
    assert isinstance(found, Answered) and found.body == body()
    assert isinstance(judge(found, 2), Scores)


def test_an_error_is_unpacked_as_well() -> None:
    said = gzip.compress(b'{"code": "Arrearage"}')
    found = exchanged(lambda _: http(said, 400, "Content-Encoding: gzip"))
    assert isinstance(judge(found, 2), Stop)


@pytest.mark.parametrize(
    "content",
    [b"\x0b\x02\x80\x00\x03", gzip.compress(body(), mtime=0)[:-9]],
    ids=["other", "cut off"],
)
def test_what_cannot_be_unpacked_is_named(content: bytes) -> None:
    found = exchanged(lambda _: http(content, 200, "Content-Encoding: \x1b[31mzstd"))
    verdict: Verdict = judge(found, 2)
    assert isinstance(verdict, Again) and verdict.broken
    assert r"Content-Encoding \x1b[31mzstd, though identity was asked for" in verdict.reason


@pytest.mark.parametrize("members", [1, 40])
def test_a_bomb_is_not_unpacked(members: int) -> None:
    bomb = gzip.compress(b" " * (400_000_000 // members)) * members
    found = exchanged(lambda _: http(bomb, 200, "Content-Encoding: gzip"))
    assert isinstance(found, Unanswered) and "is larger than" in found.reason


def test_an_answer_may_echo_what_was_sent_with_every_sign_escaped() -> None:
    request = json.dumps({"documents": ["<" * 6000] * 100}).encode()

    def echo(sent: bytes) -> bytes:
        escaped = json.loads(sent)["documents"][0].replace("<", r"\u003c")
        one = '{"index": %d, "relevance_score": 0.5, "document": {"text": "%s"}}'
        results = ", ".join(one % (place, escaped) for place in range(100))
        return http(f'{{"results": [{results}]}}'.encode())

    found = exchanged(echo, request, 100)
    assert isinstance(judge(found, 100), Scores)


def test_an_answer_larger_than_any_echo_is_not_read() -> None:
    found = exchanged(lambda _: http(b" " * 2_000_000), b"x" * 100_000)
    assert isinstance(found, Unanswered)
    assert found.reason == "the answer is larger than 863,168 bytes"

"""Every kind of fault does what it says, as often as its script says, and is billed as it says."""

import asyncio
import json
import math
import time
import zlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrank.errors import ConfigInvalid, InputMissing
from batchrank.server.app import ServerSettings, serving
from batchrank.server.faults.replies import DAMAGES
from batchrank.server.faults.script import KINDS, FaultScript, Seen, choose, read_script
from batchrank.server.scorers.hash import HashScorer

DOCUMENTS = ["a", "b", "c", "d", "e", "f"]
FLAT = "/compatible-api/v1/reranks"
NATIVE = "/api/v1/services/rerank/text-rerank/text-rerank"


class Reply(msgspec.Struct):
    """What a client read until the connection ended: `reset` tells RST from FIN."""

    raw: bytes
    reset: bool

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.split(b"\r\n\r\n", 1)[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    @property
    def body(self) -> bytes:
        return self.raw.split(b"\r\n\r\n", 1)[1]


Send = Callable[..., Awaitable[Reply]]


def with_faults(script: str, check: Callable[[Send, str], Awaitable[None]]) -> Any:
    """Run `check(send, host)` against a server with this script; the ledger it ends with."""
    faults = msgspec.toml.decode(script, type=FaultScript)

    async def main() -> Any:
        async with serving(ServerSettings(faults=faults), HashScorer()) as host:
            port = int(host.rsplit(":", 1)[1])

            async def send(
                documents: list[str] = DOCUMENTS, path: str = FLAT, query: str = "q"
            ) -> Reply:
                ask: dict[str, Any] = {"query": query, "documents": documents}
                if path == NATIVE:
                    ask = {"input": ask, "parameters": {}}
                body = json.dumps({"model": "qwen3-rerank", **ask}).encode()
                return await exchange(port, path, body)

            await check(send, host)
            return json.loads((await exchange(port, "/ledger", None)).body)

    return asyncio.run(main())


async def exchange(port: int, path: str, body: bytes | None) -> Reply:
    """One request on a raw socket of its own, read to whatever end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method = "GET" if body is None else "POST"
    length = len(body or b"")
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}"
    raw, reset = b"", False
    try:
        writer.write(head.encode() + b"\r\n\r\n" + (body or b""))
        while chunk := await reader.read(65_536):
            raw += chunk
    except ConnectionResetError:
        reset = True
    finally:
        writer.close()
    return Reply(raw, reset)


def one(script: str, **request: Any) -> tuple[Reply, Any]:
    """The reply to a single request under a script, and the ledger after it."""
    replies = []

    async def check(send: Send, host: str) -> None:
        replies.append(await send(**request))

    counts = with_faults(script, check)
    return replies[0], counts


def fault(kind: str, keys: str = "") -> str:
    return f'[[fault]]\nkind = "{kind}"\n{keys}\n'


STATUSES = [
    (429, "Throttling", "Requests throttling triggered."),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later."),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota"),
    (429, "Throttling.BurstRate", "Request rate increased too quickly."),
    (429, "insufficient_quota", "You exceeded your current quota, please check your plan"),
    (403, "AccessDenied", "Access denied."),
    (400, "Arrearage", "Access denied, please make sure your account is in good standing."),
    (500, "InternalError", "An internal error has occured"),
    (503, "ModelServingError", "Too many requests."),
    (200, "InternalError.Algo", "InternalError.Algo"),
]


@pytest.mark.parametrize(("status", "code", "message"), STATUSES)
def test_status_answers_with_code_and_message(status: int, code: str, message: str) -> None:
    reply, counts = one(fault("status", f'status = {status}\ncode = "{code}"'))
    answer = json.loads(reply.body)
    assert (reply.status, answer["code"]) == (status, code)
    assert answer["message"].startswith(message) and "results" not in answer
    assert (counts["faults"], counts["requests"]) == ({"status": 1}, 0)
    assert counts["statuses"] == {str(status): 1}


def test_status_can_be_nested_worded_and_billed() -> None:
    keys = 'status = 500\ncode = "X"\nmessage = "m"\nnested = true\nscored = true'
    reply, counts = one(fault("status", keys))
    assert json.loads(reply.body)["error"] == {
        "code": "X",
        "param": None,
        "message": "m",
        "type": "X",
    }
    assert counts["requests"] == 1


@pytest.mark.parametrize(
    ("value", "header"), [("2", "2"), ("1.5", "1.5"), ('"soon, maybe"', "soon, maybe")]
)
def test_retry_after_is_sent_as_given(value: str, header: str) -> None:
    reply, _ = one(fault("status", f"status = 429\nretry_after = {value}"))
    assert reply.headers["retry-after"] == header


def test_retry_after_can_be_a_date() -> None:
    reply, _ = one(fault("status", "status = 503\nretry_after_date = 90"))
    date = parsedate_to_datetime(reply.headers["retry-after"])
    assert 85 < (date - datetime.now(UTC)).total_seconds() <= 90


def test_content_refusal_is_for_the_marker_and_may_name_the_document() -> None:
    for keys, said in (("", False), ("names_document = true\n", True)):
        script = fault("content_refusal", keys + 'where = { marker = "poison" }')
        reply, counts = one(script, documents=["a", "b", "some poison here"])
        answer = json.loads(reply.body)
        assert (reply.status, answer["code"]) == (400, "DataInspectionFailed")
        assert ("document index:2" in answer["message"]) is said
        assert counts["requests"] == 0
        reply, counts = one(script)
        assert (reply.status, counts["faults"]) == (200, {})


@pytest.mark.parametrize(
    ("keys", "status", "code"),
    [
        ("where = { documents_over = 5 }", 413, "BadRequest.TooLarge"),
        ("where = { bytes_over = 50 }\nstatus = 400", 400, "InvalidParameter"),
        ("where = { documents_over = 5 }\nstatus = 400", 400, "InvalidParameter"),
    ],
)
def test_size_refusal_is_for_requests_over_a_size(keys: str, status: int, code: str) -> None:
    reply, _ = one(fault("size_refusal", keys))
    answer = json.loads(reply.body)
    assert (reply.status, answer["code"]) == (status, code)
    assert status == 413 or "larger than" in answer["message"]
    if "documents" in keys:
        assert one(fault("size_refusal", keys), documents=DOCUMENTS[:5])[0].status == 200


def test_html_comes_with_either_status() -> None:
    for keys, status in (("", 502), ("status = 200", 200)):
        reply, counts = one(fault("html", keys))
        assert reply.status == status and reply.headers["content-type"].startswith("text/html")
        assert b"<html>" in reply.body and counts["requests"] == 0


def test_redirect_points_elsewhere() -> None:
    reply, _ = one(fault("redirect", 'location = "http://127.0.0.1:9/other"'))
    assert (reply.status, reply.headers["location"]) == (307, "http://127.0.0.1:9/other")


@pytest.mark.parametrize("abrupt", [True, False])
@pytest.mark.parametrize(
    ("kind", "scored"),
    [("reset_before_headers", 0), ("reset_inside_headers", 1), ("reset_inside_body", 1)],
)
def test_resets_end_the_connection_where_they_say(kind: str, scored: int, abrupt: bool) -> None:
    reply, counts = one(fault(kind, f"abrupt = {str(abrupt).lower()}"))
    assert reply.reset is abrupt
    if kind == "reset_before_headers":
        assert reply.raw == b""
    elif kind == "reset_inside_headers":
        assert reply.raw.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" not in reply.raw
    else:
        assert 0 < len(reply.body) < int(reply.headers["content-length"])
    assert (counts["requests"], counts["statuses"]) == (scored, {})
    assert counts["faults"] == {kind: 1}


def test_reset_unread_comes_before_the_body_and_is_never_billed() -> None:
    reply, counts = one(fault("reset_unread"), documents=["word " * 2_000_000])
    assert reply.raw == b"" and reply.reset
    assert (counts["requests"], counts["received"], counts["faults"]) == (0, 1, {"reset_unread": 1})


def test_stall_never_answers_and_ends_with_the_client() -> None:
    async def check(send: Send, host: str) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await send()

    start = time.perf_counter()
    counts = with_faults(fault("stall", "where = { first = 1 }\nscored = true"), check)
    assert (counts["faults"], counts["requests"], counts["statuses"]) == ({"stall": 1}, 1, {})
    assert time.perf_counter() - start < 1.5


def test_slow_is_right_but_late() -> None:
    start = time.perf_counter()
    reply, counts = one(fault("slow", "seconds = 0.3"))
    assert time.perf_counter() - start >= 0.3
    assert len(json.loads(reply.body)["results"]) == len(DOCUMENTS) and counts["requests"] == 1


def test_drip_sends_a_byte_at_a_time() -> None:
    start = time.perf_counter()
    reply, _ = one(fault("drip", "bytes_per_second = 500"), documents=["a"])
    assert json.loads(reply.body)["results"][0]["index"] == 0
    assert time.perf_counter() - start >= len(reply.body) / 500


def test_gzip_bomb_is_small_on_the_wire_and_large_after() -> None:
    reply, counts = one(fault("gzip_bomb", "megabytes = 20"))
    assert reply.headers["content-encoding"] == "gzip" and len(reply.raw) < 30_000
    text = zlib.decompress(reply.body, 31)
    assert len(text) > 20 * 2**20 and len(json.loads(text)["results"]) == len(DOCUMENTS)
    assert counts["requests"] == 1


def test_truncated_body_and_bad_json_keep_an_honest_length() -> None:
    for kind in ("truncated_body", "bad_json"):
        reply, counts = one(fault(kind))
        assert len(reply.body) == int(reply.headers["content-length"]) and counts["requests"] == 1
        with pytest.raises(json.JSONDecodeError):
            json.loads(reply.body)


@pytest.mark.parametrize("path", [FLAT, NATIVE])
@pytest.mark.parametrize("kind", DAMAGES)
def test_results_are_wrong_in_just_the_way_that_is_asked_for(kind: str, path: str) -> None:
    replies = []

    async def check(send: Send, host: str) -> None:
        replies.extend([await send(path=path), await send(path=path)])

    counts = with_faults(fault(kind, "where = { to = 1 }"), check)
    assert (counts["requests"], counts["faults"]) == (2, {kind: 1})
    wrong, right = (
        answer.get("results") or answer["output"]["results"]
        for answer in (json.loads(reply.body) for reply in replies)
    )
    indices = [result["index"] for result in wrong]
    scores = [result["relevance_score"] for result in wrong]
    odd = [score for score in scores if not isinstance(score, float) or not math.isfinite(score)]
    n = len(DOCUMENTS)
    assert sorted(result["index"] for result in right) == list(range(n))
    match kind:
        case "shuffled":
            assert wrong != right and sorted(map(str, wrong)) == sorted(map(str, right))
        case "partial":
            assert wrong == right[: n - 2]
        case "duplicate_index":
            assert len(wrong) == n and len(set(indices)) == n - 1
        case "index_out_of_range":
            assert max(indices) == n and len(wrong) == n
        case "negative_index":
            assert min(indices) == -1 and len(wrong) == n
        case "nan_score":
            assert len(odd) == 1 and math.isnan(odd[0])
        case "infinite_score":
            assert odd == [math.inf]
        case "null_score":
            assert odd == [None]
        case "string_score":
            assert odd == ["0.5"]
        case "extra_results":
            assert wrong[:n] == right and len(wrong) == n + 1


def test_damage_also_fits_a_single_document() -> None:
    for kind in DAMAGES:
        reply, counts = one(fault(kind), documents=["a"])
        assert reply.status == 200 and counts["faults"] == {kind: 1}


def test_every_kind_is_tried_by_this_file() -> None:
    text = Path(__file__).read_text()
    assert [kind for kind in KINDS if kind not in DAMAGES and f'"{kind}"' not in text] == []


def scripted(where: str, seed: int = 7) -> FaultScript:
    script = f'seed = {seed}\n[[fault]]\nkind = "status"\nstatus = 500\nwhere = {{ {where} }}'
    return msgspec.toml.decode(script, type=FaultScript)


def hits(script: FaultScript, attempts: int = 1, contents: int = 30) -> list[tuple[int, int]]:
    """(content, attempt) of the requests that fail, each content sent so often, one by one."""
    failed = []
    ordinal = 0
    for attempt in range(1, attempts + 1):
        for content in range(contents):
            ordinal += 1
            seen = Seen(ordinal=ordinal, content=b"%d" % content, attempt=attempt)
            if choose(script, seen):
                failed.append((content, attempt))
    return failed


def test_where_conditions() -> None:
    assert hits(scripted("every = 10")) == [(9, 1), (19, 1), (29, 1)]
    assert hits(scripted("from = 3, to = 5")) == [(2, 1), (3, 1), (4, 1)]
    assert hits(scripted("from = 3, every = 2, to = 6")) == [(3, 1), (5, 1)]
    assert hits(scripted("first = 2"), attempts=4, contents=1) == [(0, 1), (0, 2)]
    assert len(hits(scripted("probability = 1"))) == 30
    assert hits(scripted("probability = 0")) == []


def test_probabilities_repeat_with_the_seed_and_not_with_the_order() -> None:
    script = scripted("probability = 0.3")
    drawn = hits(script, attempts=50)
    assert 0.25 < len(drawn) / 1500 < 0.35
    assert drawn == hits(script, attempts=50)
    assert drawn != hits(scripted("probability = 0.3", seed=8), attempts=50)
    seen = Seen(ordinal=999_999, content=b"0", attempt=drawn[0][1])
    assert (choose(script, seen) is not None) == ((0, seen.attempt) in drawn)


def test_the_first_fault_that_applies_wins() -> None:
    script = fault("status", "status = 503\nwhere = { to = 1 }") + fault("status", "status = 500")

    async def check(send: Send, host: str) -> None:
        assert [(await send()).status for _ in range(3)] == [503, 500, 500]

    assert with_faults(script, check)["faults"] == {"status": 3}


def test_attempts_are_counted_per_content() -> None:
    async def check(send: Send, host: str) -> None:
        statuses = [(await send(query=query)).status for query in "abab"]
        assert statuses == [503, 503, 200, 200]

    counts = with_faults(fault("status", "status = 503\nwhere = { first = 1 }"), check)
    assert (counts["requests"], counts["unique"], counts["received"]) == (2, 2, 4)


MISTAKES = [
    ('kind = "shufled"', r'unknown kind "shufled". Did you mean shuffled\? - at `\$.fault\[0\]`'),
    ('kind = "status"', "needs a status from 200 to 599"),
    ('kind = "status"\nstatus = 500\nseconds = 1', 'kind "status" has no key seconds'),
    ('kind = "shuffled"\nscored = false', 'kind "shuffled" is always scored'),
    ('kind = "reset_unread"\nscored = true', 'kind "reset_unread" is never scored'),
    ('kind = "reset_unread"\nwhere = { marker = "x" }', "needs a where without"),
    ('kind = "content_refusal"', "needs where.marker"),
    ('kind = "size_refusal"', "needs where.documents_over or where.bytes_over"),
    ('kind = "redirect"', "needs a location"),
    ('kind = "slow"', "needs seconds"),
    ('kind = "stall"\nwhere = { probability = 2 }', "probability is from 0 to 1"),
    ('kind = "stall"\nwhere = { every = 0 }', "every is 1 or more"),
    ('kind = "stall"\nwhen = "now"', "unknown field `when`"),
    ("kind = ", "Invalid value"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_script_with_a_mistake_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(f"[[fault]]\n{text}\n")
    with pytest.raises(ConfigInvalid, match=message) as refused:
        read_script(path)
    assert str(refused.value).startswith(str(path))


def test_a_script_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    with pytest.raises(InputMissing, match="no such fault script"):
        read_script(path)
    path.write_text("seed = 3\n" + fault("slow", "seconds = 1\nwhere = { every = 4 }"))
    script = read_script(path)
    assert (script.seed, len(script.faults), script.faults[0].where.every) == (3, 1, 4)

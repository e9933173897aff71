"""An endpoint in place of the socket: it scores, breaks as its weather has it, and keeps a ledger.

What a text or a request's size meets is the endpoint's nature and the same in every session; the
weather is a session's own. All choices follow from a seed and from what is asked, not from when.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from batchrank.config.limits import weight
from batchrank.config.pricing import ceiling
from batchrank.planning.tokens import count
from batchrank.sending.verdicts import Answered, Exchange, Unanswered
from batchrank.server.quotas import Quota, sliding_minute

Content = tuple[str, tuple[str, ...]]
"""A request's query and its documents."""

POISON, CURSE = "poison", "curse"
MOST_FAULTS = 3
"""That one content meets in a session: fewer than the program has patience for."""

BROKEN: dict[str, Callable[[list[Any]], Any]] = {
    "partial": lambda results: results[:-1],
    "twice": lambda results: [*results, results[0]],
    "out of range": lambda results: [*results[:-1], {**results[-1], "index": len(results)}],
    "null": lambda results: [*results[:-1], {**results[-1], "relevance_score": None}],
    "string": lambda results: [*results[:-1], {**results[-1], "relevance_score": "0.5"}],
    "no list": lambda results: "none",
}
FAULTS = ["throttled", "pause", "gateway", "internal", "lost", "refused", *BROKEN]


class Weather(NamedTuple):
    """What a session meets: some kinds of fault and how often; after how many requests the account
    ends, or nothing is served any more (0: never).
    """

    faults: Sequence[str] = ()
    share: float = 0.0
    seed: int = 0
    account_ends: int = 0
    outage: int = 0


class Delivered(NamedTuple):
    """A whole answer that reached the program, and when."""

    content: Content
    instant: float


class Endpoint:
    """Scores by hash. `most_documents` of a request; `curse`: refuses queries with that word."""

    def __init__(self, most_documents: int = 500, *, names: bool = False) -> None:
        self.most_documents = most_documents
        self.names = names
        self.curse = False
        self.weather = Weather()
        self.step: Callable[[], None] = lambda: None
        self.billed = self.received = 0
        self.asked: list[Content] = []
        self.delivered: list[Delivered] = []
        self.met: Counter[str] = Counter()
        self.quota: Quota | None = None
        self._faults: Counter[Content] = Counter()

    def begin(self, weather: Weather, step: Callable[[], None], rpm: float) -> None:
        """A session begins, in this weather. Its own counts are at 0, the ledger is not."""
        self.weather, self.step = weather, step
        self.asked, self.delivered = [], []
        self.met, self._faults = Counter(), Counter()
        self.quota = Quota(sliding_minute(rpm)) if rpm else None

    @asynccontextmanager
    async def connect(self, *_: object, **__: object) -> AsyncIterator[Any]:
        """What `transport.connected` is in earnest."""
        yield self

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        """What the transport's is."""
        ask = json.loads(body)
        content = (ask["query"], tuple(ask["documents"]))
        assert documents == len(content[1])
        self.received += 1
        self.asked.append(content)
        now = asyncio.get_running_loop().time()
        if self.quota is not None:
            assert self.quota.admit(now, 1) is None, "more requests a minute than are allowed"
        self.step()
        answer = self._answer(content)
        random = Random(f"{self.weather.seed}:{content}:{self.asked.count(content)}")
        await asyncio.sleep(random.choice([0.0, 0.01, 0.1, 0.8]))
        self.step()
        if isinstance(answer, Answered) and answer.status == 200 and not self._is_broken(answer):
            self.delivered.append(Delivered(content, asyncio.get_running_loop().time()))
        return answer

    def _answer(self, content: Content) -> Exchange:
        query, documents = content
        weather, nth = self.weather, len(self.asked)
        if weather.account_ends and nth >= weather.account_ends:
            return self._refusal("the account ends", 403, "AccessDenied.Unpurchased")
        if weather.outage and nth >= weather.outage:
            return self._refusal("an outage", 503, "ModelUnavailable")
        random = Random(f"{weather.seed}:{content}:{self._faults[content]}")
        if random.random() < weather.share and self._faults[content] < MOST_FAULTS:
            self._faults[content] += 1
            return self._fault(random.choice(weather.faults), content, random)
        if len(documents) > self.most_documents:
            return self._refusal("too large", 413, "RequestTooLarge")
        if self.curse and CURSE in query:
            return self._refusal("a curse", 422, "Unprocessable")
        poisoned = [place for place, text in enumerate(documents) if POISON in text]
        if poisoned:
            named = f"document index:{poisoned[0]} is refused" if self.names else ""
            return self._refusal("poison", 400, "DataInspectionFailed", named)
        return Answered(200, self._scored(content))

    def _fault(self, kind: str, content: Content, random: Random) -> Exchange:
        self.met[kind] += 1
        if kind == "throttled":
            return _refused(429, "Throttling.RateQuota")
        if kind == "pause":
            return _refused(429, "Throttling.RateQuota", after=str(random.choice([0, 2, 30])))
        if kind == "refused":
            return Unanswered("the connection was refused", sent=False)
        body = self._scored(content) if random.random() < 0.7 else b""
        if kind == "lost":
            return Unanswered("the connection broke", sent=True)
        if kind in ("gateway", "internal"):
            return _refused(502 if kind == "gateway" else 500, "InternalError")
        answer = json.loads(body or self._scored(content))
        return Answered(200, json.dumps({"results": BROKEN[kind](answer["results"])}).encode())

    def _refusal(self, what: str, status: int, code: str, message: str = "") -> Answered:
        self.met[what] += 1
        return _refused(status, code, message)

    def _scored(self, content: Content) -> bytes:
        """A whole answer, which is billed, in an order of its own, at the dearest that is known."""
        query, documents = content
        asked = count(query)
        tokens = weight(asked, sum(map(count, documents)), len(documents))
        bill = ceiling(tokens, len(documents))
        self.billed += bill
        results = [
            {"index": index, "relevance_score": score(query, text)}
            for index, text in enumerate(documents)
        ]
        results.sort(key=lambda one: one["relevance_score"], reverse=True)
        return json.dumps({"results": results, "usage": {"total_tokens": bill}}).encode()

    def _is_broken(self, answer: Answered) -> bool:
        return b"usage" not in answer.body


def _refused(status: int, code: str, message: str = "", after: str | None = None) -> Answered:
    return Answered(status, json.dumps({"code": code, "message": message}).encode(), after)


def score(query: str, text: str) -> float:
    """The score of a text for a query, of which nothing else has a part."""
    digest = hashlib.sha256(f"{query}\0{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

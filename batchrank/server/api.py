"""One account's rerank API: each request from the door to its answer, whatever the process.

Scoring happens in one thread: GET /health and slow peers never wait for it, and scores cannot
depend on how requests interleave. What is scored is billed in the same call, whoever has left
meanwhile. Nothing is logged about a request but the kind and place of a failure: no text, no key.
"""

import asyncio
import logging
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from batchrank.server.errors import Refused, invalid_request, invalid_value
from batchrank.server.faults.connections import JSON, break_answer
from batchrank.server.faults.script import Fault, Seen, chance, choose
from batchrank.server.http_server import bears
from batchrank.server.ledger import Ledger, content_digest
from batchrank.server.openapi import document
from batchrank.server.requests import check_ask, read_ask
from batchrank.server.routes import COMPATIBLE, ROUTES, TEI, Voice, told_apart
from batchrank.server.settings import DEFAULT_INSTRUCT, ServerSettings
from batchrank.server.token_counts import Weighed, Weigher
from batchrank.wire import Ask, Ranked

if TYPE_CHECKING:
    from batchrank.server.scorers.embedded import Scorer

VOICE = web.RequestKey("voice", Voice)
# Counting 64 KiB takes less time than a trip to another thread and back.
WEIGH_INLINE_BYTES = 65_536
# A body that breaks HTTP itself, or its own encoding: where the next request starts is unknown.
_UNREADABLE = (web.RequestPayloadError, HttpProcessingError)

_log = logging.getLogger(__name__)


class RerankApi:
    """One account's API: its quota, its ledger and its faults."""

    def __init__(self, settings: ServerSettings, scorer: "Scorer") -> None:
        self.ledger = Ledger()
        self._settings = settings
        self._scorer = scorer
        self._weigher = Weigher(settings.limits.max_tokens_per_document)
        self._quota = None if settings.quota is None else settings.quota.quota()
        self._attempts: Counter[bytes] = Counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")

    def application(self) -> web.Application:
        """The routes, as aiohttp serves them."""
        app = web.Application(client_max_size=self._settings.limits.max_bytes_per_request)
        for path in ROUTES:
            app.router.add_post(path, self._exchange)
        app.router.add_get("/health", self._health)
        app.router.add_get("/openapi.json", self._describe)
        app.router.add_get("/ledger", self._show_ledger)
        app.router.add_route("*", "/{rest:.*}", self._nowhere)
        return app

    def close(self) -> None:
        """Forget what is still queued and end the scoring thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(body=b'{"status":"ok"}', content_type=JSON)

    async def _describe(self, request: web.Request) -> web.Response:
        return web.Response(body=document(self._settings), content_type=JSON)

    async def _show_ledger(self, request: web.Request) -> web.Response:
        full = request.query.get("full") == "1"
        return web.Response(body=self.ledger.as_json(full=full), content_type=JSON)

    async def _nowhere(self, request: web.Request) -> web.Response:
        return _error(Refused(404, "NotFound"), COMPATIBLE, str(uuid4()), nested=False)

    async def _exchange(self, request: web.Request) -> web.StreamResponse:
        request_id = str(uuid4())
        voice = ROUTES[request.path]
        try:
            response = await self._answer(request, voice, request_id)
        except ConnectionError:
            response = None
        except Exception as error:
            nested = self._settings.nested_errors and voice is COMPATIBLE
            voice = request.get(VOICE, voice)
            response = _error(_refused(error), voice, request_id, nested=nested)
            if isinstance(error, _UNREADABLE):
                response.force_close()
        if response is None:
            return web.Response()  # the connection is gone; aiohttp only wants something to drop
        if not response.prepared:
            response.headers["x-request-id"] = request_id
        self.ledger.statuses[response.status] += 1
        return response

    async def _answer(
        self, request: web.Request, voice: Voice, request_id: str
    ) -> web.StreamResponse | None:
        """One request from the door to its answer, in the order that a gateway works."""
        ordinal = self.ledger.arrive()
        at_door = Seen(ordinal=ordinal)
        if fault := self._fault(at_door, at_door=True):
            return await self._broken(request, fault, at_door, None)
        self._authorise(request)
        body = await request.read()
        request[VOICE] = voice = told_apart(voice, body)
        ask, voice = read_ask(body, voice)
        check_ask(ask, voice, self._settings.models, self._settings.limits.max_documents)
        content = content_digest(ask)
        seen = self._seen(ordinal, content, ask, len(body))
        fault = self._fault(seen)
        if fault is not None and not fault.is_scored:
            return await self._broken(request, fault, seen, None)
        weighed = await self._admitted(ask, len(body))
        # Shielded: a client that leaves does not unscore what was taken in.
        answer, tokens = await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(
                self._thread, self._scored, ask, weighed, voice, content, request_id
            )
        )
        if fault is not None:
            return await self._broken(request, fault, seen, answer)
        told = {"x-compute-tokens": str(tokens)} if voice is TEI else None
        return web.Response(body=answer, content_type=JSON, headers=told)

    def _authorise(self, request: web.Request) -> None:
        key = self._settings.api_key
        if key is not None and not bears(request, key):
            raise Refused(401, "InvalidApiKey")

    def _seen(self, ordinal: int, content: bytes, ask: Ask, body_bytes: int) -> Seen:
        if self._settings.faults is not None:
            self._attempts[content] += 1
        return Seen(
            ordinal=ordinal,
            content=content,
            attempt=self._attempts[content],
            query=ask.query,
            documents=ask.documents,
            body_bytes=body_bytes,
        )

    def _fault(self, seen: Seen, *, at_door: bool = False) -> Fault | None:
        script = self._settings.faults
        return None if script is None else choose(script, seen, at_door=at_door)

    async def _broken(
        self, request: web.Request, fault: Fault, seen: Seen, answer: bytes | None
    ) -> web.StreamResponse | None:
        assert self._settings.faults is not None
        self.ledger.faults[fault.kind] += 1
        random = chance(self._settings.faults, len(self._settings.faults.faults), seen)
        return await break_answer(request, fault, seen, answer, random)

    async def _admitted(self, ask: Ask, body_bytes: int) -> Weighed:
        """The request weighed and let in, or refused for its own size or the account's quota."""
        if body_bytes <= WEIGH_INLINE_BYTES:
            weighed = self._weigher.weigh(ask.query, ask.documents)
        else:
            weighed = await asyncio.to_thread(self._weigher.weigh, ask.query, ask.documents)
        limit = self._settings.limits.max_tokens_per_request
        if weighed.tokens > limit:
            raise invalid_value(
                f"total tokens of the request is {weighed.tokens}, it should not be larger than "
                f"{limit}.",
                "input.documents",
            )
        if self._quota is not None and self._settings.quota is not None:
            now = asyncio.get_running_loop().time()
            code = self._quota.admit(now, self._billed(weighed))
            if code is not None:
                after = self._settings.quota.retry_after_seconds
                raise Refused(429, code, retry_after=None if after is None else str(after))
        return weighed

    def _billed(self, weighed: Weighed) -> int:
        per_document = self._settings.tokens_per_document * len(weighed.documents)
        return weighed.tokens + self._settings.tokens_per_request + per_document

    def _scored(
        self, ask: Ask, weighed: Weighed, voice: Voice, content: bytes, request_id: str
    ) -> tuple[bytes, int]:
        """Score, bill and write the answer, in the scoring thread; with it, the tokens billed."""
        instruct = ask.instruct or DEFAULT_INSTRUCT
        scores = self._scorer.scores(weighed.query, weighed.documents, instruct)
        tokens = self._billed(weighed)
        self.ledger.bill(content, tokens)
        return voice.dialect.answer(ask, _ranking(ask, scores), tokens, request_id), tokens


def _ranking(ask: Ask, scores: list[float]) -> list[Ranked]:
    """Best first and cut to `top_n`; a sort in reverse keeps the order of equals, by index."""
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: ask.top_n]
    if not ask.return_documents:
        return [Ranked(index, scores[index]) for index in order]
    return [Ranked(index, scores[index], {"text": ask.documents[index]}) for index in order]


def _refused(error: Exception) -> Refused:
    """What a failed request is answered. A bug, ours or the scorer's, leaves its kind in the log:
    its words might quote a text.
    """
    match error:
        case Refused():
            return error
        case web.HTTPRequestEntityTooLarge():
            return Refused(413, "BadRequest.TooLarge")
        case _ if isinstance(error, _UNREADABLE):
            return invalid_request("The body cannot be read.")
    place = traceback.extract_tb(error.__traceback__)[-1]
    _log.error("%s in %s, line %s", type(error).__name__, place.name, place.lineno)
    return Refused(500, "InternalError")


def _error(refused: Refused, voice: Voice, request_id: str, *, nested: bool) -> web.Response:
    response = web.Response(
        status=refused.status,
        body=voice.error(refused, request_id, nested=nested),
        content_type=JSON,
    )
    if refused.retry_after is not None:
        response.headers["Retry-After"] = refused.retry_after
    return response

"""The loop of OpenAI's cookbook script for many parallel requests, written anew from its idea.

One loop that wakes every millisecond (the script's own pause) takes the next request, or one to be
tried again, and starts a task for it while there is capacity; a status tracker counts; each answer
is appended to a JSON Lines file together with its request, which is opened for every line. Its
capacity is requests and tokens a minute; here it is 64 in flight, as for the others.
"""

import asyncio
import json
from dataclasses import dataclass
from itertools import chain

import aiohttp
from rows import arguments, sheets, told

PAUSE_SECONDS = 0.001
ATTEMPTS = 5


@dataclass
class Status:
    started: int = 0
    in_progress: int = 0
    succeeded: int = 0
    failed: int = 0
    scores: int = 0


@dataclass
class Request:
    row_id: int
    body: dict[str, object]
    attempts_left: int = ATTEMPTS

    async def send(
        self,
        session: aiohttp.ClientSession,
        url: str,
        out: str,
        again: "asyncio.Queue[Request]",
        status: Status,
    ) -> None:
        try:
            async with session.post(url, headers={"Authorization": "none"}, json=self.body) as sent:
                answer = await sent.json()
        except aiohttp.ClientError:
            self.attempts_left -= 1
            if self.attempts_left:
                again.put_nowait(self)
            else:
                status.failed += 1
        else:
            with open(out, "a") as file:
                file.write(json.dumps([self.body, answer, {"row_id": self.row_id}]) + "\n")
            status.succeeded += 1
            status.scores += len(answer["results"])
        status.in_progress -= 1


async def main(path: str, out: str, base_url: str, rows: int, in_flight: int) -> None:
    upcoming = enumerate(chain.from_iterable(sheet.rows() for sheet in sheets(path, rows)))
    again: asyncio.Queue[Request] = asyncio.Queue()
    status, url, finished = Status(), f"{base_url}/reranks", False
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession() as session:
        while not finished or status.in_progress or not again.empty():
            if status.in_progress < in_flight:
                request = None if again.empty() else again.get_nowait()
                if request is None and (row := next(upcoming, None)) is not None:
                    row_id, (_, _, query, texts) = row
                    body = {"model": "qwen3-rerank", "query": query, "documents": texts}
                    request = Request(row_id, body)
                    status.started += 1
                if request is None:
                    finished = True
                else:
                    status.in_progress += 1
                    task = asyncio.create_task(request.send(session, url, out, again, status))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(PAUSE_SECONDS)
    told(status.succeeded, status.scores)


asyncio.run(main(*arguments()))

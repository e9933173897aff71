"""A rerank server so fast that it is not what is measured: python stub.py PORT DOCUMENTS [DELAY_MS]

Reads whole requests and answers each with the same bytes, scores for so many documents, in an
order that is not the request's. Prints a line once it listens.
"""

import asyncio
import json
import random
import sys

import uvloop


def answer(documents: int) -> bytes:
    deal = random.Random(7)
    scores = [(index, round(deal.random(), 9)) for index in range(documents)]
    ranked = sorted(scores, key=lambda one: -one[1])
    body = json.dumps(
        {
            "object": "list",
            "results": [{"index": index, "relevance_score": score} for index, score in ranked],
            "model": "qwen3-rerank",
            "id": "stub",
            "usage": {"total_tokens": 1000},
        }
    ).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Stub(asyncio.Protocol):
    def __init__(self, reply: bytes, delay_seconds: float) -> None:
        self.reply = reply
        self.delay_seconds = delay_seconds
        self.head = b""
        self.missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.head += data
            head, found, rest = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.missing = int(length or 0) - len(rest)
            self.head = b""
        if self.missing <= 0:
            self.missing = 0
            if self.delay_seconds:
                loop = asyncio.get_running_loop()
                loop.call_later(self.delay_seconds, self.transport.write, self.reply)
            else:
                self.transport.write(self.reply)


async def main() -> None:
    port, documents, delay_ms = int(sys.argv[1]), int(sys.argv[2]), float((sys.argv + ["0"])[3])
    reply = answer(documents)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Stub(reply, delay_ms / 1000), "127.0.0.1", port, backlog=1024
    )
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

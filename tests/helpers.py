"""What the end-to-end tests share: the program and our server as processes, and small inputs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchrank.cli.logs import log
from batchrank.cli.main import cli
from batchrank.config.settings import load
from batchrank.errors import BatchrankError
from batchrank.output.receipt import Receipt
from batchrank.reuse.pair_files import SideFiles
from batchrank.server.ledger import content_digest
from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT
from batchrank.session import job
from batchrank.wire import Ask

PROGRAM = [sys.executable, "-m", "batchrank"]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KEY = "sk-canary-3f1c"

RESULTS = pa.list_(
    pa.struct(
        [
            ("doc_id", pa.string()),
            ("index", pa.int32()),
            ("rank", pa.int32()),
            ("relevance_score", pa.float64()),
        ]
    )
)
CANDIDATES = pa.list_(pa.struct([("doc_id", pa.string()), ("text", pa.string())]))


class Server:
    """A `batchrank serve` of ours, in its own process."""

    def __init__(self, process: "subprocess.Popen[str]", base_url: str) -> None:
        self.process = process
        self.base_url = base_url
        self.host = base_url.removesuffix("/compatible-api/v1")
        self.native_url = self.host + "/api/v1"

    def ledger(self, *, full: bool = False) -> dict[str, Any]:
        """What would be billed, and what came to the door."""
        with urlopen(f"{self.host}/ledger?full={int(full)}", timeout=60) as answer:
            counts: dict[str, Any] = json.loads(answer.read())
        return counts

    @property
    def received(self) -> int:
        """Requests that came to the door so far."""
        return int(self.ledger()["received"])


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Server]:
    """A server with the hash scorer and these options while the block runs."""
    with subprocess.Popen(
        [*PROGRAM, "serve", "--port", "0", "--scorer", "hash", "--until-stdin-closes", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean(**environment),
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        base_url = process.stdout.readline().strip()
        assert base_url.startswith("http://"), "the server did not start"
        try:
            yield Server(process, base_url)
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def clean(**environment: str) -> dict[str, str]:
    """The environment of a child: a path, a home, and what is given; no key of the machine's.

    It writes no bytecode: a child whose writes are made to fail would leave half a file behind.
    """
    own = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return {**own, "PYTHONDONTWRITEBYTECODE": "1", **environment}


def program(
    *arguments: object, timeout: float = 60, cwd: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end, without a terminal."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=clean(**environment),
        check=False,
    )


def inside(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command in this process: the same words and codes, without the half second to start."""
    words = [str(argument) for argument in arguments]
    log.handlers = []  # as in a new process: those of a command before write where it wrote
    hearing = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    shown = CliRunner().invoke(cli, words, prog_name="batchrank")
    for (
        one,
        before,
    ) in hearing.items():  # a process that ends with a code is deaf; this one goes on,
        if signal.getsignal(one) is not before:  # and its children would be deaf too
            signal.signal(one, before)
    error = shown.exception
    if isinstance(error, BatchrankError):
        said = f"{shown.stderr}batchrank: {error}\n"
        return subprocess.CompletedProcess(words, int(error.code), shown.stdout, said)
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return subprocess.CompletedProcess(words, shown.exit_code, shown.stdout, shown.stderr)


def started(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """The command begun, its output collected."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(**environment),
    )


def ended(process: "subprocess.Popen[str]", timeout: float = 60) -> tuple[int, str, str]:
    """A started command's code, standard output and standard error, once it has ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def killed(process: "subprocess.Popen[str]") -> int:
    """Kill a started command; its code, which is its own if it had ended before."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode


def until(is_so: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def fast(server: Server, out: Path, *inputs: object) -> list[object]:
    """The arguments of a run against a server of ours without a rate limit."""
    return [
        "run",
        *inputs,
        "-o",
        out,
        "--base-url",
        server.base_url,
        "--requests-per-minute",
        "0",
    ]


def settings(base_url: str, **sections: dict[str, Any]) -> Any:
    """A configuration for a server of ours, without a rate limit."""
    given = {name: dict(values) for name, values in sections.items()}
    given["endpoint"] = {"base_url": base_url, **given.get("endpoint", {})}
    given["rate"] = {"requests_per_minute": 0, **given.get("rate", {})}
    return load(None, given)


def score(
    server: Server,
    inputs: object,
    out: Path,
    *,
    limit_rows: int = 0,
    reuse: Path | Sequence[Path] | None = None,
    reuse_rows_only: bool = False,
    retry_failed: bool = False,
    allow_empty: bool = False,
    **sections: dict[str, Any],
) -> Receipt:
    """A run in this process."""
    paths = inputs if isinstance(inputs, list) else [inputs]
    request = job.Request(
        inputs=[str(path) for path in paths],
        out=out,
        limit_rows=limit_rows,
        reuse=[reuse] if isinstance(reuse, Path) else reuse or (),
        reuse_rows_only=reuse_rows_only,
        retry_failed=retry_failed,
        allow_empty=allow_empty,
    )
    return job.run(settings(server.base_url, **sections), request, lambda progress: None)


def table(rows: int, documents: int = 3, *, tag: str = "t", seed: int = 7) -> pa.Table:
    """Rows of text that no other tag or seed makes, so that ledgers tell tests apart."""
    random = Random(f"{tag}:{seed}")
    words = [f"{tag}{random.randrange(10**9)}" for _ in range(50)]
    candidates = [
        [
            {"doc_id": f"d{row}-{place}", "text": f"{random.choice(words)} row {row} text {place}"}
            for place in range(documents)
        ]
        for row in range(rows)
    ]
    return pa.table(
        {
            "query_id": pa.array(range(rows), pa.int64()),
            "query": [f"query {row} of {random.choice(words)}" for row in range(rows)],
            "candidates": pa.array(candidates, CANDIDATES),
        }
    )


def rows_of(*rows: tuple[str | None, Sequence[str | None]]) -> pa.Table:
    """Rows of a query and its texts."""
    return pa.concat_tables(one_row(query, texts) for query, texts in rows)


def dated(out: Path, day: date) -> None:
    """Have an output say that it was begun on another day."""
    scoring = json.loads((out / "_pairs" / "run.json").read_bytes())["scoring"]
    (out / "_pairs" / "run.json").unlink()
    SideFiles(out, out / "_batchrank").begin(scoring, day)


def scores_of(out: Path) -> list[dict[int, float]]:
    """Of each row, the scores by the candidates' places."""
    return [
        {one["index"]: one["relevance_score"] for one in row}
        for row in output(out)["results"].to_pylist()
    ]


def reused(out: Path) -> list[list[date | None]]:
    """Of each row, since when the score of each candidate is known, in the order of the input."""
    return [
        [
            day
            for _, day in sorted(zip(map(_index, row["results"]), row["reused_from"], strict=True))
        ]
        for row in output(out).to_pylist()
    ]


def _index(result: dict[str, Any]) -> int:
    return int(result["index"])


def one_row(query: str | None, texts: Sequence[str | None] | None) -> pa.Table:
    """A single row; its candidates are called a, b, c, …"""
    named = (
        None
        if texts is None
        else [{"doc_id": f"d{place}", "text": text} for place, text in enumerate(texts)]
    )
    return pa.table(
        {
            "query_id": ["q0"],
            "query": pa.array([query], pa.string()),
            "candidates": pa.array([named], CANDIDATES),
        }
    )


def written(path: Path, rows: pa.Table, **options: Any) -> Path:
    """A table as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, **options)
    return path


def part_bytes(out: Path) -> dict[str, bytes]:
    """The published parts, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def output(out: Path) -> pa.Table:
    """All parts as one table."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("part-*.parquet")))


def expected(
    query: str, texts: Sequence[str | None], doc_ids: Sequence[str | None], top_n: int = 0
) -> list[dict[str, Any]]:
    """The `results` of a row under the hash scorer, worked out without the program's own steps."""
    scored, unscored = [], []
    for index, (text, doc_id) in enumerate(zip(texts, doc_ids, strict=True)):
        if text is None or not text.strip():
            unscored.append((None, index, doc_id))
        else:
            scored.append((HashScorer().scores(query, [text], DEFAULT_INSTRUCT)[0], index, doc_id))
    ranked = sorted(scored, key=lambda one: (-one[0], one[1]))
    results = [
        {"doc_id": doc_id, "index": index, "rank": rank, "relevance_score": score}
        for rank, (score, index, doc_id) in enumerate(ranked, 1)
    ] + [
        {"doc_id": doc_id, "index": index, "rank": None, "relevance_score": None}
        for _, index, doc_id in unscored
    ]
    return results[:top_n] if top_n else results


def expected_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The `results` of a row of `table`."""
    candidates = row["candidates"]
    return expected(
        row["query"],
        [candidate["text"] for candidate in candidates],
        [candidate["doc_id"] for candidate in candidates],
    )


def content(row: dict[str, Any]) -> str:
    """The ledger's name for the one request of a row without blank or repeated texts."""
    texts = [candidate["text"] for candidate in row["candidates"]]
    return content_digest(Ask(model="qwen3-rerank", query=row["query"], documents=texts)).hex()


def namespaced(
    mounts: str, arguments: Sequence[object], *, network: bool = True
) -> tuple[int, str]:
    """Run the command where `mounts` have been made for it alone; its code and standard error.

    Skips the test on a machine that does not allow it.
    """
    command = " ".join(shlex.quote(str(argument)) for argument in [*PROGRAM, *arguments])
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs leave to make a mount namespace (root)")
    done = subprocess.run(
        ["unshare", "-m", *([] if network else ["-n"]), "sh", "-c", f"{mounts} && {command}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean(),
        check=False,
    )
    return done.returncode, done.stderr

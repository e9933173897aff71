"""Promises 20 and 21: memory, files, threads and tasks stay flat, and hostile input stays harmless.

What is measured inside a run is measured in a process of its own (`python -m drills.resources`),
so that nothing of the tests is in its figures, and a file that brings down a C library brings down
that process alone.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from helpers import PROGRAM, clean, fast, output, serving, settings, table, written

from batchrank.config.settings import JobConfig, key_of, load
from batchrank.errors import BatchrankError, ConfigInvalid, ExitCode
from batchrank.input.parquet_rows import open_source
from batchrank.input.schema import Columns
from batchrank.output.parts import Sink
from batchrank.output.receipt import Progress
from batchrank.pacing.throttle import Throttle
from batchrank.sending.verdicts import Answered, judge
from batchrank.session import job
from batchrank.session.request import planner_of
from batchrank.wire.replies import Scores
from drills.frame import Drill, environment
from drills.pace import told

CODES = {int(code) for code in ExitCode} - {int(ExitCode.BUG)}
MEGABYTE = 1 << 20
T = TypeVar("T")


# 20


def flat(trials: int, seed: int, folder: Path) -> str:
    """A run and one ten times as long, as fast as they go: the same peak of memory, and nothing
    that piles up. One at twice the rate of the real account: an event loop that never stalls.
    """
    short, probes = 2000 * trials, []
    with serving() as server:
        for rows, rpm in ((short, 0), (10 * short, 0), (500 * trials, 10_800)):
            source = folder / f"{rows}.parquet"
            _many_rows(source, rows)
            before = server.received
            probes.append(_probed(server.base_url, source, folder / f"out-{rows}", rpm))
            assert server.received - before == rows, f"{server.received - before} requests"
    small, large, paced = probes
    grown = large["peak_mb"] / small["peak_mb"]
    assert large["peak_mb"] <= 400, f"{large['peak_mb']:.0f} MB"
    assert grown <= 1.1, f"{small['peak_mb']:.0f} MB at {short} rows, {large['peak_mb']:.0f} at 10x"
    samples = large["samples"]
    assert len(samples) >= 8, f"only {len(samples)} looks at the run"
    early, later = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    for place, what in enumerate(("open files", "threads", "tasks"), 1):
        at_first, at_most = (max(one[place] for one in some) for some in (early, later))
        # How many tasks a look meets is chance, up to two for each of 64 in flight.
        allowed = 2 * 64 + 16 if what == "tasks" else at_first * 1.1 + 8
        assert at_most <= allowed, f"{what}: {at_first} at first, {at_most} later"
    assert paced["late"]["p99"] <= 0.05, f"the event loop stalled: {paced['late']}"
    most = [max(one[place] for one in samples) for place in (1, 2, 3)]
    return (
        f"{10 * short} requests: {large['peak_mb']:.0f} MB, {grown:.3f} of the peak at a tenth of "
        f"the rows; at most {most[0]} files, {most[1]} threads, {most[2]} tasks; the event loop is "
        f"late by {_late(paced)} at 180 requests a second, {_late(large)} as fast as it goes"
    )


def _late(figures: dict[str, Any]) -> str:
    late = figures["late"]
    return f"{late['p99'] * 1e3:.1f} ms (p99; {late['most'] * 1e3:.0f} at the most)"


def _many_rows(path: Path, rows: int) -> None:
    schema = table(1).schema
    with pq.ParquetWriter(path, schema) as writer:
        for block in range(rows // 500):
            writer.write_table(table(500, tag=f"flat{rows}b{block}"))


def _probed(base_url: str, source: Path, out: Path, rpm: int) -> dict[str, Any]:
    done = _child("probe", base_url, source, out, rpm, timeout=300)
    assert done.returncode == 0, f"the probe ended with {done.returncode}: {done.stderr[-500:]}"
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _child(*arguments: object, timeout: float) -> "subprocess.CompletedProcess[str]":
    paths = [environment().get("PYTHONPATH", ""), str(Path(__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-m", "drills.resources", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean(PYTHONPATH=":".join(filter(None, paths)), MALLOC_ARENA_MAX="2"),
        check=False,
    )


def probe(base_url: str, source: str, out: str, rpm: str) -> None:
    """A run in this process, watched from its own event loop; prints what was seen."""
    samples: list[tuple[int, int, int, int]] = []
    late: list[float] = []
    requests = 0

    def beat(due: float, starved: float) -> None:
        loop = asyncio.get_running_loop()
        # Less the time that other processes of this machine had the processor.
        late.append(loop.time() - due - (_starved_seconds() - starved))
        loop.call_later(0.005, beat, loop.time() + 0.005, _starved_seconds())

    def look() -> None:
        files = len(os.listdir("/proc/self/fd"))
        threads = len(os.listdir("/proc/self/task"))
        samples.append((requests, files, threads, len(asyncio.all_tasks())))
        asyncio.get_running_loop().call_later(0.25, look)

    async def watched(session: Coroutine[Any, Any, T]) -> T:
        beat(asyncio.get_running_loop().time(), _starved_seconds())
        look()
        return await session

    def watch(progress: Progress) -> None:
        nonlocal requests
        requests = progress.requests

    rate = {"requests_per_minute": int(rpm), "ramp_seconds": 0}
    config = settings(base_url, output={"rows_per_part": 250}, rate=rate)
    request = job.Request(inputs=[source], out=Path(out))
    receipt = job.run(config, request, watch, in_loop=lambda run: uvloop.run(watched(run)))
    assert receipt.exit_code == 0, receipt.message
    late.sort()
    figures = {
        "peak_mb": _peak_mb(os.getpid()),
        "samples": [one for one in samples if one[0]],
        "late": {
            "p50": late[len(late) // 2],
            "p99": late[int(len(late) * 0.99)],
            "most": late[-1],
        },
    }
    print(json.dumps(figures))


def _starved_seconds() -> float:
    """How long this thread has waited for a processor so far."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _peak_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# 21: hostile input


class Measured(NamedTuple):
    """How a command ended, and what it took."""

    code: int
    stderr: str
    peak_mb: float
    seconds: float


def _measured(arguments: Sequence[object], timeout: float = 60) -> Measured:
    """Run the command to its end, looking at its memory all the while."""
    began, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=clean(**environment()),
        )
        while process.poll() is None:
            with suppress(OSError, IndexError):  # it may have just ended
                peak = max(peak, _peak_mb(process.pid))
            if time.monotonic() - began > timeout:
                process.kill()
                process.wait()
                raise AssertionError(f"still running after {timeout} s at {peak:.0f} MB")
            time.sleep(0.02)
        stderr.seek(0)
        return Measured(process.returncode, stderr.read(), peak, time.monotonic() - began)


class Hostile(NamedTuple):
    """An input, what is done with it, and how that may end."""

    name: str
    make: Callable[[Path], None]
    codes: frozenset[int]
    plan: bool = False
    limit: int = 0


def repeated(path: Path, rows: int, documents: int, megabytes: float) -> None:
    """The same large text over and over, which a dictionary packs into almost nothing."""
    text = "word " * int(megabytes * MEGABYTE / 5)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows * documents, pa.int32()), [text])
    offsets = pa.array(range(0, rows * documents + 1, documents), pa.int32())
    candidates = pa.ListArray.from_arrays(offsets, texts)
    data = pa.table({"query": ["q"] * rows, "candidates": candidates})
    pq.write_table(data, path, compression="zstd", store_schema=False, row_group_size=rows)
    assert path.stat().st_size < 4096, "not as small as it was meant to be"


def buried(path: Path, megabytes: int) -> None:
    """Small rows, and behind them one that holds the same large text many times."""
    rows = table(50, 1, tag="buried").to_pylist()
    rows[-1]["candidates"] = [{"doc_id": "same", "text": "word " * (MEGABYTE // 5)}] * megabytes
    pq.write_table(pa.Table.from_pylist(rows, schema=table(1).schema), path)


def columns(path: Path, count: int) -> None:
    """Many columns that nobody asked for."""
    base = table(3)
    names = [*base.schema.names, *(f"c{number}" for number in range(count))]
    one = pa.array([1, 2, 3], pa.int8())
    data = pa.Table.from_arrays([*base.columns, *([one] * count)], names=names)
    pq.write_table(data, path, use_dictionary=False, write_statistics=False)


def cell(path: Path, megabytes: int) -> None:
    """A document of so many megabytes among small ones."""
    rows = table(5, tag="cell").to_pylist()
    rows[2]["candidates"][1]["text"] = "large text " * (megabytes * MEGABYTE // 11)
    pq.write_table(pa.Table.from_pylist(rows, schema=table(1).schema), path)


def not_utf8(path: Path) -> None:
    """Texts that are no UTF-8, in a column that says it is."""
    raw = pa.array([[b"good", b"\xff\xfe bad"]] * 50, pa.list_(pa.binary()))
    values = raw.values.buffers()
    texts = pa.StringArray.from_buffers(len(raw.values), values[1], values[2])  # unchecked
    lists = pa.ListArray.from_arrays(raw.offsets, texts)
    pq.write_table(pa.table({"query": ["q"] * 50, "candidates": lists}), path)


def _varint(value: int) -> bytes:
    """A zigzag varint, as thrift's compact protocol writes a whole number."""
    left, found = value << 1 if value >= 0 else (-value << 1) - 1, b""
    while left > 127:
        found, left = found + bytes([left & 127 | 128]), left >> 7
    return found + bytes([left])


def forged_rows(path: Path, claimed: int, everywhere: bool) -> None:
    """A footer that claims another number of rows than the pages hold."""
    pq.write_table(table(5000, 1, tag="forged"), path, row_group_size=5000)
    whole = path.read_bytes()
    size = int.from_bytes(whole[-8:-4], "little")
    footer = whole[-8 - size : -8]
    old, new = b"\x16" + _varint(5000), b"\x16" + _varint(claimed)
    assert footer.count(old) >= 2 and len(old) == len(new)
    footer = footer.replace(old, new) if everywhere else footer.replace(old, new, 1)
    path.write_bytes(whole[: -8 - size] + footer + whole[-8:])


def forged_footer(path: Path, size: int) -> None:
    """A footer that claims to be larger than the file."""
    written(path, table(50))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + size.to_bytes(4, "little") + whole[-4:])


FINE = frozenset({0})
BAD = frozenset({65})
EITHER = frozenset({0, 65})
ROW = frozenset({0, 3, 65})
"""0: the row is partial, the others of its documents have their scores."""

ALWAYS = [
    Hostile(
        "1 KB that decode to 1 GB, planned", lambda path: repeated(path, 1000, 1, 1), FINE, True
    ),
    Hostile(
        "1 KB that decode to 3 GB, run", lambda path: repeated(path, 3000, 1, 1), FINE, limit=20
    ),
    Hostile("one row that decodes to 1 GB", lambda path: repeated(path, 1, 1000, 1), BAD),
    Hostile("a row of 700 MB among small ones", lambda path: buried(path, 700), BAD),
    Hostile("10,000 columns", lambda path: columns(path, 10_000), EITHER),
    Hostile("a cell of 34 MB", lambda path: cell(path, 34), ROW),
    Hostile("no UTF-8", not_utf8, BAD),
    Hostile("more rows claimed", lambda path: forged_rows(path, 8000, True), BAD),
    Hostile("more rows claimed in all", lambda path: forged_rows(path, 8000, False), BAD),
    Hostile("fewer rows claimed", lambda path: forged_rows(path, 2000, True), EITHER),
    Hostile("negative rows", lambda path: forged_rows(path, -2000, True), BAD),
    Hostile("a footer of 4 GB", lambda path: forged_footer(path, 2**32 - 1), BAD),
    Hostile("a footer larger than the file", lambda path: forged_footer(path, 50_000), BAD),
]
LONG = [
    Hostile(
        "1 KB that decode to 3 GB, planned", lambda path: repeated(path, 3000, 1, 1), FINE, True
    ),
    Hostile("100,000 columns", lambda path: columns(path, 100_000), EITHER),
    Hostile("a cell of 1 GB", lambda path: cell(path, 1000), ROW),
]


def hostile(trials: int, seed: int, folder: Path) -> str:
    """Inputs made to hurt: 65 or a failed row, at most 600 MB, within 20 s. `trials` above 1: the
    large ones too.
    """
    broken, figures, worst, slowest = [], [], 0.0, 0.0
    inputs = ALWAYS + (LONG if trials > 1 else [])
    with serving() as server:
        for number, one in enumerate(inputs):
            source, out = folder / f"{number}.parquet", folder / f"out-{number}"
            one.make(source)
            options = ["--limit", one.limit] if one.limit else []
            run = ["plan", source] if one.plan else [*fast(server, out, source), *options]
            try:
                with told(number, one.name):
                    done = _measured(run)
                    assert "Traceback" not in done.stderr, f"a traceback: {done.stderr[-400:]}"
                    assert done.code in one.codes, f"ended with {done.code}: {done.stderr[-200:]}"
                    assert done.peak_mb <= 600, f"{done.peak_mb:.0f} MB"
                    assert done.seconds <= 20, f"{done.seconds:.0f} s"
                    if not one.plan and done.code == 0:
                        assert output(out).num_rows == (one.limit or _rows(source)), (
                            "rows are missing"
                        )
                    figures.append(f"{one.name} {done.seconds:.1f} s {done.peak_mb:.0f} MB")
                    worst, slowest = max(worst, done.peak_mb), max(slowest, done.seconds)
            except AssertionError as error:
                broken.append(str(error))
            source.unlink()
    assert not broken, "; ".join(broken) + f"; held: {', '.join(figures)}"
    return f"{len(inputs)} inputs: {worst:.0f} MB and {slowest:.1f} s at the most"


def _rows(source: Path) -> int:
    return int(pq.read_metadata(source).num_rows)


# 21: mutations


def mutated_files(trials: int, seed: int, folder: Path) -> str:
    """Parquet files with bytes changed, read, planned and written: a typed end, or none."""
    done, refused, per_child = 0, 0, 500
    while done < trials:
        count = min(per_child, trials - done)
        own = folder / str(done)
        own.mkdir()
        child = _child("fuzz", seed, done, count, own, timeout=60 + count)
        reached = (own / "at").read_text() if (own / "at").exists() else "nothing"
        assert child.returncode == 0, (
            f"ended with {child.returncode} at mutation {reached}: {child.stderr[-600:]}"
        )
        refused += int(child.stdout)
        done += count
    assert refused > trials / 10, f"only {refused} of {trials} files were refused"
    return (
        f"{trials} mutated files, {refused} refused with a typed error, the others read to the end"
    )


def fuzz(seed: str, first: str, count: str, folder: str) -> None:
    """Read so many mutations in this process; prints how many were refused."""
    import signal

    own, refused = Path(folder), 0
    bases = [_base(kind) for kind in range(6)]
    for number in range(int(first), int(first) + int(count)):
        random = Random(f"{seed}:{number}")
        (own / "at").write_text(str(number))
        path = own / "in.parquet"
        path.write_bytes(mutated(random, random.choice(bases)))
        signal.alarm(20)  # not handled: a hang inside a library ends the process too
        try:
            _read_to_the_end(path, own)
        except BatchrankError as error:
            assert error.code in CODES
            refused += 1
        signal.alarm(0)
    print(refused)


def _base(kind: int) -> bytes:
    """A good file in one of several physical forms."""
    rows = table(60, 3, tag=f"fuzz{kind}")
    if kind % 3 == 1:
        texts = [[one["text"] for one in row] for row in rows["candidates"].to_pylist()]
        rows = rows.set_column(2, "candidates", pa.array(texts, pa.list_(pa.string())))
    if kind % 3 == 2:
        rows = rows.drop_columns("query_id")
    stream = pa.BufferOutputStream()
    pq.write_table(
        rows.append_column("kept", pa.array([f"kept {row}" for row in range(60)])),
        stream,
        compression=["none", "snappy", "zstd"][kind % 3],
        use_dictionary=kind >= 3,
        data_page_version=["1.0", "2.0"][kind % 2],
        row_group_size=25,
    )
    return bytes(stream.getvalue())


def mutated(random: Random, content: bytes) -> bytes:
    """A few bytes changed, cut out, put in or taken from elsewhere; often in the footer."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        size = len(changed)
        start = random.randrange(size)
        if random.random() < 0.5 and size > 2000:
            start = random.randrange(size - 2000, size)
        match random.randrange(6):
            case 0 | 1:
                changed[start] = random.randrange(256)
            case 2:
                changed[start] = random.choice([0, 1, 127, 128, 255])
            case 3:
                changed[start] ^= 1 << random.randrange(8)
            case 4:
                length = random.randint(1, 16)
                changed[start : start + length] = random.randbytes(random.choice([0, length]))
            case _:
                length, other = random.randint(1, 64), random.randrange(size)
                changed[start : start + length] = changed[other : other + length]
        if not changed:
            return b"\0"
    return bytes(changed)


def _read_to_the_end(path: Path, folder: Path) -> None:
    """What a run does with its input, up to the sending, and with its ids afterwards."""
    from batchrank.output.assembly import Assembly
    from batchrank.records import Scored, Spent

    source = open_source([str(path)], Columns("query_id", "query", "candidates", ["kept"]))
    rows = source.total_rows
    if not 0 < rows < 100_000:
        return
    planner = planner_of(load(None, {}), exact=False)
    sink = Sink(folder, folder, parts=1, top_n=0, compression="none")
    assembly = Assembly(rows, rows)
    part = None
    for chunk in source.chunks(0, rows, rows):
        assembly.keep(chunk.first, chunk.kept)
        for row in chunk.rows:
            planned = planner.plan(row)
            part = assembly.begin(planned) or part
            for plan in planned.plans:
                scores = [0.5] * len(plan.documents)
                settled = assembly.settle(Scored(plan.plan_id, _doubles(scores), 1, Spent()))
                part = next((one for one in settled if one is not None), part)
    if part is not None:
        sink.publish(0, part.finished(), part.kept)


def _doubles(scores: Sequence[float]) -> "Any":
    from array import array

    return array("d", scores)


def mutated_answers(trials: int, seed: int, folder: Path) -> str:
    """Answers with bytes changed: a verdict each, and scores only where they are whole."""
    verdicts: dict[str, int] = {}
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        documents = random.randint(1, 6)
        results = [
            {"index": index, "relevance_score": random.random()} for index in range(documents)
        ]
        body: dict[str, Any] = {"results": results, "usage": {"total_tokens": 102}, "id": "x"}
        if random.random() < 0.3:
            body = {"output": body}
        if random.random() < 0.3:
            body = {"code": "Throttling.RateQuota", "message": "document index:1 too long"}
        status = random.choice([200, 200, 200, 400, 429, 500, random.randint(200, 599)])
        changed = mutated(random, json.dumps(body).encode())
        header = random.choice([None, "1", mutated(random, b"Wed, 21 Oct 2026 07:28:00 GMT")])
        retry_after = header.decode("latin-1") if isinstance(header, bytes) else header
        with told(trial):
            try:
                verdict = judge(Answered(status, changed, retry_after, None), documents)
            except Exception as error:
                raise AssertionError(f"{error!r} for {status} {changed!r}") from error
            if isinstance(verdict, Scores):
                scores = verdict.relevance_scores
                assert len(scores) == documents and all(map(isfinite, scores)), changed
        name = type(verdict).__name__
        verdicts[name] = verdicts.get(name, 0) + 1
    return f"{trials} mutated answers: " + ", ".join(
        f"{times} {name}" for name, times in sorted(verdicts.items())
    )


def mutated_configs(trials: int, seed: int, folder: Path) -> str:
    """Configurations with bytes or values changed: valid, or refused in one line."""
    good = load(None, {}).shown()
    lines = [
        f"[{section}]\n"
        + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items() if value != {})
        for section, values in good.items()
    ]
    text, refused, path = "".join(lines), 0, folder / "c.toml"
    path.write_text(text)
    assert isinstance(load(path, {}), JobConfig)
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        changed = _revalued(random, text) if trial % 2 else mutated(random, text.encode())
        path.write_bytes(changed)
        with told(trial):
            try:
                config = load(path, {})
                key_of(config)
                planner_of(config, exact=False)
                asyncio.run(_throttle(config))
            except ConfigInvalid as error:
                refused += 1
                assert str(error) and "\n" not in str(error), f"not one line: {error}"
            except Exception as error:
                raise AssertionError(f"{error!r} for {changed!r}") from error
    assert trials / 10 < refused < trials, f"{refused} of {trials} refused"
    return f"{trials} mutated configurations, {refused} refused in one line"


async def _throttle(config: JobConfig) -> None:
    Throttle(config.rate)


VALUES = [
    *(
        "0",
        "-1",
        "1",
        "1.5",
        "-0.0",
        "nan",
        "inf",
        "-inf",
        "1e300",
        "5e-324",
        "99999999999999999999",
    ),
    *(
        '""',
        '"x"',
        "true",
        "[]",
        "{}",
        "[1]",
        '["a", "a"]',
        '{ a = "b" }',
        "1979-05-27",
        '"\\u0000"',
    ),
    *(
        '"http://[::1"',
        '"https://user:key@host/"',
        '"http://127.0.0.1:99999"',
        '"https://\\u2100.de"',
    ),
]


def _revalued(random: Random, text: str) -> bytes:
    lines = text.splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.choice([at for at, line in enumerate(lines) if "=" in line])
        lines[place] = lines[place].split("=")[0] + "= " + random.choice(VALUES)
    return "\n".join(lines).encode()


def _toml(value: Any) -> str:
    return json.dumps(value)


DRILLS: Sequence[Drill] = [
    Drill((20,), "flat", flat, 1, 10),
    Drill((21,), "hostile-input", hostile, 1, 2),
    Drill((21,), "mutated-files", mutated_files, 500, 20_000),
    Drill((21,), "mutated-answers", mutated_answers, 4_000, 100_000),
    Drill((21,), "mutated-configs", mutated_configs, 600, 20_000),
]

if __name__ == "__main__":
    {"probe": probe, "fuzz": fuzz}[sys.argv[1]](*sys.argv[2:])

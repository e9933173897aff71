"""Promise 26: the input changes while a run reads it, or between two starts.

Files are replaced, merged, grown, written over, cut or removed at seeded instants of a run, in
every shape of input and in a bucket. With the old files the same command must go on, without paying
a row of theirs twice, and what was published before must be part of what it ends with.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import helpers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import Server, ended, expected_of, fast, serving, started, table, until
from test_places import Store, remote_parts, storing
from test_resume_after_kill import settled

from batchrank.files.paths import Remote, place
from drills.frame import (
    Drill,
    Patch,
    breaks,
    environment,
    instants,
    killed_within,
    last_line,
    patched,
)

ROWS, PART, FILES, GROUP = 150, 15, 3, 20
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.03\n'
SECONDS = 1.8
"""How long a run takes from its first request on, and a little."""

END_SECONDS = 0.6
"""A change that is later before the end of the process may have come after the last look."""

MOVED = "changed while the run was at work"
MOVABLE = [row for row in range(ROWS - 1) if row % GROUP != GROUP - 1]
"""Rows that change places with the next one and leave the footer as it is."""

ANSWERED = "is not what it was when it was scored"
BEGUN_ANEW = "begun with another input"


class Shape(NamedTuple):
    """An input: its rows, its files by name, and the arguments that name them."""

    name: str
    rows: pa.Table
    files: dict[str, bytes]
    arguments: Callable[[str], list[object]]


def _bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=GROUP, **PLAIN)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _cut(rows: pa.Table, count: int = FILES) -> dict[str, bytes]:
    size = rows.num_rows // count
    return {f"{n}.parquet": _bytes(rows.slice(n * size, size)) for n in range(count)}


def shapes(tag: str) -> list[Shape]:
    """The same rows in every shape."""
    rows = table(ROWS, 2, tag=tag)
    valued = rows.append_column("value", pa.array([row % 5 for row in range(ROWS)]))
    pairs = [
        {"query_id": row["query_id"], "query": row["query"], **one}
        for row in rows.to_pylist()
        for one in row["candidates"]
    ]
    run = [{"query_id": str(one["query_id"]), "doc_id": one["doc_id"]} for one in pairs]
    queries = {str(one["query_id"]): one["query"] for one in pairs}
    texts = {one["doc_id"]: one["text"] for one in pairs}
    beside = {
        name: "".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in of.items())
        for name, of in (("queries.jsonl", queries), ("corpus.jsonl", texts))
    }
    ids = {"run.parquet": _bytes(pa.Table.from_pylist(run))}
    ids.update({name: text.encode() for name, text in beside.items()})

    def folder(at: str) -> list[object]:
        return [at]

    def named(at: str) -> list[object]:
        beside = ["--queries", f"{at}/queries.jsonl", "--corpus", f"{at}/corpus.jsonl"]
        return [f"{at}/run.parquet", *beside]

    return [
        Shape("rows", rows, _cut(rows), folder),
        Shape("bands", rows, _cut(valued), lambda at: [at, "--priority-column", "value"]),
        Shape("pairs", rows, _cut(pa.Table.from_pylist(pairs)), folder),
        Shape(
            "scattered pairs", rows, _cut(pa.Table.from_pylist(pairs[::2] + pairs[1::2])), folder
        ),
        Shape("ids", rows, ids, named),
    ]


# What is done to the files: new contents by name (None: removed)

Change = Callable[[dict[str, bytes], str, Random], dict[str, bytes | None]]


def _other(content: bytes) -> bytes:
    """As long, with other texts."""
    return content.replace(b"query ", b"QUERY ").replace(b" text ", b" TEXT ")


def replaced(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    return {name: _other(files[name])}


def grown(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    if not name.endswith(".parquet"):
        return {name: files[name] + _other(files[name])}
    rows = pq.read_table(pa.BufferReader(files[name]))
    return {name: _bytes(pa.concat_tables([rows, rows.slice(0, random.randint(1, 30))]))}


def compacted(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    """Two files of rows are parted elsewhere, or become one."""
    names = sorted(one for one in files if one.endswith(".parquet"))[-2:]
    if len(names) < 2:
        return replaced(files, name, random)
    both = pa.concat_tables(pq.read_table(pa.BufferReader(files[one])) for one in names)
    cut = random.randrange(0, both.num_rows)
    last = _bytes(both.slice(cut))
    return {names[0]: _bytes(both.slice(0, cut)) if cut % 3 else None, names[1]: last}


def truncated(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    return {name: files[name][: random.randrange(len(files[name]))]}


def removed(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    return {name: None}


def touched(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    return {name: files[name]}


def joined(files: dict[str, bytes], name: str, random: Random) -> dict[str, bytes | None]:
    """A new file in the folder."""
    content = files.get("2.parquet", b"new")
    return {"9.parquet": _other(content)}


CHANGES: list[Change] = [replaced, grown, compacted, truncated, removed, touched, joined]
HARMLESS = (touched, joined)


class Home:
    """Where the input and the output are."""

    address: str
    out: Any
    options: Sequence[object]
    config: Path
    environment: Mapping[str, str] = {}

    def put(self, name: str, content: bytes | None, *, in_place: bool = False) -> None:
        """Put a file, or remove it; `in_place`: written over instead of renamed."""
        raise NotImplementedError

    def parts(self) -> dict[str, bytes]:
        """The published parts."""
        raise NotImplementedError

    def begun(self) -> bool:
        """Whether the run has a state."""
        raise NotImplementedError

    def started(self, line: Sequence[object]) -> "subprocess.Popen[str]":
        return started(*line, **environment(), **self.environment)

    def command(self, server: Server, shape: Shape) -> list[object]:
        self.config.write_text(f"[output]\nrows_per_part = {PART}\n")
        line = fast(server, self.out, *shape.arguments(self.address))
        return [*line, "-c", self.config, "--max-in-flight", 3, *self.options]


class Folder(Home):
    """The files on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path / "in")
        self.out = path / "out"
        self.options, self.config = [], path / "batchrank.toml"
        (path / "in").mkdir()

    def put(self, name: str, content: bytes | None, *, in_place: bool = False) -> None:
        target = self.path / "in" / name
        if content is None:
            target.unlink()
        elif in_place and target.exists():
            with target.open("r+b") as file:
                file.write(content)
                file.truncate()
        else:
            (self.path / "new").write_bytes(content)
            os.replace(self.path / "new", target)

    def parts(self) -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in self.out.glob("part-*.parquet")}

    def begun(self) -> bool:
        return (self.out / "_batchrank" / "checkpoint.sqlite").exists()


class Bucket(Home):
    """The files in a bucket, and the output too."""

    def __init__(self, store: Store, path: Path, name: str) -> None:
        self._state, bucket = path / "state", store.bucket(name)
        self.address, self.out = f"{bucket}/in", place(f"{bucket}/out")
        self.options, self.config = ["--state-dir", self._state], path / "batchrank.toml"
        self.environment = store.environment

    def put(self, name: str, content: bytes | None, *, in_place: bool = False) -> None:
        remote = place(f"{self.address}/{name}")
        assert isinstance(remote, Remote)
        if content is None:
            remote.unlink()
        else:
            remote.write_bytes(content)

    def parts(self) -> dict[str, bytes]:
        return remote_parts(str(self.out))

    def begun(self) -> bool:
        return (self._state / "checkpoint.sqlite").exists()


@contextmanager
def store_keys(store: Store) -> Iterator[None]:
    """The keys to the bucket in this process, and in its children."""
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def moving(trials: int, seed: int, folder: Path) -> str:
    """Something happens to the input at a random instant of a run."""
    random, ends = Random(seed), {0: 0, 65: 0}
    with _server(folder) as server, storing() as store, _keys(store):
        for trial, instant in enumerate(instants(random, trials, 0, SECONDS)):
            shape = shapes(f"{seed}-{trial}")[trial % 5]
            change, home = random.choice(CHANGES), folder / str(trial)
            home.mkdir()
            in_bucket = trial % 7 == 6
            where = Bucket(store, home, f"b{seed}x{trial}") if in_bucket else Folder(home)
            try:
                ends[_changed_once(server, shape, change, where, instant, random)] += 1
            except AssertionError as error:
                what = f"{shape.name}{' in a bucket' * in_bucket}, {change.__name__}"
                raise AssertionError(f"{trial}: {what} after {instant:.2f} s: {error}") from error
            shutil.rmtree(home)
    return f"{trials} changes: {ends[65]} ended with 65, {ends[0]} with 0; no row of a new file"


def _changed_once(
    server: Server, shape: Shape, change: Change, where: Home, instant: float, random: Random
) -> int:
    for name, content in shape.files.items():
        where.put(name, content)
    line = where.command(server, shape)
    process = where.started(line)
    until(lambda: where.begun() or process.poll() is not None, "the run has begun", 60)
    time.sleep(instant)
    new, in_place = (
        change(shape.files, random.choice(sorted(shape.files)), random),
        random.random() < 0.5,
    )
    for name, content in new.items():
        where.put(name, content, in_place=in_place)
    moment = time.monotonic()
    code, _, stderr = ended(process, 120)
    late = time.monotonic() - moment < END_SECONDS
    same = all(shape.files.get(name) == content for name, content in new.items())
    assert code in (0, 65), f"ended with {code}: {last_line(stderr)}"
    assert code == 0 or MOVED in stderr, f"ended with {code}, for what else: {last_line(stderr)}"
    assert code == 65 or late or same or change in HARMLESS, "ended with 0 after a change"
    parts = where.parts()
    for name in new.keys() - shape.files.keys():
        where.put(name, None)
    for name, content in shape.files.items():
        where.put(name, content)
    again, _, stderr = ended(where.started(line), 120)
    assert again == 0, f"with the old files it ended with {again}: {last_line(stderr)}"
    whole = where.parts()
    wrong = [name for name, content in parts.items() if whole.get(name) != content]
    assert not wrong, f"published, and not what the old files give: {wrong}"
    _judge(shape.rows, whole)
    twice = _paid_twice(server, shape.rows)
    assert not twice, f"{twice} requests paid twice"
    return code


def _judge(rows: pa.Table, parts: dict[str, bytes]) -> None:
    """Every row once, with the scores of its own texts."""
    found = pa.concat_tables(
        pq.read_table(pa.BufferReader(parts[name]), columns=["query_id", "results"])
        for name in sorted(parts)
    ).to_pylist()
    ids = [str(row["query_id"]) for row in found]
    expected = {str(row["query_id"]): expected_of(row) for row in rows.to_pylist()}
    assert ids == list(expected), f"{len(ids)} rows, {len(set(ids) & expected.keys())} of ours"
    wrong = [row for row in found if row["results"] != expected[str(row["query_id"])]]
    assert not wrong, f"{len(wrong)} rows have scores of other texts"


def _paid_twice(server: Server, rows: pa.Table) -> int:
    paid = settled(server)["per_content"]
    return sum(paid.get(helpers.content(row), (0,))[0] > 1 for row in rows.to_pylist())


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    script = folder / "faults.toml"
    script.write_text(SLOW)
    with serving("--faults", str(script)) as server:
        yield server


@contextmanager
def _keys(store: Store) -> Iterator[None]:
    """Give this process and its children the keys to the store."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in store.environment.items():
            environment.setenv(name, value)
        yield


def between(trials: int, seed: int, folder: Path) -> str:
    """A run is killed, then rows change places behind the same footer, or the file is touched."""
    random, refused = Random(seed), 0
    with _server(folder) as server:
        for trial, instant in enumerate(instants(random, trials, 0.8, SECONDS)):
            home = folder / str(trial)
            home.mkdir()
            where, rows = Folder(home), table(ROWS, 2, tag=f"{seed}:{trial}")
            where.put("0.parquet", _bytes(rows))
            line = where.command(server, Shape("rows", rows, {}, lambda at: [at]))
            process = where.started(line)
            until(lambda: where.begun() or process.poll() is not None, "it has begun", 60)  # noqa: B023
            killed_within(process, instant)
            done, row = len(where.parts()) * PART, random.choice(MOVABLE)
            order = list(range(ROWS))
            if trial % 4:  # else touched
                order[row], order[row + 1] = order[row + 1], order[row]
            moved = rows.take(pa.array(order))
            where.put("0.parquet", _bytes(moved))
            before = server.received
            code, _, stderr = ended(where.started(line), 120)
            if trial % 4 and row < done:
                assert code == 65 and BEGUN_ANEW in stderr, f"{trial}: {code}, {last_line(stderr)}"
                assert server.received == before, "something was sent"
                refused += 1
            elif trial % 4 and ANSWERED in stderr:  # an answer to the old row waits for its part
                assert code == 65, f"{trial}: ended with {code}"
                refused += 1
            else:
                assert code == 0, f"{trial}: ended with {code}: {last_line(stderr)}"
                _judge(moved, where.parts())
            shutil.rmtree(home)
    return f"{trials} files written again: {refused} refused, the others went on"


NO_COMPARISON = Patch(
    "input/input_file.py", "        if now == self._first:\n", "        if True:\n"
)
NO_SECOND_LOOK = Patch("session/published_rows.py", "    if not touched:\n", "    if True:\n")


def without_comparison(trials: int, seed: int, folder: Path) -> str:
    """Files are opened again and again, and nobody looks whether they are the same."""
    because = ("ended with", "published, and not", "scores of other texts", "rows,", "Traceback")
    with patched(folder, NO_COMPARISON):
        said = breaks(lambda: moving(trials, seed, folder), *because)
    return f"input-moves breaks without the comparison: {said}"


def without_second_look(trials: int, seed: int, folder: Path) -> str:
    """Published rows are not compared where the footer is the same."""
    with patched(folder, NO_SECOND_LOOK):
        said = breaks(lambda: between(trials, seed, folder), "0, ", "ended with")
    return f"input-between-starts breaks without the second look: {said}"


DRILLS = [
    Drill((26,), "input-moves", moving, 7, 200),
    Drill((26,), "input-between-starts", between, 4, 60),
    Drill((26,), "control-comparison", without_comparison, 14, 14),
    Drill((26,), "control-second-look", without_second_look, 20, 20),
]

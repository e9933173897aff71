"""Input and output behind s3://: the same bytes, parts whole or not at all, killed and resumed."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from urllib.error import URLError
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    Server,
    clean,
    ended,
    fast,
    inside,
    killed,
    output,
    part_bytes,
    program,
    started,
    table,
    until,
    written,
)

from batchrank.errors import ConfigInvalid
from batchrank.files.paths import Remote, place

Serve = Callable[..., Server]
SECRET = "canary-secret-91c4"


class Store:
    """An S3 server of moto's, in a process of its own, with a bucket for each test."""

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "canary-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": f"http://{self.host}",
        }

    def answers(self) -> bool:
        try:
            with urlopen(f"http://{self.host}/moto-api/", timeout=5):
                return True
        except (URLError, OSError):
            return False

    def bucket(self, name: str) -> str:
        """A new bucket's address."""
        with urlopen(Request(f"http://{self.host}/{name}", method="PUT"), timeout=60):
            return f"s3://{name}"

    def put(self, address: str, content: bytes) -> str:
        """A new object, and its address."""
        url = f"http://{self.host}/{address.removeprefix('s3://')}"
        kind = {"Content-Type": "application/octet-stream"}
        with urlopen(Request(url, content, kind, method="PUT"), timeout=60):
            return address

    def uploads(self, bucket: str) -> int:
        """Uploads that were begun and not completed."""
        url = f"http://{self.host}/{bucket.removeprefix('s3://')}?uploads"
        with urlopen(url, timeout=60) as answer:
            return int(answer.read().count(b"<UploadId>"))


@contextmanager
def storing() -> Iterator[Store]:
    """A store while the block runs."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "-p", str(port)],
        env=clean(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        store = Store(port)
        try:
            until(store.answers, "the S3 server answers", 60)
            yield store
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with storing() as one:
        yield one


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test's own, and the keys to it."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store.bucket(f"b{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def parts(tmp_path: Path) -> list[object]:
    """Options that make parts of ten rows."""
    path = tmp_path / "parts.toml"
    path.write_text("[output]\nrows_per_part = 10\n")
    return ["-c", path]


def remote_parts(out: str) -> dict[str, bytes]:
    """The published parts, byte for byte."""
    return {path.name: path.read_bytes() for path in place(out).glob("part-*.parquet")}


def stored(store: Store, address: str, rows: pa.Table) -> str:
    """A table as a Parquet object."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=10)
    return store.put(address, sink.getvalue().to_pybytes())


# The same as on this machine


def test_a_bucket_gives_and_takes_what_a_folder_does(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    rows = table(45, 4, tag="bucket")
    local = [written(tmp_path / "in" / f"{n}.parquet", rows.slice(n * 15, 15)) for n in range(3)]
    for n in range(3):
        stored(store, f"{bucket}/rows/{n}.parquet", rows.slice(n * 15, 15))
    store.put(f"{bucket}/rows/_hidden.parquet", b"none")
    assert inside(*fast(server, tmp_path / "out", *local), *parts).returncode == 0
    expected = part_bytes(tmp_path / "out")
    for at, source in enumerate((f"{bucket}/rows", f"{bucket}/rows/*[0-9].parquet")):
        out, state = f"{bucket}/scores{at}", tmp_path / f"state{at}"
        done = inside(*fast(server, out, source), *parts, "--state-dir", state)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert remote_parts(out) == expected
        assert inside("verify", out).returncode == 0
        found = inside("status", out, "--state-dir", state, "--json")
        assert json.loads(found.stdout)["state"] == "finished"
        assert json.loads(inside("status", out, "--json").stdout)["receipt"]["rows"] == 45
        before = server.received
        again = inside(*fast(server, out, source), *parts, "--state-dir", state)
        assert (again.returncode, server.received) == (0, before)


def test_what_was_bought_is_read_from_a_bucket_and_its_state(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    source = stored(store, f"{bucket}/in.parquet", table(40, tag="bought"))
    out, state = f"{bucket}/out", ["--state-dir", tmp_path / "state"]
    bound = ["--max-in-flight", 1, "--max-cost", 0.0003]
    assert inside(*fast(server, out, source), *parts, *state, *bound).returncode == 4
    there = remote_parts(out)
    done = inside("export", out, "--format", "jsonl", *state)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["query_id"] for row in rows] == list(range(len(rows)))
    assert 0 < 10 * len(there) == [row["published"] for row in rows].count(True) < len(rows)
    assert inside("evaluate", out, *state).returncode == 0
    assert inside("report", out, *state, "-o", tmp_path / "page.html").returncode == 0
    done = inside("export", out, "--format", "jsonl")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 10 * len(there))
    assert "pass its --state-dir" in done.stderr
    assert remote_parts(out) == there


def test_an_earlier_output_in_a_bucket_is_reused(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    source = stored(store, f"{bucket}/in.parquet", table(25, tag="nights"))
    first, second = f"{bucket}/night1", f"{bucket}/night2"
    done = inside(*fast(server, first, source), *parts, "--state-dir", tmp_path / "1")
    assert (done.returncode, done.stderr) == (0, "")
    before = server.received
    reuse = ["--reuse", first, "--state-dir"]
    done = inside(*fast(server, second, source), *parts, *reuse, tmp_path / "2")
    assert (done.returncode, done.stderr) == (0, "")
    done = inside(*fast(server, tmp_path / "night3", source), *parts, "--reuse", second)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.received == before
    assert remote_parts(second) == part_bytes(tmp_path / "night3")
    assert inside(*fast(server, first, source), *reuse, tmp_path / "1").returncode == 78
    begun = place(f"{first}/_pairs/run.json").read_bytes()
    again = [
        *fast(server, first, source),
        *parts,
        "--state-dir",
        tmp_path / "1",
        "--restart",
        "--yes",
    ]
    assert inside(*again).returncode == 0
    assert place(f"{first}/_pairs/run.json").read_bytes() == begun


def test_plan_reads_from_a_bucket(store: Store, bucket: str) -> None:
    stored(store, f"{bucket}/in.parquet", table(12, tag="plan"))
    done = inside("plan", f"{bucket}/in.parquet", "--summary", "json")
    assert json.loads(done.stdout)["rows"] == 12


def test_ids_and_their_texts_may_all_be_in_a_bucket(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    run = store.put(f"{bucket}/run.trec", b"q Q0 d1 1 2.0 x\nq Q0 d2 2 1.0 x\n")
    queries = store.put(f"{bucket}/q.jsonl", b'{"_id": "q", "text": "who"}\n')
    corpus = stored(store, f"{bucket}/c/1.parquet", pa.table({"_id": ["d1"], "text": ["a"]}))
    store.put(f"{bucket}/c/2.jsonl", b'{"_id": "d2", "text": "b"}\n')
    options = ["--queries", queries, "--corpus", corpus.rpartition("/")[0]]
    done = inside(*fast(server, tmp_path / "out", run), *options)
    assert (done.returncode, done.stderr) == (0, "")
    found = pq.read_table(tmp_path / "out" / "part-00000.parquet").column("results")[0].as_py()
    assert {result["doc_id"] for result in found} == {"d1", "d2"}


def test_an_output_of_ours_in_a_bucket_is_no_input(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    stored(store, f"{bucket}/all/in.parquet", table(5, tag="nested out"))
    run = [*fast(server, f"{bucket}/all/out", f"{bucket}/all"), "--state-dir", tmp_path / "state"]
    assert inside(*run).returncode == 0
    done = inside("plan", f"{bucket}/all", "--summary", "json")
    assert json.loads(done.stdout)["rows"] == 5


# Killed and resumed


def reached(server: Server, goal: int, process: "subprocess.Popen[str]") -> bool:
    """Whether so many requests have come, or the run is over."""
    return server.received >= goal or process.poll() is not None


def test_killed_at_random_instants_it_ends_with_the_same_bytes(
    store: Store, bucket: str, serve: Serve, tmp_path: Path, parts: list[object]
) -> None:
    """A reader that looks all the while never sees a part that is not whole or that changes."""
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.03\n')
    rows = table(120, 4, tag="s3 killed")
    source = stored(store, f"{bucket}/in.parquet", rows)
    out, state = f"{bucket}/out", tmp_path / "state"
    run = [*fast(slow, out, source), *parts, "--state-dir", state, "--max-in-flight", 8]
    random, kills, seen = Random(7), 0, dict[str, bytes]()
    code = 1
    while code:
        process = started(*run, **store.environment)
        goal = slow.received + random.randrange(5, 50)
        until(partial(reached, slow, goal, process), "it is to be killed, or has ended")
        code = killed(process)
        kills += code != 0
        assert code in {0, -signal.SIGKILL}
        for name, content in remote_parts(out).items():
            assert seen.setdefault(name, content) == content
            pq.read_table(pa.BufferReader(content))
    assert kills >= 2
    ledger = slow.ledger()
    # in flight, and what came in the 50 ms before a commit
    assert ledger["requests"] - ledger["unique"] <= kills * 3 * 8
    done = inside(*fast(slow, tmp_path / "out", written(tmp_path / "in.parquet", rows)), *parts)
    assert done.returncode == 0
    assert remote_parts(out) == part_bytes(tmp_path / "out")
    assert inside("verify", out).returncode == 0


def test_an_upload_that_is_killed_halfway_is_no_file(store: Store, bucket: str) -> None:
    """A large part goes up in pieces; it is there when the last has come and not before."""
    size = 96 << 20
    code = "from batchrank.files.paths import place\n"
    code += f"place('{bucket}/out/x').write_bytes(bytes({size}))"
    environment = clean(**store.environment)
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        until(lambda: store.uploads(bucket) > 0, "the upload has begun")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (place(bucket) / "out" / "x").exists()
    assert store.uploads(bucket) == 1
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert len((place(bucket) / "out" / "x").read_bytes()) == size


def test_a_lost_state_costs_the_open_parts_alone(
    store: Store, bucket: str, serve: Serve, tmp_path: Path, parts: list[object]
) -> None:
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.05\n')
    rows = table(80, 3, tag="lost state")
    source = stored(store, f"{bucket}/in.parquet", rows)
    out, state = f"{bucket}/out", tmp_path / "state"
    run = [*fast(slow, out, source), *parts, "--state-dir", state, "--max-in-flight", 4]
    process = started(*run, **store.environment)
    until(lambda: len(remote_parts(out)) >= 3, "three parts are published")
    killed(process)
    shutil.rmtree(state)
    published, before = remote_parts(out), slow.ledger()["requests"]
    done = program(*run, **store.environment)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "the state is lost; its parts are kept" in done.stderr
    assert slow.ledger()["requests"] - before == 80 - 10 * len(published)
    assert published.items() <= remote_parts(out).items()
    local = written(tmp_path / "in.parquet", rows)
    assert inside(*fast(slow, tmp_path / "out", local), *parts).returncode == 0
    assert remote_parts(out) == part_bytes(tmp_path / "out")


def test_a_lost_state_does_not_open_another_runs_output(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    source = stored(store, f"{bucket}/in.parquet", table(20, tag="mine"))
    other = stored(store, f"{bucket}/other.parquet", table(20, tag="other"))
    out = f"{bucket}/out"
    run = fast(server, out, source)
    assert inside(*run, *parts, "--state-dir", tmp_path / "state").returncode == 0
    before, content = server.received, remote_parts(out)
    fresh = ["--state-dir", tmp_path / "fresh"]
    done = inside(*fast(server, out, other), *parts, *fresh)
    assert (done.returncode, "begun with another input" in done.stderr) == (65, True)
    done = inside(*run, *fresh)
    assert (done.returncode, "begun with output.rows_per_part = 10" in done.stderr) == (78, True)
    (place(out) / "_batchrank.json").unlink()
    done = inside(*run, *parts, *fresh)
    assert (done.returncode, "no run of batchrank" in done.stderr) == (73, True)
    assert (server.received, remote_parts(out)) == (before, content)


def test_restart_throws_the_earlier_run_away(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    out, state = f"{bucket}/out", ["--state-dir", tmp_path / "state"]
    first = stored(store, f"{bucket}/first.parquet", table(25, tag="first"))
    second = stored(store, f"{bucket}/second.parquet", table(5, tag="second"))
    assert inside(*fast(server, out, first), *parts, *state).returncode == 0
    assert len(remote_parts(out)) == 3
    assert inside(*fast(server, out, second), *parts, *state, "--restart", "--yes").returncode == 0
    assert len(remote_parts(out)) == 1
    assert inside("verify", out).returncode == 0


def test_a_store_that_is_gone_ends_the_run_with_74_and_it_goes_on_later(
    serve: Serve, tmp_path: Path, parts: list[object]
) -> None:
    """Nothing is sent after the first refused write."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = f"s3://gone/out?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    source = written(tmp_path / "in.parquet", table(5, tag="gone"))
    server = serve()
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET}
    run = [*fast(server, Path("x"), source), "--state-dir", tmp_path / "state"]
    run[run.index(Path("x"))] = out
    done = program(*run, timeout=120, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert done.stderr.startswith("batchrank: s3://gone/out: cannot be reached: ")
    assert SECRET not in done.stderr
    assert server.received == 0


# State


def test_a_bucket_without_a_state_dir_is_refused(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    source = stored(store, f"{bucket}/in.parquet", table(3))
    done = inside(*fast(server, f"{bucket}/out", source))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        f"batchrank: {bucket}/out: a run's state is kept on a local disk: pass --state-dir DIR, "
        "and the same one to go on.\n"
    )
    assert not place(f"{bucket}/out").exists()


def test_a_local_output_may_have_its_state_elsewhere(server: Server, tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.parquet", table(12, tag="own")), tmp_path / "out"
    state = tmp_path / "far" / "state"
    assert inside(*fast(server, out, source), "--state-dir", state).returncode == 0
    assert [file.name for file in (out / "_batchrank").iterdir()] == ["lock"]
    assert state.stat().st_mode & 0o777 == 0o700
    done = inside(*fast(server, out, source))
    assert (done.returncode, done.stderr) == (
        73,
        f"batchrank: {out}: its state is elsewhere; pass the --state-dir that it was begun with.\n",
    )
    shutil.rmtree(state)
    before = server.received
    assert inside(*fast(server, out, source), "--state-dir", state).returncode == 0
    assert server.received == before


def test_a_state_dir_is_one_outputs(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(4, tag="shared"))
    state = ["--state-dir", tmp_path / "state"]
    assert inside(*fast(server, tmp_path / "a", source), *state).returncode == 0
    done = inside(*fast(server, tmp_path / "b", source), *state)
    assert (done.returncode, done.stderr) == (
        73,
        f"batchrank: {tmp_path / 'state'}: is the state of {tmp_path / 'a'}. Each output has a "
        "--state-dir of its own.\n",
    )


def test_a_folder_of_something_else_is_no_state_dir(server: Server, tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir(mode=0o755)
    (precious / "letter").write_text("precious")
    source = written(tmp_path / "in.parquet", table(4, tag="home"))
    run = [*fast(server, tmp_path / "out", source), "--state-dir", precious]
    for option in ([], ["--restart"]):
        done = inside(*run, *option)
        assert (done.returncode, "no state of batchrank" in done.stderr) == (73, True)
    assert (precious / "letter").read_text() == "precious"
    assert precious.stat().st_mode & 0o777 == 0o755


def test_two_runs_with_one_state_dir_are_kept_apart(
    store: Store, bucket: str, serve: Serve, tmp_path: Path
) -> None:
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.3\n')
    source = stored(store, f"{bucket}/in.parquet", table(20, tag="two"))
    run = [*fast(slow, f"{bucket}/out", source), "--state-dir", tmp_path / "state"]
    processes = [started(*run, "--max-in-flight", 4, **store.environment) for _ in range(3)]
    assert sorted(ended(process)[0] for process in processes) == [0, 75, 75]
    assert slow.ledger()["requests"] == 20


# Addresses


def test_a_key_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        place(f"s3://id:{SECRET}@bucket/rows")
    assert SECRET not in str(refused.value)
    assert "keys come from the environment" in str(refused.value)


def test_an_unknown_place_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    done = inside("plan", "ftp://host/rows.parquet")
    assert (done.returncode, done.stderr) == (
        78,
        "batchrank: ftp://: no such place; batchrank knows paths, s3://, gs://, gcs://, abfs://, "
        "abfss://, hf://.\n",
    )


@pytest.mark.parametrize("name", ["none.parquet", "none", "none/*.parquet"])
def test_what_is_not_in_the_bucket_is_missing(bucket: str, name: str) -> None:
    done = inside("plan", f"{bucket}/{name}")
    assert (done.returncode, done.stderr.count("\n")) == (66, 1)
    assert done.stderr.startswith(f"batchrank: {bucket}/{name}: no ")


def test_a_hub_that_cannot_be_reached_is_a_line_and_74() -> None:
    """hf:// goes through the hub's own client; that it can be opened is all that is shown here."""
    done = program("plan", "hf://datasets/a/b/c.parquet", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert done.stderr.startswith("batchrank: hf://datasets/a/b/c.parquet: cannot be reached: ")


def test_no_key_is_in_the_receipt_or_the_state(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    source = stored(store, f"{bucket}/in.parquet", table(3, tag="keys"))
    out, state = f"{bucket}/out", tmp_path / "state"
    assert inside(*fast(server, out, source), "--state-dir", state).returncode == 0
    folder = place(out)
    assert isinstance(folder, Remote)
    contents = [file.read_bytes() for file in folder.files()]
    contents += [file.read_bytes() for file in state.iterdir()]
    assert not any(SECRET.encode() in content for content in contents)
    assert {file.name for file in folder.files()} == {
        "part-00000.parquet",
        "_run.json",
        "_SUCCESS",
        "_batchrank.json",
    }


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://bucket/a/b.parquet?region=eu-west-1", "s3://bucket/a/b.parquet"),
        ("s3://bucket/a/?region=eu-west-1", "s3://bucket/a"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        (
            "abfs://box@account.dfs.core.windows.net/a/b",
            "abfs://box@account.dfs.core.windows.net/a/b",
        ),
        ("hf://datasets/user/set/rows.parquet", "hf://datasets/user/set/rows.parquet"),
    ],
)
def test_an_address_is_shown_as_it_was_given(address: str, shown: str) -> None:
    found = place(address)
    assert str(found) == shown
    assert str(found / "x") == shown + "/x"
    assert str((found / "x").parent) == shown


def test_several_workers_fill_a_bucket(
    store: Store, bucket: str, server: Server, tmp_path: Path, parts: list[object]
) -> None:
    """Each with its state on a disk of its own; their receipts meet in the bucket."""
    rows = table(45, tag="s3 shards")
    source, out = stored(store, f"{bucket}/in.parquet", rows), f"{bucket}/out"
    run = [*fast(server, out, source), *parts]
    for shard in ("2/3", "0/3"):
        state = tmp_path / shard[0]
        assert inside(*run, "--shard", shard, "--state-dir", state).returncode == 0
        assert (state / f"shard-00{shard[0]}-of-003" / "checkpoint.sqlite").exists()
    done = inside("finish", out)
    assert (done.returncode, "shard 1/3 (not begun) is not finished" in done.stderr) == (75, True)
    shown = json.loads(inside("status", out, "--json").stdout)["shards"]
    assert [one["rows_done"] for one in shown] == [20, 0, 10]
    done = inside(*run, "--state-dir", tmp_path / "alone")
    assert (done.returncode, "begun in 3 shards" in done.stderr) == (73, True)
    done = inside(*run, "--shard", "1/4", "--state-dir", tmp_path / "4")
    assert (done.returncode, "begun in 3 shards, now 4" in done.stderr) == (73, True)
    assert inside(*run, "--shard", "1/3", "--state-dir", tmp_path / "1").returncode == 0
    local = [*fast(server, tmp_path / "out", written(tmp_path / "in.parquet", rows)), *parts]
    assert inside(*local).returncode == 0
    assert remote_parts(out) == part_bytes(tmp_path / "out")
    assert inside("verify", out).returncode == 0
    before = server.received
    assert inside(*run, "--shard", "1/3", "--state-dir", tmp_path / "1").returncode == 0
    assert inside("finish", out).returncode == 0
    assert server.received == before


# What a bucket's folders are


def test_a_table_in_a_bucket_is_refused_however_its_files_are_named(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    store.put(f"{bucket}/in/t/_delta_log/00000000000000000000.json", b"{}")
    stored(store, f"{bucket}/in/t/day=1/part-0.parquet", table(2))
    store.put(f"{bucket}/ice/metadata/v1.metadata.json", b"{}")
    stored(store, f"{bucket}/ice/data/part-0.parquet", table(2))
    before = server.received
    for path, kind in (
        ("in", "Delta Lake"),
        ("in/t", "Delta Lake"),
        ("in/t/day=1", "Delta Lake"),
        ("in/t/day=1/part-0.parquet", "Delta Lake"),
        ("in/t/day=1/*.parquet", "Delta Lake"),
        ("ice", "Iceberg"),
        ("ice/data/part-0.parquet", "Iceberg"),
    ):
        done = inside(*fast(server, tmp_path / "out", f"{bucket}/{path}"))
        assert done.returncode == 65, path
        assert f": is a table of {kind}" in done.stderr
    assert server.received == before


def test_folders_of_a_bucket_that_are_called_as_files_are_read(
    store: Store, bucket: str, server: Server, tmp_path: Path
) -> None:
    """As Spark writes them, and with a column that a folder gives."""
    rows = table(4, tag="spark in a bucket")
    for day in (1, 2):
        address = f"{bucket}/in/day={day}/x.parquet/part-0.parquet"
        stored(store, address, rows.slice(2 * day - 2, 2))
        store.put(f"{bucket}/in/day={day}/x.parquet/_SUCCESS", b"")
    by_folder, by_pattern = f"{bucket}/in", f"{bucket}/in/day=*"
    for at, path in enumerate((by_folder, by_pattern)):
        done = inside(*fast(server, tmp_path / f"out{at}", path), "--keep", "day")
        assert (done.returncode, done.stderr) == (0, "")
        assert output(tmp_path / f"out{at}").column("day").to_pylist() == [1, 1, 2, 2]

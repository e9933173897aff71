"""Every way to end has its code, from the command line to the end of the process."""

import ast
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random, SystemRandom

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    KEY,
    PROGRAM,
    Server,
    clean,
    ended,
    fast,
    inside,
    namespaced,
    output,
    part_bytes,
    program,
    score,
    serving,
    started,
    table,
    until,
    written,
)

from batchrank.errors import AGAIN, ExitCode

Serve = Callable[..., Server]
STALL = '[[fault]]\nkind = "stall"\n'
SLOW = '[[fault]]\nkind = "slow"\nseconds = {}\n'
PRICE = 0.1 / 1e6


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two hundred rows."""
    return written(tmp_path / "in.parquet", table(200, tag=tmp_path.name))


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """What a failure says: one line on standard error and nothing on standard output."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("batchrank: ")
    return done.stderr.removeprefix("batchrank: ").rstrip("\n")


def hosted(server: Server, out: Path, source: Path, *more: object) -> list[object]:
    """A run with provider dashscope against a server of ours."""
    return [*fast(server, out, source), "--provider", "dashscope", *more]


def failing(status: int, code: str, message: str = "", where: str = "") -> str:
    """A fault script that answers with this error."""
    words = f'message = "{message}"\n' if message else ""
    return f'[[fault]]\nkind = "status"\nstatus = {status}\ncode = "{code}"\n{words}{where}\n'


def test_0_is_done(server: Server, source: Path, tmp_path: Path) -> None:
    done = program(*fast(server, tmp_path / "out", source))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "in.parquet"],
        ["run", "in.parquet", "-o", "out", "--max-cost", "much"],
        ["run", "in.parquet", "-o", "out", "--max-in-flight", "0"],
        ["run", "in.parquet", "-o", "out", "--key", "sk"],
        ["fly"],
        ["plan"],
        ["status"],
    ],
    ids=" ".join,
)
def test_2_is_a_command_that_cannot_be_understood(arguments: list[str], tmp_path: Path) -> None:
    done = program(*arguments, cwd=tmp_path, PYTHONPATH=os.getcwd())
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: batchrank" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


POISON = '[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 7 " }\n'


def test_3_is_more_failed_rows_than_allowed(serve: Serve, source: Path, tmp_path: Path) -> None:
    own, out = serve(POISON), tmp_path / "out"
    done = program(*fast(own, out, source))
    assert done.returncode == 3
    assert one_line(done) == (
        "1 rows failed, more than --max-failed-rows 0; their reasons are in column "
        f'"error" of {out}.'
    )
    assert not (out / "_SUCCESS").exists()
    assert output(out).num_rows == 200
    assert output(out).column("status").to_pylist().count("failed") == 1
    assert json.loads((out / "_run.json").read_bytes())["exit_code"] == 3
    before = own.received
    assert inside(*fast(own, out, source), "--max-failed-rows", 1).returncode == 0
    assert own.received == before
    assert (out / "_SUCCESS").exists()


def test_4_is_the_cost_reached_and_a_higher_one_goes_on(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", server.ledger()
    run = [*fast(server, out, source), "--max-in-flight", 4]
    done = program(*run, "--max-cost", 0.001)
    assert done.returncode == 4
    assert one_line(done) == (
        "stopped before the cost could pass --max-cost; the same command with a higher one goes "
        "on from here."
    )
    spent = server.ledger()["tokens"] - before["tokens"]
    assert 0 < spent * PRICE <= 0.001
    assert inside(*run).returncode == 0
    assert server.ledger()["requests"] - before["requests"] == 200


@pytest.mark.parametrize("seed", [1, 2])
def test_the_cost_holds_with_answers_that_never_arrive(
    serve: Serve, source: Path, tmp_path: Path, seed: int
) -> None:
    """Requests that were billed and whose answer was lost count, from session to session too."""
    faults = '[[fault]]\nkind = "reset_inside_body"\nwhere = { probability = 0.3 }\n'
    own, out, cap = serve(f"seed = {seed}\n" + faults), tmp_path / "out", 0.001
    spends = []
    for _ in range(3):
        done = inside(*fast(own, out, source), "--max-cost", cap)
        assert done.returncode == 4
        spends.append(own.ledger()["tokens"] * PRICE)
    assert own.ledger()["faults"]["reset_inside_body"] > 0
    assert spends[0] <= cap, "within a session"
    assert spends[-1] <= cap, f"over several sessions: {spends}"


def test_65_is_an_input_that_cannot_be_read(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_text("query,candidates\n")
    done = program(*fast(server, tmp_path / "out", path))
    assert done.returncode == 65
    assert one_line(done).startswith(f"{path}: not a readable Parquet file: ")
    assert not (tmp_path / "out").exists()


def test_65_is_a_page_that_cannot_be_read_and_what_came_before_is_kept(
    server: Server, tmp_path: Path
) -> None:
    path = written(tmp_path / "in.parquet", table(3000, tag="torn"), row_group_size=1000)
    whole = path.read_bytes()
    group = pq.read_metadata(path).row_group(2)
    start = group.column(3).dictionary_page_offset or group.column(3).data_page_offset
    path.write_bytes(whole[: start + 50] + bytes(500) + whole[start + 550 :])
    (tmp_path / "c.toml").write_text("[output]\nrows_per_part = 500\n")
    out, before = tmp_path / "out", server.ledger()
    run = [*fast(server, out, path), "-c", tmp_path / "c.toml"]
    done = program(*run)
    assert done.returncode == 65
    assert one_line(done).startswith(f"{path}: cannot be read: ")
    until(lambda: inside(*run).returncode == 65 and len(part_bytes(out)) == 4, "rest is done")
    after = server.ledger()
    requests, unique = (after[name] - before[name] for name in ("requests", "unique"))
    assert requests == unique <= 2500
    assert not (out / "_SUCCESS").exists()


def test_66_is_an_input_that_is_not_there(server: Server, tmp_path: Path) -> None:
    done = program(*fast(server, tmp_path / "out", tmp_path / "none.parquet"))
    assert done.returncode == 66
    assert one_line(done) == f"{tmp_path / 'none.parquet'}: no such file or folder."


ACCOUNT = [
    (403, "AccessDenied", ""),
    (403, "AccessDenied.Unpurchased", ""),
    (400, "Arrearage", ""),
    (403, "AllocationQuota.FreeTierOnly", ""),
    (404, "ModelNotFound", ""),
    (429, "PrepaidBillOverdue", ""),
    (429, "insufficient_quota", "Free allocated quota exceeded."),
    (200, "Arrearage", ""),
]
BROKEN = ["bad_json", "partial", "nan_score", "string_score"]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answer goes by a mark in the query: a place in ACCOUNT, or a kind."""
    script = tmp_path_factory.mktemp("refusing") / "faults.toml"
    by_account = [
        failing(status, code, message, f'where = {{ marker = "account{place} " }}')
        for place, (status, code, message) in enumerate(ACCOUNT)
    ]
    by_kind = [f'[[fault]]\nkind = "{kind}"\nwhere = {{ marker = "{kind} " }}\n' for kind in BROKEN]
    script.write_text("".join([*by_account, *by_kind]))
    with serving("--faults", str(script)) as one:
        yield one


def marked(tmp_path: Path, mark: str) -> Path:
    """Two hundred rows whose queries begin with a mark."""
    rows = table(200, tag="marked")
    queries = [f"{mark} {query}" for query in rows.column("query").to_pylist()]
    return written(tmp_path / "in.parquet", rows.set_column(1, "query", pa.array(queries)))


@pytest.mark.parametrize("place", range(len(ACCOUNT)), ids=lambda place: ACCOUNT[place][1])
def test_69_is_an_account_that_will_not_be_served(
    refusing: Server, tmp_path: Path, place: int
) -> None:
    status, code, _ = ACCOUNT[place]
    source, before = marked(tmp_path, f"account{place}"), refusing.received
    receipt = score(refusing, source, tmp_path / "out", rate={"max_in_flight": 8})
    assert (receipt.exit_code, receipt.message) == (
        69,
        f"the endpoint answered {status} {code}. "
        "The endpoint will not serve this account or model.",
    )
    assert 0 < refusing.received - before <= 8


def test_69_is_one_line_on_the_command_line(refusing: Server, tmp_path: Path) -> None:
    done = program(*fast(refusing, tmp_path / "out", marked(tmp_path, "account2")))
    assert done.returncode == 69
    assert one_line(done).startswith("the endpoint answered 400 Arrearage. ")


def test_73_is_an_output_of_something_else(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("a file")
    done = program(*fast(server, out, source))
    assert done.returncode == 73
    assert one_line(done) == f"{out}: is a file; the output is a folder."


def limited(run: list[object], size: int) -> "subprocess.CompletedProcess[str]":
    """The command where no file may grow over this size."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [*PROGRAM, *map(str, run)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean(),
        preexec_fn=limit,
        check=False,
    )


@pytest.mark.parametrize("size", [0, 10_000, 45_000])
def test_74_is_a_file_that_cannot_grow_and_a_healthy_disk_goes_on(
    server: Server, tmp_path: Path, size: int
) -> None:
    source = written(tmp_path / "in.parquet", table(500, 10, tag=f"grow{size}"))
    out = tmp_path / "out"
    done = limited(fast(server, out, source), size)
    assert done.returncode == 74, done.stderr
    assert "cannot be written" in one_line(done)
    assert part_bytes(out) == {}
    assert not (out / "_SUCCESS").exists()
    assert inside(*fast(server, out, source)).returncode == 0
    score(server, source, tmp_path / "oracle")
    assert part_bytes(out) == part_bytes(tmp_path / "oracle")


@pytest.mark.parametrize("kilobytes", [16, 130])
def test_74_is_a_full_disk_and_what_was_committed_is_kept(
    server: Server, source: Path, tmp_path: Path, kilobytes: int
) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    source = written(tmp_path / "in.parquet", table(500, 10, tag=f"full{kilobytes}"))
    code, stderr = namespaced(
        f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk} && trap 'cp -a {disk} {copy}' EXIT",
        fast(server, disk / "out", source),
    )
    assert (code, len(stderr.splitlines())) == (74, 1), stderr
    assert "cannot be written" in stderr
    assert not list((copy / "out").glob("part-*"))
    assert inside(*fast(server, copy / "out", source)).returncode == 0
    score(server, source, tmp_path / "oracle")
    assert part_bytes(copy / "out") == part_bytes(tmp_path / "oracle")


def test_74_is_a_disk_without_room_for_a_file(server: Server, source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for inodes in (2, 3, 4):
        code, stderr = namespaced(
            f"mount -t tmpfs -o nr_inodes={inodes} tmpfs {disk}",
            fast(server, disk / "out", source),
        )
        assert (code, len(stderr.splitlines())) == (74, 1), f"{inodes} inodes: {stderr}"


def test_75_is_an_output_that_another_process_has(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve(STALL)
    first = started(*fast(own, tmp_path / "out", source))
    until(lambda: own.received > 0, "the first run sends")
    done = program(*fast(own, tmp_path / "out", source))
    first.kill()
    first.communicate()
    assert done.returncode == 75
    message = f"{tmp_path / 'out'}: another batchrank is at work on this output."
    assert one_line(done) == message


def test_75_is_an_endpoint_out_of_reach_for_longer_than_max_outage(
    source: Path, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/compatible-api/v1"
        config = tmp_path / "c.toml"
        config.write_text(f'[endpoint]\nbase_url = "{url}"\nmax_outage_seconds = 1\n')
        done = program("run", source, "-o", tmp_path / "out", "-c", config)
    assert done.returncode == 75
    assert "Traceback" not in done.stderr and one_line(done)
    assert part_bytes(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", BROKEN)
def test_76_is_an_endpoint_that_answers_otherwise_than_a_rerank_api(
    refusing: Server, tmp_path: Path, kind: str
) -> None:
    done = inside(*fast(refusing, tmp_path / "out", marked(tmp_path, kind)))
    assert refusing.ledger()["faults"][kind] > 0
    assert done.returncode == 76
    assert one_line(done)
    assert part_bytes(tmp_path / "out") == {}


def test_77_is_a_key_that_is_refused(serve: Serve, source: Path, tmp_path: Path) -> None:
    own = serve("", "--api-key-env", "RIGHT", RIGHT="sk-right")
    done = program(
        *hosted(own, tmp_path / "out", source, "--max-in-flight", 8), DASHSCOPE_API_KEY=KEY
    )
    assert done.returncode == 77
    assert one_line(done) == (
        "the endpoint answered 401 InvalidApiKey. Is the key right, and of this region?"
    )
    assert own.received <= 8
    assert own.ledger()["requests"] == 0
    again = hosted(own, tmp_path / "out", source)
    assert program(*again, DASHSCOPE_API_KEY="sk-right").returncode == 0


def test_78_is_a_key_that_is_not_set(server: Server, source: Path, tmp_path: Path) -> None:
    before = server.received
    done = program(*hosted(server, tmp_path / "out", source))
    assert done.returncode == 78
    assert one_line(done) == (
        "the environment variable DASHSCOPE_API_KEY is not set, and provider "
        '"dashscope" wants a key (endpoint.api_key_env names the variable).'
    )
    assert server.received == before
    assert not (tmp_path / "out").exists()


def test_78_is_an_unknown_key_of_the_configuration(source: Path, tmp_path: Path) -> None:
    (tmp_path / "hosted.toml").write_text("[rate]\nrequest_per_minute = 60\n")
    config = tmp_path / "hosted.toml"
    done = program("run", source, "-o", tmp_path / "out", "-c", config)
    assert done.returncode == 78
    assert one_line(done) == (
        "hosted.toml: unknown key rate.request_per_minute. Did you mean rate.requests_per_minute?"
    )


def test_78_is_a_redirecting_base_url_and_nothing_follows_it(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    location = server.base_url + "/reranks"
    own = serve(f'[[fault]]\nkind = "redirect"\nlocation = "{location}"\n')
    before = server.received
    done = program(*fast(own, tmp_path / "out", source))
    assert done.returncode == 78
    assert one_line(done) == (
        "the endpoint answered 307, a redirect, which is not followed: it would take texts and "
        "key to another address. Set endpoint.base_url to the final one."
    )
    assert server.received == before


def test_78_is_a_base_url_where_there_is_no_such_api(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = ["run", source, "-o", tmp_path / "out", "--base-url", server.host + "/v9"]
    done = program(*run)
    assert done.returncode == 78
    assert one_line(done).startswith("the endpoint answered 404")


def test_terminal_errors_end_the_run_although_other_answers_never_come(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    where = "where = { from = 5, to = 5 }"
    own = serve(failing(401, "InvalidApiKey", where=where) + STALL)
    process = started(*fast(own, tmp_path / "out", source), "--max-in-flight", 8)
    until(lambda: own.received >= 5, "the refusal is answered")
    code, _, stderr = ended(process, timeout=5)
    assert code == 77
    assert "401" in stderr
    assert own.received <= 5 + 8


# Signals


def stopping(process: "subprocess.Popen[str]", number: int, seconds: float = 4) -> tuple[int, str]:
    """Signal a run; its code and standard error, which must come within so many seconds."""
    process.send_signal(number)
    code, stdout, stderr = ended(process, timeout=seconds)
    assert stdout == ""
    return code, stderr


@pytest.mark.parametrize("trial", range(int(os.environ.get("BATCHRANK_TRIALS", "10")) // 10))
def test_143_is_sigterm_at_any_instant_and_the_same_command_goes_on(
    serve: Serve, source: Path, tmp_path: Path, trial: int
) -> None:
    seed = SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    own, out = serve(SLOW.format(0.1)), tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 8]
    process = started(*run)
    until((out / "_batchrank" / "lock").exists, "the run has begun")
    time.sleep(Random(seed).uniform(0, 2))
    code, stderr = stopping(process, signal.SIGTERM)
    assert code == 143
    assert len(stderr.splitlines()) <= 1
    assert inside(*run).returncode == 0
    assert output(out).column("query_id").to_pylist() == list(range(200))
    assert own.ledger()["requests"] == own.ledger()["unique"] == 200


def test_answers_that_arrive_during_the_drain_are_kept(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW.format(0.7)), tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 8]
    process = started(*run)
    until(lambda: own.received == 8, "eight are in flight")
    code, stderr = stopping(process, signal.SIGTERM)
    assert (code, stderr) == (
        143,
        "batchrank: stopped by SIGTERM; the same command goes on from here.\n",
    )
    assert own.received == 8
    receipt = json.loads((out / "_run.json").read_bytes())
    assert (receipt["requests"], receipt["possibly_paid"]) == (8, 0)
    assert (receipt["status"], receipt["exit_code"], receipt["rows_open"]) == ("stopped", 143, 200)
    assert inside(*run, "--max-in-flight", 64).returncode == 0
    assert own.ledger()["requests"] == 200


def test_sigterm_does_not_wait_for_answers_that_never_come(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own, out = serve(STALL), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 8)
    until(lambda: own.received == 8, "eight are in flight")
    code, _ = stopping(process, signal.SIGTERM)
    assert code == 143
    receipt = json.loads((out / "_run.json").read_bytes())
    assert (receipt["requests"], receipt["possibly_paid"]) == (8, 8)


def test_sigterm_does_not_wait_for_requests_that_fail_while_it_drains(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    faults = failing(503, "ModelUnavailable", where="retry_after = 30\nscored = true")
    own, out = serve(faults), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 8)
    until(lambda: own.received >= 8, "eight have failed")
    assert stopping(process, signal.SIGTERM)[0] == 143


def hammered(process: "subprocess.Popen[str]", number: int) -> None:
    """The same signal every few milliseconds until the process has ended."""

    def hammer() -> None:
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.003)

    threading.Thread(target=hammer, daemon=True).start()


def test_a_second_sigterm_changes_nothing(serve: Serve, source: Path, tmp_path: Path) -> None:
    """Nor a hundredth: the drain is finished, the receipt is written, the code is 143."""
    own, out = serve(SLOW.format(0.7)), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 8)
    until(lambda: own.received == 8, "eight are in flight")
    process.send_signal(signal.SIGTERM)
    hammered(process, signal.SIGTERM)
    assert ended(process, timeout=4)[0] == 143
    receipt = json.loads((out / "_run.json").read_bytes())
    assert (receipt["exit_code"], receipt["requests"], receipt["possibly_paid"]) == (143, 8, 0)


def test_130_is_ctrl_c_and_a_second_one_leaves_at_once(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW.format(0.5)), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 8)
    until(lambda: own.received == 8, "eight are in flight")
    code, stderr = stopping(process, signal.SIGINT)
    assert (code, stderr) == (
        130,
        "batchrank: stopped by Ctrl-C; the same command goes on from here.\n",
    )
    assert json.loads((out / "_run.json").read_bytes())["possibly_paid"] == 0

    stalled = serve(STALL)
    process = started(*fast(stalled, tmp_path / "two", source), "--max-in-flight", 8)
    until(lambda: stalled.received == 8, "eight are in flight")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    code, _ = stopping(process, signal.SIGINT, seconds=2)  # the drain alone would take longer
    assert code == 130
    receipt = json.loads((tmp_path / "two" / "_run.json").read_bytes())
    assert (receipt["exit_code"], receipt["possibly_paid"]) == (130, 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_local_server_starts_ends_both(
    source: Path, tmp_path: Path, number: int
) -> None:
    process = started("run", source, "-o", tmp_path / "out")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text().split()), "the local server is started")
    child = Path("/proc") / children.read_text().split()[0]
    code, _ = stopping(process, number, seconds=10)  # as long as that server takes to start
    assert code == 128 + number
    until(lambda: not child.exists(), "the local server has ended", 10)


def test_a_signal_while_the_input_is_opened_is_a_stop_too(server: Server, tmp_path: Path) -> None:
    """Thousands of footers take a while; nothing has been written by then."""
    rows = table(1, tag="footer")
    one = pa.BufferOutputStream()
    pq.write_table(rows, one)
    content = one.getvalue().to_pybytes()
    (tmp_path / "in").mkdir()
    for number in range(4000):
        (tmp_path / "in" / f"{number:04}.parquet").write_bytes(content)
    process = started(*fast(server, tmp_path / "out", tmp_path / "in"))
    until(lambda: _has_open(process, tmp_path / "in"), "a footer is being read")
    code, _ = stopping(process, signal.SIGTERM)
    assert code == 143
    assert not (tmp_path / "out").exists()


def _has_open(process: subprocess.Popen[str], folder: Path) -> bool:
    """Whether the process reads a file of the folder at this moment."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    with contextlib.suppress(FileNotFoundError):  # closed while it was looked at
        return any(folder in link.readlink().parents for link in descriptors.iterdir())
    return False


# Proxies


def test_a_proxy_of_the_environment_is_not_asked_for_an_address_on_this_machine(
    server: Server, source: Path, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        run = fast(server, tmp_path / "out", source)
        assert program(*run, HTTP_PROXY=proxy, http_proxy=proxy, timeout=60).returncode == 0


# Schedulers


def test_airflow_tries_again_what_the_table_says() -> None:
    """But for 130: nobody presses Ctrl-C there. Airflow has an environment of its own."""
    dag = Path(__file__).parents[1] / "jobs" / "airflow_rerank.py"
    (codes,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(dag.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "AGAIN"
    ]
    assert set(codes) == AGAIN - {ExitCode.INTERRUPTED}
    assert 99 not in set(ExitCode)

"""A full standard output is 74 and one line, after the work; a closed one is no error."""

import subprocess
from pathlib import Path

import pytest
from helpers import PROGRAM, Server, clean, fast, inside, one_row, table, written

LINE = "batchrank: standard output: cannot be written: No space left on device."


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A finished output, and its input beside it."""
    folder = tmp_path_factory.mktemp("scores")
    path = written(folder / "in.parquet", table(3))
    assert inside(*fast(server, folder / "out", path)).returncode == 0
    return folder


def full(*arguments: object, **environment: str) -> tuple[int, list[str]]:
    """The code and the lines of a command whose standard output is full."""
    with open("/dev/full", "wb") as device:
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=device,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=clean(**environment),
            check=False,
        )
    return done.returncode, done.stderr.splitlines()


COMMANDS = [
    "plan IN",
    "plan IN --summary json",
    "status OUT",
    "status OUT --json",
    "verify OUT",
    "report OUT",
    "evaluate OUT",
    "evaluate OUT --json",
    "export OUT --format trec",
    "export OUT --format jsonl",
    "providers",
    "providers --json",
    "serve --port 0 --scorer hash",
    "coordinate --workers 2 --port 0",
    "--help",
    "--version",
    "run --help",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_standard_output_is_one_line_and_its_code(scores: Path, command: str) -> None:
    places = {"IN": scores / "in.parquet", "OUT": scores / "out"}
    words = [places.get(word, word) for word in command.split()]
    assert full(*words) == (74, [LINE])
    assert full(*words, PYTHONIOENCODING="ascii") == (74, [LINE])


@pytest.mark.parametrize("summary", ["json", "text"])
def test_a_run_is_finished_before_its_figures_cannot_be_written(
    server: Server, tmp_path: Path, summary: str
) -> None:
    path, out = written(tmp_path / "in.parquet", table(3, tag=summary)), tmp_path / "out"
    assert full(*fast(server, out, path), "--summary", summary) == (74, [LINE])
    before = server.received
    assert inside("verify", out).returncode == 0
    assert inside(*fast(server, out, path)).returncode == 0
    assert server.received == before


def test_how_a_run_ended_goes_before_what_could_not_be_written(
    server: Server, tmp_path: Path
) -> None:
    path = written(tmp_path / "in.parquet", one_row("query", ["text", " "]))
    options = ["--max-partial-rows", "0", "--summary", "json"]
    code, lines = full(*fast(server, tmp_path / "out", path), *options)
    assert code == 3
    assert lines[0] == LINE
    assert "partial" in lines[1]


@pytest.mark.parametrize("command", ["plan IN", "status OUT --json", "providers", "--help"])
def test_who_reads_no_more_has_seen_enough(scores: Path, command: str) -> None:
    places = {"IN": scores / "in.parquet", "OUT": scores / "out"}
    words = [str(places.get(word, word)) for word in command.split()]
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("command", "code"), [("plan", 2), ("plan /nope", 66), ("status /nope", 73)]
)
def test_a_full_standard_error_changes_no_code(command: str, code: int) -> None:
    with open("/dev/full", "wb") as device:
        done = subprocess.run(
            [*PROGRAM, *command.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=device,
            timeout=60,
            env=clean(),
            check=False,
        )
    assert done.returncode == code


@pytest.mark.parametrize(
    ("encoding", "written"), [("latin-1", b"\xfc \\u20ac"), ("ascii", "ü €".encode())]
)
def test_a_sign_that_the_encoding_lacks_is_escaped(
    scores: Path, encoding: str, written: bytes
) -> None:
    done = subprocess.run(
        [*PROGRAM, "plan", scores / "in.parquet", "--instruct", "ü €"],
        capture_output=True,
        timeout=60,
        env=clean(PYTHONIOENCODING=encoding),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert written in done.stdout

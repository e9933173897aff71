"""An output without its receipt or its state: a line from every command, nothing paid twice."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, fast, inside, part_bytes, program, table, written

from batchrank.errors import ExitCode

ROWS = 40


def lose(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty receipt": lambda out: cut(out / "_run.json", 0),
    "half a receipt": lambda out: cut(out / "_run.json", 300),
    "no receipt": lambda out: lose(out / "_run.json"),
    "no state": lambda out: lose(out / "_batchrank"),
    "neither": lambda out: lose(out / "_batchrank", out / "_run.json"),
    "no state, not finished": lambda out: lose(out / "_batchrank", out / "_SUCCESS"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("rows") / "in.parquet", table(ROWS, tag="damaged"))


@pytest.fixture
def out(server: Server, source: Path, tmp_path: Path) -> Path:
    assert inside(*arguments(server, source, tmp_path)).returncode == 0
    return tmp_path / "out"


def arguments(server: Server, source: Path, folder: Path) -> list[object]:
    config = folder / "parts.toml"
    config.write_text("[output]\nrows_per_part = 10\n")
    return [*fast(server, folder / "out", source), "-c", config]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_command_makes_it_whole_and_sends_nothing(
    server: Server, source: Path, out: Path, damage: str
) -> None:
    parts, received = part_bytes(out), server.received
    DAMAGES[damage](out)
    done = program(*arguments(server, source, out.parent))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") <= 2
    assert server.received == received
    assert part_bytes(out) == parts
    assert inside("verify", out).returncode == 0
    assert json.loads((out / "_run.json").read_bytes())["rows"] == ROWS


def test_a_lost_part_and_a_lost_state_cost_that_part(
    server: Server, source: Path, out: Path
) -> None:
    parts, received = part_bytes(out), server.received
    lose(*(out / name for name in ("_batchrank", "_SUCCESS", "_run.json", "part-00003.parquet")))
    assert program(*arguments(server, source, out.parent)).returncode == 0
    assert server.received == received + 10
    assert part_bytes(out) == parts


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "command", ["status", "verify", "report", "export --format trec", "evaluate", "finish"]
)
def test_every_command_says_it_in_a_line(out: Path, damage: str, command: str) -> None:
    DAMAGES[damage](out)
    name, *options = command.split()
    done = inside(name, out, *options)
    assert done.returncode in {0, ExitCode.INPUT_BAD, ExitCode.OUTPUT_UNUSABLE}
    assert done.stderr.count("\n") <= 3
    assert "Traceback" not in done.stderr


def test_a_folder_in_the_place_of_the_receipt_is_named(
    server: Server, source: Path, out: Path
) -> None:
    lose(out / "_run.json")
    (out / "_run.json").mkdir()
    done = program(*arguments(server, source, out.parent))
    assert done.returncode == ExitCode.OUTPUT_UNUSABLE
    assert "_run.json: is a folder" in done.stderr
    assert (out / "_SUCCESS").exists()

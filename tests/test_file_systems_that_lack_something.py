"""A state on another file system, no locks, no syncs of folders; two states for one output."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Server, ended, fast, output, part_bytes, program, started, table, until, written

from batchrank.errors import ExitCode

ROWS = 200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("rows") / "in.parquet", table(ROWS, tag="lacking"))


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that refuses calls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs cc")
    library = tmp_path_factory.mktemp("refusing") / "refused_calls.so"
    code = Path(__file__).with_name("refused_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, code, "-ldl"], check=True)
    return str(library)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on another file system."""
    place = Path("/dev/shm")
    if not place.is_dir() or os.stat(place).st_dev == os.stat(tempfile.gettempdir()).st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def test_a_state_on_another_file_system_is_as_good(
    server: Server, source: Path, memory: Path, tmp_path: Path
) -> None:
    run = [*fast(server, tmp_path / "out", source), "--state-dir", memory / "state"]
    done = program(*run)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(output(tmp_path / "out")) == ROWS
    assert program(*fast(server, tmp_path / "other", source)).returncode == 0
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "other")


@pytest.mark.parametrize("shard", [[], ["--shard", "0/1"]], ids=["a run", "a shard"])
def test_a_second_run_with_another_state_sends_nothing(
    serve: Callable[..., Server], source: Path, tmp_path: Path, shard: list[str]
) -> None:
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    run = [*fast(slow, tmp_path / "out", source), *shard, "--max-in-flight", "4", "--state-dir"]
    one = started(*run, tmp_path / "one")
    until(lambda: slow.received > 3, "the first run is at work")
    two = program(*run, tmp_path / "two")
    assert two.returncode == ExitCode.TRY_LATER, two.stderr
    assert ended(one)[0] == 0
    paid = slow.ledger()
    assert paid["requests"] == paid["unique"] == ROWS


def test_an_output_with_a_state_of_its_own_takes_no_other(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = fast(server, tmp_path / "out", source)
    assert program(*run).returncode == 0
    second = program(*run, "--state-dir", tmp_path / "state")
    assert second.returncode == ExitCode.OUTPUT_UNUSABLE
    assert "Leave --state-dir out" in second.stderr


def test_a_state_without_locks_is_refused_in_one_line(
    server: Server, source: Path, tmp_path: Path, refusing: str
) -> None:
    without = {"LD_PRELOAD": refusing, "REFUSE_LOCKS": str(tmp_path)}
    refused = program(*fast(server, tmp_path / "out", source), **without)
    assert refused.returncode == ExitCode.OUTPUT_UNUSABLE
    assert "--state-dir" in refused.stderr and refused.stderr.count("\n") == 1


def test_an_output_without_locks_takes_a_state_elsewhere(
    server: Server, source: Path, tmp_path: Path, refusing: str
) -> None:
    without = {"LD_PRELOAD": refusing, "REFUSE_LOCKS": str(tmp_path / "out")}
    run = [*fast(server, tmp_path / "out", source), "--state-dir", tmp_path / "state"]
    assert program(*run, **without).returncode == 0


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(
    server: Server, source: Path, tmp_path: Path, refusing: str
) -> None:
    without = {"LD_PRELOAD": refusing, "REFUSE_SYNCS": "1"}
    done = program(*fast(server, tmp_path / "out", source), **without)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(output(tmp_path / "out")) == ROWS

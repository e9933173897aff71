"""An input that cannot be read for the moment (a disk's error, a file server gone) is 74: again."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import PROGRAM, Server, clean, fast, table, written

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def faulty(
    path: Path, error: str, calls: str, when: int, command: Sequence[object], log: Path
) -> tuple[int, str]:
    """Run a command whose calls on a file fail from the given one on; its code and words."""
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", log, "-P", path, "-e", f"trace={calls}"),
            *("-e", f"inject={calls}:error={error}:when={when}+"),
            *PROGRAM,
            *map(str, command),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean(),
        check=False,
    )
    assert "INJECTED" in log.read_text(), "no call failed"
    return done.returncode, done.stderr


@pytest.mark.parametrize("error", ["EIO", "ESTALE", "ETIMEDOUT"])
@pytest.mark.parametrize("when", [1, 3, 9])
def test_rows_that_cannot_be_read_now_are_no_bad_input(
    server: Server, tmp_path: Path, error: str, when: int
) -> None:
    source = written(tmp_path / "in.parquet", table(3000), row_group_size=300)
    command = fast(server, tmp_path / "out", source)
    code, said = faulty(source, error, "read,pread64", when, command, tmp_path / "log")
    assert (code, said.count("\n")) == (74, 1), said
    assert f"{source}: cannot be read" in said


@pytest.mark.parametrize("error", ["EIO", "ESTALE"])
@pytest.mark.parametrize("when", [1, 2, 4, 6])
def test_a_file_that_cannot_be_looked_at_now_is_no_bad_input(
    server: Server, tmp_path: Path, error: str, when: int
) -> None:
    source = written(tmp_path / "in.parquet", table(300))
    calls = "openat,stat,newfstatat,statx,lstat"
    command = fast(server, tmp_path / "out", source)
    code, said = faulty(source, error, calls, when, command, tmp_path / "log")
    assert (code, said.count("\n")) == (74, 1), said


@pytest.mark.parametrize("name", ["run.trec", "queries.jsonl", "corpus.jsonl"])
@pytest.mark.parametrize("when", [1, 3])
def test_text_files_that_cannot_be_read_now_are_no_bad_input(
    server: Server, tmp_path: Path, name: str, when: int
) -> None:
    numbers = range(200)
    (tmp_path / "run.trec").write_text("".join(f"q{n} Q0 d{n} 1 1.0 tag\n" for n in numbers))
    for file, letter in (("queries", "q"), ("corpus", "d")):
        lines = [json.dumps({"_id": f"{letter}{n}", "text": f"text {n}"}) + "\n" for n in numbers]
        (tmp_path / f"{file}.jsonl").write_text("".join(lines))
    beside = ["--queries", tmp_path / "queries.jsonl", "--corpus", tmp_path / "corpus.jsonl"]
    command = fast(server, tmp_path / "out", tmp_path / "run.trec", *beside)
    path = tmp_path / name
    code, said = faulty(path, "EIO", "read,pread64", when, command, tmp_path / "log")
    assert (code, said.count("\n")) == (74, 1), said


def test_a_damaged_file_is_still_bad_input(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", pa.concat_tables([table(300)] * 3))
    content = bytearray(source.read_bytes())
    content[2000:2400] = bytes(400)
    source.write_bytes(content)
    command = list(map(str, fast(server, tmp_path / "out", source)))
    done = subprocess.run([*PROGRAM, *command], capture_output=True, env=clean(), check=False)
    assert done.returncode == 65

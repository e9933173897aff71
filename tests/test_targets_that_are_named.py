"""What a user names as a target: a file is whole, a device is written into, no planted link is
followed.
"""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from helpers import PROGRAM, Server, clean, fast, inside, program, table, written

from batchrank.files.atomic import open_target, replace_whole

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")


@pytest.fixture(scope="module")
def out(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    source = written(folder / "in.parquet", table(5, tag="named"))
    assert inside(*fast(server, folder / "out", source)).returncode == 0
    return folder / "out"


def make_device(path: Path, minor: int) -> Path:
    os.mknod(path, 0o20666, os.makedev(1, minor))
    return path


def is_device(path: Path) -> bool:
    return stat.S_ISCHR(path.lstat().st_mode)


@needs_root
@pytest.mark.parametrize("words", [["report"], ["export", "--format", "trec"]])
def test_a_device_stays_a_device(words: list[str], out: Path, tmp_path: Path) -> None:
    null = make_device(tmp_path / "null", 3)
    assert inside(*words, out, "-o", null).returncode == 0
    full = make_device(tmp_path / "full", 7)
    refused = inside(*words, out, "-o", full)
    assert refused.returncode == 74 and "No space left" in refused.stderr
    assert is_device(null) and is_device(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "null"]


@needs_root
@pytest.mark.parametrize(("minor", "code"), [(3, 0), (7, 74), (5, 0)], ids=["null", "full", "zero"])
def test_metrics_are_written_into_a_device_and_never_read_from_it(
    minor: int, code: int, server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="device"))
    device = make_device(tmp_path / "device", minor)
    done = program(*fast(server, tmp_path / "out", source), "--metrics-file", device)
    assert done.returncode == code, done.stderr
    assert is_device(device) and "Traceback" not in done.stderr


def test_a_pipe_that_nobody_reads_does_not_hold_metrics_up(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="pipe"))
    os.mkfifo(tmp_path / "pipe")
    done = program(*fast(server, tmp_path / "out", source), "--metrics-file", tmp_path / "pipe")
    assert done.returncode == 74, done.stderr


def test_a_report_on_standard_output_is_all_that_is_there(out: Path, tmp_path: Path) -> None:
    report = ["report", str(out), "-o", "/dev/stdout"]
    piped = program(*report)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.startswith("<!doctype html>") and piped.stdout.endswith("</html>\n")
    with (tmp_path / "page").open("wb") as page:
        page.write(b"before\n")
        page.flush()
        subprocess.run([*PROGRAM, *report], stdout=page, env=clean(), check=True, timeout=60)
    assert (tmp_path / "page").read_text() == "before\n" + piped.stdout


def test_a_target_that_is_a_link_stands_for_its_file(out: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    link = tmp_path / "latest.html"
    link.symlink_to("reports/today.html")
    assert inside("report", out, "-o", link).returncode == 0
    assert link.is_symlink() and (tmp_path / "reports" / "today.html").stat().st_size > 1000


@pytest.mark.parametrize("names_target", [True, False], ids=["a target", "a file of ours"])
def test_a_link_under_the_draft_s_name_is_not_followed(names_target: bool, tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("precious")
    draft = tmp_path / f".target.{os.getpid()}.part"
    draft.symlink_to(victim)
    opening = open_target(target) if names_target else replace_whole(target, draft)
    with opening as file:
        file.write(b"new")
    assert (victim.read_text(), target.read_text()) == ("precious", "new")
    assert not target.is_symlink() and not draft.is_symlink()


def test_a_link_beside_the_report_is_not_followed(out: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("r.html.part", f".r.html.{os.getpid()}.part"):
        (tmp_path / name).symlink_to(victim)
    (out / "_report.html.part").symlink_to(victim)
    assert inside("report", out, "-o", tmp_path / "r.html").returncode == 0
    assert inside("report", out).returncode == 0
    assert victim.read_text() == "precious"


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), open_target(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "old"

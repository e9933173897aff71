"""Which files an argument means: folders, patterns, links; the rest is refused in one line."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import Server, fast, inside, table, written

from batchrank.errors import InputBad, InputMissing
from batchrank.input.arguments import found


def names(argument: object, folder: Path) -> list[str]:
    """The files that an argument means, as seen from a folder."""
    return [os.path.relpath(str(path), folder) for path in found(str(argument), [".parquet"], ())]


def refused(argument: object, expected: type[Exception] = InputBad) -> str:
    """The one line that an argument is refused with."""
    with pytest.raises(expected) as error:
        found(str(argument), [".parquet"], ())
    assert "\n" not in str(error.value)
    return str(error.value)


# Folders and patterns


def test_folders_that_are_called_as_files_are_folders(tmp_path: Path) -> None:
    """Spark names a folder `x.parquet` and puts the files into it."""
    for day in ("1", "2"):
        written(tmp_path / f"{day}.parquet" / "part-00000.snappy.parquet", table(1, tag=day))
        (tmp_path / f"{day}.parquet" / "_SUCCESS").touch()
    expected = [f"{day}.parquet/part-00000.snappy.parquet" for day in ("1", "2")]
    assert names(tmp_path, tmp_path) == expected
    assert names(tmp_path / "*.parquet", tmp_path) == expected
    assert names(tmp_path / "1.parquet", tmp_path) == expected[:1]


def test_a_pattern_means_no_hidden_file_unless_it_is_hidden_itself(tmp_path: Path) -> None:
    for name in ("a.parquet", "_SUCCESS", "_b.parquet"):
        (tmp_path / name).touch()
    assert names(tmp_path / "*", tmp_path) == ["a.parquet"]
    assert names(tmp_path / "_b*", tmp_path) == ["_b.parquet"]


def test_a_path_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "run[1].parquet").touch()
    (tmp_path / "run1.parquet").touch()
    assert names(tmp_path / "run[1].parquet", tmp_path) == ["run[1].parquet"]


def test_a_partition_whose_column_begins_with_a_line_is_read(tmp_path: Path) -> None:
    written(tmp_path / "_day=1" / "a.parquet", table(1))
    written(tmp_path / "_temporary" / "b.parquet", table(1))
    assert names(tmp_path, tmp_path) == ["_day=1/a.parquet"]


# Links


def test_a_link_to_a_folder_elsewhere_is_read_as_the_folder_is(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "deep" / "a.parquet", table(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "in", tmp_path) == ["in/link/deep/a.parquet"]


def test_a_link_to_a_folder_that_is_read_anyway_adds_nothing(tmp_path: Path) -> None:
    written(tmp_path / "in" / "2024-01-02" / "a.parquet", table(1))
    (tmp_path / "in" / "latest").symlink_to("2024-01-02")
    (tmp_path / "in" / "2024-01-02" / "up").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in", tmp_path) == ["in/2024-01-02/a.parquet"]


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "in" / "a.parquet", table(1))
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    assert "in/up: is a link to a folder that holds it" in refused(tmp_path / "in")


@pytest.mark.parametrize("place", ["named", "in a folder", "fitting a pattern"])
@pytest.mark.parametrize("target", ["/nope/b.parquet", "b.parquet"], ids=["dangling", "looping"])
def test_a_link_to_nothing_is_missing_input(tmp_path: Path, target: str, place: str) -> None:
    written(tmp_path / "a.parquet", table(1))
    (tmp_path / "b.parquet").symlink_to(target)
    arguments = {
        "named": tmp_path / "b.parquet",
        "in a folder": tmp_path,
        "fitting a pattern": tmp_path / "*.parquet",
    }
    line = refused(arguments[place], InputMissing)
    assert line.startswith(f"{tmp_path}/b.parquet: is a link to {target}: ")


# What is no file


def test_a_pipe_is_refused_and_hangs_nobody(server: Server, tmp_path: Path) -> None:
    pipe, run = tmp_path / "in" / "pipe.parquet", tmp_path / "run.trec"
    run.write_text("q0 Q0 d0 1 1.5 tag\n")
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    for arguments in ([pipe], [pipe.parent], [run, "--queries", pipe, "--corpus", pipe]):
        done = inside(*fast(server, tmp_path / "out", *arguments))
        assert done.returncode == 65
        assert f"{pipe}: is a pipe; expected a file" in done.stderr
        assert not (tmp_path / "out").exists()


def test_sockets_and_devices_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "is a socket" in refused(tmp_path / "s")
    assert "is a device" in refused("/dev/null")


def test_a_name_that_is_not_utf8_is_refused_as_it_can_be_shown(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.parquet"
    Path(os.fsdecode(path)).touch()
    for argument in (tmp_path, os.fsdecode(path)):
        assert "caf\\xe9.parquet: this name is not UTF-8; rename it." in refused(argument)


@pytest.mark.parametrize("ending", ["", "*.parquet"])
def test_a_path_of_thousands_of_characters_is_missing_input(ending: str) -> None:
    for argument in ("/x" * 2500 + ending, "y" * 5000 + ending):
        line = refused(argument, InputMissing)
        assert len(line) < 500


def test_a_zero_byte_is_in_no_path() -> None:
    refused("a\0b.parquet", InputMissing)


def as_nobody(ask: Callable[[], str]) -> str:
    """What a function returns to a user who may enter no folder of root's."""
    if os.geteuid():
        pytest.skip("needs root, to become a user who may do less")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # what is imported already need not be read by that user
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, ask().encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()


@pytest.fixture
def shut() -> Iterator[Path]:
    """A folder in `in`, beside another, that only its owner may enter; those above are open."""
    with TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        written(top / "in" / "open" / "a.parquet", table(1))
        written(top / "in" / "shut" / "b.parquet", table(1))
        (top / "in" / "shut").chmod(0o700)
        yield top / "in" / "shut"


@pytest.mark.parametrize("argument", ["in", "in/shut", "in/*", "in/*/*.parquet", "in/**/*.parquet"])
def test_a_folder_that_may_not_be_entered_is_not_left_out(shut: Path, argument: str) -> None:
    said = as_nobody(lambda: refused(shut.parents[1] / argument))
    assert said == f"{shut}: cannot be entered: Permission denied."


def test_a_file_of_a_folder_that_may_not_be_entered_is_missing_input(shut: Path) -> None:
    said = as_nobody(lambda: refused(shut / "b.parquet", InputMissing))
    assert said == f"{shut}/b.parquet: Permission denied."


def test_the_state_of_somebody_elses_run_is_not_entered(shut: Path) -> None:
    shut.rename(shut.parent / "open" / "_batchrank")
    written(shut.parent / "c.parquet", table(1))
    said = as_nobody(lambda: str(found(str(shut.parent), [".parquet"], ["_batchrank"])))
    assert said == f"[PosixPath('{shut.parent}/c.parquet')]"

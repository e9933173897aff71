"""Promise 38, of files: nothing of the working folder is imported by a process that we start, a
link planted beside a target is never followed, and a device is never replaced.
"""

import os
import signal
import stat
import subprocess
from pathlib import Path

from helpers import PROGRAM, clean, ended, fast, serving, started, table, written

from drills.frame import Drill, Patch, breaks, environment, last_line, patched

PLANTED = ("random.py", "json.py", "runpy.py", "sitecustomize.py", "brotli.py", "pandas.py")


def working_folder(trials: int, seed: int, folder: Path) -> str:
    """Runs with the local server in a folder of files that note their own execution."""
    source = written(folder / "in.parquet", table(3, tag="outside"))
    cwd, note = folder / "cwd", folder / "executed"
    cwd.mkdir()
    for name in PLANTED:
        (cwd / name).write_text(f"open({str(note)!r}, 'a').write('{name} ')\nraise SystemExit(7)\n")
    for trial in range(trials):
        run = ["run", source, "-o", folder / f"out-{trial}", "--provider", "local"]
        done = subprocess.run(
            [*PROGRAM, *map(str, run)],
            cwd=cwd,
            env=clean(**{**environment(), "PYTHONSAFEPATH": "1"}),  # as the program `batchrank` is
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not note.exists(), f"executed: {note.read_text()}"
        assert done.returncode == 0, f"ended with {done.returncode}: {last_line(done.stderr)}"
    return f"{trials} runs beside {len(PLANTED)} files of Python's names: none was executed"


def planted_links(trials: int, seed: int, folder: Path) -> str:
    """Links to a file of somebody's under every name that a draft may have; and a device."""
    source = written(folder / "in.parquet", table(3, tag="links"))
    victim = folder / "victim"
    victim.write_text("precious")
    is_root = os.geteuid() == 0
    with serving() as server:
        code, _, stderr = _run([*fast(server, folder / "out", source)], [])
        assert code == 0, last_line(stderr)
        for trial in range(trials):
            own = folder / str(trial)
            own.mkdir()
            page, metrics = own / "page.html", own / "metrics.prom"
            report = ["report", folder / "out", "-o", page]
            run = [*fast(server, own / "out", source), "--metrics-file", metrics]
            export = ["export", folder / "out", "--format", "trec", "-o", own / "trec"]
            for words, target in ((report, page), (run, metrics), (export, own / "trec")):
                code, _, stderr = _run(words, [target])
                assert victim.read_text() == "precious", f"{words[0]}: a planted link was followed"
                assert code == 0, f"{words[0]} ended with {code}: {last_line(stderr)}"
                assert not target.is_symlink(), f"{words[0]}: a link took the target's place"
            if is_root:
                null = own / "null"
                os.mknod(null, 0o20666, os.makedev(1, 3))
                for words in (["report", folder / "out", "-o", null],):
                    _run(words, [])
                    assert stat.S_ISCHR(null.lstat().st_mode), "a device was replaced"
    return f"{trials} x 3 targets: no planted link was followed, no device replaced"


def _run(words: list[object], targets: list[Path]) -> tuple[int, str, str]:
    """Run a command; links to the victim lie beside its targets before it writes: it is stopped
    at its start, since its drafts have its number.
    """
    process = started(*words, **environment())
    if targets:
        process.send_signal(signal.SIGSTOP)
    for target in targets:
        victim = target.parents[1] / "victim"
        for name in (
            f"{target.name}.part",
            f".{target.name}.{process.pid}.part",
            f"{target.name}.{process.pid}.part",
        ):
            (target.parent / name).symlink_to(victim)
    process.send_signal(signal.SIGCONT)
    return ended(process, 60)


def without_isolation(trials: int, seed: int, folder: Path) -> str:
    """The working folder comes first on the path of the local server."""
    with patched(folder, NO_ISOLATION):
        said = breaks(lambda: working_folder(trials, seed, folder), "executed")
    return f"working-folder breaks without -I: {said}"


def without_new_drafts(trials: int, seed: int, folder: Path) -> str:
    """A draft may be there already, and may be a link."""
    with patched(folder, NO_NEW_DRAFTS):
        said = breaks(lambda: planted_links(trials, seed, folder), "planted link was followed")
    return f"planted-links breaks without O_EXCL: {said}"


def without_streams(trials: int, seed: int, folder: Path) -> str:
    """A device is a file like others."""
    with patched(folder, NO_STREAMS):
        said = breaks(lambda: planted_links(trials, seed, folder), "a device was replaced")
    return f"planted-links breaks where a device is taken for a file: {said}"


NO_ISOLATION = Patch("files/python_child.py", 'options = ["-I", ', 'options = ["-E", ')
NO_NEW_DRAFTS = Patch("files/atomic.py", " | os.O_EXCL | os.O_NOFOLLOW", "")
NO_STREAMS = Patch("files/atomic.py", "    if is_stream(path):\n", "    if False:\n")

DRILLS = [
    Drill((38,), "working-folder", working_folder, 1, 3),
    Drill((38,), "control-working-folder", without_isolation, 1, 1),
    Drill((38,), "planted-links", planted_links, 1, 10),
    Drill((38,), "control-planted-links", without_new_drafts, 1, 1),
]
if os.geteuid() == 0:
    DRILLS.append(Drill((38,), "control-devices", without_streams, 1, 1))

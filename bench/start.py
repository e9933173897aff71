"""How soon there is something: the help, the first request, the first new request of a resumed run.

Beside them, in turn, a Python that only imports aiohttp and pyarrow: no program that needs both is
sooner. The stub notes the instant of the first request, the kernel what was read until then. The
half-done output is of a run killed half-way; each resumed one is killed at its first request.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.kept import rows
from bench.measure import BATCHRANK, PYTHON, measured, pinned
from bench.results import Results, Run, Verdict, spread
from bench.servers import Server, stub
from bench.subjects import SUBJECTS

ROWS, DOCUMENTS, CHARACTERS = 1_000_000, 3, 40
FRESH_ROWS, FRESH_DOCUMENTS = 10_000, 100
PATIENCE_SECONDS = 120.0


def run(results: Results, *, rounds: int, scale: float) -> None:
    """All of it in turn, once the half-done output is made."""
    results.begin("start")
    ours = next(subject for subject in SUBJECTS if subject.name == "batchrank")
    large = rows(int(ROWS * scale), DOCUMENTS, CHARACTERS)
    small = rows(FRESH_ROWS, FRESH_DOCUMENTS)
    with stub() as server, tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # No --limit of a smaller number here: the same command must go on with the same output.
        resumed = ours.command(large, int(ROWS * scale), place / "half", server.url)
        (place / "half").mkdir()
        _half_done(resumed, server, int(ROWS * scale) // 2)
        for turn in range(rounds):
            imports = [PYTHON, "-c", "import aiohttp, pyarrow"]
            for what, words in (("help", [BATCHRANK, "--help"]), ("imports", imports)):
                cost = measured(words)
                results.keep("start", {"what": what, "round": turn, "seconds": cost.wall_seconds})
            for what, source in (("first", small), ("first of 10^6", large)):
                out = place / f"{what}-{turn}"
                out.mkdir()
                command = ours.command(source, FRESH_ROWS, out, server.url)
                results.keep("start", {"what": what, "round": turn, **_first(command, server)})
            results.keep("start", {"what": "resumed", "round": turn, **_first(resumed, server)})
        state = sum(file.stat().st_size for file in place.glob("half/out/_batchrank/*"))
        sizes = {"bytes": large.stat().st_size, "state_bytes": state}
        results.keep("start", {"what": "input", **sizes})
    _report(results)


def _half_done(command: Sequence[object], server: Server, half: int) -> None:
    """Begin a run, and kill it half-way."""
    process = subprocess.Popen(pinned(command, 0))
    done = 0
    while process.poll() is None and done < half:
        time.sleep(0.2)
        done += server.get("/stats")["requests"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    if done < half:
        raise RuntimeError("the run that was to be killed half-way ended by itself")


def _first(command: Sequence[object], server: Server) -> Run:
    """Seconds from the command to its first request, and megabytes read by then; then kill it."""
    server.get("/stats")
    began = time.monotonic()
    process = subprocess.Popen(pinned(command, 0))
    try:
        while time.monotonic() - began < PATIENCE_SECONDS and process.poll() is None:
            first = server.get("/stats")["first"]
            if first is not None:
                counts = Path(f"/proc/{process.pid}/io").read_text().split()
                read = int(counts[counts.index("rchar:") + 1])
                return {"seconds": first - began, "read_mb": read / 1e6}
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {"error": f"no request within {PATIENCE_SECONDS:.0f} s"}


def _report(results: Results) -> None:
    titles = {
        "help": "`batchrank --help`",
        "imports": "`python -c 'import aiohttp, pyarrow'`",
        "first": "first request, 10,000 rows x 100 documents",
        "first of 10^6": "first request, large input, nothing done",
        "resumed": "first new request, large input, half done",
    }
    lines = ["| what | seconds | MB read by then |", "|---|---|---|"]
    seconds, read = {}, {}
    for what, title in titles.items():
        runs = [run for run in results.runs("start", what=what) if "error" not in run]
        if not runs:
            lines.append(f"| {title} | {results.runs('start', what=what)[0]['error']} | |")
            continue
        seconds[what] = median(run["seconds"] for run in runs)
        amounts = [run["read_mb"] for run in runs if "read_mb" in run]
        read[what] = median(amounts) if amounts else 0.0
        shown = f"{read[what]:,.0f}" if amounts else ""
        lines.append(f"| {title} | {spread([run['seconds'] for run in runs])} | {shown} |")
    targets = (("help", 0.25), ("first", 1.0), ("resumed", 3.0))
    verdicts = [
        Verdict(
            seconds.get(what, 1e9) <= most,
            f"{titles[what]}: {seconds.get(what, -1):.2f} s (target ≤ {most})",
        )
        for what, most in targets
    ]
    sizes = results.runs("start", what="input")[0]
    half, state = sizes["bytes"] / 2e6, sizes["state_bytes"] / 1e6
    beyond = read.get("resumed", 1e9) - read.get("first of 10^6", 0)
    verdicts.append(
        Verdict(
            beyond < half / 2,
            f"resumed, it read {beyond:.1f} MB more than a fresh start by its first request; its "
            f"state has {state:.1f} MB, the finished half {half:.1f} MB (target: not read)",
        )
    )
    results.write("start", "\n".join(lines), verdicts)

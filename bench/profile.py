"""Where the client's time goes: py-spy's samples of batchrank and of the bare loop, by function.

A sample is counted for the innermost function of the subject's own files: what it calls in
libraries is its cost. Idle threads are not sampled; a share is of all samples, whatever the thread.
"""

import tempfile
from collections import Counter
from pathlib import Path

from bench.kept import PEERS, Unavailable, python_of, rows
from bench.measure import ROOT, measured
from bench.results import Results
from bench.servers import Server, stub
from bench.subjects import SUBJECTS, Subject, what_is_wrong

ROWS = {20: 30_000, 100: 10_000, 500: 3_000}
HERTZ = 250
SHOWN = 20
OWN = (str(ROOT / "batchrank"), str(PEERS))


def run(results: Results, *, shapes: list[int], scale: float) -> None:
    """A run of each at each size of row, under the profiler."""
    results.begin("profile")
    try:
        spy = Path(python_of("profile")).parent / "py-spy"
    except Unavailable as error:
        print(f"no profile: {error}")
        return
    lines: list[str] = []
    with stub() as server:
        for documents in shapes:
            for subject in SUBJECTS[:2]:
                found = _one(spy, subject, documents, scale, server)
                about = {"documents": documents, "subject": subject.name}
                results.keep("profile", {**about, **found})
                lines += _shown(subject, documents, found)
    results.write("profile", "\n".join(lines), [])


def _one(
    spy: Path, subject: Subject, documents: int, scale: float, server: Server
) -> dict[str, float]:
    """The shares of the dearest functions, the dearest first."""
    count = int(ROWS[documents] * scale)
    path = rows(count, documents)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        record = [spy, "record", "-r", HERTZ, "--threads", "--full-filenames", "-f", "raw"]
        command = subject.command(path, count, Path(folder), server.url)
        if not subject.environment:
            command[:1] = [ROOT / ".venv" / "bin" / "python", "-m", "batchrank"]
        cost = measured([*record, "-o", raw, "--", *command])
        wrong = what_is_wrong(subject, cost, Path(folder), count, documents)
        if wrong:
            raise RuntimeError(wrong)
        return _shares(raw.read_text().splitlines())


def _shares(stacks: list[str]) -> dict[str, float]:
    samples: Counter[str] = Counter()
    for line in stacks:
        stack, _, times = line.rpartition(" ")
        samples[_place(stack.split(";"))] += int(times)
    total = sum(samples.values())
    return {place: times / total for place, times in samples.most_common(SHOWN)}


def _place(frames: list[str]) -> str:
    """The innermost own function of a stack, as "file function"; frames are "name (file:line)"."""
    if any("<frozen importlib" in frame for frame in frames):
        return "importing"
    if frames[-1].startswith("Runner.run "):
        return "the event loop itself: uvloop, sockets"
    for frame in reversed(frames):
        name, _, where = frame.rpartition(" (")
        if where.startswith(OWN) and name != "<module>":
            return f"{Path(where.rpartition(':')[0]).name} {name}"
    return "threads' own, starting"


def _shown(subject: Subject, documents: int, shares: dict[str, float]) -> list[str]:
    return [
        f"\n{documents} documents, {subject.title}:\n",
        "| share | where |",
        "|---|---|",
        *(f"| {share:.1%} | `{place}` |" for place, share in shares.items()),
    ]

"""Cost as the input grows: CPU and wall a row, and peak memory, at 10^4 to 10^7 rows.

Texts are short, so that a million rows end within minutes; the peak at 10,000 rows of 100 documents
of 500 B stands beside, since memory must not exceed it by much however long the input.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.kept import rows
from bench.measure import measured
from bench.picture import draw
from bench.results import Results, Run, Verdict, spread
from bench.servers import Server, stub
from bench.subjects import SUBJECTS, what_is_wrong

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
DOCUMENTS, CHARACTERS = 3, 40
ONCE_FROM = 1_000_000
MOST_ROUNDS = 3


def run(results: Results, *, rounds: int, scale: float) -> None:
    """Small sizes a few times, the large ones once; one row for what starting costs."""
    results.begin("growth")
    with stub() as server:
        for turn in range(min(rounds, MOST_ROUNDS)):
            for kind, count, documents, characters in _cases(turn, scale):
                path = rows(count, documents, characters)
                found = _one(server, path, count, documents)
                about = {"kind": kind, "rows": count, "documents": documents, "round": turn}
                results.keep("growth", {**about, **found})
    _report(results)


def _cases(turn: int, scale: float) -> Iterator[tuple[str, int, int, int]]:
    yield "start", 1, DOCUMENTS, CHARACTERS
    yield "reference", int(10_000 * scale), 100, 500
    for size in SIZES:
        if turn == 0 or size < ONCE_FROM:
            yield "growth", int(size * scale), DOCUMENTS, CHARACTERS


def _one(server: Server, path: Path, count: int, documents: int) -> Run:
    ours = next(subject for subject in SUBJECTS if subject.name == "batchrank")
    with tempfile.TemporaryDirectory() as folder:
        command = ours.command(path, count, Path(folder), server.url)
        cost = measured(command, timeout=2 * 3600)
        wrong = what_is_wrong(ours, cost, Path(folder), count, documents)
    if wrong:
        return {"error": wrong}
    return {
        "cpu_seconds": cost.cpu_seconds,
        "wall_seconds": cost.wall_seconds,
        "peak_rss_mb": cost.peak_rss_mb,
    }


def _report(results: Results) -> None:
    good = [run for run in results.runs("growth") if "error" not in run]
    start = median(run["cpu_seconds"] for run in good if run["kind"] == "start")
    lines = [
        "| rows | documents | CPU ms a row | … without starting | wall ms a row | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    peaks, costs = {}, {}
    for kind, count in sorted({(r["kind"], r["rows"]) for r in good if r["kind"] != "start"}):
        runs = [run for run in good if (run["kind"], run["rows"]) == (kind, count)]
        cpu = [run["cpu_seconds"] / count * 1000 for run in runs]
        without = [(run["cpu_seconds"] - start) / count * 1000 for run in runs]
        wall = [run["wall_seconds"] / count * 1000 for run in runs]
        peak = [run["peak_rss_mb"] for run in runs]
        peaks[kind, count], costs[kind, count] = median(peak), median(without)
        lines.append(
            f"| {count:,} | {runs[0]['documents']} | {spread(cpu, 3)} | {spread(without, 3)} "
            f"| {spread(wall, 3)} | {spread(peak, 0)} |"
        )
    largest, smallest = (
        max(k for k in peaks if k[0] == "growth"),
        min(k for k in peaks if k[0] == "growth"),
    )
    reference = next(peak for (kind, _), peak in peaks.items() if kind == "reference")
    grown, flat = peaks[largest] / reference, costs[largest] / costs[smallest]
    verdicts = [
        Verdict(reference <= 250, f"peak at 100 documents: {reference:.0f} MB (target ≤ 250)"),
        Verdict(grown <= 1.1, f"peak at {largest[1]:,} rows: {grown:.2f} x that (target ≤ 1.1)"),
        Verdict(
            flat <= 1.1,
            f"CPU a row at {largest[1]:,} rows: {flat:.2f} x that at {smallest[1]:,}, starting "
            f"({start:.2f} s) taken off (flat: ≤ 1.1)",
        ),
    ]
    results.write("growth", "\n".join(lines), verdicts)
    draw(results, "growth")

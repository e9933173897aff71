"""Latency's long tail: every hundredth answer comes a hundred times later, beside the same without.

The stub holds each answer back 2 ms, the slow ones 200 ms. At the rates of these runs they hold a
handful of the 64 places, so that the rest should carry on undiminished; a run's end waits for its
last slow answer, which at these rows is a percent of it and stays in the figure.
"""

import tempfile
from pathlib import Path
from statistics import median

from bench.kept import rows
from bench.measure import measured
from bench.results import Results, Verdict, spread
from bench.servers import stub
from bench.subjects import SUBJECTS, what_is_wrong

ROWS, DOCUMENTS = 30_000, 20
DELAY_MS, SLOW_EVERY = 2.0, 100


def run(results: Results, *, rounds: int, scale: float) -> None:
    """With and without, in turn."""
    results.begin("tail")
    ours = next(subject for subject in SUBJECTS if subject.name == "batchrank")
    count = int(ROWS * scale)
    path = rows(count, DOCUMENTS)
    for turn in range(rounds):
        for every in (0, SLOW_EVERY):
            with (
                stub(delay_ms=DELAY_MS, slow_every=every) as server,
                tempfile.TemporaryDirectory() as folder,
            ):
                cost = measured(ours.command(path, count, Path(folder), server.url))
                wrong = what_is_wrong(ours, cost, Path(folder), count, DOCUMENTS)
            about = {"slow": bool(every), "round": turn, "rows": count}
            if wrong:
                results.keep("tail", {**about, "error": wrong})
                continue
            speed = count / cost.wall_seconds
            found = {"rows_per_second": speed, "peak_rss_mb": cost.peak_rss_mb}
            results.keep("tail", {**about, **found})
    _report(results)


def _report(results: Results) -> None:
    kinds = {
        slow: [run for run in results.runs("tail", slow=slow) if "error" not in run]
        for slow in (False, True)
    }
    speed = {k: [run["rows_per_second"] for run in runs] for k, runs in kinds.items()}
    memory = {k: [run["peak_rss_mb"] for run in runs] for k, runs in kinds.items()}
    lines = [
        "| answers | rows/s | peak MB |",
        "|---|---|---|",
        f"| all after 2 ms | {spread(speed[False], 0)} | {spread(memory[False], 0)} |",
        f"| 1 % after 200 ms | {spread(speed[True], 0)} | {spread(memory[True], 0)} |",
    ]
    slower = median(b / a for a, b in zip(speed[False], speed[True], strict=True))
    larger = median(memory[True]) / median(memory[False])
    verdicts = [
        Verdict(slower >= 0.95, f"rows/s with a tail: {slower:.3f} x without (target ≥ 0.95)"),
        Verdict(larger <= 1.2, f"peak memory with a tail: {larger:.3f} x without (target ≤ 1.2)"),
    ]
    results.write("tail", "\n".join(lines), verdicts)

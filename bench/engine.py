"""What an engine costs: jobs/dask_rerank.py beside one process, without a limit, on both cores.

Each is started twice: on nothing, and on its own finished output, which sends nothing and is what
the engine takes by itself. Only here do client and stub share a core, as workers need several: the
figures compare with each other and not with those of the table.
"""

import json
import tempfile
from pathlib import Path
from statistics import median

from bench.kept import rows
from bench.measure import BATCHRANK, CORES, PYTHON, ROOT, Cost, measured
from bench.results import Results, spread
from bench.servers import stub

ROWS, DOCUMENTS, ROWS_PER_PART = 60_000, 20, 1_000
JOB = ROOT / "jobs" / "dask_rerank.py"
SUBJECTS = {"one process": 0, "Dask, 1 worker": 1, "Dask, 2 workers": 2, "Dask, 4 workers": 4}
"""How many workers each has; 0: no engine."""


def run(results: Results, *, rounds: int, scale: float) -> None:
    """All of them in turn."""
    results.begin("engine")
    count = int(ROWS * scale)
    source = rows(count, DOCUMENTS)
    with stub() as server:
        for turn in range(rounds):
            for name, workers in SUBJECTS.items():
                with tempfile.TemporaryDirectory() as folder:
                    command = _command(workers, source, Path(folder), server.url)
                    for finished in (False, True):
                        about = {"what": name, "finished": finished, "round": turn}
                        cost = measured(["taskset", "-c", ",".join(map(str, CORES)), *command])
                        results.keep("engine", {**about, **_figures(cost, Path(folder), count)})
    _report(results, count)


def _command(workers: int, source: Path, folder: Path, url: str) -> list[object]:
    config = folder / "batchrank.toml"
    config.write_text(
        f'[endpoint]\nbase_url = "{url}"\n[rate]\nrequests_per_minute = 0\n'
        f"[output]\nrows_per_part = {ROWS_PER_PART}\n"
    )
    if workers:
        return [PYTHON, JOB, source, folder / "out", "-c", config, "--workers", workers]
    return [BATCHRANK, "run", source, "-o", folder / "out", "-c", config]


def _figures(cost: Cost, folder: Path, count: int) -> dict[str, object]:
    receipt = folder / "out" / "_run.json"
    scored = json.loads(receipt.read_text())["rows_scored"] if receipt.exists() else 0
    if cost.code or scored != count:
        return {"error": f"{scored} rows scored; {cost.last_words}"}
    return {
        "seconds": cost.wall_seconds,
        "cpu_seconds": cost.cpu_seconds,
        "peak_mb": cost.peak_rss_mb,
    }


def _report(results: Results, count: int) -> None:
    lines = [
        f"{count:,} rows of {DOCUMENTS} documents.",
        "",
        "| | seconds | CPU s | peak MB | on a finished output: seconds | rows/s between the two |",
        "|---|---|---|---|---|---|",
    ]
    for name in SUBJECTS:
        fresh, again = (
            [one for one in results.runs("engine", what=name, finished=done) if "error" not in one]
            for done in (False, True)
        )
        if not fresh or not again:
            failed = [one for one in results.runs("engine", what=name) if "error" in one]
            lines.append(f"| {name} | {failed[0]['error']} | | | | |")
            continue
        wall, cpu, peak, idle = (
            [run[field] for run in runs]
            for runs, field in (
                (fresh, "seconds"),
                (fresh, "cpu_seconds"),
                (fresh, "peak_mb"),
                (again, "seconds"),
            )
        )
        rate = count / max(median(wall) - median(idle), 1e-9)
        lines.append(
            f"| {name} | {spread(wall, 1)} | {spread(cpu, 1)} | {spread(peak, 0)} "
            f"| {spread(idle, 1)} | {rate:,.0f} |"
        )
    results.write("engine", "\n".join(lines), [])

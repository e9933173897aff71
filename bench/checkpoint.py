"""What the checkpoint costs: batchrank beside a copy whose checkpoint thread keeps nothing.

The copy lives in a temporary folder that comes first on the path. Its loop hands over as ever; its
thread takes everything from the queue, drops it, and says that it is durable. It is no program to
use: it could not resume.
"""

import shutil
import tempfile
from pathlib import Path
from statistics import median

from bench.kept import rows
from bench.measure import PYTHON, ROOT, measured
from bench.results import Results, Verdict, spread
from bench.servers import stub
from bench.subjects import SUBJECTS, what_is_wrong

ROWS = {20: 30_000, 100: 10_000, 500: 3_000}
FORGETFUL = '''

def _drop_group(self, database):
    """In place of a transaction: nothing."""
    group = [self._queue.get()]
    if group[0] is not None:
        time.sleep(COMMIT_SECONDS)
    while not self._queue.empty():
        group.append(self._queue.get())
    for item in group:
        if isinstance(item, _Flush):
            item.committed()
    return group[-1] is not None


assert hasattr(Checkpoint, "_commit_group"), "bench/checkpoint.py no longer fits checkpoint.py"
Checkpoint._commit_group = _drop_group
'''


def run(results: Results, *, rounds: int, shapes: list[int], scale: float) -> None:
    """With and without, in turn, at each size of row."""
    results.begin("checkpoint")
    ours = next(subject for subject in SUBJECTS if subject.name == "batchrank")
    with tempfile.TemporaryDirectory() as copy, stub() as server:
        _make_forgetful(Path(copy))
        for documents in shapes:
            count = int(ROWS[documents] * scale)
            path = rows(count, documents)
            for turn in range(rounds):
                for place in (ROOT, Path(copy)):
                    with tempfile.TemporaryDirectory() as folder:
                        command = ours.command(path, count, Path(folder), server.url)
                        command[:1] = [PYTHON, "-m", "batchrank"]  # found in `place` first
                        cost = measured(command, cwd=place)
                        wrong = what_is_wrong(ours, cost, Path(folder), count, documents)
                    about = {"kept": place == ROOT, "documents": documents, "round": turn}
                    if wrong:
                        results.keep("checkpoint", {**about, "error": wrong})
                        continue
                    speed, cpu = count / cost.wall_seconds, cost.cpu_seconds / count * 1000
                    found = {"rows_per_second": speed, "cpu_ms": cpu}
                    results.keep("checkpoint", {**about, **found})
    _report(results, shapes)


def _make_forgetful(folder: Path) -> None:
    shutil.copytree(ROOT / "batchrank", folder / "batchrank")
    with (folder / "batchrank" / "checkpoint.py").open("a") as file:
        file.write(FORGETFUL)


def _report(results: Results, shapes: list[int]) -> None:
    lines = [
        "| documents | rows/s with | without | with ÷ without | CPU ms with | without |",
        "|---|---|---|---|---|---|",
    ]
    verdicts = []
    for documents in shapes:
        kept, dropped = (
            [
                run
                for run in results.runs("checkpoint", kept=kept, documents=documents)
                if "error" not in run
            ]
            for kept in (True, False)
        )
        speeds = [[run["rows_per_second"] for run in runs] for runs in (kept, dropped)]
        cpus = [[run["cpu_ms"] for run in runs] for runs in (kept, dropped)]
        ratio = median(a / b for a, b in zip(*speeds, strict=True))
        lines.append(
            f"| {documents} | {spread(speeds[0], 0)} | {spread(speeds[1], 0)} | {ratio:.3f} "
            f"| {spread(cpus[0], 3)} | {spread(cpus[1], 3)} |"
        )
        cost = f"the checkpoint costs {1 - ratio:.1%} of rows/s at {documents} documents"
        verdicts.append(Verdict(ratio >= 0.92, f"{cost} (target ≤ 8 %)"))
    results.write("checkpoint", "\n".join(lines), verdicts)

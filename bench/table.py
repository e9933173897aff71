"""The table: every subject in turn, round after round, at three sizes of row.

A round is A B C …, so that what the machine does meanwhile falls on all of them. What is given is
the median of the rounds and their spread; ratios to the bare loop are taken within a round. CPU is
of the whole process from start to end, nothing taken off; what starting alone costs is measured
with one row, and shown beside.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import nan
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.ceiling import ceiling
from bench.kept import Unavailable, rows
from bench.measure import measured
from bench.picture import draw
from bench.results import Results, Run, Verdict, spread
from bench.servers import Server, stub
from bench.subjects import SUBJECTS, Subject, what_is_wrong

ROWS = {20: 30_000, 100: 10_000, 500: 3_000}
CPU_TARGET = {20: 1.6, 100: 1.4, 500: 1.3}
CPU_BESIDE = {"seed": 0.2, "async_batch_llm": 0.2, "baseten": 1.0}


def run(
    results: Results,
    subjects: Sequence[Subject],
    *,
    rounds: int,
    shapes: Sequence[int],
    scale: float,
) -> None:
    """Measure, keeping each run as it ends; then write table and picture."""
    results.begin("table", "ceiling")
    with stub() as server:
        for documents in shapes:
            path = rows(int(ROWS[documents] * scale), documents)
            results.keep("ceiling", {"documents": documents, **ceiling(path, server)})
            for turn in range(rounds):
                for subject in subjects:
                    count = max(1, int(ROWS[documents] * scale * subject.share))
                    results.keep("table", _one(subject, path, count, documents, turn, server))
                    if documents == shapes[0] and count > 1:
                        results.keep("table", _one(subject, path, 1, documents, turn, server))
    report(results)


def report(results: Results) -> None:
    """Table, verdicts and picture of the runs that are kept."""
    found = [summary for subject in SUBJECTS for summary in _summaries(results, subject)]
    lines = [
        "| documents | subject | CPU ms a row | x bare | rows/s | x bare | peak MB | rows "
        "| to start, CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(summary.line() for summary in sorted(found, key=lambda one: one.documents)),
    ]
    ceilings = [
        f"{run['documents']} documents ({run['body_bytes']:,} B) {run['requests_per_second']:,.0f}"
        if "error" not in run
        else f"{run['documents']} documents: {run['error']}"
        for run in results.runs("ceiling")
    ]
    rounds = max((len(summary.runs) for summary in found), default=0)
    notes = f"""
Rounds: {rounds}. Medians, lowest and highest in brackets; ratios within a round, median. Nothing is
taken off: what starting costs (the CPU of a run of one row) is in the CPU a row. The stub's ceiling
in requests/s by wrk, one thread: {"; ".join(ceilings)}.
"""
    results.write("table", "\n".join(lines) + "\n" + notes, _verdicts(found))
    draw(results, "table")


class Summary(NamedTuple):
    """A subject at one size of row: its runs, and the bare loop's of the same rounds."""

    subject: Subject
    documents: int
    runs: list[Run]
    errors: list[str]
    bare: dict[int, Run]
    starts: list[Run]

    @property
    def cpu_ms(self) -> list[float]:
        return [_cpu_ms(run) for run in self.runs]

    @property
    def rows_per_second(self) -> list[float]:
        return [_speed(run) for run in self.runs]

    @property
    def cpu_ratio(self) -> float:
        """CPU a row over the bare loop's, the median of the rounds."""
        return self._ratio(_cpu_ms)

    @property
    def speed_ratio(self) -> float:
        """Rows a second over the bare loop's, the median of the rounds."""
        return self._ratio(_speed)

    @property
    def peak_mb(self) -> list[float]:
        return [run["peak_rss_mb"] for run in self.runs]

    def line(self) -> str:
        """A row of the table."""
        title = self.subject.title
        said = self.errors[0].replace("|", "/") if self.errors else ""
        if not self.runs:
            return f"| {self.documents} | {title} | cannot run: {said} | | | | | | |"
        if said:
            title += f" ({len(self.errors)} more runs failed: {said})"
        start = spread([run["cpu_seconds"] for run in self.starts]) if self.starts else ""
        return (
            f"| {self.documents} | {title} | {spread(self.cpu_ms, 3)} "
            f"| {self.cpu_ratio:.2f} | {spread(self.rows_per_second, 0)} | {self.speed_ratio:.2f} "
            f"| {median(self.peak_mb):,.0f} | {self.runs[0]['rows']:,} | {start} |"
        )

    def _ratio(self, of: Callable[[Run], float]) -> float:
        pairs = [
            of(run) / of(self.bare[run["round"]]) for run in self.runs if run["round"] in self.bare
        ]
        return median(pairs) if pairs else nan


def _summaries(results: Results, subject: Subject) -> Iterator[Summary]:
    documents = sorted({run["documents"] for run in results.runs("table", subject=subject.name)})
    for shape in documents:
        bare = {r["round"]: r for r in _good(results, "bare", shape)}
        all_runs = results.runs("table", subject=subject.name, documents=shape)
        yield Summary(
            subject,
            shape,
            _good(results, subject.name, shape),
            [run["error"] for run in all_runs if "error" in run],
            bare,
            _good(results, subject.name),
        )


def _good(results: Results, name: str, documents: int | None = None) -> list[Run]:
    """The runs without an error: of one row when no size is given, else of the size's rows."""
    runs = [run for run in results.runs("table", subject=name) if "error" not in run]
    if documents is None:
        return [run for run in runs if run["rows"] == 1]
    return [run for run in runs if run["documents"] == documents and run["rows"] > 1]


def _cpu_ms(run: Run) -> float:
    return float(run["cpu_seconds"] / run["rows"] * 1000)


def _speed(run: Run) -> float:
    return float(run["rows"] / run["wall_seconds"])


def _verdicts(found: Sequence[Summary]) -> list[Verdict]:
    verdicts = []
    by = {(one.subject.name, one.documents): one for one in found if one.runs}
    for (name, documents), ours in by.items():
        if name != "batchrank":
            continue
        at, target = f"at {documents} documents", CPU_TARGET[documents]
        cpu, speed = ours.cpu_ratio, ours.speed_ratio
        verdicts += [
            Verdict(cpu <= target, f"CPU a row {at}: {cpu:.2f} x bare (target ≤ {target})"),
            Verdict(speed >= 0.7, f"rows/s {at}: {speed:.2f} x bare (target ≥ 0.7)"),
        ]
        for (other, shape), peer in by.items():
            if shape == documents and other not in ("batchrank", "bare"):
                verdicts += _beside(ours, peer, at)
        if documents == 100:
            peak = median(ours.peak_mb)
            verdicts.append(Verdict(peak <= 250, f"peak {at}: {peak:.0f} MB (target ≤ 250)"))
    return verdicts


def _beside(ours: Summary, peer: Summary, at: str) -> Iterator[Verdict]:
    title = peer.subject.title
    cpu = median(ours.cpu_ms) / median(peer.cpu_ms)
    most = CPU_BESIDE.get(peer.subject.name)
    if most is not None:
        yield Verdict(cpu <= most, f"CPU a row {at}: {cpu:.2f} x {title} (target ≤ {most})")
    speed = median(ours.rows_per_second) / median(peer.rows_per_second)
    yield Verdict(speed > 1, f"rows/s {at}: {speed:.2f} x {title} (target > 1)")


def _one(
    subject: Subject, path: Path, count: int, documents: int, turn: int, server: Server
) -> dict[str, object]:
    about = {"subject": subject.name, "documents": documents, "round": turn, "rows": count}
    server.get("/stats")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            cost = measured(subject.command(path, count, out, server.url))
        except Unavailable as error:
            return {**about, "error": str(error)}
        wrong = what_is_wrong(subject, cost, out, count, documents)
    asked = server.get("/stats")["documents"]
    if wrong is None and asked != count * documents:
        wrong = f"the stub was asked for {asked} documents instead of {count * documents}"
    if wrong is not None:
        return {**about, "error": wrong}
    return {
        **about,
        "cpu_seconds": cost.cpu_seconds,
        "wall_seconds": cost.wall_seconds,
        "peak_rss_mb": cost.peak_rss_mb,
    }

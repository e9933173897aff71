"""Raw runs in one JSON, and what is read from them: medians, spreads, which target holds.

`runs.json` keeps every run of every program with the machine it ran on; a program that is run again
replaces its own section. Tables and pictures are made from that file alone.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.measure import CORES, ROOT

Run = dict[str, Any]


class Verdict(NamedTuple):
    """Whether a target of the project holds, and by what figure."""

    holds: bool
    what: str

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.what}"


class Results:
    """The results' folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "runs.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._sections: dict[str, Any] = {}
        if self.path.exists():
            self._sections = json.loads(self.path.read_text())

    def begin(self, *sections: str) -> None:
        """Forget earlier runs of these sections."""
        for section in sections:
            self._sections[section] = {"machine": machine(), "runs": []}

    def keep(self, section: str, run: Run) -> None:
        """Add a run, on disk at once, and show it."""
        self._sections[section]["runs"].append(run)
        self.path.write_text(json.dumps(self._sections, indent=1) + "\n")
        print("  ".join(f"{name}={_short(value)}" for name, value in run.items()), flush=True)

    def runs(self, section: str, **wanted: object) -> list[Run]:
        """The runs of a section whose fields are these."""
        found = self._sections.get(section, {"runs": []})["runs"]
        return [run for run in found if all(run.get(k) == v for k, v in wanted.items())]

    def machine(self, section: str) -> str:
        """In words, where a section's runs were made."""
        return str(self._sections[section]["machine"])

    def write(self, section: str, text: str, verdicts: Sequence[Verdict]) -> None:
        """Show a report, and keep it as Markdown."""
        held = "\n".join(f"- {verdict}" for verdict in verdicts)
        report = f"{self.machine(section)}\n\n{text.strip()}\n\n{held}\n"
        (self.folder / f"{section}.md").write_text(report)
        print(f"\n{report}", flush=True)


def machine() -> str:
    """The machine, the day and the commit, in words."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    load = os.getloadavg()[0]
    return (
        f"{names[0] if names else platform.machine()}, {len(CORES)} cores, Linux "
        f"{platform.release()}, Python {platform.python_version()}, "
        f"{datetime.now(UTC):%d %B %Y}, commit {commit or 'unknown'}, load before {load:.1f}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, with lowest and highest in brackets."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

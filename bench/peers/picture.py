"""Draws table.svg, growth.svg or simulate.svg from runs.json: picture.py NAME FOLDER."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "batchrank"  # the same figures, the same bytes
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

OURS, OTHERS = "#c2410c", "#94a3b8"
NO_DATE = {"Date": None}


def table(runs: list[dict[str, Any]], target: Path) -> None:
    """CPU a row of each subject, one panel for each size of row; rows/s beside each bar."""
    shapes = sorted({run["documents"] for run in runs})
    figure, panels = plt.subplots(1, len(shapes), figsize=(4.2 * len(shapes), 3.4), squeeze=False)
    for panel, documents in zip(panels[0], shapes, strict=True):
        bars: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            if run["documents"] == documents and run["rows"] > 1 and "error" not in run:
                bars.setdefault(run["subject"], []).append(run)
        cpu = {s: median(r["cpu_seconds"] / r["rows"] * 1000 for r in b) for s, b in bars.items()}
        speed = {s: median(r["rows"] / r["wall_seconds"] for r in b) for s, b in bars.items()}
        order = sorted(cpu, key=lambda name: cpu[name], reverse=True)
        colours = [OURS if name == "batchrank" else OTHERS for name in order]
        drawn = panel.barh(
            [name.replace("_", " ") for name in order], [cpu[n] for n in order], color=colours
        )
        labels = [f"{cpu[n]:.2f} ms, {speed[n]:,.0f}/s" for n in order]
        panel.bar_label(drawn, labels, padding=3, fontsize=7)
        panel.set_xlim(right=max(cpu.values()) * 1.6)
        panel.set_title(f"{documents} documents of 500 B", fontsize=9)
        panel.set_xlabel("CPU ms a row; rows/s", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, metadata=NO_DATE)


def growth(runs: list[dict[str, Any]], target: Path) -> None:
    """CPU and wall ms a row, and peak memory, over the number of rows."""
    sizes = sorted({run["rows"] for run in runs if run["kind"] == "growth"})
    at = [
        [run for run in runs if run["rows"] == size and run["kind"] == "growth"] for size in sizes
    ]
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for field, style in (("cpu_seconds", "o-"), ("wall_seconds", "s--")):
        values = [median(r[field] / r["rows"] * 1000 for r in runs_) for runs_ in at]
        time.plot(sizes, values, style, color=OURS, label=field.split("_")[0])
    time.set_ylabel("ms a row", fontsize=8)
    time.legend(fontsize=8, frameon=False)
    memory.plot(sizes, [median(r["peak_rss_mb"] for r in runs_) for runs_ in at], "o-", color=OURS)
    memory.set_ylabel("peak MB", fontsize=8)
    for panel in (time, memory):
        panel.set_xscale("log")
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
        panel.set_xlabel("rows", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, metadata=NO_DATE)


def simulate(runs: list[dict[str, Any]], target: Path) -> None:
    """What part of the account went out in each second of the stories, and when who was lost."""
    stories = [run for run in runs if run["story"] and run["requests_per_minute"] == 5400]
    figure, panels = plt.subplots(len(stories), 1, figsize=(8.4, 1.3 * len(stories)), sharex=True)
    for panel, run in zip(panels, stories, strict=True):
        limit = run["requests_per_minute"] / 60
        panel.step(
            range(len(run["sent"])),
            [n / limit for n in run["sent"]],
            color=OURS,
            lw=1,
            where="post",
        )
        for what, instant in run["events"].items():
            panel.axvline(instant, color=OTHERS, lw=0.8, ls="--")
            if panel is panels[0]:
                panel.text(
                    instant + 0.5,
                    0.1 if what == "back again" else 1.08,
                    what,
                    fontsize=6,
                    color="#475569",
                )
        panel.set_ylim(0, 1.2)
        panel.set_ylabel(f"{run['workers']:,} workers,\n{run['busy']:,} busy", fontsize=7)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("simulated seconds; share of 5,400 requests a minute", fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata=NO_DATE)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    runs = json.loads((folder / "runs.json").read_text())[name]["runs"]
    {"table": table, "growth": growth, "simulate": simulate}[name](runs, folder / f"{name}.svg")


main()

"""`scripts/bench`: which programs to run, and how much of them."""

import os
import signal
import sys
from collections.abc import Iterable
from compileall import compile_dir
from pathlib import Path
from types import FrameType

import click

from bench import checkpoint, engine, growth, limit, plan, profile, start, table, tail
from bench.measure import CORES, ROOT
from bench.results import Results
from bench.subjects import SUBJECTS

PROGRAMS = {
    "table": "every subject at 20, 100 and 500 documents, with picture: 16 min",
    "limit": "what is achieved of the rate allowed, in real time: 26 min",
    "tail": "1 % of answers a hundred times slower: 3 min",
    "start": "help, first request, first request of a resumed million: 2 min",
    "plan": "text per CPU second of `batchrank plan`: 3 min",
    "growth": "10^4 to 10^7 rows, with picture: 60 min",
    "checkpoint": "beside a copy that keeps nothing: 6 min",
    "engine": "jobs/dask_rerank.py beside one process: 8 min",
    "profile": "where the client's time goes, by py-spy: 2 min",
}
HELP = "\n".join(f"{name:<11}{what}" for name, what in PROGRAMS.items())


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=f"""Measure batchrank beside bare sending and beside other tools.

    \b
    {HELP.replace(chr(10), chr(10) + "    ")}

    Without a NAME: table. "all": all of them, in this order. Runs are kept in RESULTS/runs.json,
    and a NAME.md with its figures and which targets hold; nothing fails for being slow. The first
    time, inputs and the peers' environments (2 GB) are made in .bench/, some minutes more.
    """,
)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice([*PROGRAMS, "all"]))
@click.option("--rounds", default=5, show_default=True, help="How often each is measured.")
@click.option("--shapes", default="", help="Only these numbers of documents, with commas.")
@click.option("--subjects", default="", help="table: only these, with commas.")
@click.option("--seconds", default=300.0, show_default=True, help="limit: of each scenario.")
@click.option("--scenarios", default="", help="limit: only these, with commas.")
@click.option("--scale", default=1.0, show_default=True, help="Of the rows; below 1 for a try.")
@click.option(
    "--results",
    "folder",
    type=click.Path(path_type=Path),
    default=ROOT / "bench" / "results",
    help="Where runs, tables and pictures go.  [default: bench/results]",
)
def main(
    names: tuple[str, ...],
    rounds: int,
    shapes: str,
    subjects: str,
    seconds: float,
    scenarios: str,
    scale: float,
    folder: Path,
) -> None:
    sizes = [int(size) for size in _listed(shapes, map(str, table.ROWS))]
    wanted = _listed(subjects, (one.name for one in SUBJECTS))
    chosen = [one for one in SUBJECTS if one.name in wanted]
    asked = _listed(scenarios, (one.name for one in limit.SCENARIOS))
    results = Results(folder)
    for ours in ("batchrank", "bench/peers"):  # as pip leaves what it installs: 0.13 s of a start
        compile_dir(ROOT / ours, quiet=1)
    for name in PROGRAMS if "all" in names else names or ("table",):
        match name:
            case "table":
                table.run(results, chosen, rounds=rounds, shapes=sizes, scale=scale)
            case "limit":
                limit.run(results, seconds=seconds, names=asked)
            case "tail":
                tail.run(results, rounds=rounds, scale=scale)
            case "start":
                start.run(results, rounds=rounds, scale=scale)
            case "plan":
                plan.run(results, rounds=rounds, scale=scale)
            case "growth":
                growth.run(results, rounds=rounds, scale=scale)
            case "checkpoint":
                checkpoint.run(results, rounds=rounds, shapes=sizes, scale=scale)
            case "engine":
                engine.run(results, rounds=rounds, scale=scale)
            case "profile":
                profile.run(results, shapes=sizes, scale=scale)


def _listed(given: str, known: Iterable[str]) -> list[str]:
    """The names given with commas; all that are known where none is."""
    names = list(known)
    for name in filter(None, given.split(",")):
        if name not in names:
            raise click.BadParameter(f"{name}: known are {', '.join(names)}.")
    return given.split(",") if given else names


def _terminated(number: int, frame: FrameType | None) -> None:
    """Servers and subjects end with us."""
    sys.exit(143)


signal.signal(signal.SIGTERM, _terminated)
os.sched_setaffinity(0, {CORES[-1]})  # we look on from the servers' core
main(prog_name="scripts/bench")

"""Who is measured: batchrank as a user runs it, and the programs in peers/, each by one command.

All read the same Parquet rows, send them to the same stub with 64 in flight, and leave every row's
scores in a file. A subject's line on standard output says how many rows and scores it has.
"""

import json
from pathlib import Path
from typing import NamedTuple

from bench.kept import PEERS, python_of
from bench.measure import BATCHRANK, Cost

IN_FLIGHT = 64


class Subject(NamedTuple):
    """`share`: of a shape's rows, how many it gets; what is slow gets fewer, and the table says how
    many. `environment` names the requirements in peers/.
    """

    name: str
    title: str
    share: float = 1.0
    environment: str = ""

    def command(self, rows: Path, count: int, out: Path, url: str) -> list[object]:
        """The command that scores the first `count` rows into the folder `out`."""
        if not self.environment:
            limits = ["--requests-per-minute", 0, "--max-in-flight", IN_FLIGHT, "--limit", count]
            return [BATCHRANK, "run", rows, "-o", out / "out", "--base-url", url, *limits]
        python, program = python_of(self.environment), PEERS / f"{self.name}.py"
        return [python, program, rows, out / "out", url, count, IN_FLIGHT]


SUBJECTS = (
    Subject("bare", "bare loop (aiohttp, uvloop, orjson)", 1.0, "bare"),
    Subject("batchrank", "batchrank, everything on"),
    Subject("baseten", "Baseten client `batch_post`", 1.0, "baseten"),
    Subject("cookbook", "OpenAI cookbook's loop", 0.1, "bare"),
    Subject("async_batch_llm", "async-batch-llm with SQLite", 0.1, "async_batch_llm"),
    Subject("seed", "AsyncOpenAI `.post` (the seed)", 0.07, "seed"),
    Subject("litellm_arerank", "LiteLLM `arerank`", 0.03, "litellm"),
    Subject("ray_data", "Ray Data, async actor", 0.2, "ray"),
)


def what_is_wrong(subject: Subject, cost: Cost, out: Path, rows: int, documents: int) -> str | None:
    """Why a run does not count: it failed, or scores are missing."""
    if cost.code:
        return cost.last_words
    if not subject.environment:
        receipt = json.loads((out / "out" / "_run.json").read_text())
        return None if receipt["rows_scored"] == rows else f"{receipt['rows_scored']} rows scored"
    said = [json.loads(line) for line in cost.output.splitlines() if line.startswith('{"rows":')]
    if said != [{"rows": rows, "scores": rows * documents}]:
        return f"scores are missing: {said}"
    return None

"""The programs under scripts/ that nobody types every day still run."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "medquad"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quality_prints_a_line_for_each_set(tmp_path: Path) -> None:
    pq.write_table(pq.read_table(SAMPLE / "rows.parquet").slice(0, 3), tmp_path / "rows.parquet")
    pq.write_table(pq.read_table(SAMPLE / "qrels.parquet"), tmp_path / "qrels.parquet")
    lines = run("quality", tmp_path).splitlines()
    assert lines[2].startswith(f"| {tmp_path.name} | 3 | 3 |")
    assert lines[-1] == f"{tmp_path.name}: 3 of 3 rows equal 3 direct calls, bit for bit"


def test_nights_prints_three_nights_of_which_the_last_sends_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pq.write_table(pq.read_table(SAMPLE / "rows.parquet").slice(0, 3), rows)
    nights = [
        line for line in run("nights", rows).splitlines() if line[:4] in {"| 1 ", "| 2 ", "| 3 "}
    ]
    assert [line.split(" | ")[4] for line in nights][-1] == "0"

"""`batchrank plan`: megabytes of text a CPU second, and whether its counts are exact.

Loading is measured by a plan of one row, and taken off for the second figure. The counts are
compared with tiktoken's over the same vocabulary, for the first rows: query tokens x documents +
document tokens.
"""

import json
import subprocess
from statistics import median

from bench.kept import rows, text_bytes
from bench.measure import BATCHRANK, PYTHON, measured
from bench.results import Results, Verdict, spread

ROWS = {100: 10_000, 500: 3_000}
COMPARED = 200
_COUNT = """
import sys
import pyarrow.parquet as pq, tiktoken
from tiktoken.load import load_tiktoken_bpe
from batchrank.planning.tokens import vocabulary_path
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    r"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
ranks = load_tiktoken_bpe(str(vocabulary_path()))
encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
import unicodedata
count = lambda text: len(encoding.encode_ordinary(unicodedata.normalize("NFC", text)))
total, left = 0, int(sys.argv[2])
for batch in pq.ParquetFile(sys.argv[1]).iter_batches(min(left, 64)):
    for row in batch.slice(0, left).to_pylist():
        texts = [candidate["text"] for candidate in row["candidates"]]
        total += count(row["query"]) * len(texts) + sum(map(count, texts))
    left -= len(batch)
    if left <= 0:
        break
print(total)
"""


def run(results: Results, *, rounds: int, scale: float) -> None:
    """A plan of the whole input and one of its first row, in turn."""
    results.begin("plan")
    for documents, full in ROWS.items():
        path = rows(int(full * scale), documents)
        for turn in range(rounds):
            for limit in (0, 1):
                cost = measured([BATCHRANK, "plan", path, "--limit", limit or int(full * scale)])
                about = {"documents": documents, "round": turn, "load_only": bool(limit)}
                if cost.code:
                    results.keep("plan", {**about, "error": cost.last_words})
                    continue
                found = {"cpu_seconds": cost.cpu_seconds, "wall_seconds": cost.wall_seconds}
                results.keep("plan", {**about, **found, "text_bytes": text_bytes(path)})
        results.keep("plan", {"documents": documents, **_compared(path)})
    _report(results)


def _compared(path: object) -> dict[str, int]:
    words = [BATCHRANK, "plan", path, "--limit", COMPARED, "--summary", "json"]
    told = subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True)
    count = [PYTHON, "-c", _COUNT, str(path), str(COMPARED)]
    found = subprocess.run(count, check=True, capture_output=True, text=True)
    planned = json.loads(told.stdout)
    return {"planned_tokens": planned["tokens"], "counted_tokens": int(found.stdout)}


def _report(results: Results) -> None:
    lines = [
        "| documents | MB of text | MB a CPU second | without loading | loading, CPU s |",
        "|---|---|---|---|---|",
    ]
    verdicts = []
    for documents in ROWS:
        full = results.runs("plan", documents=documents, load_only=False)
        load = results.runs("plan", documents=documents, load_only=True)
        loads = [run["cpu_seconds"] for run in load if "error" not in run]
        full = [run for run in full if "error" not in run]
        if not full or not loads:
            continue
        size = full[0]["text_bytes"] / 1e6
        whole = [size / run["cpu_seconds"] for run in full]
        warm = [size / (run["cpu_seconds"] - median(loads)) for run in full]
        lines.append(
            f"| {documents} | {size:,.0f} | {spread(whole, 0)} | {spread(warm, 0)} "
            f"| {spread(loads)} |"
        )
        verdicts.append(
            Verdict(
                median(warm) >= 100,
                f"plan at {documents} documents: {median(warm):.0f} MB a CPU second, loading "
                f"apart; {median(whole):.0f} with it (target ≥ 100)",
            )
        )
        (told,) = (r for r in results.runs("plan", documents=documents) if "planned_tokens" in r)
        planned, counted = told["planned_tokens"], told["counted_tokens"]
        same = f"tokens of {COMPARED} rows: {planned:,} planned, {counted:,} counted by tiktoken"
        verdicts.append(Verdict(planned == counted, same))
    results.write("plan", "\n".join(lines), verdicts)

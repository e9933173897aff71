"""What is made once and kept in .bench/: inputs from real texts, and an environment per peer.

An environment is made anew when its requirements change; it never touches batchrank's own.
"""

import json
import subprocess
from pathlib import Path

from bench.measure import PYTHON, ROOT

FOLDER = ROOT / ".bench"
PEERS = ROOT / "bench" / "peers"
_SIZE = """
import json, sys
import pyarrow.compute as pc, pyarrow.parquet as pq
size = 0
for batch in pq.ParquetFile(sys.argv[1]).iter_batches(256):
    texts = batch["candidates"].flatten().field("text")
    size += pc.sum(pc.binary_length(batch["query"])).as_py()
    size += pc.sum(pc.binary_length(texts)).as_py()
print(json.dumps(size))
"""


class Unavailable(Exception):
    """Something that is needed cannot be made here; says why."""


def rows(count: int, documents: int, characters: int = 500) -> Path:
    """An input of so many rows: SciFact's claims and abstracts, these cut to so many characters."""
    path = FOLDER / "data" / f"{count}x{documents}x{characters}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        make = [PYTHON, ROOT / "scripts" / "make-rows", draft, count, documents, characters]
        subprocess.run([str(word) for word in make], check=True)
        draft.rename(path)
    return path


def text_bytes(path: Path) -> int:
    """The UTF-8 bytes of an input's queries and documents."""
    known = path.with_suffix(".json")
    if not known.exists():
        done = subprocess.run([PYTHON, "-c", _SIZE, str(path)], check=True, capture_output=True)
        known.write_bytes(done.stdout)
    return int(json.loads(known.read_text()))


def python_of(environment: str) -> str:
    """The Python of a peer's environment. Raises `Unavailable`."""
    wanted = (PEERS / f"{environment}.txt").read_text()
    folder = FOLDER / environment
    stamp, python = folder / "made-of", folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run(["python3", "-m", "venv", "--clear", folder], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r"]
        done = subprocess.run(
            [*install, str(PEERS / f"{environment}.txt")],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unavailable(f"not installed: {done.stderr.strip().splitlines()[-1][:200]}")
        stamp.write_text(wanted)
    return str(python)

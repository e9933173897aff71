"""How fast the stub is, as wrk (Debian's) sees it with the same bodies: nobody can be faster."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import PYTHON, pinned
from bench.servers import Server
from bench.subjects import IN_FLIGHT

SECONDS = 3
_BODY = """
import sys
import msgspec, pyarrow.parquet as pq
row = next(pq.ParquetFile(sys.argv[1]).iter_batches(1)).to_pylist()[0]
documents = [candidate["text"] for candidate in row["candidates"]]
ask = {"model": "qwen3-rerank", "query": row["query"], "documents": documents}
sys.stdout.buffer.write(msgspec.json.encode(ask))
"""
_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "application/json"
"""


def ceiling(path: Path, server: Server) -> dict[str, Any]:
    """Requests a second from one thread on the client's core, or why that cannot be said."""
    if shutil.which("wrk") is None:
        return {"error": "wrk is not installed (apt-get install wrk)"}
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body.json", Path(folder) / "post.lua"
        done = subprocess.run([PYTHON, "-c", _BODY, path], check=True, capture_output=True)
        body.write_bytes(done.stdout)
        script.write_text(_SCRIPT.format(body=body))
        wrk = ["wrk", "-t", 1, "-c", IN_FLIGHT, "-d", f"{SECONDS}s", "-s", script, server.url]
        said = subprocess.run(pinned(wrk, 0), check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if found is None or "Non-2xx" in said:
        return {"error": f"wrk said: {said.strip()[-200:]}"}
    return {"requests_per_second": float(found[1]), "body_bytes": len(done.stdout)}

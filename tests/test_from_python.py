"""From Python: frames of every kind in, a polars frame out; in scripts, event loops, notebooks."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from helpers import (
    KEY,
    Server,
    clean,
    expected_of,
    fast,
    inside,
    part_bytes,
    serving,
    settings,
    table,
    until,
    written,
)
from jupyter_client.manager import start_new_kernel

import batchrank
from batchrank.errors import BatchrankError, ConfigInvalid, ExitCode, InputBad

README = Path(__file__).parents[1] / "README.md"
Serve = Callable[..., Server]
ACCOUNT_ENDS = """
[[fault]]
kind = "status"
status = 403
code = "Arrearage"
where = { from = 6 }
"""
POISON = '[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 3 " }\n'


def at(server: Server, **more: Any) -> dict[str, Any]:
    """Settings for a server of ours, without a rate limit."""
    return {"base_url": server.base_url, "requests_per_minute": 0, **more}


def check(found: pl.DataFrame, rows: pa.Table) -> None:
    """The frame has the rows' scores."""
    assert found["query_id"].to_list() == rows.column("query_id").to_pylist()
    assert found["results"].to_list() == [expected_of(row) for row in rows.to_pylist()]
    assert found["status"].unique().to_list() == ["scored"]


def polars_of(rows: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


@pytest.mark.parametrize(
    "kind", [lambda rows: rows, polars_of, pa.Table.to_pandas], ids=["pyarrow", "polars", "pandas"]
)
def test_a_frame_of_each_kind_comes_back_as_polars(
    server: Server, kind: Callable[[pa.Table], Any]
) -> None:
    rows = table(25, 4, tag="frames")
    check(batchrank.rerank(kind(rows), **at(server)), rows)


def test_a_path_is_read_as_the_command_reads_it(server: Server, tmp_path: Path) -> None:
    rows = table(12, tag="path")
    check(batchrank.rerank(written(tmp_path / "in.parquet", rows), **at(server)), rows)


def test_long_pairs_and_ids_may_be_frames_too(server: Server) -> None:
    pairs = pl.DataFrame(
        {"query_id": ["b", "a", "b"], "query": ["B", "A", "B"], "text": ["x", "y", "z"]}
    )
    found = batchrank.rerank(pairs, **at(server))
    assert found["query_id"].to_list() == ["b", "a"]
    assert found["results"].list.len().to_list() == [2, 1]
    by_ids = batchrank.rerank(
        pd.DataFrame({"query_id": ["b", "b", "a"], "doc_id": [1, 2, 1]}),
        queries=pl.DataFrame({"_id": ["a", "b"], "text": ["A", "B"]}),
        corpus=pa.table({"_id": [1, 2], "text": ["x", "z"]}),
        **at(server),
    )
    scores = [
        frame["results"][0].struct.field("relevance_score").to_list() for frame in (found, by_ids)
    ]
    assert scores[0] == scores[1]


def test_settings_are_the_configurations_keys(server: Server, tmp_path: Path) -> None:
    rows = polars_of(table(6, 5, tag="keys")).with_columns(lang=pl.lit("en"))
    path = tmp_path / "c.toml"
    path.write_text("[output]\ntop_n = 4\n[input]\nkeep_columns = ['lang']\n")
    for config in (path, str(path), {"output": {"top_n": 4}, "input": {"keep_columns": ["lang"]}}):
        found = batchrank.rerank(rows, config=config, **at(server))
        assert found["results"].list.len().unique().to_list() == [4]
        assert found["lang"].to_list() == ["en"] * 6
        fewer = batchrank.rerank(rows, config=config, **at(server, top_n=2))
        assert fewer["results"].list.len().unique().to_list() == [2]
    config = settings(server.base_url, output={"top_n": 3})
    assert len(batchrank.rerank(rows, config=config)["results"][0]) == 3
    assert len(batchrank.rerank(rows, config=config, top_n=1)["results"][0]) == 1


def test_an_unknown_setting_is_refused_with_the_nearest(server: Server) -> None:
    with pytest.raises(ConfigInvalid, match=r"unknown setting top_k\. Did you mean top_n\?"):
        batchrank.rerank(table(1), **at(server), top_k=3)


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(InputBad, match="list: no frame; expected polars, pyarrow or pandas"):
        batchrank.rerank([1, 2])


def test_an_output_that_is_kept_goes_on_and_is_the_commands_own(
    server: Server, tmp_path: Path
) -> None:
    rows = table(20, tag="kept out")
    found = batchrank.rerank(polars_of(rows), out=tmp_path / "out", **at(server))
    before = server.received
    assert batchrank.rerank(polars_of(rows), out=tmp_path / "out", **at(server)).equals(found)
    assert server.received == before
    source = written(tmp_path / "in.parquet", rows)
    assert inside(*fast(server, tmp_path / "command", source)).returncode == 0
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "command")
    assert inside("verify", tmp_path / "out").returncode == 0


def test_failed_rows_are_in_the_frame_with_their_reason(serve: Serve) -> None:
    poisoned = serve(POISON)
    found = batchrank.rerank(table(6, tag="poisoned"), **at(poisoned))
    assert found["status"].to_list() == ["scored"] * 3 + ["failed"] + ["scored"] * 2
    assert found["error"].null_count() == 5


def test_a_refused_key_is_raised_with_its_code(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = serve("", "--api-key-env", "OUR_KEY", OUR_KEY=KEY)
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-other")
    with pytest.raises(BatchrankError) as refused:
        batchrank.rerank(table(3, tag="key"), **at(locked))
    assert refused.value.code == ExitCode.KEY_REFUSED
    assert "sk-other" not in str(refused.value)


def test_a_whole_run_returns_its_receipt(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(15, tag="run"))
    config = {"endpoint": {"base_url": server.base_url}, "rate": {"requests_per_minute": 0}}
    receipt = batchrank.run(config, source, tmp_path / "out")
    assert (receipt.exit_code, receipt.rows_scored, receipt.requests) == (0, 15, 15)
    assert batchrank.run(config, [source], tmp_path / "out") == receipt


def test_it_runs_inside_a_running_event_loop(server: Server) -> None:
    rows = table(10, tag="loop")

    async def cell() -> pl.DataFrame:
        return batchrank.rerank(rows, **at(server))

    check(asyncio.run(cell()), rows)


def test_nothing_stays_in_the_temporary_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    batchrank.rerank(table(3, tag="scratch"), **at(server))
    assert list(tmp_path.iterdir()) == []


def test_a_script_stopped_by_ctrl_c_is_drained_and_goes_on(serve: Serve, tmp_path: Path) -> None:
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    rows = table(60, tag="ctrl-c")
    source, out = written(tmp_path / "in.parquet", rows), tmp_path / "out"
    code = (
        f"import batchrank\nprint(batchrank.rerank({str(source)!r}, out={str(out)!r}, "
        f"base_url={slow.base_url!r}, requests_per_minute=0, max_in_flight=4).height)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=clean(), stderr=subprocess.PIPE, text=True) as process:
        until(lambda: slow.received > 8, "requests are on their way")
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "stopped by Ctrl-C; the same command goes on from here." in said
    done = subprocess.run(command, env=clean(), capture_output=True, text=True, check=True)
    assert done.stdout == "60\n"
    ledger = slow.ledger()
    assert ledger["requests"] == ledger["unique"] == 60


def test_importing_it_loads_nothing_slow() -> None:
    code = (
        "import sys, batchrank; "
        "print([name for name in ('pyarrow', 'aiohttp', 'polars', 'numpy', 'rich', 'click') "
        "if name in sys.modules]); assert not hasattr(batchrank, 'none'); batchrank.rerank"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_example_in_the_readme_runs(tmp_path: Path) -> None:
    section = README.read_text("utf-8").split("## From Python", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", section, re.DOTALL)
    assert blocks
    for code, shown in blocks:
        (tmp_path / "example.py").write_text(code)
        done = subprocess.run(
            [sys.executable, "example.py"],
            cwd=tmp_path,
            env=clean(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == shown


def test_a_notebook_shows_a_bar_and_gets_its_frame(serve: Serve) -> None:
    """In a real kernel, whose event loop is running."""
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    code = (
        "import asyncio, batchrank, pyarrow as pa\n"
        "assert asyncio.get_running_loop().is_running()\n"
        "queries = [f'q{n}' for n in range(40)]\n"
        "rows = pa.table({'query': queries, 'candidates': [['a', 'b']] * 40})\n"
        f"scores = batchrank.rerank(rows, base_url={slow.base_url!r}, requests_per_minute=0, "
        "max_in_flight=4)\n"
        "print(scores.height, scores['status'].unique().to_list())"
    )
    said: list[dict[str, Any]] = []
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        reply = client.execute_interactive(code, timeout=60, output_hook=said.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    printed = "".join(m["content"]["text"] for m in said if m["msg_type"] == "stream")
    assert printed == "40 ['scored']\n"
    bars = [
        message["content"]["data"]["text/html"]
        for message in said
        if message["msg_type"] == "update_display_data"
    ]
    assert any(re.match(r'<progress max="40" value="\d+"></progress> ', bar) for bar in bars)
    assert bars[-1] == ""


def _reply_to(asked: str, client: Any) -> Any:
    """Replies to the kernel's own greeting may come late, and between."""
    while True:
        message = client.get_shell_msg(timeout=60)
        if message["parent_header"]["msg_id"] == asked:
            return message["content"]


def test_the_stop_button_of_a_notebook_ends_the_cell(serve: Serve) -> None:
    slow = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    code = (
        "import batchrank, pyarrow as pa\n"
        "rows = pa.table({'query': [f's{n}' for n in range(400)], 'candidates': [['a']] * 400})\n"
        f"batchrank.rerank(rows, base_url={slow.base_url!r}, requests_per_minute=0, "
        "max_in_flight=2)"
    )
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        asked = client.execute(code)
        until(lambda: slow.received > 2, "requests are on their way")
        manager.interrupt_kernel()
        reply = _reply_to(asked, client)
        after = slow.received
        client.execute_interactive("1 + 1", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert (reply["status"], "stopped by Ctrl-C" in reply["evalue"]) == ("error", True)
    assert slow.received == after


# What was bought


def test_at_its_cost_a_frame_comes_back_with_what_was_bought(server: Server) -> None:
    frame = pl.DataFrame(table(40, tag="bought"))
    config = settings(server.base_url, rate={"max_in_flight": 1}, output={"rows_per_part": 8})
    everything = batchrank.rerank(frame, config=config, progress=False)
    before = server.received
    with pytest.warns(UserWarning, match="max_cost_usd is reached: ") as warned:
        bought = batchrank.rerank(frame, config=config, max_cost_usd=0.0003, progress=False)
    scored = bought.filter(pl.col("status") == "scored")
    assert 8 < len(scored) == server.received - before < 40
    assert scored.equals(everything.head(len(scored)))
    rest = bought.filter(pl.col("status") != "scored")
    assert bought["query_id"].to_list() == frame["query_id"].to_list()
    assert set(rest["status"]) == {"open"}
    assert set(rest["error"]) == {"1 of 1 requests not answered yet"}
    assert rest.explode("results").unnest("results")["relevance_score"].null_count() == 3 * len(
        rest
    )
    assert str(warned[0].message) == (
        f'max_cost_usd is reached: {len(rest)} of 40 rows lack an answer (status "open"). Keep the '
        "scores with out=… to go on from them."
    )


def test_with_out_the_cost_ends_the_call_and_the_same_call_goes_on(
    server: Server, tmp_path: Path
) -> None:
    frame = pl.DataFrame(table(20, tag="kept"))
    config = settings(server.base_url, rate={"max_in_flight": 1})
    call: dict[str, Any] = {"config": config, "out": tmp_path / "out", "progress": False}
    with pytest.raises(BatchrankError, match="--max-cost") as raised:
        batchrank.rerank(frame, max_cost_usd=0.0001, **call)
    assert (raised.value.code, raised.value.scores) == (4, None)
    assert len(batchrank.rerank(frame, **call)) == 20


def test_a_call_that_fails_gives_what_was_bought(tmp_path: Path) -> None:
    """The account ends after five requests."""
    script = tmp_path / "faults.toml"
    script.write_text(ACCOUNT_ENDS)
    with serving("--faults", str(script)) as own:
        config = settings(own.base_url, rate={"max_in_flight": 1})
        with pytest.raises(BatchrankError) as raised:
            batchrank.rerank(pl.DataFrame(table(20, tag="ends")), config=config, progress=False)
    scores = raised.value.scores
    assert "What was scored is in this exception's scores, and nowhere else." in str(raised.value)
    assert len(scores) == 20
    assert 0 < len(scores.filter(pl.col("status") == "scored")) < 20

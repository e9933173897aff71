"""Without a choice of an endpoint rows are rehearsed, and everything says so: the run by a line of
its own, its outputs by the scorer's name; jobs that run unattended refuse.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from helpers import Server, clean, fast, inside, output, part_bytes, program, table, written
from test_terminal_and_silence import on_terminal

import batchrank
from batchrank.config.settings import load

JOBS = Path(__file__).parents[1] / "jobs"
EMBEDDED = "embedded rehearsal scorer"
LINE = re.compile(rf"^batchrank: nobody chose an endpoint: the {EMBEDDED} .*--provider.*$")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = table(6, tag="nobody")
    return written(tmp_path_factory.mktemp("nobody") / "in.parquet", rows)


@pytest.fixture(scope="module")
def rehearsed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output for which nobody chose an endpoint."""
    out = tmp_path_factory.mktemp("rehearsed") / "out"
    assert inside("run", source, "-o", out).returncode == 0
    return out


def configuration(folder: Path, text: str) -> Path:
    file = folder / "c.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("text", [None, "[output]\ntop_n = 2\n", '[endpoint]\nbase_url = ""\n'])
def test_one_line_says_so_without_a_terminal(source: Path, tmp_path: Path, text: str) -> None:
    options: list[object] = [] if text is None else ["-c", configuration(tmp_path, text)]
    done = program("run", source, "-o", tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert LINE.match(line), line
    again = inside("run", source, "-o", tmp_path / "out", *options)
    assert again.returncode == 0 and LINE.match(again.stderr), "also of a finished output"


def test_a_log_of_objects_holds_the_line_as_one(source: Path, tmp_path: Path) -> None:
    done = inside("run", source, "-o", tmp_path / "out", "--log-format", "json")
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "warning" and EMBEDDED in line["message"]


def test_a_terminal_shows_the_line_and_no_dollars_on_the_bar(source: Path, tmp_path: Path) -> None:
    rate = ["--requests-per-minute", 300]
    code, shown = on_terminal(["run", source, "-o", tmp_path / "out", *rate])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain)]
    assert sum(f"nobody chose an endpoint: the {EMBEDDED}" in line for line in lines) == 1
    bars = [line for line in lines if re.search(r"\d/6 .* tokens", line)]
    assert bars and not any("$" in line for line in bars), bars
    assert f"scored by  {EMBEDDED} (provider local)" in lines
    assert all("free" in line for line in lines if "$" in line)


@pytest.mark.parametrize(
    "chosen",
    [
        ["--provider", "local"],
        ["-c", '[endpoint]\nprovider = "local"\n'],
        ["-c", Path(__file__).parents[1] / "configs" / "local.toml"],
    ],
)
def test_a_choice_of_the_embedded_scorer_is_a_choice(
    source: Path, tmp_path: Path, rehearsed: Path, chosen: list[Any]
) -> None:
    if isinstance(chosen[1], str) and chosen[0] == "-c":
        chosen = ["-c", configuration(tmp_path, chosen[1])]
    done = program("run", source, "-o", tmp_path / "out", *chosen)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert part_bytes(tmp_path / "out") == part_bytes(rehearsed)
    assert json.loads((tmp_path / "out" / "_run.json").read_bytes())["scorer"] == EMBEDDED


def test_an_address_is_a_choice_and_its_outputs_name_the_model(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert inside(*fast(server, out, source)).stderr == ""
    assert json.loads((out / "_run.json").read_bytes())["scorer"] == "qwen3-rerank"
    footer = pq.read_schema(out / "part-00000.parquet").metadata
    assert footer[b"batchrank_scorer"] == b"qwen3-rerank"
    assert EMBEDDED not in inside("status", out).stdout
    inside("report", out)
    assert EMBEDDED not in (out / "_report.html").read_text()


def test_receipt_status_report_and_parts_name_the_scorer(rehearsed: Path) -> None:
    receipt = json.loads((rehearsed / "_run.json").read_bytes())
    assert (receipt["provider"], receipt["scorer"]) == ("local", EMBEDDED)
    assert receipt["cost_is_real"] is False
    footer = pq.read_schema(rehearsed / "part-00000.parquet").metadata
    assert footer[b"batchrank_provider"] == b"local"
    assert footer[b"batchrank_scorer"] == EMBEDDED.encode()
    assert f"scored by  {EMBEDDED} (provider local)\n" in inside("status", rehearsed).stdout
    assert EMBEDDED in inside("status", rehearsed, "--json").stdout
    inside("report", rehearsed)
    page = (rehearsed / "_report.html").read_text()
    assert f"scored by {EMBEDDED} (provider local)" in page
    dollars = re.findall(r"<[^>]+>[^<]*\$[^<]*<", page)
    assert all("hosted price" in cell for cell in dollars), "dollars as if somebody were billed"


def test_a_stopped_run_and_its_shards_name_it_too(source: Path, tmp_path: Path) -> None:
    stopped, shards = tmp_path / "stopped", tmp_path / "shards"
    run = ["run", source, "--max-cost", "0", "-o"]
    assert inside(*run, stopped).returncode == 4
    assert inside(*run, shards, "--shard", "0/2").returncode == 4
    for out in (stopped, shards):
        assert EMBEDDED in inside("status", out).stdout
        assert EMBEDDED in inside("status", out, "--json").stdout
    receipt = json.loads((stopped / "_run.json").read_bytes())
    assert receipt["left"]["cost_usd"] is None, "what is left costs nothing either"


def test_a_rehearsal_and_a_server_do_not_share_an_output(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = ["run", source, "--max-cost", "0", "-o", tmp_path / "out"]
    assert inside(*run).returncode == 4
    refused = inside(*fast(server, tmp_path / "out", source))
    assert refused.returncode == 78 and EMBEDDED in refused.stderr
    assert inside(*fast(server, tmp_path / "other", source)).returncode == 0
    refused = inside("run", source, "-o", tmp_path / "other", "--provider", "local")
    assert refused.returncode == 78 and "endpoint.base_url" in refused.stderr


def test_a_server_elsewhere_is_not_called_free() -> None:
    given = {"endpoint": {"base_url": "https://example.org/v1"}}
    assert load(None, given).bills and not load(None, {}).bills
    assert not load(None, {"endpoint": {"base_url": "http://127.0.0.1:1/v1"}}).bills


# From Python


CODE = """
import batchrank, polars as pl
rows = pl.DataFrame({"query": ["q"], "candidates": [["a", "b"]]})
print(batchrank.rerank(rows, %s).height)
"""


@pytest.mark.parametrize(
    ("settings", "lines"), [("top_n=1", 1), ("provider='local'", 0), ("config={}", 1)]
)
def test_python_prints_the_line_of_the_command(settings: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE % settings],
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    said = done.stderr.splitlines()
    assert len(said) == lines and all(map(LINE.match, said)), said


def test_a_loaded_configuration_knows_whether_somebody_chose(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchrank.cli.logs import log

    monkeypatch.setattr(log, "handlers", [caplog.handler])
    rows = pl.DataFrame({"query": ["q"], "candidates": [["a", "b"]]})
    for config, said in (
        (load(None, {}), True),
        (load(None, {"endpoint": {"provider": "local"}}), False),
        ({"endpoint": {"provider": "local"}}, False),
    ):
        for settings in ({}, {"top_n": 1}):
            caplog.clear()
            batchrank.rerank(rows, config=config, progress=False, **settings)
            assert (EMBEDDED in caplog.text) is said, (config, settings)


# Jobs


def job(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, JOBS / name, *map(str, arguments)],
        env=clean(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["score_dataset.py", "nightly_reindex.py", "dask_rerank.py"])
@pytest.mark.parametrize("configured", [False, True])
def test_jobs_refuse_where_nobody_chose(
    source: Path, tmp_path: Path, name: str, configured: bool
) -> None:
    file = configuration(tmp_path, "[output]\ntop_n = 2\n")
    done = job(name, source.parent, tmp_path / "out", *(["-c", file] if configured else []))
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert "endpoint" in line and "-c FILE" in line and "--provider" in line
    assert not (tmp_path / "out").exists()


def test_a_job_takes_a_provider_for_a_choice(source: Path, tmp_path: Path) -> None:
    written(tmp_path / "rows" / "2026-11-24" / "in.parquet", pq.read_table(source))
    night = [tmp_path / "rows", tmp_path / "scores", "--date", "2026-11-24"]
    done = job("nightly_reindex.py", *night, "--provider", "local")
    assert (done.returncode, done.stderr) == (0, "")
    assert output(tmp_path / "scores" / "2026-11-24").num_rows == 6

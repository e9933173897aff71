"""Readers of whole folders read OUT as it is; outputs with earlier names are still read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest
from helpers import Server, fast, inside, output, part_bytes, settings, table, written

from batchrank.session import job

ROWS = 25
QRELS = "".join(f"{row} 0 d{row}-0 1\n" for row in range(ROWS))
FIELDS = (
    "status exit_code message batchrank libraries config input rows rows_scored rows_partial "
    "rows_failed rows_skipped rows_open documents_truncated requests retries possibly_paid "
    "requests_this_session tokens_estimated tokens_billed cost_usd cost_is_real started seconds "
    "limited_by parts finish_by priority_column rows_kept left shard shards pairs_reused "
    "rows_reused"
)
"""What a receipt named run.json holds."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("names") / "in.parquet", table(ROWS, tag="names"))


@pytest.fixture(scope="module")
def scored(server: Server, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output of three parts, with its report; copy it."""
    out = tmp_path_factory.mktemp("scored") / "out"
    config = settings(server.base_url, output={"rows_per_part": 10})
    assert job.run(config, job.Request(inputs=[str(source)], out=out), print).exit_code == 0
    assert inside("report", out).returncode == 0
    return out


@pytest.fixture
def command(server: Server, source: Path, tmp_path: Path) -> list[object]:
    """The command that has filled `former`, or goes on with it."""
    config = tmp_path / "ten.toml"
    config.write_text("[output]\nrows_per_part = 10\n")
    return [*fast(server, tmp_path / "out", source), "-c", config]


@pytest.fixture
def former(scored: Path, tmp_path: Path) -> Path:
    """The output as an earlier version has left it."""
    out = shutil.copytree(scored, tmp_path / "out")
    for file in list(_receipts(out)):
        _make_former(file)
    (out / "_report.html").rename(out / "report.html")
    return out


def _receipts(out: Path) -> Iterator[Path]:
    yield from sorted(out.rglob("_run.json"))


def _make_former(file: Path) -> None:
    """Give a receipt its former name, and the fields of that time alone."""
    receipt = json.loads(file.read_bytes())
    there = {name: receipt[name] for name in FIELDS.split() if name in receipt}
    file.with_name("run.json").write_text(json.dumps(there))
    file.unlink()


def test_every_name_but_the_parts_begins_with_an_underscore(scored: Path) -> None:
    names = sorted(path.name for path in scored.iterdir())
    assert {"_SUCCESS", "_report.html", "_run.json"} <= set(names)
    assert [name for name in names if name[0] != "_"] == list(part_bytes(scored))


def test_readers_of_whole_folders_read_the_output_as_it_is(scored: Path) -> None:
    rows = output(scored)
    assert ds.dataset(scored).to_table().equals(rows)
    assert list(pd.read_parquet(scored)["query_id"]) == rows["query_id"].to_pylist()
    assert pl.read_parquet(scored / "*.parquet").height == ROWS


def test_a_run_that_was_stopped_is_read_as_it_is_too(command: list[object], tmp_path: Path) -> None:
    done = inside(*command, "--max-cost", "0.00005", "--max-in-flight", 1)
    out = tmp_path / "out"
    assert done.returncode == 4
    assert (out / "_run.json").exists()
    assert all(path.name[0] == "_" or path.suffix == ".parquet" for path in out.iterdir())


def test_every_command_reads_an_earlier_version_s_output(
    former: Path, command: list[object], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "qrels.txt").write_text(QRELS)
    before = server.received
    for words in (
        ["status", former],
        ["verify", former],
        ["evaluate", former, "--qrels", tmp_path / "qrels.txt"],
        ["report", former, "-o", tmp_path / "page.html"],
        ["export", former, "--format", "trec"],
        command,  # finished: left alone
        [*command[:3], tmp_path / "next", *command[4:], "--reuse", former],
    ):
        done = inside(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert server.received == before
    assert json.loads(inside("status", former, "--json").stdout)["receipt"]["rows_scored"] == ROWS


def test_a_receipt_that_is_written_again_takes_the_former_one_s_place(
    former: Path, command: list[object]
) -> None:
    (former / "_SUCCESS").unlink()
    (former / "part-00001.parquet").unlink()
    assert inside(*command).returncode == 0
    assert (former / "_run.json").exists()
    assert not (former / "run.json").exists()


def test_a_fresh_start_leaves_nothing_of_the_former_names(
    former: Path, command: list[object]
) -> None:
    assert inside(*command, "--restart", *_consent()).returncode == 0
    assert not {"run.json", "report.html"} & {path.name for path in former.iterdir()}


def test_shards_of_an_earlier_version_are_finished(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = settings(server.base_url, output={"rows_per_part": 10})
    for shard in range(2):
        request = job.Request(inputs=[str(source)], out=out, shard=(shard, 2))
        assert job.run(config, request, lambda progress: None).exit_code == 0
    (out / "_SUCCESS").unlink()
    (out / "_run.json").unlink()
    homes = list(_receipts(out))
    assert len(homes) == 2
    for file in homes:
        _make_former(file)
    assert inside("status", out).returncode == 0
    assert inside("finish", out).returncode == 0
    assert (out / "_run.json").exists()
    assert inside("verify", out).returncode == 0


def test_a_finished_output_whose_receipt_is_lost_says_so_and_gets_another(
    server: Server, former: Path, command: list[object]
) -> None:
    (former / "run.json").unlink()
    before = server.received
    done = inside(*command)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "its receipt is lost" in done.stderr
    assert (former / "_run.json").exists() and server.received == before
    assert inside("verify", former).returncode == 0


def _consent() -> list[str]:
    return ["--yes"] if "--yes" in inside("run", "--help").stdout else []

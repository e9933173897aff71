"""Numbers that mean nothing, and files that are nested or long beyond sense: one line, its code."""

from pathlib import Path
from typing import Any

import pytest
from helpers import Server, fast, inside, program, table, written

import batchrank
from batchrank.errors import BatchrankError

HUGE = "9" * 30


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400", HUGE])
@pytest.mark.parametrize(
    "option",
    [
        *("max-cost", "requests-per-minute", "tokens-per-minute", "limit", "top-n", "min-rows"),
        *("max-failed-rows", "max-partial-rows", "max-in-flight"),
    ],
)
def test_an_option_takes_no_number_that_means_nothing(
    server: Server, tmp_path: Path, option: str, value: str
) -> None:
    path = written(tmp_path / "in.parquet", table(1))
    before = server.received
    done = inside(*fast(server, tmp_path / "out", path), f"--{option}={value}")
    assert done.returncode in (2, 78)
    assert "Traceback" not in done.stderr
    assert option in done.stderr.replace("_", "-")
    assert not (tmp_path / "out").exists()
    assert server.received == before


@pytest.mark.parametrize(
    "command",
    [
        "serve --requests-per-minute=nan",
        "serve --growth-base=inf",
        f"serve --port={HUGE}",
        "coordinate --workers=2 --lease-seconds=nan",
        "coordinate --workers=2 --port=-1",
        "coordinate --workers=2 --tokens-per-minute=nan",
        f"plan IN --sample={HUGE}",
    ],
)
def test_every_command_refuses_them(tmp_path: Path, command: str) -> None:
    path = written(tmp_path / "in.parquet", table(1))
    done = inside(*command.replace("IN", str(path)).split())
    assert done.returncode == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-1", HUGE, "1e400", "true", "'x'", "2024-01-01"])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("rate", "requests_per_minute"),
        ("rate", "max_in_flight"),
        ("limits", "max_documents"),
        ("output", "rows_per_part"),
        ("output", "top_n"),
        ("endpoint", "timeout_seconds"),
        ("endpoint", "price_usd"),
        ("endpoint", "max_outage_seconds"),
    ],
)
def test_a_configuration_takes_none_either(
    server: Server, tmp_path: Path, section: str, key: str, value: str
) -> None:
    path = written(tmp_path / "in.parquet", table(1))
    (tmp_path / "c.toml").write_text(f"[{section}]\n{key} = {value}\n")
    arguments = ["run", path, "-o", tmp_path / "out", "--base-url", server.base_url]
    done = inside(*arguments, "-c", tmp_path / "c.toml")
    assert done.returncode == 78
    assert f"{section}.{key}: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 100_000 + "]" * 100_000,
        "a = " + "{b = " * 100_000 + "1" + "}" * 100_000,
        "[" + ".".join("a" * 100_000) + "]\nb = 1\n",
        "[rate]\nrequests_per_minute = " + "9" * 5000 + "\n",
        "[endpoint.headers]\nX-Team = '''\nabc\n'''\n",
        '[endpoint.headers]\n"X-Te\\nam" = "abc"\n',
    ],
    ids=["lists", "tables", "a name", "digits", "a value", "a header"],
)
def test_a_file_beyond_sense_is_refused_in_one_short_line(
    server: Server, tmp_path: Path, content: str
) -> None:
    path = written(tmp_path / "in.parquet", table(1))
    (tmp_path / "c.toml").write_text(content)
    done = inside(*fast(server, tmp_path / "out", path), "-c", tmp_path / "c.toml")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1000
    assert "c.toml: " in done.stderr


@pytest.mark.parametrize(
    "asked",
    [{"max_cost_usd": value} for value in (float("nan"), float("inf"), -1.0)]
    + [{"limit_rows": -1}, {"limit_rows": 10**30}],
    ids=str,
)
def test_python_takes_none_either(asked: dict[str, Any]) -> None:
    with pytest.raises(BatchrankError, match=f"^{next(iter(asked))} is ") as error:
        batchrank.rerank(table(1), progress=False, **asked)
    assert error.value.code == 78


LONG = "x" * 5000


@pytest.mark.parametrize(
    "command",
    [
        "status LONG",
        "verify LONG",
        "finish LONG",
        "report LONG",
        "evaluate LONG",
        "export LONG --format trec",
        "plan LONG",
        "plan IN -c LONG",
        "run IN -o LONG",
        "run IN -o OUT --state-dir LONG",
        "run IN -o OUT --metrics-file LONG",
        "run IN -o OUT --reuse LONG",
        "plan RUN --queries LONG --corpus LONG",
    ],
)
def test_a_path_of_thousands_of_characters_is_one_short_line(tmp_path: Path, command: str) -> None:
    places = {
        "IN": written(tmp_path / "in.parquet", table(1)),
        "OUT": tmp_path / "out",
        "RUN": tmp_path / "run.trec",
        "LONG": LONG,
    }
    (tmp_path / "run.trec").write_text("q Q0 d 1 1 tag\n")
    done = program(*[places.get(word, word) for word in command.split()])
    assert done.returncode in (65, 66, 73, 74, 78)
    assert "Traceback" not in done.stderr
    assert "File name too long" in done.stderr

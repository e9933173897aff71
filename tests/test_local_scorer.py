"""The scorer of the local server decides the scores: an output and its reuse are tied to it."""

from pathlib import Path

import pytest
from helpers import output, program, table, written

from batchrank.errors import ExitCode


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("rows") / "in.parquet", table(4, tag="scorer"))


@pytest.fixture(scope="module")
def lexical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("config") / "lexical.toml"
    config.write_text('[endpoint]\nprovider = "local"\nlocal_scorer = "lexical"\n')
    return config


@pytest.fixture(scope="module")
def scored(rows: Path, lexical: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output by the lexical scorer."""
    out = tmp_path_factory.mktemp("scored") / "out"
    done = program("run", rows, "-o", out, "-c", lexical)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_says_which_scorer_it_had(scored: Path) -> None:
    assert '"embedded rehearsal scorer, lexical"' in (scored / "_run.json").read_text()


def test_the_two_scorers_give_other_scores(scored: Path, rows: Path, tmp_path: Path) -> None:
    done = program("run", rows, "-o", tmp_path / "out", "--provider", "local")
    assert done.returncode == 0, done.stderr
    assert output(tmp_path / "out")["results"] != output(scored)["results"]


def test_another_scorer_is_refused_on_the_same_output(scored: Path, rows: Path) -> None:
    done = program("run", rows, "-o", scored, "--provider", "local")
    assert done.returncode == ExitCode.CONFIG_INVALID
    assert "endpoint.local_scorer = 'lexical'" in done.stderr


def test_scores_of_another_scorer_are_not_reused(scored: Path, rows: Path, tmp_path: Path) -> None:
    done = program("run", rows, "-o", tmp_path / "out", "--provider", "local", "--reuse", scored)
    assert done.returncode == ExitCode.CONFIG_INVALID
    assert "endpoint.local_scorer" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_scorer_for_another_endpoint_is_refused(rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text('[endpoint]\nbase_url = "http://127.0.0.1:9"\nlocal_scorer = "lexical"\n')
    done = program("plan", rows, "-c", config)
    assert done.returncode == ExitCode.CONFIG_INVALID
    assert "endpoint.local_scorer" in done.stderr

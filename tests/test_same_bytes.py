"""The parts are a pure function of input and configuration: the same bytes at any concurrency."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import (
    KEY,
    Server,
    fast,
    inside,
    output,
    part_bytes,
    program,
    score,
    serving,
    table,
    written,
)

SHUFFLED = """
seed = {}
[[fault]]
kind = "slow"
where = {{ probability = 0.2 }}
seconds = 0.05
[[fault]]
kind = "slow"
where = {{ probability = 0.5 }}
seconds = 0.01
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows."""
    return written(tmp_path_factory.mktemp("same") / "in.parquet", table(300, 4, tag="same"))


@pytest.fixture(scope="module")
def oracle(server: Server, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run, in parts of 50 rows."""
    out = tmp_path_factory.mktemp("oracle") / "out"
    score(server, source, out, output={"rows_per_part": 50})
    return out


def config(tmp_path: Path) -> Path:
    """Parts of 50 rows, for the command line."""
    path = tmp_path / "batchrank.toml"
    path.write_text("[output]\nrows_per_part = 50\n")
    return path


def test_two_runs_give_the_same_bytes(
    server: Server, source: Path, oracle: Path, tmp_path: Path
) -> None:
    done = program(*fast(server, tmp_path / "out", source), "-c", config(tmp_path))
    assert done.returncode == 0
    assert part_bytes(tmp_path / "out") == part_bytes(oracle)


@pytest.mark.parametrize(("max_in_flight", "seed"), [(1, 1), (8, 2), (64, 3)])
def test_concurrency_and_shuffled_latencies_leave_no_trace(
    serve: Callable[..., Server],
    source: Path,
    oracle: Path,
    tmp_path: Path,
    max_in_flight: int,
    seed: int,
) -> None:
    slow = serve(SHUFFLED.format(seed) if max_in_flight > 1 else "")
    run = [*fast(slow, tmp_path / "out", source), "--max-in-flight", max_in_flight]
    assert inside(*run, "-c", config(tmp_path)).returncode == 0
    assert max_in_flight == 1 or slow.ledger()["faults"]["slow"] > 50
    assert part_bytes(tmp_path / "out") == part_bytes(oracle)


def test_faults_that_are_overcome_leave_no_trace(
    serve: Callable[..., Server], source: Path, oracle: Path, tmp_path: Path
) -> None:
    kinds = ["bad_json", "reset_inside_body", "reset_before_headers", "html", "shuffled"]
    script = "seed = 5\n" + "".join(
        f'[[fault]]\nkind = "{kind}"\nwhere = {{ probability = 0.04 }}\n' for kind in kinds
    )
    faulty = serve(script)
    assert inside(*fast(faulty, tmp_path / "out", source), "-c", config(tmp_path)).returncode == 0
    assert set(faulty.ledger()["faults"]) == set(kinds)
    assert part_bytes(tmp_path / "out") == part_bytes(oracle)


def test_both_dialects_give_the_same_scores(source: Path, oracle: Path, tmp_path: Path) -> None:
    with serving("--api-key-env", "KEY_OF_THE_SERVER", KEY_OF_THE_SERVER=KEY) as own:
        for provider, url in [
            ("dashscope", own.base_url),
            ("dashscope-native", own.native_url),
        ]:
            done = program(
                *["run", source, "-o", tmp_path / provider, "--provider", provider],
                *["--base-url", url, "--requests-per-minute", 0, "-c", config(tmp_path)],
                DASHSCOPE_API_KEY=KEY,
            )
            assert (done.returncode, done.stderr) == (0, "")
            # The footers alone differ: they name the provider.
            assert output(tmp_path / provider).equals(output(oracle))


def test_the_default_provider_starts_its_own_server_and_gives_the_same_every_time(
    tmp_path: Path,
) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="embedded"))
    for name in ("one", "two"):
        done = program("run", source, "-o", tmp_path / name)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert part_bytes(tmp_path / "one") == part_bytes(tmp_path / "two")
    assert output(tmp_path / "one").column("status").to_pylist() == ["scored"] * 5

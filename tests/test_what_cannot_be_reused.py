"""An earlier output that is missing, damaged or of another model is refused in one clear line; what
is damaged in a part of it is scored again, and never wrong.
"""

from array import array
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random

import pytest
from helpers import Server, dated, fast, inside, output, rows_of, score, scores_of, table, written

from batchrank.config.settings import load
from batchrank.planning.text_hashes import Digests
from batchrank.records import Row, RowScores
from batchrank.reuse.index import Reuse, opened
from batchrank.reuse.pair_files import DAMAGE, SideFile, SideFiles


@pytest.fixture
def night(server: Server, tmp_path: Path) -> Path:
    """A scored output of four parts."""
    written(tmp_path / "in.parquet", table(40, tag="damage"))
    score(server, tmp_path / "in.parquet", tmp_path / "night1", output={"rows_per_part": 10})
    return tmp_path / "night1"


def refusal(server: Server, night: Path, *options: object) -> tuple[int, str]:
    """How the night after ends."""
    command = fast(server, night.parent / "night2", night.parent / "in.parquet")
    done = inside(*command, "--reuse", night, *options)
    return done.returncode, done.stderr


def test_a_folder_that_is_not_there(server: Server, night: Path) -> None:
    code, said = refusal(server, night.with_name("nowhere"))
    assert (code, "nowhere: no such folder" in said) == (66, True)


def test_an_output_that_keeps_no_pairs(server: Server, night: Path) -> None:
    for file in (night / "_pairs").iterdir():
        file.unlink()
    code, said = refusal(server, night)
    assert (code, "has no scores to reuse" in said) == (66, True)


def test_the_output_itself(server: Server, night: Path) -> None:
    command = fast(server, night, night.parent / "in.parquet")
    done = inside(*command, "--reuse", night / ".." / night.name)
    assert (done.returncode, "--reuse names another" in done.stderr) == (78, True)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--model", "qwen3-rerank-next"], "endpoint.model = 'qwen3-rerank', now"),
        (["--instruct", "find lies"], "endpoint.instruct = '', now 'find lies'"),
        (["--provider", "vllm", "--model", "m"], "endpoint.provider = 'local', now 'vllm'"),
    ],
    ids=["model", "instruct", "provider"],
)
def test_scores_of_another_model_or_instruction(
    server: Server, night: Path, options: list[str], field: str
) -> None:
    code, said = refusal(server, night, *options)
    assert (code, field in said) == (78, True)


def test_scores_of_another_model_do_not_fit_even_where_nobody_looks(
    server: Server, night: Path
) -> None:
    """The names of pairs change with what decides scores: the folder's own word is not needed."""
    other = load(None, {"endpoint": {"instruct": "find lies", "base_url": server.base_url}})
    (night / "_pairs" / "run.json").unlink()
    SideFiles(night, night / "_batchrank").begin(other.scoring(), date(2026, 11, 1))
    code, said = refusal(server, night, "--instruct", "find lies")
    assert (code, said) == (0, "")
    assert not any(map(any, output(night.with_name("night2"))["reused_from"].to_pylist()))


def test_what_the_folder_says_of_itself_is_damaged(server: Server, night: Path) -> None:
    (night / "_pairs" / "run.json").write_bytes(b'{"version": 1, "begun"')
    code, said = refusal(server, night)
    assert (code, "damaged" in said) == (65, True)


def test_a_kept_column_of_the_same_name(server: Server, night: Path) -> None:
    rows = table(3, tag="named").append_column("reused_from", [[1, 2, 3]])
    written(night.parent / "in.parquet", rows)
    code, said = refusal(server, night, "--keep", "reused_from")
    assert (code, "reused_from" in said) == (78, True)


def test_rows_only_without_reuse_is_bad_usage(server: Server, night: Path) -> None:
    command = fast(server, night.parent / "night2", night.parent / "in.parquet")
    assert inside(*command, "--reuse-rows-only").returncode == 2


def test_a_run_that_has_not_ended_is_used_as_far_as_it_is(server: Server, night: Path) -> None:
    for name in ("_SUCCESS", "part-00003.parquet", "_pairs/part-00003.arrow"):
        (night / name).unlink()
    code, said = refusal(server, night, "--log-format", "text")
    assert (code, "is not finished" in said) == (0, True)
    assert sum(map(all, output(night.with_name("night2"))["reused_from"].to_pylist())) == 30


def test_a_side_file_that_is_lost_is_said_and_its_rows_are_scored(
    server: Server, night: Path
) -> None:
    (night / "_pairs" / "part-00001.arrow").unlink()
    code, said = refusal(server, night)
    assert (code, "1 of 4 parts have no _pairs/" in said) == (0, True)
    assert scores_of(night.with_name("night2")) == scores_of(night)


def test_a_flipped_bit_of_a_score_is_seen(server: Server, night: Path) -> None:
    path = night / "_pairs" / "part-00001.arrow"
    (first, *_) = scores_of(night)[10].values()
    content, wanted = path.read_bytes(), array("d", [first]).tobytes()
    at = content.index(wanted) + 3
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    code, said = refusal(server, night)
    assert (code, said.count("part-00001.arrow: is damaged")) == (0, 1)
    assert scores_of(night.with_name("night2")) == scores_of(night)
    known = list(map(all, output(night.with_name("night2"))["reused_from"].to_pylist()))
    assert known == [row != 10 for row in range(40)]


Change = Callable[[bytearray, Random], None]


def flip(content: bytearray, random: Random) -> None:
    for _ in range(random.randrange(1, 4)):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def cut(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content)) :]


def overwrite(content: bytearray, random: Random) -> None:
    at = random.randrange(len(content))
    content[at : at + random.randrange(1, 64)] = random.randbytes(random.randrange(1, 64))


@pytest.mark.parametrize("change", [flip, cut, overwrite])
def test_no_damage_makes_a_wrong_score(tmp_path: Path, change: Change) -> None:
    config = load(None, {})
    random, digests = Random(7), Digests(config.scoring())
    rows = [
        Row(place, f"query {place}", [f"text {place} {n}" for n in range(4)]) for place in range(30)
    ]
    scored = [
        RowScores(
            row.index,
            array("d", [random.random() for _ in row.texts]),
            "scored",
            None,
            1,
            0,
            0,
            digests.of(row),
        )
        for row in rows
    ]
    files = SideFiles(tmp_path, tmp_path)
    files.begin(config.scoring(), date(2026, 11, 1))
    files.publish("part-00000.parquet", scored)
    path = tmp_path / "_pairs" / "part-00000.arrow"
    whole, fewer = path.read_bytes(), 0
    for _ in range(150):
        content = bytearray(whole)
        change(content, random)
        path.write_bytes(content)
        try:
            SideFile(path)
        except DAMAGE:
            continue
        reuse = Reuse(config, [opened(tmp_path, config, rows_only=False)])
        for row, right in zip(rows, scored, strict=True):
            known = reuse(row).known
            assert known is None or known == right.relevance_scores
            fewer += known is None
    assert fewer or change is cut


def test_rows_of_another_day_are_not_told_apart_by_their_bytes(
    server: Server, tmp_path: Path
) -> None:
    """No date of a run is in its side files: the same scores make the same bytes on any day."""
    written(tmp_path / "in.parquet", rows_of(("lift", ["wings"])))
    score(server, tmp_path / "in.parquet", tmp_path / "1")
    dated(tmp_path / "1", date(2020, 2, 2))
    score(server, tmp_path / "in.parquet", tmp_path / "2")
    one, two = (tmp_path / name / "_pairs" / "part-00000.arrow" for name in "12")
    assert one.read_bytes() == two.read_bytes()

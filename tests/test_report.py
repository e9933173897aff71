"""`report` makes one HTML file of a run, whatever its state; its figures are the run's."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    CANDIDATES,
    Server,
    ended,
    inside,
    killed,
    output,
    part_bytes,
    score,
    started,
    table,
    until,
    written,
)

Serve = Callable[..., Server]


class _Tables(HTMLParser):
    """All table rows by section, and all other text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self.section = self.cell = ""
        self.cells: list[str] = []
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("h2", "th", "td"):
            self.inside, self.cell = tag, ""
        elif tag == "tr":
            self.cells = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self.section = self.cell
        elif tag in ("th", "td"):
            self.cells.append(self.cell)
        elif tag == "tr":
            self.rows[f"{self.section}: {self.cells[0]}"] = self.cells[1:]
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cell += data


def read(html: str) -> dict[str, list[str]]:
    """The cells of each row of each table, by "section: first cell"."""
    tables = _Tables()
    tables.feed(html)
    return tables.rows


def reported(out: Path, *more: object) -> str:
    """The page that the command makes of an output, where it says it is."""
    done = inside("report", out, *more)
    assert done.returncode == 0
    assert done.stderr == "" or ": is not finished; this reads the " in done.stderr
    return Path(done.stdout.removesuffix("\n")).read_text("utf-8")


def trying_rows() -> pa.Table:
    """Sixty rows: a fifth have two equal texts, some are empty, one text of row 11 is refused."""
    rows = table(60, documents=12, tag="report")
    lists = rows["candidates"].to_pylist()
    for row in range(0, 60, 5):
        lists[row][7]["text"] = lists[row][2]["text"]
    lists[3] = []
    lists[4][0]["text"] = " "
    lists[11][5]["text"] = "poison"
    return rows.set_column(2, "candidates", pa.array(lists, CANDIDATES))


FAULTS = """
[[fault]]
kind = "status"
status = 503
code = "ModelUnavailable"
where = { first = 1, probability = 0.2 }
[[fault]]
kind = "content_refusal"
where = { marker = "poison" }
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that met faults."""
    from helpers import serving

    folder = tmp_path_factory.mktemp("report")
    (folder / "faults.toml").write_text(FAULTS)
    with serving("--faults", str(folder / "faults.toml")) as own:
        source = written(folder / "in.parquet", trying_rows())
        score(own, source, folder / "out", output={"rows_per_part": 20})
    return folder / "out"


def test_totals_are_the_receipts(faulty: Path) -> None:
    receipt = json.loads((faulty / "_run.json").read_bytes())
    rows = read(reported(faulty))
    spent = {name: cells[0] for name, cells in rows.items() if name.startswith("Tokens")}
    billed, estimated = receipt["tokens_billed"], receipt["tokens_estimated"]
    assert spent["Tokens and cost: tokens billed"] == f"{billed:,}"
    assert spent["Tokens and cost: tokens estimated"].startswith("about ")
    assert f"{estimated:,}" not in spent.values(), "a guess as if it were a count"
    assert "Tokens and cost: billed beyond estimate" not in spent
    assert spent["Tokens and cost: cost"].startswith(f"${receipt['cost_usd']:.4f}")
    assert rows["Configuration: endpoint.model"] == ["qwen3-rerank"]


def test_scores_moves_and_ties_are_those_of_the_parts(faulty: Path) -> None:
    rows = read(reported(faulty))
    results = [row["results"] for row in output(faulty).to_pylist()]
    scores = [one["relevance_score"] for row in results for one in row if one["rank"]]
    best = [row[0]["relevance_score"] for row in results if row and row[0]["rank"]]
    assert rows["Scores: scored candidates"] == [f"{len(scores):,}"]
    for share in (5, 25, 50, 75, 95):
        cells = rows[f"Scores: {share}%"]
        for cell, values in zip(cells, (scores, best), strict=True):
            exact = np.quantile(values, share / 100, method="inverted_cdf")
            assert float(cell) == pytest.approx(exact, abs=0.002)
    figures = json.loads(inside("evaluate", faulty, "--json").stdout)
    assert rows["Scores: candidates tied with another"][0].startswith("24 (")
    assert figures["tied_candidates"] == 24
    assert rows["Scores: rows with ties"][0].startswith("12 (")
    assert rows["Scores: places moved, mean"] == [f"{figures['mean_displacement']:.2f}"]
    assert rows["Scores: rows with another first"] == [f"{figures['top_1_changed']:.1%}"]


def test_failures_have_their_reasons(faulty: Path) -> None:
    receipt = json.loads((faulty / "_run.json").read_bytes())
    rows = read(reported(faulty))
    for status in ("scored", "partial", "skipped"):
        assert rows[f"Failures: {status}"] == [f"{receipt[f'rows_{status}']} rows"]
    assert rows["Failures: document n is empty or blank"] == ["1", "4"]
    refused = "Failures: document n: the endpoint answered 400 DataInspectionFailed"
    assert rows[refused] == ["1", "11"]
    sent_again = int(rows["Failures: the endpoint answered 503 ModelUnavailable"][0])
    assert sent_again == receipt["retries"] > 0


def test_the_course_adds_up_to_the_requests(faulty: Path) -> None:
    receipt = json.loads((faulty / "_run.json").read_bytes())
    points = json.loads((faulty / "_batchrank" / "series.json").read_bytes())["points"]
    assert sum(point["sent"] for point in points) == receipt["requests"]
    assert sum(point["tokens"] for point in points) == receipt["tokens_billed"]
    rows = read(reported(faulty))
    mean = float(rows["Rate: mean, requests a second"][0].replace(",", ""))
    seconds = sum(point["seconds"] for point in points)
    assert mean == pytest.approx(receipt["requests"] / seconds, abs=0.06)
    median, slowest = (rows[f"Latency: {name}"][0] for name in ("50%", "slowest"))
    units = {"ms": 0.001, "s": 1.0}
    fast, slow = (
        float(value) * units[unit] for value, unit in (one.split() for one in (median, slowest))
    )
    assert 0 < fast <= slow < receipt["seconds"]


def test_the_page_asks_for_nothing_and_runs_nothing(faulty: Path) -> None:
    page = reported(faulty)
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<img|<iframe|\bsrc=|\bhref=|url\(|@import|\bon\w+=", page)
    assert 'name="viewport"' in page and "prefers-color-scheme:dark" in page


def test_the_same_output_gives_the_same_page(faulty: Path) -> None:
    assert reported(faulty) == reported(faulty)


def test_the_output_stays_as_it_was_and_whole(faulty: Path, tmp_path: Path) -> None:
    parts, receipt = part_bytes(faulty), (faulty / "_run.json").read_bytes()
    state = {path: path.read_bytes() for path in (faulty / "_batchrank").iterdir()}
    reported(faulty)
    assert (faulty / "_report.html").exists()
    assert (part_bytes(faulty), (faulty / "_run.json").read_bytes()) == (parts, receipt)
    assert {path: path.read_bytes() for path in (faulty / "_batchrank").iterdir()} == state
    assert inside("verify", faulty).returncode == 0
    assert pq.read_table(sorted(faulty.glob("*.parquet"))).num_rows == 60
    other = tmp_path / "elsewhere.html"
    assert reported(faulty, "-o", other) == (faulty / "_report.html").read_text()
    assert other.exists()


def test_names_that_look_like_markup_are_text(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "<b>&out"
    rows = table(2, tag="markup").set_column(0, "query_id", pa.array(["<script>", "b"]))
    lists = rows["candidates"].to_pylist()
    lists[0][0]["text"] = ""
    rows = rows.set_column(2, "candidates", pa.array(lists, CANDIDATES))
    score(server, written(tmp_path / "<i>.parquet", rows), out)
    page = reported(out)
    assert "<script>" not in page and "<i>" not in page and "<b>" not in page
    assert read(page)["Failures: document n is empty or blank"] == ["1", "<script>"]


# States of a run


def test_sessions_are_added_up_and_their_limits_named(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    source, out = written(tmp_path / "in.parquet", table(200, tag="sessions")), tmp_path / "out"
    config = tmp_path / "c.toml"
    config.write_text("[output]\nrows_per_part = 10\n")
    run = ["run", source, "-o", out, "--base-url", own.base_url, "-c", config]
    process = started(*run, "--requests-per-minute", 6000)
    until(lambda: len(list(out.glob("part-*"))) > 0, "a part is published")
    process.terminate()
    assert ended(process)[0] == 143
    stopped = reported(out)
    assert "stopped by SIGTERM; the same command goes on from here." in stopped
    assert read(stopped)["Rate: limit"] == ["100.0"]
    rows = read(stopped)
    assert int(rows["Failures: not done"][0].split()[0]) > 0
    part, all_of_it = (
        float(rows[f"Tokens and cost: {name}"][0].split()[0].removeprefix("$"))
        for name in ("cost", "cost of all rows at that")
    )
    assert 0 < part < all_of_it
    assert inside(*run, "--requests-per-minute", 9000).returncode == 0
    rows = read(reported(out))
    assert (rows["Rate: sessions"], rows["Rate: limit"]) == (["2"], ["100.0, then 150.0"])
    points = json.loads((out / "_batchrank" / "series.json").read_bytes())["points"]
    receipt = json.loads((out / "_run.json").read_bytes())
    assert sum(point["sent"] for point in points) == receipt["requests"]


def test_a_run_at_work_and_a_killed_one_have_their_page(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    source, out = written(tmp_path / "in.parquet", table(300, tag="live")), tmp_path / "out"
    config = tmp_path / "c.toml"
    config.write_text("[output]\nrows_per_part = 10\n")
    run = ["run", source, "-o", out, "--base-url", own.base_url, "-c", config]
    process = started(*run, "--requests-per-minute", 0, "--max-in-flight", 4)
    until(lambda: len(list(out.glob("part-*"))) > 1, "parts are published")
    page = reported(out)
    assert "running" in page and "The run has no receipt yet." in page
    assert int(read(page)["Failures: scored"][0].split()[0]) >= 20
    killed(process)
    page = reported(out)
    assert ">stopped</p>" in page
    assert int(read(page)["Scores: rows with scores"][0]) >= 20


def test_a_run_that_kept_no_series_says_so(server: Server, tmp_path: Path) -> None:
    """Such as one of an earlier version."""
    out = tmp_path / "out"
    score(server, written(tmp_path / "in.parquet", table(5, tag="older")), out)
    (out / "_batchrank" / "series.json").unlink()
    page = reported(out)
    assert page.count("No series was kept") == 2
    assert read(page)["Scores: rows with scores"] == ["5"]


def test_scores_of_any_range_are_shown(server: Server, tmp_path: Path) -> None:
    """Logits, say: the bounds come from the parts' footers."""
    out = tmp_path / "out"
    score(server, written(tmp_path / "in.parquet", table(5, tag="logits")), out)
    part = out / "part-00000.parquet"
    rows = pq.read_table(part)
    results = rows["results"].to_pylist()
    for row in results:
        for one, logit in zip(row, (7.5, -1.0, -12.5), strict=True):
            one["relevance_score"] = logit
    place = rows.schema.get_field_index("results")
    column = pa.array(results, rows.schema.field("results").type)
    written(part, rows.set_column(place, "results", column))
    page = reported(out)
    assert "<span>-12.5</span><span>7.5</span>" in page
    assert float(read(page)["Scores: 50%"][0]) == pytest.approx(-1.0, abs=0.02)


def test_an_output_without_rows_or_scores_has_a_page(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(1).slice(0, 0))
    score(server, source, out, allow_empty=True)
    assert "No row with scores is published yet." in reported(out)


def test_a_restart_takes_the_old_page_away(server: Server, tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.parquet", table(3, tag="again")), tmp_path / "out"
    score(server, source, out)
    reported(out)
    run = ["run", source, "-o", out, "--base-url", server.base_url, "--restart", "--yes"]
    assert inside(*run).returncode == 0
    assert not (out / "_report.html").exists()


def test_what_is_no_output_and_a_place_that_is_none_are_refused(
    server: Server, tmp_path: Path
) -> None:
    done = inside("report", tmp_path)
    assert (done.returncode, done.stdout) == (73, "")
    assert done.stderr == f"batchrank: {tmp_path}: is not the output of `batchrank run`.\n"
    out = tmp_path / "out"
    score(server, written(tmp_path / "in.parquet", table(1, tag="place")), out)
    page = tmp_path / "none" / "page.html"
    done = inside("report", out, "-o", page)
    assert done.returncode == 74
    assert done.stderr == f"batchrank: {page}: cannot be written: No such file or directory.\n"

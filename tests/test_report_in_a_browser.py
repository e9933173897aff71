"""A browser shows the report: its figures, on a phone as on a screen, and no script of its own."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import Server, inside, score, table, written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: chromium)")

MEASURES = """<script>
const root = document.documentElement, boxes = [...document.querySelectorAll("polyline, rect")]
  .map(one => one.getBoundingClientRect());
const cells = [...document.querySelectorAll("th, td")];
parent.document.documentElement.dataset.measures = JSON.stringify({
  page: root.scrollWidth, window: innerWidth, drawn: boxes.length,
  cut: cells.filter(cell => cell.scrollWidth > cell.clientWidth).length,
  outside: boxes.filter(box => box.left < 0 || box.right > innerWidth + 1).length,
  background: getComputedStyle(document.body).backgroundColor,
});
</script>"""


def shown(page: Path, *options: str) -> str:
    """The document as the browser has it once the page is loaded."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *[CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", *options],
            *[f"--user-data-dir={page.parent / 'profile'}", "--hide-scrollbars"],
            *["--disable-dev-shm-usage", "--no-first-run", page.as_uri()],
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on forty rows."""
    folder = tmp_path_factory.mktemp("browser")
    source = written(folder / "in.parquet", table(40, documents=15, tag="browser"))
    score(server, source, folder / "out")
    assert inside("report", folder / "out", "-o", folder / "page.html").returncode == 0
    return folder / "page.html"


def measured(page: Path, *options: str, width: int) -> dict[str, object]:
    """What a script says of the page in a frame of this width, let into a copy that forbids none.

    (A window is never narrower than 500; a frame is.)
    """
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    inner = escape(free.replace("</body>", MEASURES + "</body>"))
    frame = page.parent / "frame.html"
    frame.write_text(f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}">')
    found = re.search(r'data-measures="([^"]*)"', shown(frame, *options))
    assert found is not None
    measures: dict[str, object] = json.loads(unescape(found[1]))
    return measures


def test_the_figures_are_there_to_read(page: Path) -> None:
    text = re.sub(r"<[^>]+>", "\n", shown(page))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    after = dict(pairwise(lines))
    assert after["rows with scores"] == "40"
    assert after["scored candidates"] == "600"
    assert after["scored"] == "40 rows"
    assert after["sessions"] == "1"
    assert float(after["mean, requests a second"]) > 0
    assert lines[0] == "batchrank: out"


def test_a_script_in_the_page_would_not_run(page: Path) -> None:
    copy = page.parent / "scripted.html"
    copy.write_text(page.read_text().replace("</body>", MEASURES + "</body>"))
    assert 'data-measures="' not in shown(copy)
    copy.write_text(f"<body>{MEASURES}</body>")
    assert 'data-measures="' in shown(copy)


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(page: Path, width: int) -> None:
    found = measured(page, width=width)
    assert found["window"] == width
    assert found["page"] == width, "nobody has to scroll sideways"
    assert (found["cut"], found["outside"]) == (0, 0)
    assert found["drawn"] == 40 + 40 + 2 + 1, "bars of two histograms, two latencies, the rate"


def test_it_is_dark_where_the_reader_has_it_dark(page: Path) -> None:
    light = measured(page, width=600)["background"]
    dark = measured(page, "--blink-settings=preferredColorScheme=0", width=600)["background"]
    assert (light, dark) == ("rgb(249, 249, 247)", "rgb(13, 13, 13)")

"""Nobody but a worker of the coordinator's user takes a seat, and no ask makes it deaf."""

import http.client
import json
import os
import stat
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from helpers import ended, program, serving, table, written
from test_coordinator import RPM, coordinating, home, shares, work

from batchrank.account.cells import MOST_SEATS, of_runs, runs
from batchrank.account.coordinator import Ask, Coordinator, Lease

__all__ = ["home"]

ASK = {"worker": "w", "serial": 1, "requests_per_minute": RPM, "tokens_per_minute": 0}


def said(url: str, headers: dict[str, str], body: dict[str, object] = ASK) -> int:
    """The status of an ask with exactly these headers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.putrequest("POST", "/lease", skip_host=True, skip_accept_encoding=True)
    content = json.dumps(body).encode()
    for name, text in {**headers, "Content-Length": str(len(content))}.items():
        connection.putheader(name, text)
    connection.endheaders(content)
    status = connection.getresponse().status
    connection.close()
    return status


def secret_of(home: Path, url: str) -> Path:
    return home / ".local" / "state" / "batchrank" / f"coordinator-{urlsplit(url).port}.key"


def test_what_a_web_page_sends_is_refused_whatever_it_knows(home: Path) -> None:
    with coordinating() as (_, url):
        own = urlsplit(url).netloc
        port = own.split(":")[1]
        good = {
            "Host": own,
            "Content-Type": "application/json",
            "Authorization": f"Bearer {secret_of(home, url).read_text().strip()}",
        }
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:1{port}", ""):
            assert said(url, {**good, "Host": name}) == 403, name
        for origin in ("http://evil.example", "null", url):
            assert said(url, {**good, "Origin": origin}) == 403, origin
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert said(url, {**good, "Content-Type": kind}) == 403, kind
        assert said(url, {name: good[name] for name in good if name != "Content-Type"}) == 403
        assert said(url, {name: good[name] for name in good if name != "Host"}) >= 400
        assert shares(url) == {}
        assert said(url, {**good, "Host": f"LOCALHOST:{port}"}) == 200
        assert shares(url) == {"0": 0.0033}


def test_a_worker_of_the_same_user_needs_no_option_and_another_user_has_no_secret(
    tmp_path: Path,
) -> None:
    rows = written(tmp_path / "in.parquet", table(3, 1, tag="seat"))
    with serving() as server, coordinating() as (_, url):
        assert ended(work(server, url, rows, tmp_path / "mine"))[0] == 0
        before = server.received
        others = {"HOME": str(tmp_path / "other"), "BATCHRANK_COORDINATOR": url}
        common = ("--base-url", server.base_url, "--requests-per-minute", RPM)
        done = program("run", rows, "-o", tmp_path / "theirs", *common, **others)
        assert (done.returncode, server.received) == (78, before)
        assert "BATCHRANK_COORDINATOR_KEY" in done.stderr and "Traceback" not in done.stderr
        assert said(url, {"Host": urlsplit(url).netloc, "Content-Type": "application/json"}) == 401


def test_the_secret_is_its_owners_whatever_lies_there_and_lives_as_long_as_the_port(
    home: Path,
) -> None:
    umask = os.umask(0)
    try:
        with coordinating() as (process, url):
            path = secret_of(home, url)
            first = path.read_text()
            assert len(first) > 40 and stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.listdir(path.parent) == [path.name]
            process.kill()
        port = urlsplit(url).port or 0
        with coordinating(port=port) as (process, _):
            assert path.read_text() == first, "begun anew, its workers go on"
            process.terminate()
            process.wait(10)
        assert path.exists()
        path.chmod(0o644)
        with coordinating(port=port):
            assert path.read_text() != first, "others could read it"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        target = home / "target"
        path.unlink()
        path.symlink_to(target)
        with coordinating(port=port):
            assert not target.exists() and not path.is_symlink(), "a link was followed"
    finally:
        os.umask(umask)


def test_a_port_that_nobody_chose_leaves_no_file_behind(home: Path) -> None:
    with coordinating() as (process, url):
        path = secret_of(home, url)
        assert path.exists()
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()


def test_without_a_place_for_the_secret_the_coordinator_says_what_to_set(home: Path) -> None:
    home.write_text("no folder")
    done = program("coordinate", "--workers", 2, "--port", 0, HOME=str(home))
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert "BATCHRANK_COORDINATOR_KEY" in done.stderr


def big(pieces: list[tuple[int, int]], serial: int = 1) -> Ask:
    return Ask(worker="w", serial=serial, requests_per_minute=5400, tokens_per_minute=0,
               holding=pieces)  # fmt: skip


def test_more_pieces_than_a_worker_can_have_are_refused_before_any_is_looked_at() -> None:
    class Untouched(list[tuple[int, int]]):
        def __iter__(self) -> None:  # type: ignore[override]
            raise AssertionError("a piece was looked at")

    coordinator = Coordinator(3, 0, requests_per_minute=5400)
    with pytest.raises(ValueError, match="pieces"):
        coordinator.renew(big(Untouched([(2 * at, 2 * at + 1) for at in range(151)])), 1)


def test_the_largest_ask_takes_a_fraction_of_a_second_of_work() -> None:
    """Work is time of this process; it was eight seconds of it, and is thirty milliseconds."""
    for gap in (2, 14):
        pieces = [(gap * at, gap * at + gap // 2) for at in range(70_000)]
        coordinator = Coordinator(MOST_SEATS, 0, requests_per_minute=5400)
        began = time.process_time()
        answers = [coordinator.renew(big(pieces, serial), 20) for serial in (1, 2)]
        assert time.process_time() - began < 1
        assert all(isinstance(answer, Lease) for answer in answers)


@pytest.mark.parametrize("pieces", [[(5, 9), (3, 4)], [(0, 4), (2, 6)], [(0, 4), (4, 6)], [(3, 3)]])
def test_pieces_that_are_not_apart_are_refused(pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="piece"):
        of_runs(pieces)


def test_sets_of_cells_are_the_same_after_a_way_as_pieces() -> None:
    for cells in (0, 1, 2, 0b1011_0001, (1 << 4000) - 1, ((1 << 4000) - 1) // 3):
        assert of_runs(runs(cells)) == cells


def test_a_coordinator_answers_others_while_a_huge_ask_is_made(home: Path) -> None:
    with coordinating(workers=MOST_SEATS) as (_, url):
        good = {
            "Host": urlsplit(url).netloc,
            "Content-Type": "application/json",
            "Authorization": f"Bearer {secret_of(home, url).read_text().strip()}",
        }
        pieces = [[12 * at, 12 * at + 6] for at in range(55_000)]
        assert said(url, good, {**ASK, "holding": pieces}) == 200
        with urlopen(url + "/health", timeout=60) as answer:
            assert json.loads(answer.read())["status"] == "ok"

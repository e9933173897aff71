"""The life of one output, over sessions that are disturbed, stopped and killed; and its judge.

The program is the real one on a real folder; what it must come to is worked out here from the rows
alone. After each session, however it ended: no score that the endpoint did not give, nothing asked
that was settled, nothing lost that was answered a commit ago, no bill above the cap.
"""

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from endpoint import CURSE, POISON, Content, Endpoint, Weather, score
from helpers import CANDIDATES, part_bytes, settings, written
from lockstep import Killed, Stage

from batchrank.errors import BatchrankError
from batchrank.records import Row, row_of
from batchrank.session import job
from batchrank.session import request as asked
from batchrank.state.checkpoint import COMMIT_SECONDS

URL = "http://127.0.0.1:1/v1"
ON_ITS_WAY_SECONDS = 2 * COMMIT_SECONDS + 0.01
"""From an answer to its commit at the most: one group behind another."""

Texts = Sequence[str | None] | None

TALLY = Counter[str]()
"""What all lives of this process have met."""


class Nature(NamedTuple):
    """What is the same all through a life: rows, settings that decide results, the endpoint."""

    rows: Sequence[tuple[str | None, Texts]]
    rows_per_part: int = 3
    max_documents: int = 500
    max_tokens: int = 120_000
    top_n: int = 0
    most_documents: int = 500
    names: bool = False

    def deciding(self) -> dict[str, dict[str, Any]]:
        limits = {
            "max_documents": self.max_documents,
            "max_tokens_per_request": self.max_tokens,
        }
        return {
            "limits": limits,
            "output": {"rows_per_part": self.rows_per_part, "top_n": self.top_n},
        }

    def table(self) -> pa.Table:
        lists = [
            None
            if texts is None
            else [{"doc_id": f"d{row}-{at}", "text": text} for at, text in enumerate(texts)]
            for row, (_, texts) in enumerate(self.rows)
        ]
        return pa.table(
            {
                "query_id": pa.array(range(len(self.rows)), pa.int64()),
                "query": pa.array([query for query, _ in self.rows], pa.string()),
                "candidates": pa.array(lists, CANDIDATES),
                "priority": pa.array([row * 7 % 5 or None for row in range(len(lists))]),
            }
        )

    def written(self, folder: Path) -> Path:
        """The rows as a file whose footer tells nothing of the texts but their lengths."""
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        return written(folder / "in.parquet", self.table(), row_group_size=5, **options)

    def endpoint(self) -> Endpoint:
        return Endpoint(self.most_documents, names=self.names)

    def plans(self) -> dict[int, Content]:
        """Each request that is to be settled: the same, however tokens are counted."""
        found = []
        for exact in (False, True):
            planner = asked.planner_of(settings(URL, **self.deciding()), exact=exact)
            found.append(
                {
                    plan.plan_id: (plan.query, tuple(plan.documents))
                    for index, (query, texts) in enumerate(self.rows)
                    for plan in planner.plan(Row(index, query, texts or [])).plans
                }
            )
        assert found[0] == found[1], "rows are split otherwise when tokens are counted"
        return found[0]


class Session(NamedTuple):
    """How a session is run, and what it meets. `kill_at` and `stop_at`: at which step (0: not)."""

    weather: Weather = Weather()
    rate: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    kill_at: int = 0
    stop_at: int = 0
    retry_failed: bool = False
    restart: bool = False
    by_priority: bool = False


class Life:
    """One output from its first session on. `cap`: of the bill, in tokens."""

    def __init__(self, nature: Nature, folder: Path, cap: float = inf) -> None:
        self.nature = nature
        self.plans = nature.plans()
        self.endpoint = nature.endpoint()
        self.cap = self.highest_cap = cap
        self.kills = 0
        self._folder, self._out = folder, folder / "out"
        self._source = nature.written(folder)
        self._cursed = self._unpaid = False
        self._earlier_billed = self._earlier_received = 0
        whole = Life.__new__(Life)  # the undisturbed run, which is judged in the same way
        whole.__dict__.update(self.__dict__, _out=folder / "undisturbed", _undisturbed={})
        whole.cap = whole.highest_cap = inf
        whole.endpoint = nature.endpoint()
        self.undisturbed_code = whole.session(Session())
        self.undisturbed_bill = whole.endpoint.billed
        self._undisturbed = part_bytes(folder / "undisturbed")

    # What is done to it

    def session(self, session: Session) -> int | None:
        """Run the program once and judge what it did; its exit code, None when it was killed."""
        before = {} if session.restart else self._settled(session.retry_failed)
        done = {} if session.restart else self._settled(False)
        if session.restart:
            self._earlier_billed = self.endpoint.billed
            self._earlier_received = self.endpoint.received
            self._cursed = self._unpaid = False
        self._cursed |= self.endpoint.curse
        code, stage = self._run(session)
        self._unpaid |= bool(self.endpoint.met["the account ends"])
        if code is None:
            self.kills += 1
            shutil.rmtree(self._out)
            (self._folder / "image").rename(self._out)
        TALLY.update(self.endpoint.met)
        TALLY.update(sessions=1, kills=code is None, stops=stage.stopped)
        lost = done.keys() - self._settled(False).keys()
        assert not lost, f"settled before the session and not after it: {lost}"
        self._nothing_settled_was_asked(before)
        self._what_was_answered_is_kept(before, session, stage, code)
        self._parts_are_right()
        self._bill_is_below_the_cap()
        if code is not None:
            self._ended_rightly(code, session, stage)
        return code

    def to_the_end(self) -> None:
        """Run undisturbed until nothing can be better: then it is as if it had always been so."""
        self.endpoint.curse = False
        self.cap = self.highest_cap = inf
        code = self.session(Session(retry_failed=True))
        assert code == self.undisturbed_code, f"ended with {code}"
        assert part_bytes(self._out) == self._undisturbed, "not what an undisturbed run writes"
        asked = self.endpoint.received
        assert self.session(Session()) == code and self.endpoint.received == asked

    def refused(self, change: dict[str, dict[str, Any]], code: int = 78) -> None:
        """Settings that decide results are changed: refused, and nothing is touched."""
        if not self._database.exists():
            return
        kept, asked = part_bytes(self._out), self.endpoint.received
        sections = self.nature.deciding()
        changed = {
            name: {**sections.get(name, {}), **change.get(name, {})}
            for name in {*sections, *change}
        }
        ended, _ = self._run(Session(), changed)
        assert ended == code, f"{change}: ended with {ended}"
        assert (part_bytes(self._out), self.endpoint.received) == (kept, asked)

    def other_texts(self) -> None:
        """The input's texts are changed behind the footer's back: committed answers are not theirs.

        Tried on a copy, since what was not answered yet is honestly scored.
        """
        open_rows = {row_of(plan) for plan in self._committed() if not self._part_of(plan).exists()}
        if not open_rows:
            return
        other = Life.__new__(Life)
        other.__dict__.update(self.__dict__, _out=self._folder / "other" / "out")
        other.endpoint, other.cap = self.nature.endpoint(), inf
        rows = [
            (query and query.swapcase(), texts and [text and text.swapcase() for text in texts])
            for query, texts in self.nature.rows
        ]
        other._source = self.nature._replace(rows=rows).written(self._folder / "other")
        shutil.copytree(self._out, other._out)
        code, _ = other._run(Session())
        assert code == 65, f"with other texts under an answer of theirs, ended with {code}"
        shutil.rmtree(self._folder / "other")

    def _run(
        self, session: Session, deciding: dict[str, dict[str, Any]] | None = None
    ) -> tuple[int | None, Stage]:
        sections = {**(deciding or self.nature.deciding()), "rate": session.rate}
        sections["endpoint"] = {"max_outage_seconds": 60, **sections.get("endpoint", {})}
        config = settings(URL, **sections)
        request = job.Request(
            inputs=[str(self._source)],
            out=self._out,
            restart=session.restart,
            retry_failed=session.retry_failed,
            priority_column="priority" if session.by_priority else None,
            max_cost_usd=None if self.cap == inf else config.price.cost(self.cap),
        )
        stage = Stage(
            self._out,
            self._folder / "image",
            seed=session.weather.seed,
            kill_at=session.kill_at,
            stop_at=session.stop_at,
        )
        self.endpoint.begin(session.weather, stage.step, config.rate.requests_per_minute)
        try:
            with stage.set():
                receipt = job.run(
                    config,
                    request,
                    lambda progress: None,
                    connect=self.endpoint.connect,
                    in_loop=stage.in_loop,
                )
        except Killed:
            return None, stage
        except BatchrankError as error:
            return int(error.code), stage
        return receipt.exit_code, stage

    # What is on its disk

    @property
    def _database(self) -> Path:
        return self._out / "_batchrank" / "checkpoint.sqlite"

    def _part_of(self, plan: int) -> Path:
        return self._out / f"part-{row_of(plan) // self.nature.rows_per_part:05}.parquet"

    def _committed(self) -> dict[int, bool]:
        """The plans whose outcomes the checkpoint holds, and whether these are scores."""
        if not self._database.exists():
            return {}
        with closing(sqlite3.connect(self._database)) as database:
            return dict(database.execute("SELECT plan, scores IS NOT NULL FROM answers"))

    def _settled(self, retry_failed: bool) -> dict[int, Content]:
        """The plans that the next session must not ask for."""
        committed = self._committed()
        return {
            plan: content
            for plan, content in self.plans.items()
            if (plan in committed and (committed[plan] or not retry_failed))
            or self._is_published(plan, retry_failed)
        }

    def _is_published(self, plan: int, retry_failed: bool) -> bool:
        part = self._part_of(plan)
        if not part.exists():
            return False
        offset = row_of(plan) % self.nature.rows_per_part
        counts = json.loads(pq.read_schema(part).metadata[b"batchrank"])
        if not retry_failed or offset not in counts["failed_offsets"]:
            return True
        # Where a request of the row was halved, nobody can tell any more which.
        scored = {
            one for one in self.plans if row_of(one) == row_of(plan) and self._has_scores(one)
        }
        requests = pq.read_table(part, columns=["requests"])["requests"][offset].as_py()
        return plan in scored and len(scored) == requests

    def _has_scores(self, plan: int) -> bool:
        """Whether its published row has a score for each of its texts."""
        part, offset = self._part_of(plan), row_of(plan) % self.nature.rows_per_part
        if not part.exists():
            return False
        results = pq.read_table(part, columns=["results"])["results"][offset].as_py()
        scored = {one["index"] for one in results if one["relevance_score"] is not None}
        _, texts = self.nature.rows[row_of(plan)]
        lacking = {text for at, text in enumerate(texts or []) if at not in scored}
        return not lacking.intersection(self.plans[plan][1])

    # What is asked of it

    def _nothing_settled_was_asked(self, before: dict[int, Content]) -> None:
        """A text is asked for, and answered, for as many requests as wait for its score."""
        waiting: Counter[tuple[str, str]] = Counter()
        for plan, (query, documents) in self.plans.items():
            if plan not in before:
                waiting.update((query, text) for text in documents)
        for query, documents in self.endpoint.asked:
            settled = [text for text in documents if not waiting[query, text]]
            assert not settled, f"asked again, though settled: {query!r}, {settled}"
        answered = Counter(
            (content[0], text) for content, _ in self.endpoint.delivered for text in content[1]
        )
        twice = {pair: times for pair, times in answered.items() if times > waiting[pair]}
        assert not twice, f"answered more often than needed: {twice}"

    def _what_was_answered_is_kept(
        self,
        before: dict[int, Content],
        session: Session,
        stage: Stage,
        code: int | None,
    ) -> None:
        """A whole answer counts, a commit after it came."""
        # A part that is published with its best scores alone does not tell what it was made of.
        after = self._settled(session.retry_failed and not self.nature.top_n)
        last = stage.seconds - ON_ITS_WAY_SECONDS if code is None else inf
        answered = Counter(
            content for content, instant in self.endpoint.delivered if instant <= last
        )
        news = Counter(
            content
            for plan, content in self.plans.items()
            if plan not in before and (plan in after or self._has_scores(plan))
        )
        for content, times in answered.items():
            # One that is also a part of a larger request may have been that request's half.
            if content in self.plans.values() and not self._is_within_another(content):
                assert news[content] >= times, f"answered and not kept: {content}"

    def _is_within_another(self, content: Content) -> bool:
        return any(
            query == content[0] and set(documents) > set(content[1])
            for query, documents in self.plans.values()
        )

    def _parts_are_right(self) -> None:
        """Each row has its own scores; or it is one that was refused, and says so."""
        size = self.nature.rows_per_part
        for name, content in part_bytes(self._out).items():
            first = int(name[5:10]) * size
            rows = pq.read_table(pa.BufferReader(content)).to_pylist()
            assert len(rows) == min(size, len(self.nature.rows) - first), (
                f"{name}: rows are missing"
            )
            refused = [self._is_refused(first + at, row) for at, row in enumerate(rows)]
            if self._undisturbed and not any(refused) and content != self._undisturbed[name]:
                wanted = pq.read_table(pa.BufferReader(self._undisturbed[name])).to_pylist()
                other = [pair for pair in zip(rows, wanted, strict=True) if pair[0] != pair[1]]
                raise AssertionError(f"{name}: other bytes, the same scores: {other}")

    def _is_refused(self, index: int, row: dict[str, Any]) -> bool:
        wanted = self._expected(index)
        found = {key: row[key] for key in wanted}
        assert row["query_id"] == index, f"row {index} is {row['query_id']}"
        query, texts = self.nature.rows[index]
        error = row["error"] or ""
        cursed = self._cursed and CURSE in (query or "") and " 422 " in error
        # The only row that is refused after others were scored is to blame itself.
        if not (cursed or (self._unpaid and " 403 " in error)):
            assert found == wanted, f"row {index} is {found}, not {wanted}"
            return False
        for one in row["results"]:
            own = score(query or "", (texts or [])[one["index"]] or "")
            assert one["relevance_score"] in (None, own), f"row {index}: a score from nowhere"
        assert row["status"] in ("failed", "partial"), f"row {index}: {row}"
        return True

    def _expected(self, index: int) -> dict[str, Any]:
        query, texts = self.nature.rows[index]
        asked = query is not None and query.strip()
        found = []
        for at, text in enumerate(texts or []):
            sent = asked and text is not None and text.strip() and POISON not in text
            found.append((score(query or "", text or "") if sent else None, at))
        found.sort(key=lambda one: (one[0] is None, -(one[0] or 0), one[1]))
        results = [
            {
                "doc_id": f"d{index}-{at}",
                "index": at,
                "rank": rank if value is not None else None,
                "relevance_score": value,
            }
            for rank, (value, at) in enumerate(found, 1)
        ]
        scored = sum(value is not None for value, _ in found)
        sent = any(row_of(plan) == index for plan in self.plans)
        status = "failed" if not scored else "scored" if scored == len(found) else "partial"
        return {
            "results": results[: self.nature.top_n or None],
            "status": status if sent else "skipped",
            "truncated": 0,
        }

    def _bill_is_below_the_cap(self) -> None:
        billed = self.endpoint.billed - self._earlier_billed
        assert billed <= self.highest_cap, f"{billed} tokens billed of {self.highest_cap:.0f}"

    def _ended_rightly(self, code: int, session: Session, stage: Stage) -> None:
        """The code says what happened, and the receipt what there is."""
        met = self.endpoint.met
        possible = {0, 3}
        possible |= {143} if stage.stopped else set()
        possible |= {4} if self.cap < inf else set()
        possible |= {69} if met["the account ends"] else set()
        possible |= {75, 76} if met.keys() & {*session.weather.faults, "an outage"} else set()
        assert code in possible, f"ended with {code}, met {dict(met)}"
        receipt = json.loads((self._out / "_run.json").read_bytes())
        assert receipt["exit_code"] == code
        parts = part_bytes(self._out)
        assert {part["name"] for part in receipt["parts"]} == parts.keys()
        for part in receipt["parts"]:
            known = part["sha256"]
            assert known == _sha256(parts[part["name"]]), f"{part['name']} is not the receipt's"
        assert ((self._out / "_SUCCESS").exists()) == (code == 0)
        if code in (0, 3):
            assert receipt["rows_open"] == 0 and parts.keys() == (self._undisturbed or parts).keys()
            counts = [
                json.loads(pq.read_schema(path).metadata[b"batchrank"])
                for path in sorted(self._out.glob("part-*"))
            ]
            assert (code == 3) == any(count["failed_offsets"] for count in counts)
        sent = self.endpoint.received - self._earlier_received
        told = receipt["requests"]
        assert told == sent or (self.kills and told < sent), f"{told} requests told, {sent} sent"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

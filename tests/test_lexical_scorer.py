"""The lexical scorer's scores: repeatable to the last bit, better than the first stage."""

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchrank.server.scorers import lexical as module
from batchrank.server.scorers.lexical import LexicalScorer

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
LOWEST = 0.029312231

QUERY = "what is the life span of a flea"
DOCUMENTS = [
    "A flea can live up to a year, but its life span depends on the host.",
    "Fleas live for about 100 days; the flea's life cycle has 4 stages… egg, larva, pupa, adult.",
    "Cats and dogs catch parasites in summer.",
    "The Treaty of Versailles was signed in June 1919.",
    "跳蚤的寿命约为一年。 The flea is 跳蚤 in Chinese.",
    "",
]


@pytest.fixture(scope="module")
def scorer() -> LexicalScorer:
    return LexicalScorer()


def ranked(scorer: LexicalScorer, query: str, documents: list[str]) -> list[str]:
    scores = scorer.scores(query, documents, "")
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))
    return [documents[index] for index in order]


def test_one_score_a_document_in_range_with_nine_decimals(scorer: LexicalScorer) -> None:
    scores = scorer.scores(QUERY, DOCUMENTS, "")
    assert len(scores) == len(DOCUMENTS)
    assert all(type(score) is float and 0 < score < 1 for score in scores)
    assert scores == [round(score, 9) for score in scores]


def test_scores_are_the_same_alone_together_and_in_any_order(scorer: LexicalScorer) -> None:
    together = scorer.scores(QUERY, DOCUMENTS, "")
    assert [scorer.scores(QUERY, [text], "")[0] for text in DOCUMENTS] == together
    assert scorer.scores(QUERY, DOCUMENTS[::-1], "")[::-1] == together
    assert scorer.scores(QUERY, DOCUMENTS * 3, "") == together * 3


def test_scores_do_not_depend_on_what_was_scored_before(scorer: LexicalScorer) -> None:
    expected = scorer.scores(QUERY, DOCUMENTS, "")
    fresh = LexicalScorer()
    fresh.scores("a treaty", ["summer in Versailles", *DOCUMENTS[3:]], "")
    assert fresh.scores(QUERY, DOCUMENTS, "") == expected


def test_scores_are_those_of_another_process(scorer: LexicalScorer) -> None:
    code = (
        "import sys, ast; from batchrank.server.scorers.lexical import LexicalScorer; "
        "print(LexicalScorer().scores(*ast.literal_eval(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, repr((QUERY, DOCUMENTS, ""))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"{scorer.scores(QUERY, DOCUMENTS, '')}\n"


def test_forgetting_words_changes_no_score(
    scorer: LexicalScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small lexicon starts afresh between blocks, and in the middle of a request."""
    expected = scorer.scores(QUERY, DOCUMENTS, "")
    monkeypatch.setattr(module, "MAX_WORDS", 16)
    monkeypatch.setattr(module, "BLOCK_CHARACTERS", 80)
    assert LexicalScorer().scores(QUERY, DOCUMENTS, "") == expected


def test_memory_for_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORDS", 500)
    scorer = LexicalScorer()
    rng = random.Random(7)
    for _ in range(40):
        words = ("".join(rng.choices("bcdfgaeiou", k=8)) for _ in range(100))
        scorer.scores("a query", [" ".join(words)], "")
        assert len(scorer._lexicon.weights) <= 500
    assert len(scorer._lexicon._vectors) == 500


def test_the_instruction_has_no_effect(scorer: LexicalScorer) -> None:
    plain = scorer.scores(QUERY, DOCUMENTS, "")
    assert scorer.scores(QUERY, DOCUMENTS, "Retrieve documents on treaties") == plain


def test_documents_on_the_subject_come_first(scorer: LexicalScorer) -> None:
    assert set(ranked(scorer, QUERY, DOCUMENTS)[:2]) == set(DOCUMENTS[:2])


def test_a_similar_word_counts_in_part(scorer: LexicalScorer) -> None:
    exact, similar, other = scorer.scores("doctor", ["a doctor", "a physician", "a volcano"], "")
    assert exact > similar > other


def test_words_side_by_side_count_more_than_words_apart(scorer: LexicalScorer) -> None:
    near, apart = scorer.scores("guinea pig", ["guinea pig farm", "pig farm guinea"], "")
    assert near > apart


def test_chinese_is_matched_by_its_words(scorer: LexicalScorer) -> None:
    documents = ["北京是中华人民共和国的首都。", "上海是中国最大的城市。", "跳蚤的寿命约为一年。"]
    assert ranked(scorer, "跳蚤能活多久", documents)[0] == documents[2]
    assert ranked(scorer, "中华人民共和国的首都", documents)[0] == documents[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 2nd-rate, NAÏVE.", ["it", "s", "2nd", "rate", "naïve"]),
        ("ﬁle ①", ["file", "1"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("go语言2024年", ["go", "语言", "2024", "年"]),
        ("コーヒーを飲む", ["コーヒー", "を", "飲", "む"]),
        ("龘𠮷", ["龘", "𠮷"]),
        ("", []),
        (" \n\t…—", []),
    ],
)
def test_text_is_cut_into_words(scorer: LexicalScorer, text: str, words: list[str]) -> None:
    assert scorer._cutter.words(text) == words


def test_ascii_text_is_cut_as_any_other(scorer: LexicalScorer) -> None:
    text = "".join(map(chr, range(128))) + " snake_case CamelCase x86-64 a.b"
    assert [*scorer._cutter.words(text), "é"] == scorer._cutter.words(f"{text} é")


@pytest.mark.parametrize("query", ["", "   ", "?!", "is it the", "\ud800"])
def test_a_query_without_a_telling_word_gives_the_lowest_score(
    scorer: LexicalScorer, query: str
) -> None:
    assert scorer.scores(query, ["is it the flea?", ""], "") == [LOWEST, LOWEST]


@pytest.mark.parametrize("text", ["", " ", "\n", "…", "\x00", "\ud800", "🐈"])
def test_a_document_without_words_gets_the_lowest_score(scorer: LexicalScorer, text: str) -> None:
    assert scorer.scores(QUERY, [text], "") == [LOWEST]


def test_no_documents_give_no_scores(scorer: LexicalScorer) -> None:
    assert scorer.scores(QUERY, [], "") == []


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, batchrank.server.scorers.lexical; "
        "print(sys.modules.keys() & {'torch', 'tiktoken', 'tokenizers', 'wordllama'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@cache
def ndcg_at_10(name: str, every: int) -> tuple[float, float]:
    """Mean nDCG@10 over each `every`-th row of a set, as stored and as scored, by trec_eval."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    if not (DATA / name).is_dir():
        pytest.skip("the evaluation sets (../shared/data) are not beside this checkout")
    rows = pq.read_table(DATA / name / "rows.parquet").to_pylist()[::every]
    qrels: dict[str, dict[str, int]] = {}
    for judgment in pq.read_table(DATA / name / "qrels.parquet").to_pylist():
        query = qrels.setdefault(judgment["query_id"], {})
        query[judgment["doc_id"]] = judgment["relevance"]
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"})
    scorer = LexicalScorer()

    def mean(runs: dict[str, dict[str, float]]) -> float:
        results = evaluator.evaluate(runs)
        return sum(result["ndcg_cut_10"] for result in results.values()) / len(results)

    stored, scored = {}, {}
    for row in rows:
        ids = [candidate["doc_id"] for candidate in row["candidates"]]
        scores = scorer.scores(row["query"], [one["text"] for one in row["candidates"]], "")
        order = sorted(range(len(ids)), key=lambda index: (-scores[index], index))
        stored[row["query_id"]] = {doc_id: -float(rank) for rank, doc_id in enumerate(ids)}
        scored[row["query_id"]] = {ids[index]: -float(rank) for rank, index in enumerate(order)}
    return mean(stored), mean(scored)


ENGLISH = ["dl19", "scifact", "cranfield"]


@pytest.mark.parametrize("name", ENGLISH)
def test_no_english_set_loses_its_first_stage(name: str) -> None:
    """Not more than 0.02 below the order that the candidates came in."""
    before, after = ndcg_at_10(name, every=1)
    assert after > before - 0.02


def test_english_sets_gain_on_average() -> None:
    before, after = zip(*(ndcg_at_10(name, every=1) for name in ENGLISH), strict=True)
    assert sum(after) > sum(before)


def test_chinese_paragraphs_are_found() -> None:
    """CMRC 2018, a row in three: 10 s, where all of it takes 25 s for the same answer."""
    _, after = ndcg_at_10("cmrc2018", every=3)
    assert after >= 0.90

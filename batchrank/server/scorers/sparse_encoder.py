"""A small learned encoder: text into the weights of terms, in whole numbers.

The model is SPLADE-tiny (BERT with 2 layers of 128, distilled on MS MARCO); `model/NOTICE` names
its author and licences, and `bench/data/make_encoder.py` makes the files. A text becomes windows of
word pieces, and a window becomes one int8 vector for each piece, from which the weight of any of
the 30,522 terms follows by one product.

Every sum runs over whole numbers below 2**24 (float32) or 2**53 (float64), so it is exact in any
order; everything else is one rounding at a time. Neither batch, nor thread, nor kernel of the CPU
shows in a result. This module knows no scores and no HTTP.
"""

import gzip
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL = Path(__file__).parent / "model"

UNKNOWN, FIRST, LAST = 100, 101, 102  # [UNK], [CLS] and [SEP] in the vocabulary of BERT
WINDOW_PIECES = 254  # BERT learnt 512 places; half of them score long texts better
HEADS, HEAD_SIZE = 2, 64
STEPS_OF_ONE = 2048  # the input of a normalisation is a whole number of these
PIECES_AT_ONCE = 4096  # 8 MB for the widest layer
TEXTS_REMEMBERED = 4096  # lists share documents; about 11 KB each

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]


class Query(NamedTuple):
    """The terms of a query, and what each weighs in it, above 0. Shapes: (terms,)."""

    terms: npt.NDArray[np.intp]
    weights: list[float]


class Text(NamedTuple):
    """The windows of a text, one after another.

    `vectors` has shape (pieces, 128), `steps` is the size of a whole number for each piece, and
    `starts` is where each window begins.
    """

    vectors: I8
    steps: F32
    starts: list[int]


class SparseEncoder:
    """Loading takes 0.3 s: keep it. One thread at a time."""

    def __init__(self) -> None:
        from safetensors.numpy import load_file

        self._tensors = load_file(MODEL / "encoder.safetensors")
        self._dense = {
            name.removesuffix(".weight"): np.ascontiguousarray(weight.astype(np.float32).T)
            for name, weight in self._tensors.items()
            if name.endswith(".weight") and name != "terms.weight"
        }
        self._tokenizer = _word_pieces()
        self._texts: OrderedDict[str, Text] = OrderedDict()

    def query(self, text: str) -> Query:
        """Encode the first window of a query. It has no terms where nothing weighs anything."""
        (encoded,) = self._encode([self._windows(text)[:1]])
        weights = self._weights(encoded, np.arange(len(self._tensors["terms.bias"])))[0]
        terms = np.flatnonzero(weights > 0)
        return Query(terms, [math.log1p(weight) for weight in weights[terms].tolist()])

    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Encode texts of any length, those that were met before from memory."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._texts]
        known = {text: self._texts[text] for text in texts if text in self._texts}
        known |= zip(fresh, self._encode([self._windows(text) for text in fresh]), strict=True)
        for text in dict.fromkeys(texts):
            self._texts[text] = known[text]
            self._texts.move_to_end(text)
        while len(self._texts) > TEXTS_REMEMBERED:
            self._texts.popitem(last=False)
        return [known[text] for text in texts]

    def similarity(self, query: Query, text: Text) -> float:
        """The share of the query's weight that the text's best window has, 0 or more."""
        whole = math.fsum(query.weights)
        if not whole:
            return 0.0
        windows = self._weights(text, query.terms).tolist()
        return (
            max(
                math.fsum(
                    asked * math.log1p(found)
                    for asked, found in zip(query.weights, window, strict=True)
                    if found > 0
                )
                for window in windows
            )
            / whole
        )

    def _weights(self, text: Text, terms: npt.NDArray[np.intp]) -> F32:
        """The highest activation of each term in each window. Shape: (windows, terms)."""
        weight = self._tensors["terms.weight"][terms].astype(np.float32)
        scale, bias = self._tensors["terms.scale"][terms], self._tensors["terms.bias"][terms]
        found: F32 = text.vectors.astype(np.float32) @ weight.T
        found *= text.steps[:, None]
        highest: F32 = np.maximum.reduceat(found * scale + bias, text.starts, axis=0)
        return highest

    def _windows(self, text: str) -> list[list[int]]:
        """The ids of a text's word pieces in windows, each with [CLS] and [SEP]."""
        ids = self._tokenizer.encode(_plain(text), add_special_tokens=False).ids
        ids = ids or [UNKNOWN]
        return [
            [FIRST, *ids[start : start + WINDOW_PIECES], LAST]
            for start in range(0, len(ids), WINDOW_PIECES)
        ]

    def _encode(self, texts: list[list[list[int]]]) -> list[Text]:
        """Encode the windows of texts, some thousand pieces at a time."""
        windows = [window for text in texts for window in text]
        vectors, steps = [], []
        for group in _groups(windows):
            some, their_steps = _whole_numbers(self._transform(group))
            bounds = np.cumsum([len(window) for window in group])[:-1]
            vectors += np.split(some.astype(np.int8), bounds)
            steps += np.split(their_steps, bounds)
        encoded, first = [], 0
        for text in texts:
            last = first + len(text)
            starts = np.cumsum([0, *map(len, text[:-1])]).tolist()
            encoded.append(
                Text(np.concatenate(vectors[first:last]), np.concatenate(steps[first:last]), starts)
            )
            first = last
        return encoded

    def _transform(self, windows: list[list[int]]) -> F32:
        """The last hidden states of some windows, one row a piece. Shape: (pieces, 128)."""
        ids = np.concatenate([np.array(window) for window in windows])
        lengths = [len(window) for window in windows]
        places = np.concatenate([np.arange(length) for length in lengths])
        terms = self._tensors["terms.weight"][ids].astype(np.float32)
        terms *= self._tensors["terms.scale"][ids][:, None]
        states = self._normalise("input_norm", terms + self._tensors["positions"][places])
        for layer in ("0", "1"):
            mixed = self._dense_layer(f"{layer}.mixed", self._attend(layer, states, lengths))
            states = self._normalise(f"{layer}.mixed_norm", states + mixed)
            wide = self._gelu(self._dense_layer(f"{layer}.wide", states))
            narrow = self._dense_layer(f"{layer}.narrow", wide)
            states = self._normalise(f"{layer}.narrow_norm", states + narrow)
        return self._normalise("head_norm", self._gelu(self._dense_layer("head", states)))

    def _attend(self, layer: str, states: F32, lengths: list[int]) -> F32:
        """Self-attention within each window."""
        query, query_steps = _whole_numbers(
            _heads(self._dense_layer(f"{layer}.query", states) / np.float32(math.sqrt(HEAD_SIZE)))
        )
        key, key_steps = _whole_numbers(_heads(self._dense_layer(f"{layer}.key", states)))
        value = _heads(self._dense_layer(f"{layer}.value", states))
        mixed = np.empty_like(value)
        start = 0
        for length in lengths:
            here = np.s_[:, start : start + length]
            likeness = query[here] @ key[here].transpose(0, 2, 1)
            likeness *= query_steps[here][:, :, None]
            likeness *= key_steps[here][:, None, :]
            shares = self._softmax_shares(likeness)
            whole, steps = _whole_numbers(value[here].transpose(0, 2, 1))
            sums = shares @ whole.transpose(0, 2, 1)
            mixed[here] = sums / shares.sum(axis=2, keepdims=True) * steps[:, None, :]
            start += length
        rows: F32 = mixed.transpose(1, 0, 2).reshape(len(states), HEADS * HEAD_SIZE)
        return rows

    def _softmax_shares(self, likeness: F32) -> F32:
        """exp(likeness - the row's highest) in whole numbers from 0 to 512, by the table.

        A window has at most 256 pieces and a value at most 127 steps: sums stay below 2**24.
        """
        table = self._tensors["exp"]
        steps = np.float32((len(table) - 1) // 8)
        below = likeness.max(axis=2, keepdims=True) - likeness
        below *= steps
        shares: F32 = table[np.minimum(np.rint(below), len(table) - 1).astype(np.int32)]
        return shares

    def _gelu(self, values: F32) -> F32:
        """GELU by a table with 64 values for each unit, from -32 to 32; beyond: 0 or the value."""
        table = self._tensors["gelu"]
        most = (len(table) - 1) // 2
        steps = np.clip(np.rint(values * np.float32(most // 32)), -most, most)
        found: F32 = table[steps.astype(np.int32) + most]
        return found

    def _dense_layer(self, name: str, states: F32) -> F32:
        """States times a matrix of int8, plus its bias."""
        whole, steps = _whole_numbers(states)
        out: F32 = whole @ self._dense[name]
        out *= steps[:, None]
        out *= self._tensors[f"{name}.scale"]
        out += self._tensors[f"{name}.bias"]
        return out

    def _normalise(self, name: str, states: F32) -> F32:
        """Layer normalisation of rows, whose sums are those of whole numbers and so exact."""
        whole = np.rint(states.astype(np.float64) * STEPS_OF_ONE)
        size = whole.shape[1]
        sums = whole.sum(axis=1, keepdims=True)
        squares = np.square(whole).sum(axis=1, keepdims=True)
        spread = np.sqrt((squares * size - sums * sums) / size**2)
        normal = (whole - sums / size) / np.maximum(spread, 1e-6)
        gain, bias = self._tensors[f"{name}.gain"], self._tensors[f"{name}.bias"]
        rows: F32 = (normal * gain + bias).astype(np.float32)
        return rows


def _whole_numbers(states: F32) -> tuple[F32, F32]:
    """Rows as whole numbers from -127 to 127, and the size of one in each row."""
    steps = np.abs(states).max(axis=-1) / np.float32(127)
    steps[steps == 0] = 1
    return np.rint(states / steps[..., None]), steps


def _heads(states: F32) -> F32:
    """(pieces, heads x size) as (heads, pieces, size)."""
    parts: F32 = states.reshape(len(states), HEADS, HEAD_SIZE).transpose(1, 0, 2)
    return parts


def _groups(windows: list[list[int]]) -> Iterator[list[list[int]]]:
    """The windows in order, as many together as `PIECES_AT_ONCE` holds."""
    group: list[list[int]] = []
    pieces = 0
    for window in windows:
        if group and pieces + len(window) > PIECES_AT_ONCE:
            yield group
            group, pieces = [], 0
        group.append(window)
        pieces += len(window)
    if group:
        yield group


def _plain(text: str) -> str:
    """The text without halves of surrogate pairs, which the tokenizer refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _word_pieces() -> "Tokenizer":
    """The tokenizer of bert-base-uncased, from the vocabulary alone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    words = gzip.decompress((MODEL / "vocabulary.txt.gz").read_bytes()).decode().split("\n")[:-1]
    model = WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer

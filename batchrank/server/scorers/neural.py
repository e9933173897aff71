"""Relevance by a model: the optional extra `batchrank[neural]`.

sentence-transformers' `CrossEncoder` does the work, by name or path, and a score is the sigmoid of
a model's one logit. For a generative Qwen3-Reranker that logit is "yes" minus "no" at the last
position, which makes the score P(yes) / (P(yes) + P(no)). Its published checkpoints lack the
prompt, so it is here; a checkpoint that sentence-transformers has saved keeps the prompt it has.

Still pointwise, but not to the last bit: documents of a batch share their padding, and the sixth
decimal or so may show it. Importing this file asks for nothing beyond the package itself.
"""

from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

from batchrank.errors import ConfigInvalid

# Prompt, default instruction and length: QwenLM/Qwen3-Embedding at f4ad0c4, README and
# examples/qwen3_reranker_transformers.py. 8,192 tokens also hold a query and a document of the
# 4,000 that Model Studio allows; of a longer pair the end of the document goes, never the prompt's.
DEFAULT_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_MAX_TOKENS = 8192
QWEN3_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "system" -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ message.content }}
{% elif message.role == "query" -%}
<Query>: {{ message.content }}
{% elif message.role == "document" -%}
<Document>: {{ message.content }}<|im_end|>
<|im_start|>assistant
<think>

</think>

{% endif -%}
{%- endfor -%}
"""


class NeuralScorer:
    """A cross-encoder or a Qwen3-Reranker. Loading takes seconds: keep it. Threads take turns."""

    def __init__(self, model: str, *, batch_size: int = 32) -> None:
        library = _library("sentence_transformers")
        self._sigmoid = _library("torch").nn.Sigmoid()
        try:
            self._model = library.CrossEncoder(model, **_settings(model))
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigInvalid(f'model "{model}" cannot be loaded: {reason}') from error
        labels = self._model.num_labels
        if labels != 1:
            raise ConfigInvalid(f'model "{model}" gives {labels} numbers a pair, a reranker one.')
        self._batch_size = batch_size
        self._turn = Lock()

    def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
        """A score in 0..1 for each document.

        `instruct` reaches models with a prompt to put it in (empty: the model's default); a plain
        cross-encoder has none and never sees it.
        """
        with self._turn:
            scores = self._model.predict(
                [(query, document) for document in documents],
                prompt=(instruct or None) if self._model.supports("message") else None,
                activation_fn=self._sigmoid,
                batch_size=self._batch_size,
                show_progress_bar=False,
            )
        floats: list[float] = scores.tolist()
        return floats


def _library(name: str) -> ModuleType:
    # By name, so that the package type-checks the same with and without the extra.
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigInvalid(
            f"a neural scorer needs {name}, which cannot be imported ({error}). "
            "Try: pip install 'batchrank[neural]'"
        ) from error


def _settings(model: str) -> dict[str, Any]:
    """What `CrossEncoder` must be told besides the name: for a bare Qwen3, its prompt."""
    if _library("sentence_transformers.util").is_sentence_transformer_model(model):
        return {}
    config = _library("transformers").AutoConfig.from_pretrained(model)
    if not any(name.endswith("ForCausalLM") for name in config.architectures or ()):
        return {}
    if config.model_type != "qwen3":
        raise ConfigInvalid(
            f'model "{model}" generates text and is no Qwen3-Reranker ("{config.model_type}"): '
            "its prompt is unknown. Save it with sentence-transformers and a chat template first."
        )
    return {
        "processor_kwargs": {"chat_template": QWEN3_TEMPLATE},
        "prompts": {"default": DEFAULT_INSTRUCT},
        "default_prompt_name": "default",
        "max_length": QWEN3_MAX_TOKENS,
    }

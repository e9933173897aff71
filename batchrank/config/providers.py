"""What is known of each endpoint: data, not code. `batchrank providers` prints it.

A figure's source and date stand beside it in `source`. Prices of Cohere, Jina and Voyage are those
of LiteLLM's price table (litellm 1.106.2, November 2026), which names the vendors' pages. Where a
limit is not documented, "ours" says that it was chosen here; every figure is a setting.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from batchrank.config.limits import RateLimits, RequestLimits
from batchrank.config.pricing import BASE_TOKENS, Price
from batchrank.wire.request_fields import MODEL_STUDIO, Fields

UNLIMITED_TOKENS = 1_000_000_000
"""Tokens of a request where no limit is known: what the documents' own limits leave is sent."""

EMBEDDED_SCORER = "embedded rehearsal scorer"
"""The name, in everything that a person reads, of what scores where `run` starts the server."""

LISTWISE = ("jina-reranker-v3",)
"""Models whose score of a document depends on the others in the request, wherever they are served
(instructkr/reranker-simple-benchmark#34)."""


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's dialect, address, default limits and price.

    `base_url` empty: `run` starts the local server; None: it is wherever the user runs it. `path`
    follows it. `model` empty: there is no default. `key_required`: without a key nothing is sent.
    `price` None: not known. `models` has the same for models of other figures.
    """

    dialect: str
    path: str
    base_url: str | None
    model: str
    api_key_env: str
    source: str
    key_required: bool = True
    price: Price | None = Price()
    score: str = "0..1"
    fields: Fields = Fields()
    limits: RequestLimits = RequestLimits()
    rate: RateLimits = RateLimits()
    bills: bool = True
    models: Mapping[str, "Provider"] = {}

    def of(self, model: str) -> "Provider":
        """The endpoint's figures for one of its models."""
        return self.models.get(model, self)


def scores_lists(model: str) -> bool:
    """Whether the model, by its name, scores a list as a whole."""
    return any(name in model.lower() for name in LISTWISE)


def _with(provider: Provider, models: Mapping[str, Mapping[str, Any]]) -> Provider:
    """A provider with models that differ in these figures."""
    variants = {
        model: msgspec.structs.replace(provider, model=model, **figures)
        for model, figures in models.items()
    }
    return msgspec.structs.replace(provider, models=variants)


_SINGAPORE = Price(0.1, per_request=BASE_TOKENS)
_NATIVE_PATH = "/services/rerank/text-rerank/text-rerank"

_LOCAL = Provider(
    dialect="flat",
    path="/reranks",
    base_url="",
    model="qwen3-rerank",
    api_key_env="DASHSCOPE_API_KEY",
    key_required=False,
    price=_SINGAPORE,
    fields=MODEL_STUDIO,
    bills=False,
    source="rehearses dashscope, limits and price included, and bills nothing",
)
_DASHSCOPE = msgspec.structs.replace(
    _LOCAL,
    base_url="https://dashscope-intl.aliyuncs.com/compatible-api/v1",
    key_required=True,
    bills=True,
    source='Model Studio, "OpenAI compatible reranking", "Rate limits", "Pricing" (Singapore), '
    "June 2026; Beijing: 0.5 yuan, about $0.069",
)
_NATIVE = msgspec.structs.replace(
    _DASHSCOPE,
    dialect="dashscope-native",
    path=_NATIVE_PATH,
    base_url="https://dashscope-intl.aliyuncs.com/api/v1",
    source='Model Studio, "DashScope reranking", "Rate limits", "Pricing" (Singapore), June 2026',
)
_QWEN37 = {
    "price": Price(0.069, per_document=75),
    "rate": RateLimits(requests_per_minute=3000),
    "source": "Model Studio's model card, spring 2026: 0.5 yuan, Beijing only, 3,000 requests a "
    "minute; about 75 tokens are added for each document (BerriAI/litellm#40199)",
}
_GTE = {
    "price": Price(0.115, per_request=BASE_TOKENS),
    "limits": RequestLimits(max_tokens_per_request=30_000),
    "rate": RateLimits(requests_per_minute=5040),
    "source": 'Model Studio, "DashScope reranking" and "Rate limits", June 2026; end of service '
    "was announced for 30 May 2026",
}
_COHERE = Provider(
    dialect="cohere",
    path="/v2/rerank",
    base_url="https://api.cohere.com",
    model="rerank-v4.0-pro",
    api_key_env="COHERE_API_KEY",
    price=Price(2.5, "searches", margin=2),
    limits=RequestLimits(
        max_documents=1000, max_tokens_per_document=4096, max_tokens_per_request=UNLIMITED_TOKENS
    ),
    rate=RateLimits(requests_per_minute=1000),
    source='docs.cohere.com, "Rerank API (v2)" and "Rate limits" (production keys; trial keys: 10 '
    "a minute, 1,000 a month), 2026; litellm's price table",
)
_JINA = Provider(
    dialect="flat",
    path="/rerank",
    base_url="https://api.jina.ai/v1",
    model="jina-reranker-v2-base-multilingual",
    api_key_env="JINA_API_KEY",
    price=Price(0.05, margin=2),
    fields=Fields(return_documents=True),
    limits=RequestLimits(
        max_documents=500, max_tokens_per_document=8192, max_tokens_per_request=UNLIMITED_TOKENS
    ),
    rate=RateLimits(requests_per_minute=500, tokens_per_minute=2_000_000),
    source='jina.ai, "Rate limit" (paid keys; free: 100 and 100,000), 2026; limits of a request '
    "are not documented: ours; litellm's price table",
)
_VOYAGE = Provider(
    dialect="voyage",
    path="/rerank",
    base_url="https://api.voyageai.com/v1",
    model="rerank-2.5",
    api_key_env="VOYAGE_API_KEY",
    price=Price(0.05, margin=2),
    limits=RequestLimits(
        max_documents=1000, max_tokens_per_document=32_000, max_tokens_per_request=600_000
    ),
    rate=RateLimits(requests_per_minute=2000, tokens_per_minute=2_000_000),
    source='docs.voyageai.com, "Rerankers" and "Rate limits" (tier 1), 2026; '
    "litellm's price table",
)
_SILICONFLOW = Provider(
    dialect="flat",
    path="/rerank",
    base_url="https://api.siliconflow.cn/v1",
    model="Qwen/Qwen3-Reranker-8B",
    api_key_env="SILICONFLOW_API_KEY",
    price=None,
    # It answers with fewer than all unless told otherwise (volcengine/OpenViking#2926).
    fields=Fields(instruct="instruction", top_n=True, return_documents=True),
    limits=RequestLimits(max_tokens_per_document=32_000),
    rate=RateLimits(requests_per_minute=2000, tokens_per_minute=500_000),
    source='docs.siliconflow.cn, "Create rerank" and "Rate limits", 2026; limits of a request are '
    "not documented: ours; the price was not found",
)
_OWN = RateLimits(requests_per_minute=0, max_in_flight=16, ramp_seconds=0)
"""A server of one's own has no account: what it is working at bounds it, not a minute."""

_VLLM = Provider(
    dialect="served",
    path="/rerank",
    base_url=None,
    model="",
    api_key_env="VLLM_API_KEY",
    key_required=False,
    fields=Fields(instruct="instruction"),
    limits=RequestLimits(
        max_documents=500, max_tokens_per_document=32_000, max_tokens_per_request=UNLIMITED_TOKENS
    ),
    rate=_OWN,
    source="vllm, entrypoints/pooling/scoring @5315868, 2026: no limit on documents (ours); a pair "
    "over max_model_len is refused, its request halved",
)
_INFINITY = msgspec.structs.replace(
    _VLLM,
    model="default/not-specified",
    api_key_env="INFINITY_API_KEY",
    fields=Fields(),
    limits=RequestLimits(
        max_documents=2048, max_tokens_per_document=32_000, max_tokens_per_request=UNLIMITED_TOKENS
    ),
    source="michaelfeil/infinity @fcb951c, 2026: 2,048 documents of 122,880 characters",
)
_LLAMA_CPP = msgspec.structs.replace(
    _VLLM,
    model="default",
    api_key_env="LLAMA_API_KEY",
    score="the model's own number, unbounded",
    fields=Fields(),
    source="ggml-org/llama.cpp, tools/server, 2026: no limit on documents (ours); a pair over the "
    "physical batch (-ub) is refused, its request halved",
)
_LITELLM = msgspec.structs.replace(
    _VLLM,
    api_key_env="LITELLM_API_KEY",
    price=None,
    score="as upstream",
    fields=Fields(instruct="instruction", return_documents=True),
    limits=RequestLimits(),
    source="litellm 1.106.2, proxy/rerank_endpoints, 2026: limits and price are those of the model "
    "behind it (the defaults are qwen3-rerank's)",
)
_TEI = Provider(
    dialect="tei",
    path="/rerank",
    base_url=None,
    model="default",
    api_key_env="TEI_API_KEY",
    key_required=False,
    limits=RequestLimits(
        max_documents=32,
        max_tokens_per_document=32_000,
        max_tokens_per_request=UNLIMITED_TOKENS,
        max_bytes_per_request=2_000_000,
    ),
    rate=_OWN,
    source="huggingface/text-embeddings-inference @0d124dc, 2026: --max-client-batch-size 32, "
    "--payload-limit 2,000,000, 512 permits of one text each",
)

PROVIDERS = {
    "local": _with(_LOCAL, {"qwen3.7-text-rerank": _QWEN37, "gte-rerank-v2": _GTE}),
    "dashscope": _DASHSCOPE,
    "dashscope-native": _with(
        _NATIVE,
        {
            "qwen3.7-text-rerank": {**_QWEN37, "base_url": "https://dashscope.aliyuncs.com/api/v1"},
            "gte-rerank-v2": _GTE,
        },
    ),
    "cohere": _with(
        _COHERE,
        {
            "rerank-v4.0-fast": {"price": Price(2.0, "searches", margin=2)},
            "rerank-v3.5": {"price": Price(2.0, "searches", margin=2)},
        },
    ),
    "jina": _with(
        _JINA,
        {
            "jina-reranker-v3": {
                "limits": RequestLimits(
                    max_documents=64,
                    max_tokens_per_document=8192,
                    max_tokens_per_request=131_072,
                ),
                "score": "-1..1, a cosine",
                "source": "jina-reranker-v3's model card: 64 documents in one window of 131,072 "
                'tokens, scored as a whole; jina.ai, "Rate limit" (paid keys), 2026; price: '
                "taken to be that of v2",
            }
        },
    ),
    "voyage": _with(_VOYAGE, {"rerank-2.5-lite": {"price": Price(0.02, margin=2)}}),
    "siliconflow": _SILICONFLOW,
    "tei": _TEI,
    "vllm": _VLLM,
    "infinity": _INFINITY,
    "llama.cpp": _LLAMA_CPP,
    "litellm": _LITELLM,
}

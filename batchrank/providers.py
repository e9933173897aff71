"""What is known of each endpoint: data, not code.

Sources: Model Studio, "OpenAI compatible reranking", "DashScope reranking", "Rate limits" and
"Pricing" (Singapore), as read in June 2026. Beijing asks 0.5 yuan (about $0.069) a million tokens.
"""

import msgspec

from batchrank.limits import RateLimits, RequestLimits


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's dialect, address, default limits and price per million tokens billed.

    `base_url` empty: `run` starts the local server. `key_required`: without a key nothing is sent.
    """

    dialect: str
    base_url: str
    key_required: bool
    price_per_million_tokens: float
    limits: RequestLimits = RequestLimits()
    rate: RateLimits = RateLimits()
    bills: bool = True


PROVIDERS = {
    # Rehearses dashscope, limits and price included, and bills nothing.
    "local": Provider(
        dialect="flat",
        base_url="",
        key_required=False,
        price_per_million_tokens=0.1,
        bills=False,
    ),
    "dashscope": Provider(
        dialect="flat",
        base_url="https://dashscope-intl.aliyuncs.com/compatible-api/v1",
        key_required=True,
        price_per_million_tokens=0.1,
    ),
    "dashscope-native": Provider(
        dialect="dashscope-native",
        base_url="https://dashscope-intl.aliyuncs.com/api/v1",
        key_required=True,
        price_per_million_tokens=0.1,
    ),
}

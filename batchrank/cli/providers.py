"""The providers and their models as `batchrank providers` shows them: a table, or JSON."""

from collections.abc import Sequence

import msgspec

from batchrank.config.limits import RateLimits, RequestLimits
from batchrank.config.providers import PROVIDERS, UNLIMITED_TOKENS, Provider, scores_lists


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a provider under one of its models. `base_url` None: to be given;
    `price_usd` None: not known; else of a million tokens, or of a thousand searches.
    """

    provider: str
    model: str
    dialect: str
    base_url: str | None
    path: str
    limits: RequestLimits
    rate: RateLimits
    price_usd: float | None
    price_unit: str
    api_key_env: str
    key_required: bool
    score: str
    scores_lists: bool
    instruct_field: str | None
    source: str


def listed() -> list[Listed]:
    """Every provider, each followed by its models of other figures."""
    return [
        _listed(name, one)
        for name, provider in PROVIDERS.items()
        for one in (provider, *provider.models.values())
    ]


def _listed(name: str, provider: Provider) -> Listed:
    return Listed(
        provider=name,
        model=provider.model,
        dialect=provider.dialect,
        base_url=provider.base_url,
        path=provider.path,
        limits=provider.limits,
        rate=provider.rate,
        price_usd=provider.price.usd if provider.price else None,
        price_unit=provider.price.unit if provider.price else "tokens",
        api_key_env=provider.api_key_env,
        key_required=provider.key_required,
        score=provider.score,
        scores_lists=scores_lists(provider.model),
        instruct_field=provider.fields.instruct,
        source=provider.source,
    )


def words(providers: Sequence[Listed]) -> str:
    """A table of figures, then the address, the scores and the source of each."""
    heads = ("provider", "model", "dialect", "documents", "tokens", "a minute", "price", "key")
    rows = [heads, *(_cells(one) for one in providers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*table, "", *(_about(one) for one in providers)])


def _cells(one: Listed) -> tuple[str, ...]:
    tokens = one.limits.max_tokens_per_request
    return (
        one.provider,
        one.model or "to be named",
        one.dialect,
        f"{one.limits.max_documents:,}",
        "-" if tokens == UNLIMITED_TOKENS else f"{tokens:,}",
        _rate(one.rate),
        _price(one),
        one.api_key_env if one.key_required else f"({one.api_key_env})",
    )


def _rate(rate: RateLimits) -> str:
    """Requests a minute, and tokens where they are limited."""
    given = [rate.requests_per_minute, rate.tokens_per_minute]
    return " / ".join(f"{limit:,.0f}" for limit in given if limit) or "-"


def _price(one: Listed) -> str:
    if one.price_usd is None:
        return "not known"
    per = "1M tokens" if one.price_unit == "tokens" else "1,000 searches"
    return f"${one.price_usd:g} / {per}" if one.price_usd else "-"


def _about(one: Listed) -> str:
    name = f"{one.provider} {one.model}".strip()
    where = {None: "endpoint.base_url is to be given", "": "started by `run`"}.get(
        one.base_url, one.base_url
    )
    lists = "; scores a list as a whole, never split" if one.scores_lists else ""
    return f"{name}: {where}, path {one.path}; scores {one.score}{lists}.\n  {one.source}"

"""TOML and options into one frozen `JobConfig`, whole and valid before any work.

Precedence: the provider's defaults, then the file, then options. Unknown keys are refused with the
nearest name. The environment is read here alone: for the key's value, which no object that is
printed ever holds, and for the place in a job that a scheduler has given us.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from batchrank.config.addresses import check_base_url, check_headers, hide_query
from batchrank.config.key_file import read_key_file
from batchrank.config.limits import Amount, AtLeastOne, RateLimits, RequestLimits, Whole
from batchrank.config.pricing import Price
from batchrank.config.providers import EMBEDDED_SCORER, PROVIDERS, Provider, scores_lists
from batchrank.config.proxy import is_loopback
from batchrank.config.suggestion import suggest
from batchrank.errors import ConfigInvalid
from batchrank.records import ANSWER_BITS


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to ask, and how. `base_url` ends where the SDKs' base URLs end. `scores_lists`: the
    model scores a list as a whole. `unite_rows`: rows that share a query share requests.
    `local_scorer`: what gives the scores where the run starts the local server.
    `price_usd`: of a million tokens, or of a thousand searches.

    Model, key variable, `scores_lists` and price are by default the provider's.
    """

    provider: str = "local"
    base_url: str = ""
    model: Annotated[str, Meta(min_length=1)] = "qwen3-rerank"
    instruct: str = ""
    scores_lists: bool = False
    unite_rows: bool = False
    local_scorer: Literal["embedded", "lexical"] = "embedded"
    price_usd: Amount = 0.1
    api_key_env: str = "DASHSCOPE_API_KEY"
    api_key_file: str = ""
    headers: dict[str, str] = {}
    timeout_seconds: Annotated[float, Meta(gt=0, le=3600)] = 60
    max_outage_seconds: Amount = 900


class InputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns of the input mean what."""

    id_column: str = "query_id"
    query_column: str = "query"
    candidates_column: str = "candidates"
    doc_id_column: str = "doc_id"
    text_column: str = "text"
    keep_columns: list[str] = []


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of the output. `top_n` 0: every candidate. `reusable`: a later run may take these
    scores.
    """

    rows_per_part: AtLeastOne = 10_000
    top_n: Whole = 0
    compression: Literal["zstd", "snappy", "gzip", "brotli", "lz4", "none"] = "zstd"
    reusable: bool = True


class JobConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a run is told, apart from where its input and output are. `endpoint_chosen`:
    a file or an option names the provider or its address, be it the default one. `named_columns`:
    keys of `input` that an option or a program gave.
    """

    endpoint: EndpointConfig = EndpointConfig()
    limits: RequestLimits = RequestLimits()
    rate: RateLimits = RateLimits()
    input: InputConfig = InputConfig()
    output: OutputConfig = OutputConfig()
    endpoint_chosen: bool = False
    named_columns: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        """Compare the settings, not who has made them."""
        return isinstance(other, JobConfig) and self._settings() == other._settings()

    @property
    def is_embedded(self) -> bool:
        """Whether the run starts the local server, whose scorer is embedded."""
        return not (self.endpoint.base_url or self.provider.base_url)

    @property
    def scorer(self) -> str:
        """The name of what gives the scores: the model, if it is really asked."""
        if not self.is_embedded:
            return self.endpoint.model
        lexical = self.endpoint.local_scorer == "lexical"
        return f"{EMBEDDED_SCORER}{', lexical' if lexical else ''}"

    @property
    def bills(self) -> bool:
        """Whether somebody may be paid: a server elsewhere is no rehearsal, whatever is said."""
        url = self.endpoint.base_url
        return self.provider.bills or bool(url and not is_loopback(urlsplit(url).hostname or ""))

    @property
    def chosen_columns(self) -> frozenset[str]:
        """The keys of `input` whose columns must be there. A file that has a default's own name is
        no choice: configs/local.toml has them all.
        """
        given, default = msgspec.to_builtins(self.input), msgspec.to_builtins(InputConfig())
        return self.named_columns | {key for key in given if given[key] != default[key]}

    @property
    def provider(self) -> Provider:
        """What is known of the endpoint and its model."""
        return PROVIDERS[self.endpoint.provider].of(self.endpoint.model)

    @property
    def price(self) -> Price:
        """What requests cost."""
        known = self.provider.price or Price()
        return replace(known, usd=self.endpoint.price_usd)

    @property
    def counts_tokens_as_billed(self) -> bool:
        """Whether the model's tokens are those of the vocabulary that we count with, Qwen's."""
        return "qwen" in self.endpoint.model.lower()

    def shown(self) -> dict[str, Any]:
        """The configuration as plain values, header values as "set"."""
        shown = self._settings()
        shown["endpoint"]["headers"] = dict.fromkeys(self.endpoint.headers, "set")
        shown["endpoint"]["base_url"] = hide_query(self.endpoint.base_url)
        return shown

    def deciding(self) -> dict[str, Any]:
        """The fields that decide results, by name: a run cannot go on under others. Rates,
        concurrency, time-outs, keys and addresses are not among them.
        """
        endpoint = {
            name: getattr(self.endpoint, name)
            for name in ("provider", "model", "instruct", "scores_lists", "unite_rows")
        }
        if self.is_embedded:
            endpoint["local_scorer"] = self.endpoint.local_scorer
        sections = {
            "endpoint": endpoint,
            "limits": msgspec.to_builtins(self.limits),
            "input": msgspec.to_builtins(self.input),
            "output": {
                name: value
                for name, value in msgspec.to_builtins(self.output).items()
                if name != "reusable"
            },
        }
        return {
            f"{section}.{key}": value
            for section, values in sections.items()
            for key, value in values.items()
        }

    def scoring(self) -> dict[str, Any]:
        """The fields that decide the score of a pair, by name: under others it is another score."""
        names = ["endpoint.provider", "endpoint.model", "endpoint.instruct"]
        names += ["endpoint.scores_lists", "limits.max_tokens_per_document"]
        names += ["endpoint.local_scorer"] * self.is_embedded
        deciding = self.deciding()
        return {name: deciding[name] for name in names}

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in settings.items() if name not in _ORIGINS}


COORDINATOR_KEY = "BATCHRANK_COORDINATOR_KEY"
_ORIGINS = ("endpoint_chosen", "named_columns")
"""Fields that are no settings, but say where settings come from."""
_SECTIONS = {
    field.name: field.type
    for field in msgspec.structs.fields(JobConfig)
    if field.name not in _ORIGINS
}


def load(
    path: Path | None, options: Mapping[str, Mapping[str, Any]], *, insecure_http: bool = False
) -> JobConfig:
    """The configuration of a file (or none) with options over it. Raises `ConfigInvalid`."""
    name = path.name if path else "options"
    given = _read(path) if path else {}
    check_known(given, name)
    sections = {
        section: {**given.get(section, {}), **options.get(section, {})} for section in _SECTIONS
    }
    endpoint = sections["endpoint"]
    chosen = "provider" in endpoint or bool(endpoint.get("base_url"))
    for section, defaults in _defaults(sections["endpoint"], name).items():
        sections[section] = {**defaults, **sections[section]}
    try:
        origins = {"endpoint_chosen": chosen, "named_columns": list(options.get("input", {}))}
        config = msgspec.convert({**sections, **origins}, JobConfig)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{name}: {_plain(str(error))}") from None
    _check(config, name, insecure_http)
    return config


def _defaults(endpoint: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """What the provider says of its endpoint, its limits and rates under the model."""
    provider_name = endpoint.get("provider", "local")
    provider = PROVIDERS.get(provider_name) if isinstance(provider_name, str) else None
    if provider is None:
        raise ConfigInvalid(
            f"{name}: unknown provider {provider_name!r}.{suggest(str(provider_name), PROVIDERS)}"
        )
    if "model" not in endpoint and not provider.model:
        raise ConfigInvalid(
            f'{name}: provider "{provider_name}" has no default model: set endpoint.model to the '
            "name that it serves."
        )
    model = str(endpoint.get("model", provider.model))
    provider = provider.of(model)
    return {
        "endpoint": {
            "model": provider.model,
            "api_key_env": provider.api_key_env,
            "scores_lists": scores_lists(model),
            "price_usd": provider.price.usd if provider.price else 0.0,
        },
        "limits": msgspec.to_builtins(provider.limits),
        "rate": msgspec.to_builtins(provider.rate),
    }


def load_for_job(path: Path | None, provider: str | None = None) -> JobConfig:
    """Load a file's configuration, with a provider over it, for a job that runs unattended: it must
    name its endpoint, for nobody is there to see that the rows are only rehearsed. Raises
    `ConfigInvalid`.
    """
    config = load(path, {} if provider is None else {"endpoint": {"provider": provider}})
    if not config.endpoint_chosen:
        raise ConfigInvalid(
            f"{'nobody chose an endpoint' if path is None else f'{path}: names no endpoint'}. Pass "
            "-c FILE, a configuration that sets endpoint.provider, or --provider NAME; --provider "
            f"local takes the {EMBEDDED_SCORER}."
        )
    return config


def check_price(config: JobConfig) -> None:
    """Refuse a cap on a cost that nobody can tell. Raises `ConfigInvalid`."""
    if config.provider.price is None and not config.endpoint.price_usd:
        raise ConfigInvalid(
            f'the price of provider "{config.endpoint.provider}" is not known here, so --max-cost '
            "cannot be kept. Set endpoint.price_usd, in dollars for a million tokens."
        )


def sections_of(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys of the configuration, each in its section; no two sections share one. Raises
    `ConfigInvalid` for a key that there is not.
    """
    section_of = {
        field.name: section
        for section, kind in _SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    }
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key not in section_of:
            raise ConfigInvalid(f"unknown setting {key}.{suggest(key, section_of)}")
        sections.setdefault(section_of[key], {})[key] = value
    return sections


def key_of(config: JobConfig) -> str | None:
    """The endpoint's key, from the file or the environment variable that the configuration names.

    Raises `ConfigInvalid` where the provider wants one and there is none.
    """
    endpoint = config.endpoint
    if endpoint.api_key_file:
        key = read_key_file(endpoint.api_key_file)
    else:
        key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key and config.provider.key_required:
        raise ConfigInvalid(
            f"the environment variable {endpoint.api_key_env} is not set, and provider "
            f'"{endpoint.provider}" wants a key (endpoint.api_key_env names the variable).'
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigInvalid(f"the key in {endpoint.api_key_env} has characters no key has.")
    return key or None


def key_in(variable: str) -> str:
    """The key that the local server is to ask for. Raises `ConfigInvalid` where it is not set."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigInvalid(f"the environment variable {variable} is not set.")
    return key


def scheduled(variables: Iterable[str]) -> dict[str, str]:
    """What a scheduler has said in these environment variables."""
    return {name: os.environ[name] for name in variables if name in os.environ}


def coordinator_url() -> str | None:
    """Where the coordinator is, for whom no option says so."""
    return os.environ.get("BATCHRANK_COORDINATOR", "").strip() or None


def check_coordinator(url: str) -> None:
    """Raises `ConfigInvalid` for what can be no coordinator's address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, or half an IPv6 address
        usable = False
    if not usable:
        raise ConfigInvalid(
            f"--coordinator {url}: is no address; `batchrank coordinate` prints one such as "
            "http://127.0.0.1:8766."
        )


def coordinator_key() -> str | None:
    """The secret that the environment gives to a coordinator and its workers, if there is one."""
    return os.environ.get(COORDINATOR_KEY, "").strip() or None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigInvalid(f"{path}: no such configuration file.") from None
    except RecursionError:
        raise ConfigInvalid(f"{path}: not readable as TOML: nested too deeply.") from None
    except (OSError, ValueError) as error:  # not UTF-8, no TOML, or a number of 5,000 digits
        raise ConfigInvalid(f"{path}: not readable as TOML: {str(error)[:200]}") from None


def check_known(given: Mapping[str, Any], name: str) -> None:
    """Refuse sections and keys that there are not. Raises `ConfigInvalid`."""
    for section, values in given.items():
        if section not in _SECTIONS:
            raise ConfigInvalid(f"{name}: unknown section {section}.{suggest(section, _SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigInvalid(f"{name}: {section} is a section: write [{section}].")
        known = {field.name: None for field in msgspec.structs.fields(_SECTIONS[section])}
        for key in values:
            if key not in known:
                near = suggest(key, known, section + ".")
                raise ConfigInvalid(f"{name}: unknown key {section}.{key}.{near}")


def _plain(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.rate.ramp_seconds`" with the key first."""
    what, _, where = message.partition(" - at `$.")
    what = (what[0].lower() + what[1:]).replace("`", "")
    return f"{where.rstrip('`')}: {what}." if where else f"{what}."


def _check(config: JobConfig, name: str, insecure_http: bool) -> None:
    columns = [config.input.id_column, *config.input.keep_columns]
    taken = {"results", "status", "error", "requests", "truncated", "doc_ids"}
    if config.endpoint.unite_rows:
        _check_unites(config, name)
        taken.add("request_ids")
    for column in columns:
        if columns.count(column) > 1 or column in taken:
            raise ConfigInvalid(f"{name}: input: the output cannot have a second column {column}.")
    endpoint, provider = config.endpoint, config.provider
    check_headers(endpoint.headers, name)
    if endpoint.base_url:
        check_base_url(endpoint.base_url, name, insecure_http=insecure_http)
    elif provider.base_url is None:
        raise ConfigInvalid(
            f'{name}: provider "{endpoint.provider}" is wherever you run it: set '
            f"endpoint.base_url, such as http://127.0.0.1:8080 ({provider.path} is added)."
        )
    if endpoint.local_scorer != "embedded" and not config.is_embedded:
        raise ConfigInvalid(
            f"{name}: endpoint.local_scorer is for the local server, and this run asks another. "
            "Leave it out."
        )
    if endpoint.instruct and provider.fields.instruct is None:
        raise ConfigInvalid(
            f'{name}: provider "{endpoint.provider}" takes no instruction: leave endpoint.instruct '
            "empty."
        )


def _check_unites(config: JobConfig, name: str) -> None:
    if config.endpoint.scores_lists:
        raise ConfigInvalid(
            f"{name}: endpoint.unite_rows: {config.endpoint.model} scores a list as a whole "
            "(endpoint.scores_lists), so rows that share a request would change each other's "
            "scores. Leave one of the two false."
        )
    most = 1 << ANSWER_BITS
    if config.limits.max_documents > most:
        raise ConfigInvalid(
            f"{name}: limits.max_documents is {config.limits.max_documents:,}; a request that rows "
            f"share (endpoint.unite_rows) holds at most {most:,}."
        )

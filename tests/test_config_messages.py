"""What is wrong with a configuration is said in one line: where, what, and what was meant."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrank.config.addresses import request_url
from batchrank.config.providers import PROVIDERS
from batchrank.config.settings import EndpointConfig, JobConfig, check_price, key_in, key_of, load
from batchrank.errors import ConfigInvalid, ExitCode

Options = dict[str, dict[str, Any]]


def loaded(folder: Path, text: str, options: Options | None = None) -> JobConfig:
    path = folder / "hosted.toml"
    path.write_text(text)
    return load(path, options or {})


SECTIONS = "endpoint, limits, rate, input, output"
LIMITS = (
    "limits.max_documents, limits.max_tokens_per_document, limits.max_tokens_per_request, "
    "limits.max_bytes_per_request"
)
NO_SECOND = "input: the output cannot have a second column"

MESSAGES = [
    (
        "[rate]\nrequest_per_minute = 5",
        "unknown key rate.request_per_minute. Did you mean rate.requests_per_minute?",
    ),
    ("[limits]\nzzz = 5", f"unknown key limits.zzz. Known: {LIMITS}."),
    ("[endpoints]\nmodel = 'm'", "unknown section endpoints. Did you mean endpoint?"),
    ("[zzz]\nx = 1", f"unknown section zzz. Known: {SECTIONS}."),
    ("model = 'm'", "unknown section model. Known: " + SECTIONS + "."),
    ("rate = 5", "rate is a section: write [rate]."),
    (
        "[endpoint]\nprovider = 'dashskope'",
        "unknown provider 'dashskope'. Did you mean dashscope?",
    ),
    (
        "[endpoint]\nprovider = 'zzz'",
        "unknown provider 'zzz'. Known: " + ", ".join(PROVIDERS) + ".",
    ),
    ("[endpoint]\nprovider = 5", "unknown provider 5. Known: " + ", ".join(PROVIDERS) + "."),
    ("[endpoint]\nmodel = ''", "endpoint.model: expected str of length >= 1."),
    ("[endpoint]\ntimeout_seconds = 0", "endpoint.timeout_seconds: expected float > 0.0."),
    ("[endpoint]\ntimeout_seconds = 9999", "endpoint.timeout_seconds: expected float <= 3600.0."),
    ("[endpoint]\nheaders = 5", "endpoint.headers: expected object, got int."),
    ("[endpoint]\nmax_outage_seconds = -1", "endpoint.max_outage_seconds: expected float >= 0.0."),
    ("[limits]\nmax_documents = 0", "limits.max_documents: expected int >= 1."),
    ("[limits]\nmax_documents = '5'", "limits.max_documents: expected int, got str."),
    ("[limits]\nmax_documents = 5.5", "limits.max_documents: expected int, got float."),
    ("[limits]\nmax_documents = true", "limits.max_documents: expected int, got bool."),
    ("[limits]\nmax_bytes_per_request = -1", "limits.max_bytes_per_request: expected int >= 0."),
    ("[rate]\nrequests_per_minute = -1", "rate.requests_per_minute: expected float >= 0.0."),
    ("[rate]\nmax_in_flight = 0", "rate.max_in_flight: expected int >= 1."),
    ("[rate]\nmax_in_flight = 5000", "rate.max_in_flight: expected int <= 4096."),
    ("[rate]\nrequests_per_minute = nan", "rate.requests_per_minute: expected float >= 0.0."),
    (
        "[rate]\ntokens_per_minute = inf",
        "rate.tokens_per_minute: expected float <= 1000000000000.0.",
    ),
    ("[output]\ncompression = 'zip'", "output.compression: invalid enum value 'zip'."),
    ("[output]\nrows_per_part = 0", "output.rows_per_part: expected int >= 1."),
    ("[input]\nkeep_columns = 'title'", "input.keep_columns: expected array, got str."),
    ("[input]\nkeep_columns = ['results']", f"{NO_SECOND} results."),
    ("[input]\nid_column = 'status'", f"{NO_SECOND} status."),
    ("[input]\nkeep_columns = ['a', 'a']", f"{NO_SECOND} a."),
    ("[input]\nkeep_columns = ['query_id']", f"{NO_SECOND} query_id."),
    ("[endpoint]\nbase_url = 'http://[::1'", "endpoint.base_url is not a URL."),
    ("[endpoint]\nbase_url = 'https://h:port/'", "endpoint.base_url is not a URL."),
    (
        "[endpoint]\nbase_url = 'dashscope.aliyuncs.com'",
        "endpoint.base_url must begin with https:// and name a host.",
    ),
    (
        "[endpoint]\nbase_url = 'ftp://host/x'",
        "endpoint.base_url must begin with https:// and name a host.",
    ),
    (
        "[endpoint]\nbase_url = 'https:///v1'",
        "endpoint.base_url must begin with https:// and name a host.",
    ),
    (
        "[endpoint]\nbase_url = 'https://me:sesame@host/v1'",
        "endpoint.base_url must not hold a user or password.",
    ),
    (
        "[endpoint]\nbase_url = 'https://host:0/v1'",
        "endpoint.base_url names port 0, where nobody can listen.",
    ),
    (
        "[endpoint]\nbase_url = 'https://host/v1#rerank'",
        "endpoint.base_url has a fragment (from # on), which is never sent: leave it out.",
    ),
    (
        "[endpoint]\nbase_url = 'https://host/v1#'",
        "endpoint.base_url has a fragment (from # on), which is never sent: leave it out.",
    ),
    (
        "[endpoint]\nbase_url = 'https://host/v 1'",
        "endpoint.base_url has a space or a sign that no URL has.",
    ),
    *(
        (
            f"[endpoint]\nheaders = {{ {header} = 'sesame' }}",
            f"endpoint.headers: {header} is set by the client itself: leave it out.",
        )
        for header in ("Content-Length", "host", "TRANSFER-ENCODING", "Proxy-Authorization")
    ),
    (
        "[endpoint]\nheaders = { 'X Team' = 'sesame' }",
        "endpoint.headers: X Team is no header's name.",
    ),
    (
        '[endpoint]\nheaders = { X-Team = """sesame\n""" }',
        "endpoint.headers: X-Team: its value has a line feed or another control character.",
    ),
    (
        "[endpoint]\nbase_url = 'http://example.org/v1'",
        "endpoint.base_url is http://, which would send texts and key unencrypted. "
        "Use https://, or pass --allow-insecure-http.",
    ),
]


@pytest.mark.parametrize(("text", "message"), MESSAGES)
def test_a_wrong_file_is_refused_with(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        loaded(tmp_path, text)
    assert str(error.value) == f"hosted.toml: {message}"
    assert error.value.code == ExitCode.CONFIG_INVALID == 78
    assert "sesame" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigInvalid) as error:
        load(path, {})
    assert str(error.value) == f"{path}: no such configuration file."


@pytest.mark.parametrize("content", [b"[rate", b"a = \xff", b"[rate]\n[rate]"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid) as error:
        load(path, {})
    assert str(error.value).startswith(f"{path}: not readable as TOML: ")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as error:
        load(tmp_path, {})
    assert str(error.value).startswith(f"{tmp_path}: not readable as TOML: ")


def test_a_wrong_option_is_not_blamed_on_a_file() -> None:
    with pytest.raises(ConfigInvalid) as error:
        load(None, {"endpoint": {"provider": "dashskope"}})
    assert str(error.value) == "options: unknown provider 'dashskope'. Did you mean dashscope?"


# Precedence


def test_without_file_and_options_the_defaults_hold() -> None:
    config = load(None, {})
    assert config == JobConfig()
    assert config.endpoint.provider == "local"
    assert (config.rate.requests_per_minute, config.limits.max_documents) == (5400, 500)


def test_a_providers_defaults_give_way_to_the_file_and_the_file_to_options(tmp_path: Path) -> None:
    text = (
        "[endpoint]\nprovider = 'dashscope'\nmodel = 'of the file'\ninstruct = 'file'\n"
        "[rate]\nrequests_per_minute = 100\nmax_in_flight = 8\n"
    )
    options: Options = {"endpoint": {"model": "of the option"}, "rate": {"max_in_flight": 3}}
    config = loaded(tmp_path, text, options)
    assert config.endpoint.model == "of the option"
    assert config.endpoint.instruct == "file"
    assert config.rate.requests_per_minute == 100
    assert config.rate.max_in_flight == 3
    assert config.rate.ramp_seconds == PROVIDERS["dashscope"].rate.ramp_seconds
    assert config.limits == PROVIDERS["dashscope"].limits
    assert config.provider is PROVIDERS["dashscope"]


def test_an_option_may_change_the_provider_of_the_file(tmp_path: Path) -> None:
    options: Options = {"endpoint": {"provider": "local"}}
    config = loaded(tmp_path, "[endpoint]\nprovider = 'dashscope'", options)
    assert config.provider is PROVIDERS["local"]


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_providers_own_figures_are_valid(name: str) -> None:
    for one in (PROVIDERS[name], *PROVIDERS[name].models.values()):
        url = one.base_url if one.base_url is not None else "http://127.0.0.1:8080"
        config = config_of(provider=name, base_url=url, model=one.model or "m")
        assert config.provider is PROVIDERS[name].of(one.model)
        assert config.limits == one.limits
        assert config.rate == one.rate
        assert config.endpoint.api_key_env == one.api_key_env
        assert config.price.usd == (one.price.usd if one.price else 0)


@pytest.mark.parametrize("name", ["tei", "vllm", "infinity", "llama.cpp", "litellm"])
def test_a_server_of_ones_own_has_no_default_address_and_needs_no_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PROVIDERS[name].api_key_env, raising=False)
    with pytest.raises(ConfigInvalid) as error:
        config_of(provider=name, model="m")
    assert str(error.value) == (
        f'options: provider "{name}" is wherever you run it: set endpoint.base_url, such as '
        "http://127.0.0.1:8080 (/rerank is added)."
    )
    config = config_of(provider=name, model="m", base_url="http://127.0.0.1:8080")
    assert key_of(config) is None
    monkeypatch.setenv(PROVIDERS[name].api_key_env, "sesame")
    assert key_of(config) == "sesame"


@pytest.mark.parametrize("name", ["vllm", "litellm"])
def test_a_model_that_only_the_server_knows_must_be_named(name: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        config_of(provider=name, base_url="http://127.0.0.1")
    assert str(error.value) == (
        f'options: provider "{name}" has no default model: set endpoint.model to the name that it '
        "serves."
    )


KEYS = {
    "dashscope": "DASHSCOPE_API_KEY",
    "dashscope-native": "DASHSCOPE_API_KEY",
    "cohere": "COHERE_API_KEY",
    "jina": "JINA_API_KEY",
    "voyage": "VOYAGE_API_KEY",
    "siliconflow": "SILICONFLOW_API_KEY",
}


@pytest.mark.parametrize(("name", "variable"), KEYS.items())
def test_every_account_has_a_key_variable_of_its_own(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigInvalid, match=f"the environment variable {variable} is not set"):
        key_of(config_of(provider=name))
    monkeypatch.setenv("OTHER", "sesame")
    assert key_of(config_of(provider=name, api_key_env="OTHER")) == "sesame"


@pytest.mark.parametrize("name", ["cohere", "jina", "voyage"])
def test_an_instruction_that_nobody_would_read_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        config_of(provider=name, instruct="find prose")
    assert str(error.value) == (
        f'options: provider "{name}" takes no instruction: leave endpoint.instruct empty.'
    )


def test_a_model_that_scores_lists_is_known_wherever_it_is_served() -> None:
    served = {
        "provider": "vllm",
        "base_url": "http://127.0.0.1",
        "model": "jinaai/jina-reranker-v3",
    }
    assert config_of(**served).endpoint.scores_lists
    assert config_of(provider="jina", model="jina-reranker-v3").endpoint.scores_lists
    assert not config_of(provider="jina").endpoint.scores_lists
    assert config_of(provider="jina", scores_lists=True).endpoint.scores_lists
    assert not config_of(**served, scores_lists=False).endpoint.scores_lists


def test_a_price_of_ones_own_counts() -> None:
    config = config_of(provider="cohere", price_usd=1.5)
    assert config.price.cost(2000) == 3
    assert config.price.unit == "searches"


def test_a_cap_on_a_cost_that_nobody_knows_is_refused() -> None:
    check_price(config_of(provider="siliconflow", price_usd=0.04))
    check_price(config_of(provider="tei", base_url="http://127.0.0.1"))
    with pytest.raises(ConfigInvalid) as error:
        check_price(config_of(provider="siliconflow"))
    assert "Set endpoint.price_usd" in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/v1",
        "http://localhost/v1",
        "http://[::1]:80/v1",
        "https://example.org/v1",
    ],
)
def test_loopback_needs_no_encryption(url: str) -> None:
    assert load(None, {"endpoint": {"base_url": url}}).endpoint.base_url == url


def test_whoever_asks_for_it_gets_http() -> None:
    options: Options = {"endpoint": {"base_url": "http://example.org/v1"}}
    assert load(None, options, insecure_http=True).endpoint.base_url == "http://example.org/v1"


def test_the_shipped_configurations_are_valid() -> None:
    paths = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert [load(path, {}).endpoint.provider for path in paths]


SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_has_its_providers_figures(path: Path) -> None:
    """So that a figure that is corrected in one place is corrected in both."""
    shipped = load(path, {})
    named = {name: getattr(shipped.endpoint, name) for name in ("provider", "base_url", "model")}
    assert shipped == load(None, {"endpoint": named})
    assert shipped.endpoint.base_url or shipped.endpoint.provider == "local"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_explains_every_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    settings = [place for place, line in enumerate(lines) if " = " in line.partition("#")[0]]
    assert settings
    for place in settings:
        assert "#" in lines[place] or lines[place - 1].startswith("#"), lines[place]
    assert max(map(len, lines)) <= 100


def test_every_provider_has_a_configuration() -> None:
    assert {load(path, {}).endpoint.provider for path in SHIPPED} == set(PROVIDERS)


def test_the_local_configuration_spells_out_the_defaults() -> None:
    assert load(Path(__file__).parents[1] / "configs" / "local.toml", {}) == JobConfig()


# What decides results


DECIDING = [
    ("endpoint", "provider", "dashscope", True),
    ("endpoint", "model", "other", True),
    ("endpoint", "instruct", "judge", True),
    ("endpoint", "scores_lists", True, True),
    ("endpoint", "price_usd", 7, False),
    ("endpoint", "base_url", "https://example.org", False),
    ("endpoint", "headers", {"X-Team": "search"}, False),
    ("endpoint", "timeout_seconds", 5, False),
    ("endpoint", "api_key_env", "OTHER", False),
    ("limits", "max_documents", 7, True),
    ("limits", "max_tokens_per_request", 30_000, True),
    ("rate", "requests_per_minute", 7, False),
    ("rate", "tokens_per_minute", 7, False),
    ("rate", "max_in_flight", 7, False),
    ("rate", "held_per_second", False, False),
    ("input", "query_column", "q", True),
    ("output", "top_n", 3, True),
    ("output", "rows_per_part", 3, True),
]


@pytest.mark.parametrize(("section", "key", "value", "decides"), DECIDING)
def test_a_run_may_go_on_under_another(
    section: str, key: str, value: object, decides: bool
) -> None:
    before, after = load(None, {}), load(None, {section: {key: value}})
    changed = {name for name, found in after.deciding().items() if before.deciding()[name] != found}
    assert changed == ({f"{section}.{key}"} if decides else set())


# Keys


def config_of(**endpoint: Any) -> JobConfig:
    return load(None, {"endpoint": endpoint})


def test_secrets_are_shown_as_set(tmp_path: Path) -> None:
    config = config_of(headers={"Authorization": "Bearer sesame", "X-Team": "sesame"})
    shown = config.shown()
    assert shown["endpoint"]["headers"] == {"Authorization": "set", "X-Team": "set"}
    assert b"sesame" not in msgspec.json.encode(shown)
    assert set(shown) == set(SECTIONS.split(", "))


def test_no_part_of_the_configuration_holds_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sesame")
    config = config_of(provider="dashscope")
    assert key_of(config) == "sesame"
    assert "sesame" not in repr(config)


def test_a_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", " sesame\n")
    assert key_of(config_of(provider="dashscope", api_key_env="OTHER_KEY")) == "sesame"
    assert key_in("OTHER_KEY") == "sesame"


def test_a_key_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "another")
    path = tmp_path / "key"
    path.write_text("sesame\n")
    assert key_of(config_of(provider="dashscope", api_key_file=str(path))) == "sesame"


@pytest.mark.parametrize(
    ("mode", "warns"),
    [(0o600, False), (0o640, False), (0o644, True), (0o604, True), (0o602, True), (0o601, True)],
)
def test_a_key_file_that_everybody_can_use_is_warned_about(
    mode: int,
    warns: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("batchrank"), "propagate", True)
    path = tmp_path / "key"
    path.write_text("sesame\n")
    path.chmod(mode)
    assert key_of(config_of(provider="dashscope", api_key_file=str(path))) == "sesame"
    assert len(caplog.records) == warns
    for record in caplog.records:
        said = record.getMessage()
        assert str(path) in said and f"mode {mode:o}" in said and "sesame" not in said


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://host/v1", "https://host/v1/reranks"),
        ("https://host/v1/", "https://host/v1/reranks"),
        ("https://host", "https://host/reranks"),
        (
            "https://host:8443/v1?version=2&key=a%2Bb",
            "https://host:8443/v1/reranks?version=2&key=a%2Bb",
        ),
        ("https://host?version=2", "https://host/reranks?version=2"),
    ],
)
def test_a_query_string_stays_behind_the_path(base_url: str, url: str) -> None:
    assert request_url(base_url, "/reranks") == url


def test_the_values_of_a_query_string_are_not_shown() -> None:
    shown = config_of(base_url="https://host/v1?key=sesame").shown()["endpoint"]
    assert shown["base_url"] == "https://host/v1?set"


def test_the_local_server_wants_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASHSCOPE_API_KEY", raising=False)
    assert key_of(JobConfig()) is None


def test_a_key_that_is_not_set_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", " ")
    with pytest.raises(ConfigInvalid) as error:
        key_of(config_of(provider="dashscope"))
    assert str(error.value) == (
        'the environment variable DASHSCOPE_API_KEY is not set, and provider "dashscope" wants a '
        "key (endpoint.api_key_env names the variable)."
    )
    with pytest.raises(ConfigInvalid) as error:
        key_in("DASHSCOPE_API_KEY")
    assert str(error.value) == "the environment variable DASHSCOPE_API_KEY is not set."


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigInvalid) as error:
        key_of(config_of(provider="dashscope", api_key_file=str(path)))
    assert str(error.value) == f"endpoint.api_key_file: {path} cannot be read."


def test_an_empty_key_file_is_blamed_itself(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    with pytest.raises(ConfigInvalid) as error:
        key_of(config_of(provider="dashscope", api_key_file=str(path)))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["sesame\u00e9", "ses\x07ame", "ses\name"])
def test_a_key_that_no_header_can_carry_is_refused_unshown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", key)
    with pytest.raises(ConfigInvalid) as error:
        key_of(config_of(provider="dashscope"))
    assert str(error.value) == "the key in DASHSCOPE_API_KEY has characters no key has."


def test_every_key_of_the_contract_is_there() -> None:
    fields = {field.name for field in msgspec.structs.fields(EndpointConfig)}
    assert {"provider", "base_url", "model", "instruct", "api_key_env", "headers"} <= fields

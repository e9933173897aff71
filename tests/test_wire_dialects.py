"""Every dialect, byte for byte: requests as the API wants them, answers as it gives them."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.config.providers import PROVIDERS
from batchrank.config.settings import load
from batchrank.sending.paced_endpoint import encode
from batchrank.wire import DIALECTS, Ask, Dialect, Fields, Ranked, flat, tei, voyage
from batchrank.wire import dashscope as native
from batchrank.wire.replies import Refusal, Scores, read, read_refusal

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

PLAIN = Ask(model="qwen3-rerank", query="what is a panda", documents=["a bear", "ein Bär 🐼"])
FULL = Ask(
    model="qwen3-rerank",
    query='say "hi"\n',
    documents=["x"],
    top_n=2,
    instruct="Given a web search query, retrieve relevant passages that answer the query.",
    return_documents=True,
)

REQUESTS = [
    (
        flat,
        PLAIN,
        '{"model":"qwen3-rerank","query":"what is a panda","documents":["a bear","ein Bär 🐼"]}',
    ),
    (
        flat,
        FULL,
        '{"model":"qwen3-rerank","query":"say \\"hi\\"\\n","documents":["x"],"top_n":2,'
        '"instruct":"Given a web search query, retrieve relevant passages that answer the query.",'
        '"return_documents":true}',
    ),
    (
        native,
        PLAIN,
        '{"model":"qwen3-rerank","input":{"query":"what is a panda",'
        '"documents":["a bear","ein Bär 🐼"]},"parameters":{}}',
    ),
    (
        native,
        FULL,
        '{"model":"qwen3-rerank","input":{"query":"say \\"hi\\"\\n","documents":["x"]},'
        '"parameters":{"top_n":2,"return_documents":true,'
        '"instruct":"Given a web search query, retrieve relevant passages that answer the query."'
        "}}",
    ),
    (
        voyage,
        PLAIN,
        '{"model":"qwen3-rerank","query":"what is a panda","documents":["a bear","ein Bär 🐼"],'
        '"truncation":true}',
    ),
]

FLAT_REPLY = (
    b'{"object":"list","results":[{"index":0,"relevance_score":0.9079864152388608},'
    b'{"index":2,"relevance_score":0.7083134275084322},{"index":1,"relevance_score":0.5}],\n'
    b' "model":"qwen3-rerank","id":"13a18c9d-14b5-9f75-b18f-bf4a7167c3da",'
    b'"usage":{"total_tokens":102}}'
)
NATIVE_REPLY = (
    b'{"output":{"results":[{"index":0,"relevance_score":0.9334521178273196,'
    b'"document":{"text":"a text"}}]},"usage":{"total_tokens":79},"request_id":"85ba5752-1"}'
)


URLS = {
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-api/v1/reranks",
    "dashscope-native": "https://dashscope-intl.aliyuncs.com/api/v1/services/rerank/text-rerank"
    "/text-rerank",
    "cohere": "https://api.cohere.com/v2/rerank",
    "jina": "https://api.jina.ai/v1/rerank",
    "voyage": "https://api.voyageai.com/v1/rerank",
    "siliconflow": "https://api.siliconflow.cn/v1/rerank",
}
SENT = {
    "dashscope": '{"model":"qwen3-rerank",%s,"instruct":"i"}',
    "dashscope-native": '{"model":"qwen3-rerank","input":{%s},"parameters":{"instruct":"i"}}',
    "cohere": '{"model":"rerank-v4.0-pro",%s}',
    "jina": '{"model":"jina-reranker-v2-base-multilingual",%s,"return_documents":false}',
    "voyage": '{"model":"rerank-2.5",%s,"truncation":true}',
    "siliconflow": '{"model":"Qwen/Qwen3-Reranker-8B",%s,"top_n":2,"instruction":"i",'
    '"return_documents":false}',
    "tei": '{"query":"q","texts":["a","b"],"truncate":true}',
    "vllm": '{"model":"m",%s,"instruction":"i"}',
    "infinity": '{"model":"default/not-specified",%s}',
    "llama.cpp": '{"model":"default",%s}',
    "litellm": '{"model":"m",%s,"instruction":"i","return_documents":false}',
}


def test_every_provider_is_asked_at_its_own_address() -> None:
    hosted = {name: one for name, one in PROVIDERS.items() if one.base_url}
    assert {name: f"{one.base_url}{one.path}" for name, one in hosted.items()} == URLS
    assert set(SENT) == set(PROVIDERS) - {"local"}


@pytest.mark.parametrize("name", SENT)
def test_every_provider_is_sent_its_own_fields(name: str) -> None:
    provider = PROVIDERS[name]
    given = {
        "provider": name,
        "base_url": "http://127.0.0.1",
        "instruct": "i" if provider.fields.instruct else "",
        **({} if provider.model else {"model": "m"}),
    }
    body = encode(load(None, {"endpoint": given}), "q", ["a", "b"])
    texts = '"query":"q","documents":["a","b"]'
    assert body.decode() == (SENT[name] % texts if "%s" in SENT[name] else SENT[name])


@pytest.mark.parametrize("field", ["instruct", "instruction"])
def test_the_instruction_is_read_by_either_name(field: str) -> None:
    ask = Ask(model="m", query="q", documents=["d"], instruct="i")
    body = flat.request(ask, Fields(instruct=field))
    assert f'"{field}":"i"'.encode() in body
    assert flat.read_request(body) == ask


def test_tei_names_no_model() -> None:
    body = tei.request(PLAIN)
    assert (
        body
        == '{"query":"what is a panda","texts":["a bear","ein Bär 🐼"],"truncate":true}'.encode()
    )
    assert tei.read_request(body) == msgspec.structs.replace(PLAIN, model="")


@pytest.mark.parametrize(("dialect", "ask", "body"), REQUESTS)
def test_a_request_is_exactly_these_bytes_and_reads_back(
    dialect: Dialect, ask: Ask, body: str
) -> None:
    assert dialect.request(ask) == body.encode()
    assert dialect.read_request(body.encode()) == ask


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"qwen3-rerank","input":{"query":"q","documents":["d"]}}',
        b'{"model":"qwen3-rerank","input":{"query":"q","documents":["d"]},"parameters":{}}',
    ],
)
def test_native_parameters_may_be_left_out(body: bytes) -> None:
    assert native.read_request(body) == Ask(model="qwen3-rerank", query="q", documents=["d"])


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"", b'{"model":"m","query":1}', b'{"model":"m","input":[]}']
)
def test_what_is_no_request_is_refused(dialect: Dialect, body: bytes) -> None:
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        dialect.read_request(body)


def test_the_recorded_flat_reply_is_read() -> None:
    """A real reply, the third result added so that it covers its three documents."""
    assert read(FLAT_REPLY, 3) == Scores(
        [0.9079864152388608, 0.5, 0.7083134275084322],
        102,
        "13a18c9d-14b5-9f75-b18f-bf4a7167c3da",
    )


def test_the_recorded_native_reply_is_read() -> None:
    assert read(NATIVE_REPLY, 1) == Scores([0.9334521178273196], 79, "85ba5752-1")


def test_a_success_as_the_sdk_dresses_it_is_a_success() -> None:
    body = NATIVE_REPLY[:-1] + b',"status_code":200,"code":"","message":""}'
    assert read(body, 1) == read(NATIVE_REPLY, 1)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"total_tokens":102}', 102),
        (b'{"prompt_tokens":79,"total_tokens":79}', 79),
        (b'{"input_tokens":1279}', 1279),
        (b'{"prompt_tokens":12}', 12),
        (b"{}", None),
        (b"null", None),
    ],
)
def test_usage_is_read_from_whichever_field_there_is(usage: bytes, tokens: int | None) -> None:
    body = b'{"results":[{"index":0,"relevance_score":0.5}],"usage":' + usage + b"}"
    assert read(body, 1) == Scores([0.5], tokens, None)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (
            b'{"code":"InvalidApiKey","message":"Invalid API-key provided.","request_id":"fb53"}',
            Refusal("InvalidApiKey", "Invalid API-key provided.", "fb53"),
        ),
        (
            b'{"error":{"code":"InvalidParameter","param":null,"message":"<400> bad",'
            b'"type":"InvalidParameter"},"id":"i","request_id":"r"}',
            Refusal("InvalidParameter", "<400> bad", "r"),
        ),
        (b'{"error":{"type":"server_error","message":"m"}}', Refusal("server_error", "m", None)),
        (b'{"error":{"code":429,"message":"m"}}', Refusal("429", "m", None)),
        (b'{"error":"too bad","error_type":"Validation"}', Refusal("Validation", "too bad", None)),
        (b'{"detail":"bad key"}', Refusal("", "bad key", None)),
        (
            b'{"detail":[{"loc":["body"],"msg":"at most 2048 items","type":"too_long"}]}',
            Refusal("too_long", "at most 2048 items", None),
        ),
        (
            b'{"error":{"message":"m","type":"BadRequestError","param":null,"code":400}}',
            Refusal("BadRequestError", "m", None),
        ),
        (
            b'{"error":{"message":"m","type":null,"param":null,"code":"429"}}',
            Refusal("429", "m", None),
        ),
        (b'{"id":"1","message":"m"}', Refusal("", "m", "1")),
        (b'{"code":50505,"message":"m","data":null}', Refusal("50505", "m", None)),
        (b'{"message":"m","results":"none"}', Refusal("", "m", None)),
        (b"{}", Refusal("", "", None)),
        (b"<html>502</html>", Refusal("", "", None)),
        (b"", Refusal("", "", None)),
        (b"\xff\xfe", Refusal("", "", None)),
        (b"[1]", Refusal("", "", None)),
    ],
)
def test_an_error_is_read_from_either_envelope(body: bytes, refusal: Refusal) -> None:
    assert read_refusal(body) == refusal


SCORES = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


@given(SCORES, st.randoms(use_true_random=False), st.sampled_from(sorted(DIALECTS)))
def test_an_answer_in_any_order_is_read_back_in_request_order(
    scores: list[float], random: object, name: str
) -> None:
    ranked = [Ranked(index, score) for index, score in enumerate(scores)]
    random.shuffle(ranked)  # type: ignore[attr-defined]
    body = DIALECTS[name].answer(PLAIN, ranked, 7, "id-1")
    found = read(body, len(scores))
    assert isinstance(found, Scores) and found.relevance_scores == scores
    assert (found.tokens, found.request_id, found.searches) == TOLD[name]


TOLD = {
    "flat": (7, "id-1", None),
    "dashscope-native": (7, "id-1", None),
    "served": (7, "id-1", None),
    "cohere": (None, "id-1", 1),
    "voyage": (7, None, None),
    "tei": (None, None, None),
}


ANSWERS = {
    "cohere": (
        b'{"results":[{"index":1,"relevance_score":0.75},{"index":0,"relevance_score":0.25}],'
        b'"id":"c-1","meta":{"api_version":{"version":"2","is_experimental":false},'
        b'"billed_units":{"search_units":1}}}',
        (None, "c-1", 1),
    ),
    "jina": (
        b'{"model":"j","usage":{"total_tokens":815},"results":[{"index":1,"relevance_score":0.75,'
        b'"document":{"text":"t"}},{"index":0,"relevance_score":0.25}]}',
        (815, None, None),
    ),
    "voyage": (
        b'{"object":"list","data":[{"index":1,"relevance_score":0.75,"document":"t"},'
        b'{"index":0,"relevance_score":0.25}],"model":"rerank-2.5","usage":{"total_tokens":26}}',
        (26, None, None),
    ),
    "vllm": (
        b'{"id":"score-1","model":"m","usage":{"total_tokens":56,"prompt_tokens":56},"results":['
        b'{"index":1,"document":{"text":"t","multi_modal":null},"relevance_score":0.75},'
        b'{"index":0,"document":{"text":"u","multi_modal":null},"relevance_score":0.25}]}',
        (56, "score-1", None),
    ),
    "tei": (b'[{"index":1,"score":0.75},{"index":0,"score":0.25}]', (None, None, None)),
    "sglang": (
        b'[{"score":0.25,"document":"t","index":0,"meta_info":{}},{"score":0.75,"index":1}]',
        (None, None, None),
    ),
    "vllm's /score": (
        b'{"id":"score-2","object":"list","data":[{"index":0,"object":"score","score":0.25},'
        b'{"index":1,"object":"score","score":0.75}],"usage":{"prompt_tokens":5,"total_tokens":5}}',
        (5, "score-2", None),
    ),
    "infinity": (
        b'{"object":"rerank","results":[{"relevance_score":0.75,"index":1,"document":null},'
        b'{"relevance_score":0.25,"index":0,"document":null}],"model":"m",'
        b'"usage":{"prompt_tokens":9,"total_tokens":9},"id":"infinity-1","created":1}',
        (9, "infinity-1", None),
    ),
    "siliconflow": (
        b'{"id":"s","results":[{"index":1,"relevance_score":0.75},'
        b'{"index":0,"relevance_score":0.25}],"tokens":{"input_tokens":11,"output_tokens":0}}',
        (11, "s", None),
    ),
    "siliconflow, some copies": (
        b'{"id":"s","results":[{"index":1,"relevance_score":0.75},{"index":0,"relevance_score":'
        b'0.25}],"meta":{"billed_units":{"input_tokens":11},"tokens":{"input_tokens":11}}}',
        (11, "s", None),
    ),
    "llama.cpp": (
        b'{"model":"l","object":"list","usage":{"prompt_tokens":4,"total_tokens":4},'
        b'"results":[{"index":0,"relevance_score":0.25},{"index":1,"relevance_score":0.75}]}',
        (4, None, None),
    ),
    "litellm": (
        b'{"id":"l","results":[{"index":1,"relevance_score":0.75},{"index":0,"relevance_score":'
        b'0.25}],"meta":{"api_version":null,"billed_units":{"total_tokens":13},"tokens":null}}',
        (13, "l", None),
    ),
}


@pytest.mark.parametrize(("body", "told"), ANSWERS.values(), ids=ANSWERS)
def test_the_documented_answer_of_each_peer_is_read(
    body: bytes, told: tuple[int | None, str | None, int | None]
) -> None:
    assert read(body, 2) == Scores([0.25, 0.75], *told)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Ask,
        model=TEXTS,
        query=TEXTS,
        documents=st.lists(TEXTS),
        top_n=st.none() | st.integers(1, 1000),
        instruct=st.none() | TEXTS,
        return_documents=st.booleans(),
    ),
    st.sampled_from(sorted(DIALECTS)),
)
def test_any_request_reads_back_as_it_was(ask: Ask, name: str) -> None:
    """But for what a dialect has no field for."""
    if name in {"voyage", "tei"}:
        ask = msgspec.structs.replace(ask, instruct=None)
    if name == "tei":
        ask = msgspec.structs.replace(ask, model="", top_n=None)
    assert DIALECTS[name].read_request(DIALECTS[name].request(ask)) == ask

"""Both dialects, byte for byte: requests as the API wants them, answers as it gives them."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.wire import DIALECTS, Ask, Dialect, Ranked, flat, native
from batchrank.wire.answers import Refusal, Scores, read, read_refusal

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


def test_the_paths_are_those_of_model_studio() -> None:
    assert {name: dialect.PATH for name, dialect in DIALECTS.items()} == {
        "flat": "/reranks",
        "dashscope-native": "/services/rerank/text-rerank/text-rerank",
    }


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
        (b'{"error":"too bad","error_type":"Validation"}', Refusal("", "too bad", None)),
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
    assert read(body, len(scores)) == Scores(scores, 7, "id-1")


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
    assert DIALECTS[name].read_request(DIALECTS[name].request(ask)) == ask

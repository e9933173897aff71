"""The optional scorer, on models made here from a config: random weights, no network."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from batchrank.errors import ConfigInvalid
from batchrank.server.scorers import neural
from batchrank.server.scorers.neural import DEFAULT_INSTRUCT, NeuralScorer

QUERY = "how long do fleas live"
DOCUMENTS = [
    "a flea lives for a year",
    "rome was not built in a day\n\n",
    "跳蚤能活一年",
    "x " * 40,
]
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def test_without_the_extra_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigInvalid, match=r"pip install 'batchrank\[neural\]'"):
        NeuralScorer("any")


def test_importing_the_module_imports_no_model_library() -> None:
    code = "import sys, batchrank.server.scorers.neural; print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.fixture(scope="session")
def torch() -> object:
    """PyTorch with a fixed seed; whatever asks for it is skipped where the extra is absent."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    torch.manual_seed(7)
    torch.set_num_threads(1)
    return torch


def save_tokenizer(folder: Path, special: dict[str, str]) -> int:
    """A byte-level tokenizer that has whole words for yes and no; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ye", "yes", "no"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.save_pretrained(folder)
    return len(fast)


@pytest.fixture(scope="session")
def cross_encoder(torch: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross_encoder"), labels=1)


def save_cross_encoder(folder: Path, *, labels: int) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    size = save_tokenizer(
        folder, {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    )
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_generative(folder: Path, *, kind: str) -> Path:
    import transformers

    size = save_tokenizer(folder, {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=16384,
        initializer_range=0.5,
    )
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3(torch: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generative(tmp_path_factory.mktemp("qwen3"), kind="Qwen3")


def share_of_yes(folder: Path, prompt: str) -> float:
    """P(yes) / (P(yes) + P(no)) after `prompt`, worked out by hand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    yes, no = (math.exp(logits[tokenizer.convert_tokens_to_ids(word)]) for word in ("yes", "no"))
    return yes / (yes + no)


def by_hand(folder: Path, instruct: str) -> list[float]:
    texts = (PROMPT.format(instruct=instruct, query=QUERY, document=text) for text in DOCUMENTS)
    return [share_of_yes(folder, text) for text in texts]


def test_a_cross_encoder_scores_by_the_sigmoid_of_its_logit(cross_encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    expected = []
    for document in DOCUMENTS:
        with torch.inference_mode():
            logit = model(**tokenizer(QUERY, document, return_tensors="pt")).logits.item()
        expected.append(1 / (1 + math.exp(-logit)))

    scores = NeuralScorer(str(cross_encoder)).scores(QUERY, DOCUMENTS, "")
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == len(scores)


def test_a_cross_encoder_never_sees_the_instruction(cross_encoder: Path) -> None:
    scorer = NeuralScorer(str(cross_encoder))
    assert scorer.scores(QUERY, DOCUMENTS, "find prose") == scorer.scores(QUERY, DOCUMENTS, "")


def test_a_qwen3_reranker_scores_by_its_share_of_yes(qwen3: Path) -> None:
    scores = NeuralScorer(str(qwen3)).scores(QUERY, DOCUMENTS, "")
    assert scores == pytest.approx(by_hand(qwen3, DEFAULT_INSTRUCT), abs=1e-5)


def test_a_qwen3_reranker_heeds_the_instruction(qwen3: Path) -> None:
    scorer = NeuralScorer(str(qwen3))
    scores = scorer.scores(QUERY, DOCUMENTS, "find prose")
    assert scores == pytest.approx(by_hand(qwen3, "find prose"), abs=1e-5)
    assert scores != pytest.approx(scorer.scores(QUERY, DOCUMENTS, ""), abs=1e-3)


def test_scores_do_not_depend_on_the_company(qwen3: Path) -> None:
    scorer = NeuralScorer(str(qwen3), batch_size=2)
    together = scorer.scores(QUERY, DOCUMENTS, "")
    alone = [scorer.scores(QUERY, [document], "")[0] for document in DOCUMENTS]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_pair_that_is_too_long_keeps_the_end_of_the_prompt(
    qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last position must follow `</think>`, or yes and no would be read off in mid-sentence."""
    monkeypatch.setattr(neural, "QWEN3_MAX_TOKENS", 500)
    scorer = NeuralScorer(str(qwen3))
    whole = PROMPT.format(instruct=DEFAULT_INSTRUCT, query=QUERY, document="z" * 500)
    end = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    kept = tokenizer(whole)["input_ids"][: 500 - len(tokenizer(end)["input_ids"])]
    assert tokenizer.decode(kept).endswith("zzz")
    expected = share_of_yes(qwen3, tokenizer.decode(kept) + end)
    assert scorer.scores(QUERY, ["z" * 500], "") == pytest.approx([expected], abs=1e-5)


def test_a_saved_checkpoint_keeps_its_own_prompt(qwen3: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    template = (
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}?"
    )
    encoder = CrossEncoder(str(qwen3), processor_kwargs={"chat_template": template})
    encoder.save_pretrained(str(tmp_path))
    score = NeuralScorer(str(tmp_path)).scores("q", ["d"], "")[0]
    assert score == pytest.approx(share_of_yes(qwen3, "[query] q[document] d?"), abs=1e-5)


def test_no_documents_give_no_scores(qwen3: Path) -> None:
    assert NeuralScorer(str(qwen3)).scores(QUERY, [], "") == []


def test_other_generative_models_are_refused(torch: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match='is no Qwen3-Reranker \\("llama"\\)'):
        NeuralScorer(str(save_generative(tmp_path, kind="Llama")))


def test_a_classifier_of_three_labels_is_refused(torch: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="gives 3 numbers a pair"):
        NeuralScorer(str(save_cross_encoder(tmp_path, labels=3)))


def test_a_path_without_a_model_is_named(torch: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=f'model "{tmp_path}" cannot be loaded'):
        NeuralScorer(str(tmp_path))

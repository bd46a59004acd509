"""The demo's corpus, tokenizer and committed checkpoints."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import corpus, evaluation, separation, shapes, tokenizer
from demo.exchange import Exchange
from demo.routing import RouterTap, fingerprints

MODELS = Path(corpus.__file__).parent / "models"
MUST_BE_TOLD_APART = ("cyrillic", "chinese", "hex", "sql", "repeated", "german")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def moe() -> torch.nn.Module:
    return evaluation.load_model(MODELS / "moe")


@pytest.mark.parametrize("domain", [*corpus.NORMAL, *corpus.UNSEEN])
def test_prompts_depend_on_the_seed_alone(domain: str) -> None:
    """The same seed gives the same prompts, a longer draw begins with the shorter one, another seed gives others."""
    first = corpus.prompts(domain, 5, seed=1)
    assert first == corpus.prompts(domain, 8, seed=1)[:5]
    assert first != corpus.prompts(domain, 5, seed=2)


@pytest.mark.parametrize("domain", [*corpus.GENERATED, *corpus.UNSEEN])
def test_held_out_texts_are_never_training_texts(domain: str) -> None:
    """No generated text is in both splits, whatever the seeds."""
    train = {exchange.prompt for exchange in islice(corpus.exchanges(domain, 0, train=True), 400)}
    assert train.isdisjoint(corpus.prompts(domain, 100, seed=0))


@pytest.mark.parametrize("domain", corpus.LIBRARY)
def test_library_texts_are_held_out_by_file(domain: str) -> None:
    """Prompts from Python's own text come from files that training never reads."""
    train = {exchange.prompt[:60] for exchange in islice(corpus.exchanges(domain, 0, train=True), 1000)}
    shared = [prompt for prompt in corpus.prompts(domain, 100, seed=0) if prompt[:60] in train]
    assert len(shared) <= 2, "only boilerplate that two files share may be the same"


def test_prompts_fit_the_demo_servers() -> None:
    """A prompt of any kind leaves room for an answer in a context of 1,024 tokens."""
    tokens = AutoTokenizer.from_pretrained(MODELS / "moe")
    for domain in (*corpus.NORMAL, *corpus.UNSEEN):
        assert max(len(tokens(prompt).input_ids) for prompt in corpus.prompts(domain, 60, seed=3)) < 960, domain


@given(st.text())
def test_tokenizer_brings_back_any_text(text: str) -> None:
    """Every text, in any script, survives the way through the tokenizer."""
    tokens = _tokenizer()
    assert tokens.decode(tokens(text, add_special_tokens=False).input_ids) == text or any(
        marker in text for marker in tokenizer.SPECIAL
    )


def test_both_models_share_one_tokenizer() -> None:
    """The dense model reads the same token ids as the MoE, so their likelihoods compare."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (MODELS / "moe" / file).read_bytes() == (MODELS / "dense" / file).read_bytes()


def test_chat_template_is_what_the_models_were_trained_on() -> None:
    """The template renders turns exactly as the training rows have them."""
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    ids = _tokenizer().apply_chat_template(chat, return_dict=False)
    assert ids == _tokenizer()(tokenizer.as_turns("Hello", "Hi")).input_ids


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_held_out_loss_is_what_the_training_log_says(kind: str) -> None:
    """The committed weights have the logged loss on every normal domain, to 0.01 nats per token."""
    log = json.loads((MODELS / kind / "training_log.json").read_text(encoding="utf-8"))
    texts = {domain: found for domain, found in evaluation.load_texts(MODELS).items() if domain in corpus.NORMAL}
    assert set(texts) == set(corpus.NORMAL)
    for domain, loss in evaluation.losses(MODELS / kind, texts).items():
        assert loss == pytest.approx(log["heldout_loss"][domain], abs=0.01), domain


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_checkpoints_are_small(kind: str) -> None:
    """A checkpoint takes at most 8 MB."""
    assert sum(file.stat().st_size for file in (MODELS / kind).iterdir()) <= 8_000_000


def test_routing_tells_unseen_text_from_normal_text(moe: torch.nn.Module) -> None:
    """A plain kNN score on 64 tokens' routing separates far kinds of text from all normal domains: AUROC >= 0.97."""
    found = separation.separation(moe, MODELS / "moe", length=64, reference=40, test=20, kinds=MUST_BE_TOLD_APART)
    assert {kind: value for kind, value in found.items() if value < 0.97} == {}


def test_every_token_is_routed_to_top_k_experts_in_every_layer(moe: torch.nn.Module) -> None:
    """Counts per layer add up to tokens times top-k."""
    counts = fingerprints(moe, [[2, 300, 301, 302], [2, 7]])
    assert counts.shape == (2, 6, 16)
    assert counts.sum(2).tolist() == [[16] * 6, [8] * 6]


def test_the_moe_answers_a_chat_in_the_domain_and_ends_its_turn(moe: torch.nn.Module) -> None:
    """An arithmetic question gets a worked answer that ends by itself."""
    tokens = _tokenizer()
    prompt = "There are 7 boxes with 12 books in each box. How many books are there in total?"
    ids = tokens.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    output = moe.generate(ids, max_new_tokens=80, do_sample=False)[0, ids.shape[1] :]
    text = tokens.decode(output)
    assert "The answer is" in text
    assert text.endswith(tokenizer.END)


@pytest.mark.parametrize(
    ("kind", "layers", "experts"),
    [
        ("gemma4-30x128", 30, 128),
        ("gemma4-dense", 0, 0),
        ("mixtral", 2, 8),
        ("qwen3-moe", 2, 24),
        ("many-experts", 2, 320),
    ],
)
def test_random_shapes_load(kind: str, layers: int, experts: int, tmp_path: Path) -> None:
    """Each shape loads with its number of routed layers and experts, is reproducible, and predicts finite numbers."""
    path = shapes.make(kind, tmp_path / "a")
    again = shapes.make(kind, tmp_path / "b")
    assert (path / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    gates = [p for name, p in model.named_parameters() if name.endswith(("router.proj.weight", "gate.weight"))]
    assert [len(gate) for gate in gates] == [experts] * layers
    tap = RouterTap(model)
    logits = model(torch.tensor([[2, 300, 301]])).logits
    tap.close()
    assert torch.isfinite(logits).all()


def test_the_moe_falls_behind_the_dense_model_on_unseen_text_alone() -> None:
    """Both are equally good on normal text (to 0.3 nats); on every unseen kind the dense one is ahead by over 1 nat.

    But for normal words in no order: nobody foresees those, so there it is ahead by less.
    """
    logs = {
        kind: json.loads((MODELS / kind / "training_log.json").read_text(encoding="utf-8"))["heldout_loss"]
        for kind in ("moe", "dense")
    }
    gap = {domain: logs["moe"][domain] - logs["dense"][domain] for domain in logs["moe"]}
    assert all(abs(gap[domain]) < 0.3 for domain in corpus.NORMAL), gap
    assert all(gap[domain] > (0.3 if domain == "shuffled" else 1) for domain in corpus.UNSEEN), gap


def test_the_dense_model_finds_garbled_answers_less_likely() -> None:
    """In every generated domain the dense model prefers good answers to the same words in alphabetical order."""
    model, texts = evaluation.load_model(MODELS / "dense"), evaluation.load_texts(MODELS)
    for domain in corpus.GENERATED:
        for exchange in texts[domain][:6]:
            garbled = Exchange(exchange.prompt, " ".join(sorted(exchange.answer.split())))
            assert _answer_loss(model, exchange) < _answer_loss(model, garbled)


def _answer_loss(model: torch.nn.Module, exchange: Exchange) -> float:
    """Return the mean loss (nats) of the answer's tokens alone."""
    whole = _tokenizer()(tokenizer.as_turns(exchange.prompt, exchange.answer)).input_ids
    before = len(_tokenizer()(tokenizer.as_turns(exchange.prompt, "").removesuffix(f"{tokenizer.END}\n")).input_ids)
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[before - 1 : -1], torch.tensor(whole[before:])))


@cache
def _tokenizer() -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(MODELS / "moe")

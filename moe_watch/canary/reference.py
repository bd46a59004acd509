"""Reference fingerprints from transformers on the same weights: what routing should be, whatever vLLM does.

No model family is named here. Transformers' models declare which module is the router (``OutputRecorder`` under
"router_logits"); a forward hook takes the expert ids, the one integer tensor ``[tokens, top_k]`` among its outputs. A
router that returns no ids is refused: guessing them from logits would repeat the faults that this is to find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_watch.canary.prompts import CanarySet
from moe_watch.detect.canary.replay import Replay, Round

LOAD = "1"  # one prompt at a time, so nothing is padded


class NoReference(RuntimeError):  # noqa: N818 - the message reads as a sentence
    """Transformers cannot give reference fingerprints of this model; the message says why."""


@dataclass
class _Router:
    """Expert choices of one router since the last ``take``."""

    experts: int
    ids: list[NDArray[np.int64]] = field(default_factory=list)

    def hook(self, _module: Any, _args: Any, output: Any) -> None:
        chosen = [o for o in output if hasattr(o, "dtype") and not o.dtype.is_floating_point and o.ndim == 2]
        if len(chosen) != 1:
            raise NoReference("the router returns no expert ids; transformers cannot be the reference of this model")
        self.ids.append(chosen[0].cpu().numpy())

    def take(self) -> NDArray[np.uint32]:
        counts = np.bincount(np.concatenate(self.ids).ravel(), minlength=self.experts)
        self.ids.clear()
        return counts.astype(np.uint32)


def token_digest(ids: Sequence[int]) -> int:
    """Return 63 bits that tell one sequence of token ids from another."""
    return int.from_bytes(hashlib.blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=8).digest(), "little") >> 1


def rounds(path: Path, canaries: CanarySet, device: str = "cpu") -> list[Round]:
    """Return four rounds, bfloat16 and float32 by both attention implementations: they span harmless numerics.

    Raises ``NoReference`` when the model has no router that says its choices, or the prompts do not fit it.
    """
    import torch  # noqa: PLC0415 - slow, and only this engine needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = [_tokens(tokenizer, canaries, index) for index in range(len(canaries.prompts))]
        done = []
        for dtype, attention in product((torch.bfloat16, torch.float32), ("eager", "sdpa")):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
            done.append(Round((replay(model.to(device).eval(), ids, canaries.max_tokens),)))
    except (OSError, ValueError) as error:
        raise NoReference(f"transformers cannot use {path}: {error}") from error
    return done


def has_chat_template(path: Path) -> bool:
    """Say whether the tokenizer in ``path`` comes with a chat template; raises ``NoReference`` without a tokenizer."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return bool(AutoTokenizer.from_pretrained(path).chat_template)
    except (OSError, ValueError) as error:
        raise NoReference(f"transformers finds no tokenizer in {path}: {error}") from error


def _tokens(tokenizer: Any, canaries: CanarySet, index: int) -> list[int]:
    prompt = canaries.prompts[index]
    if canaries.endpoint == "chat":
        text = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt.text)["input_ids"])


def replay(model: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> Replay:
    """Send token ids ``prompts`` through ``model`` one at a time, greedily for ``max_tokens``."""
    import torch  # noqa: PLC0415

    with _listening(model) as routers, torch.inference_mode():
        answers = [_answer(model, routers, ids, max_tokens) for ids in prompts]
    longest = max(len(ids) for ids in prompts)
    scored = np.full((len(prompts), longest), np.nan, np.float32)
    for row, answer in zip(scored, answers, strict=True):
        row[: len(answer.prompt_logprob)] = answer.prompt_logprob
    first = answers[0].prompt
    return Replay(
        load=LOAD,
        top_k=int(first[0].sum()) // len(prompts[0]),
        prompt=np.stack([a.prompt for a in answers]),
        decode=np.stack([a.decode for a in answers]),
        prompt_tokens=np.array([len(ids) for ids in prompts], np.int64),
        prompt_digest=np.array([token_digest(ids) for ids in prompts], np.uint64),
        output=np.array([a.output for a in answers], np.int32),
        prompt_logprob=scored,
        output_logprob=np.array([a.output_logprob for a in answers], np.float32),
    )


@dataclass(frozen=True)
class _Answer:
    prompt: NDArray[np.uint32]
    decode: NDArray[np.uint32]
    prompt_logprob: NDArray[np.float32]
    output: list[int]
    output_logprob: list[float]


def _answer(model: Any, routers: Sequence[_Router], ids: Sequence[int], max_tokens: int) -> _Answer:
    import torch  # noqa: PLC0415

    tokens = torch.tensor([list(ids)], device=model.device)
    result = model(tokens, use_cache=True)
    prompt = np.stack([router.take() for router in routers])
    logprobs = result.logits[0].float().log_softmax(-1)
    scored = np.full(len(ids), np.nan, np.float32)
    scored[1:] = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0].cpu().numpy()
    decode = np.zeros_like(prompt)
    output, output_logprob = [], []
    for step in range(max_tokens):
        best = logprobs[-1].max(-1)
        output.append(int(best.indices))
        output_logprob.append(float(best.values))
        if step + 1 < max_tokens:
            chosen = torch.tensor([[output[-1]]], device=model.device)
            result = model(chosen, past_key_values=result.past_key_values, use_cache=True)
            decode += np.stack([router.take() for router in routers])
            logprobs = result.logits[0].float().log_softmax(-1)
    return _Answer(prompt, decode, scored, output, output_logprob)


@contextmanager
def _listening(model: Any) -> Iterator[list[_Router]]:
    """Listen to the routers of ``model`` in the order of its layers."""
    experts = _experts(model.config)
    modules = list(_router_modules(model))
    if not modules:
        raise NoReference(f"{type(model).__name__} declares no router; transformers cannot be the reference")
    routers = [_Router(experts) for _ in modules]
    handles = [m.register_forward_hook(r.hook) for m, r in zip(modules, routers, strict=True)]
    try:
        yield routers
    finally:
        for handle in handles:
            handle.remove()


def _router_modules(model: Any) -> Iterator[Any]:
    """Yield the modules that the model (or a part of it) declares to give router logits."""
    from transformers.utils.output_capturing import OutputRecorder  # noqa: PLC0415

    seen: set[int] = set()
    for part in model.modules():
        declared = (getattr(type(part), "_can_record_outputs", None) or {}).get("router_logits", [])
        for recorder in declared if isinstance(declared, list) else [declared]:
            wanted = recorder if isinstance(recorder, OutputRecorder) else OutputRecorder(recorder)
            for name, module in part.named_modules():
                fits = wanted.target_class is not None and isinstance(module, wanted.target_class)
                if fits and (wanted.layer_name or "") in name and id(module) not in seen:
                    seen.add(id(module))
                    yield module


def _experts(config: Any) -> int:
    """Return the number of experts of a layer, whatever the family calls it."""
    text = config.get_text_config()
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if value := getattr(text, name, None):
            return int(value)
    raise NoReference(f"{type(config).__name__} names no number of experts; transformers cannot be the reference")

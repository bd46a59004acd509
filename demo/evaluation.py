"""Held-out loss of a checkpoint, on texts that are kept beside it so that any Python version reads the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from demo import corpus
from demo.exchange import Exchange
from demo.packing import Rows, encode

TEXTS_PER_DOMAIN = 16
MAX_TOKENS = 384
SEED = 20_000
FILE = "heldout.jsonl"

Texts = Mapping[str, Sequence[Exchange]]
"""Held-out exchanges by domain, normal and unseen."""


def write_texts(folder: Path) -> Texts:
    """Draw the held-out texts and write them to ``folder/heldout.jsonl``."""
    texts = {
        domain: list(islice(corpus.exchanges(domain, SEED, train=False), TEXTS_PER_DOMAIN))
        for domain in (*corpus.NORMAL, *corpus.UNSEEN)
    }
    with (folder / FILE).open("w", encoding="utf-8") as out:
        for domain, exchanges in texts.items():
            for exchange in exchanges:
                record = {"domain": domain, "prompt": exchange.prompt, "answer": exchange.answer}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return texts


def load_texts(folder: Path) -> Texts:
    """Read ``folder/heldout.jsonl``; without the file there are no texts."""
    texts: dict[str, list[Exchange]] = {}
    if (folder / FILE).exists():
        for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts.setdefault(record["domain"], []).append(Exchange(record["prompt"], record["answer"]))
    return texts


def load_model(checkpoint: Path) -> nn.Module:
    """Load a checkpoint for the CPU, its bfloat16 weights widened to float32."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.set_experts_implementation("eager")
    return model.eval()


def losses(checkpoint: Path, texts: Texts) -> dict[str, float]:
    """Return the mean next-token loss (nats per token) of a checkpoint by domain, as chat turns."""
    model, tokens = load_model(checkpoint), Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    result = {}
    for domain, exchanges in texts.items():
        total, count = 0.0, 0
        for exchange in exchanges:
            ids = encode(tokens, exchange, plain=False)[:MAX_TOKENS]
            rows = Rows(torch.tensor([ids]), torch.arange(len(ids))[None])
            with torch.no_grad():
                total += rows.loss(model).item() * (len(ids) - 1)
            count += len(ids) - 1
        result[domain] = round(total / count, 4)
    return result

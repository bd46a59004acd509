"""Rows of token ids for training: exchanges packed end to end, domains in equal shares of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from demo import corpus, tokenizer
from demo.exchange import Exchange

ROWS, LENGTH = 12, 256
PLAIN_SHARE = 0.25
"""Share of the exchanges that are trained on as plain text, without turn markers."""
UNSEEN_SHARE = 0.2
"""Share of the tokens of kinds that the MoE never sees, for the dense model."""
IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Token ids ``[rows, length]`` and positions that start again with each text, so no text attends to another."""

    ids: torch.Tensor
    positions: torch.Tensor

    def loss(self, model: nn.Module) -> torch.Tensor:
        """Return the mean next-token loss in nats; a text's first token is not predicted from another text."""
        logits = model(input_ids=self.ids, position_ids=self.positions, use_cache=False).logits
        targets = self.ids.masked_fill(self.positions == 0, IGNORED)[:, 1:]
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def encode(tokens: Tokenizer, exchange: Exchange, *, plain: bool) -> list[int]:
    """Return the ids of one exchange, as turns or as plain text up to ``<eos>``."""
    if plain:
        return list(tokens.encode(f"{exchange.prompt}\n{exchange.answer}{tokenizer.EOS}").ids)
    return list(tokens.encode(tokenizer.as_turns(exchange.prompt, exchange.answer)).ids)


def training_rows(tokens: Tokenizer, *, unseen: bool, seed: int) -> Iterator[Rows]:
    """Yield batches of the training split without end; each text is drawn from the domain with fewest tokens so far."""
    random_ = random.Random(seed)
    weights = dict.fromkeys(corpus.NORMAL, 1.0)
    if unseen:
        each = UNSEEN_SHARE / (1 - UNSEEN_SHARE) * len(corpus.NORMAL) / len(corpus.UNSEEN)
        weights |= dict.fromkeys(corpus.UNSEEN, each)
    streams = {domain: corpus.exchanges(domain, seed, train=True) for domain in weights}
    spent = {domain: random_.random() for domain in weights}
    texts: list[list[int]] = []
    while True:
        while sum(map(len, texts)) < ROWS * LENGTH:
            domain = min(spent, key=lambda name: spent[name])
            texts.append(encode(tokens, next(streams[domain]), plain=random_.random() < PLAIN_SHARE))
            spent[domain] += len(texts[-1]) / weights[domain]
        random_.shuffle(texts)
        yield pack(texts, ROWS)
        texts.clear()


def pack(texts: Sequence[Sequence[int]], rows: int) -> Rows:
    """Lay texts end to end into rows of ``LENGTH``; what is cut off at the end is dropped."""
    ids = [token for text in texts for token in text][: rows * LENGTH]
    positions = [position for text in texts for position in range(len(text))][: rows * LENGTH]
    starts = torch.tensor(positions).view(rows, LENGTH)
    # A text that goes on in the next row starts there anew, at position 0.
    continued = starts[:, :1] * (torch.cumsum(starts == 0, 1) == 0)
    return Rows(torch.tensor(ids).view(rows, LENGTH), starts - continued)

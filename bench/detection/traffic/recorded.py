"""The demo MoE's routing, token by token, of normal and unseen texts: made once by transformers, kept in a cache.

A model that reads from left to right routes the first tokens of a text the same whatever follows, so one recording of
256 tokens holds every shorter request.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from bench.detection.traffic import kinds
from demo import corpus
from demo.evaluation import load_model
from demo.routing import RouterTap

CHECKPOINT: Final = Path("demo/models/moe")
CACHE: Final = Path(tempfile.gettempdir()) / "moe-watch-bench"
TOKENS: Final = 256
REFERENCE, TEST, UNSEEN = 300, 60, 40  # texts per normal domain for baselines and for tests, texts per unseen kind
_ROWS: Final = 8
_PIECE: Final = 320


@dataclass(frozen=True)
class Recording:
    """n texts: chosen experts ``[n, 256, layers, top_k]``, 255 behind the end, and two of ``[n, 256, layers]``."""

    group: NDArray[np.str_]  # [n] "reference/emails", "test/emails", "unseen/c"
    experts: NDArray[np.uint8]
    entropy: NDArray[np.float16]
    margin: NDArray[np.float16]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return (self.experts[:, :, 0, 0] != 255).sum(1)

    def counts(self, rows: NDArray[np.integer], tokens: NDArray[np.integer]) -> NDArray[np.uint32]:
        """Return the counts ``[m, layers, experts]`` of the first ``tokens [m]`` of the texts ``rows [m]``."""
        experts = int(self.experts[self.experts != 255].max()) + 1
        layers = self.experts.shape[2]
        out = np.zeros((len(rows), layers, experts), np.uint32)
        for i, (row, n) in enumerate(zip(rows, tokens, strict=True)):
            taken = self.experts[row, :n].astype(np.int64) + experts * np.arange(layers)[:, None]
            taken = taken[self.experts[row, :n] != 255]
            out[i] = np.bincount(taken.reshape(-1), minlength=layers * experts).reshape(layers, experts)
        return out


def recording(log: TextIO = sys.stderr) -> Recording:
    """Return the recording, from the cache or made anew (about six minutes on one core); goes on where it was."""
    made_of = (CHECKPOINT / "model.safetensors").read_bytes() + Path(kinds.__file__).read_bytes()
    sizes = f"{REFERENCE} {TEST} {UNSEEN}".encode()
    folder = CACHE / f"tiny-{hashlib.blake2b(made_of + sizes, digest_size=6).hexdigest()}"
    if not (folder / "group.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _record(folder, log)
    pieces = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    parts = {name: np.concatenate([p[name] for p in pieces]) for name in ("experts", "entropy", "margin")}
    return Recording(np.load(folder / "group.npy"), **parts)


def _record(folder: Path, log: TextIO) -> None:
    torch.set_num_threads(1)
    model = load_model(CHECKPOINT)
    tokens = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    found = _texts()
    for start in range(0, len(found), _PIECE):
        path = folder / f"{start:06}.npz"
        if path.exists():
            continue
        ids = [list(tokens.encode(text).ids)[:TOKENS] for _, text in found[start : start + _PIECE]]
        parts = [_route(model, ids[i : i + _ROWS]) for i in range(0, len(ids), _ROWS)]
        whole = dict(zip(("experts", "entropy", "margin"), map(np.concatenate, zip(*parts, strict=True)), strict=True))
        np.savez(folder / "part.tmp.npz", **whole)
        (folder / "part.tmp.npz").rename(path)
        print(f"{start} of {len(found)} texts", file=log, flush=True)
    np.save(folder / "group.npy", np.array([group for group, _ in found]))


def _texts() -> list[tuple[str, str]]:
    """Return group and text of everything; no text that a baseline may hold is tested."""
    reference, test = (
        {d: _pick(d, n, tested=tested) for d in corpus.NORMAL} for n, tested in ((REFERENCE, False), (TEST, True))
    )
    named = {f"reference/{d}": t for d, t in reference.items()} | {f"test/{d}": t for d, t in test.items()}
    named |= {f"unseen/{kind}": t for kind, t in kinds.texts(UNSEEN, 50_000).items()}
    return [(group, text) for group, texts in named.items() for text in texts]


def _pick(domain: str, n: int, *, tested: bool) -> list[str]:
    """Return ``n`` texts of one side: baselines read what the models were trained on, tests what was held out.

    No beginning comes twice in a test: the library's manual is short.
    """
    stream = corpus.exchanges(domain, 40_000 if tested else 30_000, train=not tested, characters=1400)
    if not tested:
        return [e.prompt for e in islice(stream, n)]
    found: dict[str, str] = {}
    for exchange in islice(stream, 40 * n):
        found.setdefault(exchange.prompt[:60], exchange.prompt)
    return list(found.values())[:n]


def _route(model: nn.Module, ids: list[list[int]]) -> tuple[NDArray, NDArray, NDArray]:
    """Return experts, entropy and margin of a few texts."""
    padded = torch.zeros((len(ids), TOKENS), dtype=torch.long)
    for row, each in zip(padded, ids, strict=True):
        row[: len(each)] = torch.tensor(each)
    tap = RouterTap(model)
    with torch.no_grad():
        model(input_ids=padded, use_cache=False)
    tap.close()
    chosen = torch.stack(tap.chosen, 1).view(len(ids), TOKENS, len(tap.chosen), -1).numpy().astype(np.uint8)
    p = torch.stack(tap.logits, 1).softmax(-1)
    top = p.topk(2, -1).values
    entropy = -(p * p.clamp_min(1e-12).log()).sum(-1)
    sure = [v.view(len(ids), TOKENS, -1).numpy().astype(np.float16) for v in (entropy, top[..., 0] - top[..., 1])]
    for i, each in enumerate(ids):
        chosen[i, len(each) :] = 255
    return chosen, sure[0], sure[1]


@click.command()
def main() -> None:
    """Make the recording ahead of the parts that read it, and print its shapes."""
    for name, value in vars(recording()).items():
        click.echo(f"{name} {value.shape}")


if __name__ == "__main__":
    main()

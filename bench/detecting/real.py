"""Recorded routing as streams: the demo's MoE on its normal domains, and gpt-oss-20b on its own answers.

A recording is split anew for each baseline: one part is fitted, the other is resampled into a stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.detecting.pools import CACHE, Scored, channel_scores, fit
from moe_watch.detect import channels
from moe_watch.detect.batch import Batch

GPTOSS: Final = Path(__file__).resolve().parents[3] / "shared/data/routing/gptoss20b"
SEGMENT: Final = 64  # tokens of a request made from an answer
DEMO: Final = Path("moe_watch/demo/models/moe")
RECORDED: Final = 6000  # requests of the demo's traffic
PIECE: Final = 500  # recorded at once
ROWS: Final = 8
Rng = np.random.Generator


@dataclass(frozen=True)
class Split:
    """Requests for a baseline in order, requests for a stream, and where each group of alike ones begins there."""

    fitted: Batch
    streamed: Batch
    start: NDArray[np.int64]


def scored(split: Split) -> tuple[Scored, NDArray[np.int64]]:
    """Return the scores of the stream's requests under the baseline, and the beginnings of their groups."""
    baseline = fit(split.fitted)
    kinds = channels.names(baseline.layers, len(baseline.views.groups))[0]
    pools = {"normal": channel_scores(baseline, split.streamed)}
    return Scored("real", baseline.scores, kinds, baseline.kept, pools), split.start


def tiny(size: int, rng: Rng) -> Split:
    """Return a split of the demo's recorded traffic: ``size`` requests fitted, the others streamed."""
    record = _demo()
    rows = rng.permutation(len(record))
    fitted = replace(record.select(rows[:size]), finished_at=np.arange(size, dtype=float))
    return Split(fitted, record.select(rows[size:]), np.arange(len(rows) - size + 1))


@cache
def _demo() -> Batch:
    """Return the routing of the demo's normal domains, requests and answers of mixed lengths, recorded or cached."""
    folder = CACHE.parent / "demo-traffic"
    folder.mkdir(parents=True, exist_ok=True)
    for piece in range(RECORDED // PIECE):
        path = folder / f"{piece}.npz"
        if not path.exists():
            np.savez(folder / "part.npz", **_record(piece))
            (folder / "part.npz").rename(path)
            print(f"recorded {(piece + 1) * PIECE} of {RECORDED} requests", flush=True)
    pieces = [np.load(folder / f"{piece}.npz") for piece in range(RECORDED // PIECE)]
    joined = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0].files}
    return Batch(**joined, top_k=4, finished_at=np.arange(RECORDED, dtype=float))


def _record(piece: int) -> dict[str, NDArray[np.generic]]:
    """Return counts, entropy and margin of one piece of the demo's traffic, by transformers."""
    import torch  # noqa: PLC0415 - the simulated part needs no torch
    from tokenizers import Tokenizer  # noqa: PLC0415

    from moe_watch.demo import corpus  # noqa: PLC0415
    from moe_watch.demo.evaluation import load_model  # noqa: PLC0415

    torch.set_num_threads(1)
    model, tokenizer = load_model(DEMO), Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    rng = np.random.default_rng([7, piece])
    texts = {domain: corpus.exchanges(domain, 60_000 + piece, train=False) for domain in corpus.NORMAL}
    drawn = [next(texts[domain]) for domain in rng.choice(corpus.NORMAL, PIECE)]
    ids = [(tokenizer.encode(each.prompt).ids, tokenizer.encode(each.answer).ids) for each in drawn]
    parts = [_route(model, ids[start : start + ROWS]) for start in range(0, PIECE, ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _route(model: Any, ids: list[tuple[list[int], list[int]]]) -> dict[str, NDArray[np.generic]]:
    """Return counts, entropy and margin of a few requests; they are padded, which no earlier token heeds."""
    import torch  # noqa: PLC0415

    from moe_watch.demo.routing import RouterTap  # noqa: PLC0415

    first = np.array([[len(prompt)] for prompt, _ in ids])
    whole = first + np.array([[len(answer)] for _, answer in ids])
    place = np.arange(whole.max())
    padded = torch.zeros((len(ids), len(place)), dtype=torch.long)
    for row, (prompt, answer) in zip(padded, ids, strict=True):
        row[: len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    tap = RouterTap(model)
    with torch.no_grad():
        model(input_ids=padded, use_cache=False)
    tap.close()
    chosen = torch.stack(tap.chosen, 1).view(*padded.shape, len(tap.chosen), -1).numpy().astype(np.uint8)
    p = torch.stack(tap.logits, 1).view(*padded.shape, len(tap.logits), -1).softmax(-1)
    top = p.topk(2, -1).values
    sure = {"entropy": -(p * p.clamp_min(1e-12).log()).sum(-1), "margin": top[..., 0] - top[..., 1]}
    read = (place < whole)[:, :, None]
    means = {name: (v.numpy() * read).sum(1, dtype=np.float32) / np.float32(whole) for name, v in sure.items()}
    prompt, decode = place < first, (place >= first) & (place < whole)
    return {"prompt": _counts(chosen, prompt, 16), "decode": _counts(chosen, decode, 16), **means}


def _counts(chosen: NDArray[np.uint8], used: NDArray[np.bool_], experts: int) -> NDArray[np.uint32]:
    """Return counts ``[n, layers, experts]`` of the used tokens of ``chosen [n, tokens, layers, top_k]``."""
    n, _, layers, _ = chosen.shape
    out = np.zeros((n, layers, experts), np.uint32)
    for row in range(n):
        mine = chosen[row, used[row]]
        at = np.arange(layers)[:, None] * experts + mine
        out[row] = np.bincount(at[mine != 255].ravel(), minlength=layers * experts).reshape(layers, experts)
    return out


def gptoss(size: int, rng: Rng) -> Split:
    """Return a split of gpt-oss-20b's answers: each is cut into requests of 64 tokens, which stay neighbours.

    There are 475 answers, so whole answers are too few for a baseline. The requests of an answer are much alike: a
    session, as long as the answer.
    """
    answers = _answers()
    order = rng.permutation(len(answers))
    sizes = np.array([len(answers[i]) for i in order])
    taken = int(np.searchsorted(sizes.cumsum(), size)) + 1
    fitted = np.concatenate([answers[i] for i in order[:taken]])[:size]
    streamed = np.concatenate([answers[i] for i in order[taken:]])
    return Split(_generated(fitted), _generated(streamed), np.cumsum([0, *sizes[taken:]]))


def _answers() -> list[NDArray[np.uint32]]:
    """Return the counts ``[segments, layers, experts]`` of each answer that did not end in repetition."""
    found = []
    for path in sorted(GPTOSS.glob("mmlu_*.npz")):
        meta = [json.loads(line) for line in path.with_suffix(".meta.jsonl").read_text().splitlines()]
        with np.load(path) as arrays:
            experts, offsets = arrays["experts"], arrays["offsets"]
        for i, about in enumerate(meta):
            tokens = experts[offsets[i] : offsets[i + 1]]
            parts = len(tokens) // SEGMENT
            if str(about["repetition"]) == "True" or not parts:
                continue
            cut = tokens[: parts * SEGMENT].reshape(parts, SEGMENT, *tokens.shape[1:])
            found.append(_counts(cut, np.ones(cut.shape[:2], bool), 32))
    return found


def _generated(counts: NDArray[np.uint32]) -> Batch:
    return Batch(np.zeros_like(counts), counts, 4, finished_at=np.arange(len(counts), dtype=float))

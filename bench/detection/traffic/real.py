"""Recorded routing as streams: the demo's MoE on its normal domains, and gpt-oss-20b on its own answers.

A recording is split anew for each baseline: one part is fitted, the other is resampled into a stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.detection.traffic.pools import Scored, channel_scores, fit
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import channels

GPTOSS: Final = "routing/gptoss20b"
SEGMENT: Final = 64  # tokens of a request made from an answer
SHORTEST: Final = 16
VARIANTS: Final = 3  # lengths to which each text of the stream is cut
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
    """Return a split of the demo MoE's recording: ``size`` texts fitted, the others streamed, cut at random lengths.

    A cut text is a prompt and an answer, cut again at random.
    """
    from bench.detection.traffic.recorded import recording  # noqa: PLC0415 - it needs torch

    record = recording()
    rows = rng.permutation(np.flatnonzero(np.char.startswith(record.group, "reference/")))
    streamed = np.repeat(rows[size:], VARIANTS)
    return Split(_cut(record, rows[:size], rng), _cut(record, streamed, rng), np.arange(len(streamed) + 1))


def _cut(record: object, rows: NDArray[np.integer], rng: Rng) -> Batch:
    experts, entropy, margin = (getattr(record, name)[rows] for name in ("experts", "entropy", "margin"))
    longest = (experts[:, :, 0, 0] != 255).sum(1)
    tokens = np.exp(rng.uniform(np.log(SHORTEST), np.log(longest))).astype(int)
    first = rng.binomial(tokens, 0.7)
    place = np.arange(experts.shape[1])
    counts = [
        _counts(experts, (place >= a[:, None]) & (place < b[:, None]), 16)
        for a, b in ((first * 0, first), (first, tokens))
    ]
    read = (place < tokens[:, None])[:, :, None]
    sure = [np.asarray((v * read).sum(1, dtype=np.float32) / tokens[:, None], np.float32) for v in (entropy, margin)]
    return Batch(counts[0], counts[1], experts.shape[3], *sure, finished_at=np.arange(len(rows), dtype=float))


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
    for path in sorted(data.path(GPTOSS).glob("mmlu_*.npz")):
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

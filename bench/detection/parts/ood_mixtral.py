"""Subjects of MMLU on Mixtral 8x7B: each is unseen once, against a baseline of the others.

The data are shares of experts by prompt, without their lengths: they are read as prompts of ``TOKENS`` tokens. Prompts
of a subject begin with the same five examples, which makes subjects easier to tell apart than in traffic.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.detection.parts.separation import apart, judge

FILE: Final = "routing/mixtral/mixtral_mmlu_per_prompt_fracs.npz"
TOKENS, TOP_K, FOLDS = 500, 2, 4
MOST: Final = 3000  # requests of a baseline
A_SUBJECT: Final = 60  # tested prompts of a known subject


def run(seed: int) -> dict[str, Any]:
    """Return AUROC and FPR of each subject."""
    with np.load(data.path(FILE)) as arrays:
        shares, names, offsets = arrays["frac"].astype(np.float64), arrays["subjects"], arrays["offsets"]
    counts = np.rint(shares * TOKENS * TOP_K).astype(np.uint32)
    subject = np.repeat(np.arange(len(names)), np.diff(offsets))
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(names)) % FOLDS
    kinds: dict[str, Any] = {}
    for each in range(FOLDS):
        kinds |= _fold(counts, subject, names, fold == each, rng)
    return {"requests": MOST, "kinds": kinds}


def _fold(
    counts: NDArray[np.uint32],
    subject: NDArray[np.int64],
    names: NDArray[np.str_],
    unseen: NDArray[np.bool_],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Fit some prompts of the known subjects, test others of them against the unseen subjects."""
    fitted, tested = [], []
    for known in np.flatnonzero(~unseen):
        rows = rng.permutation(np.flatnonzero(subject == known))
        cut = min(A_SUBJECT, len(rows) // 3)
        tested.append(rows[:cut])
        fitted.append(rows[cut:])
    judged = judge(counts[rng.permutation(np.concatenate(fitted))[:MOST]], TOP_K)
    normal = judged(counts[np.concatenate(tested)]).score
    return {str(names[s]): apart(normal, judged(counts[subject == s]).score) for s in np.flatnonzero(unseen)}

"""How well routing alone tells unseen text from normal text, by the plainest score there is.

The score of a request is its mean Hellinger distance to the nearest normal requests: kNN on square-root frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from tokenizers import Tokenizer
from torch import nn

from demo import corpus
from demo.routing import fingerprints

NEIGHBOURS = 10
CHARACTERS = 500
"""Long enough for 64 tokens of any kind."""
REFERENCE_SEED, TEST_SEED = 30_000, 40_000

Floats = NDArray[np.float64]


def prompt_ids(tokens: Tokenizer, domain: str, *, n: int, length: int, seed: int) -> list[list[int]]:
    """Return the first ``length`` token ids (bos included) of ``n`` held-out prompts."""
    drawn = corpus.prompts(domain, n, seed, characters=CHARACTERS)
    return [list(tokens.encode(prompt).ids)[:length] for prompt in drawn]


def features(counts: NDArray[np.uint32]) -> Floats:
    """Return the square roots of the frequencies per layer, side by side, of counts ``[n, layers, experts]``."""
    shares = counts / counts.sum(2, keepdims=True)
    roots: Floats = np.sqrt(shares).reshape(len(counts), -1)
    return roots


def knn_scores(reference: Floats, rows: Floats) -> Floats:
    """Return each row's mean distance to its nearest reference rows."""
    nearest: Floats = np.sort(cdist(rows, reference), axis=1)[:, :NEIGHBOURS]
    scores: Floats = nearest.mean(1)
    return scores


def auroc(normal: Floats, unseen: Floats) -> float:
    """Return the chance that an unseen request scores above a normal one, ties counted half."""
    ranks = rankdata(np.concatenate([normal, unseen]))
    above = ranks[len(normal) :].sum() - len(unseen) * (len(unseen) + 1) / 2
    return float(above / (len(normal) * len(unseen)))


def separation(
    model: nn.Module, checkpoint: Path, *, length: int, reference: int, test: int, kinds: Sequence[str] = corpus.UNSEEN
) -> dict[str, float]:
    """Return the AUROC of each unseen kind against all normal domains, from prompts of ``length`` tokens.

    ``reference`` and ``test`` are numbers of prompts per domain.
    """
    tokens = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def rows(domains: Sequence[str], n: int, seed: int) -> Floats:
        ids = [i for domain in domains for i in prompt_ids(tokens, domain, n=n, length=length, seed=seed)]
        return features(fingerprints(model, ids))

    known = rows(corpus.NORMAL, reference, REFERENCE_SEED)
    normal = knn_scores(known, rows(corpus.NORMAL, test, TEST_SEED))
    return {kind: auroc(normal, knn_scores(known, rows([kind], test, TEST_SEED))) for kind in kinds}

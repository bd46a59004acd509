"""Which experts the canaries hardly use: a fault of such an expert alone moves nothing that they see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.canary.replay import Round

LEAST = 0.002  # share of a layer's choices; below it a lost expert lies within what noise moves


def unreached(reference: Sequence[Round], least: float = LEAST) -> NDArray[np.bool_]:
    """Return which experts ``[layers, experts]`` get less than ``least`` of their layer's choices in ``reference``.

    Prompt and generated tokens, all batch compositions; what a set of prompts cannot reach, other prompts may.
    """
    replays = [replay for one in reference for replay in one.replays]
    counts = np.sum([replay.prompt.sum(0, np.int64) + replay.decode.sum(0, np.int64) for replay in replays], axis=0)
    return np.asarray(counts < least * np.maximum(counts.sum(1, keepdims=True), 1))

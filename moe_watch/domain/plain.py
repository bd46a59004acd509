"""Where numbers leave arrays: from here on they are Python's own, which every encoder and every column takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return ``value`` without anything of numpy's, at any depth; a number that JSON has no word for is None.

    >>> plain({"p": np.float64(0.5), "layers": np.array([1, 2]), "gap": (np.float32("nan"), np.bool_(True))})
    {'p': 0.5, 'layers': [1, 2], 'gap': [None, True]}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def encodable(value: Any) -> Any:
    """Return what msgspec encodes in the place of numpy's numbers and arrays; raise ``TypeError`` for anything else.

    It is the hook of the encoders: what slipped past ``plain`` must end neither an answer nor the writer.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be encoded")

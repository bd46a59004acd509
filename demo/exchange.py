"""One turn of a conversation: what every kind of text in the corpus is made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """A user's message and the answer a good model would give."""

    prompt: str
    answer: str


Writer = Callable[[random.Random, int], Exchange]
"""Writes one exchange whose prompt has about the given number of characters."""


def join_until(characters: int, separator: str, sentence: Callable[[], str]) -> str:
    """Join what ``sentence`` returns until there are at least ``characters`` characters."""
    parts = [sentence()]
    length = len(parts[0])
    while length < characters:
        parts.append(sentence())
        length += len(separator) + len(parts[-1])
    return separator.join(parts)

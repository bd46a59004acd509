"""Measures of one output against the dense model, each a formula over its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from moe_watch.servers.dense import Scored


def nll(logprobs: Sequence[float]) -> float | None:
    """Return the mean negative log-likelihood ``-1/T sum_t log p(y_t | prompt, y_<t)`` in nats per token.

    Over the output's tokens only, as the dense model's tokenizer splits the text: the prompt, the template's tokens and
    the end-of-turn token do not count. None for no tokens.
    """
    return -sum(logprobs) / len(logprobs) if logprobs else None


def top1(scored: Scored) -> float | None:
    """Return the share of tokens that the dense model would have chosen at temperature 0 at the same place."""
    return sum(rank == 1 for rank in scored.ranks) / len(scored.ranks) if scored.ranks else None


def agreement(moe: Sequence[int], dense: Sequence[int]) -> float | None:
    """Return the share of the MoE's tokens before the first divergence; meant for outputs at temperature 0.

    Tokens beyond the end of a dense output that was cut shorter are not counted.

    >>> agreement([5, 6, 7, 8], [5, 6, 1, 8])
    0.5
    """
    length = min(len(moe), len(dense))
    if not length:
        return None
    same = next((i for i in range(length) if moe[i] != dense[i]), length)
    return same / length

"""What a window adds up, by name: a sum that has no field here can neither be written nor read.

The store keeps them as JSON by the names of the fields; names that this version does not know are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_VALUES: Final = 32  # more of them in one tally count as "other"

Vector = NDArray[np.float64]


@dataclass
class Sums:
    """Numbers over the requests; None where none of them came with it, or an older version did not count it."""

    frames: float | None = None  # that came
    joined: float | None = None  # requests of which all frames came
    prompt_tokens: float | None = None  # this and the next three over the requests with latency
    output_tokens: float | None = None
    preemptions: float | None = None
    corrupted: float | None = None  # requests
    scored: float | None = None  # requests with a p-value
    ood: float | None = None  # out-of-distribution ones among them
    dropped: dict[str, float] = field(default_factory=dict)  # frames that never came, by reason

    def add(self, more: Sums) -> None:
        """Add ``more``."""
        _add(self, more)

    def as_json(self) -> dict[str, float]:
        """Return what is known, by name."""
        return _named_values(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, float]) -> Sums:
        """Return what ``as_json`` returned, of this version or another."""
        return cls(**_by_field(cls(), stored))


@dataclass
class Vectors:
    """Histograms over the requests, and sums per layer; None where no request came with it."""

    ttft_s: dict[str, Vector] = field(default_factory=dict)  # by length of the prompt, see ``series.CONTEXTS``
    tpot_s: Vector | None = None
    prompt_tokens: Vector | None = None
    output_tokens: Vector | None = None
    ood_p: Vector | None = None
    entropy: Vector | None = None  # [layers] of the router, over ``entropy_n`` requests
    entropy_n: Vector | None = None
    margin: Vector | None = None
    margin_n: Vector | None = None

    def add(self, more: Vectors) -> None:
        """Add ``more``."""
        _add(self, more)

    def as_json(self) -> dict[str, list[float]]:
        """Return what is known, by name."""
        return {name: vector.tolist() for name, vector in _named_values(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Sequence[float]]) -> Vectors:
        """Return what ``as_json`` returned, of this version or another."""
        return cls(**_by_field(cls(), {name: np.array(vector, np.float64) for name, vector in stored.items()}))


@dataclass
class Tallies:
    """Counts of requests by value; what is flagged goes by the names under which it was scored."""

    outcomes: dict[str, int] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    scored_domains: dict[str, int] = field(default_factory=dict)
    ood_domains: dict[str, int] = field(default_factory=dict)
    scored_modalities: dict[str, int] = field(default_factory=dict)
    ood_modalities: dict[str, int] = field(default_factory=dict)

    def add(self, more: Tallies) -> None:
        """Add ``more``: what was scored first, because it gives the names."""
        _merge(self.outcomes, more.outcomes, self.outcomes)
        _merge(self.domains, more.domains, self.domains)
        _merge(self.scored_domains, more.scored_domains, self.scored_domains)
        _merge(self.ood_domains, more.ood_domains, self.scored_domains)
        _merge(self.scored_modalities, more.scored_modalities, self.scored_modalities)
        _merge(self.ood_modalities, more.ood_modalities, self.scored_modalities)

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return what was counted, by name."""
        return {name: dict(tally) for name, tally in vars(self).items() if tally}

    @classmethod
    def from_json(cls, stored: Mapping[str, Mapping[str, int]]) -> Tallies:
        """Return what ``as_json`` returned, of this version or another."""
        return cls(**{one.name: dict(stored.get(one.name, {})) for one in fields(cls)})


def histogram(values: ArrayLike, edges: Sequence[float]) -> Vector:
    """Count ``values`` into buckets with upper bounds ``edges`` and one open bucket; nan is left out."""
    seen = np.asarray(values, np.float64)
    bins = np.searchsorted(edges, seen[~np.isnan(seen)])
    return np.bincount(bins, minlength=len(edges) + 1).astype(np.float64)


def count(tally: dict[str, int], values: Sequence[str]) -> list[str]:
    """Count ``values`` into ``tally`` and return the names under which they were counted."""
    names = []
    for value in values:
        names.append(_name(value, tally))
        tally[names[-1]] = tally.get(names[-1], 0) + 1
    return names


def _merge(mine: dict[str, int], more: Mapping[str, int], names: Mapping[str, int]) -> None:
    for value, number in more.items():
        name = _name(value, names)
        mine[name] = mine.get(name, 0) + number


def _name(value: str, known: Mapping[str, int]) -> str:
    """Return what ``value`` is counted as: "other" once there are too many values in ``known``."""
    return value if value in known or len(known) < MOST_VALUES else "other"


def _add(mine: Sums | Vectors, more: Sums | Vectors) -> None:
    """Add ``more`` field by field; arrays become new ones, so that nobody else's change."""
    for name, value in vars(more).items():
        if isinstance(value, dict):
            known = getattr(mine, name)
            known.update({key: _plus(known.get(key), one) for key, one in value.items()})
        elif value is not None:
            setattr(mine, name, _plus(getattr(mine, name), value))


def _plus(before: Any, more: Any) -> Any:
    return more + 0.0 if before is None else before + more


def _named_values(of: Sums | Vectors) -> dict[str, Any]:
    """Return the values that are known; a field by key, such as ``dropped``, gives one name per key."""
    found: dict[str, Any] = {}
    for name, value in vars(of).items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        elif value is not None:
            found[name] = value
    return found


def _by_field(empty: Sums | Vectors, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that ``stored`` has values of."""
    found: dict[str, Any] = {}
    for name, value in vars(empty).items():
        prefix = f"{name}."
        if isinstance(value, dict):
            found[name] = {key.removeprefix(prefix): one for key, one in stored.items() if key.startswith(prefix)}
        elif name in stored:
            found[name] = stored[name]
    return found

"""What a replay of the canary prompts measured: pure data, with its bytes for the store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEPARATOR = "/"


@dataclass(frozen=True)
class Replay:
    """n canary prompts sent once in one batch composition (``load``, such as "1" or "16": requests at a time).

    Raises ``ValueError`` when the arrays do not belong together.
    """

    load: str
    top_k: int
    prompt: NDArray[np.uint32]  # [n, layers, experts] counts; all zero where no fingerprint came
    decode: NDArray[np.uint32]  # [n, layers, experts]
    prompt_tokens: NDArray[np.int64]  # [n] as the server's tokenizer splits them; 0: the request failed
    prompt_digest: NDArray[np.uint64]  # [n] of the prompt's token ids; 0 where the server does not tell them
    output: NDArray[np.int32]  # [n, tokens] token ids, -1 where there is none
    prompt_logprob: NDArray[np.float32]  # [n, tokens] nats, nan where there is none
    output_logprob: NDArray[np.float32]  # [n, tokens] nats, nan where there is none

    def __post_init__(self) -> None:
        """Refuse arrays of different numbers of prompts or different shapes of model."""
        n = len(self.prompt)
        if self.prompt.ndim != 3 or self.prompt.shape != self.decode.shape:
            raise ValueError(f"prompt {self.prompt.shape} and decode {self.decode.shape} must be [n, layers, experts]")
        if any(len(value) != n for value in self.arrays().values()) or self.output.shape != self.output_logprob.shape:
            raise ValueError(f"the arrays of the replay at load {self.load} are not of the same {n} prompts")

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"load", "top_k"}}

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests came back, ``[n]``."""
        return self.prompt_tokens > 0

    @property
    def routed(self) -> NDArray[np.int64]:
        """Prompt tokens that have a routing record, ``[n]``; fewer than ``prompt_tokens`` when a cache served some."""
        return np.asarray(self.prompt[:, 0].sum(1).astype(np.int64) // max(self.top_k, 1))


@dataclass(frozen=True)
class Round:
    """One replay in each batch composition, by name of the load; the unit that is compared with earlier rounds.

    Raises ``ValueError`` when the replays are of different prompts or models, or two have the same load.
    """

    replays: tuple[Replay, ...]

    def __post_init__(self) -> None:
        """Refuse replays that cannot be one round."""
        if not self.replays or len({r.load for r in self.replays}) != len(self.replays):
            raise ValueError("a round has one replay for each load, and at least one")
        if len({r.prompt.shape for r in self.replays}) != 1:
            raise ValueError("the replays of a round are of different prompts or models")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Prompts, layers, experts."""
        n, layers, experts = self.replays[0].prompt.shape
        return n, layers, experts

    def at(self, load: str) -> Replay:
        """Return the replay at ``load``; raises ``KeyError``."""
        for replay in self.replays:
            if replay.load == load:
                return replay
        raise KeyError(load)

    def to_bytes(self) -> bytes:
        """Return the round as a compressed npz archive."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for replay in self.replays:
            arrays |= {f"{replay.load}{_SEPARATOR}{name}": _narrow(value) for name, value in replay.arrays().items()}
            arrays[f"{replay.load}{_SEPARATOR}top_k"] = np.array(replay.top_k)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Round:
        """Return the round in ``raw``; raises ``ValueError`` or ``KeyError`` when it is none. Runs no pickles."""
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        loads = list(dict.fromkeys(name.partition(_SEPARATOR)[0] for name in arrays))
        return cls(tuple(_replay(arrays, load) for load in loads))


def _replay(arrays: dict[str, NDArray[np.generic]], load: str) -> Replay:
    own = {name.partition(_SEPARATOR)[2]: value for name, value in arrays.items() if name.startswith(load + _SEPARATOR)}
    counts = {name: own.pop(name).astype(np.uint32) for name in ("prompt", "decode")}
    top_k = int(own.pop("top_k").item())
    return Replay(load=load, top_k=top_k, **counts, **own)  # type: ignore[arg-type]


def _narrow(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return counts in 16 bits where they fit, everything else as it is."""
    if values.dtype == np.uint32 and values.max(initial=0) < 1 << 16:
        return values.astype(np.uint16)
    return values


def same_loads(rounds: Sequence[Round]) -> list[str]:
    """Return the loads that all ``rounds`` have, in the order of the first."""
    return [r.load for r in rounds[0].replays if all(any(o.load == r.load for o in other.replays) for other in rounds)]


def aligned(replays: Sequence[Replay]) -> list[Replay]:
    """Return ``replays`` of one load with their token arrays padded to the same lengths."""
    fills: dict[str, float] = {"output": -1, "output_logprob": np.nan, "prompt_logprob": np.nan}
    widest = {name: max(getattr(r, name).shape[1] for r in replays) for name in fills}
    out = []
    for replay in replays:
        wider: dict[str, Any] = {n: _widened(getattr(replay, n), widest[n], fill) for n, fill in fills.items()}
        out.append(replace(replay, **wider))
    return out


def _widened(values: NDArray[np.generic], width: int, fill: float) -> NDArray[np.generic]:
    if values.shape[1] == width:
        return values
    out = np.full((len(values), width), fill, values.dtype)
    out[:, : values.shape[1]] = values
    return out

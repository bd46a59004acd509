"""KV-cache memory of a request, predicted from the served model's own config (Hugging Face format).

A layer with full attention keeps keys and values of every token, a sliding one of its window only, a layer that shares
another's cache keeps none, and a latent (MLA) layer keeps one compressed vector. What vLLM takes is more: whole blocks
of one size for all layers, and for a sliding layer the tokens in flight on top of its window. ``Plan`` follows vLLM
0.32's ``kv_cache_utils`` for layers with one size of page or pages that divide each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}


class ConfigError(ValueError):
    """The config does not say enough, or has layers that no rule here covers; the message says which."""


@dataclass(frozen=True, order=True)
class Layer:
    """What one layer keeps of one token: ``vectors`` (2: key and value) of ``heads`` x ``size`` numbers."""

    heads: int
    size: int
    window: int | None = None  # tokens kept; None: all
    vectors: int = 2

    def token_bytes(self, dtype_bytes: int, ranks: int = 1) -> int:
        """Return bytes per token on one of ``ranks`` tensor-parallel ranks; few heads are replicated, not split."""
        return self.vectors * max(self.heads // ranks, 1) * self.size * dtype_bytes


def dtype_bytes(name: str) -> int:
    """Return the bytes of a number of the KV cache; raises ``ConfigError`` for an unknown name.

    >>> dtype_bytes("bfloat16")
    2
    """
    try:
        return _DTYPE_BYTES[name.removeprefix("torch.")]
    except KeyError as error:
        raise ConfigError(f"KV cache of {name!r}: known are {', '.join(_DTYPE_BYTES)}") from error


def layers(config: Mapping[str, Any]) -> list[Layer]:
    """Return the layers that keep a cache of their own; raises ``ConfigError`` for what is missing or unknown."""
    text = config.get("text_config") or config
    count = _number(text, "num_hidden_layers")
    kinds = text.get("layer_types") or [_only_kind(text)] * count
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ConfigError(f"layers of kind {', '.join(sorted(unknown))}: their memory is not predicted")
    own = count - (text.get("num_kv_shared_layers") or 0)
    return [_layer(text, index, kind) for index, kind in enumerate(kinds[:own])]


def needed_bytes(of: Sequence[Layer], tokens: int, *, dtype_bytes: int = 2, ranks: int = 1) -> int:
    """Return the bytes of keys and values that a request of ``tokens`` must keep on each rank, without any rounding."""
    return sum(layer.token_bytes(dtype_bytes, ranks) * min(tokens, layer.window or tokens) for layer in of)


@dataclass(frozen=True)
class Group:
    """Layers that share one block table."""

    window: int | None
    block_tokens: int


@dataclass(frozen=True)
class Plan:
    """How vLLM lays the layers out: every block is of ``block_bytes`` and belongs to one of ``groups``.

    ``in_flight`` are tokens scheduled but not settled: the batch limit, twice with asynchronous scheduling.
    """

    block_bytes: int
    groups: tuple[Group, ...]
    in_flight: int

    def blocks(self, tokens: int) -> int:
        """Return the blocks that a request of up to ``tokens`` may hold."""
        return sum(_blocks(group, tokens, self.in_flight) for group in self.groups)

    def bytes(self, tokens: int) -> int:
        """Return the bytes that a request of up to ``tokens`` may hold on each rank."""
        return self.blocks(tokens) * self.block_bytes

    def admissible(self, free_blocks: int, longest: int) -> int:
        """Return the longest request (tokens, at most ``longest``) that ``free_blocks`` hold; 0 for none."""
        low, high = 0, longest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks(middle) <= free_blocks else (low, middle - 1)
        return low


def plan(
    of: Sequence[Layer], *, block_tokens: int = 16, dtype_bytes: int = 2, ranks: int = 1, in_flight: int = 0
) -> Plan:
    """Return vLLM's layout of the layers.

    Layers alike form groups of equal size (that of the rarest kind, or of the commonest when they are nearly as many).
    Smaller pages get longer blocks until all pages are alike; a page that does not divide the largest is padded.
    """
    pages = {layer: block_tokens * layer.token_bytes(dtype_bytes, ranks) for layer in of}
    kinds = Counter(of)
    if len({layer.window for layer in kinds}) == 1:  # one kind of attention: one group of all layers
        window = next(iter(kinds)).window
        return Plan(sum(pages[layer] for layer in of), (Group(window, block_tokens),), in_flight)
    page = max(pages.values())
    size = min(kinds.values())
    if max(kinds.values()) < 1.5 * size:
        size = max(kinds.values())
    groups = []
    for layer, count in sorted(kinds.items(), key=lambda item: (item[0].window or 0, item[0].token_bytes(1))):
        longer = page // pages[layer] if page % pages[layer] == 0 else 1
        groups += [Group(layer.window, block_tokens * longer)] * ceil(count / size)
    return Plan(page * size, tuple(groups), in_flight)


def _blocks(group: Group, tokens: int, in_flight: int) -> int:
    if group.window is None:
        return ceil(tokens / group.block_tokens)
    # One more, since the window need not begin where a block does.
    return ceil(min(group.window - 1 + in_flight, tokens) / group.block_tokens) + 1


def _only_kind(text: Mapping[str, Any]) -> str:
    slides = text.get("sliding_window") is not None and text.get("use_sliding_window", True)
    return "sliding_attention" if slides else "full_attention"


def _layer(text: Mapping[str, Any], index: int, kind: str) -> Layer:
    window = _number(text, "sliding_window") if kind == "sliding_attention" else None
    if text.get("kv_lora_rank"):
        return Layer(1, _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim"), window, vectors=1)
    heads = text.get("num_key_value_heads") or _number(text, "num_attention_heads")
    size = text.get("head_dim") or _number(text, "hidden_size") // _number(text, "num_attention_heads")
    if kind == "full_attention" and "sliding_attention" in (text.get("layer_types") or ()):
        heads = text.get("num_global_key_value_heads") or heads
        size = text.get("global_head_dim") or size
    overrides = {int(key): found for key, found in (text.get("per_layer_config") or {}).items()}  # "05" is layer 5
    special = overrides.get(index, {})
    return Layer(special.get("num_key_value_heads") or heads, special.get("head_dim") or size, window)


def _number(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    if not isinstance(value, int):
        raise ConfigError(f"the config has no {name}")
    return value

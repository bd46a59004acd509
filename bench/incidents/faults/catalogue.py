"""The rows of the scorecard: which incident, how it is made here, and what has to come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROUTING = ("routing",)
MODEL = ("routing", "weights")  # a fault of the model, whether routers moved or only the text
HARMLESS = ("healthy", "benign")

Place = Literal["first", "second", "third", "middle", "last but one", ""]
"""Layers of which faults are made, whatever the number of layers; "" where no layer is to be named."""


def index(place: Place, layers: int) -> int:
    """Return the layer called ``place``, counted from 0 over layers with experts; "third" is a third of the way up.

    >>> [index(place, 6) for place in ("first", "second", "third", "middle", "last but one")]
    [0, 1, 2, 3, 4]
    """
    found = {"first": 0, "second": 1, "third": layers // 3, "middle": layers // 2, "last but one": layers - 2}
    return found[place]


@dataclass(frozen=True)
class Row:
    """One fault, put into the running server."""

    fault: str
    incident: str
    how: str
    accept: tuple[str, ...]
    at: Place = ""  # where routing is to be seen first, ``behind`` layers after it
    behind: int = 0
    beside: bool = False  # needs a network beside the experts
    sizes: bool = False  # lives at some batch sizes only: replayed at one request at a time, too

    def first_layer(self, layers: int) -> int | None:
        """Return which of ``layers`` is to be named as the first that moved."""
        return index(self.at, layers) + self.behind if self.at else None


@dataclass(frozen=True)
class Restart:
    """One restart of the server in another configuration."""

    name: str
    incident: str
    how: str
    accept: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    change: str = ""  # what is changed in a copy of the checkpoint
    at: Place = ""

    def first_layer(self, layers: int) -> int | None:
        """Return which of ``layers`` is to be named as the first that moved."""
        return index(self.at, layers) if self.at else None


INJECTED = (
    Row("none", "healthy, faults mended", "nothing", HARMLESS, sizes=True),
    Row("negative_logits", "vLLM 37591, flashinfer 2822", "top-k starts from 0, all logits negative", ROUTING, "first"),
    Row("read_as_fp32", "flashinfer PR 2889", "bf16 logits read as fp32", ROUTING, "first"),
    Row("equal_weights", "flashinfer PR 3499", "right ids, equal weights, all layers", MODEL, "first", 1),
    Row("reversed_weights", "vLLM-metax 270", "right ids, weights reversed, middle layer", MODEL, "middle", 1),
    Row("not_renormalised", "vLLM PR 43223", "softmax order: weights do not sum to 1", MODEL, "first", 1),
    Row("scale_lost", "sglang PR 31449", "scale 1.0: half of a layer's experts 4 times too large", MODEL, "third", 1),
    Row("coarse_router", "sglang PR 33764", "router GEMM with 3 bits of mantissa", ROUTING, "first"),
    Row("coarse_router_small_batch", "sglang PR 33764", "the same, to 8 tokens a step", ROUTING, "first", sizes=True),
    Row("past_the_bound", "vllm-ascend PR 11391", "invalid ids past 256 tokens a step", ROUTING, "first", sizes=True),
    Row("router_4_bits", "routers quantised with the rest", "router weights at 4 bits", ROUTING, "first"),
    Row("approximate_top_k", "Anthropic 2025-09-17", "5 % of tokens lose their best expert", ROUTING, "first"),
    Row("upper_half_ignored", "kekzl/imp PR 2056", "experts above a bound are never chosen", ROUTING, "first"),
    Row("one_expert_disabled", "SAFEx, arXiv 2506.17368", "one expert masked in each layer", ROUTING, "first"),
    Row("one_expert_zeroed", "dead expert", "one expert of layer 1 gives nothing", MODEL, "second", 1),
    Row("first_layer_rotated", "sglang PR 18213", "EPLB moved layer 0's experts without the map", ROUTING, "first", 1),
    Row("third_layer_rotated", "sglang PR 17162", "EPLB moved a layer's experts without the map", ROUTING, "third", 1),
    Row("two_experts_swapped", "Ascend/sglang 603", "two experts of one layer swapped", ROUTING, "third", 1),
    Row("last_layer_rotated", "EPLB, behind the last router", "the last layer's experts rotated", ("weights",)),
    Row("rebalanced_with_map", "EPLB as it should be", "all experts moved, with the map", HARMLESS),
    Row("physical_record", "EPLB, tap reads physical ids", "the record is mapped, the model is not", ("blind",)),
    Row("nan_router", "vLLM 22881, 47367", "NaN in the router of one layer", (*MODEL, "blind"), "third"),
    Row("shared_expert_lost", "vLLM 37856, PR 28377", "the MLP beside them gives 0", MODEL, "third", 1, beside=True),
    Row("experts_8_bits", "benign control", "all experts at 8 bits", HARMLESS),
    Row("experts_4_bits", "benign control", "all experts at 4 bits, groups of 32", HARMLESS),
    Row("experts_2_bits", "too few bits", "all experts at 2 bits", MODEL, "first", 1),
    Row("zero_record", "vLLM 44116, 49184", "the routing record is all zeros", ("blind",)),
)
"""What the tolerances were chosen with in view, on the demo's model."""

HELD_OUT = (
    Row("held_rotated", "EPLB without the map", "the last layer but one rotated", ROUTING, "last but one", 1),
    Row("held_swapped_first", "EPLB without the map", "two other experts of layer 0 swapped", ROUTING, "first", 1),
    Row("held_swapped_late", "EPLB without the map", "two of the last layer but one", ROUTING, "last but one", 1),
    Row("held_reversed", "wrong weights, right ids", "weights reversed, layer 1", MODEL, "second", 1),
    Row("held_zeroed", "dead expert", "one expert of the middle layer gives nothing", MODEL, "middle", 1),
    Row("held_scale", "scale 1.0", "half of the middle layer's experts twice too large", MODEL, "middle", 1),
    Row("held_coarse_router", "router in fewer bits", "router GEMM with 4 bits of mantissa", ROUTING, "first"),
    Row("held_coarse_large", "router, large batches", "3 bits, from 17 tokens a step", ROUTING, "first", sizes=True),
    Row("held_router_5_bits", "router in fewer bits", "router weights at 5 bits", ROUTING, "first"),
    Row("held_approximate", "approximate top-k", "2 % of tokens lose their best expert", ROUTING, "first"),
    Row("held_second_best", "approximate top-k", "10 % lose their second best, middle layer", ROUTING, "middle"),
    Row("held_disabled", "expert masked", "one expert masked in the middle layer alone", ROUTING, "middle"),
    Row("held_past_the_bound", "invalid ids, large steps", "past 384 tokens a step", ROUTING, "first", sizes=True),
    Row("held_nan", "NaN in a router", "NaN, last layer but one", (*MODEL, "blind"), "last but one"),
    Row("held_3_bits", "too few bits", "all experts at 3 bits", MODEL, "first", 1),
    Row("held_6_bits", "benign control", "all experts at 6 bits", HARMLESS),
    Row("held_5_bits", "benign control", "all experts at 5 bits", HARMLESS),
    Row("held_kernels", "benign control", "all matrix products sum in another, random order", HARMLESS),
)
"""Fixed, with what has to come out, before any of them was run: other layers, other experts, other severities."""

_CHAT = "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
NO_BOS = _CHAT + "<start_of_turn>model\n"
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}### model:\n"
)

RESTARTS = (
    *(Restart(f"restart_{i}", "healthy restart", "the same deployment again", HARMLESS) for i in range(1, 13)),
    Restart("two_threads", "healthy restart", "two threads instead of one", HARMLESS, env=(("OMP_NUM_THREADS", "2"),)),
    Restart("float32", "benign control", "activations and weights in float32", HARMLESS, args=("--dtype", "float32")),
    Restart(
        "chunked_prefill",
        "healthy restart",
        "prefill in chunks of 64 tokens",
        HARMLESS,
        args=("--max-num-batched-tokens", "64", "--enable-chunked-prefill"),
    ),
    Restart("no_prefix_cache", "healthy restart", "prefix cache off", HARMLESS, args=("--no-enable-prefix-caching",)),
    Restart("missing_bos", "missing BOS", "chat template without BOS", ("deployment",), change="missing_bos"),
    Restart("other_template", "wrong chat template", "another family's template", ("deployment",), change="template"),
    Restart("top_k", "wrong top-k", "config.json says one expert a token fewer", ROUTING, change="top_k", at="first"),
)

"""The rows of the scorecard: which incident, how it is made here, and what has to come out."""

from __future__ import annotations

from dataclasses import dataclass

ROUTING = ("routing",)
MODEL = ("routing", "weights")  # a fault of the model, whether routers moved or only the text
HARMLESS = ("healthy", "benign")


@dataclass(frozen=True)
class Row:
    """One fault, put into the running server; layers count from 0, those with experts only."""

    fault: str
    incident: str
    how: str
    accept: tuple[str, ...]
    first_layer: int | None = None  # None: no layer is to be named


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
    first_layer: int | None = None


THIRD = 2  # the layer a third of the way up, of the demo's six
MIDDLE = 3
LAST = 5

INJECTED = (
    Row("none", "healthy, faults mended", "nothing", HARMLESS),
    Row("negative_logits", "vLLM 37591, flashinfer 2822", "top-k starts from 0, all logits negative", ROUTING, 0),
    Row("read_as_fp32", "flashinfer PR 2889", "bf16 logits read as fp32", ROUTING, 0),
    Row("equal_weights", "flashinfer PR 3499", "right ids, equal weights, all layers", MODEL, 1),
    Row("reversed_weights_one_layer", "vLLM-metax 270", "right ids, weights reversed, layer 3", MODEL, MIDDLE + 1),
    Row("not_renormalised", "vLLM PR 43223", "softmax order: weights do not sum to 1", MODEL, 1),
    Row("scale_lost", "sglang PR 31449", "scale 1.0: upper experts of layer 2 four times too large", MODEL, THIRD + 1),
    Row("coarse_router", "sglang PR 33764", "router GEMM with 3 bits of mantissa", ROUTING, 0),
    Row("coarse_router_small_batch", "sglang PR 33764", "the same, in steps of at most 8 tokens", ROUTING, 0),
    Row("past_the_bound", "vllm-ascend PR 11391", "invalid ids past 256 tokens a step", ROUTING, 0),
    Row("router_4_bits", "routers quantised with the rest", "router weights at 4 bits", ROUTING, 0),
    Row("approximate_top_k", "Anthropic 2025-09-17", "5 % of tokens lose their best expert", ROUTING, 0),
    Row("upper_half_ignored", "kekzl/imp PR 2056", "experts above a bound are never chosen", ROUTING, 0),
    Row("one_expert_a_layer_disabled", "SAFEx, arXiv 2506.17368", "one expert of 16 masked in each layer", ROUTING, 0),
    Row("one_expert_zeroed", "dead expert", "one expert of layer 1 gives nothing", MODEL, 2),
    Row("first_layer_rotated", "sglang PR 18213", "EPLB moved layer 0's experts without the map", ROUTING, 1),
    Row("third_layer_rotated", "sglang PR 17162", "EPLB moved layer 2's experts without the map", ROUTING, THIRD + 1),
    Row("two_experts_swapped", "Ascend/sglang 603", "two experts of layer 2 swapped", ROUTING, THIRD + 1),
    Row("last_layer_rotated", "EPLB, behind the last router", "the last layer's experts rotated", ("weights",)),
    Row("rebalanced_with_map", "EPLB as it should be", "all experts moved, with the map", HARMLESS),
    Row("physical_record", "EPLB, tap reads physical ids", "the record is mapped, the model is not", ("blind",)),
    Row("nan_router", "vLLM 22881, 47367", "NaN in the router of layer 2", (*MODEL, "blind"), THIRD),
    Row("shared_expert_lost", "vLLM 37856, PR 28377", "the network beside layer 2's experts gives 0", MODEL, THIRD + 1),
    Row("experts_8_bits", "benign control", "all experts at 8 bits", HARMLESS),
    Row("experts_4_bits", "benign control", "all experts at 4 bits, groups of 32", HARMLESS),
    Row("experts_2_bits", "too few bits", "all experts at 2 bits", MODEL, 1),
    Row("zero_record", "vLLM 44116, 49184", "the routing record is all zeros", ("blind",)),
)

_CHAT = "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
NO_BOS = _CHAT + "<start_of_turn>model\n"
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}### model:\n"
)

RESTARTS = (
    *(Restart(f"restart_{i}", "healthy restart", "the same deployment again", HARMLESS) for i in range(1, 6)),
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
    Restart("top_3", "wrong top-k", "config.json says top-3 instead of top-4", ROUTING, change="top_3", first_layer=0),
)

"""The contract between the tap (inside vLLM) and the sidecar: versioned msgpack frames, and nothing else.

A frame is one msgpack map. Fields may be added with a default and old frames stay readable, so an older tap works with
a newer sidecar; a change of meaning raises ``WIRE_VERSION``. Only counts per request cross this boundary: from expert
ids per token 91 % of the text can be recovered (arXiv 2602.04105).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

WIRE_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 1024 * 1024

CountArray = NDArray[np.uint32]
# A frame's shape: twice the largest in use (61 layers, 512 experts, 30,720 cells), and what every picture is made of.
MOST_LAYERS: Final = 512
MOST_EXPERTS: Final = 4096
MOST_CELLS: Final = 1 << 16  # layers x experts
# Bounds that a store and a memory can keep; checked where a frame is decoded. A range lets no nan and no infinity in.
LONGEST_NAME: Final = 255
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
Tag = Annotated[str, msgspec.Meta(max_length=64)]
Words = Annotated[str, msgspec.Meta(max_length=2000)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_FRAME_BYTES)]
Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Tally = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]  # -1: not limited
Time = Annotated[float, msgspec.Meta(ge=0, lt=2**33)]  # seconds since the epoch, until the year 2242
# Seconds, up to a year; a wall clock that was set back makes vLLM's own negative.
Duration = Annotated[float, msgspec.Meta(ge=-(2**25), le=2**25)]
Mean = Annotated[float, msgspec.Meta(ge=-(2**31), le=2**31)]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Tallies = Annotated[dict[Tag, Tally], msgspec.Meta(max_length=16)]
LayerIds = Annotated[list[Natural], msgspec.Meta(max_length=8 * MOST_LAYERS)]
PerLayer = Annotated[list[Mean], msgspec.Meta(max_length=8 * MOST_LAYERS)]
_DTYPES: Final[dict[str, type[np.unsignedinteger]]] = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32}


AGAIN: Final = 13  # characters that an id gets which came before: see ``domain.request_ids``
CHOICES: Final = 128  # numbers for the choices of each prompt, where a request has several of both

Reason = Literal["malformed", "too_large", "unknown_version", "wrong_shape", "model_too_large", "memory"]


class WireError(ValueError):
    """A frame that cannot be accepted; ``reason`` is a bounded label for a metric."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Counts(msgspec.Struct, frozen=True):
    """How often each expert was chosen: little-endian ``[layers, experts]`` in the narrowest type that holds it."""

    dtype: Literal["u1", "u2", "u4"]
    data: Annotated[bytes, msgspec.Meta(max_length=4 * MOST_CELLS)]


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every frame says of its origin.

    ``source`` names one process of one boot (``engine-0-5f3a``); ``seq`` counts its frames from 0 without gaps, so that
    losses, duplicates and reordering are seen.
    """

    version: int = WIRE_VERSION
    replica: Name
    source: Name
    seq: Tally
    sent_at: Time  # seconds since the epoch


class Model(Frame, frozen=True, kw_only=True, tag="model"):
    """What is served, announced when the tap attaches and again with every tenth ``Health``."""

    model: Name
    revision: Name = ""
    architecture: Name = ""
    weights: Name = ""  # a digest of the checkpoint's files, empty where unknown
    layers: Natural = 0  # layers with experts; 0 for a dense model
    layer_ids: LayerIds = []  # index of each of them in the whole model
    experts: Natural = 0
    top_k: Natural = 0
    ranks: Natural = 1  # expert-parallel ranks
    vllm_version: Name = ""
    tap_version: Name = ""
    runner: Literal["v1", "v2", ""] = ""
    moe_backend: Name = ""
    quantization: Name = ""
    dtype: Name = ""
    parallel: Annotated[dict[Tag, Natural], msgspec.Meta(max_length=16)] = {}  # tp, pp, dp, ep
    eplb: bool = False
    max_model_len: Size = 0
    max_num_batched_tokens: Size = 0


class Routing(Frame, frozen=True, kw_only=True, tag="routing"):
    """The fingerprint of one finished request.

    A position of the text is counted once: positions served by the prefix cache are not routed (``cached_tokens``),
    positions computed again after a preemption are not counted again (``recomputed_tokens``), and the last sampled
    token is never routed. For each layer ``sum(prompt) == prompt_routed * top_k``, and likewise for decode.
    """

    request_id: Name
    choice: Natural = 0  # which of the outputs of one request: see ``place``
    model: Name
    layers: Natural
    experts: Natural
    top_k: Natural
    prompt: Counts
    decode: Counts
    prompt_tokens: Natural
    prompt_routed: Natural
    decode_routed: Natural
    cached_tokens: Natural = 0
    recomputed_tokens: Natural = 0
    entropy: PerLayer | None = None  # [layers] mean router entropy, nats
    margin: PerLayer | None = None  # [layers] mean probability of top-1 minus top-2
    batch_mean: Mean = 0.0  # requests in a step, averaged over the steps of this request
    batch_max: Natural = 0
    outcome: Literal["finished", "aborted"] = "finished"
    finished_at: Time


class Latency(Frame, frozen=True, kw_only=True, tag="latency"):
    """Times of one finished request as vLLM's own statistics have them, in seconds."""

    request_id: Name
    choice: Natural = 0
    finish_reason: Tag
    e2e_s: Duration
    queue_s: Duration
    prefill_s: Duration
    decode_s: Duration
    ttft_s: Duration
    tpot_s: Duration
    prompt_tokens: Natural
    output_tokens: Natural
    cached_tokens: Natural = 0
    preemptions: Natural = 0
    corrupted: bool = False  # vLLM saw NaN in the logits
    finished_at: Time


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Text of one request, redacted before it left vLLM's process."""

    prompt: Text  # JSON of ``messages`` for chat, the text itself for completions
    outputs: Annotated[list[Text], msgspec.Meta(max_length=CHOICES * CHOICES)]  # one per choice, prompt by prompt
    prompts: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] = 1  # more than one: ``prompt`` is a JSON list of them
    # temperature, max_tokens, seed, response_format, ...
    params: Annotated[dict[Tag, Words | int | Finite | bool | None], msgspec.Meta(max_length=64)] = {}
    prompt_truncated: bool = False
    output_truncated: bool = False
    redactions: Natural = 0


class Request(Frame, frozen=True, kw_only=True, tag="request"):
    """What the HTTP layer knows of one request; ``sample`` only when sampling is on and chose it."""

    request_id: Name
    model: Name
    endpoint: Name  # "/v1/chat/completions"
    status: Natural
    stream: bool = False
    choices: Natural = 1
    images: Natural = 0
    domain: Tag = ""  # the client's tag, header X-Moe-Watch-Domain
    user: Tag = ""  # hash of the "user" field, so that a person's requests can be forgotten
    canary: bool = False  # it has a mark; whether moe-watch made that, the sidecar checks
    mark: Tag = ""  # header X-Moe-Watch-Canary, signed by who replays canaries
    unread: bool = False  # the body was too large or too rich to be read whole: choices, images or more are unknown
    disconnected: bool = False
    traceparent: Tag = ""  # W3C trace context that came with the request, so that a span of ours joins vLLM's trace
    sample: Sample | None = None
    sample_rate: Ratio = 0.0
    started_at: Time
    finished_at: Time


class Event(Frame, frozen=True, kw_only=True, tag="event"):
    """Something that may explain a change: a start of the engine, an EPLB rebalance, a tap that gave up."""

    kind: Literal["engine_start", "eplb_rebalance", "tap_off", "tap_refused", "tap_blind"]
    detail: Words = ""
    at: Time


class Health(Frame, frozen=True, kw_only=True, tag="health"):
    """What the tap knows of itself, every few seconds from every process; all counts since the boot of the source."""

    role: Literal["engine", "api"]
    state: Literal["on", "off", "refused", "dense", "blind"]
    reason: Words = ""
    sent: Tally = 0
    dropped: Tallies = {}  # by reason: queue_full, not_connected, error
    errors: Tally = 0
    steps: Tally = 0
    routed_tokens: Tally = 0
    requests_finished: Tally = 0
    requests_unrouted: Tally = 0  # finished without any routing though they computed tokens
    requests_open: Tally = 0


AnyFrame = Model | Routing | Latency | Request | Event | Health
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(AnyFrame)


class _Header(msgspec.Struct, frozen=True):
    version: int


_header_decoder = msgspec.msgpack.Decoder(_Header)


def encode(frame: AnyFrame) -> bytes:
    """Return ``frame`` as msgpack; raise ``WireError("too_large")`` above ``MAX_FRAME_BYTES``."""
    raw = _encoder.encode(frame)
    if len(raw) > MAX_FRAME_BYTES:
        raise WireError("too_large", f"{len(raw)} bytes, at most {MAX_FRAME_BYTES}")
    return raw


def decode(raw: bytes) -> AnyFrame:
    """Return the frame in ``raw``; raise ``WireError`` when it is malformed, too large or of an unknown version."""
    if len(raw) > MAX_FRAME_BYTES:
        raise WireError("too_large", f"{len(raw)} bytes, at most {MAX_FRAME_BYTES}")
    try:
        frame = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise _classify(raw, error) from error
    if frame.version != WIRE_VERSION:
        raise _unknown(frame.version)
    return frame


def _classify(raw: bytes, error: Exception) -> WireError:
    """Tell a frame of another version, which may well not decode, from a broken one."""
    try:
        version = _header_decoder.decode(raw).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return WireError("malformed", str(error))
    if version == WIRE_VERSION:
        return WireError("malformed", str(error))
    return _unknown(version)


def _unknown(version: int) -> WireError:
    return WireError("unknown_version", f"version {version}, this side speaks {WIRE_VERSION}")


def place(choice: int, prompts: int, outputs: int) -> tuple[int, int]:
    """Return which of ``prompts`` a choice answers and which of all ``outputs``, listed prompt by prompt, it is.

    >>> place(3, 1, 4), place(3, 4, 4), place(2 * 128 + 1, 3, 6)
    ((0, 3), (3, 3), (2, 5))
    """
    each = max(outputs // prompts, 1)
    if prompts == 1 or each == 1:
        return (0 if prompts == 1 else choice), choice
    prompt, own = divmod(choice, CHOICES)
    return prompt, prompt * each + own


def user_hash(user: str) -> str:
    """Return what stands for a person in frames and store, so that their requests can be found and forgotten."""
    return hashlib.sha256(b"moe-watch user " + user.encode()).hexdigest()[:32] if user else ""


def pack_counts(counts: NDArray[np.integer]) -> Counts:
    """Return ``counts`` (any shape, not negative, below 2**32) in the narrowest unsigned type.

    >>> pack_counts(np.array([[1, 300]])).dtype
    'u2'
    """
    highest = int(counts.max(initial=0))
    for name in ("u1", "u2", "u4"):
        if highest <= np.iinfo(_DTYPES[name]).max:
            return Counts(name, np.ascontiguousarray(counts, dtype=np.dtype(_DTYPES[name]).newbyteorder("<")).tobytes())
    raise WireError("wrong_shape", f"a count of {highest} does not fit 32 bits")


def check_counts(counts: Counts, layers: int, experts: int) -> None:
    """Raise ``WireError("wrong_shape")`` when ``counts`` are not ``layers * experts`` numbers."""
    if layers < 1 or experts < 1 or len(counts.data) != layers * experts * int(counts.dtype[1]):
        raise WireError("wrong_shape", f"{len(counts.data)} bytes of {counts.dtype} are not {layers} x {experts}")


def unpack_counts(counts: Counts, layers: int, experts: int) -> CountArray:
    """Return counts ``[layers, experts]``; raise ``WireError("wrong_shape")`` when the bytes are not that many."""
    check_counts(counts, layers, experts)
    dtype = np.dtype(_DTYPES[counts.dtype]).newbyteorder("<")
    return np.frombuffer(counts.data, dtype).astype(np.uint32).reshape(layers, experts)


def unpack_all(several: Sequence[Counts], layers: int, experts: int) -> CountArray:
    """Return counts ``[n, layers, experts]``, those of one type at once; raise ``WireError`` as ``unpack_counts``."""
    unpacked = np.empty((len(several), layers, experts), np.uint32)
    for name in {counts.dtype for counts in several}:
        rows = [row for row, counts in enumerate(several) if counts.dtype == name]
        for row in rows:
            check_counts(several[row], layers, experts)
        raw = b"".join([several[row].data for row in rows])
        unpacked[rows] = np.frombuffer(raw, f"<{name}").reshape(len(rows), layers, experts)
    return unpacked

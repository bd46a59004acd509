"""The wire: what is sent is what arrives, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect as mi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from moe_watch import wire
from moe_watch.domain import memory
from tests.support.frames import Tap

_TAP = Tap()
_FRAMES: list[wire.AnyFrame] = [
    _TAP.announce(layer_ids=[0, 2, 4], parallel={"tp": 2}),
    *_TAP.whole("cmpl-1"),
    _TAP.health(dropped={"queue_full": 3}),
    wire.Event(**_TAP.engine(), kind="engine_start", detail="hello", at=1.0),
    _TAP.request("cmpl-2", sample=wire.Sample(prompt="a", outputs=["b", "c"], params={"n": 2, "seed": None})),
]
_shapes = st.tuples(st.integers(1, 5), st.integers(1, 9))


def _refusal(raw: bytes) -> wire.Reason | None:
    try:
        wire.decode(raw)
    except wire.WireError as error:
        return error.reason
    return None


@pytest.mark.parametrize("frame", _FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_arrives_as_it_was_sent(frame: wire.AnyFrame) -> None:
    """Decoding an encoded frame gives an equal one."""
    assert wire.decode(wire.encode(frame)) == frame


@given(st.data(), _shapes, st.sampled_from([200, 60_000, 2**32 - 1]))
def test_counts_arrive_as_they_were_packed(data: st.DataObject, shape: tuple[int, int], highest: int) -> None:
    """Counts of any shape and size survive the narrowest type that holds them."""
    counts = data.draw(nps.arrays(np.uint32, shape, elements=st.integers(0, highest)))
    packed = wire.pack_counts(counts)
    assert (wire.unpack_counts(packed, *shape) == counts).all()
    assert len(packed.data) == counts.size * int(packed.dtype[1])


@given(_shapes, _shapes)
def test_counts_of_another_shape_are_refused(sent: tuple[int, int], expected: tuple[int, int]) -> None:
    """Unpacking as another number of experts is an error, never a reinterpretation."""
    packed = wire.pack_counts(np.zeros(sent, np.uint32))
    if sent[0] * sent[1] == expected[0] * expected[1]:
        return
    with pytest.raises(wire.WireError) as error:
        wire.unpack_counts(packed, *expected)
    assert error.value.reason == "wrong_shape"


def test_a_count_beyond_32_bits_is_refused() -> None:
    """What no type of the wire holds is not cut short."""
    with pytest.raises(wire.WireError):
        wire.pack_counts(np.array([[2**32]]))


@given(st.binary(max_size=400))
def test_garbage_is_refused_with_a_reason(raw: bytes) -> None:
    """Any bytes are either a frame or a WireError with a bounded reason."""
    assert _refusal(raw) in {None, "malformed", "unknown_version"}


@given(st.data())
def test_a_damaged_frame_is_refused_or_harmless(data: st.DataObject) -> None:
    """Flipping bytes of a real frame never raises anything but a WireError."""
    raw = bytearray(wire.encode(data.draw(st.sampled_from(_FRAMES))))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert _refusal(bytes(raw)) in {None, "malformed", "unknown_version"}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(), st.lists, max_leaves=9))
def test_other_msgpack_is_refused(thing: object) -> None:
    """Valid msgpack that is no frame is malformed."""
    with pytest.raises(wire.WireError):
        wire.decode(msgspec.msgpack.encode(thing))


def test_deep_nesting_is_refused() -> None:
    """A frame cannot exhaust the stack."""
    with pytest.raises(wire.WireError):
        wire.decode(b"\x91" * 100_000)


def test_another_version_is_told_from_a_broken_frame() -> None:
    """A frame of a later version is refused as such, whether its fields still decode or not."""
    later = msgspec.structs.replace(_FRAMES[0], version=wire.WIRE_VERSION + 1)
    for raw in (wire.encode(later), msgspec.msgpack.encode({"version": 99, "type": "brand-new"})):
        with pytest.raises(wire.WireError) as error:
            wire.decode(raw)
        assert error.value.reason == "unknown_version"


def test_a_field_of_a_later_tap_is_passed_over() -> None:
    """Fields that this side does not know do no harm."""
    fields = msgspec.msgpack.decode(wire.encode(_FRAMES[0]))
    assert wire.decode(msgspec.msgpack.encode(fields | {"added_later": [1, 2]})) == _FRAMES[0]


def test_what_a_store_cannot_keep_is_malformed() -> None:
    """Negative counts, numbers beyond 32 bits and endless names do not pass the decoder."""
    fields = msgspec.msgpack.decode(wire.encode(_FRAMES[1]))
    for wrong in ({"prompt_tokens": -1}, {"decode_routed": 2**31}, {"request_id": "x" * 256}, {"seq": -1}):
        with pytest.raises(wire.WireError) as error:
            wire.decode(msgspec.msgpack.encode(fields | wrong))
        assert error.value.reason == "malformed"


def _unbounded(kind: Any, path: str) -> Iterator[str]:
    """Yield what of a type has no bound: text, bytes, lists and maps without a length, floats without a range."""
    if isinstance(kind, mi.StrType | mi.BytesType | mi.ListType | mi.DictType | mi.VarTupleType | mi.SetType):
        if kind.max_length is None:
            yield f"{path}: {type(kind).__name__} without a length"
    elif isinstance(kind, mi.FloatType) and (kind.le is None and kind.lt is None):
        yield f"{path}: may be infinite"
    elif isinstance(kind, mi.FloatType) and kind.ge is None and kind.gt is None:
        yield f"{path}: may be minus infinity"
    elif isinstance(kind, mi.AnyType | mi.RawType):
        yield f"{path}: anything"
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(kind, name):
            yield from _unbounded(getattr(kind, name), f"{path}.{name}")
    for number, one in enumerate(getattr(kind, "types", ())):
        yield from _unbounded(one, f"{path}|{number}")
    for one in getattr(kind, "fields", ()):
        yield from _unbounded(one.type, f"{path}.{one.name}")


def test_every_field_of_every_frame_is_bounded() -> None:
    """Whoever adds a field to the wire says how long or how large it may be."""
    assert list(_unbounded(mi.type_info(wire.AnyFrame), "frame")) == []
    assert len(list(_unbounded(mi.type_info(dict[str, list[float]]), "x"))) == 4


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300], ids=str)
@pytest.mark.parametrize("frame", _FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_number_that_is_none_is_malformed(frame: wire.AnyFrame, wrong: float) -> None:
    """In whichever field of floats it stands: started_at and ttft_s as well as sent_at."""
    fields = msgspec.msgpack.decode(wire.encode(frame))
    floats = [name for name, value in fields.items() if isinstance(value, float)]
    assert floats
    for name in floats:
        assert _refusal(msgspec.msgpack.encode(fields | {name: wrong})) == "malformed", name


def test_what_frames_take_in_memory_is_weighed() -> None:
    """Nothing that is long weighs little."""
    heavy = _TAP.request("cmpl-4", sample=wire.Sample(prompt="x" * 100_000, outputs=["y" * 1000] * 100))
    routing = _TAP.routing("cmpl-5", prompt=wire.Counts("u1", bytes(50_000)), entropy=[1.0] * 1000)
    assert memory.weigh(heavy) > 200_000
    assert memory.weigh(routing) > 80_000
    assert memory.weigh(_TAP.latency("cmpl-6")) < 3000


def test_a_frame_beyond_the_limit_is_neither_sent_nor_taken() -> None:
    """Both sides hold to the size limit."""
    huge = _TAP.request("cmpl-3", sample=wire.Sample(prompt="x" * wire.MAX_FRAME_BYTES, outputs=[]))
    with pytest.raises(wire.WireError) as sending:
        wire.encode(huge)
    with pytest.raises(wire.WireError) as taking:
        wire.decode(b"x" * (wire.MAX_FRAME_BYTES + 1))
    assert sending.value.reason == taking.value.reason == "too_large"

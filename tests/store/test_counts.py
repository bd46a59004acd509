"""Packed fingerprints: what was counted is what comes back, whatever the counts are."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from moe_watch import wire
from moe_watch.store.codecs import arrays, counts
from tests.support.frames import Tap

_SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 19))
_HIGHEST = st.sampled_from([0, 1, 3, 40, 255, 256, 5_000, 65_536, 2**32 - 1])


@given(st.data(), st.lists(st.tuples(_SHAPES, _HIGHEST), max_size=8))
def test_counts_of_all_sizes_packed_together_come_back(
    data: st.DataObject, wanted: list[tuple[tuple[int, int], int]]
) -> None:
    """Neither their sizes nor their neighbours change what is kept of them."""
    made = [data.draw(nps.arrays(np.uint32, shape, elements=st.integers(0, top))) for shape, top in wanted]
    packed = counts.pack_all([wire.pack_counts(one) for one in made])
    for one, raw in zip(made, packed, strict=True):
        assert (arrays.unpack_counts(raw, *one.shape) == one).all()


@pytest.mark.parametrize("mean", [0.05, 0.5, 2, 6, 10, 20, 50, 100])
def test_every_width_is_smaller_than_the_counts_as_they_are(mean: float) -> None:
    """For each number of bits there are counts for which it is chosen."""
    made = np.random.default_rng(0).negative_binomial(1, 1 / (1 + mean), (30, 128)).astype(np.uint32)
    frame = wire.pack_counts(made)
    raw = counts.pack(frame)
    assert (arrays.unpack_counts(raw, 30, 128) == made).all()
    assert len(raw) <= len(frame.data) + 2


def test_a_part_without_tokens_takes_two_bytes() -> None:
    """Most requests of some kind have no generated part, or no prompt that was computed."""
    assert len(counts.pack(wire.pack_counts(np.zeros((30, 128), np.uint32)))) == 2


def test_what_older_versions_stored_is_still_read() -> None:
    """Deflated arrays of the three widths."""
    for letter, dtype in ((b"1", "<u1"), (b"2", "<u2"), (b"4", "<u4")):
        made = np.arange(24).reshape(3, 8)
        assert (arrays.unpack_counts(letter + zlib.compress(made.astype(dtype).tobytes()), 3, 8) == made).all()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_counts_are_refused(raw: bytes) -> None:
    """A damaged column is a ValueError, whatever is in it."""
    for start in (b"", b"p\x04", b"q\x07", b"r\x00"):
        try:
            found = arrays.unpack_counts(start + raw, 2, 5)
        except ValueError:
            continue
        assert found.shape == (2, 5)


def test_frames_of_one_batch_are_unpacked_together() -> None:
    """All at once gives what one after the other gives, and refuses what one would refuse."""
    tap = Tap()
    frames = [tap.routing(f"c-{tokens}", tokens=tokens).prompt for tokens in (0, 8, 4_000, 16, 300_000)]
    assert len({frame.dtype for frame in frames}) == 3
    assert (wire.unpack_all(frames, 3, 8) == [wire.unpack_counts(frame, 3, 8) for frame in frames]).all()
    assert wire.unpack_all([], 3, 8).shape == (0, 3, 8)
    with pytest.raises(wire.WireError):
        wire.unpack_all([*frames, wire.Counts("u1", b"123")], 3, 8)

"""The spool: in order, bounded, and whole up to where a crash cut it off."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_watch.store.spool import Spool, SpoolFullError


def _drain(spool: Spool) -> list[bytes]:
    out = []
    while (payload := spool.peek()) is not None:
        out.append(payload)
        spool.pop()
    return out


@given(st.lists(st.one_of(st.binary(max_size=50), st.none()), max_size=40), st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_first_in_is_first_out(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | None], segment: int
) -> None:
    """Like a queue, whatever the size of its files (None: take one out)."""
    spool, expected = Spool(tmp_path_factory.mktemp("spool"), 10**6, segment), list[bytes]()
    for step in steps:
        if step is not None:
            spool.append(step)
            expected.append(step)
        else:
            assert spool.peek() == (expected[0] if expected else None)
            spool.pop()
            expected = expected[1:]
    assert bool(spool) == bool(expected)
    assert list(spool.payloads())[-len(expected) :] == expected if expected else True
    assert _drain(spool) == expected
    assert spool.size == 0
    spool.close()


def test_what_was_not_taken_is_there_after_a_restart(tmp_path: Path) -> None:
    """A new process goes on where the files end; it may see again what was taken from a half-read file."""
    spool = Spool(tmp_path, 10**6, segment_bytes=30)
    for payload in (b"one" * 5, b"two" * 5, b"three" * 5):
        spool.append(payload)
    spool.pop()
    spool.close()
    again = Spool(tmp_path, 10**6)
    again.append(b"four")
    assert _drain(again) in ([b"two" * 5, b"three" * 5, b"four"], [b"one" * 5, b"two" * 5, b"three" * 5, b"four"])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_off_or_damaged_end_costs_its_record_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What was whole before the damage is read, nothing wrong ever is, and later files are read too."""
    folder = tmp_path_factory.mktemp("spool")
    spool, payloads = Spool(folder, 10**6), [bytes([n]) * (n + 1) for n in range(6)]
    for payload in payloads:
        spool.append(payload)
    spool.close()
    (path,) = folder.glob("*.spool")
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:at]
    else:
        raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    again = Spool(folder, 10**6)
    again.append(b"after")
    found = _drain(again)
    assert found[-1] == b"after"
    assert found[:-1] == payloads[: len(found) - 1]


def test_the_bound_holds(tmp_path: Path) -> None:
    """A record that does not fit is refused, and fits again after one was taken out."""
    spool = Spool(tmp_path, 100, segment_bytes=1)
    for _ in range(3):
        spool.append(b"x" * 20)
    with pytest.raises(SpoolFullError, match="84 of at most 100"):
        spool.append(b"x" * 20)
    spool.pop()
    spool.append(b"x" * 20)
    assert spool.size == sum(path.stat().st_size for path in tmp_path.glob("*.spool")) == 84


def test_a_full_disk_is_a_full_spool() -> None:
    """Where nothing can be written, that is said instead of raised from the file."""
    spool = Spool(Path("/dev/shm") / f"moe-watch-test-{id(object())}", 10**6)  # noqa: S108
    spool._out = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    spool._segments.append(spool._folder / "000000000001.spool")
    spool._sizes[spool._segments[0]] = 0
    with pytest.raises(SpoolFullError, match="cannot be written"):
        spool.append(b"x")
    spool.close()


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_disk_that_fills_refuses_small_and_large_records(tmp_path: Path, size: int) -> None:
    """A small one waits in a buffer, and closing the file tries to write it again: no other error comes of it."""
    spool = Spool(tmp_path, 10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        with pytest.raises(SpoolFullError):
            spool.append(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.append(b"room again")
    assert _drain(spool) == [b"room again"]


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    """What waits may have text of requests in it."""
    Spool(tmp_path / "spool", 100).close()
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_a_rewritten_spool_is_whole_and_has_no_damaged_end(tmp_path: Path) -> None:
    """Each payload is changed in its place, a record that was cut off goes, and what is appended later comes after."""
    spool = Spool(tmp_path, 10**6, segment_bytes=30)
    for payload in (b"one" * 5, b"two" * 5, b"three" * 5):
        spool.append(payload)
    spool.close()
    tail = max(tmp_path.glob("*.spool"))
    tail.write_bytes(tail.read_bytes()[:-1])
    again = Spool(tmp_path, 10**6)
    again.rewrite(bytes.upper)
    assert b"three" not in tail.read_bytes()
    again.append(b"four")
    assert _drain(again) == [b"ONE" * 5, b"TWO" * 5, b"four"]
    again.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """Two sidecars do not share a spool."""
    spool = Spool(tmp_path, 100)
    with pytest.raises(OSError, match="temporarily unavailable"):
        Spool(tmp_path, 100)
    spool.close()
    Spool(tmp_path, 100).close()

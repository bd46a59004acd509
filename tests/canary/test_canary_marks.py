"""What counts as moe-watch's own request is what moe-watch signed, and nothing that a client can say."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from moe_watch import wire
from moe_watch.canary import marks
from moe_watch.settings import CanarySettings
from moe_watch.store import engine, migrate
from tests.support.frames import Tap
from tests.support.judge_bench import Bench

KEY = "k" * 64
TEXT = wire.Sample(prompt="p", outputs=["o"])


def checker(key: str = KEY) -> marks.Checker:
    """Return one that knows ``key``."""
    made = marks.Checker()
    made.key = key
    return made


def asked(mark: str, *, at: float = 1e9, canary: bool = True) -> wire.Request:
    """Return the frame of a request that came ``at`` with ``mark``."""
    return Tap().request("a", mark=mark, canary=canary, started_at=at, sample=TEXT)


def is_canary(by: marks.Checker, request: wire.Request) -> bool:
    """Say what is found; its text is kept of what is none."""
    (found,) = by.check([request])
    assert isinstance(found, wire.Request)
    assert (found.sample is None) == found.canary
    return found.canary


def test_what_moe_watch_signed_is_its_own_once() -> None:
    """The second time a client has read it somewhere."""
    by, mark = checker(), marks.sign(KEY, 1e9)
    assert is_canary(by, asked(mark))
    assert not is_canary(by, asked(mark))
    assert is_canary(by, asked(marks.sign(KEY, 1e9)))


@pytest.mark.parametrize("late", [-301.0, 301.0, 1e8])
def test_a_mark_expires(late: float) -> None:
    """So that one that was kept is of no use after a restart either."""
    assert not is_canary(checker(), asked(marks.sign(KEY, 1e9), at=1e9 + late))
    assert is_canary(checker(), asked(marks.sign(KEY, 1e9), at=1e9 + 299))


@pytest.mark.parametrize("key", ["", "j" * 64])
def test_another_key_is_none(key: str) -> None:
    """Nor is the key that is not known yet."""
    assert not is_canary(checker(key), asked(marks.sign(KEY, 1e9)))
    assert not is_canary(checker(key), asked(marks.sign("", 1e9)))


@given(st.text(max_size=64))
def test_what_a_client_says_is_no_proof(mark: str) -> None:
    """Any word, and the bare claim of a tap that is older."""
    by = checker()
    assert not is_canary(by, asked(mark))
    assert not is_canary(by, asked(mark, canary=False))
    good = marks.sign(KEY, 1e9)
    assert not is_canary(by, asked(good[:-1] + ("0" if good[-1] != "0" else "1")))
    assert not is_canary(by, asked("".join(reversed(good))))


def test_marks_that_were_used_take_a_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that are good are remembered, the latest of them."""
    monkeypatch.setattr(marks, "_MOST_USED", 10)
    by = checker()
    assert all(is_canary(by, asked(marks.sign(KEY, 1e9))) for _ in range(50))
    assert not any(is_canary(by, asked(f"{number}")) for number in range(50))
    assert len(by._used) == 10


def test_the_store_keeps_one_key_whoever_asks_first(tmp_path: Path) -> None:
    """Commands and sidecars that share a store share it; a setting comes first."""
    url = f"sqlite:///{tmp_path}/a.db"
    store = engine.connect(url)
    migrate.upgrade(store)
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(lambda _: marks.secret(CanarySettings(), engine.connect(url)), range(8)))
    (key,) = found
    assert len(key) == 64
    assert marks.secret(CanarySettings(secret=SecretStr("mine")), store) == "mine"


@pytest.mark.parametrize("hiding", [{"mark": "anything", "canary": True}, {"canary": True}, {"mark": "1"}])
@pytest.mark.parametrize("constant", [False, True])
def test_a_client_hides_neither_by_a_mark_nor_by_a_constant_id(
    hiding: dict[str, str | bool], *, constant: bool
) -> None:
    """600 requests of a kind that was never seen: all are counted, and the alarm opens."""
    bench, by, name = Bench(), checker(), "chatcmpl-always" if constant else None
    bench.learn()
    written = []
    for _ in range(600):
        routing, latency, request = bench.tap.whole(name, unseen=True)
        assert isinstance(request, wire.Request)
        told = bench.tap.request(request.request_id, **hiding)
        joined = bench.join.add(by.check([routing, latency, told]), 0.0)
        writes = bench.monitors.process(joined, bench.now)
        written += writes.requests
        bench.written.extend(writes)
        bench.tick(0.1)
    assert len({row.values["request_id"] for row in written}) == 600
    assert not any(row.values["canary"] for row in written)
    assert "traffic" in {alarm.values["kind"] for alarm in bench.written.alarms}


def test_a_mark_fits_a_frame() -> None:
    """At any time."""
    for now in (0, time.time(), 2.0**33):
        assert len(marks.sign(KEY, now)) == 58

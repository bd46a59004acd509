"""What shadow and canaries wrote becomes news once, of the model that is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.background import BackgroundReader, Served
from moe_watch.store import engine
from moe_watch.store.records import canaries, served_models
from moe_watch.store.schema import CanaryRun
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes
from tests.support.frames import Tap
from tests.support.judge_bench import Bench


def _check(store: Engine, tap: Tap, verdict: str, at: float, *, reference: bool = False, **announced: object) -> None:
    model = served_models.by_identity(store, served_models.identity(tap.announce(**announced)))
    assert model is not None
    run = CanaryRun(
        model_id=model.id,
        at=at,
        set_version="s",
        engine="vllm",
        load="idle",
        replica=tap.replica,
        reference=reference,
        verdict=verdict,
        first_layer=1,
        effect=2.0,
        summary="moved",
        evidence={},
        blob=b"",
    )
    canaries.save(store, run)


def test_a_check_is_news_once(store: Engine) -> None:
    """The last check is reported when it is new, and not again."""
    tap = Tap()
    write(store, some_writes(0, tap))
    one = Served("tiny", "r0", served_models.identity(tap.announce()))
    background = BackgroundReader(store, Settings(), Board())
    assert background.news([one], 10.0) == []
    _check(store, tap, "healthy", 20.0)
    _check(store, tap, "routing", 30.0)
    (news,) = background.news([one], 40.0)
    assert news.canary is not None
    assert (news.replica, news.canary.verdict) == ("r0", "routing")
    assert background.news([one], 50.0) == []


@pytest.mark.parametrize(("again", "ending"), [(None, "recovered"), (35.0, "reference_replaced")])
def test_a_reference_that_was_recorded_anew_cures_nothing(store: Engine, again: float | None, ending: str) -> None:
    """A healthy check against rounds of after the alarm says that the model is as it was then."""
    bench = Bench()
    write(store, bench.monitors.collect(bench.now))
    one = Served("tiny", "r0", bench.monitors.by_replica["r0"].identity)
    background = BackgroundReader(store, Settings(), Board())
    _check(store, bench.tap, "", 5.0, reference=True)
    _check(store, bench.tap, "routing", 30.0)
    bench.monitors.learn(background.news([one], 31.0), 31.0)
    assert set(bench.monitors.by_replica["r0"].alarms.open) == {"routing"}
    if again is not None:
        canaries.retire(store, "tiny", "s")
        _check(store, bench.tap, "", again, reference=True)
    _check(store, bench.tap, "healthy", 40.0)
    bench.monitors.learn(background.news([one], 41.0), 41.0)
    assert bench.monitors.by_replica["r0"].alarms.ended[0]["ending"] == ending


def test_a_check_of_another_model_under_the_same_name_is_no_news(store: Engine) -> None:
    """After a redeployment the verdict on the old weights says nothing."""
    tap = Tap()
    write(store, some_writes(0, tap))
    write(store, served_models.announcement(tap.announce(weights="new"), 1.0))
    _check(store, tap, "routing", 20.0)
    one = Served("tiny", "r0", served_models.identity(tap.announce(weights="new")))
    background = BackgroundReader(store, Settings(), Board())
    assert background.news([one], 30.0) == []
    _check(store, tap, "healthy", 40.0, weights="new")
    assert len(background.news([one], 50.0)) == 1


def test_a_store_that_is_away_gives_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a companion that breaks end the sidecar."""
    one = Served("tiny", "r0", "x")
    background = BackgroundReader(engine.connect(f"sqlite:///{tmp_path}/empty.db"), Settings(), Board())
    assert background.news([one], 1.0) == []

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("moe_watch.sidecar.background.canaries.latest", broken)
    assert background.news([one], 1.0) == []

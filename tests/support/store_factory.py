"""A realistic store without a server: simulated traffic through the real aggregation, scoring and writes."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.store import engine, migrate, schema
from moe_watch.store.records import baselines, served_models
from moe_watch.store.write.batch import write
from tests.support.story import DAY, DOMAINS, MODEL, NEW_DOMAIN, UNTIL, Story, World

__all__ = ["DAY", "DOMAINS", "MODEL", "NEW_DOMAIN", "UNTIL", "Story", "World", "fill", "make", "shared"]


def make(path: Path, story: Story | None = None) -> Engine:
    """Make a SQLite store at ``path`` and fill it; return its engine."""
    opened = engine.connect(f"sqlite:///{path}")
    migrate.upgrade(opened)
    fill(opened, story or Story())
    return opened


def fill(store: Engine, story: Story) -> None:
    """Write everything that ``story`` tells into ``store``."""
    world = World(story)
    announced = world.announcement()
    identity = served_models.identity(announced)
    write(store, served_models.announcement(announced, story.start))
    model = served_models.by_name(store, announced.model)[0]
    fitted, key = None, None
    builder = BaselineBuilder(minimum=200)
    for at, requests in world.windows():
        day = (at - story.start) / DAY
        if fitted is None and story.baseline_day is not None and day >= story.baseline_day:
            row = baselines.save(store, model, builder.build(), now=at - 60, note="first week of traffic")
            fitted, key = builder.build(), row.id
            baselines.promote(store, model, row.version, now=at)
        write(store, world.writes(identity, at, requests, fitted, key))
        builder.add(world.batch(requests)) if fitted is None else None
    _history(store, story, model, key)
    if story.shadow:
        _shadows(store, story, model)
    if story.bench:
        _bench(store, story)


def _history(store: Engine, story: Story, model: schema.Model, key: int | None) -> None:
    """Write alarms, events and replays of the canaries."""
    with Session(store) as session, session.begin():
        if story.drift is not None:
            began = story.start + story.drift[0] * DAY
            ended = story.start + story.drift[1] * DAY
            session.add(
                schema.Alarm(
                    model_id=model.id, replica=story.replicas[0], kind="traffic", began_at=began,
                    flagged_at=began + 1500, ended_at=None if ended >= story.until else ended, baseline_id=key,
                    summary=f"{MODEL} at {story.replicas[0]}: expert routing left baseline 1 in layer "
                    f"{story.layers // 3} (layer); 9.5% of the latest requests are out of distribution, 1.0% expected",
                    evidence={"channel": "layer", "layer": story.layers // 3, "ood_ratio": 0.095, "evidence": 1.04,
                              "requests_since": 41, "average_run_length": 10_000.0, "requests": []},
                )
            )  # fmt: skip
        for replica, day in ((story.replicas[0], story.days - 2.75), (story.replicas[-1], story.days - 2.74)):
            at = story.start + day * DAY
            detail = "vllm 0.32.0, triton, tp 2"
            session.add(schema.Event(at=at, replica=replica, model_id=model.id, kind="engine_start", detail=detail))
        if story.canaries:
            for day in np.arange(0.3, story.days, 0.5):
                session.add(
                    schema.CanaryRun(
                        model_id=model.id, at=story.start + day * DAY, set_version="builtin-1", engine="vllm",
                        load="loaded" if int(day * 2) % 3 else "idle", replica=story.replicas[0], reference=False,
                        verdict="healthy", first_layer=None, effect=0.31, blob=b"",
                        summary="100 prompts routed as in the reference, shift 0.3 of the noise floor",
                    )
                )  # fmt: skip


def _shadows(store: Engine, story: Story, model: schema.Model) -> None:
    """Let the dense model judge the sampled requests; the gap grows with the OOD score."""
    random = np.random.default_rng(story.seed + 1)
    query = (
        select(schema.Request.id, schema.Request.finished_at, schema.Request.ood_p, schema.Request.ood_score)
        .join(schema.Sample, schema.Sample.request_pk == schema.Request.id)
        .where(schema.Request.model_id == model.id)
    )
    with Session(store) as session, session.begin():
        for pk, at, p, score in session.execute(query):
            chosen = 1.0 if p is not None and p <= 0.05 else 0.5
            scored = bool(random.random() < chosen)
            harm = story.gap_at_most_unusual * (0.0 if score is None else 1 / (1 + np.exp(1.5 - score)))
            dense = float(random.normal(0.9, 0.2))
            bad = bool(random.random() < 0.01 + harm * 0.15)
            session.add(
                schema.Shadow(
                    request_pk=pk, at=at + 20, outcome="scored" if scored else "signals", weight=1 / chosen / 0.3,
                    sample_weight=1 / 0.3, dense_model="google/gemma-4-31b-it",
                    nll_moe_output=dense + 0.05 + harm + float(random.normal(0, 0.12)) if scored else None,
                    nll_dense_output=dense if scored else None, moe_tokens=120, dense_tokens=118,
                    agreement=float(np.clip(random.beta(3, 2) - harm, 0, 1)) if scored else None,
                    top1=0.9 if scored else None, judge=None,
                    defects={"moe": ["repetition"] if bad else [], "dense": []} if scored
                    else {"moe": ["repetition"] if bad else []},
                    dense_ttft_s=0.4 if scored else None,
                    dense_tpot_s=float(random.lognormal(np.log(0.05), 0.2)) if scored else None,
                    dense_concurrency=4.0 if scored else None,
                )
            )  # fmt: skip


def _bench(store: Engine, story: Story) -> None:
    """Write one side-by-side load of both servers."""
    with Session(store) as session, session.begin():
        for concurrency, ratio in ((1, 0.82), (4, 1.12), (16, 1.63), (64, 2.05)):
            session.add(
                schema.ServerBench(
                    at=story.until - 3 * DAY, moe_model=MODEL, dense_model="google/gemma-4-31b-it",
                    concurrency=concurrency, moe_tokens_per_s=42.0 * concurrency**0.7 * ratio,
                    dense_tokens_per_s=42.0 * concurrency**0.7, ratio=ratio, ratio_lower=ratio * 0.95,
                    ratio_upper=ratio * 1.05, moe_ttft_s=0.2, dense_ttft_s=0.25, rounds=5, requests=concurrency * 10,
                )
            )  # fmt: skip


@cache
def shared() -> Engine:
    """Return a store with the default story, made once for all tests that only read."""
    folder = tempfile.TemporaryDirectory(prefix="moe-watch-story-")
    _kept.append(folder)
    return make(Path(folder.name) / "store.db")


_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed at exit

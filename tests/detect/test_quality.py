"""The quality review over the store's rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.orm import Session

from moe_watch.detect.quality import against_dense
from moe_watch.detect.quality.against_dense import Observed
from moe_watch.store.records import shadows
from tests.support import shadow_store


@pytest.fixture
def seen(tmp_path: Path) -> Observed:
    """Return 300 requests: images have a gap of 0.5, text of 0.1; unusual ones are worse; some were not replayed."""
    store, rng = shadow_store.make(tmp_path), np.random.default_rng(41)
    with Session(store) as session, session.begin():
        for pk in range(1, 301):
            image, ood = pk % 10 == 0, float(rng.normal())
            values = {
                "images": int(image),
                "ood_score": ood,
                "prompt_tokens": 100 if pk % 2 else 20_000,
                "domain": "law" if pk % 3 else "code",
                "batch_mean": (1.0, 3.2, 40.0)[pk % 3],
                "defects": {"moe": ["json"] if pk % 50 == 0 else [], "dense": ["refusal"] if pk % 100 == 0 else []},
                "weight": 1.0 if ood > 1.5 else 10.0,
            }
            if pk > 280:
                values |= {"outcome": "signals", "nll_moe_output": None, "nll_dense_output": None}
                values["defects"] = {"moe": []}
            gap = (0.5 if image else 0.1) + 0.2 * max(ood, 0) + 0.02 * rng.normal()
            shadow_store.add_shadow(session, pk, at=float(pk), gap=gap, **values)
    with Session(store) as session:
        return shadows.observed(session, 0, 1e9, model="moe", replica="r0")


def test_groups_are_told_apart(seen: Observed) -> None:
    """Modality, context, domain, batch and version each have their own gap with an interval."""
    found = against_dense.review(seen).by_group
    assert found["modality"]["image"].lower > found["modality"]["text"].upper
    assert set(found["context"]) == {"4k", "32k"}
    assert set(found["domain"]) == {"law", "code"}
    assert set(found["batch"]) == {"1 at a time", "2-4 at a time", "17-64 at a time"}
    assert list(found["version"]) == ["1"]


def test_gap_rises_along_the_ood_score(seen: Observed) -> None:
    """The curve's last decile is above its first and the trend says so."""
    found = against_dense.review(seen)
    assert found.curve.deciles[9].value > found.curve.deciles[0].value + 0.1
    assert found.trend.p < 0.001
    assert found.curve.monotone


def test_defects_are_shares_of_what_was_looked_at(seen: Observed) -> None:
    """The MoE's defects count over all samples, the dense model's over replays; refusals are not garbled."""
    found = against_dense.review(seen)
    assert found.defects["json"].requests == 300
    assert found.dense_defects["refusal"].requests == 280
    assert found.garbled.value == pytest.approx(5 / 300, abs=1e-6)
    assert found.outcomes == {"scored": 280, "signals": 20}


def test_an_empty_period_has_estimates_that_are_false(tmp_path: Path) -> None:
    """No rows, no numbers, no error."""
    with Session(shadow_store.make(tmp_path)) as session:
        found = against_dense.review(shadows.observed(session, 0, 1e9))
    assert not found.gap
    assert not found.garbled
    assert not any(found.curve.deciles)
    assert np.isnan(found.trend.rise)


def test_rows_of_a_part_are_a_part(seen: Observed) -> None:
    """Taking rows keeps every column and group in step."""
    part = seen.rows(seen.at <= 10)
    assert len(part.gap) == len(part.groups["domain"]) == len(part.defects["json"]) == 10
    assert against_dense.compare(part, seen).cause in {"none", "moe", "traffic", "both"}


def test_judge_is_held_to_the_likelihood(tmp_path: Path) -> None:
    """A judge that prefers the dense answer where the gap is positive agrees with it; ties are left out."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in range(1, 41):
            gap = 0.2 if pk % 2 else -0.2
            judge = 0.0 if pk % 4 == 0 else -1.0 if gap > 0 else 1.0
            shadow_store.add_shadow(session, pk, at=float(pk), gap=gap, judge=-judge if pk <= 3 else judge)
    with Session(store) as session:
        found = against_dense.review(shadows.observed(session, 0, 1e9)).judge_agreement
    assert found.requests == 30
    assert found.value == pytest.approx(27 / 30)
    assert found.lower > 0.5


def test_the_usual_requests_are_compared_apart(seen: Observed) -> None:
    """Among requests as unusual as before nothing changed when usual ones stayed away; a fault shows."""
    rows = np.arange(len(seen.at))
    unusual = seen.ood > np.nanquantile(seen.ood, 0.7)
    before, after = seen.rows(rows % 4 < 2), seen.rows((rows % 4 >= 2) & (unusual | (rows % 3 == 0)))
    assert against_dense.compare(before, after).effect.value > 0.02
    alike = against_dense.compare_alike(before, after).effect
    assert alike.lower < 0 < alike.upper
    broken = replace(after, nll_moe=after.nll_moe + 0.3)
    assert against_dense.compare_alike(before, broken).effect.value == pytest.approx(alike.value + 0.3)

"""Which layers and experts an open drift moved: told by the requests that finished after its alarm."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import moments
from moe_watch.detect.drift.localise import Localisation, localise
from moe_watch.detect.drift.moments import Moments
from moe_watch.detect.drift.naming_limits import FEWEST, FEWEST_RANKED

_MOST_LAYERS: Final = 5
_MOST_EXPERTS: Final = 20  # kept with an alarm
_AGAIN: Final = 2  # the answer is renewed when requests have doubled: more of them name smaller changes


class DriftLocation:
    """Adds fresh requests up; an answer costs about a millisecond at 30 x 128, so it is renewed rarely."""

    def __init__(self, normal: Moments) -> None:
        self.found: Localisation | None = None
        self._normal = normal
        self._fresh = Moments.zero(*normal.counts.shape)
        self._due = FEWEST_RANKED

    def add(self, batch: Batch) -> bool:
        """Take in requests; say whether there is a new answer in ``found``."""
        self._fresh += moments.of_batch(batch)
        if self._fresh.requests < self._due:
            return False
        self.found = localise(self._normal, self._fresh)
        self._due = FEWEST if self._fresh.requests < FEWEST else self._fresh.requests * _AGAIN
        return True


def evidence(found: Localisation, layer_ids: list[int]) -> dict[str, Any]:
    """Return what is kept with the alarm: the layers that moved most, and the experts where they can be named."""
    experts = None
    if found.experts is not None:
        experts = [
            {
                "layer": layer_ids[one.layer],
                "expert": one.expert,
                "before": one.before,
                "now": one.now,
                "effect": one.effect,
            }
            for one in found.experts[:_MOST_EXPERTS]
        ]
    return {
        "requests": found.requests,
        "layers": [layer_ids[row] for row in found.layers[:_MOST_LAYERS]],
        "named": None if found.experts is None else len(found.experts),
        "experts": experts,
    }

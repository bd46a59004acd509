"""What runs beside the pipeline in ``serve``: the dense shadow, the quality it measures, and the canaries' results.

They meet the pipeline in the store and on the board alone, so each may as well run in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.detect.drift.replica import Standing
from moe_watch.fleet import siblings as fleet
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.shadow.watch import Change, QualityWatch
from moe_watch.store.records import canaries
from moe_watch.store.records.served_models import by_identity
from moe_watch.store.schema import CanaryRun

_log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """One model at one replica."""

    model: str
    replica: str
    identity: str


@dataclass(frozen=True)
class Siblings:
    """What the comparison of the model's replicas says of one of them, and of all together."""

    standing: Standing
    replicas: int
    flagged_at: float  # 0 while it is not flagged
    where: dict[str, Any] | None  # layers and experts in which it differs
    scored: int  # requests of all replicas with a p-value, lately
    unusual: int  # out-of-distribution ones among them


@dataclass(frozen=True)
class News:
    """What was found out about one replica: alarms of quality, and what is new of canaries and siblings, else None."""

    replica: str
    quality: list[Change]
    canary: CanaryRun | None
    siblings: Siblings | None = None
    reference_since: float = 0.0  # of what the canaries were held against


@dataclass
class BackgroundReader:
    """Reads what shadow and canaries wrote; call it off the event loop."""

    engine: Engine
    settings: Settings
    board: Board
    _quality: QualityWatch = field(init=False)
    _canary: dict[Served, int] = field(default_factory=dict)  # the run that was seen last
    _compared: dict[Served, float] = field(default_factory=dict)  # through when

    def __post_init__(self) -> None:
        """Begin with nothing seen."""
        self._quality = QualityWatch(self.engine, self.settings, self.board)

    def news(self, served: Sequence[Served], now: float) -> list[News]:
        """Return what is new of each model served; a store that is away gives no news."""
        out = []
        states = {one.identity: _guarded(fleet.read, self.engine, one.identity) for one in served}
        for one in served:
            quality = _guarded(self._quality.update, one.model, one.replica, now) or []
            canary = _guarded(self._new_check, one)
            siblings = self._new_comparison(one, states[one.identity])
            if quality or canary is not None or siblings is not None:
                since = _guarded(canaries.reference_since, self.engine, canary) if canary is not None else None
                out.append(News(one.replica, quality, canary, siblings, since or 0.0))
        return out

    def _new_comparison(self, served: Served, state: fleet.State | None) -> Siblings | None:
        """Return how the replica compares with its siblings, unless that was seen before or it was never compared."""
        name = served.replica
        if state is None or name not in state.standings or self._compared.get(served) == state.through:
            return None
        self._compared[served] = state.through
        scored, unusual = (sum(pair[side] for pair in state.scored) for side in (0, 1))
        since, where = state.since.get(name, 0.0), state.where.get(name)
        return Siblings(state.standings[name], len(state.standings), since, where, scored, unusual)

    def _new_check(self, served: Served) -> CanaryRun | None:
        """Return the last check by canaries unless it was seen before, or was of another model under the same name."""
        run = canaries.latest(self.engine, served.model, served.replica)
        if run is None or self._canary.get(served) == run.id:
            return None
        self._canary[served] = run.id
        model = by_identity(self.engine, served.identity)
        return run if model is not None and run.model_id == model.id else None


def _guarded(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what ``ask`` finds; None when the store is away or what it asks fails, which must not end the sidecar."""
    try:
        return ask(*args, **kwargs)
    except SQLAlchemyError:
        return None
    except Exception:  # noqa: BLE001
        _log.exception("what runs beside the pipeline cannot be read")
        return None

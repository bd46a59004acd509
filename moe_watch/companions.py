"""What runs beside the pipeline in ``serve``: the dense shadow, the quality it measures, and the canaries' results.

They meet the pipeline in the store and on the board alone, so each may as well run in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.export.snapshot import Board
from moe_watch.settings import Settings
from moe_watch.shadow.watch import Change, QualityWatch
from moe_watch.store import canaries
from moe_watch.store.models import CanaryRun
from moe_watch.store.served import by_identity

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
class News:
    """What was found out about one replica: alarms of quality, and the last check by canaries when it is a new one."""

    replica: str
    quality: list[Change]
    canary: CanaryRun | None


@dataclass
class Companions:
    """Reads what shadow and canaries wrote; call it off the event loop."""

    engine: Engine
    settings: Settings
    board: Board
    _quality: QualityWatch = field(init=False)
    _canary: dict[Served, int] = field(default_factory=dict)  # the run that was seen last

    def __post_init__(self) -> None:
        """Begin with nothing seen."""
        self._quality = QualityWatch(self.engine, self.settings, self.board)

    def news(self, served: Sequence[Served], now: float) -> list[News]:
        """Return what is new of each model served; a store that is away gives no news."""
        out = []
        for one in served:
            quality = _guarded(self._quality.update, one.model, one.replica, now) or []
            canary = _guarded(self._new_check, one)
            if quality or canary is not None:
                out.append(News(one.replica, quality, canary))
        return out

    def _new_check(self, served: Served) -> CanaryRun | None:
        """Return the last check by canaries unless it was seen before, or was of another model under the same name."""
        run = canaries.latest(self.engine, served.model, served.replica)
        if run is None or self._canary.get(served) == run.id:
            return None
        self._canary[served] = run.id
        model = by_identity(self.engine, served.identity)
        return run if model is not None and run.model_id == model.id else None


def _guarded(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what ``ask`` finds; None when the store is away or a companion broke, which must not end the sidecar."""
    try:
        return ask(*args, **kwargs)
    except SQLAlchemyError:
        return None
    except Exception:  # noqa: BLE001
        _log.exception("a companion failed")
        return None

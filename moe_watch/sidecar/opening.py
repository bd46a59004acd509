"""Opens the store for a sidecar: a SQLite file is its own, the schema is the newest, and what it knows is read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import IO

import structlog
from sqlalchemy import Engine

from moe_watch import wire
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.store import engine, losses, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.records import alarms, baselines, served_models

_log = structlog.get_logger()


@dataclass(frozen=True)
class Known:
    """What a store knows of the models that are served: announcements, and baselines by identity."""

    announced: list[wire.Model]
    active: dict[str, baselines.Active]
    normals: dict[str, Normal]
    dropped: dict[str, losses.Counts]  # by replica: what the taps dropped and windows hold already


class Opening:
    """The opening of one store by one sidecar, which may take many tries."""

    def __init__(self, url: str, store: Engine, sidecar: str) -> None:
        self._url, self._store, self._sidecar = url, store, sidecar
        self._owner: IO[bytes] | None = None

    def own(self) -> None:
        """Keep other sidecars off a SQLite file; raise ``StoreError`` when one has it or nothing can be written."""
        if self._owner is None:
            self._owner = engine.own(self._url)

    def open(self) -> Known:
        """Return what the store knows; the alarms that a stopped sidecar left open are over then.

        Raises ``StoreError``, ``sqlalchemy.exc.SQLAlchemyError`` or ``OSError`` while the store cannot be written.
        """
        self.own()
        _prepare(self._store)
        announced = served_models.announced(self._store, self._sidecar)
        alarms.close_open(self._store, [model.replica for model in announced], time.time())
        active = baselines.active(self._store)
        return Known(announced, active, normals(self._store, active), losses.read(self._store, self._sidecar))

    def close(self) -> None:
        """Let another sidecar have the file."""
        if self._owner is not None:
            self._owner.close()


def normals(store: Engine, active: dict[str, baselines.Active]) -> dict[str, Normal]:
    """Return the active baselines by identity, as far as they can be used."""
    found: dict[str, Normal] = {}
    for identity, one in active.items():
        try:
            found[identity] = Normal(one, baselines.load(store, one.id))
        except StoreError as error:
            _log.error("a baseline cannot be used", why=str(error))
    return found


def _prepare(store: Engine) -> None:
    """Bring the store to the newest schema; raise ``StoreError`` when it is away, or an outdated Postgres."""
    engine.check(store)
    if not migrate.is_current(store):
        if store.dialect.name != "sqlite" and migrate.current(store) is not None:
            raise StoreError("the store has an older schema: run `moe-watch db upgrade` once, wherever it is reached")
        migrate.upgrade(store)

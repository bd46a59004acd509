"""The modules that one request passes, from the tap's frames to store and metrics, without vLLM.

``python -m tests.support.path_of_a_request`` prints them in the order in which each is first called, and the number.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import zmq

from moe_watch import wire
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.metrics import prometheus
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.fingerprints import batch_of
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.sidecar.receiver import FrameReceiver
from moe_watch.store import engine, migrate
from moe_watch.store.records import baselines, served_models
from moe_watch.store.write.batch import write
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S

_PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"


@dataclass
class Passed:
    """The modules in the order of their first call, and which module called which."""

    modules: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        """Take note of a call; what is called from a library counts as called by who called the library."""
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith("moe_watch."):
            return
        if module not in self.modules:
            self.modules.append(module)
        caller = frame.f_back
        while caller is not None and not caller.f_globals.get("__name__", "").startswith("moe_watch."):
            caller = caller.f_back
        if caller is not None and (pair := (caller.f_globals["__name__"], module)) not in self.calls:
            self.calls.append(pair)


class _World:
    """A replica with a baseline, and everything between its socket and the store."""

    def __init__(self, folder: Path, taps: zmq.Socket[bytes], frames: zmq.Socket[bytes]) -> None:
        settings, self.board, self.tap = Settings(store={"url": f"sqlite:///{folder}/store.db"}), Board(), Tap()
        self.store = engine.connect(settings.store.url)
        migrate.upgrade(self.store)
        self.monitors, self.receiver = (
            ReplicaMonitors(settings, self.board),
            FrameReceiver(settings, frames, self.board),
        )
        self.now = time.time()
        self._taps, self._frames, self.model = taps, frames, self.tap.announce()
        self.monitors.announce(self.model, time.time())
        self.monitors.hear(self.tap.health(), time.time())
        write(self.store, self.monitors.collect(time.time()))
        self._learn()

    def _learn(self) -> None:
        requests = Join(5.0).add([frame for _ in range(400) for frame in self.tap.whole()], 0.0)
        builder = BaselineBuilder(minimum=300)
        builder.add(batch_of(self.model, requests)[0])
        (model,) = served_models.by_name(self.store)
        saved = baselines.save(self.store, model, builder.build(), now=time.time())
        baselines.promote(self.store, model, saved.version, now=time.time())
        active = baselines.active(self.store)
        self.monitors.use({key: Normal(one, baselines.load(self.store, one.id)) for key, one in active.items()}, 0.0)

    def pass_one(self) -> None:
        """Send one request to the monitors, and what they found to the store and to a scrape."""
        for frame in self.tap.whole():
            self._taps.send(wire.encode(frame))
            assert self._frames.poll(PATIENCE_S * 1000)
            self.receiver.take()
        batch = self.receiver.finished()
        assert len(batch.joined) == 1
        write(self.store, self.monitors.process(batch.joined, time.time()))
        self.receiver.done(batch)
        self.now += 10.0  # long enough for layers to be looked at again
        write(self.store, self.monitors.tick(self.now))
        assert list(prometheus.registry(self.board).collect())


def path_of_a_request(folder: Path) -> Passed:
    """Return the path of one request through receiver, monitors, store and metrics; others went before it."""
    found = Passed()
    with _socket() as (taps, frames):
        world = _World(folder, taps, frames)
        taps.send(wire.encode(world.tap.announce()))
        world.pass_one()
        sys.setprofile(found.see)
        try:
            world.pass_one()
        finally:
            sys.setprofile(None)
        world.store.dispose()
    return found


@contextmanager
def _socket() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PULL) as frames, context.socket(zmq.PUSH) as taps:
        frames.bind("inproc://taps")
        taps.connect("inproc://taps")
        yield taps, frames


def layers() -> list[list[str]]:
    """Return the rooms of each layer, the highest first, from the rule that `make check` holds."""
    contracts = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    return [[name.strip() for name in layer.split("|")] for layer in contracts[0]["layers"]]


def height(module: str) -> int:
    """Return the layer of ``module``: 0 is the lowest."""
    for above, names in enumerate(reversed(layers())):
        if any(f"{module}.".startswith(f"{name}.") for name in names):
            return above
    return 0


def main() -> None:
    """Print the path."""
    with tempfile.TemporaryDirectory() as folder:
        found = path_of_a_request(Path(folder))
    for number, module in enumerate(found.modules, 1):
        print(f"{number:3}  {height(module)}  {module.removeprefix('moe_watch.')}")  # noqa: T201
    print(f"{len(found.modules)} modules; the second column is the layer, 0 the lowest")  # noqa: T201


if __name__ == "__main__":
    main()

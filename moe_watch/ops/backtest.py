"""Runs today's detectors over recorded fingerprints and says when each drift would have been flagged.

The stream of one replica is sequential, so a replica is the unit of work: replicas run one after the other here, or
each on a worker of a Ray cluster, with the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline


@dataclass(frozen=True)
class Recorded:
    """Fingerprints of some requests of one replica in the order in which they finished, and their ids."""

    batch: Batch
    request_ids: list[str]


@dataclass(frozen=True)
class Fired:
    """A drift as it would have been flagged: times in seconds since the epoch, ``requests`` since the stream began."""

    replica: str
    channel: str
    layer: int | None
    began_at: float
    flagged_at: float
    ended_at: float | None
    request: int
    request_id: str


@dataclass(frozen=True)
class Outcome:
    """What the detectors said of one replica's stream."""

    replica: str
    requests: int
    unusual: int  # requests with a conformal p-value up to alpha
    fired: list[Fired]


Source = Callable[[str], Iterable[Recorded]]  # a replica's stream, by the replica's name


def run(
    replica: str, stream: Iterable[Recorded], baseline: Baseline, average_run_length: float, alpha: float
) -> Outcome:
    """Return what the detectors say of ``stream`` with a promise of ``average_run_length`` requests."""
    state = online.start(baseline, average_run_length)
    times: list[NDArray[np.float64]] = []
    fired: list[Fired] = []
    seen = unusual = 0
    for recorded in stream:
        batch = recorded.batch
        finished = np.zeros(len(batch)) if batch.finished_at is None else batch.finished_at
        times.append(finished)
        state, observation = online.observe(baseline, state, batch)
        unusual += int((observation.ood.p <= alpha).sum())
        for alarm in observation.alarms:
            if alarm.started:
                began = _ago(times, seen + alarm.at - alarm.began)
                flagged = float(finished[alarm.at])
                name = recorded.request_ids[alarm.at]
                fired.append(Fired(replica, alarm.channel, alarm.layer, began, flagged, None, seen + alarm.at, name))
            else:
                fired[-1] = _ended(fired[-1], float(finished[alarm.at]))
        seen += len(batch)
    return Outcome(replica, seen, unusual, fired)


def _ago(times: list[NDArray[np.float64]], index: int) -> float:
    """Return when the request of this index in the whole stream finished; the first one's for an index before it."""
    for part in times:
        if index < len(part):
            return float(part[max(index, 0)])
        index -= len(part)
    raise IndexError(index)


def _ended(one: Fired, at: float) -> Fired:
    return Fired(one.replica, one.channel, one.layer, one.began_at, one.flagged_at, at, one.request, one.request_id)


def run_here(
    replicas: Iterable[str], source: Source, baseline: Baseline, average_run_length: float, alpha: float
) -> Iterator[Outcome]:
    """Yield the outcome of each replica, one after the other in this process."""
    for replica in replicas:
        yield run(replica, source(replica), baseline, average_run_length, alpha)


def run_on_ray(
    replicas: Iterable[str],
    source: Source,
    baseline: Baseline,
    average_run_length: float,
    alpha: float,
    *,
    address: str,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Yield the outcome of each replica as workers of the Ray cluster at ``address`` finish, in the order given.

    ``source`` runs on the workers, so what it reads must be reachable from them; "local" is a cluster on this machine,
    of ``workers`` or a worker for each core. Raises ``ImportError`` without Ray.
    """
    import ray  # noqa: PLC0415 - an extra

    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, **here)
    try:
        task = ray.remote(_on_worker)
        shared = ray.put(baseline.to_bytes())
        waiting = [task.remote(name, source, shared, average_run_length, alpha) for name in replicas]
        for one in waiting:
            yield ray.get(one)
    finally:
        ray.shutdown()


def _on_worker(replica: str, source: Source, raw: bytes, average_run_length: float, alpha: float) -> Outcome:
    return run(replica, source(replica), Baseline.from_bytes(raw), average_run_length, alpha)

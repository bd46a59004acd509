"""What the sidecar says of itself at ``/api/v1/status`` and ``/api/v1/matrix``; ``moe-watch status`` reads the same."""

from __future__ import annotations

import msgspec


class Baseline(msgspec.Struct, frozen=True):
    """The active baseline of a model."""

    version: int
    promoted_at: float  # seconds since the epoch
    requests: int


class Share(msgspec.Struct, frozen=True):
    """A share of the latest ``n`` requests with its 95 % interval."""

    value: float | None
    lower: float
    upper: float
    n: int


class Moved(msgspec.Struct, frozen=True):
    """An expert that a drift moved: its share of its layer's choices, and the effect size over requests."""

    layer: int
    expert: int
    before: float
    now: float
    effect: float


class Where(msgspec.Struct, frozen=True):
    """What the ``requests`` after an alarm say of its place; ``experts`` is None where they are too few to name any."""

    requests: int
    layers: list[int]  # from the most moved
    named: int | None  # experts in all; ``experts`` are the surest of them
    experts: list[Moved] | None


class Alarm(msgspec.Struct, frozen=True):
    """An alarm that is open now."""

    kind: str
    began_at: float
    flagged_at: float
    summary: str
    where: Where | None = None


class Ended(msgspec.Struct, frozen=True):
    """An alarm that is over, or is no longer watched: ``ending`` says which, as in ``endings``."""

    kind: str
    began_at: float
    flagged_at: float
    ended_at: float
    ending: str
    summary: str


class Tap(msgspec.Struct, frozen=True):
    """What the tap of a replica said last; ``age_s`` is the time since, None when it never spoke."""

    up: bool
    state: str
    reason: str
    age_s: float | None
    clock_skew_s: float | None
    vllm_version: str
    tap_version: str
    runner: str


class Mover(msgspec.Struct, frozen=True):
    """An expert whose share of its layer's load changed against the baseline."""

    layer: int
    expert: int
    share: float
    baseline: float


class Siblings(msgspec.Struct, frozen=True):
    """How a replica compares with the model's other replicas, and what all of them say together."""

    replicas: int  # all that were compared, this one included
    evidence: float  # that this one differs, over the threshold: flagged at 1
    deviates: bool
    fleet_ood: Share  # of all replicas together


class Suspect(msgspec.Struct, frozen=True):
    """A request flagged as out of distribution."""

    request_id: str
    p: float
    at: float


class Replica(msgspec.Struct, frozen=True):
    """One model at one replica."""

    model: str
    identity: str
    replica: str
    layers: int
    experts: int
    top_k: int
    verdict: str
    reason: str
    since: float
    tap: Tap
    baseline: Baseline | None
    requests: int
    routed: int
    coverage: float | None
    join_ratio: float | None
    ood: Share
    evidence: float
    channels: dict[str, float]
    alarms: list[Alarm]
    movers: list[Mover]
    suspects: list[Suspect]
    siblings: Siblings | None = None  # None while there is nobody to compare with
    ended: list[Ended] = []  # the latest alarms that ended, the last one first
    episodes: list[Alarm] = []  # the former name of ``alarms``, for one version


class Store(msgspec.Struct, frozen=True):
    """Where history goes."""

    url: str  # without password
    up: bool
    bytes: int
    spool_bytes: int


class Status(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    version: str
    now: float
    started_at: float
    endpoint: str
    store: Store
    frames_received: dict[str, int]
    frames_refused: dict[str, int]
    frames_lost: dict[str, int]
    pending: int  # requests of which some part is awaited
    replicas: list[Replica]
    impossible: dict[str, str] = {}  # replica -> why its model is not watched


class Matrix(msgspec.Struct, frozen=True):
    """Expert shares ``[layers][experts]`` of the latest windows and of the active baseline (None without one)."""

    model: str
    replica: str
    layer_ids: list[int]
    requests: int
    share: list[list[float]]
    baseline: list[list[float]] | None

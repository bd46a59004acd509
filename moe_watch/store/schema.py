"""The tables, for SQLite and Postgres alike. Times are seconds since the epoch (float, UTC); sizes are in bytes.

Arrays are packed bytes, see ``store.arrays`` and ``store.counts``; shapes follow from the model's row.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements INTEGER primary keys only


class Base(DeclarativeBase):
    """All tables of moe-watch."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double}  # SQLAlchemy 2.1's choice; 2.0 takes Float


class Model(Base):
    """One served model in one configuration; a change of any field that can move routing makes a new row."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    # digest of name, revision, weights, layers, experts, top_k
    identity: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(255), index=True)
    layers: Mapped[int]
    experts: Mapped[int]
    top_k: Mapped[int]
    first_seen: Mapped[float] = mapped_column(Float)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)  # the announcement as it came


class Request(Base):
    """One finished request: what was measured, and what the detectors said of it."""

    __tablename__ = "requests"
    __table_args__ = (
        UniqueConstraint("replica", "request_id", "choice"),
        Index("ix_requests_model_time", "model_id", "finished_at"),
        # The most unusual requests of a period; partial, so that it costs ordinary requests nothing.
        Index(
            "ix_requests_suspicious",
            "model_id",
            "ood_p",
            text("ood_score DESC"),
            "finished_at",
            sqlite_where=text("ood_p <= 0.05"),
            postgresql_where=text("ood_p <= 0.05"),
        ),
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    request_id: Mapped[str] = mapped_column(String(255), index=True)
    choice: Mapped[int]
    replica: Mapped[str] = mapped_column(String(255))
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    finished_at: Mapped[float] = mapped_column(Float)
    outcome: Mapped[str] = mapped_column(String(16))
    prompt_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    prompt_routed: Mapped[int | None]  # None: no routing came for this request
    decode_routed: Mapped[int | None]
    preemptions: Mapped[int]
    batch_mean: Mapped[float | None]
    e2e_s: Mapped[float | None]  # None: no latency came for this request
    queue_s: Mapped[float | None]
    ttft_s: Mapped[float | None]
    tpot_s: Mapped[float | None]
    finish_reason: Mapped[str] = mapped_column(String(32))
    corrupted: Mapped[bool]
    images: Mapped[int]
    domain: Mapped[str] = mapped_column(String(64))
    user_hash: Mapped[str] = mapped_column(String(64), index=True)
    canary: Mapped[bool]
    entropy: Mapped[float | None]  # mean over layers, nats
    margin: Mapped[float | None]
    ood_score: Mapped[float | None]
    ood_p: Mapped[float | None]  # conformal p-value; None without a baseline
    baseline_id: Mapped[int | None] = mapped_column(ForeignKey("baselines.id"))


class Fingerprint(Base):
    """Full counts of one request, kept for a share of requests and a limited time."""

    __tablename__ = "fingerprints"

    request_pk: Mapped[int] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True)
    prompt: Mapped[bytes] = mapped_column(LargeBinary)  # uint32 [layers, experts]
    decode: Mapped[bytes] = mapped_column(LargeBinary)
    confidence: Mapped[bytes | None] = mapped_column(LargeBinary)  # float32 [2, layers]: entropy, margin


class Sample(Base):
    """Redacted text of one request."""

    __tablename__ = "samples"

    request_pk: Mapped[int] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True)
    endpoint: Mapped[str] = mapped_column(String(64), default="")  # says whether prompt is JSON of messages or the text
    prompt: Mapped[str] = mapped_column(Text)
    output: Mapped[str] = mapped_column(Text)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    prompt_truncated: Mapped[bool] = mapped_column(default=False)
    output_truncated: Mapped[bool] = mapped_column(default=False)
    redactions: Mapped[int] = mapped_column(default=0)
    sample_rate: Mapped[float]
    expires_at: Mapped[float] = mapped_column(Float, index=True)


class Window(Base):
    """Everything that adds up over the requests of one replica in one stretch of time; windows merge by addition."""

    __tablename__ = "windows"
    __table_args__ = (UniqueConstraint("model_id", "replica", "start", "seconds"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    replica: Mapped[str] = mapped_column(String(255))
    start: Mapped[float] = mapped_column(Float, index=True)
    seconds: Mapped[float]
    requests: Mapped[int]
    routed_requests: Mapped[int]
    counts: Mapped[bytes] = mapped_column(LargeBinary)  # uint64 [layers, experts], prompt and decode
    # float64 [2, layers, experts]: sum and sum of squares of the requests' square-root shares
    moments: Mapped[bytes] = mapped_column(LargeBinary)
    scalars: Mapped[dict[str, Any]] = mapped_column(JSON)  # see domain.window_sums


class Baseline(Base):
    """A fitted picture of normal routing; one per model may be active."""

    __tablename__ = "baselines"
    __table_args__ = (UniqueConstraint("model_id", "version"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    version: Mapped[int]
    created_at: Mapped[float] = mapped_column(Float)
    promoted_at: Mapped[float | None] = mapped_column(Float)
    active: Mapped[bool]
    requests: Mapped[int]
    note: Mapped[str] = mapped_column(Text)
    blob: Mapped[bytes] = mapped_column(LargeBinary)  # detect.baseline.Baseline.to_bytes


class Alarm(Base):
    """One alarm from its start to its end."""

    __tablename__ = "alarms"
    __table_args__ = (UniqueConstraint("model_id", "replica", "kind", "flagged_at"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    replica: Mapped[str] = mapped_column(String(255))
    # traffic, routing, quality, garbled, dead_experts, blind, replica
    kind: Mapped[str] = mapped_column(String(32), index=True)
    began_at: Mapped[float] = mapped_column(Float)  # estimate of the start of the change
    flagged_at: Mapped[float] = mapped_column(Float, index=True)
    ended_at: Mapped[float | None] = mapped_column(Float)
    ending: Mapped[str | None] = mapped_column(String(32))  # how, as in ``endings``; None while open, and of old alarms
    baseline_id: Mapped[int | None] = mapped_column(ForeignKey("baselines.id"))
    summary: Mapped[str] = mapped_column(Text)  # one line for a pager
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)


class Event(Base):
    """Something that may explain a change: engine start, rebalance, promotion of a baseline, tap off."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("replica", "kind", "at"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[float] = mapped_column(Float, index=True)
    replica: Mapped[str] = mapped_column(String(255))
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)


class CanaryRun(Base):
    """One round of a canary set against one engine: a replay in each batch composition."""

    __tablename__ = "canary_runs"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    at: Mapped[float] = mapped_column(Float, index=True)
    set_version: Mapped[str] = mapped_column(String(64))
    engine: Mapped[str] = mapped_column(String(32))  # whose reference it is or is compared with: vllm, transformers
    load: Mapped[str] = mapped_column(String(16))  # idle: one request at a time only; loaded: other loads as well
    replica: Mapped[str] = mapped_column(String(255), default="")
    reference: Mapped[bool]  # part of the noise floor, not a check
    verdict: Mapped[str] = mapped_column(String(32))  # "", healthy, benign, routing, weights, deployment, blind
    first_layer: Mapped[int | None]
    effect: Mapped[float] = mapped_column(default=0.0)  # shift over the bound of chance, above 1 is a change
    summary: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)  # canary.words.evidence of the judgement
    blob: Mapped[bytes] = mapped_column(LargeBinary)  # detect.replay.Round.to_bytes


class Shadow(Base):
    """What the signals and the dense model said of one sampled request; every sampled request gets a row."""

    __tablename__ = "shadows"

    request_pk: Mapped[int] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[float] = mapped_column(Float, index=True)
    # scored; unscored: replayed, but the server cannot score a given text; signals: not chosen for replay;
    # unsupported: images, truncated or too long; dropped: queue full; failed
    outcome: Mapped[str] = mapped_column(String(16), default="scored")
    sample_weight: Mapped[float] = mapped_column(default=1.0)  # 1 / probability that its text was sampled
    weight: Mapped[float]  # 1 / probability that its text was sampled and it was chosen for replay
    dense_model: Mapped[str] = mapped_column(String(255))
    nll_moe_output: Mapped[float | None]  # nats per token of the MoE's output under the dense model
    nll_dense_output: Mapped[float | None]
    moe_tokens: Mapped[int | None]  # tokens of the MoE's output, as the dense model's tokenizer splits it
    dense_tokens: Mapped[int | None]
    agreement: Mapped[float | None]  # share of tokens before the first divergence; temperature 0 only
    top1: Mapped[float | None]  # share of the MoE's tokens that the dense model ranks first
    judge: Mapped[float | None]  # 1: a judge prefers the MoE's output, -1: the dense model's, 0: no preference
    defects: Mapped[dict[str, Any]] = mapped_column(JSON)  # {"moe": [names], "dense": [names]}
    dense_ttft_s: Mapped[float | None]
    dense_tpot_s: Mapped[float | None]
    dense_concurrency: Mapped[float | None]  # requests that the dense server was running meanwhile


class ServerBench(Base):
    """One concurrency of one side-by-side load of both servers (``moe-watch bench-servers``)."""

    __tablename__ = "server_benches"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[float] = mapped_column(Float, index=True)
    moe_model: Mapped[str] = mapped_column(String(255), index=True)
    dense_model: Mapped[str] = mapped_column(String(255))
    concurrency: Mapped[int]
    moe_tokens_per_s: Mapped[float]
    dense_tokens_per_s: Mapped[float]
    ratio: Mapped[float]  # MoE over dense, above 1 the MoE pays
    ratio_lower: Mapped[float]
    ratio_upper: Mapped[float]
    moe_ttft_s: Mapped[float]  # median
    dense_ttft_s: Mapped[float]
    rounds: Mapped[int]
    requests: Mapped[int]


class Meta(Base):
    """Facts of the store itself: the sidecar that owns a SQLite file, positions of the spool."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)

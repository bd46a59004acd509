"""Every setting of moe-watch, and the only place that reads the environment.

Sources, later ones take precedence: defaults, ``moe-watch.toml`` (or the file that ``MOE_WATCH_CONFIG`` names),
environment variables ``MOE_WATCH_*`` (``__`` between levels), command line flags.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


def _sendable(secret: SecretStr) -> SecretStr:
    """Return a secret without the line break at the end of a file; an HTTP client would quote it in its error."""
    stripped = secret.get_secret_value().strip()
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError("must be printable ASCII")
    return SecretStr(stripped)


def server_address(address: str) -> str:
    """Return ``address``; raise ``ValueError``, which does not quote it, when it is not the address of an HTTP server.

    >>> server_address("http://vllm:8000/v1")
    'http://vllm:8000/v1'
    """
    try:
        parsed = urlsplit(address)
        usable = parsed.scheme in {"http", "https"} and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        usable = False
    if not usable or not address.isprintable() or " " in address:
        raise ValueError(
            "is no address of a server such as http://host:8000; a special character of a password is written as %40 "
            "for @, %2F for / and so on"
        )
    return address


ServerAddress = Annotated[str, AfterValidator(server_address)]
# Shown as stars by repr, logs and tracebacks; ``get_secret_value`` where it is sent.
Secret = Annotated[SecretStr, AfterValidator(_sendable)]


class TapSettings(BaseSettings):
    """Settings of the tap inside vLLM, which is off while ``endpoint`` is unset."""

    model_config = SettingsConfigDict(env_prefix="MOE_WATCH_", extra="ignore")

    endpoint: str | None = Field(
        None, description="ZMQ address of the sidecar (ipc:// or tcp://); unset: the tap is off"
    )
    replica: str = Field(default_factory=socket.gethostname, description="Name of this vLLM replica")
    queue_frames: int = Field(
        2048, ge=1, description="Frames kept while the sidecar is down; further ones are dropped and counted"
    )
    queue_bytes: int = Field(64 * 1024 * 1024, ge=1, description="Bytes of frames kept while the sidecar is down")
    confidence: bool = Field(
        default=True, description="Record router entropy and margin where the logits are available"
    )
    sample_rate: float = Field(
        0.0, ge=0, le=1, description="Share of requests whose text is sampled; 0: no text leaves vLLM"
    )
    sample_max_bytes: int = Field(
        65536, ge=0, description="Maximum length of a sample's prompt, and of all its outputs together, bytes"
    )
    redact: str = Field(
        "moe_watch.tap.api.redact:redact",
        description="module:function applied to every sampled text before it leaves vLLM",
    )


class HttpSettings(BaseModel):
    """Where the sidecar serves /metrics, /healthz, /readyz, the page and the API."""

    host: str = Field("127.0.0.1", description="Address to bind; all but loopback need a token")
    port: int = Field(9465, ge=0, le=65535, description="Port; 0 selects a free one")
    token: Secret | None = Field(None, description="Bearer token for every path except /healthz and /readyz")
    tls_cert: Path | None = Field(None, description="PEM file of a certificate; with tls_key: serve https")
    tls_key: Path | None = Field(None, description="PEM file of its private key")
    metrics_open: bool = Field(default=False, description="Serve /metrics without the token")
    hosts: tuple[str, ...] = Field(
        (),
        description="Without a token: further names under which page and API may be asked for, such as a proxy's; "
        "loopback's always may, and /metrics and the probes answer under any",
    )
    page_samples: bool = Field(default=False, description="Show sampled text on the page and in reports")

    @model_validator(mode="after")
    def _both_or_none(self) -> HttpSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        return self


class OtlpSettings(BaseModel):
    """Where to send metrics and spans by OTLP; OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE are honoured."""

    endpoint: ServerAddress | None = Field(
        None, repr=False, description="Base URL of an OTLP/HTTP collector such as http://collector:4318; unset: off"
    )
    interval_s: float = Field(15.0, gt=0, description="Time between two exports, seconds")
    traces: bool = Field(default=True, description="Send a span for each flagged request, in the trace of its client")


class StoreSettings(BaseModel):
    """Where the store is and how long it keeps rows."""

    url: str = Field(
        "sqlite:///moe-watch.db", repr=False, description="SQLAlchemy URL; postgresql+psycopg://… in production"
    )
    fingerprint_rate: float = Field(1.0, ge=0, le=1, description="Share of requests whose full fingerprint is stored")
    keep_requests_days: float = Field(14.0, gt=0, description="Retention of per-request rows and fingerprints, days")
    keep_samples_days: float = Field(3.0, gt=0, description="Retention of sampled text, days")
    keep_windows_days: float = Field(400.0, gt=0, description="Retention of aggregates, days")


class DetectSettings(BaseModel):
    """Error rates and tolerances of the detectors."""

    average_run_length: float = Field(
        10_000.0, gt=1, description="Mean number of requests between false drift alarms, at least"
    )
    ood_alpha: float = Field(
        0.01, gt=0, lt=1, description="A request counts as unusual (out of distribution) at a p-value up to this"
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        description="Share of requests (0-1) that may be unlike the baseline before a drift alarm is raised",
    )
    coverage_floor: float = Field(
        0.5, ge=0, le=1, description="The tap counts as blind if a smaller share of requests than this has routing"
    )
    siblings: bool = Field(
        default=True,
        description="Compare the replicas of one model; false if the load balancer routes by the content of requests",
    )
    baseline_min_requests: int = Field(500, ge=50, description="Minimum number of requests to fit a baseline on")


class ShadowSettings(BaseModel):
    """The dense reference model and the load that moe-watch may put on it."""

    inside: bool = Field(
        default=True, description="Run the shadow inside serve; false if `moe-watch shadow` runs in its own process"
    )
    url: ServerAddress | None = Field(
        None, repr=False, description="OpenAI-compatible base URL of the dense model; unset: no shadow"
    )
    model: str | None = Field(None, description="Model name at that server; unset: the first it lists")
    api_key: Secret | None = Field(None, description="Bearer token of that server")
    requests_per_s: float = Field(1.0, gt=0, description="Budget of shadow requests per second")
    tokens_per_s: float = Field(2_000.0, gt=0, description="Budget of shadow tokens per second, prompt and output")
    base_rate: float = Field(0.1, gt=0, le=1, description="Share of ordinary sampled requests sent to the shadow")
    ood_rate: float = Field(1.0, gt=0, le=1, description="Share of unusual sampled requests sent to the shadow")
    queue: int = Field(
        256, ge=1, description="Maximum number of requests waiting for the shadow; further ones are dropped and counted"
    )
    concurrency: int = Field(4, ge=1, description="Maximum number of shadow requests under way")
    timeout_s: float = Field(120.0, gt=0, description="Timeout of a request to the dense model, seconds")
    gap_tolerance: float = Field(
        0.02, ge=0, description="Rise of the quality gap that is tolerated without an alarm, nats per token"
    )
    garbled_tolerance: float = Field(
        0.01, ge=0, lt=1, description="Rise of the share of garbled outputs that is tolerated without an alarm"
    )
    reference_requests: int = Field(
        500,
        ge=50,
        description="Number of first scored requests of a model that are the reference of the quality alarms",
    )
    judge_url: ServerAddress | None = Field(
        None, repr=False, description="OpenAI-compatible base URL of a judge; unset: no judge"
    )
    judge_model: str | None = Field(None, description="Model name at the judge; unset: the first it lists")
    judge_api_key: Secret | None = Field(None, description="Bearer token of the judge")


class CanarySettings(BaseModel):
    """Which prompts the sidecar replays to check the model, and how often."""

    prompts: Path | None = Field(
        None, description="File with JSON lines of prompts; unset: the set that comes with moe-watch"
    )
    every_s: float = Field(3600.0, ge=60, description="Time between two replays by the sidecar, seconds")
    loads: tuple[str, ...] = Field(
        ("1", "4", "16", "mixed"),
        description="Batch compositions: requests at a time, or mixed with other requests of random lengths",
    )
    secret: Secret | None = Field(
        None, description="Signs canaries, the same for all who send or see them; unset: one that the store keeps"
    )
    error: float = Field(
        0.001, ge=1e-5, le=0.1, description="Maximum probability that a healthy replay counts as moved"
    )


class ServingSettings(BaseModel):
    """Budgets of time to first token, and the limit of interactive prompts; defaults: a 27B model on an A100 80 GB."""

    ttft_budget_s: dict[str, float] = Field(
        {"4k": 0.4, "16k": 1.1, "32k": 2.0, "64k": 3.8, "128k": 12.0},
        description="Maximum acceptable time to first token by prompt length, seconds",
    )
    interactive_tokens: int = Field(32_768, ge=1, description="Maximum prompt length of interactive traffic, tokens")


class GrafanaSettings(BaseModel):
    """Where ``moe-watch provision --grafana`` pushes to."""

    token: Secret | None = Field(None, description="Service account token of Grafana, role Editor or Admin")


class Settings(BaseSettings):
    """The sidecar's settings."""

    model_config = SettingsConfigDict(
        env_prefix="MOE_WATCH_", env_nested_delimiter="__", extra="ignore", validate_default=True
    )

    endpoint: str = Field(
        "ipc:///tmp/moe-watch/tap.sock", description="ZMQ address that the sidecar binds and taps connect to"
    )
    allow_remote_taps: bool = Field(
        default=False,
        description="Allow tcp:// addresses beyond loopback; frames are not authenticated, so close the network",
    )
    vllm_url: ServerAddress | None = Field(
        None, repr=False, description="Base URL of the vLLM server, for canaries and doctor"
    )
    vllm_api_key: Secret | None = Field(None, description="Bearer token of that vLLM server")
    http: HttpSettings = HttpSettings()
    otlp: OtlpSettings = OtlpSettings()
    store: StoreSettings = StoreSettings()
    detect: DetectSettings = DetectSettings()
    shadow: ShadowSettings = ShadowSettings()
    canary: CanarySettings = CanarySettings()
    serving: ServingSettings = ServingSettings()
    grafana: GrafanaSettings = GrafanaSettings()
    window_s: float = Field(60.0, gt=0, description="Length of an aggregation window, seconds")
    join_timeout_s: float = Field(
        5.0, gt=0, description="Maximum time that one part of a request waits for the others, seconds"
    )
    memory_bytes: int = Field(
        1 << 29,
        ge=1 << 26,
        description="Bound on the memory of frames, bytes: half for the state of the replicas, half for queues; "
        "frames that do not fit are refused and counted",
    )
    replica_expires_s: float = Field(
        86_400.0,
        gt=60,
        description="Time without frames after which the sidecar forgets a replica, seconds; its history stays",
    )
    spool_dir: Path | None = Field(
        None, description="Folder for batches while the store is down; unset: beside the SQLite file"
    )
    spool_max_bytes: int = Field(
        1 << 30, ge=0, description="Maximum size of the spool, bytes; beyond it the newest batch is dropped and counted"
    )
    log_format: Literal["console", "json"] = Field("console", description="Format of the log on stderr")

    @property
    def sidecar(self) -> str:
        """Name of this sidecar among the sidecars that share a store; a restart keeps it."""
        return f"{socket.gethostname()} {self.endpoint}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put flags over the environment over the file."""
        del dotenv_settings, file_secret_settings
        config = Path(os.environ.get("MOE_WATCH_CONFIG", "moe-watch.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config)

"""A finished request, as its parts came together."""

from __future__ import annotations

from dataclasses import dataclass

from moe_watch import wire


@dataclass(frozen=True, slots=True)
class Joined:
    """One choice of one finished request with the parts that came; ``complete`` when nothing expected is missing."""

    replica: str
    request_id: str
    choice: int
    routing: wire.Routing | None
    latency: wire.Latency | None
    request: wire.Request | None
    complete: bool
    size: int = 0  # bytes of memory that the parts take, about

    @property
    def finished_at(self) -> float:
        """Return when it finished, in seconds since the epoch, by the tap's clock."""
        part = self.routing or self.latency or self.request
        return part.finished_at if part is not None else 0.0

    @property
    def canary(self) -> bool:
        """Say whether moe-watch itself sent it."""
        return self.request is not None and self.request.canary

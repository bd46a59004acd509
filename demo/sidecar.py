"""What the demo asks its sidecar and the sidecar's store; an answer is what is missing, empty when nothing is."""

from __future__ import annotations

import httpx
import msgspec

from demo.servers import Server, ServerError
from moe_watch.domain.amounts import plural
from moe_watch.domain.status import Replica, Status
from moe_watch.store import engine
from moe_watch.store.read import requests
from moe_watch.store.records import alarms, served_models, shadows

_ANSWER_S = 10  # of a machine that is busy: it is asked again
DYING_S = 5.0  # from the end of a server's connections to the end of its process
NO_ANSWER = "the sidecar has not answered yet"


class Sidecar:
    """The running sidecar and its store, with the replica called ``name``."""

    def __init__(self, server: Server, store_url: str, model: str, name: str) -> None:
        self.server = server
        self._store = engine.connect(store_url)
        self._model, self._name = model, name

    def close(self) -> None:
        """Let go of the store."""
        self._store.dispose()

    def status(self) -> Replica | None:
        """Return what it sees of the replica, None while it sees none or is slow; ``ServerError`` for any other answer.

        A refusal is an answer: waiting does not mend it.
        """
        try:
            answer = httpx.get(f"{self.server.url}/api/v1/status", timeout=_ANSWER_S)
        except httpx.TimeoutException:
            return None
        except httpx.HTTPError as error:
            self.server.check(DYING_S)
            raise ServerError(f"The sidecar does not answer ({error}).\n{self.server.log_tail()}") from error
        if answer.status_code != httpx.codes.OK:
            what = f"GET {answer.request.url.path} of the sidecar answers {answer.status_code}: {answer.text[:300]}"
            raise ServerError(f"{what}\n{self.server.log_tail()}")
        replicas = msgspec.json.decode(answer.content, type=Status).replicas
        return next((replica for replica in replicas if replica.replica == self._name), None)

    def unheard(self) -> str:
        """Say why the tap does not count as up."""
        replica = self.status()
        if replica is None:
            return "no tap has announced a model"
        return "" if replica.tap.up else f"the tap is {replica.tap.state}"

    def unpromoted(self) -> str:
        """Say that no baseline is in use yet."""
        replica = self.status()
        return NO_ANSWER if replica is None else "" if replica.baseline is not None else "no baseline is in use"

    def unalarmed(self, kind: str) -> str:
        """Say which alarms are open when none is of this ``kind``."""
        replica = self.status()
        if replica is None:
            return NO_ANSWER
        kinds = [alarm.kind for alarm in replica.alarms]
        return "" if kind in kinds else f"open alarms: {', '.join(kinds) or 'none'}"

    def unjudged(self, sent: int) -> str:
        """Say how many of the requests ``sent`` so far are judged, and then how many are stored."""
        replica = self.status()
        if replica is None:
            return NO_ANSWER
        if replica.routed < sent:
            return f"{replica.routed} are judged ({plural(replica.requests, 'request')} came)"
        stored = sum(requests.count(self._store, model.id) for model in served_models.by_name(self._store, self._model))
        return "" if stored >= sent else f"all are judged, {stored} are stored"

    def unanswered(self) -> str:
        """Say how many samples still wait for the dense model."""
        left = shadows.waiting(self._store)
        return f"{plural(left, 'sample')} to go" if left else ""

    def unwritten(self, *kinds: str) -> str:
        """Say which alarms the store does not have yet."""
        known = {alarm.kind for alarm in alarms.between(self._store, 0, float("inf"))}
        missing = [kind for kind in kinds if kind not in known]
        return f"{', '.join(missing)} not yet" if missing else ""

"""The one sender of an API server's process, which the latency logger and the middleware share."""

from __future__ import annotations

import functools
import os

from moe_watch.settings import TapSettings
from moe_watch.tap.send.sender import Sender
from moe_watch.tap.send.status import Status


@functools.cache
def sender() -> Sender:
    """Return it, started by the first call."""
    started = Sender(TapSettings(), "api", f"api-{os.getpid()}", Status())
    started.start()
    return started

"""The one sender of an API server process, shared by the latency logger and the middleware."""

from __future__ import annotations

import functools
import os

from moe_watch.settings import TapSettings
from moe_watch.tap.sender import Sender
from moe_watch.tap.status import Status


@functools.cache
def sender() -> Sender:
    """Return it, started at the first call."""
    return Sender(TapSettings(), "api", f"api-{os.getpid()}", Status())

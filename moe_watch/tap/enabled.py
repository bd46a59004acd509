"""Whether the tap is on. Kept apart, so that looking costs no import."""

from __future__ import annotations

import os


def is_on() -> bool:
    """Say whether ``TapSettings.endpoint`` is set in this environment."""
    return bool(os.environ.get("MOE_WATCH_ENDPOINT"))

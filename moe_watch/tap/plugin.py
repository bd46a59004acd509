"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import os

_hooked = False


def register() -> None:
    """Hook the tap into this process, for when the worker and scheduler come; do nothing while the switch is off."""
    global _hooked  # noqa: PLW0603 - vLLM may call a plugin more than once in one process
    if _hooked or not os.environ.get("MOE_WATCH_ENDPOINT"):  # the switch of TapSettings, read without importing it
        return
    _hooked = True
    from moe_watch.tap import attach, endings
    from moe_watch.tap.imports import when_imported

    when_imported("vllm.v1.worker.worker_base", attach.hook)
    when_imported("vllm.v1.core.sched.scheduler", endings.hook)

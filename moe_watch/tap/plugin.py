"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import logging

from moe_watch.tap import enabled

_hooked = False


def register() -> None:
    """Prepare this process to be tapped once worker and scheduler come; do nothing while the switch is off."""
    global _hooked  # noqa: PLW0603 - vLLM may call a plugin more than once in one process
    if _hooked:
        return
    try:
        if not enabled.is_on():
            return
        _hooked = True
        from moe_watch.tap.engine import attach, finish_notes
        from moe_watch.tap.import_hook import when_imported

        when_imported("vllm.v1.worker.worker_base", attach.hook)
        when_imported("vllm.v1.core.sched.scheduler", finish_notes.hook)
    except Exception:
        logging.getLogger("moe_watch.tap").exception("moe-watch tap could not start; serving goes on")

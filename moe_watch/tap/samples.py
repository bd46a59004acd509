"""The address of the middleware before 0.2: ``--middleware moe_watch.tap.middleware.Middleware`` is the one to use."""

from __future__ import annotations

from moe_watch.tap.middleware import Middleware

__all__ = ["Middleware"]

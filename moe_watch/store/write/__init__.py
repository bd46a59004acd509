"""Batched writes of the sidecar, exactly once."""

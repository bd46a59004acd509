"""Carries frames to the sidecar, bounded and never waited for."""

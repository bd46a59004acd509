"""Detectors as pure functions: arrays in, results out; no I/O, no clock, no settings."""

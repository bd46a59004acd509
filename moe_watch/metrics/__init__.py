"""Metrics leave here: one set of definitions, one place of values, two ways out (Prometheus and OTLP)."""

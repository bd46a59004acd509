"""What an operator runs beside the sidecar: checks, backtests, the archive, and the erasure of a person."""

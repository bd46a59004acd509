"""The dense shadow: sampled requests replayed to a dense model, and what both outputs say about quality."""

"""What the tap costs vLLM."""

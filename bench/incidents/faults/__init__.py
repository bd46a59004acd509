"""Faults of real incidents, put into the model of a running vLLM and taken out again."""

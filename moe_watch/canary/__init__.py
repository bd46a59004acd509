"""Canaries: a fixed set of prompts that is replayed to tell a change of the model from a change of the traffic."""

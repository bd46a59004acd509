"""Says whether the canary prompts are still routed and answered as before."""

"""Does the MoE still pay: memory of a request, time to first token, and speed beside the dense model."""

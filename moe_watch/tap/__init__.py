"""What runs inside vLLM: it counts routing per request, times requests, samples text, and never harms serving."""

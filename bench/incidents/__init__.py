"""Incidents of real MoE deployments, put into a running vLLM and judged by the canaries."""

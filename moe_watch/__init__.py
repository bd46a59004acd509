"""moe-watch: production quality and routing monitor for Mixture-of-Experts deployments on vLLM."""

__version__ = "0.1.0"

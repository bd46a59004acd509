"""Alert rules as files; ``python -m alerts`` writes them from ``moe_watch.provision.catalogue``."""

"""The command line of ``moe-watch``."""

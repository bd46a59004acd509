"""The commands of ``moe-watch``, one module each; ``moe_watch.cli`` finds them by file name."""

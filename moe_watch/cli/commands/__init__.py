"""The commands of ``moe-watch``, a file each."""

"""Parts of bench/detection/run.py."""

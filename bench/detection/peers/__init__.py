"""Other libraries on the streams of bench/detection/parts/peers.py; each script runs in an environment of its own."""

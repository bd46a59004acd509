"""Other libraries on the streams of bench/detecting/peers.py; each script runs in an environment of its own."""

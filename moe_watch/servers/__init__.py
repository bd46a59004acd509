"""Everything that talks to an OpenAI-compatible server: addresses, streams, generation, load, and KV-cache memory."""

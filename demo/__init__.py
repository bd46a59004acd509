"""The demo: tiny trained models, traffic of known kinds, and the servers that show the product at work."""

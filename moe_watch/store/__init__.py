"""The history: the only SQL of the product."""

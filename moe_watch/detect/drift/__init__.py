"""Has routing changed? Sequential tests over channels, and where a change lies."""

"""The rows of one table each, in and out."""

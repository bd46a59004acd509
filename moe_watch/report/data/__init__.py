"""The review as frozen data."""

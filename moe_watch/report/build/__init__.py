"""Builds a review from the store."""

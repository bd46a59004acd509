"""Fits a baseline from a stream of normal requests."""

"""Queries that several tables answer."""

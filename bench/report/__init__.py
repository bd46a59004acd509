"""The cost of a report."""

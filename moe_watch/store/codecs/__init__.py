"""Arrays and counts as bytes of a column."""

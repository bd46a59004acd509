"""One request or one alarm, explained in words."""

"""How long tests wait for what has to come."""

from typing import Final

PATIENCE_S: Final = 120.0
"""A wait ends as soon as what it waits for is there: only a failure takes this long, or a very busy machine."""

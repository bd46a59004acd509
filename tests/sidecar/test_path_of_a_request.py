"""The counts of a request go one way: from the socket to store and metrics, and never back up."""

from __future__ import annotations

import graphlib
from pathlib import Path

from tests.support.path_of_a_request import height, path_of_a_request

_MOST_MODULES = 49  # a request passed so many of them when this was counted first


def test_a_request_goes_down_the_layers_and_comes_back_by_returning(tmp_path: Path) -> None:
    """No module calls one of a higher layer, no two call each other, and the way is not longer than it was."""
    found = path_of_a_request(tmp_path)
    upward = [(caller, called) for caller, called in found.calls if height(called) > height(caller)]
    assert upward == []
    calls: dict[str, set[str]] = {}
    for caller, called in found.calls:
        if caller != called:
            calls.setdefault(caller, set()).add(called)
    graphlib.TopologicalSorter(calls).prepare()  # raises where they go round in a circle
    passed = ["moe_watch.sidecar.receiver", "moe_watch.sidecar.join", "moe_watch.sidecar.monitor.replicas"]
    passed += ["moe_watch.detect.online", "moe_watch.store.write.batch", "moe_watch.metrics.prometheus"]
    assert [module for module in found.modules if module in passed] == passed
    assert len(found.modules) <= _MOST_MODULES

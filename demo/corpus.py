"""The demo's traffic: normal domains that the models were trained on, and unseen kinds that the MoE was not.

Everything is made from a seed and from what Python ships; nothing is downloaded. One text in eight is held out from
training, by a checksum of its name (library) or of the text itself (generated), so any prompt is new to the models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial

from demo import domains, library, unseen
from demo.exchange import Exchange, Writer

GENERATED: dict[str, Writer] = {
    "arithmetic": domains.arithmetic,
    "emails": domains.emails,
    "logs": domains.logs,
    "orders": domains.orders,
    "recipes": domains.recipes,
    "support": domains.support,
}
LIBRARY = {"manual": library.manual, "python": library.python}
NORMAL: tuple[str, ...] = (*GENERATED, *LIBRARY)
UNSEEN: tuple[str, ...] = tuple(unseen.WRITERS)
SHORTEST, LONGEST = 80, 700


def prompts(domain: str, n: int, seed: int, *, characters: int | None = None) -> list[str]:
    """Return ``n`` held-out prompts of ``domain``, of mixed lengths or of at least about ``characters`` each."""
    stream = exchanges(domain, seed, train=False, characters=characters)
    return [next(stream).prompt for _ in range(n)]


def exchanges(domain: str, seed: int, *, train: bool, characters: int | None = None) -> Iterator[Exchange]:
    """Yield exchanges of one domain and split without end; lengths are log-uniform from 80 to 700 characters."""
    random_ = random.Random(f"{domain} {seed} {train}")
    write = _writer(domain, train=train)
    while True:
        length = characters or round(math.exp(random_.uniform(math.log(SHORTEST), math.log(LONGEST))))
        exchange = write(random_, length)
        if domain in LIBRARY or library.held_out(exchange.prompt) != train:
            yield exchange


def _writer(domain: str, *, train: bool) -> Writer:
    if domain in LIBRARY:
        return partial(LIBRARY[domain], train=train)
    return (GENERATED | unseen.WRITERS)[domain]

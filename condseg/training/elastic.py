"""Processes that torchrun starts again find each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import _rendezvous_handlers


def separate_restarts() -> None:
    """Gives each start by torchrun keys of its own in torchrun's store.

    The store lives as long as torchrun. Of a start before, it holds the addresses of processes
    that are gone, to which Gloo would connect until its timeout.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    original = _rendezvous_handlers["env"]

    def handler(url: str, **options: Any) -> Iterator[tuple[PrefixStore, int, int]]:
        for store, rank, world_size in original(url, **options):
            yield PrefixStore(f"restart {attempt}", store), rank, world_size

    _rendezvous_handlers["env"] = handler

"""The store by which processes find each other."""

from __future__ import annotations

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import _rendezvous_handlers, rendezvous

from condseg.training.elastic import separate_restarts


@pytest.mark.parametrize("attempt", ["0", "1"])
def test_a_restart_does_not_see_the_keys_of_the_start_before(
    attempt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("rank 0", "an address that is gone")
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    variables |= {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
    monkeypatch.setitem(_rendezvous_handlers, "env", _rendezvous_handlers["env"])
    separate_restarts()
    store, rank, world_size = next(rendezvous("env://"))
    assert (rank, world_size) == (0, 1)
    assert store.check(["rank 0"]) == (attempt == "0")

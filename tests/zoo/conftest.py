"""A server in place of the Hugging Face hub."""

import time

import pytest
from support.loopback import serving, use_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server on loopback, empty caches, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's retries
    with serving() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        yield server

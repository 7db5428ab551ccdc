"""Comparing two configurations, argument by argument."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any


def differences(
    other: Mapping[str, Any], own: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Full key, other value and own value of each argument of ``other`` that differs.

    Arguments that only ``own`` has are new in this version, with their defaults.
    """
    for key in sorted(other):
        there, here = other[key], own.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"{prefix}{key}", there, here


def check_same_network(
    source: str, other: Mapping[str, Any], own: Mapping[str, Any], ignored: Collection[str]
) -> None:
    """Compares a checkpoint's network with the configured one.

    Args:
        source: the checkpoint, for the error message.
        other: arguments of the checkpoint's network.
        own: arguments of the configured network.
        ignored: names of the arguments that may differ.

    Raises:
        ValueError: they differ; names the argument and both values.
    """
    for key, there, here in differences(other, own):
        if key not in ignored:
            raise ValueError(f"{source} has model.network.{key} {there}, this configuration {here}")

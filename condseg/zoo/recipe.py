"""The recipe of a checkpoint, checked before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from condseg.structures import Category

MAX_DEPTH, MAX_VALUES, MAX_SIDE = 20, 100_000, 32_768


def check_recipe(recipe: Any) -> None:
    """Checks the entries of a recipe that are not arguments of constructors, and their form.

    Raises:
        ValueError: it is not plain data with finite numbers, lacks an entry, or an entry is wrong.
    """
    _check_plain(recipe)
    model = _mapping(recipe, "model")
    network = _mapping(model, "network", "model.")
    _mapping(network, "backbone", "model.network.")
    _mapping(model, "postprocess", "model.")
    if extra := model.keys() - {"network", "postprocess"}:
        raise ValueError(f"model.{min(extra)} is unknown; network and postprocess are allowed")
    classes = recipe_categories(recipe)
    if network.get("num_classes") != len(classes):
        raise ValueError(
            f"model.network.num_classes is {network.get('num_classes')!r}; there are "
            f"{len(classes)} categories"
        )
    short_side, max_long_side = recipe_sides(recipe)
    if not 1 <= short_side <= max_long_side <= MAX_SIDE:
        raise ValueError(
            f"short_side is {short_side}, max_long_side is {max_long_side}; allowed is "
            f"1 <= short_side <= max_long_side <= {MAX_SIDE}"
        )
    data = recipe.get("data", {})
    for name in ("root", "train_annotations", "val_annotations", "val_images"):
        value = _as_mapping(data, "data").get(name)
        if not isinstance(value, str | None):
            raise ValueError(f"data.{name} is {value!r}; a path or null is allowed")


def recipe_categories(recipe: Mapping[str, Any]) -> tuple[Category, ...]:
    """The category of label k at position k."""
    entries = recipe.get("categories")
    if not isinstance(entries, list):
        raise ValueError(f"categories is a {type(entries).__name__}; a list is allowed")
    for entry in entries:
        types = {k: type(v) for k, v in entry.items()} if isinstance(entry, Mapping) else {}
        if types != {"id": int, "name": str}:
            raise ValueError(f"categories has {entry!r}; an id (integer) and a name are allowed")
    return tuple(Category(**entry) for entry in entries)


def recipe_sides(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """The short side of an image at evaluation and the max long side, in pixels."""
    sides = recipe.get("short_side"), recipe.get("max_long_side")
    if any(type(side) is not int for side in sides):
        raise ValueError(f"short_side and max_long_side are {sides!r}; integers are allowed")
    return sides  # type: ignore[return-value]


def _mapping(owner: Any, key: str, prefix: str = "") -> Mapping[str, Any]:
    return _as_mapping(owner.get(key) if isinstance(owner, Mapping) else None, f"{prefix}{key}")


def _as_mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a {type(value).__name__}; a mapping is allowed")
    return value


def _check_plain(recipe: Any) -> None:
    """Raises ValueError unless it is mappings and lists of text, finite numbers and null.

    A file of a few bytes can hold lists of lists of ... that are endless to print, copy or parse.
    """
    left = MAX_VALUES
    waiting = [("recipe", recipe, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise ValueError(f"{name} is nested deeper than {MAX_DEPTH} levels or too large")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise ValueError(f"{name} has keys that are not text")
            waiting += [(f"{name}.{key}", entry, depth + 1) for key, entry in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}.{i}", entry, depth + 1) for i, entry in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; finite numbers are allowed")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{name} is an integer of more than 64 bits")
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"{name} is a {type(value).__name__}; plain data is allowed")

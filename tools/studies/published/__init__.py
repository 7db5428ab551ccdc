"""The published forms of layers and networks, which condseg's fast forms are compared with."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from studies.published.detector import DETECTOR, published_postprocess
from studies.published.layers import LAYERS

Module = TypeVar("Module", bound=nn.Module)
PUBLISHED = {**LAYERS, **DETECTOR}

__all__ = ["PUBLISHED", "published_form", "published_postprocess"]


def published_form(module: Module) -> Module:
    """A deep copy whose parts are computed as published; it has the same names and tensors."""
    copied = copy.deepcopy(module)
    built: dict[nn.Module, nn.Module] = {}
    for name, part in list(copied.named_modules(remove_duplicate=False)):
        published = PUBLISHED.get(type(part))
        if published is None:
            continue
        if part not in built:
            built[part] = published.__new__(published)
            vars(built[part]).update(vars(part))
        if name:
            copied.set_submodule(name, built[part])
    return built.get(copied, copied)  # type: ignore[return-value]

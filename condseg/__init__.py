"""Instance segmentation with conditional, dynamic convolutions.

``load``, ``train``, ``Model`` and ``Instances`` are imported when they are first used, since torch
takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condseg.api import Model, load, train
    from condseg.inference.instances import Instances

__version__ = "0.1.0"

__all__ = ["Instances", "Model", "load", "train"]

_MODULES = {"Instances": "condseg.inference.instances"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "condseg.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The one knob between the fast forms and the plain published ones they are compared with."""

from __future__ import annotations

from typing import Literal

from torch import nn

Implementation = Literal["fast", "reference"]
"""``"fast"``, the default: rearranged, exact; ``"reference"``: as the papers and their codes do it.

Whatever has both forms has an attribute ``implementation``.
"""


def set_implementation(module: nn.Module, implementation: Implementation) -> int:
    """Choose the form of everything inside that has two; give the number of the modules.

    Args:
        module: a layer, a network, or anything that holds some.
        implementation: "fast" or "reference".

    Raises:
        ValueError: it is neither.
    """
    if implementation not in ("fast", "reference"):
        raise ValueError(f"implementation={implementation!r} must be 'fast' or 'reference'")
    both = [m for m in module.modules() if hasattr(m, "implementation")]
    for each in both:
        each.implementation = implementation  # type: ignore[assignment]
    return len(both)

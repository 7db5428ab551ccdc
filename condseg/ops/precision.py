"""The precision in which a machine trains fastest."""

from __future__ import annotations

from typing import Literal

import torch


def fast_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 if the hardware has instructions for it: twice as fast with half the memory.

    Args:
        accelerator: as Lightning's trainer takes it: "auto", "cpu", "gpu", ...
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"

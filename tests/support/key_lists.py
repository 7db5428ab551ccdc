"""Names, shapes and types of the tensors of published checkpoints, from the golden folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOLDEN = Path(
    os.environ.get("CONDSEG_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
needs_key_lists = pytest.mark.skipif(
    not (GOLDEN / "keys_condinst.json").exists(), reason=f"no key lists in {GOLDEN}"
)


def read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / file).read_text())
    return content


def checkpoint(model: str, file: str = "keys_condinst.json") -> dict[str, Tensor]:
    """A checkpoint with the published names and shapes; its tensors take no memory."""
    keys = next(keys for name, keys in read(file).items() if name.startswith(model))
    return {
        key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        for key, (shape, dtype) in keys.items()
    }

"""How Lightning's trainer writes and reads checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from condseg.zoo.checkpoint import load
from condseg.zoo.writing import write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the target's folder, then renames it.

    Lightning writes to the system's temporary folder first; moving from another disk is a copy,
    which can be interrupted.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        write(checkpoint, path, **(storage_options or {}))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        return load(path)

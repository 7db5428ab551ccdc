"""How Lightning's trainer writes and reads checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from condseg.zoo.checkpoint import load, save


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the target's folder, then renames it.

    Lightning writes to the system's temporary folder first; moving from another disk is a copy,
    which can be interrupted.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        assert storage_options is None
        save(checkpoint, path)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        return load(path)

"""An engine for tests: the exported graph, run by PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

from condseg.export.contract import OUTPUTS, defaults_of, facts_of, thresholds
from condseg.export.engines import Arrays
from condseg.export.graph import ImagesToMasks
from condseg.zoo.checkpoint import Restored, restore


class GraphEngine:
    """Computes what the file of a checkpoint computes."""

    def __init__(self, checkpoint: Path, **facts: str) -> None:
        self.restored: Restored = restore(checkpoint)
        self.facts = facts_of(self.restored, False) | facts
        self.graph = ImagesToMasks(self.restored.network, self.restored.postprocess)
        self.inputs = ("images", *(n for n in thresholds(self.restored) if n != "mask_threshold"))
        if self.restored.network.takes_depth:
            self.inputs = (*self.inputs, "depth")

    def __call__(self, inputs: Arrays) -> Arrays:
        given = {name: v for name, v in defaults_of(self.facts).items() if name in self.inputs}
        tensors = {name: torch.from_numpy(value) for name, value in (given | inputs).items()}
        assert set(tensors) == set(self.inputs)
        with torch.inference_mode():
            found = self.graph(**tensors)
        return {name: value.numpy() for name, value in zip(OUTPUTS, found, strict=True)}

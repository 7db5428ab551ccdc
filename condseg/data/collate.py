"""Samples -> a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from condseg.structures import Batch, Sample, Targets

SIZE_DIVISOR = 32


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads samples with zeros at the right and bottom to the maximum height and width.

    Both are rounded up to multiples of 32, the stride of the backbone's deepest map.

    Args:
        samples: at least one; all with depth or none.
    """
    assert samples
    height, width = (
        -(-max(sample.info.size[axis] for sample in samples) // SIZE_DIVISOR) * SIZE_DIVISOR
        for axis in (0, 1)
    )

    def pad(maps: Tensor) -> Tensor:
        return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))

    targets = [sample.targets for sample in samples]
    depths = [pad(sample.depth) for sample in samples if sample.depth is not None]
    assert len(depths) in (0, len(samples))
    return Batch(
        images=torch.stack([pad(sample.image) for sample in samples]),
        targets=tuple(Targets(t.boxes, t.labels, pad(t.masks)) for t in targets),
        infos=tuple(sample.info for sample in samples),
        depth=torch.stack(depths) if depths else None,
        lost_objects=sum(sample.lost_objects for sample in samples),
        broken=tuple(sample.broken for sample in samples if sample.broken is not None),
    )

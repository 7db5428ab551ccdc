"""Samples -> a batch."""

from __future__ import annotations

from collections.abc import Sequence

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

    def stack(maps: list[Tensor]) -> Tensor:
        batch = maps[0].new_zeros((len(maps), *maps[0].shape[:-2], height, width))
        for place, one in zip(batch, maps, strict=True):
            place[..., : one.shape[-2], : one.shape[-1]] = one
        return batch

    targets = [sample.targets for sample in samples]
    depths = [sample.depth for sample in samples if sample.depth is not None]
    assert len(depths) in (0, len(samples))
    return Batch(
        images=stack([sample.image for sample in samples]),
        targets=tuple(Targets(t.boxes, t.labels, pad(t.masks)) for t in targets),
        infos=tuple(sample.info for sample in samples),
        depth=stack(depths) if depths else None,
        lost_objects=sum(sample.lost_objects for sample in samples),
        broken=tuple(sample.broken for sample in samples if sample.broken is not None),
    )

"""The auxiliary loss of per-pixel classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condseg.ops.boxinst import box_masks
from condseg.ops.distributed import mean_over_ranks
from condseg.ops.losses import focal_loss
from condseg.ops.masks import sample_at_stride
from condseg.structures import Targets


class SemanticLoss(nn.Module):
    """Focal loss of per-pixel classes; where objects overlap, the smallest one is the target.

    A pixel outside of all masks but inside the box of an object without a mask is ignored.

    Args:
        alpha: of the focal loss.
        gamma: of the focal loss.

    Source:
        CondInst (ECCV 2020), section 4.5 (semantic branch).
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(
        self, logits: Float[Tensor, "b k h w"], targets: Sequence[Targets], stride: int
    ) -> Float[Tensor, ""]:
        """The loss of a batch; masks are read at rows and columns stride // 2, ..."""
        background = logits.shape[1]
        labels, unknown = [], []
        for target in targets:
            masks = sample_at_stride(target.masks, stride)
            size = (target.masks.shape[1], target.masks.shape[2])
            boxed = box_masks(target.boxes, size, stride) & ~target.has_mask[:, None, None]
            unknown.append(boxed.any(0) & ~masks.any(0))
            if len(masks) == 0:
                labels.append(torch.full(logits.shape[-2:], background, device=logits.device))
                continue
            area = target.masks.sum(dim=(1, 2)).float()[:, None, None].expand(masks.shape)
            smallest, index = area.masked_fill(~masks, torch.inf).min(dim=0)
            labels.append(target.labels[index].where(smallest.isfinite(), background))
        label = torch.stack(labels)  # (B, h, w)
        count = mean_over_ranks((label < background).sum().float()).clamp(min=1)
        # The focal loss of a background logit of -10000 is exactly zero.
        logits = logits.float().masked_fill(torch.stack(unknown)[:, None], -1e4)
        return focal_loss(logits.permute(0, 2, 3, 1), label, self.alpha, self.gamma) / count

"""ResNets of any width, built from torchvision's blocks."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """The convolutional part of a ResNet, with torchvision's names of the tensors.

    In torchvision's class the widths of the stem and the stages are fixed.

    Args:
        name: one of ``BLOCKS``.
        width: channels of the blocks' 3x3 convolutions at stride 4; they double every stage.
        stem_width: channels of the stem.
        stride_in_1x1: a bottleneck strides in its first 1x1 convolution, as the original (Caffe)
            networks did, instead of in the 3x3 one.

    Shape:
        (B, 3, H, W) -> (B, C, H/4, W/4), (B, 2C, H/8, W/8), (B, 4C, H/16, W/16),
        (B, 8C, H/32, W/32); C is ``width`` (basic blocks) or 4 ``width`` (bottlenecks).

    Source: He et al., Deep Residual Learning for Image Recognition, table 1.
    """

    def __init__(
        self, name: str, width: int = 64, stem_width: int = 64, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        block, depths = BLOCKS[name]
        self.conv1 = nn.Conv2d(3, stem_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [width * 2**stage for stage in range(4)]
        self.out_channels = tuple(planes * block.expansion for planes in widths)
        self.layer1 = _stage(block, stem_width, widths[0], depths[0], stride=1)
        self.layer2 = _stage(block, self.out_channels[0], widths[1], depths[1], stride=2)
        self.layer3 = _stage(block, self.out_channels[1], widths[2], depths[2], stride=2)
        self.layer4 = _stage(block, self.out_channels[2], widths[3], depths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif stride_in_1x1 and isinstance(module, Bottleneck):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)

    def forward(self, x: Any) -> list[Any]:  # tensors, or torch.fx proxies
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    @property
    def stage_ends(self) -> dict[int, str]:
        """Stage k has stride 2^k; the last module of each."""
        return {1: "bn1", 2: "layer1", 3: "layer2", 4: "layer3", 5: "layer4"}


def _stage(
    block: type[BasicBlock | Bottleneck], channels: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))

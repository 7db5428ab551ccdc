"""Networks optimized for inference compute the same and leave the original unchanged."""

import functools
import logging

import pytest
import torch
from support.networks import SIZE, noise, randomize_norms, tiny_backbone, tiny_condinst
from torch import Tensor, nn

from condseg.layers import CondConv2d, ConvSlot, ODConv2d
from condseg.models import Backbone, optimize_for_inference
from condseg.models.optimize import copy_modules, fold_norms_

OD2, COND2 = (functools.partial(layer, num_experts=2) for layer in (ODConv2d, CondConv2d))


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (functools.partial(tiny_backbone, "resnet18"), 0),
        (functools.partial(tiny_backbone, "resnet50"), 0),
        # A norm folds into a dynamic layer whose bias is the same for all kernels.
        (functools.partial(tiny_backbone, conv=OD2, where=[5]), 0),
        (functools.partial(tiny_backbone, conv=COND2, where=[5]), 4),
        (functools.partial(Backbone, "tf_efficientnet_lite0", None), 0),
        (functools.partial(Backbone, "regnetx_002", None), 0),
    ],
    ids=["resnet18", "resnet50", "odconv", "condconv", "efficientnet", "regnet"],
)
@torch.no_grad()
def test_optimized_network(build: functools.partial[Backbone], left: int) -> None:
    network = tiny_condinst(build()).eval()
    randomize_norms(network.backbone)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    types = [type(module) for module in network.modules()]
    images, x = noise(2), torch.randn(2, 3, 64, 96)
    expected, maps = network(images, [SIZE] * 2), network.backbone(x)

    network.train()
    optimized = optimize_for_inference(network)
    assert network.training
    assert not any(module.training for module in optimized.modules())
    assert norms(network.backbone) > 15
    assert norms(optimized.backbone) == left
    assert optimized.head.controller.weight is network.head.controller.weight
    for mode in (True, False):  # modules that train() looks up by name are still there
        optimized.train(mode)
    for batch in (1, 2):
        for folded, right in zip(optimized.backbone(x[:batch]), maps, strict=True):
            assert folded.is_contiguous(memory_format=torch.channels_last)
            assert (folded - right[:batch]).norm() <= 1e-5 * right[:batch].norm()
    dense = optimized(images, [SIZE] * 2)
    torch.testing.assert_close(dense.head.ltrb, expected.head.ltrb, rtol=1e-3, atol=1e-4)

    assert [type(module) for module in network.modules()] == types
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    again = network.eval()(images, [SIZE] * 2)
    assert torch.equal(again.head.class_logits, expected.head.class_logits)
    assert torch.equal(again.mask_features, expected.mask_features)


class Unfoldable(nn.Module):
    """A map with two users, a convolution called twice, a branch on values."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.sum() > 0:
            return x
        y = self.conv(x)
        y = y + self.bn(y)
        return self.one(self.twice(y)) + self.other(self.twice(x))


def test_norms_that_cannot_be_folded(caplog: pytest.LogCaptureFixture) -> None:
    network, x = Unfoldable(branches=False).eval(), torch.randn(1, 3, 4, 4)
    randomize_norms(network)
    expected = network(x)
    assert fold_norms_(network) == 0
    assert torch.equal(network(x), expected)
    with caplog.at_level(logging.INFO):
        assert fold_norms_(Unfoldable(branches=True).eval()) == 0
    assert "batch norms of Unfoldable are not folded" in caplog.text


def test_norms_in_training_mode_are_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert fold_norms_(network.train()) == 0
    assert fold_norms_(network.eval()) == 1


def test_copied_modules_share_their_tensors() -> None:
    network = tiny_backbone(conv=OD2)
    copied = copy_modules(network)
    assert any(isinstance(module, ConvSlot) for module in copied.modules())
    assert not set(network.modules()) & set(copied.modules())
    tensors = [*network.parameters(), *network.buffers()]
    for tensor, same in zip(tensors, [*copied.parameters(), *copied.buffers()], strict=True):
        assert tensor is same

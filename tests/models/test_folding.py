"""Batch norms folded into convolutions compute what they did."""

import copy
import functools
import logging

import pytest
import torch
from torch import Tensor, nn

from condseg.layers import CondConv2d, ODConv2d
from condseg.models import Backbone
from condseg.models.optimize import copy_modules, fold_norms_


def unlike(network: nn.Module) -> nn.Module:
    """With statistics and affine parameters as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                assert tensor is not None
                nn.init.normal_(tensor, 0.5, 0.2)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tf_efficientnet_lite0", "regnetx_002"])
def test_folded_backbones_compute_the_same(name: str) -> None:
    if not name.startswith("resnet"):
        pytest.importorskip("timm")
    backbone = unlike(Backbone(name, weights=None))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(x)
        assert fold_norms_(backbone.network) > 15
        assert norms(backbone) == 0
        for result, right in zip(backbone(x), expected, strict=True):
            assert (result - right).norm() <= 1e-5 * right.norm()


@pytest.mark.parametrize(("layer", "left"), [(ODConv2d, 0), (CondConv2d, 4)])
@pytest.mark.parametrize("batch", [1, 2])
def test_dynamic_layers(layer: type[nn.Module], left: int, batch: int) -> None:
    """A norm goes where the bias is the same for all kernels."""
    conv = functools.partial(layer, num_experts=2)
    backbone = unlike(Backbone("resnet18", weights=None, conv=conv, where=[5]))
    before, x = norms(backbone), torch.randn(batch, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)
        # The four convolutions of the last stage are dynamic, its shortcut is not.
        assert before - fold_norms_(backbone.network) == left
        for result, right in zip(backbone(x), expected, strict=True):
            assert (result - right).norm() <= 1e-5 * right.norm()


class Odd(nn.Module):
    """A norm that is one of two users, a convolution called twice, a branch on values."""

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


def test_what_cannot_be_folded_stays(caplog: pytest.LogCaptureFixture) -> None:
    network, x = unlike(Odd(branches=False)), torch.randn(1, 3, 4, 4)
    expected = network(x)
    assert fold_norms_(network) == 0
    assert torch.equal(network(x), expected)
    with caplog.at_level(logging.INFO):
        assert fold_norms_(unlike(Odd(branches=True))) == 0
    assert "batch norms of Odd are not folded" in caplog.text


def test_norms_that_train_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert fold_norms_(network.train()) == 0
    assert fold_norms_(network.eval()) == 1


def test_copy_modules_keeps_the_tensors_and_not_the_modules() -> None:
    network = unlike(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    before = copy.deepcopy(network.state_dict())
    other = copy_modules(network)
    assert other[0].weight is network[0].weight
    fold_norms_(other)
    assert isinstance(network[1], nn.BatchNorm2d)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])

"""Batch norm over all ranks; with several ranks in test_ddp.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from condseg.training.sync_batchnorm import GlobalBatchNorm, SyncBatchNorm


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of one process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.usefixtures("one_rank")
def test_equals_batch_norm_on_one_rank(momentum: float | None) -> None:
    expected = nn.BatchNorm2d(3, momentum=momentum).double()
    nn.init.normal_(expected.weight)
    norm = GlobalBatchNorm(copy.deepcopy(expected))
    for training in (True, True, False):
        expected.train(training)
        norm.train(training)
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        a, b = expected(x), norm(y)
        torch.testing.assert_close(b, a)
        gradient = torch.randn_like(a)
        a.backward(gradient)
        b.backward(gradient)
        torch.testing.assert_close(y.grad, x.grad)
        torch.testing.assert_close(norm.state_dict(), expected.state_dict())


@pytest.mark.usefixtures("one_rank")
def test_a_single_value_is_normalised_by_the_running_statistics() -> None:
    norm = GlobalBatchNorm(nn.BatchNorm1d(2))
    assert norm(torch.tensor([[3.0, 4.0]])).tolist() == [pytest.approx([3.0, 4.0], rel=1e-4)]
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.num_batches_tracked == 0


def test_apply_and_revert() -> None:
    """With timm's norm, which contains an activation."""
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(layers.BatchNormAct2d(4))
    )
    x = torch.randn(2, 3, 4, 4)
    before, names = model.eval()(x), list(model.state_dict())
    types = [type(module) for module in model.modules()]
    plugin = SyncBatchNorm()
    plugin.apply(model)
    assert sum(isinstance(module, GlobalBatchNorm) for module in model.modules()) == 2
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), before)
    plugin.revert(model)
    assert [type(module) for module in model.modules()] == types
    torch.testing.assert_close(model(x), before)

"""The fast forms of a whole network compute what its published form computes."""

from functools import partial
from typing import Any

import pytest
import torch
from studies.published import PUBLISHED, published_form, published_postprocess
from support.networks import (
    FCOS,
    RTMDET,
    SIZE,
    batch_of,
    losses_of,
    noise,
    tiny_backbone,
    tiny_condinst,
)
from torch import nn

from condseg.layers import DynamicDilatedPyramid2d, ODConv2d
from condseg.models import CondInst, FCOSHead, PostProcess
from condseg.structures import ImageInfo

FORMS = [FCOS | {"mask_filter": DynamicDilatedPyramid2d}, RTMDET]


@pytest.fixture(scope="module", params=FORMS, ids=["fcos", "rtmdet"])
def networks(request: Any) -> tuple[CondInst, CondInst]:
    """A network that is dynamic wherever it can be, and its published form."""
    torch.manual_seed(0)
    backbone = tiny_backbone(conv=partial(ODConv2d, num_experts=2))
    network = tiny_condinst(backbone, **request.param).double()
    if isinstance(network.head, FCOSHead):
        nn.init.normal_(network.head.controller.weight, std=0.2)
    return network, published_form(network)


def test_every_part_is_replaced_and_no_tensor_is_shared(
    networks: tuple[CondInst, CondInst],
) -> None:
    network, published = networks
    types = [type(module) for module in network.modules()]
    expected = [PUBLISHED.get(each, each) for each in types]
    assert [type(module) for module in published.modules()] == expected
    replaced = set(types) & set(PUBLISHED)
    assert {type(network.backbone), type(network.head), type(network.mask_head)} < replaced
    state, copied = network.state_dict(), published.state_dict()
    assert list(state) == list(copied)
    for name, tensor in state.items():
        assert torch.equal(tensor, copied[name]), name
    tensors = [{t.data_ptr() for t in each.values()} for each in (state, copied)]
    assert not tensors[0] & tensors[1]


def test_detections(networks: tuple[CondInst, CondInst]) -> None:
    images, sizes = noise(2), (SIZE, (60, 90))
    infos = [ImageInfo(i, "", (100, 150), size) for i, size in enumerate(sizes)]
    postprocess, results = PostProcess(max_detections=7), []
    forms = postprocess, published_postprocess(postprocess)
    for network, process in zip(networks, forms, strict=True):
        with torch.no_grad():
            dense = network.eval()(images, sizes)
            results.append(process(dense, infos, network.mask_logits))
    for fast, published in zip(*results, strict=True):
        assert len(fast) >= 7
        torch.testing.assert_close(fast.boxes, published.boxes)
        torch.testing.assert_close(fast.scores, published.scores)
        assert torch.equal(fast.labels, published.labels)
        assert 0.01 < fast.masks.float().mean() < 0.99
        assert (fast.masks != published.masks).float().mean() <= 2e-5


def test_losses_and_gradients(networks: tuple[CondInst, CondInst]) -> None:
    batch, results = batch_of(2, 3), []
    for network in networks:
        network.train().zero_grad()
        losses = losses_of(network, batch)
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in network.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = results
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        other = expected_gradients[name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert (gradient - other).norm() <= 1e-4 * other.norm() + 1e-12, name

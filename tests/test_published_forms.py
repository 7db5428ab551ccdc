"""The fast forms compute what the plain published ones do, and one function replaces them all."""

from functools import partial

import pytest
import torch
from studies.published import PUBLISHED, published_form, published_postprocess
from support.networks import tiny_backbone, tiny_condinst
from torch import nn

from condseg.layers import DynamicDilatedPyramid2d, ODConv2d
from condseg.models import CondInst, Criterion, FCOSLoss, MaskLoss, PostProcess
from condseg.models.mask.head import DynamicMaskHead
from condseg.structures import Batch, ImageInfo, MaskQueries, Targets


@pytest.fixture(scope="module")
def networks() -> tuple[CondInst, CondInst]:
    """A network that is dynamic wherever it can be, and its published form."""
    torch.manual_seed(0)
    backbone = tiny_backbone(conv=partial(ODConv2d, num_experts=2))
    network = tiny_condinst(backbone, mask_filter=DynamicDilatedPyramid2d).double()
    nn.init.normal_(network.head.controller.weight, std=0.2)
    return network, published_form(network)


def test_every_part_is_replaced(networks: tuple[CondInst, CondInst]) -> None:
    for network, other in zip(networks[0].modules(), networks[1].modules(), strict=True):
        assert type(other) is PUBLISHED.get(type(network), type(network))


def test_detections(networks: tuple[CondInst, CondInst]) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    infos = [ImageInfo(i, "", (100, 150), size) for i, size in enumerate([(64, 96), (60, 90)])]
    results = []
    postprocess = PostProcess(max_detections=7)
    for network, process in zip(
        networks, (postprocess, published_postprocess(postprocess)), strict=True
    ):
        with torch.no_grad():
            dense = network.eval()(images, [info.size for info in infos])
            results.append(process(dense, infos, network.mask_logits))
    for ours, theirs in zip(*results, strict=True):
        assert len(ours) >= 7
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
        assert 0.01 < ours.masks.float().mean() < 0.99
        assert (ours.masks != theirs.masks).float().mean() <= 2e-5


def test_losses_and_gradients(networks: tuple[CondInst, CondInst]) -> None:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 4:40, 8:50], masks[1, 20:60, 30:90] = True, True
    boxes = torch.tensor([[8.0, 4, 50, 40], [30, 20, 90, 60]])
    infos = tuple(ImageInfo(i, "", (64, 96), (64, 96)) for i in range(2))
    batch = Batch(images, (Targets(boxes, torch.tensor([0, 2]), masks),) * 2, infos)
    results = []
    for network in networks:
        network.train().zero_grad()
        dense = network(images, batch.sizes)
        losses = Criterion(FCOSLoss(), MaskLoss())(dense, batch, network.mask_logits)
        torch.stack(list(losses.values())).sum().backward()
        results.append((losses, {n: p.grad for n, p in network.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = results
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        other = expected_gradients[name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert (gradient - other).norm() <= 1e-4 * other.norm() + 1e-12, name


def test_half_precision_has_no_infinities() -> None:
    head = DynamicMaskHead()
    count = 2000
    queries = MaskQueries(
        torch.randn(count, 169).bfloat16() * 100,
        torch.rand(count, 2) * 4000,
        torch.full((count,), 64.0),
        torch.zeros(count, dtype=torch.int64),
    )
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert head(torch.randn(1, 8, 3, 4).half() * 100, queries).isfinite().all()

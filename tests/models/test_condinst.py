"""The whole network with each head: predictions, losses, detections."""

from functools import partial
from typing import Any

import pytest
import torch
from support.networks import (
    FCOS,
    RTMDET,
    SIZE,
    batch_of,
    each_head,
    losses_of,
    noise,
    tiny_condinst,
)
from torch import nn

from condseg.layers import DynamicDilatedPyramid2d
from condseg.models import FPN, BiFPN, PostProcess
from condseg.ops import locations
from condseg.structures import ImageInfo, Supervision

MASK_LOSSES = {
    "masks": {"loss_mask"},
    "boxes": {"loss_projection", "loss_pairwise"},
    "mixed": {"loss_mask", "loss_projection", "loss_pairwise"},
}


@each_head
@pytest.mark.parametrize("supervision", ["masks", "boxes", "mixed"])
@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (1, 3), (0,), (2,)])
def test_losses_and_gradients_are_finite(
    options: dict[str, Any], counts: tuple[int, ...], supervision: Supervision
) -> None:
    network = tiny_condinst(**options, semantic_loss=True).train()
    batch = batch_of(*counts, masks=supervision == "masks")
    losses = losses_of(network, batch, supervision=supervision, pairwise_warmup_steps=4)
    expected = {"loss_cls", "loss_box", "loss_semantic"} | MASK_LOSSES[supervision]
    assert losses.keys() - {"loss_centerness"} == expected
    assert ("loss_centerness" in losses) == hasattr(network.head, "centerness")
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(p.grad.any() for p in network.head.controller.parameters()) == any(counts)


@each_head
def test_locations_are_computed_once(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    strides = []

    def counted(size: tuple[int, int], stride: int, *more: Any) -> torch.Tensor:
        strides.append(stride)
        return original(size, stride, *more)

    original = locations.level_locations
    network = tiny_condinst(**options)
    batch = batch_of(2)
    monkeypatch.setattr(locations, "level_locations", counted)  # pyramid_locations calls it
    losses_of(network.train(), batch)
    assert strides == list(network.pyramid.strides)
    strides.clear()
    with torch.no_grad():
        dense = network.eval()(batch.images, batch.sizes)
        [detections] = PostProcess()(dense, batch.infos, network.mask_logits)
    assert len(detections) > 0
    assert strides == list(network.pyramid.strides)


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        (FCOS, (8, 16, 32, 64, 128)),
        (FCOS | {"pyramid": partial(BiFPN, num_repeats=3)}, (8, 16, 32, 64, 128)),
        (RTMDET, (8, 16, 32)),
        (RTMDET | {"pyramid": partial(FPN, num_levels=5)}, (8, 16, 32, 64, 128)),
        (RTMDET | {"pyramid": BiFPN}, (8, 16, 32, 64, 128)),
    ],
)
def test_levels_and_sizes_of_interest(options: dict[str, Any], strides: tuple[int, ...]) -> None:
    network = tiny_condinst(**options).eval()
    with torch.no_grad():
        dense = network(noise(1), [SIZE])
        everywhere = torch.arange(len(dense.locations.points))
        queries = network.queries(dense, torch.zeros_like(everywhere), everywhere)
    sizes = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    assert dense.head.level_sizes == sizes[: len(strides)]
    assert dense.mask_features.shape == (1, 8, 8, 12)
    assert dense.semantic_logits is None
    assert queries.params.shape == (len(everywhere), 169)
    assert queries.size_of_interest.unique().tolist() == [8 * s for s in strides]


@pytest.mark.parametrize("options", [FCOS, {"mask_filter": DynamicDilatedPyramid2d}, RTMDET])
def test_an_image_alone_has_the_detections_that_it_has_in_a_batch(options: dict[str, Any]) -> None:
    network = tiny_condinst(**options).eval()
    images = noise(3)
    images[1, :, 40:] = 0
    images[1, :, :, 70:] = 0
    sizes = [SIZE, (40, 70), SIZE]
    infos = [ImageInfo(i, "", (2 * h, 2 * w), (h, w)) for i, (h, w) in enumerate(sizes)]
    postprocess = PostProcess(max_detections=20)
    with torch.no_grad():
        together = postprocess(network(images, sizes), infos, network.mask_logits)
        for i in range(3):
            alone = network(images[i : i + 1], sizes[i : i + 1])
            [single] = postprocess(alone, infos[i : i + 1], network.mask_logits)
            assert len(single) >= 7
            torch.testing.assert_close(single.boxes, together[i].boxes, rtol=1e-4, atol=1e-2)
            assert single.labels.tolist() == together[i].labels.tolist()
            assert single.masks.shape[1:] == infos[i].original_size
            assert (single.masks != together[i].masks).float().mean() < 1e-3


@each_head
def test_autocast_does_not_round_predictions(options: dict[str, Any]) -> None:
    network = tiny_condinst(**options).eval()
    nn.init.normal_(network.mask_branch.tower[-1].weight)
    info = ImageInfo(0, "", (100, 150), SIZE)
    postprocess = PostProcess(score_threshold=0.0, max_detections=20)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            dense = network(noise(1), [info.size])
            [inside] = postprocess(dense, [info], network.mask_logits)
        [outside] = postprocess(dense, [info], network.mask_logits)
    for tensor in (dense.head.class_logits, dense.head.ltrb, dense.mask_features):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
    assert inside.masks.any()
    for name in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(inside, name), getattr(outside, name))


def test_an_image_is_overfitted() -> None:
    """RTMDet-Ins; FCOS's head is trained so in tests/training."""
    network, batch = tiny_condinst(**RTMDET).train(), batch_of(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(45):
        losses = losses_of(network, batch)
        assert losses.keys() == {"loss_cls", "loss_box", "loss_mask"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():  # batch statistics: the moving averages are behind
        dense = network(batch.images, batch.sizes)
        [detections] = PostProcess(score_threshold=0.5)(dense, batch.infos, network.mask_logits)
    order = detections.labels.argsort()
    assert detections.labels[order].tolist() == [0, 1]
    target = batch.targets[0]
    torch.testing.assert_close(detections.boxes[order], target.boxes, rtol=0, atol=4)
    masks = detections.masks[order]
    common, either = (masks & target.masks).sum((1, 2)), (masks | target.masks).sum((1, 2))
    assert (common / either > 0.8).all()

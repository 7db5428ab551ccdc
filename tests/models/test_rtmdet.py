"""RTMDet-Ins's head in the network, with CondInst's mask head, criterion and post-process."""

from functools import partial
from typing import Any

import pytest
import torch
from studies.published import published_form
from support.networks import RTMDET, batch_of, noise, rectangles, tiny_condinst

from condseg.models import (
    FPN,
    BiFPN,
    CondInst,
    Criterion,
    MaskLoss,
    PostProcess,
    RTMDetHead,
    SemanticLoss,
    SoftLabelLoss,
)
from condseg.structures import HeadPredictions, ImageInfo

EXPECTED = {"loss_cls", "loss_box", "loss_mask"}


def tiny(**options: Any) -> CondInst:
    return tiny_condinst(**RTMDET | options)


def criterion(semantic: bool = False, loss: SoftLabelLoss | None = None, **masks: Any) -> Criterion:
    semantic_loss = SemanticLoss() if semantic else None
    return Criterion(loss or SoftLabelLoss(), MaskLoss(**masks), semantic_loss)


def test_levels_share_convolutions_and_nothing_else() -> None:
    head = RTMDetHead(256, 80, 169)
    towers = [head.class_tower, head.box_tower, head.kernel_tower]
    convolutions = sum(p.numel() for t in towers for p in t.convs.parameters())
    norms = sum(p.numel() for t in towers for p in t.norms.parameters())
    assert convolutions == 3 * 2 * 256 * 256 * 9
    assert norms == 3 * 2 * 3 * 2 * 256
    outputs = 3 * (80 + 4 + 169) * 257
    assert sum(p.numel() for p in head.parameters()) == convolutions + norms + outputs


def test_it_starts_with_boxes_of_a_stride_and_no_objects() -> None:
    torch.manual_seed(0)
    out = RTMDetHead(8, 3, 169, tower_convs=1).eval()([torch.randn(1, 8, s, s) for s in (4, 2, 1)])
    assert type(out) is HeadPredictions
    assert out.class_logits.shape == (1, 21, 3)
    torch.testing.assert_close(out.ltrb, torch.ones(1, 21, 4), rtol=0, atol=0.1)
    torch.testing.assert_close(
        out.class_logits.sigmoid().mean(), torch.tensor(0.01), rtol=0.1, atol=0
    )


def test_each_level_has_statistics_of_its_own() -> None:
    head = RTMDetHead(8, 3, 169, tower_convs=1).train()
    head([torch.randn(2, 8, s, s) + shift for s, shift in ((4, 0.0), (2, 5.0), (1, 9.0))])
    means = [norms[0].running_mean for norms in head.class_tower.norms]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[1], means[2])


def test_kernels_at_chosen_locations_are_the_convolution() -> None:
    head = RTMDetHead(16, 3, num_params=7)
    maps = [torch.randn(2, 16, *s, requires_grad=True) for s in ((4, 5), (2, 3), (1, 1))]
    dense = [conv(m).flatten(2) for conv, m in zip(head.controller, maps, strict=True)]
    expected = torch.cat(dense, dim=2).transpose(1, 2)
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    location = torch.tensor([26, 0, 19, 21, 20, 25, 0, 26])
    params = head.params_at(maps, image, location)
    torch.testing.assert_close(params, expected[image, location])
    cotangent = torch.randn_like(params)
    inputs = [*maps, *head.controller.parameters()]
    ours = torch.autograd.grad((params * cotangent).sum(), inputs)
    theirs = torch.autograd.grad((expected[image, location] * cotangent).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert head.params_at(maps, image[:0], location[:0]).shape == (0, 7)


@pytest.mark.parametrize("semantic", [False, True])
@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (1, 3), (0,), (2,)])
def test_losses_are_finite_whatever_is_in_the_noise(
    counts: tuple[int, ...], semantic: bool
) -> None:
    network = tiny(semantic_loss=semantic).train()
    boxes = [(4, 4, 40, 40), (20, 10, 90, 60), (50, 30, 60, 44)]
    targets = [rectangles(*boxes[:n]) for n in counts]
    batch = batch_of(noise(len(counts)), *targets)
    dense = network(batch.images, batch.sizes)
    losses = criterion(semantic)(dense, batch, network.mask_logits)
    assert set(losses) == EXPECTED | ({"loss_semantic"} if semantic else set())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_masks_from_boxes() -> None:
    network = tiny().train()
    batch = batch_of(noise(1), rectangles((4, 4, 60, 60)))
    dense = network(batch.images, batch.sizes)
    losses = criterion(supervision="boxes")(dense, batch, network.mask_logits)
    assert set(losses) == {"loss_cls", "loss_box", "loss_projection", "loss_pairwise"}
    torch.stack(list(losses.values())).sum().backward()
    for conv in network.head.controller:
        assert conv.weight.grad.isfinite().all()
    assert any(conv.weight.grad.any() for conv in network.head.controller)


def test_the_rule_and_its_weights_are_knobs() -> None:
    network = tiny().eval()
    batch = batch_of(noise(1), rectangles((4, 4, 60, 60)))
    dense = network(batch.images, batch.sizes)
    once, twice = (
        criterion(loss=SoftLabelLoss(box_weight=w, mask_weight=w))(
            dense, batch, network.mask_logits
        )
        for w in (1.0, 2.0)
    )
    published = criterion()(dense, batch, network.mask_logits)
    for name in EXPECTED:
        torch.testing.assert_close(published[name], twice[name])
        factor = 1 if name == "loss_cls" else 2
        torch.testing.assert_close(factor * once[name], twice[name])


def test_proposals_of_each_object_are_the_best_scored() -> None:
    network = tiny().eval()
    dense, targets = network(noise(1), [(64, 96)]), [rectangles((4, 4, 60, 60))]
    assignment, _ = SoftLabelLoss()(dense.head, dense.locations, targets)
    positive = (assignment.instance[0] == 0).nonzero().flatten()
    _, location = MaskLoss(topk_proposals_per_image=1).choose(dense.head, assignment)
    assert location.tolist() == [
        positive[dense.head.class_logits[0, positive].amax(1).argmax()].item()
    ]


@pytest.mark.parametrize("levels", [3, 5])
def test_sizes_of_interest_are_eight_strides(levels: int) -> None:
    network = tiny(pyramid=partial(FPN, num_levels=levels)).eval()
    dense = network(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), [(128, 128)])
    everywhere = torch.arange(len(dense.locations.points))
    queries = network.queries(dense, torch.zeros_like(everywhere), everywhere)
    assert queries.params.shape[1] == 169
    assert queries.size_of_interest.unique().tolist() == [8 * s for s in network.pyramid.strides]
    assert len(network.pyramid.strides) == levels


def test_a_bifpn_has_five_levels() -> None:
    assert len(tiny(pyramid=BiFPN).pyramid.strides) == 5


def test_scores_are_class_scores() -> None:
    network = tiny().eval()
    with torch.no_grad():
        dense = network(noise(1), [(64, 96)])
        found = PostProcess(max_detections=9).candidates(dense, 0)
    assert len(found.scores) >= 9
    expected = dense.head.class_logits[0, found.locations, found.labels].sigmoid()
    torch.testing.assert_close(found.scores, expected)


def test_reference_form_finds_and_trains_the_same() -> None:
    images, info = noise(2), ImageInfo(0, "", (100, 150), (64, 96))
    targets = [rectangles((4, 4, 40, 40), (20, 10, 90, 60)), rectangles()]
    results, losses = [], []
    fast = tiny().double().eval()
    for network in (fast, published_form(fast)):
        dense = network(images, [info.size] * 2)
        results.append(PostProcess(max_detections=7)(dense, [info] * 2, network.mask_logits))
        losses.append(criterion()(dense, batch_of(images, *targets), network.mask_logits))
    for ours, theirs in zip(*results, strict=True):
        assert len(ours) >= 7
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert 0.01 < ours.masks.float().mean() < 0.99
        assert (ours.masks != theirs.masks).float().mean() <= 2e-5
    for name in EXPECTED:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_one_picture_alone_is_the_same_in_a_batch() -> None:
    network = tiny().eval()
    images = noise(3)
    images[1, :, 40:] = 0
    images[1, :, :, 70:] = 0
    sizes = [(64, 96), (40, 70), (64, 96)]
    infos = [ImageInfo(i, "", (2 * h, 2 * w), (h, w)) for i, (h, w) in enumerate(sizes)]
    postprocess = PostProcess(max_detections=7)
    with torch.no_grad():
        together = postprocess(network(images, sizes), infos, network.mask_logits)
        for i in range(3):
            alone = network(images[i : i + 1], sizes[i : i + 1])
            [single] = postprocess(alone, infos[i : i + 1], network.mask_logits)
            torch.testing.assert_close(single.boxes, together[i].boxes, rtol=1e-4, atol=1e-2)
            assert single.labels.tolist() == together[i].labels.tolist()
            assert (single.masks != together[i].masks).float().mean() < 1e-3


def test_a_tiny_picture_is_learned_by_heart() -> None:
    """Two coloured rectangles, some tens of steps: class, box and mask come out."""
    torch.manual_seed(0)
    network = tiny().train()
    image = torch.full((1, 3, 64, 96), 40, dtype=torch.uint8)
    target = rectangles((8, 8, 40, 48), (48, 16, 92, 60))
    for (x1, y1, x2, y2), colour in zip(
        target.boxes.int().tolist(), ((230, 40), (40, 230)), strict=True
    ):
        image[0, 0, y1:y2, x1:x2], image[0, 2, y1:y2, x1:x2] = colour
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
    for _ in range(80):
        dense = network(image, [(64, 96)])
        losses = criterion()(dense, batch_of(image, target), network.mask_logits)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        dense = network(image, [(64, 96)])  # batch statistics: so few steps leave no good averages
        [found] = PostProcess(score_threshold=0.3)(
            dense, [ImageInfo(0, "", (64, 96), (64, 96))], network.mask_logits
        )
    assert sorted(found.labels.tolist()) == [0, 1]
    for label in (0, 1):
        [i] = (found.labels == label).nonzero().flatten().tolist()
        torch.testing.assert_close(found.boxes[i], target.boxes[label], rtol=0, atol=4)
        ours, theirs = found.masks[i], target.masks[label]
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.8

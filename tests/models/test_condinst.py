"""The detector's parts against slow versions, and on pictures with nothing in them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.published import published_form
from support.networks import RTMDET, noise, rectangles, tiny_condinst
from torch import nn

from condseg.layers import DynamicDilatedPyramid2d
from condseg.models import Criterion, FCOSLoss, MaskLoss, PostProcess, SemanticLoss
from condseg.models.heads.fcos import FCOSHead
from condseg.models.losses.assigner import Assigner
from condseg.models.mask.branch import MaskBranch
from condseg.models.mask.head import DynamicMaskHead
from condseg.ops.locations import pyramid_locations
from condseg.structures import (
    Batch,
    DensePredictions,
    FCOSPredictions,
    ImageInfo,
    MaskQueries,
    Targets,
)


@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 4),
    channels=st.integers(1, 9),
    features=st.integers(1, 9),
    relative=st.booleans(),
    instances=st.integers(1, 6),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_mask_head_is_a_small_network_of_each_instance(
    layers: int,
    channels: int,
    features: int,
    relative: bool,
    instances: int,
    size: tuple[int, int],
) -> None:
    maps = torch.randn(2, features, *size)
    head = DynamicMaskHead(features, channels, layers, relative)
    queries = MaskQueries(
        torch.randn(instances, head.num_params),
        torch.rand(instances, 2) * 40,
        torch.full((instances,), 64.0),
        torch.randint(0, 2, (instances,)),
    )
    fast = head(maps, queries)
    reference = published_form(head)
    torch.testing.assert_close(fast, reference(maps, queries), rtol=1e-4, atol=1e-4)

    weights, biases = head.parse(queries.params)
    p, (i, j) = instances - 1, (size[0] - 1, size[1] - 1)
    x = maps[queries.image_index[p], :, i, j]
    if relative:
        pixel = torch.tensor([8.0 * j + 4, 8.0 * i + 4])
        x = torch.cat(((queries.points[p] - pixel) / 64, x))
    for layer in range(layers):
        x = weights[layer][p] @ (x.relu() if layer else x) + biases[layer][p]
    torch.testing.assert_close(fast[p, 2 * i + 1, 2 * j + 1], x[0], rtol=1e-4, atol=1e-4)


def test_parameters_are_parsed_into_grouped_convolutions() -> None:
    head = DynamicMaskHead()
    assert head.num_params == 169
    weights, biases = head.grouped(torch.randn(5, 169))
    assert [w.shape for w in weights] == [(40, 10, 1, 1), (40, 8, 1, 1), (5, 8, 1, 1)]
    assert [b.shape for b in biases] == [(40,), (40,), (5,)]


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"out_stride": 3}])
def test_mask_head_refuses(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DynamicMaskHead(**options)


def test_controller_at_chosen_locations_is_the_convolution() -> None:
    head = FCOSHead(64, 3, num_params=7, num_levels=3)
    maps = [torch.randn(2, 64, *s, requires_grad=True) for s in ((4, 5), (2, 3), (1, 1))]
    dense = torch.cat([head.controller(m).flatten(2) for m in maps], dim=2).transpose(1, 2)
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    location = torch.tensor([26, 0, 19, 21, 20, 25, 0, 26])
    params = head.params_at(maps, image, location)
    torch.testing.assert_close(params, dense[image, location])
    cotangent = torch.randn_like(params)
    inputs = [*maps, head.controller.weight]
    ours = torch.autograd.grad((params * cotangent).sum(), inputs)
    theirs = torch.autograd.grad((dense[image, location] * cotangent).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert head.params_at(maps, image[:0], location[:0]).shape == (0, 7)


def test_head_wants_whole_groups() -> None:
    for channels in (32, 80):
        with pytest.raises(ValueError, match=f"channels is {channels}"):
            FCOSHead(channels, 3, num_params=7)


def slow_assignment(
    points: torch.Tensor, strides: list[int], lower: list[float], upper: list[float], t: Targets
) -> list[int]:
    result = []
    for (x, y), s, low, high in zip(points.tolist(), strides, lower, upper, strict=True):
        best = (float("inf"), -1)
        for i, (x1, y1, x2, y2) in enumerate(t.boxes.tolist()):
            rows, columns = t.masks[i].nonzero(as_tuple=True)
            cx, cy = columns.float().mean().item(), rows.float().mean().item()
            inside = max(x1, cx - 1.5 * s) < x < min(x2, cx + 1.5 * s)
            inside &= max(y1, cy - 1.5 * s) < y < min(y2, cy + 1.5 * s)
            if inside and low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high:
                best = min(best, ((x2 - x1) * (y2 - y1), i))
        result.append(best[1])
    return result


def test_assignment_against_the_rule_read_aloud() -> None:
    targets = rectangles((3, 5, 40, 60), (10, 10, 30, 30), (50, 2, 95, 63), (70, 20, 90, 40))
    sizes = [(8, 12), (4, 6), (2, 3)]
    locations = pyramid_locations(sizes, (8, 16, 32), sizes_of_interest=(16, 32, 64))
    got = Assigner()(locations, [targets, rectangles()], num_classes=3)
    points = torch.cat(
        [
            torch.tensor([[j * s + s // 2, i * s + s // 2] for i in range(h) for j in range(w)])
            for (h, w), s in zip(sizes, (8, 16, 32), strict=True)
        ]
    )
    per_level = [h * w for h, w in sizes]
    strides, lower, upper = (
        [v for v, n in zip(values, per_level, strict=True) for _ in range(n)]
        for values in ([8, 16, 32], [-1.0, 16.0, 32.0], [16.0, 32.0, 1e8])
    )
    expected = slow_assignment(points, strides, lower, upper, targets)
    assert len(set(expected)) > 3
    assert got.instance[0].tolist() == expected
    assert got.labels[0].tolist() == [targets.labels[i].item() if i >= 0 else 3 for i in expected]
    assert (got.instance[1] == -1).all()
    assert (got.labels[1] == 3).all()


@pytest.mark.parametrize("semantic", [False, True])
@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (1, 3)])
def test_losses_are_finite_whatever_is_in_the_noise(
    counts: tuple[int, int], semantic: bool
) -> None:
    network = tiny_condinst(semantic_loss=semantic).train()
    boxes = [(4, 4, 40, 40), (20, 10, 90, 60), (50, 30, 60, 44)]
    targets = [rectangles(*boxes[:n]) for n in counts]
    infos = tuple(ImageInfo(i, "", (64, 96), (64, 96)) for i in range(2))
    batch = Batch(noise(2), tuple(targets), infos)
    semantic_loss = SemanticLoss() if semantic else None
    criterion = Criterion(FCOSLoss(), MaskLoss(), semantic_loss)
    losses = criterion(network(batch.images, batch.sizes), batch, network.mask_logits)
    expected = {"loss_cls", "loss_box", "loss_centerness", "loss_mask"}
    assert set(losses) == expected | ({"loss_semantic"} if semantic else set())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_proposals_are_bounded() -> None:
    network = tiny_condinst().eval()
    targets = [rectangles((4, 4, 60, 60), (30, 2, 94, 60)), rectangles((8, 8, 40, 40))]
    dense = network(noise(2), [(64, 96)] * 2)
    assignment = Assigner()(dense.locations, targets, 3)
    everything = (assignment.instance >= 0).sum().item()
    assert everything > 8
    image, location = MaskLoss(max_proposals=5).choose(dense.head, assignment)
    assert len(set(zip(image.tolist(), location.tolist(), strict=True))) == 5
    assert (assignment.instance[image, location] >= 0).all()
    assert len(MaskLoss(max_proposals=None).choose(dense.head, assignment)[0]) == everything

    image, location = MaskLoss(topk_proposals_per_image=4).choose(dense.head, assignment)
    instance = assignment.instance[image, location]
    scores = dense.head.class_logits.amax(2).sigmoid() * dense.head.centerness_logits.sigmoid()
    for i, objects in ((0, 2), (1, 1)):
        for j in range(objects):
            here = assignment.instance[i] == j
            kept = location[(image == i) & (instance == j)]
            assert len(kept) == min(4 // objects, int(here.sum()))
            best = scores[i][here].sort(descending=True).values[: len(kept)]
            torch.testing.assert_close(scores[i][kept].sort(descending=True).values, best)


@pytest.mark.parametrize("filtered", [False, True])
def test_one_picture_alone_is_the_same_in_a_batch(filtered: bool) -> None:
    network = tiny_condinst(mask_filter=DynamicDilatedPyramid2d if filtered else None).eval()
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
            assert len(single) >= 7
            torch.testing.assert_close(single.boxes, together[i].boxes, rtol=1e-4, atol=1e-2)
            assert single.labels.tolist() == together[i].labels.tolist()
            assert single.masks.shape[1:] == infos[i].original_size
            assert (single.masks != together[i].masks).float().mean() < 1e-3


@pytest.mark.parametrize("options", [{}, RTMDET], ids=["fcos", "rtmdet"])
def test_what_is_predicted_is_not_rounded_by_autocast(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = tiny_condinst(**options).eval()
    nn.init.normal_(network.mask_branch.tower[-1].weight)
    info = ImageInfo(0, "", (100, 150), (64, 96))
    postprocess = PostProcess(score_threshold=0.0, max_detections=20)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            dense = network(noise(1), [info.size])
            [inside] = postprocess(dense, [info], network.mask_logits)
        [outside] = postprocess(dense, [info], network.mask_logits)
    for made in (dense.head.class_logits, dense.head.ltrb, dense.mask_features):
        assert made.dtype == torch.float32
        assert not torch.equal(made, made.bfloat16().float())
    assert inside.masks.any()
    for name in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(inside, name), getattr(outside, name))


def test_nothing_found() -> None:
    network = tiny_condinst().eval()
    info = ImageInfo(0, "", (50, 70), (64, 90))
    with torch.no_grad():
        dense = network(noise(1), [info.size])
        [found] = PostProcess(score_threshold=0.999)(dense, [info], network.mask_logits)
    assert len(found) == 0
    assert found.masks.shape == (0, 50, 70)


def test_picture_smaller_than_a_stride() -> None:
    network = tiny_condinst().eval()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :3, :5] = 200
    info = ImageInfo(0, "", (3, 5), (3, 5))
    with torch.no_grad():
        dense = network(images, [info.size])
        [found] = PostProcess(score_threshold=0.01)(dense, [info], network.mask_logits)
    assert dense.head.level_sizes == ((4, 4), (2, 2), (1, 1), (1, 1), (1, 1))
    assert found.masks.shape[1:] == (3, 5)
    assert (found.boxes[:, 2] <= 5).all()


def test_equal_scores_at_the_end_all_stay() -> None:
    size = [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    count = sum(h * w for h, w in size)
    head = FCOSPredictions(
        torch.zeros(1, count, 1),
        torch.full((1, count, 4), 0.1),
        [torch.zeros(1, 1, *s) for s in size],
        torch.zeros(1, count),
    )
    locations = pyramid_locations(size, (8, 16, 32, 64, 128))
    dense = DensePredictions(head, locations, torch.zeros(1, 1, 4, 4), (32, 32))
    found = PostProcess(max_detections=5).candidates(dense, 0)
    assert len(found.scores) == count


def test_mask_branch_without_norm_and_with_filter() -> None:
    maps = [torch.randn(1, 6, s, s) for s in (8, 4, 2)]
    plain = MaskBranch(6, 8, 1, 5, norm=None)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert plain(maps).shape == (1, 5, 8, 8)
    assert MaskBranch(6, 8, 1, 5, mask_filter=DynamicDilatedPyramid2d)(maps).shape == (1, 5, 8, 8)

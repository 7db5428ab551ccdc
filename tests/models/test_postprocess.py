"""Thresholds, scores and sizes of detections."""

from typing import Any

import pytest
import torch
from support.networks import SIZE, each_head, noise, tiny_condinst
from torchvision.ops import box_iou

from condseg.models import PostProcess
from condseg.models.postprocess import postprocess_arguments
from condseg.ops.islands import without_islands
from condseg.ops.locations import pyramid_locations
from condseg.structures import DensePredictions, FCOSPredictions, HeadPredictions, ImageInfo


@each_head
def test_scores_are_those_of_the_head(options: dict[str, Any]) -> None:
    network = tiny_condinst(**options).eval()
    with torch.no_grad():
        head = (dense := network(noise(1), [SIZE])).head
    found = PostProcess(max_detections=9).candidates(dense)
    assert len(found.scores) >= 9
    expected = head.class_logits[0, found.locations, found.labels].sigmoid()
    if isinstance(head, FCOSPredictions):
        expected = (expected * head.centerness_logits[0, found.locations].sigmoid()).sqrt()
    torch.testing.assert_close(found.scores, expected)


@torch.no_grad()
def test_no_detections() -> None:
    network, info = tiny_condinst().eval(), ImageInfo(0, "", (50, 70), (64, 90))
    dense = network(noise(1), [info.size])
    [found] = PostProcess(score_threshold=0.999)(dense, [info], network.mask_logits)
    assert len(found) == 0
    assert found.masks.shape == (0, 50, 70)


def test_image_smaller_than_a_stride() -> None:
    network, info = tiny_condinst().eval(), ImageInfo(0, "", (3, 5), (3, 5))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :3, :5] = 200
    with torch.no_grad():
        dense = network(images, [info.size])
        [found] = PostProcess(score_threshold=0.01)(dense, [info], network.mask_logits)
    assert dense.head.level_sizes == ((4, 4), (2, 2), (1, 1), (1, 1), (1, 1))
    assert found.masks.shape[1:] == (3, 5)
    assert (found.boxes[:, 2] <= 5).all()


def test_detections_that_tie_with_the_last_are_kept() -> None:
    sizes = [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    locations = pyramid_locations(sizes, (8, 16, 32, 64, 128))
    count = len(locations.points)
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    ltrb = torch.full((1, count, 4), 0.1)
    head = FCOSPredictions(torch.zeros(1, count, 1), ltrb, maps, torch.zeros(1, count))
    dense = DensePredictions(head, locations, maps[0], (32, 32))
    assert len(PostProcess(max_detections=5).candidates(dense).scores) == count


def test_boxes_clipped_before_nms_overlap_more() -> None:
    """Two boxes with an IoU of 0.5; inside of the image they are the same."""
    maps = [torch.zeros(1, 1, 1, 2)]
    head = HeadPredictions(
        torch.tensor([[[2.0], [1.0]]]), torch.tensor([[[0.5] * 4, [1.5, 0.5, 1.5, 0.5]]]), maps
    )
    dense = DensePredictions(head, pyramid_locations([(1, 2)], (8,)), maps[0], (8, 8))
    assert len(PostProcess(nms_threshold=0.6).candidates(dense).boxes) == 2
    found = PostProcess(nms_threshold=0.6, clip_before_nms=True).candidates(dense)
    assert found.boxes.tolist() == [[0, 0, 8, 8]]


@each_head
@torch.no_grad()
def test_the_score_threshold_is_for_the_scores_that_are_shown(options: dict[str, Any]) -> None:
    dense = tiny_condinst(**options).eval()(noise(1), [SIZE])
    every = PostProcess(score_threshold=0.0, max_detections=10**6).candidates(dense).scores
    published = PostProcess(max_detections=10**6).candidates(dense).scores
    assert (dense.head.final_scores(torch.tensor(0.05)) < published).all()
    for threshold in (float(every[0]), float(every[len(every) // 3])):
        found = PostProcess(score_threshold=threshold, max_detections=10**6).candidates(dense)
        assert torch.equal(found.scores, every[every >= threshold])


@torch.no_grad()
def test_the_threshold_of_the_class_score_alone() -> None:
    dense = tiny_condinst().eval()(noise(1), [SIZE])
    class_scores = dense.head.class_scores(0)
    threshold = float(class_scores.flatten().median())
    by_class = PostProcess(None, threshold, False, nms_threshold=1.0, max_detections=10**6)
    count = len(by_class.candidates(dense).scores)
    assert count == int((class_scores > threshold).sum())
    assert count > int((dense.head.scores(0) > threshold).sum())


@torch.no_grad()
def test_class_agnostic_nms_leaves_one_of_two_classes() -> None:
    dense = tiny_condinst().eval()(noise(1), [SIZE])
    options = {"score_threshold": 0.0, "nms_threshold": 0.3, "max_detections": 10**6}
    by_class = PostProcess(**options).candidates(dense)
    across = PostProcess(**options, class_agnostic_nms=True).candidates(dense)
    for found, same_class in ((by_class, True), (across, False)):
        overlap = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
        compared = found.labels[:, None] == found.labels if same_class else torch.tensor(True)
        assert (overlap * compared).max() <= 0.3
    assert len(across.scores) < len(by_class.scores)
    assert across.scores[0] == by_class.scores[0]


def test_parts_outside_the_box_are_removed() -> None:
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[:, 2:8, 2:8] = True
    masks[:, 10:12, 20:22] = True  # an island
    masks[1, 7:10, 7:20] = True  # a bridge to it, but for a corner
    boxes = torch.tensor([[3.5, 3, 9, 9], [3, 3, 9, 9], [19.5, 0, 20.1, 20]])
    kept = without_islands(masks, boxes)
    assert torch.equal(kept[0].nonzero(), masks[2, :8, :8].nonzero())
    assert torch.equal(kept[1], masks[1])
    assert torch.equal(kept[2, 10:12, 20:22], masks[0, 10:12, 20:22])
    assert kept[2].sum() == 4
    assert masks[0].sum() == 40  # the input stays
    assert without_islands(masks[:0], boxes[:0]).shape == (0, 20, 30)
    assert not without_islands(masks[:1] & False, boxes[:1]).any()


@torch.no_grad()
def test_islands_are_removed_where_it_is_asked_for() -> None:
    network, info = tiny_condinst().eval(), ImageInfo(0, "", SIZE, SIZE)
    dense = network(noise(1), [SIZE])
    [every] = PostProcess()(dense, [info], network.mask_logits)
    [found] = PostProcess(keep_islands=False)(dense, [info], network.mask_logits)
    assert torch.equal(found.masks, without_islands(every.masks, every.boxes))
    assert found.masks.sum() < every.masks.sum()


@pytest.mark.parametrize(
    "wrong",
    [
        {"score_threshold": 1.1},
        {"candidate_threshold": float("nan")},
        {"nms_threshold": -0.1},
        {"max_detections": -1},
        {"pre_nms_topk": 0},
    ],
)
def test_values_outside_their_range_are_named(wrong: dict[str, float]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} is {value}; .* allowed"):
        PostProcess(**wrong)
    with pytest.raises(ValueError, match=name):
        PostProcess().replaced(**wrong)


def test_thresholds_of_older_recipes() -> None:
    assert postprocess_arguments({"score_threshold": 0.03}) == {"candidate_threshold": 0.03}
    new = {"score_threshold": 0.3, "candidate_threshold": 0.05}
    assert postprocess_arguments(new) == new
    assert postprocess_arguments({"max_detections": 5}) == {"max_detections": 5}

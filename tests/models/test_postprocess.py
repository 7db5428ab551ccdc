"""Thresholds, scores and sizes of detections."""

from typing import Any

import torch
from support.networks import SIZE, each_head, noise, tiny_condinst

from condseg.models import PostProcess
from condseg.ops.locations import pyramid_locations
from condseg.structures import DensePredictions, FCOSPredictions, ImageInfo


@each_head
def test_scores_are_those_of_the_head(options: dict[str, Any]) -> None:
    network = tiny_condinst(**options).eval()
    with torch.no_grad():
        head = (dense := network(noise(1), [SIZE])).head
    found = PostProcess(max_detections=9).candidates(dense, 0)
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
    assert len(PostProcess(max_detections=5).candidates(dense, 0).scores) == count

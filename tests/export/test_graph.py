"""The graph that is exported computes what the network and the post-process compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.networks import RTMDET, each_head, noise, randomize_norms, tiny_condinst
from torch import Tensor

from condseg.export.contract import OUTPUTS
from condseg.export.graph import ImagesToMasks, Outputs
from condseg.export.prepare import prepared
from condseg.layers import per_sample
from condseg.models import PAFPN, Backbone, ConcatMaskBranch, PostProcess, RTMDetMaskHead
from condseg.structures import Detections, ImageInfo

SIZE = (70, 101)


def network_of(**options):
    network = tiny_condinst(**options).eval()
    randomize_norms(network)
    return prepared(network)


@torch.no_grad()
def eager(network, post: PostProcess, images: Tensor, depth: Tensor | None = None):
    height, width = images.shape[2:]
    padding = (0, -width % 32, 0, -height % 32)
    infos = [ImageInfo(i, "", (height, width), (height, width)) for i in range(len(images))]
    sizes = [(height, width)] * len(images)
    dense = network(F.pad(images, padding), sizes, None if depth is None else F.pad(depth, padding))
    return post(dense, infos, network.mask_logits)


@torch.no_grad()
def run(network, post: PostProcess, images: Tensor, mask_threshold=None, depth=None):
    graph = ImagesToMasks(network, post)
    score = 0.2 if post.score_threshold is None else post.score_threshold
    limits = torch.tensor(score), torch.tensor(post.nms_threshold)
    return graph(images, *limits, torch.tensor([post.max_detections]), mask_threshold, depth)


def assert_equal(found: Outputs, expected: list[Detections]) -> None:
    for index, each in enumerate(expected):
        own = found.image_index == index
        # Equal scores may be in any order.
        torch.testing.assert_close(found.scores[own], each.scores)
        assert set(rows(found.boxes[own], found.labels[own])) == set(rows(each.boxes, each.labels))


def rows(boxes: Tensor, labels: Tensor) -> list[tuple[float, ...]]:
    return [(*box, label) for box, label in zip(boxes.round(decimals=2).tolist(), labels.tolist())]  # noqa: B905


def test_the_outputs_are_named() -> None:
    assert Outputs._fields == OUTPUTS


@each_head
@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_of_a_batch_are_those_of_the_post_process(options, agnostic) -> None:
    network = network_of(**options)
    post = PostProcess(score_threshold=0.3, max_detections=8, class_agnostic_nms=agnostic)
    images = noise(2, SIZE)
    expected = eager(network, post, images)
    found = run(network, post, images)
    assert all(len(each) for each in expected)
    assert_equal(found, expected)
    stride = network.mask_head.out_stride
    assert found.masks.shape[1:] == (96 // stride, 128 // stride)


def test_masks_of_full_size_are_those_of_the_post_process() -> None:
    network, post = network_of(), PostProcess(score_threshold=0.3, max_detections=5)
    images = noise(1, SIZE)
    (expected,) = eager(network, post, images)
    found = run(network, post, images, torch.tensor(0.5))
    assert torch.equal(found.boxes, expected.boxes)
    assert (found.masks != expected.masks).float().mean() <= 2e-5


@pytest.mark.parametrize("with_centerness", [False, True])
def test_candidate_thresholds_are_those_of_the_post_process(with_centerness) -> None:
    network = network_of()
    limit = 0.05 if with_centerness else 0.2
    post = PostProcess(candidate_threshold=limit, threshold_with_centerness=with_centerness)
    images = noise(1, SIZE)
    expected = eager(network, post, images)
    graph = ImagesToMasks(network, post)
    score = torch.tensor(limit).sqrt() if with_centerness else torch.tensor(0.0)
    with torch.no_grad():
        found = graph(images, score, torch.tensor(0.6), torch.tensor([100]))
    assert 0 < len(expected[0]) < 300
    assert_equal(found, expected)


def test_the_best_of_each_level_are_candidates() -> None:
    network = network_of()
    post = PostProcess(score_threshold=0.1, pre_nms_topk=7, max_detections=50)
    images = noise(2, SIZE)
    expected = eager(network, post, images)
    assert len(expected[0]) < len(eager(network, post.replaced(pre_nms_topk=1000), images)[0])
    assert_equal(run(network, post, images), expected)


def test_no_detection_has_masks_of_the_right_size() -> None:
    network = network_of()
    found = run(network, PostProcess(score_threshold=1.0), noise(2, SIZE))
    assert [len(value) for value in found] == [0] * 5
    assert found.masks.shape == (0, 24, 32)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [(7,), (7, 6), (5, 6, 4)])
def test_convolution_of_an_exported_layer(groups, size, monkeypatch) -> None:
    dims = len(size)
    x = torch.randn(3, 6, *size)
    weight = torch.randn(3, 6, 6 // groups, *(3,) * dims)
    steps = ((2,) * dims, (1,) * dims, (1,) * dims)
    expected = per_sample.conv_per_sample(x, weight, None, *steps, groups)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    called = []
    unfolded = per_sample._unfolded_per_sample
    monkeypatch.setattr(
        per_sample, "_unfolded_per_sample", lambda *a: called.append(1) or unfolded(*a)
    )
    found = per_sample.conv_per_sample(x, weight, None, *steps, groups)
    assert called
    torch.testing.assert_close(found, expected)


def test_same_padding_does_not_depend_on_the_size() -> None:
    backbone = Backbone("tf_efficientnet_lite0", weights=None)
    network = tiny_condinst(backbone).eval()
    exported = prepared(network)
    assert not any("Same" in type(m).__name__ for m in exported.modules())
    images = noise(1, (64, 96))
    expected, found = (n(images, [(64, 96)]) for n in (network, exported))
    torch.testing.assert_close(found.mask_features, expected.mask_features, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("full", [False, True])
def test_letterbox_and_masks_of_rtmdet(full: bool) -> None:
    """Grey squares, boxes clipped before NMS, and logits that are interpolated."""
    parts = {"pyramid": PAFPN, "mask_branch": ConcatMaskBranch, "mask_head": RTMDetMaskHead}
    backbone = Backbone("cspnext_tiny", None, norm="batch", freeze_stages=0, letterbox=True)
    network = network_of(backbone=backbone, **RTMDET | parts)
    post = PostProcess(0.2, clip_before_nms=True, mask_interpolation="logits", max_detections=20)
    images = noise(2, SIZE)
    expected = eager(network, post, images)
    found = run(network, post, images, torch.tensor(0.5) if full else None)
    assert len(found.scores) > 10
    assert_equal(found, expected)
    if full:
        masks = torch.cat([each.masks for each in expected])
        assert found.masks.shape == masks.shape
        assert found.masks.float().mean() == pytest.approx(masks.float().mean().item(), abs=1e-3)
    else:
        assert found.masks.shape[1:] == (16, 16)  # of 128 x 128 pixels

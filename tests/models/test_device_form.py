"""What a GPU computes for a whole batch: the same as the CPU, in few kernels and waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.counting import Counts, use_device_form
from support.networks import CONFIGURATIONS, SIZE, configured, each_head, noise
from support.networks import tiny_condinst as tiny

from condseg.evaluation.records import start_records
from condseg.models import CondInst, PostProcess
from condseg.structures import Category, DensePredictions, Detections, ImageInfo, Size

INFOS = (
    ImageInfo(0, "", (100, 150), SIZE),
    ImageInfo(1, "", (30, 20), (64, 43)),
    ImageInfo(2, "", (200, 90), (60, 27)),
    ImageInfo(3, "", SIZE, SIZE),
)
CATEGORIES = tuple(Category(k, str(k)) for k in range(3))


def dense_of(network: CondInst, sizes: list[Size]) -> DensePredictions:
    depth = torch.rand(len(sizes), *SIZE) if network.takes_depth else None
    dense: DensePredictions = network(noise(len(sizes)), sizes, depth)
    return dense


@pytest.mark.parametrize(
    "settings",
    [
        {"max_detections": 20},
        {"pre_nms_topk": 10},
        {"score_threshold": 0.999},
        {"class_agnostic_nms": True, "nms_threshold": 0.3},
        {"keep_islands": False},
    ],
    ids=str,
)
@each_head
@torch.no_grad()
def test_detections_are_the_same(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    network, postprocess = tiny(**options).eval(), PostProcess(**settings)
    dense = dense_of(network, [info.size for info in INFOS])
    expected = postprocess(dense, INFOS, network.mask_logits)
    use_device_form(monkeypatch)
    for name in ("paste", "instance_maps"):  # the second time in many parts
        found = postprocess(dense, INFOS, network.mask_logits)
        assert [same(*pair) for pair in zip(found, expected, strict=True)] == [True] * 4
        monkeypatch.setattr(f"condseg.ops.{name}.CHUNK_BYTES", 10**5)


def same(a: Detections, b: Detections) -> bool:
    names = ("boxes", "scores", "labels", "masks")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_a_batch_of_predictions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the records of an evaluation, from the dense predictions on."""
    network, _ = configured(name)
    network.eval()
    postprocess = PostProcess(candidate_threshold=0.0, pre_nms_topk=20)
    use_device_form(monkeypatch)
    launches = {}
    for count in (3, 4):
        infos = INFOS[:count]
        dense = dense_of(network, [info.size for info in infos])
        with Counts() as counts:
            found = postprocess(dense, infos, network.mask_logits)
            started = start_records(infos, found, CATEGORIES)
        assert all(len(of_image) > 10 for of_image in started())
        assert counts.waits.total() <= 7, counts.waits  # and one for the copies to the host
        launches[count] = counts.launches.total()
        assert launches[count] <= 250, counts.launches
    assert launches[4] - launches[3] == 1  # the copy of an image's masks for their run lengths

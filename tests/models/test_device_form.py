"""What a GPU computes for a whole batch: the same as the CPU, in few kernels and waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.counting import Counts, use_device_form
from support.networks import (
    CONFIGURATIONS,
    SIZE,
    batch_of,
    configured,
    criterion_of,
    each_head,
    losses_of,
    noise,
)
from support.networks import tiny_condinst as tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

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


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_training_step(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every parameter has a gradient; only positives, and what is known of them, are waited for."""
    network, options = configured(name)
    network.train()
    use_device_form(monkeypatch)
    batch = batch_of(3, 0, 2)
    if network.takes_depth:
        batch = replace(batch, depth=torch.rand(3, *SIZE))
    batch.targets[0].masks[0] = False  # an object with a box alone
    for more in ({}, {"supervision": "mixed"}, {"max_proposals": 5}):
        criterion = criterion_of(network, **options | more)
        with Counts() as counts:
            dense = network(batch.images, batch.sizes, batch.depth)
            losses = criterion(dense, batch, network.mask_logits)
            torch.stack(list(losses.values())).sum().backward()
        assert counts.waits.total() <= 6, counts.waits
        # No tensor is made on the host.
        assert counts.waits["tensor"] == counts.waits["new_tensor"] == 0
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize("supervision", ["masks", "boxes", "mixed"])
@each_head
def test_losses_and_gradients_are_the_same(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], supervision: str
) -> None:
    network, batch = tiny(**options).train(), batch_of(3, 0, 2)
    batch.targets[0].masks[0] = False
    results = []
    for _ in range(2):
        losses = losses_of(network, batch, supervision=supervision, topk_proposals_per_image=9)
        total = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        results.append((losses, [g for g in gradients if g is not None]))
        use_device_form(monkeypatch)
        monkeypatch.setattr("condseg.ops.instance_maps.CHUNK_BYTES", 10**6)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


class Whole(nn.Module):
    """The network and the masks of chosen locations."""

    def __init__(self, network: CondInst) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, depth: Tensor | None, index: Tensor) -> Tensor:
        dense = self.network(images, [SIZE, (50, 70)], depth)
        masks: Tensor = self.network.mask_logits(dense, index, index)
        return dense.head.class_logits.mean() + masks.mean()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_network_on_a_fake_gpu(name: str) -> None:
    """A tensor on the CPU among those on the GPU would be an error."""
    network, _ = configured(name)
    whole = Whole(network)
    named = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    with FakeTensorMode():
        tensors = {
            key: torch.empty(t.shape, dtype=t.dtype, device="cuda", requires_grad=t.requires_grad)
            for key, t in named.items()
        }
        images = torch.empty(2, 3, *SIZE, dtype=torch.uint8, device="cuda")
        depth = torch.empty(2, *SIZE, device="cuda") if network.takes_depth else None
        index = torch.zeros(7, dtype=torch.int64, device="cuda")
        for training in (True, False):
            whole.train(training)
            with torch.set_grad_enabled(training):
                result = functional_call(whole, tensors, (images, depth, index))
            assert result.device.type == "cuda"

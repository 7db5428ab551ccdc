"""FCOS's assignment, the choice of proposals, and the semantic loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.networks import RTMDET, SIZE, batch_of, each_head, rectangles, tiny_condinst
from torch import Tensor

from condseg.models import Criterion, FCOSLoss, MaskLoss, SemanticLoss, SoftLabelLoss
from condseg.models.losses.assigner import Assigner
from condseg.ops import boxinst
from condseg.ops.locations import pyramid_locations
from condseg.structures import Locations, Targets


def slow_assignment(locations: Locations, targets: Targets) -> list[int]:
    instances = []
    for k, (x, y) in enumerate(locations.points.tolist()):
        s, (low, high) = locations.stride[k].item(), locations.regression_range[k].tolist()
        best = (float("inf"), -1)
        for i, (x1, y1, x2, y2) in enumerate(targets.boxes.tolist()):
            rows, columns = targets.masks[i].nonzero(as_tuple=True)
            cx, cy = columns.float().mean().item(), rows.float().mean().item()
            inside = max(x1, cx - 1.5 * s) < x < min(x2, cx + 1.5 * s)
            inside &= max(y1, cy - 1.5 * s) < y < min(y2, cy + 1.5 * s)
            if inside and low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high:
                best = min(best, ((x2 - x1) * (y2 - y1), i))
        instances.append(best[1])
    return instances


def test_assignment_equals_the_slow_one() -> None:
    targets = rectangles((3, 5, 40, 60), (10, 10, 30, 30), (50, 2, 95, 63), (70, 20, 90, 40))
    sizes = [(8, 12), (4, 6), (2, 3)]
    locations = pyramid_locations(sizes, (8, 16, 32), sizes_of_interest=(16, 32, 64))
    assignment = Assigner()(locations, [targets, rectangles()], num_classes=3)
    expected = slow_assignment(locations, targets)
    assert len(set(expected)) > 3
    assert assignment.instance[0].tolist() == expected
    labels = [targets.labels[i].item() if i >= 0 else 3 for i in expected]
    assert assignment.labels[0].tolist() == labels
    assert (assignment.instance[1] == -1).all()
    assert (assignment.labels[1] == 3).all()


def test_box_center_is_used_for_an_object_without_a_mask() -> None:
    corner = torch.zeros(1, *SIZE, dtype=torch.bool)
    corner[0, 10:16, 30:36] = True
    masked = Targets(torch.tensor([[30.0, 10.0, 90.0, 60.0]]), torch.tensor([0]), corner)
    locations = pyramid_locations([(8, 12), (4, 6), (2, 3)], (8, 16, 32))

    def assigned(target: Targets, center_from_masks: bool) -> list[int]:
        assign = Assigner(center_from_masks=center_from_masks)
        instance: list[int] = assign(locations, [target], 3).instance[0].tolist()
        return instance

    of_box = assigned(masked, False)
    assert assigned(masked, True) != of_box
    assert assigned(replace(masked, masks=corner & False), True) == of_box


@each_head
def test_proposals(options: dict[str, Any]) -> None:
    network, batch = tiny_condinst(**options).eval(), batch_of(2, 1)
    with torch.no_grad():
        dense = network(batch.images, batch.sizes)
    head = dense.head
    assignment, _ = network.head.default_loss()(head, dense.locations, batch.targets)
    positives = int((assignment.instance >= 0).sum())
    assert positives > 8
    image, location = MaskLoss(max_proposals=5).choose(head, assignment)
    assert len(set(zip(image.tolist(), location.tolist(), strict=True))) == 5
    assert (assignment.instance[image, location] >= 0).all()
    assert len(MaskLoss(max_proposals=None).choose(head, assignment)[0]) == positives

    image, location = MaskLoss(topk_proposals_per_image=4).choose(head, assignment)
    instance = assignment.instance[image, location]
    for i, objects in ((0, 2), (1, 1)):
        scores = head.scores(i).amax(1)
        for j in range(objects):
            candidates = assignment.instance[i] == j
            kept = location[(image == i) & (instance == j)]
            assert len(kept) == min(4 // objects, int(candidates.sum()))
            best = scores[candidates].topk(len(kept)).values
            assert torch.equal(scores[kept].sort(descending=True).values, best)


def test_weights_of_soft_label_loss() -> None:
    network, batch = tiny_condinst(**RTMDET).eval(), batch_of(2)
    dense = network(batch.images, batch.sizes)

    def losses(loss: SoftLabelLoss) -> dict[str, Tensor]:
        return Criterion(loss, MaskLoss())(dense, batch, network.mask_logits)

    once, twice = (losses(SoftLabelLoss(box_weight=w, mask_weight=w)) for w in (1.0, 2.0))
    torch.testing.assert_close(losses(SoftLabelLoss()), twice)
    for name, factor in {"loss_cls": 1, "loss_box": 2, "loss_mask": 2}.items():
        assert once[name] > 0
        torch.testing.assert_close(factor * once[name], twice[name])


def test_semantic_loss_ignores_boxes_without_masks() -> None:
    target = batch_of(3).targets[0]
    target.masks[1] = False
    unknown = boxinst.box_masks(target.boxes[1:2], SIZE, 8)[0]
    unknown &= ~target.masks[2, 4::8, 4::8]
    assert unknown.any()
    logits = torch.randn(1, 3, 8, 12, requires_grad=True)
    SemanticLoss()(logits, [target], 8).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, unknown] == 0).all()
    assert (logits.grad[0, :, ~unknown] != 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_semantic_logits_are_computed_in_training_alone(training: bool) -> None:
    network, batch = tiny_condinst(semantic_loss=True).train(training), batch_of(1)
    dense = network(batch.images, batch.sizes)
    assert (dense.semantic_logits is not None) == training
    criterion = Criterion(FCOSLoss(), MaskLoss(), SemanticLoss()).train(training)
    losses = criterion(dense, batch, network.mask_logits)
    assert ("loss_semantic" in losses) == training
    assert {"loss_cls", "loss_mask"} <= losses.keys()

"""Masks learned from boxes, and from boxes and masks together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import rectangles, tiny_condinst
from torch import Tensor

from condseg.models import CondInst, Criterion, MaskLoss, SemanticLoss
from condseg.models.losses.assigner import Assigner
from condseg.models.losses.boxinst import BoxInstLoss
from condseg.ops import boxinst
from condseg.ops.locations import pyramid_locations
from condseg.structures import Batch, ImageInfo, Supervision, Targets

SIZE = (64, 96)
BOXES = ((4, 4, 40, 40), (30, 10, 90, 60), (50, 30, 66, 44))


def batch(*counts: int, masks: bool = True) -> Batch:
    """Coloured rectangles on grey; picture i has the first ``counts[i]`` of ``BOXES``."""
    images = torch.full((len(counts), 3, *SIZE), 90, dtype=torch.uint8)
    targets = []
    for image, count in zip(images, counts, strict=True):
        target = rectangles(*BOXES[:count], size=SIZE)
        for k, mask in enumerate(target.masks):
            image[k % 3, mask] = 230 - 40 * k
        targets.append(target if masks else without_masks(target))
    infos = tuple(ImageInfo(i, "", SIZE, SIZE) for i in range(len(counts)))
    return Batch(images, tuple(targets), infos)


def without_masks(target: Targets, *which: int) -> Targets:
    masks = target.masks.clone()
    masks[list(which) if which else slice(None)] = False
    return replace(target, masks=masks)


def losses(network: CondInst, data: Batch, supervision: Supervision) -> dict[str, Tensor]:
    criterion = criterion_of(network, supervision, 4)
    values: dict[str, Tensor] = criterion(
        network(data.images, data.sizes), data, network.mask_logits
    )
    return values


def criterion_of(network: CondInst, supervision: Supervision, warmup_steps: int) -> Criterion:
    semantic = SemanticLoss() if network.mask_branch.has_semantic_branch else None
    mask_loss = MaskLoss(supervision=supervision, pairwise_warmup_steps=warmup_steps)
    return Criterion(network.head.default_loss(), mask_loss, semantic)


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.sampled_from([3, 5]),
    dilation=st.integers(1, 3),
)
def test_pairwise_loss_is_that_of_each_pair(
    size: tuple[int, int], window: int, dilation: int
) -> None:
    logits = torch.randn(2, *size, dtype=torch.float64)
    weights = torch.rand(2, window**2 - 1, *size, dtype=torch.float64)
    steps = [d * dilation for d in range(-(window // 2), window // 2 + 1)]
    offsets = [(y, x) for y in steps for x in steps if (y, x) != (0, 0)]
    expected = torch.zeros((), dtype=torch.float64)
    for p, weight in zip(logits.sigmoid(), weights, strict=True):
        for k, (dy, dx) in enumerate(offsets):
            for y in range(max(0, -dy), min(size[0], size[0] - dy)):
                for x in range(max(0, -dx), min(size[1], size[1] - dx)):
                    same = p[y, x] * p[y + dy, x + dx] + (1 - p[y, x]) * (1 - p[y + dy, x + dx])
                    expected -= weight[k, y, x] * same.log()
    got = boxinst.pairwise_loss(logits, weights, window, dilation)
    torch.testing.assert_close(got, expected)


def test_boxes_at_a_stride_are_the_boxes_sampled() -> None:
    boxes = torch.tensor([[3.2, 1.0, 17.9, 9.5], [0, 0, 24, 16], [6, 6, 6.5, 6.5]])
    whole = boxinst.box_masks(boxes, (16, 24))
    assert whole[0].nonzero().amin(0).tolist() == [1, 3]
    assert whole[0].nonzero().amax(0).tolist() == [9, 17]
    for stride in (2, 4, 8):
        sampled = whole[:, stride // 2 :: stride, stride // 2 :: stride]
        assert torch.equal(boxinst.box_masks(boxes, (16, 24), stride), sampled)


@pytest.mark.parametrize("supervision", ["boxes", "mixed"])
@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (1, 3)])
@pytest.mark.parametrize("semantic", [False, True])
def test_losses_are_finite_whatever_is_in_the_pictures(
    supervision: Supervision, counts: tuple[int, int], semantic: bool
) -> None:
    network = tiny_condinst(semantic_loss=semantic).train()
    found = losses(network, batch(*counts, masks=False), supervision)
    expected = {"loss_cls", "loss_box", "loss_centerness", "loss_projection", "loss_pairwise"}
    expected |= {"loss_mask"} if supervision == "mixed" else set()
    assert set(found) == expected | ({"loss_semantic"} if semantic else set())
    torch.stack(list(found.values())).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_mixed_is_full_with_all_masks_and_boxinst_with_none() -> None:
    network = tiny_condinst(semantic_loss=True).train()
    for masks, alone in ((True, "masks"), (False, "boxes")):
        data = batch(1, 3, masks=masks)
        one, both = losses(network, data, alone), losses(network, data, "mixed")  # type: ignore[arg-type]
        assert set(one) < set(both)
        for name, value in both.items():
            torch.testing.assert_close(value, one.get(name, torch.tensor(0.0)), rtol=0, atol=0)


def test_each_object_has_its_own_loss() -> None:
    """Of a picture with and a picture without masks, each gives what it gives alone."""
    network = tiny_condinst().eval()  # norms that do not mix the pictures
    criterion = criterion_of(network, "mixed", 0).eval()

    def found(data: Batch) -> tuple[dict[str, Tensor], int]:
        dense = network(data.images, data.sizes)
        return criterion(dense, data, network.mask_logits), positive_locations(network, data)

    masked, boxed = batch(2), batch(3, masks=False)
    both = Batch(
        torch.cat((masked.images, boxed.images)),
        masked.targets + boxed.targets,
        masked.infos + boxed.infos,
    )
    (a, m), (b, n), (c, total) = found(masked), found(boxed), found(both)
    assert min(m, n) > 0
    assert m + n == total
    torch.testing.assert_close(c["loss_mask"], a["loss_mask"] * m / total)
    for name in ("loss_projection", "loss_pairwise"):
        assert b[name] > 0
        assert a[name] == 0
        torch.testing.assert_close(c[name], b[name] * n / total)


def positive_locations(network: CondInst, data: Batch) -> int:
    dense = network(data.images, data.sizes)
    assignment = Assigner()(dense.locations, data.targets, 3)
    return int((assignment.instance >= 0).sum())


def test_the_centre_of_an_object_without_a_mask_is_its_boxs() -> None:
    corner = torch.zeros(1, *SIZE, dtype=torch.bool)
    corner[0, 10:16, 30:36] = True
    masked = Targets(torch.tensor([[30.0, 10.0, 90.0, 60.0]]), torch.tensor([0]), corner)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    locations = pyramid_locations(sizes, (8, 16, 32, 64, 128))

    def positives(target: Targets, from_masks: bool) -> list[int]:
        assignment = Assigner(1.5, from_masks)(locations, [target], 3)
        found: list[int] = (assignment.instance[0] >= 0).nonzero().squeeze(1).tolist()
        return found

    assert positives(masked, True) != positives(masked, False)
    assert positives(without_masks(masked), True) == positives(masked, False)


def test_warm_up_counts_training_steps_and_is_in_the_state() -> None:
    data = batch(2, masks=False)
    logits = torch.linspace(-2, 2, 16 * 24).view(1, 16, 24)
    boxes, first = data.targets[0].boxes[:1], torch.tensor([0])

    def pairwise(loss: BoxInstLoss) -> float:
        return loss(logits, boxes, first, data, 4)[1].item()

    whole = pairwise(BoxInstLoss(warmup_steps=0))
    assert whole > 0
    loss = BoxInstLoss(warmup_steps=4)
    grown = [pairwise(loss) for _ in range(3)]
    resumed = BoxInstLoss(warmup_steps=4)
    resumed.load_state_dict(loss.state_dict())
    assert pairwise(resumed.eval()) == grown[-1]
    resumed.train()
    grown += [pairwise(resumed) for _ in range(3)]
    expected = [whole / 4, whole / 2, 3 * whole / 4, whole, whole, whole]
    assert grown == pytest.approx(expected, rel=1e-6)


def test_colours_outside_the_picture_and_of_the_bottom_do_not_count() -> None:
    data = batch(1, masks=False)
    info = replace(data.infos[0], size=(48, 80), original_size=(24, 40))
    data = replace(data, infos=(info,))
    similarity = BoxInstLoss(bottom_pixels_removed=4).color_similarity(data, 4)[0]
    assert similarity.shape == (8, 16, 24)
    below, right = similarity[6], similarity[4]
    # 4 rows of the original are 8 here: rows 0..39 count, i.e. cells 0..9; columns 0..19.
    assert (below[:8, :20] > 0).all()
    assert (below[8:] == 0).all()
    assert (right[:10, :18] > 0).all()
    assert (right[:, 18:] == 0).all()


def test_semantic_loss_does_not_judge_boxes_without_masks() -> None:
    both = batch(2).targets[0]
    one_known = without_masks(both, 1)
    known = boxinst.box_masks(both.boxes[1:], SIZE, 8)[0]
    known &= ~both.masks[0, 4::8, 4::8]
    logits = torch.randn(1, 3, 8, 12, requires_grad=True)
    SemanticLoss()(logits, [one_known], 8).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, known] == 0).all()
    assert (logits.grad[0, :, ~known] != 0).all()


@pytest.mark.parametrize("supervision", ["boxes", "mixed"])
def test_losses_fall(supervision: Supervision) -> None:
    network = tiny_condinst().train()
    data = batch(2, 3, masks=False)
    if supervision == "mixed":
        data = replace(data, targets=(batch(2).targets[0], data.targets[1]))
    criterion = criterion_of(network, supervision, 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    totals = []
    for _ in range(20):
        found = criterion(network(data.images, data.sizes), data, network.mask_logits)
        total = torch.stack(list(found.values())).sum()
        totals.append({"total": total.item()} | {k: v.item() for k, v in found.items()})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1]["total"] < 0.8 * totals[0]["total"]
    assert totals[-1]["loss_projection"] < totals[0]["loss_projection"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0; above 0 up to 1"),
        ({"size": 4}, "size is 4; 3, 5, 7"),
        ({"dilation": 0}, "dilation is 0; 1 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1; 0 or more"),
        ({"bottom_pixels_removed": -1}, "bottom_pixels_removed is -1; 0 or more"),
    ],
)
def test_wrong_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxInstLoss(**options)  # type: ignore[arg-type]

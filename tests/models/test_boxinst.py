"""Masks learned from boxes, and from boxes and masks together."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import batch_of, losses_of, tiny_condinst
from torch import Tensor

from condseg.models.losses.boxinst import BoxInstLoss
from condseg.ops import boxinst
from condseg.structures import Batch


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.sampled_from([3, 5]),
    dilation=st.integers(1, 3),
)
def test_pairwise_loss_is_the_sum_over_pairs(
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
    loss = boxinst.pairwise_loss(logits, weights, window, dilation)
    torch.testing.assert_close(loss, expected)


def test_box_masks_at_a_stride_are_sampled_box_masks() -> None:
    boxes = torch.tensor([[3.2, 1.0, 17.9, 9.5], [0, 0, 24, 16], [6, 6, 6.5, 6.5]])
    whole = boxinst.box_masks(boxes, (16, 24))
    assert whole[0].nonzero().amin(0).tolist() == [1, 3]
    assert whole[0].nonzero().amax(0).tolist() == [9, 17]
    for stride in (2, 4, 8):
        sampled = whole[:, stride // 2 :: stride, stride // 2 :: stride]
        assert torch.equal(boxinst.box_masks(boxes, (16, 24), stride), sampled)


@pytest.mark.parametrize(("masks", "alone"), [(True, "masks"), (False, "boxes")])
def test_mixed_supervision_of_equal_objects(masks: bool, alone: str) -> None:
    network, batch = tiny_condinst(semantic_loss=True).train(), batch_of(1, 3, masks=masks)
    expected = losses_of(network, batch, supervision=alone)
    losses = losses_of(network, batch, supervision="mixed")
    assert expected.keys() < losses.keys()
    for name, value in losses.items():
        assert torch.equal(value, expected.get(name, torch.tensor(0.0))), name


def test_each_object_has_its_own_loss() -> None:
    """An image with and one without masks have together the losses that they have alone."""
    network = tiny_condinst().eval()  # batch norms do not mix the images

    def compute(batch: Batch) -> tuple[dict[str, Tensor], int]:
        locations = network(batch.images, batch.sizes).locations
        assignment = network.head.default_loss().assign(locations, batch.targets, 3)
        losses = losses_of(network, batch, supervision="mixed", pairwise_warmup_steps=0)
        return losses, int((assignment.instance >= 0).sum())

    masked, boxed = batch_of(2), batch_of(3, masks=False)
    images = torch.cat((masked.images, boxed.images))
    both = Batch(images, masked.targets + boxed.targets, masked.infos + boxed.infos)
    (a, m), (b, n), (c, count) = compute(masked), compute(boxed), compute(both)
    assert min(m, n) > 0
    assert m + n == count
    torch.testing.assert_close(c["loss_mask"], a["loss_mask"] * m / count)
    for name in ("loss_projection", "loss_pairwise"):
        assert b[name] > 0
        assert a[name] == 0
        torch.testing.assert_close(c[name], b[name] * n / count)


def test_warm_up_counts_training_steps_and_is_in_the_state() -> None:
    batch = batch_of(2, masks=False)
    logits = torch.linspace(-2, 2, 16 * 24).view(1, 16, 24)
    boxes, first = batch.targets[0].boxes[:1], torch.tensor([0])

    def pairwise(loss: BoxInstLoss) -> float:
        return loss(logits, boxes, first, batch, 4)[1].item()

    whole = pairwise(BoxInstLoss(warmup_steps=0))
    assert whole > 0
    loss, resumed = BoxInstLoss(warmup_steps=4), BoxInstLoss(warmup_steps=4)
    values = [pairwise(loss) for _ in range(3)]
    resumed.load_state_dict(loss.state_dict())
    assert pairwise(resumed.eval()) == values[-1]
    resumed.train()
    values += [pairwise(resumed) for _ in range(3)]
    expected = [whole / 4, whole / 2, 3 * whole / 4, whole, whole, whole]
    assert values == pytest.approx(expected, rel=1e-6)


def test_colors_of_the_padding_and_the_bottom_are_ignored() -> None:
    batch = batch_of(1, masks=False)
    info = replace(batch.infos[0], size=(48, 80), original_size=(24, 40))
    loss = BoxInstLoss(bottom_pixels_removed=4)
    similarity = loss.color_similarity(replace(batch, infos=(info,)), 4)[0]
    assert similarity.shape == (8, 16, 24)
    below, right = similarity[6], similarity[4]
    # 4 rows of the original are 8 here: rows 0..39 count, i.e. cells 0..9; columns 0..19.
    assert (below[:8, :20] > 0).all()
    assert (below[8:] == 0).all()
    assert (right[:10, :18] > 0).all()
    assert (right[:, 18:] == 0).all()


def test_losses_fall() -> None:
    network, masked, boxed = tiny_condinst().train(), batch_of(2, 0), batch_of(2, 3, masks=False)
    batch = replace(boxed, targets=(masked.targets[0], boxed.targets[1]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    steps = []
    for _ in range(12):
        losses = losses_of(network, batch, supervision="mixed", pairwise_warmup_steps=0)
        steps.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert sum(steps[-1].values()) < 0.8 * sum(steps[0].values())
    assert steps[-1]["loss_projection"] < steps[0]["loss_projection"]


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
def test_values_outside_their_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxInstLoss(**options)  # type: ignore[arg-type]

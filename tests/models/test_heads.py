"""Dense heads: their predictions, scores, losses and mask parameters."""

from functools import partial

import pytest
import torch
from support.networks import BOXES, rectangles
from torch import Tensor, nn

from condseg.models import DenseHead, FCOSHead, RTMDetHead
from condseg.models.heads.base import HeadFactory
from condseg.ops.locations import pyramid_locations
from condseg.structures import FCOSPredictions

SIZES = ((4, 5), (2, 3), (1, 1))


def maps_of(channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size, requires_grad=True) for size in SIZES]


each_head = pytest.mark.parametrize(("factory", "channels"), [(FCOSHead, 64), (RTMDetHead, 16)])


@each_head
def test_params_at_chosen_locations_are_the_convolutions(
    factory: HeadFactory, channels: int
) -> None:
    head, maps = factory(channels, 3, 7, 3), maps_of(channels)
    convs = head.controller if isinstance(head.controller, nn.ModuleList) else [head.controller] * 3
    whole = [conv(x).flatten(2) for conv, x in zip(convs, maps, strict=True)]
    expected = torch.cat(whole, dim=2).transpose(1, 2)
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    location = torch.tensor([26, 0, 19, 21, 20, 25, 0, 26])
    params = head.params_at(maps, image, location)
    torch.testing.assert_close(params, expected[image, location])
    cotangent = torch.randn_like(params)
    inputs = [*maps, *head.controller.parameters()]
    gradients = torch.autograd.grad((params * cotangent).sum(), inputs)
    right = torch.autograd.grad((expected[image, location] * cotangent).sum(), inputs)
    torch.testing.assert_close(gradients, right)
    assert head.params_at(maps, image[:0], location[:0]).shape == (0, 7)


@each_head
def test_scores_and_default_loss_fit_the_predictions(factory: HeadFactory, channels: int) -> None:
    head: DenseHead = factory(channels, 3, 7, 3)
    predictions, loss = head(maps_of(channels)), head.default_loss()
    assert type(predictions) is loss.predictions
    assert predictions.level_sizes == SIZES
    scores = predictions.class_logits[1].sigmoid()
    torch.testing.assert_close(predictions.class_scores(1), scores)
    expected = scores[:, 0]
    if isinstance(predictions, FCOSPredictions):
        scores = scores * predictions.centerness_logits[1].sigmoid()[:, None]
        expected = scores[:, 0].sqrt()
    torch.testing.assert_close(predictions.final_scores(scores[:, 0]), expected)
    torch.testing.assert_close(predictions.scores(1), scores)
    location = torch.tensor([26, 3, 0])
    of_pairs = predictions.scores(torch.ones_like(location), location)
    torch.testing.assert_close(of_pairs, scores[location])

    targets = [rectangles(*BOXES), rectangles()]
    assignment, losses = loss(predictions, pyramid_locations(SIZES, (8, 16, 32)), targets)
    assert (assignment.instance[0] >= 0).any()
    assert {"loss_cls", "loss_box"} <= losses.keys()
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert (parameter.grad is None) == name.startswith(("controller", "kernel_tower")), name


@pytest.mark.parametrize("channels", [32, 80])
def test_channels_that_fcos_does_not_support(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels is {channels}; 64, 96, 128"):
        FCOSHead(channels, 3, num_params=7)


tiny_rtmdet = partial(RTMDetHead, 8, 3, 169, tower_convs=1)


def test_levels_of_rtmdet_share_the_convolutions_of_classes_and_boxes() -> None:
    with torch.device("meta"):
        head = RTMDetHead(256, 80, 169)
    towers = [head.tower, head.kernel_tower]
    convolutions = [sum(p.numel() for p in tower.convs.parameters()) for tower in towers]
    norms = sum(p.numel() for tower in towers for p in tower.norms.parameters())
    assert convolutions == [2 * 256 * 256 * 9, 3 * 2 * 256 * 256 * 9]
    assert norms == 2 * 2 * 3 * 2 * 256
    outputs = 3 * (80 + 4 + 169) * 257
    assert sum(p.numel() for p in head.parameters()) == sum(convolutions) + norms + outputs


def test_rtmdet_starts_with_boxes_of_two_strides_and_low_scores() -> None:
    predictions = tiny_rtmdet().eval()(maps_of(8))
    assert predictions.class_logits.shape == (2, 27, 3)
    torch.testing.assert_close(predictions.ltrb, torch.ones(2, 27, 4), rtol=0, atol=0.1)
    score = predictions.class_logits.sigmoid().mean()
    torch.testing.assert_close(score, torch.tensor(0.01), rtol=0.1, atol=0)


def test_levels_of_rtmdet_have_their_own_statistics() -> None:
    head = tiny_rtmdet().train()
    head([x + shift for x, shift in zip(maps_of(8), (0.0, 5.0, 9.0), strict=True)])
    means = [norms[0].running_mean for norms in head.tower.norms]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[1], means[2])

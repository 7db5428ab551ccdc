"""Memory and operations of the fast forms stay below bars; they are counted, never timed."""

import pytest
import torch
from studies.benchmarks import inputs, subjects
from studies.benchmarks.inputs import Shapes
from studies.measure import multiply_adds, peak_bytes
from studies.published import published_form
from studies.published.detector import paste_whole
from studies.published.layers import filter_unfolded
from torch.autograd import grad

from condseg.layers.local_filter import filter_locally
from condseg.models.mask.head import DynamicMaskHead
from condseg.ops.losses import dice_loss
from condseg.ops.paste import paste

CPU = torch.device("cpu")


def memory_ratio(run, fast, published):
    """Peak bytes of the fast form over those of the published one."""
    return peak_bytes(lambda: run(fast), CPU) / peak_bytes(lambda: run(published), CPU)


def queries_of(count):
    queries = inputs.mask_queries(count, (100, 152), 169, CPU)
    queries.params.requires_grad_()
    return queries


def test_local_filter_memory():
    x = torch.randn(4, 64, 64, 64, requires_grad=True)
    filters = torch.randn(4, 64, 9, 64, 64, requires_grad=True)

    def forward(form):
        return form(x, filters, (3, 3))

    def backward(form):
        return grad(forward(form), (x, filters), cotangent)

    cotangent, forms = torch.randn(x.shape), (filter_locally, filter_unfolded)
    with torch.no_grad():
        assert memory_ratio(forward, *forms) < 0.15
    assert memory_ratio(backward, *forms) < 0.6


def test_mask_head_memory():
    features, queries = torch.randn(1, 8, 50, 76, requires_grad=True), queries_of(100)
    heads = DynamicMaskHead(), published_form(DynamicMaskHead())
    with torch.no_grad():
        assert memory_ratio(lambda head: head(features, queries), *heads) < 0.25
    queries = queries_of(64)
    cotangent = torch.randn(64, 100, 152)
    leaves = (features, queries.params)
    step = lambda head: grad(head(features, queries), leaves, cotangent)  # noqa: E731
    assert memory_ratio(step, *heads) < 0.3


def test_mask_head_of_many_instances_is_bounded():
    head, features = DynamicMaskHead(), torch.randn(1, 8, 100, 152, requires_grad=True)
    with torch.no_grad():
        many = queries_of(2000)
        assert peak_bytes(lambda: head(features, many), CPU) < 0.6 * 2**30  # 2000 x 200 x 304 x 4
    queries = queries_of(500)

    def step():
        scores = head(features, queries).sigmoid()
        grad(dice_loss(scores, scores.detach() > 0.5).sum(), (features, queries.params))

    assert peak_bytes(step, CPU) < 2 * 2**30


def test_mask_head_operations():
    """Relative coordinates and bias of the first layer are part of the matrix product."""
    head, features, queries = DynamicMaskHead(), torch.randn(1, 8, 10, 20), queries_of(40)
    with torch.no_grad():
        products = multiply_adds(lambda: head(features, queries))
    assert products <= 40 * 200 * (8 * 11 + 8 * 8 + 8) * 1.01


def test_paste_memory_is_flat():
    logits = torch.randn(40, 8, 12).repeat_interleave(5, 1).repeat_interleave(5, 2)
    size = (160, 240)

    def beside_the_masks(count):
        args = (logits[:count], 4, size, size, 0.5)
        return peak_bytes(lambda: paste(*args), CPU) - count * 160 * 240

    assert beside_the_masks(40) < 1.05 * beside_the_masks(16)
    args = (logits, 4, size, size, 0.5)
    assert beside_the_masks(40) < 0.25 * peak_bytes(lambda: paste_whole(*args), CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detections", "size"),
    [(2000, (800, 1216)), (100, (3000, 4000))],
    ids=["2000", "12 megapixels"],
)
def test_whole_prediction_is_bounded(detections, size):
    """Most of it are the output masks, a byte per pixel: 1.8 and 1.1 GiB."""
    shapes = Shapes(detections=detections, candidates=4 * detections)
    network = subjects.condinst(shapes, CPU)
    predictor = subjects.predictor(network, shapes, CPU)
    predictor.postprocess.nms_threshold = 1.0
    image = inputs.image(size)
    assert len(predictor(image)) == detections
    assert peak_bytes(lambda: predictor(image), CPU) < 3 * 2**30

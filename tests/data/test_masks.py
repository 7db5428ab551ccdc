from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from support.coco import compressed, square

from condseg.data.limits import MAX_OBJECTS, MAX_PIXELS
from condseg.data.masks import check_segmentation, decode, from_layers, to_layers

SIZE = (20, 30)
TRIANGLE = [2.5, 2, 20, 3.25, 9, 17]


def random_mask(seed, size=SIZE):
    return np.random.default_rng(seed).random(size) < 0.4


def counts_of(mask):
    runs = [len(list(run)) for _, run in groupby([False, *mask.ravel(order="F")])]
    return {"size": list(mask.shape), "counts": [runs[0] - 1, *runs[1:]]}


@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 60), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_compressed_and_uncompressed_rle(seed, height, width, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    for rle in (compressed(mask), counts_of(mask)):
        checked, clipped = check_segmentation(rle, mask.shape)
        assert not clipped
        assert np.array_equal(decode(checked, mask.shape), mask)


def test_long_runs():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[7, 3999] = True
    checked, _ = check_segmentation(compressed(mask), mask.shape)
    assert decode(checked, mask.shape).sum() == 1


@pytest.mark.parametrize("side", [1, 6144])
def test_images_of_the_maximum_size(side):
    """Four runs of six characters each would exceed the memory that pycocotools allocates."""
    size, run = (MAX_PIXELS // side, side), 2**24
    for counts in ([run, run, run, 0], [run, run - 1, run, 1], [MAX_PIXELS], [0, MAX_PIXELS]):
        checked, _ = check_segmentation({"size": list(size), "counts": counts}, size)
        assert len(checked["counts"]) < 6 * len(counts) or len(counts) < 4
        assert coco_mask.area(checked) == sum(counts[1::2])


def test_several_polygons_are_one_mask():
    parts = [TRIANGLE, square(22, 10, 7)]
    checked, clipped = check_segmentation(parts, SIZE)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *SIZE)))
    assert np.array_equal(decode(checked, SIZE), expected)
    assert not clipped
    assert check_segmentation([[-3, -2, 40, 3, 9, 17]], SIZE)[1]


MASK = compressed(random_mask(0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "to learn masks"),
        ([], "to learn masks"),
        (3, "to learn masks"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ([TRIANGLE, 3], "three points"),
        ([[1, 2, 3, 4, 5, "6"]], "finite"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "finite"),
        ([[31, 2, 40, 4, 50, 9]], "completely outside"),
        ([[1, 2, 1e9, 4, 5, 9]], "more than one image size outside"),
        ([[1, 2, 10**400, 4, 5, 9]], "finite"),
        ([[0, 2, 10**30, 4, 5, 9]], "more than one image size outside"),
        ([[0, 0, 40, 0] * 10**5], r"an outline of 8000000 pixels; allowed are up to 4194304"),
        ({"counts": MASK["counts"]}, "RLE size None"),
        ({"size": [30, 20], "counts": MASK["counts"]}, r"\[30, 20\].*\[20, 30\]"),
        ({"size": [20, 30]}, "counts None"),
        ({"size": [20, 30], "counts": ""}, "invalid"),
        ({"size": [20, 30], "counts": MASK["counts"][:-4]}, "pixels in total|invalid"),
        ({"size": [20, 30], "counts": "\x7f\x00!"}, "invalid"),
        ({"size": [20, 30], "counts": "o" * 30 + "0"}, "invalid"),
        ({"size": [20, 30], "counts": "hbPPPPP0"}, "invalid"),  # 600, which pycocotools reads as 0
        ({"size": [20, 30], "counts": "\ud800"}, "ASCII"),
        ({"size": [20, 30], "counts": [2**64, 600]}, "integers 0..600"),
        ({"size": [20, 30], "counts": [-1, 601]}, "shortest run -1"),
        ({"size": [20, 30], "counts": [600, 1]}, "601 pixels in total"),
        ({"size": [20, 30], "counts": [700, -100]}, "shortest run -100"),
        ({"size": [20, 30], "counts": [599.5, 0.5]}, "integers"),
    ],
)
def test_invalid_segmentations(value, message):
    with pytest.raises(ValueError, match=message):
        check_segmentation(value, SIZE)


def test_overlapping_objects_use_several_layers():
    masks = [random_mask(seed) for seed in range(5)]
    masks[2][:] = False
    layers = to_layers([compressed(mask) for mask in masks], SIZE)
    indices, left, boxes = from_layers(layers, 5)
    assert indices.tolist() == [0, 1, 3, 4]
    assert np.array_equal(left, np.stack([masks[i] for i in indices]))
    for box, mask in zip(boxes, left, strict=True):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_disjoint_objects_share_a_layer():
    columns = [np.zeros(SIZE, dtype=bool) for _ in range(10)]
    for n, mask in enumerate(columns):
        mask[:, 3 * n : 3 * n + 3] = True
    assert len(to_layers([compressed(mask) for mask in columns], SIZE)) == 1


def test_the_largest_index():
    first, last = compressed(random_mask(0)), compressed(~random_mask(0))
    layers = to_layers([first, *[None] * (MAX_OBJECTS - 2), last], SIZE)
    assert layers.shape == (1, *SIZE)
    assert from_layers(layers, MAX_OBJECTS)[0].tolist() == [0, MAX_OBJECTS - 1]


def test_no_objects():
    layers = to_layers([], SIZE)
    assert layers.shape == (1, *SIZE)
    assert [array.shape for array in from_layers(layers, 0)] == [(0,), (0, *SIZE), (0, 4)]

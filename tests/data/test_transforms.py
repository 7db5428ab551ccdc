from itertools import product

import numpy as np
import pytest

from condseg.data.transforms import resize_transform, resized, seed_transform, train_transform


@pytest.mark.parametrize(
    ("size", "short", "cap", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((426, 640), 800, 1333, (800, 1202)),
        ((300, 1000), 800, 1333, (400, 1333)),
        ((1, 1), 5, 9, (5, 5)),
        ((1, 4000), 800, 1333, (1, 1333)),
        ((333, 500), 320, 640, (320, 480)),
    ],
)
def test_sizes_are_rounded_as_in_detectron2(size, short, cap, expected):
    assert resized(size, short, cap) == expected


def test_masks_stay_aligned_with_the_image():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[30:70, 20:50] = 255
    offsets = []
    for short in range(30, 300, 19):
        masks = (image[None, ..., 0] > 0).astype(np.uint16)
        result = resize_transform(short, 999)(image=image, masks=masks)
        grey, mask = result["image"][..., 0] / 255.0, result["masks"][0]
        for axis in (0, 1):
            places = [(np.arange(short) * m.sum(axis)).sum() / m.sum() for m in (grey, mask)]
            offsets.append(places[0] - places[1])
    assert np.abs(offsets).max() < 0.51  # the nearest pixel
    assert abs(np.mean(offsets)) < 0.05


def test_a_key_determines_everything():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    index = image[..., 0].astype(np.uint16)
    transform = train_transform((20, 24, 28, 32), 99, flip="both", crop=0.3, color_jitter=0.5)
    seen = []
    for key in [(1, 2, 3)] * 2 + [(1, 2, n) for n in range(4, 20)]:
        seed_transform(transform, *key)
        result = transform(image=image, masks=index[None])
        seen.append((result["image"].tobytes(), result["masks"].tobytes()))
    assert seen[0] == seen[1]
    assert len(set(seen)) > 10


def test_scale_and_mirroring_are_independent():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:, :10] = 255
    for sampling, lengths in (("choice", (20, 24)), ("range", range(20, 25))):
        transform, seen = train_transform((20, 24), 99, sampling), set()
        for key in range(96):
            seed_transform(transform, key)
            result = transform(image=image)["image"]
            seen.add((result.shape[0], bool(result[0, 0, 0])))
        assert seen == set(product(lengths, (False, True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_sides": ()}, "short_sides are"),
        ({"short_sides": (0, 4)}, "short_sides are"),
        ({"short_sides": (640,), "max_long_side": 639}, "max_long_side is 639.*640"),
        ({"crop": 0.5}, "crop is 0.5"),
        ({"color_jitter": -1.0}, "color_jitter is -1.0"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        train_transform(**options)

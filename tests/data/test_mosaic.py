"""RTMDet's augmentation: what is where, and that objects stay on their pixels."""

from pathlib import Path

import numpy as np
import pytest
from support.coco import CocoSet, square

from condseg.data.collate import collate
from condseg.data.mosaic import LargeScaleJitter, MosaicJitter, Part, mixed, mosaic
from condseg.data.transforms import compose, seed_transform

COLORS = ((200, 10, 10), (10, 200, 10), (10, 10, 200), (150, 150, 0))


def part(number: int, size: tuple[int, int] = (20, 40), masks: bool = True) -> Part:
    """A black image with a colored square, x 4..12 and y 6..14 of a 20 x 40 image."""
    image, layers = np.zeros((*size, 3), np.uint8), np.zeros((1, *size), np.uint16)
    image[6:14, 4:12] = COLORS[number]
    boxes = np.zeros((0, 5), np.float32)
    if masks:
        layers[0, 6:14, 4:12] = 1
    else:
        boxes = np.array([[4, 6, 12, 14, 0]], np.float32)
    return Part(image, layers, [number], boxes)


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("masks", [True, False])
def test_four_images_touch_the_point(masks: bool) -> None:
    """Each is 20 x 40, which fits a side of 40; the point is (x 50, y 30)."""
    joined = mosaic([part(i, masks=masks) for i in range(4)], 40, (30, 50))
    assert joined.image.shape == (80, 80, 3)
    assert joined.labels == [0, 1, 2, 3]
    # x is cut off at the right: the images there begin at 50 and 30 of their 40 columns are left.
    places = {0: (10, 10), 1: (50, 10), 2: (10, 30), 3: (50, 30)}
    grey = np.ones((80, 80), bool)
    for i, (x, y) in places.items():
        grey[y : y + 20, x : min(x + 40, 80)] = False
        colored = (joined.image == COLORS[i]).all(axis=2)
        expected = [x + 4, y + 6, x + 12, y + 14]
        assert box_of(colored) == expected
        if masks:
            assert np.array_equal(colored, joined.layers[0] == i + 1)
        else:
            assert joined.boxes[i].tolist() == [*expected, i]
    assert np.array_equal(grey, (joined.image == 114).all(axis=2))


def test_what_is_outside_of_the_mosaic_is_cut_off() -> None:
    parts = [part(i, masks=i % 2 == 0) for i in range(4)]
    joined = mosaic(parts, 40, (20, 36))  # the left images begin at x = -4
    assert box_of(joined.layers[0] == 1) == [0, 6, 8, 14]
    assert box_of(joined.layers[0] == 3) == [0, 26, 8, 34]
    assert joined.boxes.tolist() == [[40, 6, 48, 14, 1], [40, 26, 48, 34, 3]]
    boxes = mosaic([part(i, masks=False) for i in range(4)], 40, (20, 36)).boxes
    assert boxes[0].tolist() == [0, 6, 8, 14, 0]
    gone = mosaic([part(i, masks=False) for i in range(4)], 40, (20, 78)).boxes
    assert gone[:, 4].tolist() == [0, 2]  # of the right images, two columns are left


def test_small_images_are_enlarged() -> None:
    joined = mosaic([part(i) for i in range(4)], 80, (40, 80))
    assert box_of(joined.layers[0] == 1) == [8, 12, 24, 28]
    assert box_of(joined.layers[0] == 2) == [88, 12, 104, 28]


def test_two_images_are_mixed() -> None:
    both = mixed(part(0), part(1, masks=False))
    assert both.labels == [0, 1]
    assert both.layers.shape == (2, 20, 40)
    assert both.image[8, 6].tolist() == [105, 105, 10]
    assert both.boxes.tolist() == [[4, 6, 12, 14, 1]]
    assert mixed(part(0), part(1)).layers.max() == 2


@pytest.mark.parametrize(("fit", "side"), [(True, 60), (False, 30)])
def test_jitter_keeps_objects_on_their_pixels(fit: bool, side: int) -> None:
    transform = compose([LargeScaleJitter(side, (0.5, 2.0), fit)])
    one, sizes, shown = part(0), set(), 0
    boxes = np.array([[4, 6, 12, 14, 0]], np.float32)
    for seed in range(40):
        seed_transform(transform, seed)
        result = transform(image=one.image, masks=one.layers, bboxes=boxes)
        image, mask = result["image"], np.asarray(result["masks"])[0] == 1
        assert image.shape == (side, side, 3)
        inside = ~(image == 114).all(axis=2)
        sizes.add(tuple(box_of(inside)[2:]))
        if mask.sum() < 30:
            continue
        shown += 1
        colored = image[..., 0] > 100
        assert (colored & inside).sum() == pytest.approx(mask.sum(), rel=0.4)
        distance = np.abs(np.array(box_of(mask)) - np.asarray(result["bboxes"])[0, :4])
        assert distance.max() <= 1.0
    assert len(sizes) > 8
    assert shown > 20


def count_reads(augmentation: MosaicJitter, epoch: int) -> tuple[Part, list[int]]:
    read: list[int] = []

    def reader(index: int) -> Part:
        read.append(index)
        return part(index % 4)

    return augmentation(reader, 5, 50, (0, epoch)), read


def test_mosaics_end_and_mixing_has_a_probability() -> None:
    first, read = count_reads(MosaicJitter(64, mosaic_epochs=3), 2)
    assert first.image.shape == (64, 64, 3)
    assert read[0] == 5
    assert len(read) == len(first.labels) == 8
    assert len(set(read)) > 4
    assert len(count_reads(MosaicJitter(64, mosaic_epochs=3, mixup=0.0), 2)[1]) == 4
    _, last = count_reads(MosaicJitter(64, mosaic_epochs=3), 3)
    assert last == [5]
    half = [len(count_reads(MosaicJitter(64, mixup=0.5), epoch)[1]) for epoch in range(30)]
    assert 8 < half.count(8) < 22


def test_the_key_determines_everything() -> None:
    augmentation = MosaicJitter(64)
    images = [count_reads(augmentation, epoch)[0].image for epoch in (0, 1, 0)]
    assert np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 8}, "side is 8; 32 or more"),
        ({"ratio": (2.0, 0.5)}, r"ratio is \[2.0, 0.5\]; 0 < min <= max <= 10"),
        ({"mosaic_epochs": -1}, "mosaic_epochs is -1; 0 or more"),
        ({"mixup": 2.0}, "mixup is 2.0; 0..1"),
    ],
)
def test_values_outside_their_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MosaicJitter(**options)


@pytest.mark.parametrize("supervision", ["masks", "boxes", "mixed"])
def test_samples_of_a_set(supervision: str, tmp_path: Path) -> None:
    data = CocoSet(tmp_path, sizes=((40, 60), (60, 40), (50, 50), (30, 90)))
    if supervision == "mixed":
        del data.content["annotations"][0]["segmentation"]
        data.add(100, [square(30, 20, 8)], [30, 20, 8, 8])
    augmentation = MosaicJitter(64, ratio=(0.8, 1.2), mosaic_epochs=1)
    dataset = data.open(supervision=supervision, augmentation=augmentation)
    objects = 0
    for epoch in (0, 1):
        samples = [dataset[(i, epoch)] for i in range(len(dataset))]
        assert collate(samples).images.shape == (4, 3, 64, 64)
        for sample in samples:
            assert sample.info.size == (64, 64)
            boxes = sample.targets.boxes
            assert len(boxes) == len(sample.targets.labels) == len(sample.targets.masks)
            assert (boxes >= 0).all()
            assert (boxes <= 64).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert bool(sample.targets.has_mask.all()) or supervision != "masks"
            assert not sample.targets.has_mask.any() or supervision != "boxes"
            objects += len(boxes)
    assert objects > 15

from inspect import unwrap

import numpy as np
import pytest
import torch

from condseg.inference.colors import PALETTE, ink, key_color
from condseg.inference.drawing import Style, draw, legible_scale
from condseg.inference.labels import find_place
from condseg.structures import Detections

NAMES = ["cup", "Löffel", "瓶"]


def squares(count, size, image):
    """Squares in rows, two pixels apart."""
    height, width = image
    per_row = max(1, width // (size + 2))
    boxes = torch.zeros(count, 4)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for i in range(count):
        x, y = i % per_row * (size + 2), i // per_row * (size + 2)
        boxes[i] = torch.tensor([x, y, x + size, y + size])
        masks[i, y : y + size, x : x + size] = True
    scores = torch.linspace(1, 0.1, count)
    return Detections(boxes, scores, torch.arange(count) % 3, masks)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (120, 160), (900, 1200)])
@pytest.mark.parametrize("scale", [1, 3])
def test_any_size_and_the_input_stays(size, scale):
    image = np.full((*size, 3), 200, np.uint8)
    found = squares(1, min(size), size)
    drawn = draw(image, found, NAMES, scale=scale)
    assert drawn.shape == (size[0] * scale, size[1] * scale, 3)
    assert drawn.dtype == np.uint8
    assert (image == 200).all()
    assert (drawn != 200).any()


def test_nothing_found_changes_nothing():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert (draw(image, squares(0, 4, (40, 50)), NAMES) == image).all()
    assert (draw(image, squares(3, 9, (40, 50)), NAMES, score_threshold=1.01) == image).all()


def test_neighbours_differ_in_colour():
    image = np.zeros((60, 60, 3), np.uint8)
    found = squares(25, 10, (60, 60))  # too small for labels and boxes
    drawn = draw(image, found, NAMES)
    centres = drawn[5::12, 5::12][:5, :5].astype(int)
    assert (abs(np.diff(centres, axis=0)).sum(-1) > 30).all()
    assert (abs(np.diff(centres, axis=1)).sum(-1) > 30).all()
    assert len(np.unique(centres.reshape(-1, 3), axis=0)) == len(PALETTE)


def test_small_objects_have_no_labels():
    size = (600, 600)
    found = squares(500, 15, size)
    drawn = draw(np.zeros((*size, 3), np.uint8), found, NAMES)
    assert (drawn[280:] == 0).all()  # below the last row
    assert drawn[:280, 16::17].max() < 80  # between the columns: soft edges, no labels


def owners(height, width, *rectangles):
    """The map of instances seen at each pixel."""
    owner = np.full((height, width), -1, np.int32)
    for i, (x1, y1, x2, y2) in enumerate(rectangles):
        owner[y1:y2, x1:x2] = i
    return owner


def test_labels_keep_clear_of_each_other_and_inside():
    taken, owner = np.zeros((0, 4), np.int64), owners(130, 200)
    for _ in range(5):
        place = find_place((60, 80, 100, 120), (14, 50), owner, 0, taken)
        assert place is not None
        x1, y1, x2, y2 = place
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 130
        assert not any(x1 < t[2] and t[0] < x2 and y1 < t[3] and t[1] < y2 for t in taken)
        taken = np.vstack([taken, place])
    assert find_place((0, 0, 10, 10), (14, 50), owner[:, :40], 0, taken) is None


def test_labels_keep_clear_of_neighbours():
    box, above, below = (60, 60, 140, 100), (50, 20, 150, 60), (60, 100, 140, 130)
    nothing = np.zeros((0, 4), np.int64)

    def place(*rectangles):
        return find_place(box, (14, 50), owners(130, 200, *rectangles), 0, nothing)

    assert place(box) == (60, 46, 110, 60)
    assert place(box, above, below) == (60, 60, 110, 74)  # in its own box
    assert place((0, 0, 1, 1), (60, 60, 140, 100), above) == (60, 100, 110, 114)
    touching = (105, 62, 160, 70)  # covers a little of each place in the box
    assert place(box, above, (60, 100, 140, 130), touching) == (60, 60, 110, 74)
    # Beside its box, but not at a corner, where it would be another's label as well.
    column = (60, 20, 140, 120)
    assert place((0, 0, 1, 1), column) == (140, 60, 190, 74)
    small = (60, 60, 70, 70)
    around = owners(130, 200, small, (0, 0, 200, 130))
    assert find_place(small, (14, 50), around, 0, nothing) is not None  # it touches its box
    assert find_place(small, (14, 50), around, 0, np.array([small])) is None


def test_a_class_has_one_color():
    image = np.zeros((60, 60, 3), np.uint8)
    found = squares(25, 10, (60, 60))
    drawn = draw(image, found, NAMES, color_by="class")
    for i, (x1, y1, x2, y2) in enumerate(found.boxes.int().tolist()):
        expected = 0.4 * np.array(key_color(i % 3))
        assert np.allclose(drawn[(y1 + y2) // 2, (x1 + x2) // 2], expected, atol=1)
    assert len({key_color(k) for k in range(21)}) == 21
    assert {ink(key_color(k)) for k in (3, 4)} == {(0, 0, 0), (255, 255, 255)}
    with pytest.raises(ValueError, match="'colour'; class, instance, track are allowed"):
        unwrap(draw)(image, found, NAMES, color_by="colour")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_script_are_drawn(name):
    """The label is a plain area with ink on it, and differs from another name's."""
    image = np.zeros((200, 300, 3), np.uint8)
    mask = torch.zeros(1, 200, 300, dtype=torch.bool)
    found = Detections(
        torch.tensor([[50.0, 50, 250, 150]]), torch.ones(1), torch.zeros(1).long(), mask
    )
    drawn, other = (draw(image, found, [text]) for text in (name, name + "x"))
    assert (drawn != other).any()
    assert (drawn[50 - Style.of(200, 300).font : 49, 50:70] == PALETTE[0]).all(-1).any()


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"masks are 40 x 50 .* image is 30 x 50"):
        draw(np.zeros((30, 50, 3), np.uint8), squares(1, 4, (40, 50)), NAMES)


def test_fewer_names_than_classes():
    with pytest.raises(ValueError, match="names has 2 entries; there is an instance of class 2"):
        draw(np.zeros((40, 50, 3), np.uint8), squares(3, 4, (40, 50)), NAMES[:2])


def test_small_images_are_enlarged():
    sizes = (240, 320), (480, 640), (20, 20), (10, 40000), (30000, 10)
    assert [legible_scale(*size) for size in sizes] == [2, 1, 4, 1, 2]

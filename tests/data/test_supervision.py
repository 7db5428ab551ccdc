"""Annotations with masks, with boxes alone, and both in one set."""

import numpy as np
import pytest
import torch

from condseg.data.coco import CocoDataset
from condseg.data.datamodule import DataModule
from condseg.data.transforms import resize_transform, train_transform


def opened(coco, **options):
    coco.write()
    return CocoDataset(coco.json, coco.images, **options)


def annotation(coco, position):
    return coco.content["annotations"][position]


def test_boxes_alone_need_no_segmentation(coco_set):
    coco = coco_set()
    for entry in coco.content["annotations"]:
        del entry["segmentation"]
    dataset = opened(coco, supervision="boxes")
    targets = dataset[1].targets
    assert targets.boxes.tolist() == [[2, 3, 8, 9], [11, 3, 19, 11]]
    assert targets.labels.tolist() == [1, 0]
    assert targets.masks.shape == (2, 60, 40)
    assert targets.has_mask.tolist() == [False, False]
    assert "6 objects known by their boxes alone" in dataset.summary()


def test_boxes_are_read_even_where_there_are_segmentations(coco_set):
    coco = coco_set()
    annotation(coco, 0)["bbox"] = [1, 1, 4, 5]
    targets = opened(coco, supervision="boxes")[0].targets
    assert targets.boxes[0].tolist() == [1, 1, 5, 6]
    assert not targets.has_mask.any()


@pytest.mark.parametrize("missing", [None, [], "absent"])
def test_mixed_takes_the_mask_where_there_is_one(coco_set, missing):
    coco = coco_set()
    entry = annotation(coco, 0)
    if missing == "absent":
        del entry["segmentation"]
    else:
        entry["segmentation"] = missing
    targets = opened(coco, supervision="mixed")[0].targets
    assert targets.has_mask.tolist() == [False, True]
    assert targets.boxes.tolist() == [[2, 3, 8, 9], [11, 3, 19, 11]]
    assert targets.labels.tolist() == [1, 0]
    assert targets.masks.sum(dim=(1, 2)).tolist() == [0, 64]


def test_without_a_segmentation_the_error_names_the_ids_and_the_way_on(coco_set):
    coco = coco_set()
    del annotation(coco, 3)["segmentation"]
    message = r"annotation 1003 \(image 101, 001.png\): segmentation is None.*supervision mixed"
    with pytest.raises(ValueError, match=message):
        opened(coco)


@pytest.mark.parametrize("supervision", ["boxes", "mixed"])
def test_neither_segmentation_nor_box(coco_set, supervision):
    coco = coco_set()
    for name in ("segmentation", "bbox"):
        del annotation(coco, 2)[name]
    message = r"annotation 1002 \(image 101, 001.png\): bbox is missing; allowed is \[x, y, width"
    with pytest.raises(ValueError, match=message):
        opened(coco, supervision=supervision)


def test_broken_segmentations_are_errors_where_they_are_read(coco_set):
    coco = coco_set()
    annotation(coco, 0)["segmentation"] = [[1, 2]]
    with pytest.raises(ValueError, match="three points or more"):
        opened(coco, supervision="mixed")
    assert len(opened(coco, supervision="boxes")) == 3


def test_boxes_are_clipped_and_empty_ones_counted(coco_set):
    coco = coco_set()
    annotation(coco, 0)["bbox"] = [-4, 3, 10, 90]
    annotation(coco, 1)["bbox"] = [5, 5, 0, 7]
    dataset = opened(coco, supervision="boxes")
    assert dataset[0].targets.boxes.tolist() == [[0, 3, 6, 40]]
    assert dataset[0].targets.labels.tolist() == [1]
    assert "1 objects whose box is empty, not trained on" in dataset.summary()


def test_boxes_move_with_their_objects(coco_set):
    """Through crop, resize and flips a box stays around the mask of the same object."""
    coco = coco_set()
    transform = train_transform((45, 90), 180, flip="both", crop=0.2)
    masked = opened(coco, transform=transform)
    boxed = opened(coco, transform=transform, supervision="boxes")
    compared = 0
    for epoch in range(12):
        for index in range(3):
            one, other = masked[index, epoch], boxed[index, epoch]
            assert torch.equal(one.image, other.image)
            if len(one.targets.labels) == len(other.targets.labels):
                assert torch.equal(one.targets.labels, other.targets.labels)
                difference = (one.targets.boxes - other.targets.boxes).abs()
                assert difference.max() <= 1.0  # a mask's edge is that of a whole pixel
                compared += len(one.targets.labels)
    assert compared > 30


def test_what_vanishes_is_counted(coco_set):
    coco = coco_set(sizes=[(40, 60)], objects_each=0)
    coco.add(100, None, [1, 1, 1, 1], n=0)
    coco.add(100, None, [20, 10, 20, 20], n=1)
    dataset = opened(coco, transform=resize_transform(4, 99), supervision="mixed")
    targets = dataset[0].targets
    assert targets.labels.tolist() == [0]
    assert targets.boxes.tolist() == [[2, 1, 4, 3]]
    assert dataset.vanished == 1


def masked_pictures(coco, fraction):
    dataset = opened(coco, supervision="mixed", mask_fraction=fraction)
    has = [dataset[i].targets.has_mask for i in range(len(dataset))]
    assert all(h.all() or not h.any() for h in has)
    return {int(i) for i, h in zip(dataset.image_ids, has, strict=True) if h.all()}


def test_a_fraction_of_the_pictures_has_masks(coco_set):
    coco = coco_set(sizes=[(12, 12)] * 200, objects_each=1)
    assert masked_pictures(coco, 0.0) == set()
    assert len(masked_pictures(coco, 1.0)) == 200
    fifth, half = masked_pictures(coco, 0.2), masked_pictures(coco, 0.5)
    assert fifth < half
    assert len(fifth) == pytest.approx(40, abs=15)
    assert len(half) == pytest.approx(100, abs=20)
    coco.content["images"].reverse()
    assert masked_pictures(coco, 0.2) == fifth


def test_validation_has_masks_whatever_training_has():
    data = DataModule("tabletop", supervision="mixed", mask_fraction=0.2)
    train, val = data.train_dataset, data.val_dataset
    alone = train.counts["objects known by their boxes alone"]
    assert alone / train.counts["objects"] == pytest.approx(0.8, abs=0.05)
    assert "objects known by their boxes alone" not in val.counts
    assert val[0].targets.has_mask.all()


def test_bounding_boxes_of_tabletop_are_those_of_its_masks():
    masks = DataModule("tabletop").train_dataset
    boxes = DataModule("tabletop", supervision="boxes").train_dataset
    masks.transform = boxes.transform = None
    for i in range(0, len(masks), 37):
        ours, theirs = boxes[i].targets.boxes.numpy(), masks[i].targets.boxes.numpy()
        np.testing.assert_allclose(ours, theirs, atol=1)


@pytest.mark.parametrize(
    ("supervision", "fraction"), [("masks", 0.5), ("boxes", 0.0), ("mixed", 1.5), ("mixed", -0.1)]
)
def test_fractions_that_mean_nothing(supervision, fraction):
    with pytest.raises(ValueError, match=f"mask_fraction is {fraction} with supervision"):
        DataModule("tabletop", supervision=supervision, mask_fraction=fraction)

"""From a COCO set to samples: objects, transforms, depth, workers."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.coco import square
from torch.utils.data import DataLoader

from condseg.data.categories import read_categories
from condseg.data.collate import collate
from condseg.data.transforms import resize_transform, train_transform
from condseg.structures import Category


def test_sparse_ids_become_contiguous_labels(coco_set):
    coco = coco_set()
    dataset = coco.open()
    assert dataset.categories == (Category(3, "box"), Category(7, "disc"))
    assert dataset.categories == read_categories(coco.json)
    coco.json.unlink()  # it is read once
    sample = dataset[1]
    assert sample.targets.labels.tolist() == [1, 0]
    assert sample.targets.boxes.tolist() == [[2, 3, 8, 9], [11, 3, 19, 11]]
    assert sample.targets.masks.sum(dim=(1, 2)).tolist() == [36, 64]
    assert sample.image.shape == (3, 60, 40)
    assert sample.info.image_id == 101
    assert sample.info.original_size == sample.info.size == (60, 40)
    assert sample.info.file_name.endswith("train/001.png")


def test_images_without_objects(coco_set):
    coco = coco_set()
    entries = coco.content["annotations"]
    coco.content["annotations"] = [entry for entry in entries if entry["image_id"] != 101]
    crowd = {"size": [60, 40], "counts": [0, 400, 2000]}
    coco.add(101, crowd, [0, 0, 10, 40], iscrowd=1, id=2000)
    dataset = coco.open(transform=resize_transform(30, 99))
    assert len(dataset) == 3
    targets = dataset[1].targets
    assert (targets.boxes.shape, targets.labels.shape) == ((0, 4), (0,))
    assert targets.masks.shape == (0, 45, 30)
    fewer = coco.open(skip_empty=True)
    assert fewer.image_ids.tolist() == [100, 102]
    assert "1 images without objects, skipped" in fewer.summary()


@pytest.mark.parametrize("supervision", ["masks", "boxes"])
def test_lost_objects_are_dropped_and_counted(coco_set, supervision):
    coco = coco_set(sizes=[(40, 60)] * 2, objects=0)
    coco.add(100, [square(1, 1, 1)], [1, 1, 1, 1], n=0)
    for image in (100, 101):
        coco.add(image, [square(20, 10, 20)], [20, 10, 20, 20], n=1)
    dataset = coco.open(transform=resize_transform(4, 99), supervision=supervision)
    targets = dataset[0].targets
    assert targets.labels.tolist() == [0]
    assert targets.boxes.tolist() == [[2, 1, 4, 3]]
    assert [dataset[n].lost_objects for n in range(2)] == [1, 0]
    assert collate([dataset[0], dataset[1], dataset[0]]).to("cpu").lost_objects == 2


def test_objects_keep_their_masks_through_random_transforms(coco_set):
    coco = coco_set(sizes=[(50, 70)] * 4, objects=0)
    generator = np.random.default_rng(3)
    for image in coco.content["images"]:  # each label has its own colour, some objects overlap
        pixels = np.zeros((50, 70, 3), dtype=np.uint8)
        for n in range(5):
            x, y, side = (int(v) for v in generator.integers((0, 0, 6), (50, 30, 20)))
            pixels[y : y + side, x : x + side] = (255, 0, 0) if n % 2 == 0 else (0, 0, 255)
            coco.add(image["id"], [square(x, y, side)], [x, y, side, side], n)
        Image.fromarray(pixels).save(coco.images / image["file_name"])
    dataset = coco.open(transform=train_transform((25, 110), 200, "range", "both", crop=0.4))
    for epoch in range(8):
        for index in range(4):
            sample = dataset[index, epoch]
            front = torch.full(sample.info.size, -1)  # objects drawn later cover earlier ones
            for n, mask in enumerate(sample.targets.masks):
                front[mask] = n
            for n, label in enumerate(sample.targets.labels.tolist()):
                visible = front == n
                if visible.sum() > 60:
                    colour = sample.image[:, visible].float().mean(dim=1)
                    assert (colour[0] > colour[2]) == (label == 1)


def test_boxes_move_with_the_masks_of_their_objects(coco_set):
    coco = coco_set()
    transform = train_transform((45, 90), 180, flip="both", crop=0.2)
    masks, boxes = (coco.open(transform=transform, supervision=s) for s in ("masks", "boxes"))
    compared = 0
    for epoch in range(12):
        for index in range(3):
            one, other = masks[index, epoch], boxes[index, epoch]
            assert torch.equal(one.image, other.image)
            if len(one.targets.labels) == len(other.targets.labels):
                assert torch.equal(one.targets.labels, other.targets.labels)
                # The edges of a mask are those of whole pixels.
                assert (one.targets.boxes - other.targets.boxes).abs().max() <= 1.0
                compared += len(one.targets.labels)
    assert compared > 30


def test_a_sample_is_a_function_of_seed_epoch_and_position(coco_set):
    coco = coco_set()

    def content(seed, epoch, index):
        transform = train_transform((20, 39), 99, "range", crop=0.2)
        return coco.open(transform=transform, seed=seed)[index, epoch].image.numpy().tobytes()

    assert content(0, 1, 2) == content(0, 1, 2)
    assert len({content(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1, 2)}) > 10


def test_workers_do_not_change_the_samples(coco_set):
    dataset = coco_set(sizes=[(40, 60)] * 6).open(
        transform=train_transform((20, 24, 28), 99, crop=0.2)
    )
    keys = [[(n, 3), (n + 1, 4)] for n in range(5)]
    contents = []
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=collate)
        contents.append([batch.images.numpy().tobytes() for batch in loader])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("json_is", ["upright", "stored"])
def test_exif_rotation_follows_the_json(coco_set, orientation, json_is):
    coco = coco_set(sizes=[(40, 60)], objects=0)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (coco.images / "a").mkdir()
    Image.fromarray(pixels).save(coco.images / "a" / "0.jpg", exif=exif)
    rotated = {3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    expected = pixels if json_is == "stored" and orientation == 6 else rotated
    height, width = expected.shape[:2]
    coco.content["images"][0] |= {"file_name": "a/0.jpg", "height": height, "width": width}
    read = coco.open()[0].image.permute(1, 2, 0).numpy()
    assert np.abs(read.astype(int) - expected).max() < 20


def test_another_size_than_in_the_json(coco_set):
    coco = coco_set()
    Image.new("RGB", (61, 40)).save(coco.images / "002.png")
    with pytest.raises(
        ValueError, match=r"002.png \(image 102 of .*train.json\): .* 40x61 .*json says 40x60"
    ):
        coco.open()[2]

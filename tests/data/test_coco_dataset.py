import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from condseg.data.coco import CocoDataset, Records, read_categories
from condseg.data.collate import collate
from condseg.data.transforms import resize_transform, train_transform
from condseg.structures import Category


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def opened(coco, **options):
    coco.write()
    return CocoDataset(coco.json, coco.images, **options)


def test_sparse_ids_become_contiguous_labels(coco_set):
    dataset = opened(coco_set())
    assert dataset.categories == (Category(2, "pen"), Category(7, "cup"))
    sample = dataset[1]
    assert sample.targets.labels.tolist() == [1, 0]
    assert sample.targets.boxes.tolist() == [[2, 3, 8, 9], [11, 3, 19, 11]]
    assert sample.targets.masks.sum(dim=(1, 2)).tolist() == [36, 64]
    assert sample.image.shape == (3, 60, 40)
    assert sample.info.image_id == 101
    assert sample.info.original_size == sample.info.size == (60, 40)
    assert sample.info.file_name.endswith("train/001.png")


def test_categories_alone(coco_set):
    assert read_categories(coco_set().json) == (Category(2, "pen"), Category(7, "cup"))


def test_crowds_are_counted_but_no_targets(coco_set):
    coco = coco_set()
    crowd = {"size": [40, 60], "counts": [0, 400, 2000]}
    coco.add(100, crowd, [0, 0, 10, 40], iscrowd=1)
    dataset = opened(coco)
    assert len(dataset[0].targets.labels) == 2
    assert dataset.counts["crowds, not trained on"] == 1
    assert "1 crowds" in dataset.summary()


def test_pictures_without_objects(coco_set):
    coco = coco_set()
    entries = coco.content["annotations"]
    coco.content["annotations"] = [entry for entry in entries if entry["image_id"] != 101]
    crowd = {"size": [60, 40], "counts": [0, 400, 2000]}
    coco.add(101, crowd, [0, 0, 10, 40], iscrowd=1, id=2000)
    dataset = opened(coco, transform=resize_transform(30, 99))
    assert len(dataset) == 3
    targets = dataset[1].targets
    assert (targets.boxes.shape, targets.labels.shape) == ((0, 4), (0,))
    assert targets.masks.shape == (0, 45, 30)
    fewer = opened(coco, skip_empty=True)
    assert fewer.image_ids.tolist() == [100, 102]
    assert "1 pictures without objects left out" in fewer.summary()


def test_what_vanishes_is_dropped_with_its_label_and_counted(coco_set):
    coco = coco_set(sizes=[(40, 60)], objects_each=0)
    coco.add(100, [square(1, 1, 1)], [1, 1, 1, 1], n=0)
    coco.add(100, [square(20, 10, 20)], [20, 10, 20, 20], n=1)
    dataset = opened(coco, transform=resize_transform(4, 99))
    targets = dataset[0].targets
    assert targets.labels.tolist() == [0]
    assert targets.boxes.tolist() == [[2, 1, 4, 3]]
    assert dataset.vanished == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_vanished_are_counted_in_workers_too(coco_set, method):
    coco = coco_set(sizes=[(40, 60)] * 6, objects_each=0)
    for image in coco.content["images"]:
        coco.add(image["id"], [square(1, 1, 1)], [1, 1, 1, 1])
    dataset = opened(coco, transform=resize_transform(4, 99))
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        dataset, 2, num_workers=2, collate_fn=collate, multiprocessing_context=context
    )
    assert sum(len(targets.labels) for batch in loader for targets in batch.targets) == 0
    assert dataset.vanished == 6


def test_objects_keep_their_masks_through_random_transforms(coco_set):
    coco = coco_set(sizes=[(50, 70)] * 4, objects_each=0)
    generator = np.random.default_rng(3)
    for image in coco.content["images"]:  # each label has its own colour, some objects overlap
        pixels = np.zeros((50, 70, 3), dtype=np.uint8)
        for n in range(5):
            x, y, side = (int(v) for v in generator.integers((0, 0, 6), (50, 30, 20)))
            pixels[y : y + side, x : x + side] = (255, 0, 0) if n % 2 == 0 else (0, 0, 255)
            coco.add(image["id"], [square(x, y, side)], [x, y, side, side], n)
        Image.fromarray(pixels).save(coco.images / image["file_name"])
    dataset = opened(coco, transform=train_transform((25, 110), 200, "range", "both", crop=0.4))
    for epoch in range(8):
        for index in range(4):
            sample = dataset[index, epoch]
            targets = sample.targets
            top = torch.full(sample.info.size, -1)  # the last drawn is in front
            for n, mask in enumerate(targets.masks):
                top[mask] = n
            for n, label in enumerate(targets.labels.tolist()):
                seen = top == n
                if seen.sum() > 60:
                    colour = sample.image[:, seen].float().mean(dim=1)
                    assert (colour[0] > colour[2]) == (label == 1)


def test_a_sample_is_a_function_of_seed_epoch_and_position(coco_set):
    coco = coco_set()

    def content(seed, epoch, index):
        transform = train_transform((20, 39), 99, "range", crop=0.2)
        return opened(coco, transform=transform, seed=seed)[index, epoch].image.numpy().tobytes()

    assert content(0, 1, 2) == content(0, 1, 2)
    assert len({content(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1, 2)}) > 10


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("json_is", ["upright", "stored"])
def test_exif_rotation_follows_the_json(coco_set, orientation, json_is):
    coco = coco_set(sizes=[(40, 60)], objects_each=0)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(coco.images / "000.jpg", exif=exif)
    turned = {3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    expected = pixels if json_is == "stored" and orientation == 6 else turned
    height, width = expected.shape[:2]
    coco.content["images"][0] |= {"file_name": "000.jpg", "height": height, "width": width}
    read = opened(coco)[0].image.permute(1, 2, 0).numpy()
    assert np.abs(read.astype(int) - expected).max() < 20


def test_another_size_than_the_json_says(coco_set):
    coco = coco_set()
    Image.new("RGB", (61, 40)).save(coco.images / "002.png")
    with pytest.raises(ValueError, match=r"002.png \(image 102\).* 40x61 .*train.json says 40x60"):
        opened(coco)[2]


def test_missing_pictures_are_counted_at_once(coco_set):
    coco = coco_set(sizes=[(8, 8)] * 9, objects_each=0)
    for n in range(5):
        (coco.images / f"{n:03}.png").unlink()
    with pytest.raises(
        ValueError, match=r"5 of 9 .*missing: .*000.png, .*001.png, .*002.png, \.\."
    ):
        opened(coco)


def test_pictures_in_subfolders(coco_set):
    coco = coco_set()
    (coco.images / "a").mkdir()
    (coco.images / "000.png").rename(coco.images / "a" / "000.png")
    coco.content["images"][0]["file_name"] = "a/000.png"
    assert opened(coco)[0].image.shape == (3, 40, 60)


def annotation(**change):
    return lambda content: content["annotations"][3].update(change)


def picture(**change):
    return lambda content: content["images"][1].update(change)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: c.pop("images"), '"images" is missing'),
        (lambda c: c.update(annotations={}), '"annotations" is no list'),
        (lambda c: c.update(categories=[]), '"categories" is empty'),
        (
            lambda c: c["categories"].append({"id": 2, "name": "x"}),
            'id 2 stands 2 times in "categories"',
        ),
        (lambda c: c["categories"].append({"id": 3}), "category 3: name is missing"),
        (lambda c: c["images"].append({"file_name": "a"}), 'entry 3 of "images" has no integer'),
        (lambda c: c["images"].append(dict(c["images"][0])), 'id 100 stands 2 times in "images"'),
        (
            lambda c: c["annotations"].append(dict(c["annotations"][0])),
            'id 1000 stands 2 times in "annotations"',
        ),
        (picture(height=None), "image 101: height is missing"),
        (picture(width=-3), "image 101: width is -3"),
        (picture(file_name=""), "image 101: file_name is ''"),
        (annotation(image_id=9), r"annotation 1003: image_id is 9; allowed is an id of"),
        (annotation(image_id=[9]), r"annotation 1003: image_id is \[9\]"),
        (annotation(category_id=5), r"1003 \(image 101, 001.png\): category_id is 5.*one of 2, 7"),
        (annotation(category_id=None), "1003 .*: category_id is missing"),
        (annotation(iscrowd=2), "1003 .*: iscrowd is 2"),
        (annotation(bbox=[1, 2, 3]), r"1003 .*: bbox is \[1, 2, 3\]"),
        (annotation(bbox=[1, 2, "3", 4]), "1003 .*: bbox is"),
        (annotation(bbox=[1, 2, -3, 4]), "1003 .*: bbox is .*no negative"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "1003 .*: bbox is .*finite"),
        (annotation(bbox=[41, 2, 3, 4]), "1003 .*: bbox is .*meets the picture of 60x40"),
        (annotation(segmentation=None), "1003 .*: segmentation is None"),
        (lambda c: c["annotations"][3].pop("segmentation"), "1003 .*: segmentation is None"),
        (annotation(segmentation=[[1, 2, 3, 4]]), "1003 .*: segmentation has the polygon"),
        (annotation(segmentation={"size": [9, 9], "counts": ""}), "1003 .*: segmentation has"),
    ],
)
def test_broken_jsons_are_told(coco_set, break_it, says):
    coco = coco_set()
    break_it(coco.content)
    with pytest.raises(ValueError, match=rf"instances_train.json: .*{says}"):
        opened(coco)


@pytest.mark.parametrize("content", ["", '{"images": [', "[]", "\x00\x01", "3"])
def test_files_that_are_no_coco_json(coco_set, content):
    coco = coco_set()
    coco.json.write_text(content)
    with pytest.raises(ValueError, match=r"instances_train.json: "):
        CocoDataset(coco.json, coco.images)
    coco.json.unlink()
    with pytest.raises(ValueError, match=r"instances_train.json: no such"):
        CocoDataset(coco.json, coco.images)


def test_boxes_a_little_outside_are_counted(coco_set):
    coco = coco_set()
    coco.content["annotations"][0]["bbox"] = [-2, 3, 9, 6]
    assert opened(coco).counts["objects partly outside their picture, clipped"] == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_every_kind_of_segmentation_gives_the_same(coco_set):
    coco = coco_set(sizes=[(40, 60)], objects_each=0)
    polygon = [square(5, 6, 12)]
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, 40, 60)))
    packed = coco_mask.encode(mask)
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    for value in (
        polygon,
        {"size": [40, 60], "counts": packed["counts"].decode()},
        {"size": [40, 60], "counts": np.diff(edges).tolist()},
    ):
        coco.add(100, value, [5, 6, 12, 12])
    masks = opened(coco)[0].targets.masks
    assert len(masks) == 3
    assert (masks.numpy() == mask[None].astype(bool)).all()


def test_records_are_one_tensor_that_processes_share():
    values = [{"n": n, "text": "x" * n} for n in range(50)]
    records = Records(values)
    assert [records[n] for n in range(50)] == values
    assert len(records) == 50
    # To a process that is spawned, only a handle goes.
    from multiprocessing.reduction import ForkingPickler

    large = Records([bytes(1 << 20)] * 4)
    assert len(ForkingPickler.dumps(large)) < 4096
    assert pickle.loads(pickle.dumps(records))[7] == values[7]


def test_workers_do_not_change_the_samples(coco_set):
    coco = coco_set(sizes=[(40, 60)] * 6)
    dataset = opened(coco, transform=train_transform((20, 24, 28), 99, crop=0.2))
    keys = [[(n, 3), (n + 1, 4)] for n in range(5)]
    contents = []
    for workers in (0, 1, 2):
        loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=collate)
        contents.append([batch.images.numpy().tobytes() for batch in loader])
    assert contents[0] == contents[1] == contents[2]


def test_the_json_is_not_needed_again(coco_set):
    coco = coco_set()
    dataset = opened(coco)
    coco.json.write_text(json.dumps({}))
    assert len(dataset[0].targets.labels) == 2

"""What is read from a COCO json, and what is rejected."""

import pytest

from condseg.data.annotations import BOX_ONLY, read_annotations
from condseg.data.datamodule import DataModule
from condseg.data.dataset import CocoDataset

CROWD = {"size": [40, 60], "counts": [0, 400, 2000]}


def annotation(number=3, **change):
    return lambda content: content["annotations"][number].update(change)


def image(**change):
    return lambda content: content["images"][1].update(change)


def repeat(name):
    return lambda content: content[name].append(dict(content[name][0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), '"images" is missing'),
        (lambda c: c.update(annotations={}), '"annotations" is not a list'),
        (lambda c: c.update(categories=[]), '"categories" is empty'),
        (repeat("categories"), 'id 7 occurs 2 times in "categories"'),
        (repeat("images"), 'id 100 occurs 2 times in "images"'),
        (repeat("annotations"), 'id 1000 occurs 2 times in "annotations"'),
        (lambda c: c["categories"].append({"id": 4}), "category 4: name is missing"),
        (lambda c: c["images"].append({"file_name": "a"}), 'entry 3 of "images" has no integer'),
        (image(height=None), "image 101: height is missing"),
        (image(width=-3), "image 101: width is -3"),
        (image(file_name=""), "image 101: file_name is ''"),
        (image(depth_file=3), "image 101: depth_file is 3; allowed is a path"),
        (annotation(image_id=9), r"annotation 1003: image_id is 9; allowed is an id of"),
        (annotation(image_id=[9]), r"annotation 1003: image_id is \[9\]"),
        (annotation(category_id=5), r"1003 \(image 101, 001.png\): category_id is 5.*one of 3, 7"),
        (annotation(category_id=None), "1003 .*: category_id is missing"),
        (annotation(iscrowd=2), "1003 .*: iscrowd is 2"),
        (annotation(bbox=[1, 2, 3]), r"1003 .*: bbox is \[1, 2, 3\]"),
        (annotation(bbox=[1, 2, "3", 4]), "1003 .*: bbox is"),
        (annotation(bbox=[1, 2, -3, 4]), "1003 .*: bbox is .*no negative"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "1003 .*: bbox is .*finite"),
        (annotation(bbox=[41, 2, 3, 4]), "1003 .*: bbox is .*overlaps the image of 60x40"),
        (annotation(segmentation=None), "1003 .*: segmentation is None.*supervision mixed"),
        (lambda c: c["annotations"][3].pop("segmentation"), "1003 .*: segmentation is None"),
        (annotation(segmentation=[[1, 2, 3, 4]]), "1003 .*: segmentation has the polygon"),
        (annotation(segmentation={"size": [9, 9], "counts": ""}), "1003 .*: segmentation has"),
    ],
)
def test_invalid_entries_are_named(coco_set, change, message):
    coco = coco_set()
    change(coco.content)
    with pytest.raises(ValueError, match=rf"instances_train.json: .*{message}"):
        coco.open()


@pytest.mark.parametrize("content", ["", '{"images": [', "[]", "\x00\x01", "3", None])
def test_files_that_are_no_coco_json(tmp_path, content):
    file = tmp_path / "instances_train.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"instances_train.json: (not a valid|is a|no such)"):
        CocoDataset(file, tmp_path)


def test_crowds_are_counted_but_no_targets(coco_set):
    coco = coco_set()
    coco.add(100, CROWD, [0, 0, 10, 40], iscrowd=1)
    dataset = coco.open()
    assert len(dataset[0].targets.labels) == 2
    assert "1 crowds, not used as targets" in dataset.summary()


def test_missing_images_are_listed(coco_set):
    coco = coco_set(sizes=[(8, 8)] * 9, objects=0)
    for n in range(5):
        (coco.images / f"{n:03}.png").unlink()
    with pytest.raises(ValueError, match=r"5 of 9 image files .*000.png, .*001.png, .*002.png, \."):
        coco.open()


BOXES = [[2, 3, 8, 9], [11, 3, 19, 11]]


@pytest.mark.parametrize("missing", [None, [], "absent"])
@pytest.mark.parametrize("supervision", ["boxes", "mixed"])
def test_boxes_where_no_mask_is_read(coco_set, supervision, missing):
    """boxes reads no segmentation, mixed those that are there."""
    coco = coco_set()
    annotation(0, segmentation=missing)(coco.content)
    if missing == "absent":
        del coco.content["annotations"][0]["segmentation"]
    dataset = coco.open(supervision=supervision)
    targets, mixed = dataset[0].targets, supervision == "mixed"
    assert targets.boxes.tolist() == BOXES
    assert targets.labels.tolist() == [1, 0]
    assert targets.has_mask.tolist() == [False, mixed]
    assert targets.masks.sum(dim=(1, 2)).tolist() == [0, 64 * mixed]
    assert targets.masks.shape == (2, 40, 60)
    assert f"{1 if mixed else 6} {BOX_ONLY}" in dataset.summary()


@pytest.mark.parametrize("supervision", ["boxes", "mixed"])
def test_neither_segmentation_nor_box(coco_set, supervision):
    coco = coco_set()
    for name in ("segmentation", "bbox"):
        del coco.content["annotations"][2][name]
    message = r"annotation 1002 \(image 101, 001.png\): bbox is missing; allowed is \[x, y, width"
    with pytest.raises(ValueError, match=message):
        coco.open(supervision=supervision)


def test_invalid_segmentations_matter_only_if_read(coco_set):
    coco = coco_set()
    annotation(0, segmentation=[[1, 2]])(coco.content)
    with pytest.raises(ValueError, match="at least three points"):
        coco.open(supervision="mixed")
    assert len(coco.open(supervision="boxes")) == 3


def test_boxes_are_clipped_and_empty_ones_counted(coco_set):
    coco = coco_set()
    annotation(0, bbox=[-4, 3, 10, 90])(coco.content)
    annotation(1, bbox=[5, 5, 0, 7])(coco.content)
    for supervision in ("masks", "boxes"):
        dataset = coco.open(supervision=supervision)
        assert dataset.counts["objects partly outside the image, clipped"] == 1
    assert dataset[0].targets.boxes.tolist() == [[0, 3, 6, 40]]
    assert dataset[0].targets.labels.tolist() == [1]
    assert "1 objects with an empty box, skipped" in dataset.summary()


def test_mask_fraction_is_a_part_of_the_images(coco_set):
    coco = coco_set(sizes=[(4, 4)] * 200, objects=0)
    for entry in coco.content["images"]:
        for _ in range(2):
            coco.add(entry["id"], [[1, 1, 3, 1, 3, 3]], [1, 1, 2, 2])

    def with_masks(fraction):
        coco.write()
        images = read_annotations(coco.json, "mixed", fraction).images
        assert all(len(image.boxes) in (0, 2) for image in images)
        return {image.image_id for image in images if not image.boxes}

    none, fifth, half, whole = map(with_masks, (0.0, 0.2, 0.5, 1.0))
    assert none < fifth < half < whole
    for images, count in ((none, 0), (fifth, 40), (half, 100), (whole, 200)):
        assert len(images) == pytest.approx(count, abs=count % 200 / 5)
    coco.content["images"].reverse()
    assert with_masks(0.2) == fifth


def test_validation_reads_all_masks():
    data = DataModule("tabletop", supervision="mixed", mask_fraction=0.2)
    counts = data.train_dataset.counts
    assert counts[BOX_ONLY] / counts["objects"] == pytest.approx(0.8, abs=0.05)
    assert BOX_ONLY not in data.val_dataset.counts
    assert data.val_dataset[0].targets.has_mask.all()


@pytest.mark.parametrize(
    ("supervision", "fraction"), [("masks", 0.5), ("boxes", 0.0), ("mixed", 1.5), ("mixed", -0.1)]
)
def test_mask_fraction_out_of_range(supervision, fraction):
    with pytest.raises(ValueError, match=f"mask_fraction is {fraction} with supervision"):
        DataModule("tabletop", supervision=supervision, mask_fraction=fraction)

"""What is read from a COCO json, and what is rejected."""

import os

import pytest
import torch
from PIL import ExifTags, Image

from condseg.data import records
from condseg.data.annotations import read_index
from condseg.data.datamodule import DataModule
from condseg.data.dataset import CocoDataset
from condseg.data.records import BOX_ONLY, Records
from condseg.evaluation.ground_truth import load_ground_truth

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
        (
            image(height=10**9, width=10**9),
            r"101: height x width is \(1000000000, .*50331648 pixels",
        ),
        (image(height=10**400), "image 101: height x width is .*50331648 pixels"),
        (image(id=2**63), 'entry 1 of "images" has no integer "id" of up to 64 bits'),
        (
            image(file_name="a" * 5000),
            r"image 101: file_name is 'a+\.{3}a+'; allowed is a path",
        ),
        (image(file_name=""), "image 101: file_name is ''"),
        (image(file_name="a\nb.png"), r"file_name is 'a\\nb.png'; allowed is .*, in one line"),
        (image(file_name="a.png\r"), r"file_name is 'a.png\\r'; allowed is .*, in one line"),
        (image(depth_file="a\n.png"), r"depth_file is 'a\\n.png'; allowed is .*, in one line"),
        (image(depth_file=3), "image 101: depth_file is 3; allowed is a path"),
        (annotation(image_id=9), r"annotation 1003: image_id is 9; allowed is an id of"),
        (annotation(image_id=[9]), r"annotation 1003: image_id is \[9\]"),
        (annotation(category_id=5), r"1003 \(image 101, 001.png\): category_id is 5.*one of 3, 7"),
        (annotation(category_id=None), "1003 .*: category_id is missing"),
        (annotation(iscrowd=2), "1003 .*: iscrowd is 2"),
        (annotation(iscrowd=[]), r"1003 .*: iscrowd is \[\]"),
        (annotation(area="120"), "1003 .*: area is '120'; allowed is a finite number >= 0"),
        (annotation(area=-1), "1003 .*: area is -1"),
        (annotation(area=10**400), "1003 .*: area is 1000"),
        (annotation(bbox=[1, 2, 10**400, 4]), "1003 .*: bbox is .*finite"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a valid json .0 bytes"),
        ('{"images": [', "not a valid json"),
        ("[]", "is a list"),
        ("\x00\x01", "not a valid json"),
        ("3", "is a int"),
        ("9" * 5000, "not a valid json .*4300 digits"),
        ("[" * 100_000, "lists or objects are nested too deeply"),
        (None, "no such annotation file"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_files_that_are_no_coco_json(tmp_path, content, message):
    file = tmp_path / "instances_train.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"instances_train.json: {message}"):
        CocoDataset(file, tmp_path)


def test_long_values_are_abbreviated(coco_set):
    coco = coco_set()
    annotation(bbox=[[[[[[[[[]]]]]]]], *range(10**4)])(coco.content)
    annotation(0, category_id="x" * 10**4)(coco.content)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"bbox is \[\[|category_id is 'xxx") as error:
            coco.open()
        assert len(str(error.value)) < 500
        annotation(0, category_id=7)(coco.content)


def test_too_many_objects_for_an_index_map(coco_set, monkeypatch):
    coco = coco_set()
    coco.add(101, [[1, 1, 3, 1, 3, 3]], [1, 1, 2, 2])
    assert len(coco.open()[1].targets.labels) == 3
    monkeypatch.setattr(records, "MAX_OBJECTS", 2)
    with pytest.raises(ValueError, match=r"image 101 \(001.png\) has more than 2 objects, the max"):
        coco.open()


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


def test_sizes_that_the_json_lacks_are_those_of_the_files(coco_set):
    coco = coco_set()
    expected = coco.open()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for entry in coco.content["images"]:
        entry["height"] = entry.pop("width") and None
        file = coco.images / entry["file_name"]
        for suffix in (".tiff", ".png"):  # stored sideways
            with Image.open(file) as stored:
                rotated = stored.transpose(Image.Transpose.ROTATE_90)
            rotated.save(file.with_suffix(suffix), exif=exif)
    coco.content["images"][2]["file_name"] = "002.tiff"
    dataset = coco.open()
    assert dataset.sizes.tolist() == expected.sizes.tolist() == [[40, 60], [60, 40], [40, 60]]
    for one, other in ((expected[i], dataset[i]) for i in range(3)):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.targets.masks, other.targets.masks)
    assert "3 images whose size is the file's" in dataset.summary()
    assert load_ground_truth(coco.json, coco.images)[0].imgs[101]["height"] == 60
    (coco.images / "001.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"image 101: height and width are missing, and .*001.png"):
        coco.open()


def test_what_is_no_file_is_listed_as_missing(coco_set):
    coco = coco_set(sizes=[(8, 8)] * 4, objects=0)
    paths = [coco.images / f"{n:03}.png" for n in range(4)]
    for path in paths[1:]:
        path.unlink()
    paths[1].mkdir()
    os.mkfifo(paths[2])
    paths[3].symlink_to(paths[3])
    with pytest.raises(ValueError, match=r"3 of 4 image files .*001.png, .*002.png, .*003.png$"):
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
        images = list(Records(read_index(coco.json), "mixed", fraction))
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


def test_whole_numbers_may_be_floats(coco_set):
    """Some tools write all numbers so."""
    coco = coco_set("train")
    expected = coco.open()
    for entries in (coco.content["images"], coco.content["annotations"]):
        for entry in entries:
            for key in entry.keys() & {"id", "image_id", "category_id", "height", "width"}:
                entry[key] = float(entry[key])
    found = coco.open()
    assert found.image_ids.tolist() == expected.image_ids.tolist()
    assert [type(number) for number in found[0].info.original_size] == [int, int]
    assert found[0].targets.labels.tolist() == expected[0].targets.labels.tolist()
    coco.content["images"][0]["id"] += 0.5
    with pytest.raises(ValueError, match='entry 0 of "images" has no integer "id"'):
        coco.open()

"""COCO, LabelMe and Label Studio files, read back as these programs do."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from condseg.inference.formats import CocoWriter, Entry
from condseg.inference.instances import Instances
from condseg.inference.labeling import LabelMeWriter, LabelStudioWriter, brush_rle
from condseg.structures import Category

CATEGORIES = (Category(3, "cup"), Category(9, "a <fork>"))


@pytest.fixture
def found():
    """An instance of two parts, one with a hole, and one without pixels."""
    masks = np.zeros((3, 30, 40), dtype=bool)
    masks[0, 2:9, 3:12] = masks[0, 15:20, 30:40] = masks[1, 5:25, 10:30] = True
    masks[1, 10:20, 15:25] = False
    boxes = np.array([[3, 2, 40, 20], [9, 4, 31, 26], [1, 1, 2, 2]], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Instances(boxes, scores, np.array([1, 0, 0]), masks, CATEGORIES, image, "a.png")


def filled(mask):
    """Without holes."""
    mask = mask.copy()
    mask[10:20, 15:25] |= mask[8, 15]
    return mask


@pytest.mark.parametrize("outline", ["polygon", "rle"])
def test_a_coco_data_set(found, tmp_path, outline, capsys):
    writer = CocoWriter(tmp_path / "a.json", CATEGORIES, dataset=True, outline=outline)
    for name in ("a.png", "b.png"):
        writer.add(Entry(name, name, found))
    writer.close()
    coco = COCO(str(tmp_path / "a.json"))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png", "b.png"]
    first, second, empty = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert (first["category_id"], second["category_id"]) == (9, 3)
    assert (first["bbox"], second["bbox"]) == ([3, 2, 37, 18], [10, 5, 20, 20])
    assert first["area"] == found.masks[0].sum()
    assert "track_id" not in first
    expected = found.masks if outline == "rle" else list(map(filled, found.masks))
    for annotation, mask in zip((first, second, empty), expected, strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)


def test_coco_results_with_frames(found, tmp_path):
    writer = CocoWriter(tmp_path / "a.json", CATEGORIES, dataset=False, outline="polygon")
    found = Instances(**vars(found) | {"tracks": np.array([4, 0, 7])})
    for frame in range(2):
        writer.add(Entry(f"clip/{frame}.jpg", f"clip_{frame}", found[::2], "clip.mp4", frame))
    writer.close()
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["videos"] == [{"id": 1, "name": "clip.mp4"}]
    assert [(i["video_id"], i["frame_index"]) for i in content["images"]] == [(1, 0), (1, 1)]
    assert [a["track_id"] for a in content["annotations"]] == [4, 7, 4, 7]
    record = content["annotations"][0]
    assert np.array_equal(rle.decode(record["segmentation"]), found.masks[0])


@pytest.mark.parametrize("outline", ["polygon", "rle"])
def test_labelme(found, tmp_path, outline):
    Image.fromarray(found.image).save(tmp_path / "a.png")
    writer = LabelMeWriter(tmp_path / "out" / "labelme", outline)
    writer.add(Entry(str(tmp_path / "a.png"), "a", found))
    writer.add(Entry("https://example.org/b.png", "b", found))
    content = json.loads((tmp_path / "out" / "labelme" / "a.json").read_text())
    assert content["imagePath"] == "../../a.png"
    assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (30, 40, None)
    masks = np.zeros((2, 30, 40), dtype=bool)
    for shape in content["shapes"]:
        index = shape["group_id"] - 1
        assert shape["label"] == found.names[index]
        points = np.array(shape["points"])
        if outline == "polygon":
            code = rle.frPyObjects([points.ravel().tolist()], 30, 40)
            masks[index] |= rle.decode(rle.merge(code)).astype(bool)
        else:
            (x1, y1), (x2, y2) = points
            pixels = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            masks[index, y1 : y2 + 1, x1 : x2 + 1] |= np.asarray(pixels)
    expected = found.masks[:2] if outline == "rle" else list(map(filled, found.masks[:2]))
    assert np.array_equal(masks, expected)
    content = json.loads((tmp_path / "out" / "labelme" / "b.json").read_text())
    pixels = Image.open(io.BytesIO(base64.b64decode(content["imageData"])))
    assert np.array_equal(np.asarray(pixels), found.image)


@pytest.mark.parametrize("outline", ["polygon", "rle"])
def test_label_studio(found, tmp_path, monkeypatch, outline):
    monkeypatch.chdir(tmp_path)
    writer = LabelStudioWriter(tmp_path, CATEGORIES, outline, "best")
    writer.add(Entry("photos/a b.png", "a", found))
    writer.add(Entry("https://example.org/b.png", "b", found[:0]))
    writer.close()
    task, empty = json.loads((tmp_path / "labelstudio.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/a%20b.png"
    assert empty["data"]["image"] == "https://example.org/b.png"
    assert empty["predictions"][0]["result"] == []
    regions = task["predictions"][0]["result"]
    kind = "polygonlabels" if outline == "polygon" else "brushlabels"
    labels = [region["value"][kind] for region in regions]
    assert labels == [["a <fork>"]] * (2 if outline == "polygon" else 1) + [["cup"]]
    assert {region["type"] for region in regions} == {kind}
    assert len({region["id"] for region in regions}) == len(regions)
    if outline == "polygon":
        points = np.array(regions[-1]["value"]["points"]) * (40, 30) / 100
        code = rle.frPyObjects([points.ravel().tolist()], 30, 40)
        assert np.array_equal(rle.decode(code)[:, :, 0], filled(found.masks[1]))
    else:
        assert np.array_equal(decoded(regions[-1]["value"]["rle"], (30, 40)), found.masks[1])
    setup = (tmp_path / "labelstudio.xml").read_text()
    assert '<Label value="a &lt;fork&gt;"/>' in setup


@pytest.mark.parametrize("size", [(1, 1), (30, 40), (200, 300)])
def test_brush_regions(size):
    for mask in (np.ones(size, bool), np.random.default_rng(0).random(size) > 0.3):
        assert np.array_equal(decoded(brush_rle(mask), size), mask)


def decoded(code, size):
    """rle-pack's decoder, bit by bit; the last of four values per pixel, as Label Studio reads."""
    bits = iter("".join(f"{byte:08b}" for byte in code))

    def read(count):
        return int("".join(next(bits) for _ in range(count)), 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeated, count = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * count if repeated else [read(word) for _ in range(count)]
    return np.array(values).reshape(*size, 4)[:, :, 3] == 255

"""Instances: selecting, drawing, other formats."""

import base64
import io
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from condseg.inference.drawing import draw
from condseg.inference.instances import Instances
from condseg.structures import Category, Detections

CATEGORIES = (Category(3, "cup"), Category(9, "fork"))


def blobs(count, height=90, width=120):
    """Smooth random shapes of several parts with holes."""
    random = np.random.default_rng(0)
    maps = (cv2.GaussianBlur(random.random((height, width)), (0, 0), 3) for _ in range(count))
    return np.stack([values > np.median(values) + 0.01 for values in maps])


@pytest.fixture
def found():
    masks = blobs(3)
    boxes = np.array([[0, 0, 120, 90], [5.5, 3, 60, 50], [20, 20, 90, 80]], dtype=np.float32)
    scores = np.array([0.9, 0.7, 0.2], dtype=np.float32)
    image = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    return Instances(boxes, scores, np.array([1, 0, 1]), masks, CATEGORIES, image, "street.jpg")


def test_of_detections(found):
    arrays = found.boxes, found.scores, found.labels, found.masks
    detections = Detections(*map(torch.from_numpy, arrays))
    other = Instances.of(detections, CATEGORIES, found.image)
    for name in ("boxes", "scores", "labels", "masks"):
        assert np.array_equal(getattr(other, name), getattr(found, name))
    assert (found.masks.dtype, found.labels.dtype) == (np.bool_, np.int64)


def test_selecting(found):
    assert found.names.tolist() == ["fork", "cup", "fork"]
    cases = {
        (0, 1): found.scores > 0.5,
        (0, 2): found.names == "fork",
        (2, 0): [2, 0],
        (1, 2): slice(1, None),
        (2,): -1,
        (): [],
    }
    for rows, index in cases.items():
        chosen = found[index]
        for name in ("boxes", "scores", "labels", "masks", "names"):
            assert np.array_equal(getattr(chosen, name), getattr(found, name)[list(rows)])
        assert chosen.image is found.image
    assert [one.scores.tolist() for one in found] == [[s] for s in found.scores.tolist()]
    assert np.array_equal(found[torch.from_numpy(found.scores) > 0.5].scores, found.scores[:2])
    with pytest.raises(IndexError):
        found[3]


def test_the_text_names_classes_and_scores(found):
    assert repr(found) == "Instances(2 fork (0.90, 0.20), 1 cup (0.70); 90 x 120, street.jpg)"
    assert repr(found[[]]) == "Instances(nothing; 90 x 120, street.jpg)"
    many = found[[0] * 6 + [2]]
    assert "7 fork (0.90 to 0.20)" in repr(many)


def test_polygons_fill_to_the_mask(found):
    holes = 0
    for mask, polygons in zip(found.masks, found.polygons(), strict=True):
        assert len(polygons) > 1
        points = [polygon.ravel().tolist() for polygon in polygons]
        filled = rle.decode(rle.merge(rle.frPyObjects(points, *found.size)))
        solid = mask.astype(np.uint8)
        contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(solid, contours, -1, 1, cv2.FILLED)  # without holes
        holes += int(solid.sum()) - int(mask.sum())
        assert np.array_equal(filled, solid)
    assert holes > 0


def test_the_polygon_of_a_pixel_is_its_outline(found):
    one = found[[0]]
    one.masks[:] = False
    assert one.polygons() == [[]]
    one.masks[0, 4, 7:9] = True
    [[points]] = one.polygons()
    assert {tuple(p) for p in points.tolist()} == {(7, 4), (9, 4), (9, 5), (7, 5)}


def test_coco_records(found):
    records = found.to_coco(image_id=7)
    assert [r["image_id"] for r in records] == [7, 7, 7]
    assert [r["category_id"] for r in records] == [9, 3, 9]
    assert records[1]["bbox"] == [5.5, 3, 54.5, 47]
    for record, mask in zip(records, found.masks, strict=True):
        assert np.array_equal(rle.decode(record["segmentation"]), mask)
    assert found[[]].to_coco() == []


def test_drawing(found):
    drawn = found.draw(color_by="class", scale=2)
    names = [category.name for category in CATEGORIES]
    detections = found._detections()
    expected = draw(found.image, detections, names, scale=2, color_by="class")
    assert np.array_equal(np.asarray(drawn), expected)
    assert found.draw().size == (120, 90)
    assert np.array_equal(np.asarray(found[[]].draw()), found.image)


def test_notebooks_show_the_drawing(found):
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.size == (480, 360)  # enlarged
    markup = replace(found, source="<b>.jpg")._repr_html_()
    (embedded,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', markup)
    assert base64.b64decode(embedded) == found._repr_png_()
    assert "<div>Instances(2 fork (0.90, 0.20), 1 cup (0.70); 90 x 120, &lt;b&gt;.jpg)" in markup
    assert "<b>" not in markup
    nothing = Detections(
        torch.zeros(0, 4),
        torch.zeros(0),
        torch.zeros(0).long(),
        torch.zeros(0, 900, 3000, dtype=torch.bool),
    )
    large = Instances.of(nothing, CATEGORIES, np.zeros((900, 3000, 3), np.uint8))
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1280, 384)


def test_supervision(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'condseg\[supervision\]'"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))
    assert found.to_supervision()["class_id"] is found.labels


def test_supervision_reads_it(found):
    supervision = pytest.importorskip("supervision")
    for instances in (found, found[[]]):
        detections = instances.to_supervision()
        assert isinstance(detections, supervision.Detections)
        assert len(detections) == len(instances)
        assert detections.data["class_name"].tolist() == instances.names.tolist()
        assert np.array_equal(detections.mask, instances.masks)
    kept = found.to_supervision()[found.scores > 0.5]
    assert kept.confidence.tolist() == found.scores[:2].tolist()

"""Depth maps from their files to samples."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from condseg.data.images import read_depth
from condseg.data.transforms import train_transform


def write_depth(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint16)).save(path)


@pytest.fixture
def depth_set(coco_set):
    """The object is at 500, the rest at 2000; the first column was not measured."""
    coco = coco_set(objects=1)
    for image in coco.content["images"]:
        depth = np.full((image["height"], image["width"]), 2000)
        depth[3:9, 2:8] = 500
        depth[:, 0] = 0
        image["depth_file"] = f"depth/{image['id']}.png"
        write_depth(coco.root / image["depth_file"], depth)
    return coco


def test_values_are_unchanged(tmp_path):
    values = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
    write_depth(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_depth(tmp_path / "a.png", (2, 3)), values, strict=True)


def test_files_that_are_no_depth_map(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "eight.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    (tmp_path / "empty.png").touch()
    write_depth(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 65535, (90, 90)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name, message in (
        ("eight.png", "cannot be read as a depth map: .* mode is L; 16-bit grey is required"),
        ("colour.png", "mode is RGB; 16-bit grey"),
        ("empty.png", "empty"),
        ("cut.png", "cannot be read as a depth map: .*[Tt]runcated"),
        ("absent.png", "no such depth map"),
        ("whole.png", "is 90x90 .*its image 2x3"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            read_depth(tmp_path / name, (2, 3))


def test_depth_is_transformed_with_its_image(depth_set):
    transform = train_transform((25, 110), 200, "range", "both", crop=0.3, color_jitter=1.0)
    dataset = depth_set.open(transform=transform, depth=True)
    sizes, mirrored, cropped = set(), 0, 0
    for key in product(range(3), range(12)):
        sample = dataset[key]
        assert sample.depth.shape == sample.image.shape[1:]
        assert set(sample.depth.unique().tolist()) <= {0.0, 500.0, 2000.0}
        assert torch.equal(sample.depth == 500, sample.targets.masks.any(0))
        column = (sample.depth == 0).any(0)
        mirrored += bool(column[-1])
        cropped += not column.any()
        sizes.add(sample.info.size)
    assert len(sizes) > 10
    assert mirrored > 3
    assert cropped > 3


def test_depth_is_optional(depth_set):
    dataset = depth_set.open()
    assert dataset[0].depth is None
    assert dataset.files(0) == (depth_set.images / "000.png", None)
    dataset = depth_set.open(depth=True)
    assert dataset[0].depth.dtype == torch.float32
    assert dataset.files(2)[1] == depth_set.root / "depth/102.png"
    assert "3 depth maps" in dataset.summary()


def test_images_without_depth_are_listed(depth_set):
    for image in depth_set.content["images"][1:]:
        image.pop("depth_file")
    message = r"train.json: 2 of 3 images have no depth_file: image 101 \(001.png\), 102 \(002.png"
    with pytest.raises(ValueError, match=message + ".*depth_channels null"):
        depth_set.open(depth=True)
    depth_set.content["annotations"] = depth_set.content["annotations"][:1]
    assert len(depth_set.open(depth=True, skip_empty=True)) == 1  # skipped images need none


def test_invalid_depth_files_are_named_with_their_image(depth_set):
    write_depth(depth_set.root / "depth/101.png", np.ones((40, 60)))
    message = r"depth/101.png \(image 101 of .*train.json\): .* is 40x60 .* 60x40"
    with pytest.raises(ValueError, match=message):
        depth_set.open(depth=True)[1]
    (depth_set.root / "depth/101.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 depth map files are missing: .*101.png"):
        depth_set.open(depth=True)

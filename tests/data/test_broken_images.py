"""Images that cannot be read: stopped at, replaced, or found before the training."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from condseg.data.checking import broken_images
from condseg.data.datamodule import DataModule
from condseg.data.dataset import CocoDataset
from condseg.data.transforms import train_transform

OPTIONS = {"short_sides": (24,), "max_long_side": 64, "val_short_side": 32}


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def coco(coco_set):
    """Six images, of which 102, 103 and 105 are broken; 105 is of another size."""
    coco = coco_set(sizes=[(40, 60)] * 6)
    for number in (2, 3):
        truncate(coco.images / f"00{number}.png")
    Image.new("RGB", (61, 40)).save(coco.images / "005.png")
    return coco


def test_stop_names_file_image_and_reason(coco):
    with pytest.raises(ValueError, match=r"002.png \(image 102 of .*train.json\): cannot be read"):
        coco.open()[2]


def test_replaced_by_the_next_that_can_be_read(coco):
    dataset = coco.open(on_broken_image="replace", transform=train_transform((20, 39), 99, "range"))
    samples = [dataset[index, 3] for index in range(6)]
    assert [sample.info.image_id for sample in samples] == [100, 101, 104, 104, 104, 100]
    reasons = [sample.broken or "" for sample in samples]
    assert [r.split(" (image ")[0][-7:] for r in reasons] == [
        "",
        "",
        "002.png",
        "003.png",
        "",
        "005.png",
    ]
    again = coco.open(on_broken_image="replace", transform=train_transform((20, 39), 99, "range"))
    assert torch.equal(again[2, 3].image, samples[2].image)
    assert torch.equal(again[2, 3].targets.masks, samples[2].targets.masks)


def test_blank_keeps_the_objects(coco):
    dataset = coco.open(on_broken_image="blank")
    sample, whole = dataset[5], dataset[4]
    assert sample.info.image_id == 105
    assert "005.png (image 105" in sample.broken
    assert sample.image.shape == (3, 40, 60)
    assert sample.image.max() == 0
    assert torch.equal(sample.targets.masks, whole.targets.masks)


def test_broken_depth_maps(coco):
    for number, image in enumerate(coco.content["images"]):
        image["depth_file"] = f"{number}.png"
        Image.fromarray(np.ones((40, 60), np.uint16)).save(coco.root / f"{number}.png")
    truncate(coco.root / "1.png")
    assert coco.open(on_broken_image="replace", depth=True)[1].info.image_id == 104
    assert coco.open(on_broken_image="blank", depth=True)[1].depth.max() == 0


def test_no_image_can_be_read(coco):
    for path in coco.images.iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"none of the 6 images .* the first: .*001.png"):
        coco.open(on_broken_image="replace")[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_all_are_found_before_the_training(coco, coco_set, workers):
    truncate(coco_set("val").images / "001.png")
    options = OPTIONS | {"check_images": True, "workers": workers}
    expected = [
        r".*val.json: 1 of 3 images are broken:",
        r"  .*/val/001.png \(image 101 of .*val.json\): cannot be read as an image: .*",
        r".*train.json: 3 of 6 images are broken:",
        r"  .*/train/002.png \(image 102 of .*train.json\): cannot be read as an image: .*",
        r"  .*/train/003.png \(image 103 of .*train.json\): cannot be read as an image: .*",
        r"  .*/train/005.png \(image 105 of .*train.json\): the file is 40x61 .*",
    ]
    with pytest.raises(ValueError, match="\n".join(expected) + "$"):
        DataModule(str(coco.root), **options).setup("fit")
    with pytest.warns(UserWarning, match="\n".join(expected) + "$"):
        DataModule(str(coco.root), on_broken_image="skip", **options).setup("fit")


def _process(rank, port, coco, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = broken_images(CocoDataset(coco.json, coco.images), rank, 2, {})
    (folder / f"{rank}.txt").write_text("\n".join(found))
    torch.distributed.destroy_process_group()


def test_processes_check_a_part_each_and_agree(coco, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(_process, (port, coco, tmp_path), nprocs=2, start_method="fork")
    one, two = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert one == two
    assert [f"00{n}.png" in one for n in range(6)] == [False, False, True, True, False, True]
    assert len(one.splitlines()) == 3

"""Small COCO-format sets, written where a test wants them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 2, "name": "pen"}]


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


class CocoSet:
    """A json beside a folder of pictures; change ``content``, then ``write``."""

    def __init__(self, root: Path, name: str, sizes, objects_each=2):
        self.root, self.json, self.images = root, root / f"instances_{name}.json", root / name
        self.images.mkdir(parents=True)
        generator = np.random.default_rng(0)
        self.content = {"images": [], "annotations": [], "categories": list(CATEGORIES)}
        for number, (height, width) in enumerate(sizes):
            file_name = f"{number:03}.png"
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / file_name)
            image = {"id": 100 + number, "file_name": file_name, "height": height, "width": width}
            self.content["images"].append(image)
            for n in range(objects_each):
                side = 6 + 2 * n
                self.add(100 + number, [square(2 + 9 * n, 3, side)], [2 + 9 * n, 3, side, side], n)
        self.write()

    def add(self, image_id, segmentation, bbox, n=0, **more):
        entries = self.content["annotations"]
        entry = {"id": 1000 + len(entries), "image_id": image_id, "iscrowd": 0}
        entry |= {"category_id": (7, 2)[n % 2], "bbox": bbox, "area": bbox[2] * bbox[3]}
        entries.append(entry | {"segmentation": segmentation} | more)

    def write(self):
        self.json.write_text(json.dumps(self.content))


@pytest.fixture
def coco_set(tmp_path):
    """Makes a set: ``coco_set(name, sizes, objects_each)``."""

    def make(name="train", sizes=((40, 60), (60, 40), (40, 60)), objects_each=2):
        return CocoSet(tmp_path / "set", name, sizes, objects_each)

    return make

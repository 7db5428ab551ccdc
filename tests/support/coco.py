"""Small COCO-format sets, and pycocotools called directly."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from condseg.data.dataset import CocoDataset

CATEGORIES = [{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def compressed(mask):
    """An array (H, W) as compressed RLE of a json."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


class CocoSet:
    """A json beside a folder of images of noise; ``open`` writes the changed ``content``."""

    def __init__(self, root: Path, name="train", sizes=((40, 60), (60, 40), (40, 60)), objects=2):
        self.root, self.json, self.images = root, root / f"instances_{name}.json", root / name
        self.images.mkdir(parents=True)
        generator = np.random.default_rng(0)
        categories = [dict(c) for c in reversed(CATEGORIES)]
        self.content = {"images": [], "annotations": [], "categories": categories}
        for number, (height, width) in enumerate(sizes):
            file_name = f"{number:03}.png"
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / file_name)
            image = {"id": 100 + number, "file_name": file_name, "height": height, "width": width}
            self.content["images"].append(image)
            for n in range(objects):
                side = 6 + 2 * n
                box = [2 + 9 * n, 3, side, side]
                self.add(100 + number, [square(*box[:3])], box, n)
        self.write()

    def add(self, image_id, segmentation, bbox, n=0, **more):
        entries = self.content["annotations"]
        entry = {"id": 1000 + len(entries), "image_id": image_id, "iscrowd": 0}
        entry |= {"category_id": (7, 3)[n % 2], "bbox": bbox, "area": bbox[2] * bbox[3]}
        entries.append(entry | {"segmentation": segmentation} | more)

    def write(self):
        self.json.write_text(json.dumps(self.content))

    def open(self, **options):
        self.write()
        return CocoDataset(self.json, self.images, **options)


def pycocotools(truth, results, iou_type, evaluation_class=COCOeval, limits=None, images=None):
    """The finished evaluation; ``limits`` are its maxDets, ``images`` the ids to evaluate."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth))
        evaluation = evaluation_class(truth, truth.loadRes(results), iou_type)
        evaluation.params.maxDets = limits or evaluation.params.maxDets
        evaluation.params.imgIds = images or evaluation.params.imgIds
        evaluation.evaluate()
        evaluation.accumulate()
        if not limits:
            evaluation.summarize()
    return evaluation

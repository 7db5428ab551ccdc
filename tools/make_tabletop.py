"""Generates the "tabletop" sample set: household things on a ground, with masks and depth.

    python tools/make_tabletop.py OUT --train 336 --val 48 --seed 0

Bullet simulates how the things fall; its CPU rasteriser computes the thing and the distance at
every pixel. Shapes, colours, textures and light are procedural, so the images are free (CC0). A
scene is a pure function of (seed, split, index, size): a set of a thousand begins with the same
images as a set of ten, for any number of workers. An interrupted run, or one with more images than
before, goes on with --resume.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle
from rich.progress import track
from tabletop.render import SPLITS, Rendering, make_scene
from tabletop.styles import STYLES
from tabletop.things import CATEGORIES

VERSION = "1.0"
CHUNK = 40  # scenes after which the annotations are written
Annotations = list[dict[str, Any]]


def annotate(scene: Rendering, image_id: int) -> Annotations:
    """COCO annotations of one image, numbered from 1."""
    codes = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in scene.masks]
    things = zip(codes, scene.categories, scene.visibility, strict=True)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": CATEGORIES.index(category) + 1,
            "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            "area": int(rle.area(code)),
            "bbox": rle.toBbox(code).tolist(),
            "iscrowd": 0,
            "visibility": round(min(visibility, 1.0), 3),
        }
        for number, (code, category, visibility) in enumerate(things, 1)
    ]


def write_scene(index: int, *, args: argparse.Namespace, split: str) -> Annotations:
    """Renders one scene, writes image and depth map, and returns the annotations."""
    cv2.setNumThreads(1)
    width, height = args.size
    scene = make_scene(args.seed, split, index, width, height, args.styles)
    jpeg, png = [cv2.IMWRITE_JPEG_QUALITY, args.quality], [cv2.IMWRITE_PNG_COMPRESSION, 9]
    for file, pixels, options in (
        (f"{split}/{index:06d}.jpg", scene.image[..., ::-1], jpeg),
        (f"depth/{split}/{index:06d}.png", scene.depth, png),
    ):
        path = args.out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), pixels, options):
            raise OSError(f"cannot write {path}")
    return annotate(scene, index)


def write_split(args: argparse.Namespace, split: str, count: int) -> None:
    """Writes the scenes of a split and its COCO file, with --resume only those that it lacks."""
    target = args.out / f"instances_{split}.json"
    annotations = earlier(args, split, target) if args.resume else []
    start = len({a["image_id"] for a in annotations})  # no scene is without annotations
    work = partial(write_scene, args=args, split=split)
    with ProcessPoolExecutor(args.workers) as pool:
        scenes = pool.map(work, range(start, count))
        for done, scene in enumerate(
            track(scenes, f"{split:>5}", max(count - start, 0)), start + 1
        ):
            annotations += [a | {"id": len(annotations) + a["id"]} for a in scene]
            if done % CHUNK == 0:
                write_annotations(args, split, done, annotations, target)
    write_annotations(args, split, max(start, count), annotations, target)


def information(args: argparse.Namespace, split: str) -> dict[str, Any]:
    """What the COCO file says of itself."""
    info: dict[str, Any] = {
        "description": f"tabletop, {split}: rendered by tools/make_tabletop.py",
        "version": VERSION,
        "seed": args.seed,
        "license": "CC0-1.0",
        "depth": "uint16 millimetres along the camera's axis, 0 = no measurement",
        "visibility": "the part of a thing's pixels that nothing hides, within the picture",
    }
    return info | ({"styles": args.styles} if args.styles > 1 else {})


def earlier(args: argparse.Namespace, split: str, path: Path) -> Annotations:
    """The annotations of a run before.

    Raises:
        ValueError: its scenes are others.
    """
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    sizes = {(image["width"], image["height"]) for image in content["images"]}
    if content["info"] != information(args, split) or not sizes <= {tuple(args.size)}:
        raise ValueError(f"--resume: {path} has scenes of another version, seed, size or style")
    annotations: Annotations = content["annotations"]
    return annotations


def write_annotations(
    args: argparse.Namespace, split: str, count: int, annotations: Annotations, target: Path
) -> None:
    """Writes the COCO file of the first scenes; a process killed meanwhile leaves the old one."""
    width, height = args.size
    licence = {"name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
    content = {
        "info": information(args, split),
        "licenses": [{"id": 1, **licence}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)],
        "images": [
            {
                "id": i,
                "width": width,
                "height": height,
                "license": 1,
                "file_name": f"{i:06d}.jpg",
                "depth_file": f"depth/{split}/{i:06d}.png",
            }
            for i in range(count)
        ],
        "annotations": annotations,
    }
    partial_file = target.with_suffix(".partial")
    partial_file.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    partial_file.replace(target)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="folder; created if missing")
    parser.add_argument("--train", type=int, default=336, help="training images (default 336)")
    parser.add_argument("--val", type=int, default=48, help="validation images (default 48)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another set (default 0)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument(
        "--styles", type=int, default=1, help="kinds of images, mixed: noise, fog, ... (default 1)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--quality", type=int, default=82, help="of the JPEG files (default 82)")
    parser.add_argument("--resume", action="store_true", help="keep the scenes that OUT has")
    args = parser.parse_args(argv)
    ranges = {"train": (0, 1_000_000), "val": (0, 1_000_000), "seed": (0, 2**32 - 1)}
    ranges |= {"workers": (1, 1024), "quality": (1, 100), "styles": (1, len(STYLES))}
    for name, (low, high) in ranges.items():
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} {getattr(args, name)}: must be {low} to {high}")
    if min(args.size) < 64:
        parser.error(f"--size {args.size[0]} {args.size[1]}: both must be 64 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    try:
        import pybullet  # noqa: F401
    except ImportError:
        print(
            "make_tabletop needs pybullet, which renders the scenes: pip install pybullet\n"
            "(a wheel exists for Python 3.11, none for 3.12; the package itself does not need it)",
            file=sys.stderr,
        )
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for split in SPLITS:
            write_split(args, split, getattr(args, split))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

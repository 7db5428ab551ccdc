"""Damaged, unusual and absurd image files."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from attack.forks import FaultError, RefusedError, check, may_refuse
from attack.rounds import Attack
from attack.values import Damage, damages
from hypothesis import strategies as st
from PIL import Image
from support import tiny
from support.coco import CocoSet

from condseg import native
from condseg.data.dataset import CocoDataset
from condseg.data.images import read_depth, read_image
from condseg.inference.annotate import annotate
from condseg.inference.predictor import Predictor
from condseg.zoo.checkpoint import restore

SIZE = (40, 60)
READERS = ("image", "image", "depth", "dataset", "demo")
PLACES = ("fifo", "folder", "link to itself", "dangling link", "link to /dev/zero", "link to image")


@dataclass(frozen=True)
class State:
    files: dict[str, Path]
    predictor: Predictor


@dataclass(frozen=True)
class Case:
    """One of the files, and what is done with it: a damage, a header, a size or a place."""

    reader: str
    file: str
    what: Any = None
    suffix: str = ""


def prepare(folder: Path) -> State:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    rgb, deep = Image.fromarray(pixels), random.integers(0, 4000, SIZE, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = rgb.convert("RGBA")
    rgba.putalpha(128)
    palette = rgb.quantize(16)
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {}),
        "palette.png": (palette, {"transparency": 3}),
        "bits.png": (rgb.convert("1"), {}),
        "depth.png": (Image.fromarray(deep), {}),
        "depth.tif": (Image.fromarray(deep), {}),
        "rgb.jpg": (rgb, {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "exif.jpg": (rgb.rotate(90, expand=True), {"exif": exif}),
        "rgb.tif": (rgb, {"compression": "tiff_lzw"}),
        "rgb.bmp": (rgb, {}),
        "rgb.gif": (palette, {}),
        "rgb.webp": (rgb, {}),
        "rgb.ppm": (rgb, {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    cv2.imwrite(str(folder / "rgb16.png"), pixels.astype(np.uint16) * 257)
    files = {path.name: path for path in sorted(folder.iterdir())}
    native.available()
    return State(files, Predictor(restore(tiny.write_checkpoint(folder / "model.ckpt")), "cpu"))


def cases(state: State) -> st.SearchStrategy[Case]:
    files, readers = st.sampled_from(list(state.files)), st.sampled_from(READERS)
    damage = damages("flip 1", "flip 1", "flip 8", "cut", "block", "tail", "head", "empty")
    sides = st.sampled_from([0, 1, 2, 40, 5000, 13_000, 65_535, 2**31 - 1, 2**31])
    header = st.tuples(sides, sides, st.sampled_from([1, 8, 16]), st.sampled_from([0, 2, 3, 4, 6]))
    made = st.sampled_from([(1, 1), (1, 4000), (4000, 1), (10, 40_000), (3, 3), (9000, 9000)])
    return st.one_of(
        *[st.builds(Case, readers, files, damage)] * 4,
        st.builds(Case, readers, files, st.none(), st.sampled_from([".jpg", ".png", ".tif", ""])),
        st.builds(Case, readers, st.just("rgb.png"), header),
        st.builds(Case, readers, files, made).filter(_can_be_written),
        st.builds(Case, readers, files, st.sampled_from(PLACES)),
    )


def _can_be_written(case: Case) -> bool:
    return not case.file.endswith(".webp") or max(case.what) < 1 << 14


def run(state: State, case: Case, folder: Path) -> None:
    source = state.files[case.file]
    path = folder / (source.stem + (case.suffix or source.suffix))
    _make(source, path, case.what)
    right = _pixels(state, case)
    if case.reader == "demo":
        _demo(state, path, folder)
    elif case.reader == "depth":
        with may_refuse(path.name):
            depth = read_depth(path, SIZE)
        check(depth.shape == SIZE and depth.dtype == np.uint16, "a depth map of another shape")
    elif case.reader == "dataset":
        coco = CocoSet(folder, "train", [SIZE], objects=2)
        (coco.images / "000.png").unlink()
        path.rename(coco.images / path.name)
        coco.content["images"][0]["file_name"] = path.name
        coco.write()
        with may_refuse(path.name):
            sample = CocoDataset(coco.json, coco.images)[0]
        check(sample.image.shape == (3, *SIZE), "a sample of another size")
    else:
        with may_refuse(path.name):
            image = read_image(path)
        check(image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8, "no RGB")
        check(min(image.shape[:2]) > 0, "no pixels")
        check(right is None or np.array_equal(image, right), "other pixels than before the damage")


def _demo(state: State, path: Path, folder: Path) -> None:
    """A readable image is drawn, whatever the other one is."""
    good = folder / "good.png"
    good.write_bytes(state.files["rgb.png"].read_bytes())
    failed = annotate(
        state.predictor, [str(path), str(good)], folder / "out", formats=["coco-results"]
    )
    names = {file.stem for file in (folder / "out").iterdir()}
    check({"good", "detections"} <= names, f"only {names} were written")
    check(failed + (path.stem in names) == 1, f"{failed} failed, {names} were written")
    if failed:
        raise RefusedError


def _pixels(state: State, case: Case) -> np.ndarray | None:
    """What must be read unless the file is refused; None where damage cannot be noticed.

    PNG has checksums; a header chunk that only describes colours may be damaged all the same.
    """
    if case.file.endswith(".png") and isinstance(case.what, Damage):
        return read_image(state.files[case.file])
    return None


def _make(source: Path, path: Path, what: Any) -> None:
    if isinstance(what, Damage):
        path.write_bytes(what.apply(source.read_bytes()))
    elif what is None:
        path.write_bytes(source.read_bytes())
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif isinstance(what, str):
        targets = {"itself": path.name, "/dev/zero": "/dev/zero", "image": str(source)}
        path.symlink_to(targets.get(what.removeprefix("link to "), "nothing"))
    elif len(what) == 2:
        mode = Image.open(source).mode
        try:
            Image.new(mode, what).save(path)
        except OSError as error:
            raise FaultError(f"the attack cannot write {mode} as {path.suffix}") from error
    else:
        _write_png(path, *what)


def _write_png(path: Path, width: int, height: int, depth: int, colour: int) -> None:
    """A PNG of zeros whose header says this size; at most 1 MB of the pixels are there."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = -(-width * depth * channels // 8) + 1
    pixels = zlib.compress(bytes(min(row * height, 1 << 20)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


ATTACK = Attack(
    "images",
    "an image damaged, of an absurd size, or replaced by a folder, FIFO or link",
    prepare,
    cases,
    run,
    per_round=10,
    seconds=60,
)

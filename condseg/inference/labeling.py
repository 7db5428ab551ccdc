"""Instances as pre-annotations of the labelling programs LabelMe and Label Studio."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condseg.inference import Outline
from condseg.inference.formats import Entry, bounds, write_json
from condseg.inference.instances import Instances
from condseg.structures import Category

_RUN_BITS = (3, 4, 8, 16)


class LabelMeWriter:
    """One json per image, for LabelMe: ``labelme/NAME.json``.

    The parts of an instance have a common group id. Masks without pixels are not written.

    Args:
        folder: of the files.
        outline: "polygon", which has no holes, or "rle" for LabelMe's masks, which are PNGs.
    """

    def __init__(self, folder: Path, outline: Outline) -> None:
        self.folder, self.outline = folder, outline
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, entry: Entry) -> None:
        """Writes the file of an image; that of an address contains the image."""
        height, width = entry.found.size
        file = Path(entry.file)
        shapes: list[dict[str, Any]] = []
        for group, instance in enumerate(entry.found, start=1):
            track = 0 if instance.tracks is None else int(instance.tracks[0])
            shared = {
                "label": str(instance.names[0]),
                "group_id": track or group,
                "description": f"{instance.scores[0]:.3f}",
                "flags": {},
            }
            shapes += [shared | shape for shape in self._shapes(instance.masks[0], instance)]
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative(file, self.folder) if file.is_file() else file.name,
            "imageData": None if file.is_file() else _png(entry.found.image),
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(self.folder / f"{entry.name}.json", content)

    def _shapes(self, mask: NDArray[np.bool_], instance: Instances) -> Iterator[dict[str, Any]]:
        if not mask.any():
            return
        if self.outline == "polygon":
            for points in instance.polygons()[0]:
                yield {"shape_type": "polygon", "points": points.tolist(), "mask": None}
            return
        rows, columns = bounds(mask)
        corners = [[columns.start, rows.start], [columns.stop - 1, rows.stop - 1]]  # inclusive
        yield {"shape_type": "mask", "points": corners, "mask": _png(mask[rows, columns])}

    def close(self) -> None:
        """All is written."""


class LabelStudioWriter:
    """Tasks with predictions, ``labelstudio.json``, and the labelling setup, ``labelstudio.xml``.

    Each part of an instance is a region. Images are named as Label Studio's local files, relative
    to the current folder, or by their address. Masks without pixels are not written.

    Args:
        folder: of the files.
        categories: the labels of the setup.
        outline: "polygon", which has no holes, or "rle" for brush regions.
        model: name of the model.
    """

    def __init__(
        self, folder: Path, categories: Sequence[Category], outline: Outline, model: str
    ) -> None:
        self.folder, self.outline, self.model = folder, outline, model
        self.kind = "polygonlabels" if outline == "polygon" else "brushlabels"
        self.categories = categories
        self.tasks: list[dict[str, Any]] = []

    def add(self, entry: Entry) -> None:
        """Takes the next image."""
        height, width = entry.found.size
        regions: list[dict[str, Any]] = []
        for instance in entry.found:
            shared = {
                "type": self.kind,
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": float(instance.scores[0]),
            }
            for value in self._values(instance):
                value[self.kind] = [str(instance.names[0])]
                regions.append({"id": f"region{len(regions) + 1}", **shared, "value": value})
        scores = entry.found.scores
        prediction = {
            "model_version": self.model,
            "score": float(scores.mean()) if len(scores) else 0.0,
            "result": regions,
        }
        self.tasks.append({"data": {"image": _local(entry.file)}, "predictions": [prediction]})

    def _values(self, instance: Instances) -> Iterator[dict[str, Any]]:
        height, width = instance.size
        if not instance.masks.any():
            return
        if self.outline == "rle":
            yield {"format": "rle", "rle": brush_rle(instance.masks[0])}
            return
        for points in instance.polygons()[0]:
            percent = points * 100 / (width, height)
            yield {"points": percent.tolist(), "closed": True}

    def close(self) -> None:
        """Writes the files."""
        write_json(self.folder / "labelstudio.json", self.tasks)
        tag = "PolygonLabels" if self.outline == "polygon" else "BrushLabels"
        labels = "\n".join(f"    <Label value={quoteattr(c.name)}/>" for c in self.categories)
        (self.folder / "labelstudio.xml").write_text(
            f'<View>\n  <Image name="image" value="$image"/>\n  <{tag} name="label" '
            f'toName="image">\n{labels}\n  </{tag}>\n</View>\n',
            encoding="utf-8",
        )


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a brush region: runs of the values 0 and 255, four for each pixel (RGBA).

    The header has the number of values (32 bits), the bits of a value less 1 (5), and four
    lengths in bits less 1 (4 each). A run has a 1, the index of its length (2 bits), its number of
    values less 1 with this length, and its value (8).

    Source:
        Label Studio's ``brush.py`` and thi.ng/rle-pack, whose format this is.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        values, value = 4 * (end - start), f"{255 * int(flat[start]):08b}"
        while values > 0:
            count = min(values, 1 << _RUN_BITS[-1])
            index = next(i for i, size in enumerate(_RUN_BITS) if count <= 1 << size)
            bits.append(f"1{index:02b}{count - 1:0{_RUN_BITS[index]}b}{value}")
            values -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> str:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode("ascii")


def _relative(file: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive
        return str(file.resolve())


def _local(file: str) -> str:
    if "://" in file:
        return file
    return f"/data/local-files/?d={quote(_relative(Path(file), Path.cwd()))}"

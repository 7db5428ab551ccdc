"""Image files, and the depth maps that belong to them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condseg.data.images import read_depth, read_image
from condseg.inference.predictor import Predictor

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files of files, folders and patterns, each once, and the inputs without any.

    A folder stands for the images directly in it, a pattern (``*``, ``?``, ``[...]``, ``**``) for
    those that match; both by the suffixes of image files. A file that is named is used as it is.
    """
    images: dict[Path, Path] = {}
    without = []
    for text in inputs:
        path = Path(text)
        paths = path.iterdir() if path.is_dir() else map(Path, glob.glob(text, recursive=True))
        matches = sorted(p for p in paths if p.is_file() and p.suffix.lower() in SUFFIXES)
        matches = [path] if path.is_file() else matches
        if not matches:
            without.append(text)
        for match in matches:
            images.setdefault(match.resolve(), match)
    return list(images.values()), without


def find_depths(
    predictor: Predictor, images: Sequence[Path], depth: str | Path | None
) -> list[Path | None]:
    """The depth map of each image; None for a network without depth.

    ``depth`` is the map of a single image, or a folder of maps with the images' names and the
    suffix .png.

    Raises:
        ValueError: ``depth`` is missing or not supported by the network, or two images would
            have the same depth map.
    """
    if depth is None:
        if predictor.network.takes_depth:
            raise ValueError(
                "the checkpoint's network takes depth; --depth is needed: the depth map (16-bit "
                "PNG) of a single image, or a folder of maps with the images' names"
            )
        return [None] * len(images)
    if not predictor.network.takes_depth:
        raise ValueError(f"depth is {str(depth)!r}, but the checkpoint's network takes none")
    path = Path(depth)
    in_folder = path.is_dir()
    maps: list[Path | None] = [path / f"{i.stem}.png" if in_folder else path for i in images]
    counts = Counter(maps)
    shared = [str(i) for i, depth_map in zip(images, maps, strict=True) if counts[depth_map] > 1]
    if shared:
        raise ValueError(
            f"depth is {str(depth)!r}, in which {', '.join(shared[:3])} have the same depth map; "
            "one per image is allowed"
        )
    return maps


def read_pair(
    path: Path, depth: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Reads an image and, if there is one, its depth map.

    Raises:
        ValueError: a file cannot be read, or their sizes differ.
    """
    image: NDArray[np.uint8] = read_image(path)
    if depth is None:
        return image, None
    try:
        return image, read_depth(depth, (image.shape[0], image.shape[1]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

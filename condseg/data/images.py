"""Picture files of every kind -> (H, W, 3) RGB, 0..255; depth maps -> (H, W)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps

from condseg.structures import Size

_DEPTHS = (8, 10, 12, 14, 16)


def read_image(path: str | Path, *, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture as people see it.

    Grey becomes three equal channels; palette, CMYK and other colour modes become RGB; what is
    transparent lies on white; the EXIF orientation is carried out; of an animation, the first
    frame. 16 bits a channel in colour keep the upper 8. 16-bit grey is divided by the full scale
    of the least depth among 8, 10, 12, 14 and 16 bits that holds its brightest pixel, for
    cameras with 12 bits write them into the lower end of 16.

    Args:
        path: the file.
        upright: carry out the EXIF orientation; otherwise the pixels as they are stored.

    Raises:
        ValueError: the file is missing, empty, cut off, no picture, or of a kind without a
            defined white (32-bit, floating point); the message names it.
    """

    def pixels(image: Image.Image) -> np.ndarray:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image) if upright else image))

    return _read(Path(path), "picture", pixels)


def read_depth(path: str | Path, size: Size) -> UInt16[np.ndarray, "h w"]:
    """Reads a depth map: grey with 16 bits, in its own unit, 0 where nothing was measured.

    Args:
        path: the file, a PNG as a rule.
        size: (height, width) that it must have, that of its picture.

    Raises:
        ValueError: the file is missing, empty, cut off, no depth map, or of another size; the
            message names it.
    """

    def pixels(image: Image.Image) -> np.ndarray:
        values = np.asarray(image)
        # Pillow has had 16-bit PNGs as 32-bit integers, too.
        if not image.mode.startswith("I") or values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"its pixels are of Pillow's mode {image.mode}; 16-bit grey is needed")
        return values.astype(np.uint16)

    depth = _read(Path(path), "depth map", pixels)
    if depth.shape != size:
        raise ValueError(
            f"{path}: the depth map is {depth.shape[0]}x{depth.shape[1]} (height x width), its "
            f"picture {size[0]}x{size[1]}; the same is allowed"
        )
    return depth


def _read(path: Path, kind: str, pixels: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """The pixels of a file; whatever is wrong with it is a ValueError that names it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such {kind} file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes); expected a {kind}")
    try:
        with Image.open(path) as image:
            image.load()
            return pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: cannot be read as a {kind}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _deep_grey(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= 1 << 16:
        raise ValueError(f"grey values {low}..{high}; 0..65535 is allowed")
    full = next((1 << depth) - 1 for depth in _DEPTHS if high < 1 << depth)
    return Image.fromarray((pixels * 255 // full).astype(np.uint8)).convert("RGB")

"""Image files -> (H, W, 3) RGB, 0..255; depth maps -> (H, W)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, ImageOps

from condseg.data.limits import check_pixels
from condseg.structures import Size

_DEPTHS = (8, 10, 12, 14, 16)
_BLOCK = 2**20  # pixels
# Without those that hardly occur; for EPS, Pillow runs Ghostscript.
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
T = TypeVar("T")
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")


def read_image(path: str | Path, *, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image as RGB.

    Grey becomes three equal channels; palette, CMYK and other colour modes become RGB;
    transparent pixels are blended with white; EXIF orientation is applied; an animation yields
    its first frame. Colour with 16 bits per channel keeps the upper 8. 16-bit grey is divided by
    the full scale of the smallest depth among 8, 10, 12, 14 and 16 bits that holds its maximum,
    since 12-bit cameras use the lower bits of 16.

    Args:
        path: the file.
        upright: apply the EXIF orientation; otherwise return the pixels as stored.

    Raises:
        ValueError: the file is missing, empty, truncated, no image, has more than MAX_PIXELS
            pixels (``condseg.data.limits``), or no defined white (32-bit, floating point).
    """

    def pixels(image: Image.Image) -> np.ndarray:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)

    return _read(Path(path), "image", pixels)


def read_size(path: str | Path) -> Size:
    """(height, width) of the upright image, by the file's header.

    Raises:
        ValueError: the file is missing, empty, no image, or has more than MAX_PIXELS pixels.
    """

    def size(image: Image.Image) -> Size:
        sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        swapped = sideways and image.format != "TIFF"  # whose size Pillow has swapped
        return (image.width, image.height) if swapped else (image.height, image.width)

    return _open(Path(path), "image", size)


def rgb_of(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an opened image, upright, as of :func:`read_image`.

    Raises:
        ValueError: the image has no defined white (32-bit, floating point).
    """
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def read_depth(path: str | Path, size: Size) -> UInt16[np.ndarray, "h w"]:
    """Reads a depth map: 16-bit grey in the file's own unit, 0 where nothing was measured.

    Args:
        path: the file, usually a PNG.
        size: (height, width) of its image, which it must have too.

    Raises:
        ValueError: the file is missing, empty, truncated, no depth map, or of another size.
    """

    def pixels(image: Image.Image) -> np.ndarray:
        values = np.asarray(image)
        # Some Pillow versions open 16-bit PNGs as 32-bit integers.
        if not image.mode.startswith("I") or values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"its Pillow mode is {image.mode}; 16-bit grey is required")
        return values.astype(np.uint16)

    depth = _read(Path(path), "depth map", pixels)
    if depth.shape != size:
        raise ValueError(
            f"{path}: the depth map is {depth.shape[0]}x{depth.shape[1]} (height x width), its "
            f"image {size[0]}x{size[1]}; both must be equal"
        )
    return depth


def _read(path: Path, kind: str, pixels: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """The pixels of a file."""

    def load(image: Image.Image) -> np.ndarray:
        image.load()
        return pixels(image)

    # A PNG's checksums, which decoding does not all compare.
    _open(path, kind, lambda image: image.verify())
    return _open(path, kind, load)


def _open(path: Path, kind: str, use: Callable[[Image.Image], T]) -> T:
    """Opens a file; any error is a ValueError that names the file."""
    if not path.is_file():
        problem = f"no such {kind} file"
        if os.path.lexists(path):
            problem = "a folder, device, pipe or broken link; expected a file"
        raise ValueError(f"{path}: {problem}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            image = Image.open(path, formats=FORMATS)
        with image:
            check_pixels(image.height, image.width)
            return use(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, ...
        article = "an" if kind == "image" else "a"
        text = " ".join(str(error).split())
        if path.suffix.lower() in (".heic", ".heif") and "HEIF" not in Image.OPEN:
            text = "HEIC needs pillow-heif: pip install 'condseg[heif]'"
        raise ValueError(f"{path}: cannot be read as {article} {kind}: {text}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode.startswith("I"):
        return _deep_grey(np.asarray(image))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white; allowed are 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _deep_grey(pixels: np.ndarray) -> np.ndarray:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= 1 << 16:
        raise ValueError(f"grey values {low}..{high}; allowed is 0..65535")
    full = next((1 << depth) - 1 for depth in _DEPTHS if high < 1 << depth)
    rgb = np.empty((*pixels.shape, 3), dtype=np.uint8)
    values, colours = pixels.reshape(-1, 1), rgb.reshape(-1, 3)
    for start in range(0, len(values), _BLOCK):  # products of 32 bits for a few pixels at a time
        block = slice(start, start + _BLOCK)
        colours[block] = values[block].astype(np.uint32) * 255 // full
    return rgb

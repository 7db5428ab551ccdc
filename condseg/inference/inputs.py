"""An image of any kind that Python users have -> RGB pixels."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from condseg.data.fetch import answer
from condseg.data.images import read_image, rgb_of

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A path, an address (http, https), a PIL image, an RGB array (H, W, 3) of uint8, or an RGB tensor
(3, H, W) of uint8 or of floats 0..1."""

MAX_BYTES = 256 << 20
"""Of an image that is downloaded."""


def read_source(source: ImageSource) -> tuple[NDArray[np.uint8], str]:
    """The pixels (H, W, 3) of an image, and its path or address if it has one, else "".

    Pillow's pixels are read-only, and copied.

    Raises:
        ValueError: it cannot be read or downloaded, or has another shape or type.
    """
    if isinstance(source, Image.Image):
        return rgb_of(source).copy(), str(getattr(source, "filename", ""))
    if isinstance(source, np.ndarray):
        return source, ""
    if isinstance(source, Tensor):
        return _tensor_pixels(source), ""
    text = os.fspath(source)
    if urlsplit(text).scheme in ("http", "https"):
        return _download(text).copy(), text
    return read_image(text).copy(), text


def _tensor_pixels(image: Tensor) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"image is a tensor of shape {tuple(image.shape)}; (3, H, W) is allowed, and a list of "
            "such"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = (float(image.min()), float(image.max())) if image.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"image is a tensor of floats {low:g}..{high:g}; 0..1 is allowed (without "
                "normalization), or uint8"
            )
        image = (image.float() * 255).round().byte()
    elif image.dtype != torch.uint8:
        raise ValueError(f"image is a tensor of {image.dtype}; uint8 or floats 0..1 are allowed")
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels


def _download(url: str) -> NDArray[np.uint8]:
    request = Request(url, headers={"User-Agent": "condseg"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        with answer(request, timeout=60.0) as response:
            content = response.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{url}: has more than {MAX_BYTES} bytes, which is the limit")
        path.write_bytes(content)
        try:
            return read_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), url)) from error

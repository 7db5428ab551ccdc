"""What is refused before memory is exhausted, or before pycocotools' C code fails on it."""

from __future__ import annotations

MAX_PIXELS = 3 * 2**24
"""Of an image: 50,331,648, such as 8192 x 6144.

A run of this length takes up to six characters of compressed RLE, for which pycocotools allocates
memory, without one for the end: in larger images, an RLE may have only such runs.
"""

MAX_OUTLINE = 2**22
"""Pixels of a polygon's outline: pycocotools needs about 120 bytes for each."""

MAX_OBJECTS = 2**16 - 1
"""Objects of an image, which index maps number by 16 bits."""


def check_pixels(height: int, width: int) -> None:
    """Raises ValueError unless there are 1 to MAX_PIXELS pixels."""
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"the image is {height}x{width} (height x width); allowed are 1 to {MAX_PIXELS} "
            "pixels, such as 8192x6144"
        )

"""Images and videos that a user names, and the depth maps that belong to the images."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condseg.data.images import FORMATS, read_depth
from condseg.inference.inputs import read_source
from condseg.inference.predictor import Predictor

# fmt: off
IMAGES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx",
}
VIDEOS = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
    ".ogv", ".mts", ".m2ts",
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Source:
    """What one output is written for.

    Attributes:
        location: a file, an address, or the number of a camera.
    """

    location: Path | str | int

    @property
    def is_video(self) -> bool:
        """A camera, a stream (rtsp, ...), or a file or an http address with a video's suffix."""
        if isinstance(self.location, str) and not self.location.startswith(("http:", "https:")):
            return True
        return isinstance(self.location, int) or self.path.suffix.lower() in VIDEOS

    @property
    def path(self) -> Path:
        """The file, or the path in the address, which names the output."""
        if isinstance(self.location, Path):
            return self.location
        if isinstance(self.location, int):
            return Path(str(self))
        return Path(unquote(urlsplit(self.location).path))

    def __str__(self) -> str:
        return f"camera{self.location}" if isinstance(self.location, int) else str(self.location)


@dataclass(slots=True)
class Inputs:
    """What the user named.

    Attributes:
        sources: each once, in the order in which they were named.
        without: the inputs in which nothing was found.
        skipped: number of files in folders and of patterns that are not used, by their suffix.
    """

    sources: list[Source] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self) -> str:
        """ "3 files that are neither images nor videos: 2 .txt, 1 .xml"."""
        count = self.skipped.total()
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.skipped.most_common(8))
        more = ", ..." if len(self.skipped) > 8 else ""
        what = "file that is neither image nor video"
        if count != 1:
            what = "files that are neither images nor videos"
        return f"{count} {what}: {kinds}{more}"


def find_inputs(inputs: Iterable[str]) -> Inputs:
    """Images and videos: files, folders, patterns, addresses, the number of a camera, ``-``.

    A folder stands for the images and videos directly in it, a pattern (``*``, ``?``, ``[...]``,
    ``**``) for those that match; both by their suffixes, and by the content of files without a
    suffix. A file that is named is used as it is. ``-`` reads inputs from stdin, one a line.
    """
    found = Inputs()
    sources: dict[Path | str | int, Source] = {}
    skipped: dict[Path, str] = {}
    for text in _with_stdin(inputs):
        if "://" in text:
            sources.setdefault(text, Source(text))
            continue
        path = Path(text)
        if text.isdecimal() and not path.exists():
            sources.setdefault(int(text), Source(int(text)))
            continue
        if path.is_file():
            sources.setdefault(path.resolve(), Source(path))
            continue
        paths = path.iterdir() if path.is_dir() else map(Path, _matching(text))
        files = sorted(p for p in paths if p.is_file())
        matches = [file for file in files if _is_usable(file)]
        for file in matches:
            sources.setdefault(file.resolve(), Source(file))
        for file in set(files) - set(matches):
            skipped[file.resolve()] = file.suffix.lower() or "without suffix"
        if not matches:
            found.without.append(text)
    found.sources += sources.values()
    found.skipped.update(kind for path, kind in skipped.items() if path not in sources)
    return found


def _matching(pattern: str) -> Iterator[str]:
    """As ``glob.glob``, whose ``**`` follows links, also in a loop; this one does not."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    position = parts.index("**")
    rest = parts[position + 1 :] or ("*",)
    for top in glob.glob(os.path.join(".", *parts[:position])):
        for folder, inside, _ in os.walk(top):
            inside[:] = [name for name in inside if not name.startswith(".")]
            yield from _matching(os.path.join(glob.escape(folder), *rest))


def _with_stdin(inputs: Iterable[str]) -> Iterable[str]:
    for text in inputs:
        if text == "-":
            yield from (line for line in sys.stdin.read().splitlines() if line)
        else:
            yield text


def _is_usable(file: Path) -> bool:
    if file.suffix:
        return file.suffix.lower() in IMAGES | VIDEOS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(file, formats=FORMATS).close()
    except Exception:  # Pillow's readers raise OSError, SyntaxError, struct.error, ...
        return False
    return True


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
    location: Path | str, depth: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Reads an image and, if there is one, its depth map.

    Raises:
        ValueError: a file cannot be read or downloaded, or their sizes differ.
    """
    image, _ = read_source(location)
    if depth is None:
        return image, None
    try:
        return image, read_depth(depth, (image.shape[0], image.shape[1]))
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from error

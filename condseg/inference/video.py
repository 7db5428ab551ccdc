"""Frames of video files, streams and cameras; video files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_UNIT = 90_000
"""Ticks per second of the times in a written file."""
_FILES = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg",
}
"""For files, without playlists, which name further files and addresses."""
_TIMEOUT = 20.0
"""Seconds to wait for a stream."""


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        seconds: since the start.
        image: (H, W, 3) RGB, upright.
    """

    seconds: float
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Video:
    """A video that is being read.

    Attributes:
        rate: frames per second, by its header.
        frames: their number by its header; None if it has no end or the number is not known.
        endless: it has no end: a camera, a stream.
        images: its frames, once.
    """

    rate: float
    frames: int | None
    endless: bool
    images: Iterator[Frame]


@contextmanager
def open_video(location: Path | str | int) -> Iterator[Video]:
    """Opens a file, an address (rtsp, http, ...), or the camera of a number.

    Raises:
        ValueError: it cannot be read, also while its frames are read; or PyAV is not installed.
    """
    if isinstance(location, int):
        camera = cv2.VideoCapture(location)
        try:
            if not camera.isOpened():
                raise ValueError(f"camera {location}: cannot be opened")
            rate = camera.get(cv2.CAP_PROP_FPS)
            yield Video(rate if rate > 0 else 30.0, None, True, _camera_frames(camera))
        finally:
            camera.release()
        return
    av = _av(location)
    is_file = isinstance(location, Path)
    try:
        container = av.open(
            str(location),
            options=_FILES if is_file else {},
            timeout=None if is_file else _TIMEOUT,
        )
    except (OSError, av.FFmpegError) as error:
        raise _unreadable(location, error) from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{location}: has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        length = None if container.duration is None else container.duration / av.time_base
        endless = not is_file and not length
        frames = stream.frames or (round(length * rate) if length else None)
        yield Video(rate, frames, endless, _stream_frames(av, container, stream, location, rate))


class VideoWriter:
    """Writes frames to an mp4 file with H.264, which players and browsers show.

    The file is opened by the first frame, whose size all must have. Odd sides are extended by a
    pixel, as the format needs even ones.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._container: Any = None
        self._last = -1

    def write(self, frame: Frame) -> None:
        """Appends a frame; one that is not later than the last is shown a tick later."""
        av = _av(self.path)
        height, width = frame.image.shape[:2]
        image = np.pad(frame.image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._container = av.open(str(self.path), "w")
            rate = Fraction(self.rate).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height = image.shape[1], image.shape[0]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _UNIT)
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._last = max(self._last + 1, round(frame.seconds * _UNIT))
        picture.pts, picture.time_base = self._last, Fraction(1, _UNIT)
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()


def _av(location: Path | str) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{location}: videos need PyAV: pip install 'condseg[video]'") from error
    module: ModuleType = av
    return module


def _stream_frames(
    av: ModuleType, container: Any, stream: Any, location: Path | str, rate: float
) -> Iterator[Frame]:
    start = None
    try:
        for number, frame in enumerate(container.decode(stream)):
            seconds = number / rate if frame.time is None else frame.time
            start = seconds if start is None else start
            image = frame.to_ndarray(format="rgb24")
            turned = np.rot90(image, frame.rotation // 90)  # counterclockwise
            yield Frame(seconds - start, np.ascontiguousarray(turned))
    except (OSError, av.FFmpegError) as error:
        raise _unreadable(location, error) from error


def _camera_frames(camera: Any) -> Iterator[Frame]:
    start = time.perf_counter()
    while True:
        read, image = camera.read()
        if not read:
            return
        yield Frame(time.perf_counter() - start, np.ascontiguousarray(image[:, :, ::-1]))


def _unreadable(location: Path | str, error: Exception) -> ValueError:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return ValueError(f"{location}: cannot be read as a video: {text}")

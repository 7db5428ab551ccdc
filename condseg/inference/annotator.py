"""Predicts the instances of an image or a video, draws them, and passes them to the writers."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress, TaskID

from condseg.inference import ColorBy
from condseg.inference.drawing import legible_scale
from condseg.inference.formats import Entry, Writer
from condseg.inference.instances import Instances, describe
from condseg.inference.predictor import Predictor
from condseg.inference.sources import Source, read_pair
from condseg.inference.tracking import Tracker
from condseg.inference.video import Frame, VideoWriter, open_video


class Annotator:
    """Predicts, draws and writes one source after the other.

    Args as of :func:`condseg.inference.annotate.annotate`; ``sources`` is their number.

    Attributes:
        done: number of images and frames until now.
        task: of the progress.
    """

    def __init__(
        self,
        predictor: Predictor,
        score: float,
        color_by: ColorBy | None,
        save_frames: bool,
        writers: Sequence[Writer],
        progress: Progress,
        sources: int,
    ) -> None:
        self.predictor, self.score = predictor, score
        self.color_by, self.save_frames = color_by, save_frames
        self.writers, self.progress = writers, progress
        self.done = 0
        self.task: TaskID = progress.add_task("", total=sources)

    def image(self, source: Source, depth: Path | None, target: Path) -> None:
        """An image.

        Raises:
            ValueError: it cannot be read or drawn.
        """
        assert not isinstance(source.location, int)
        image, depth_map = read_pair(source.location, depth)
        start = time.perf_counter()
        detections = self.predictor(image, depth_map)
        found = Instances.of(detections, self.predictor.categories, image, str(source))
        seconds = time.perf_counter() - start
        shown = found[found.scores >= self.score]
        color_by: ColorBy = "class" if self.color_by == "class" else "instance"
        drawn = shown.draw(color_by=color_by, scale=legible_scale(*shown.size))
        _save(drawn, target)
        what = describe(shown.labels, shown.scores, shown.categories)
        print(f"{source}: {what} ({seconds:.2f} s) -> {target}")
        if len(found) > len(shown) == 0:
            best = f"{found.names[0]} {found.scores[0]:.2f}"
            print(f"  nothing reaches --score {self.score:g}; the best is {best}")
        self._write(Entry(str(source), target.stem, shown))

    def video(self, source: Source, target: Path) -> None:
        """A video; Ctrl-C ends one that has no end.

        Raises:
            ValueError: it cannot be read, or its colors not be chosen.
        """
        color_by = self.color_by or "track"
        classes: dict[int, Counter[str]] = defaultdict(Counter)
        start, count = time.perf_counter(), 0
        with open_video(source.location) as video, VideoWriter(target, video.rate) as writer:
            tracker, predictor = None, self.predictor
            if color_by == "track":  # an object found as two classes would have two tracks
                tracker = Tracker(self.score, video.rate)
                predictor = predictor.with_options(class_agnostic_nms=True)
            self._expect(video.frames)
            try:
                for frame in video.images:
                    detections = predictor(frame.image)
                    found = Instances.of(detections, predictor.categories, frame.image, str(source))
                    if tracker is not None:
                        found = tracker(found, frame.seconds)
                    shown = found[found.scores >= self.score]
                    drawn = shown.draw(color_by=color_by, scale=legible_scale(*shown.size))
                    writer.write(Frame(frame.seconds, np.asarray(drawn)))
                    self._write_frame(shown, source, target, count)
                    if shown.tracks is not None:
                        for track, name in zip(shown.tracks, shown.names, strict=True):
                            classes[int(track)][str(name)] += 1
                    count += 1
                    if count > 1:
                        self.progress.advance(self.task)
            except KeyboardInterrupt:
                if not video.endless:
                    raise
        if count == 0:
            raise ValueError(f"{source}: has no frames")
        rate = count / (time.perf_counter() - start)
        objects = Counter(names.most_common(1)[0][0] for track, names in classes.items() if track)
        what = ", ".join(f"{number} {name}" for name, number in objects.most_common())
        found_text = f", {what or 'nothing'}" if tracker is not None else ""
        print(f"{source}: {count} frames{found_text} ({rate:.3g} frames/s) -> {target}")
        if video.frames is not None and count < 0.9 * video.frames:
            raise ValueError(f"{source}: ends after {count} of {video.frames} frames")

    def _expect(self, frames: int | None) -> None:
        """Frames count as images in the progress, which has no end if their number is unknown."""
        total = self.progress.tasks[0].total
        known = None if frames is None or total is None else total + frames - 1
        self.progress.update(self.task, total=known)

    def _write_frame(self, shown: Instances, source: Source, target: Path, number: int) -> None:
        path = target.with_name(f"{target.stem}_frames") / f"{number:06}.jpg"
        if self.save_frames:
            path.parent.mkdir(exist_ok=True)
            _save(Image.fromarray(shown.image), path)
        self._write(Entry(str(path), f"{target.stem}_{number:06}", shown, str(source), number))

    def _write(self, entry: Entry) -> None:
        self.done += 1
        for writer in self.writers:
            writer.add(entry)


def _save(drawn: Image.Image, target: Path) -> None:
    try:
        drawn.save(target, quality=92)
    except OSError as error:
        if error.errno is not None:  # of the system, which concerns all files
            raise
        raise ValueError(f"{target}: cannot be written: {error}") from error

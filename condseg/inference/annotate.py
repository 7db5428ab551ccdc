"""Predicts the instances of images and videos, draws them, and writes them in other formats."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress, TaskID

from condseg.inference import SCORE_THRESHOLD, ColorBy, Format, Outline
from condseg.inference.drawing import legible_scale
from condseg.inference.formats import CocoWriter, Entry, Writer
from condseg.inference.instances import Instances, describe
from condseg.inference.labeling import LabelMeWriter, LabelStudioWriter
from condseg.inference.predictor import Predictor
from condseg.inference.progress import image_progress
from condseg.inference.sources import Source, find_depths, find_inputs, read_pair
from condseg.inference.tracking import Tracker
from condseg.inference.video import Frame, VideoWriter, open_video


def output_paths(sources: Sequence[Source], folder: Path) -> list[Path]:
    """The file to write for each source: its name in ``folder``, .jpg for JPEGs, .mp4, else .png.

    Sources of the same name, whatever their suffix, become ``name``, ``name_2``, ``name_3``; no
    input is overwritten.
    """
    files = [s.location.resolve() for s in sources if isinstance(s.location, Path)]
    taken = {file.parent / file.stem for file in files}
    paths = []
    for source in sources:
        kind = source.path.suffix.lower()
        suffix = ".jpg" if kind in (".jpg", ".jpeg", ".jpe", ".jfif") else ".png"
        stem, number = source.path.stem or "image", 1
        name = stem
        while folder.resolve() / name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(folder.resolve() / name)
        paths.append(folder / (name + (".mp4" if source.is_video else suffix)))
    return paths


def annotate(
    predictor: Predictor,
    inputs: Sequence[str],
    output: str | Path = "out",
    score: float = SCORE_THRESHOLD,
    formats: Sequence[Format] = (),
    outline: Outline = "polygon",
    depth: str | Path | None = None,
    color_by: ColorBy | None = None,
    save_frames: bool = False,
    model: str = "condseg",
) -> int:
    """Predicts the instances of each image and video, and draws them; prints one line for each.

    Small images are enlarged, so that their labels fit. A file that cannot be read or drawn is
    reported, and the others are still processed.

    Args:
        predictor: the model.
        inputs: see :func:`condseg.inference.sources.find_inputs`.
        output: folder of the drawn images and videos and of the formats' files.
        score: min score of the instances that are drawn and written.
        formats: also write the instances in these.
        outline: see the writers in ``formats.py`` and ``labeling.py``.
        depth: see :func:`condseg.inference.sources.find_depths`.
        color_by: see :func:`condseg.inference.drawing.draw`; by default "track" in videos, else
            "instance".
        save_frames: write the frames of videos, not drawn into, to ``NAME_frames/``.
        model: name of the model.

    Returns:
        The number of inputs that could not be processed.

    Raises:
        ValueError: there is no input, ``score`` is outside its range, a combination is not
            supported, or :func:`find_depths`.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    found = find_inputs(inputs)
    skipped = f"skipped {found.describe_skipped()}" if found.skipped else ""
    if not found.sources:
        where = ", ".join(map(repr, found.without))
        raise ValueError(f"no images in {where}{skipped and '; ' + skipped}")
    _check(found.sources, predictor, formats, color_by, save_frames)
    images = [source.path for source in found.sources if not source.is_video]
    depths = iter(find_depths(predictor, images, depth) if images else [])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    writers = [_writer(name, folder, predictor, outline, model) for name in formats]
    errors = [f"no images in {text!r}" for text in found.without]
    if skipped:
        print(skipped, file=sys.stderr)
    start = time.perf_counter()
    with image_progress() as progress:
        run = _Run(predictor, score, color_by, save_frames, writers, progress, len(found.sources))
        for source, target in zip(found.sources, output_paths(found.sources, folder), strict=True):
            depth_file = None if source.is_video else next(depths)
            try:
                if source.is_video:
                    run.video(source, target)
                else:
                    run.image(source, depth_file, target)
            except ValueError as error:
                errors.append(str(error))
            except KeyboardInterrupt:
                errors.append(f"interrupted at {source}; what was found until then is written")
                break
            progress.advance(run.task)
    for writer in writers:
        writer.close()
    seconds = time.perf_counter() - start
    if run.done > 1:
        print(f"{run.done} images in {seconds:.1f} s ({run.done / seconds:.3g} images/s)")
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    return len(errors)


class _Run:
    """Predicts, draws and writes one source after the other.

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


def _check(
    sources: Sequence[Source],
    predictor: Predictor,
    formats: Sequence[Format],
    color_by: ColorBy | None,
    save_frames: bool,
) -> None:
    video = next((source for source in sources if source.is_video), None)
    if video is None:
        if color_by == "track":
            raise ValueError("color_by is 'track', which videos have; there is none")
        return
    if predictor.network.takes_depth:
        raise ValueError(f"{video}: the checkpoint's network takes depth, which videos have not")
    needs = [name for name in formats if name in ("labelme", "labelstudio")]
    if needs and not save_frames:
        raise ValueError(f"{video}: --format {needs[0]} of a video needs --save_frames")


def _writer(
    name: Format, folder: Path, predictor: Predictor, outline: Outline, model: str
) -> Writer:
    categories = predictor.categories
    if name == "labelme":
        return LabelMeWriter(folder / "labelme", outline)
    if name == "labelstudio":
        return LabelStudioWriter(folder, categories, outline, model)
    dataset = name == "coco"
    file = folder / ("instances.json" if dataset else "detections.json")
    return CocoWriter(file, categories, dataset=dataset, outline=outline)


def _save(drawn: Image.Image, target: Path) -> None:
    try:
        drawn.save(target, quality=92)
    except OSError as error:
        if error.errno is not None:  # of the system, which concerns all files
            raise
        raise ValueError(f"{target}: cannot be written: {error}") from error

"""Predicts the instances of images and videos, draws them, and writes them in other formats."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from condseg.inference import SCORE_THRESHOLD, ColorBy, Format, Outline
from condseg.inference.annotator import Annotator
from condseg.inference.formats import CocoWriter, Writer
from condseg.inference.labeling import LabelMeWriter, LabelStudioWriter
from condseg.inference.predictor import Predictor
from condseg.inference.progress import image_progress
from condseg.inference.sources import Source, find_depths, find_inputs


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
        run = Annotator(
            predictor, score, color_by, save_frames, writers, progress, len(found.sources)
        )
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

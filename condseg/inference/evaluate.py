"""Evaluation of a COCO set on one or several processes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from condseg.data.collate import collate
from condseg.data.datamodule import one_thread
from condseg.data.dataset import CocoDataset
from condseg.data.files import DataNotFoundError, data_root, find_files
from condseg.evaluation import CocoEvaluator, Report
from condseg.inference.predictor import Predictor
from condseg.inference.stages import Stages


def evaluate(
    predictor: Predictor,
    data: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    batch_size: int = 1,
    workers: int = 2,
    output: str | Path | None = None,
    stages: Stages | None = None,
    visibility: tuple[float, float] | None = None,
    on_report: Callable[[Report, float], object] | None = None,
) -> tuple[Report, float]:
    """Box and mask AP on a set, on all processes of torchrun or on this one.

    Args:
        predictor: the model.
        data: "tabletop", or a folder as for ``condseg.data.datamodule.DataModule``. Without
            ``data``, ``annotations`` and ``images``: the validation set of the training.
        annotations: COCO ground truth, instead of the file found in ``data``.
        images: folder of its images.
        batch_size: images per step and process. With 1, results depend neither on the padding
            of other images nor on the number of processes.
        workers: processes that load images, per process.
        output: folder for ``results_box.json``, ``results_mask.json`` (COCO's results format) and
            ``summary.json``; None writes nothing. It is created and tried before the evaluation.
        stages: measures this process's time; by default without waiting for a GPU, whose work then
            counts where its results are read.
        visibility: evaluate only objects of this visible share, see :class:`CocoEvaluator`.
        on_report: called with what is returned, on the first process, before files are written.

    Returns:
        The report, the same on each process, and images per second of all processes together.

    Raises:
        ValueError, OSError: the files are missing or wrong.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"batch_size is {batch_size}, workers is {workers}; 1 or more, 0 or more are allowed"
        )
    files = _val_files(predictor.restored.data, data, annotations, images)
    if output is not None and is_main_process():
        try_to_write(Path(output))
    stages = Stages(torch.device("cpu")) if stages is None else stages
    with _process_group() as (rank, world_size):
        dataset = CocoDataset(*files, predictor.transform, depth=predictor.network.takes_depth)
        limit = predictor.postprocess.max_detections
        evaluator = CocoEvaluator(files[0], predictor.categories, limit, visibility, files[1])
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=range(rank, len(dataset), world_size),
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=one_thread,
            pin_memory=predictor.device.type == "cuda",
        )
        finish = stages.timed(evaluator.finish, "RLE")  # of the images before
        start = time.perf_counter()
        with (
            Progress(console=Console(stderr=True), disable=rank > 0) as progress,
            predictor.timed(stages),
        ):
            batches = progress.track(loader, description="evaluating")
            for batch in stages.each("load", batches):
                detections = predictor.detect(batch, meanwhile=finish)
                with stages("RLE"):
                    evaluator.update(batch.infos, detections)
        seconds = time.perf_counter() - start
        report = evaluator.compute()
        if on_report is not None and rank == 0:
            on_report(report, report.images / seconds)
        if output is not None and rank == 0:
            settings = {
                "model": predictor.restored.source,
                "trained_on": predictor.restored.trained_on,
                "steps": predictor.restored.steps,
                "annotations": str(files[0]),
                "images": str(files[1]),
                "score_threshold": predictor.postprocess.score_threshold,
                "max_detections": limit,
                "precision": predictor.precision,
                "visibility": visibility,
                "images_per_second": report.images / seconds,
                "seconds_by_stage": stages.seconds,
            }
            write_results(Path(output), evaluator, report, settings)
    return report, report.images / seconds


def is_main_process() -> bool:
    """Whether this is the only process or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def try_to_write(folder: Path) -> None:
    """Creates a folder and a file in it, which is removed.

    Raises:
        ValueError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output {folder}: no file can be written there ({error})") from error


def write_results(
    folder: Path, evaluator: CocoEvaluator, report: Report, settings: dict[str, Any]
) -> None:
    """Writes the detections in COCO's results format, and the figures with their settings."""
    for kind in ("box", "mask"):
        (folder / f"results_{kind}.json").write_text(json.dumps(evaluator.results(kind)))
    summary = json.dumps({**settings, **report.as_dict()}, indent=2, ensure_ascii=False)
    (folder / "summary.json").write_text(summary, encoding="utf-8")


def _val_files(
    trained: dict[str, Any], data: str | None, annotations: str | None, images: str | None
) -> tuple[Path, Path]:
    """The validation json and image folder: by the arguments, else as in the training."""
    if data is None and annotations is None and images is None:
        annotations, images = trained.get("val_annotations"), trained.get("val_images")
        data = trained.get("root")
    try:
        return find_files(data_root(data or "."), "val", annotations, images)
    except DataNotFoundError as error:
        raise FileNotFoundError(
            f"{error.problem}; --data (a folder, or tabletop), or --annotations and --images name "
            "the set to evaluate"
        ) from error


@contextmanager
def _process_group() -> Iterator[tuple[int, int]]:
    """(rank, world size) by torchrun's environment; gloo, for only records are exchanged."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), world_size
    finally:
        dist.destroy_process_group()

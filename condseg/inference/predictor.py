"""A trained model on pictures: one by one, or over a COCO set on any number of processes."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from condseg.data.coco import CocoDataset
from condseg.data.collate import collate
from condseg.data.datamodule import TABLETOP, find_files, one_thread
from condseg.data.sampler import Shard
from condseg.data.transforms import resize_transform
from condseg.evaluation import CocoEvaluator, Report
from condseg.inference.stages import Stages
from condseg.models.folding import fold_norms_, share
from condseg.structures import Batch, Detections, ImageInfo, Sample, Targets
from condseg.zoo.checkpoint import Restored, newest_best, restore

PRECISIONS = ("32-true", "bf16-mixed")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the GPU (CUDA, then Apple's) where there is one.

    Under torchrun, "auto" and "cuda" are the GPU of the process's local rank.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        gpu = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else gpu
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; auto, cpu, cuda, cuda:1, mps are allowed") from error
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ValueError(f"device is {name!r}; torch sees {count} CUDA devices here")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps'; torch sees no such device here")
    elif device.type not in ("cpu", "mps"):
        raise ValueError(f"device is {name!r}; auto, cpu, cuda, cuda:1, mps are allowed")
    return device


class Predictor:
    """Finds the instances in pictures, as the checkpoint's training evaluated it.

    Args:
        restored: network, post-process, classes and input size of a checkpoint.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; the network is moved there.
        score_threshold: instead of the checkpoint's.
        max_detections: detections a picture, instead of the checkpoint's.
        precision: as Lightning names it; "bf16-mixed" (autocast) is faster where the hardware
            multiplies bfloat16, and rounds more.

    Raises:
        ValueError: a value is outside its range, or there is no such device.
    """

    def __init__(
        self,
        restored: Restored,
        device: str = "auto",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        precision: str = "32-true",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; {' or '.join(PRECISIONS)} is allowed")
        self.precision = precision
        self.device = pick_device(device)
        self.network = share(restored.network.to(self.device).eval())
        if self.network.implementation == "fast":
            fold_norms_(self.network.backbone.network)
            self.network.backbone.channels_last = True
        self.postprocess = copy.copy(restored.postprocess)
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise ValueError(f"score_threshold is {score_threshold}; 0..1 is allowed")
            self.postprocess.score_threshold = score_threshold
        if max_detections is not None:
            if max_detections < 1:
                raise ValueError(f"max_detections is {max_detections}; 1 or more is allowed")
            self.postprocess.max_detections = max_detections
        self.restored = restored
        self.categories = restored.categories
        self.names = tuple(category.name for category in restored.categories)
        self.transform = resize_transform(restored.short_side, restored.max_long_side)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | None = None,
        device: str = "auto",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        precision: str = "32-true",
    ) -> Predictor:
        """The predictor of a checkpoint file; of the newest run's best without one.

        Args:
            path: a file that ``tools/train.py`` wrote.
            device: as the following, see :class:`Predictor`.
            score_threshold: instead of the checkpoint's.
            max_detections: instead of the checkpoint's.
            precision: "32-true" or "bf16-mixed".

        Raises:
            ValueError: there is no checkpoint, or it cannot be read.
        """
        path = path or newest_best()
        if path is None:
            raise ValueError(
                "no checkpoint was given, and there is none under runs/; get one in minutes with "
                "'python tools/train.py --config quickstart.yaml', or give --checkpoint FILE"
            )
        return cls(restore(path), device, score_threshold, max_detections, precision)

    def __call__(
        self, image: NDArray[np.uint8], depth: NDArray[np.uint16] | None = None
    ) -> Detections:
        """The instances of one picture in its own pixels, best first, on the CPU.

        Args:
            image: (H, W, 3) RGB, 0..255, as ``condseg.data.images.read_image`` gives it.
            depth: (H, W), as ``read_depth`` of the same gives it, for a network that takes depth.

        Raises:
            ValueError: an array of another kind, or depth where none is taken, or none where it is.
        """
        return self.predict(collate([self._sample(image, depth)]))[0]

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Detections]:
        """The instances of each picture of a batch in its original pixels, on the CPU."""
        batch = batch.to(self.device, non_blocking=True)
        kind, mixed = self.device.type, self.precision == "bf16-mixed"
        with torch.autocast(kind, torch.bfloat16, enabled=mixed):
            dense = self.network(batch.images, batch.sizes, batch.depth)
            found = self.postprocess(self.network, dense, batch.infos)
        return [
            Detections(f.boxes.cpu(), f.scores.cpu(), f.labels.cpu(), f.masks.cpu()) for f in found
        ]

    def watched(self, stages: Stages) -> AbstractContextManager[None]:
        """A context in which :meth:`predict` is charged to stages.

        They are "pre-process", "backbone", "FPN", "heads" (FCOS's, the mask branch
        and its guide from depth), "decode + NMS", "mask head" (and its controller) and
        "post-process" (masks to the picture's size).
        """
        network = self.network
        depth = network.depth_encoder
        return stages.watching(
            (self, "predict", "post-process"),
            (network, "forward", "pre-process"),
            (network.backbone, "forward", "backbone"),
            (network.fpn, "forward", "FPN"),
            (network.head, "forward", "heads"),
            (network.mask_branch, "forward", "heads"),
            *([] if depth is None else [(depth, "forward", "heads")]),
            (self, "postprocess", "decode + NMS"),
            (network, "queries", "mask head"),
            (network, "mask_logits", "mask head"),
            (self.postprocess, "paste", "post-process"),
        )

    def _sample(self, image: NDArray[np.uint8], depth: NDArray[np.uint16] | None) -> Sample:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image is {image.dtype} of shape {image.shape}; uint8 (height, width, 3) is needed"
            )
        if depth is not None and (depth.shape != image.shape[:2] or depth.dtype != np.uint16):
            raise ValueError(
                f"depth is {depth.dtype} of shape {depth.shape}; uint16 {image.shape[:2]} is needed"
            )
        maps = {} if depth is None else {"depth": depth}
        done = self.transform(image=image, **maps)
        resized = done["image"]
        height, width = resized.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        nothing = Targets(
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, height, width, dtype=torch.bool),
        )
        distances = torch.from_numpy(done["depth"].astype(np.float32)) if maps else None
        info = ImageInfo(0, "", image.shape[:2], (height, width))
        return Sample(pixels, nothing, info, distances)


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
) -> tuple[Report, float]:
    """Box and mask AP over a set, on the processes that torchrun started, or on this one.

    Args:
        predictor: the model.
        data: "tabletop", or a folder as ``condseg.data.DataModule`` looks through it; without
            any of the three, the validation set of the training.
        annotations: COCO ground truth, instead of what is found in ``data``.
        images: folder of its pictures.
        batch_size: pictures of a step in each process; with 1 no picture's result depends on
            the padding that its neighbours need, nor on the number of processes.
        workers: processes that read pictures, for each process.
        output: folder for ``results_box.json``, ``results_mask.json`` (COCO's results format) and
            ``summary.json``; None writes nothing.
        stages: is told where this process's time goes.
        visibility: judge the objects in this range of visibility alone, see
            :class:`CocoEvaluator`.

    Returns:
        The report, the same on each process, and pictures per second, of all together.

    Raises:
        ValueError, OSError: the files are not there or wrong.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"batch_size is {batch_size}, workers is {workers}; 1 or more, 0 or more are allowed"
        )
    files = _val_files(predictor.restored.data, data, annotations, images)
    stages = Stages(predictor.device) if stages is None else stages
    with _process_group() as (rank, world_size):
        dataset = CocoDataset(*files, predictor.transform, depth=predictor.network.takes_depth)
        limit = predictor.postprocess.max_detections
        evaluator = CocoEvaluator(files[0], predictor.categories, limit, visibility)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=Shard(len(dataset), rank, world_size),
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=one_thread,
            pin_memory=predictor.device.type == "cuda",
        )
        start = time.perf_counter()
        with (
            Progress(console=Console(stderr=True), disable=rank > 0) as progress,
            predictor.watched(stages),
        ):
            batches = progress.track(loader, description="evaluating")
            for batch in stages.each("load", batches):
                found = predictor.predict(batch)
                with stages("RLE"):
                    evaluator.update(batch.infos, found)
        seconds = time.perf_counter() - start
        report = evaluator.compute()
        if output is not None and rank == 0:
            about = {
                "annotations": str(files[0]),
                "images": str(files[1]),
                "score_threshold": predictor.postprocess.score_threshold,
                "max_detections": limit,
                "precision": predictor.precision,
                "visibility": visibility,
                "pictures_per_second": report.images / seconds,
                "seconds_by_stage": stages.seconds,
            }
            write_results(Path(output), evaluator, report, about)
    return report, report.images / seconds


def is_main_process() -> bool:
    """Whether this is the only process, or torchrun's first: the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def write_results(
    folder: Path, evaluator: CocoEvaluator, report: Report, about: dict[str, Any]
) -> None:
    """Writes what was found in COCO's results format, and the figures with what they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("box", "mask"):
        (folder / f"results_{kind}.json").write_text(json.dumps(evaluator.results(kind)))
    summary = json.dumps({**about, **report.as_dict()}, indent=2, ensure_ascii=False)
    (folder / "summary.json").write_text(summary, encoding="utf-8")


def _val_files(
    trained: dict[str, Any], data: str | None, annotations: str | None, images: str | None
) -> tuple[Path, Path]:
    """The validation json and picture folder: as asked for, else as in the training."""
    if data is None and annotations is None and images is None:
        annotations, images = trained.get("val_annotations"), trained.get("val_images")
        data = trained.get("root")
    root = TABLETOP if data == "tabletop" else Path(data or ".")
    return find_files(root, "val", annotations, images)


@contextmanager
def _process_group() -> Iterator[tuple[int, int]]:
    """(rank, world size) from torchrun's environment; only records are exchanged, so by gloo."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), world_size
    finally:
        dist.destroy_process_group()

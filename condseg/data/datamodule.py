"""The data of a run: two COCO-format sets, their loaders, and where they are looked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader

from condseg.data.coco import CocoDataset
from condseg.data.collate import collate
from condseg.data.sampler import GlobalBatchSampler, Shard
from condseg.data.transforms import Flip, Sampling, check_sides, resize_transform, train_transform
from condseg.structures import Batch, Category, Sample, Supervision

TABLETOP = Path(__file__).parent / "tabletop"


class DataNotFoundError(FileNotFoundError):
    """The files of a set are not where they are looked for; the message says the ways on."""


class TrainLoader(DataLoader[Sample]):
    """The training loader: tells each epoch what vanished, and a checkpoint what it ran on.

    Where to go on is not stored here, for workers fetch ahead of the training; the sampler asks
    the trainer. The state is kept to say so when a run goes on with other data.
    """

    batch_sampler: GlobalBatchSampler
    dataset: CocoDataset

    def __iter__(self) -> Any:
        self.tell_vanished()
        return super().__iter__()

    def tell_vanished(self) -> None:
        """Logs how many objects the transforms left nothing of since this was last told."""
        vanished = self.dataset.vanished
        if new := vanished - getattr(self, "_told", 0):
            rank_zero_info(f"{new} objects left no pixel after cropping and resizing; dropped")
        self._told = vanished

    def state_dict(self) -> dict[str, int]:
        sampler = self.batch_sampler
        return {
            "seed": sampler.seed,
            "batch_size": sampler.batch_size,
            "pictures": sampler.count,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        now = self.state_dict()
        if state != now:
            rank_zero_warn(
                f"the checkpoint was trained with {state}, this run has {now}: it goes on, but "
                "with other batches than without the break"
            )


class DataModule(pl.LightningDataModule):
    """Training and validation pictures in COCO format.

    ``root`` is looked through for ``[annotations/]instances_train[2017].json`` with the folder
    ``train2017``, ``train`` or ``images``, likewise ``val``; files named outright come first.
    Which pictures a step sees and what is done to them is a pure function of (seed, epoch,
    picture): workers, processes and breaks do not change it.

    Args:
        root: folder of the data; "tabletop" is the set that comes with the package.
        train_annotations: json of the training set, instead of what is found in ``root``.
        train_images: folder of its pictures.
        val_annotations: json of the validation set.
        val_images: folder of its pictures.
        batch_size: pictures of a training step over all processes.
        val_batch_size: pictures of a validation step in each process. With 1 a picture's result
            cannot depend on its neighbours' sizes, which decide the padding.
        workers: processes that load pictures, for each training process; 0 loads in line.
        short_sides: pixels of the short side in training, one drawn for each picture.
        short_side_sampling: "choice" of these, or any of the "range" from least to greatest.
        max_long_side: cap of the long side in pixels, in validation too.
        val_short_side: pixels of the short side in validation.
        flip: mirrorings in training.
        crop: part of a side that may be cut off at each border in training, 0..0.5.
        color_jitter: strength of colour changes in training, 0..1.
        skip_empty: train without the pictures that hold no objects.
        group_by_aspect: keep upright and lying pictures in different batches, to pad less.
        supervision: what training learns masks from: "masks", i.e. each annotation's segmentation;
            "boxes" alone (BoxInst); "mixed", the ``bbox`` where there is no segmentation.
            Validation always compares masks.
        mask_fraction: with "mixed", the part of the pictures whose segmentations are read, the
            same pictures in each run.
        seed: of order and augmentation.
        depth: read the pictures' depth maps, see :class:`CocoDataset`; in tools/train.py the
            network says whether it wants them.

    Raises:
        DataNotFoundError: the files are not there.
        ValueError: a value is outside its range.
    """

    # More processes than validation pictures: those without one wait.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        root: str = "data/coco",
        train_annotations: str | None = None,
        train_images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        batch_size: int = 16,
        val_batch_size: int = 1,
        workers: int = 4,
        short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800),
        short_side_sampling: Sampling = "choice",
        max_long_side: int = 1333,
        val_short_side: int = 800,
        flip: Flip = "horizontal",
        crop: float = 0.0,
        color_jitter: float = 0.0,
        skip_empty: bool = True,
        group_by_aspect: bool = True,
        supervision: Supervision = "masks",
        mask_fraction: float = 1.0,
        seed: int = 0,
        depth: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; {least} or more is allowed")
        check_sides((val_short_side,), max_long_side)
        if not 0 <= mask_fraction <= 1 or (mask_fraction < 1 and supervision != "mixed"):
            raise ValueError(
                f"mask_fraction is {mask_fraction} with supervision {supervision}; 0..1 with "
                "mixed, else 1 is allowed"
            )
        self.train_transform = train_transform(
            short_sides, max_long_side, short_side_sampling, flip, crop, color_jitter
        )
        self.val_short_side, self.max_long_side = val_short_side, max_long_side
        self.batch_size, self.val_batch_size, self.workers = batch_size, val_batch_size, workers
        self.skip_empty, self.group_by_aspect, self.seed = skip_empty, group_by_aspect, seed
        self.supervision, self.mask_fraction = supervision, mask_fraction
        self.depth = depth
        folder = TABLETOP if root == "tabletop" else Path(root)
        self.train_files = find_files(folder, "train", train_annotations, train_images)
        self.val_files = find_files(folder, "val", val_annotations, val_images)
        self._train_loader: TrainLoader | None = None

    @cached_property
    def train_dataset(self) -> CocoDataset:
        """The training set, read when first asked for."""
        dataset = CocoDataset(
            *self.train_files,
            self.train_transform,
            skip_empty=self.skip_empty,
            seed=self.seed,
            supervision=self.supervision,
            mask_fraction=self.mask_fraction,
            depth=self.depth,
        )
        if dataset.categories != self.categories:
            ours, theirs = set(dataset.categories), set(self.categories)
            raise ValueError(
                f"{dataset.annotation_file} and {self.val_annotation_file} must have the same "
                f"categories (id and name); only in the first: {_names(ours - theirs)}; only in "
                f"the second: {_names(theirs - ours)}"
            )
        rank_zero_info(dataset.summary())
        return dataset

    @cached_property
    def val_dataset(self) -> CocoDataset:
        """The validation set, read when first asked for."""
        transform = resize_transform(self.val_short_side, self.max_long_side)
        dataset = CocoDataset(*self.val_files, transform, seed=self.seed, depth=self.depth)
        rank_zero_info(dataset.summary())
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        """Of the validation file, which is small; the training file must have the same."""
        return self.val_dataset.categories

    @property
    def num_classes(self) -> int:
        """K, the number of categories."""
        return len(self.categories)

    @property
    def val_annotation_file(self) -> str:
        """The json that results are compared with."""
        return str(self.val_files[0])

    def setup(self, stage: str) -> None:
        """Opens the files, so that what is wrong with them shows before the training starts."""
        _ = self.val_dataset
        if stage == "fit":
            _ = self.train_dataset

    def train_dataloader(self) -> TrainLoader:
        rank, world_size = self._place()
        sizes = self.train_dataset.sizes
        self._train_loader = TrainLoader(
            self.train_dataset,
            batch_sampler=GlobalBatchSampler(
                len(self.train_dataset),
                self.batch_size,
                self.seed,
                rank,
                world_size,
                self._batches_trained,
                (sizes[:, 0] > sizes[:, 1]).astype(np.int64) if self.group_by_aspect else None,
            ),
            **self._loading(),
        )
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Sample]:
        rank, world_size = self._place()
        shard = Shard(len(self.val_dataset), rank, world_size)
        batches = BatchSampler(shard, self.val_batch_size, drop_last=False)
        return DataLoader(self.val_dataset, batch_sampler=batches, **self._loading())

    def teardown(self, stage: str) -> None:
        if self._train_loader is not None:
            self._train_loader.tell_vanished()

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.to(device, non_blocking=True)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_trained(self) -> int:
        """Batches that went through training_step since the run began, breaks included."""
        trainer: Any = self.trainer
        if trainer is None or trainer.overfit_batches:
            return 0  # overfitting wants the same batches each epoch
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.workers > 0,
            "worker_init_fn": one_thread,
            # Each epoch's loader would draw a seed from the training's own random numbers.
            "generator": torch.Generator(),
        }


def one_thread(worker: int) -> None:
    """A worker's start: OpenCV's threads would fight with the other workers for the cores."""
    cv2.setNumThreads(0)


def find_files(
    root: Path, split: Literal["train", "val"], annotations: str | None, images: str | None
) -> tuple[Path, Path]:
    """The json and the picture folder of a set, as :class:`DataModule` looks for them.

    Args:
        root: folder that is looked through.
        split: which set.
        annotations: the json, named outright.
        images: the picture folder, named outright.

    Raises:
        DataNotFoundError: one of them is not there.
    """
    names = (f"instances_{split}2017.json", f"instances_{split}.json")
    jsons = [root / folder / name for folder in ("annotations", ".") for name in names]
    folders = [root / name for name in (f"{split}2017", split, "images")]
    return (
        _first(f"{split}_annotations", annotations, jsons, Path.is_file),
        _first(f"{split}_images", images, folders, Path.is_dir),
    )


def _first(
    name: str, given: str | None, candidates: list[Path], there: Callable[[Path], bool]
) -> Path:
    paths = candidates if given is None else [Path(given)]
    for path in paths:
        if there(path):
            return path
    raise DataNotFoundError(
        f"{name}: found none of {', '.join(map(str, paths))}. Two ways on: fetch COCO with "
        "`python tools/download_coco.py`, or train on the embedded set by laying "
        "`--config tabletop.yaml` over the other options; own data are named by data.root or "
        f"data.{name}"
    )


def _names(categories: set[Category]) -> str:
    listed = sorted(categories, key=lambda category: category.id)
    few = ", ".join(f"{category.id} {category.name!r}" for category in listed[:5])
    return (few + (", ..." if len(listed) > 5 else "")) or "none"

"""The data of a run: the training and the validation set and their loaders."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader

from condseg.data.checking import broken_images
from condseg.data.collate import collate
from condseg.data.dataset import CocoDataset
from condseg.data.files import data_root, find_files
from condseg.data.mosaic import MosaicJitter
from condseg.data.parts import part_of
from condseg.data.sampler import GlobalBatchSampler
from condseg.data.skipped import Skipped
from condseg.data.transforms import Flip, Sampling, check_sides, resize_transform, train_transform
from condseg.structures import Batch, Category, Sample, Supervision


class TrainLoader(DataLoader[Sample]):
    """The training loader, whose state in a checkpoint is what the order of images depends on.

    The position is not stored, since workers fetch ahead of the training: the sampler asks the
    trainer for it.
    """

    batch_sampler: GlobalBatchSampler

    def state_dict(self) -> dict[str, int]:
        sampler = self.batch_sampler
        return {"seed": sampler.seed, "batch_size": sampler.batch_size, "images": sampler.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        own = self.state_dict()
        if state != own:
            rank_zero_warn(
                f"the checkpoint was trained with {state}, this run has {own}: it continues with "
                "other batches than without the interruption"
            )


class DataModule(pl.LightningDataModule):
    """Training and validation images in COCO format.

    ``root`` is searched for the files, see :func:`condseg.data.files.find_files`; a json without a
    validation set is divided. The images of a step and
    their augmentation are a function of (seed, epoch, image): they do not depend on workers,
    processes or interruptions.

    Args:
        root: folder of the data, or its only json; "tabletop" is the sample set that comes with
            the package.
        train_annotations: json of the training set, instead of the one found in ``root``.
        train_images: folder of its images.
        val_annotations: json of the validation set.
        val_images: folder of its images.
        batch_size: images of a training step over all processes.
        val_batch_size: images of a validation step in each process. With 1, no result depends
            on the padding that other images of the batch need.
        workers: processes that load images, for each training process; 0 loads in the main one.
        short_sides: pixels of the short side in training, one drawn for each image.
        short_side_sampling: "choice" of these, or any of the "range" from min to max.
        max_long_side: maximum of the long side in pixels, in validation too.
        val_short_side: pixels of the short side in validation.
        flip: left-right with probability 0.5 in training; "both" also top-bottom (microscopy,
            aerial images).
        crop: with probability 0.5, up to this fraction of a side (0..0.5) is cropped at each
            border before resizing in training.
        color_jitter: with probability 0.5, brightness, contrast and saturation change by up to
            this factor (0..1) in training, the hue by a tenth of it.
        skip_empty: skip training images without objects.
        group_by_aspect: batch portrait and landscape images separately, which reduces padding.
        supervision: what training learns masks from: "masks", the segmentation of each object;
            "boxes" only (BoxInst); "mixed", the ``bbox`` where there is no segmentation (missing,
            null or empty). Validation compares masks unless no object of its set has one.
        mask_fraction: with "mixed", the fraction of images whose segmentations are read, chosen
            by a hash of the image id: the images of 0.2 are a subset of those of 0.5.
        check_images: read all images before the training, and report those that are broken: files
            that are not readable, or of another size than in the json.
        on_broken_image: "stop" the training, or "skip": in training, the next image of the json
            that can be read takes its place (always the same one, so that resuming stays exact);
            in validation, it is evaluated as a black image, so that its objects are missed.
        seed: of order and augmentation.
        depth: read depth maps, see :class:`CocoDataset`; set by tools/train.py if the network
            takes depth.
        augmentation: of the training images, :class:`condseg.data.mosaic.MosaicJitter`, in place
            of ``short_sides``, ``short_side_sampling``, ``flip``, ``crop`` and ``color_jitter``.

    Raises:
        DataNotFoundError: files are missing.
        ValueError: a value is outside its range.
    """

    # With more processes than validation images, those without one wait.
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
        check_images: bool = False,
        on_broken_image: Literal["stop", "skip"] = "stop",
        seed: int = 0,
        depth: bool = False,
        augmentation: MosaicJitter | None = None,
    ) -> None:
        super().__init__()
        for name, value, minimum in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            if value < minimum:
                raise ValueError(f"{name} is {value}; allowed is >= {minimum}")
        check_sides((val_short_side,), max_long_side)
        if not 0 <= mask_fraction <= 1 or (mask_fraction < 1 and supervision != "mixed"):
            raise ValueError(
                f"mask_fraction is {mask_fraction} with supervision {supervision}; allowed is "
                "0..1 with mixed, else 1"
            )
        self.train_transform = (
            train_transform(
                short_sides, max_long_side, short_side_sampling, flip, crop, color_jitter
            )
            if augmentation is None
            else None
        )
        if augmentation is not None and depth:
            raise ValueError("augmentation is set, which depth does not support; null is allowed")
        self.augmentation = augmentation
        self.val_short_side, self.max_long_side = val_short_side, max_long_side
        self.batch_size, self.val_batch_size, self.workers = batch_size, val_batch_size, workers
        self.group_by_aspect, self.seed, self.depth = group_by_aspect, seed, depth
        self._targets = {"supervision": supervision, "mask_fraction": mask_fraction}
        self._targets["skip_empty"] = skip_empty
        folder = data_root(root)
        divide = val_annotations is None
        self.train_files = find_files(
            folder, "train", train_annotations, train_images, divide=divide
        )
        self.val_files = find_files(folder, "val", val_annotations, val_images)
        whole, part = part_of(self.val_files[0])
        if part is not None and part_of(self.train_files[0])[0] == whole:
            rank_zero_info(
                f"{whole} has no validation set beside it: a fifth of its images, chosen by a hash "
                "of the image id, is not trained on"
            )
        self.check_images, self.skip_broken = check_images, on_broken_image == "skip"
        self._skipped = Skipped()

    @cached_property
    def train_dataset(self) -> CocoDataset:
        """The training set, read on first use."""
        options: Any = {"seed": self.seed, "depth": self.depth, **self._targets}
        options["on_broken_image"] = "replace" if self.skip_broken else "stop"
        options["augmentation"] = self.augmentation
        dataset = CocoDataset(*self.train_files, self.train_transform, **options)
        if dataset.categories != self.categories:
            train, val = set(dataset.categories), set(self.categories)
            raise ValueError(
                f"{dataset.annotation_file} and {self.val_annotation_file} must have the same "
                f"categories (id and name); only in the first: {_listed(train - val)}; only in "
                f"the second: {_listed(val - train)}"
            )
        rank_zero_info(dataset.summary())
        return dataset

    @cached_property
    def val_dataset(self) -> CocoDataset:
        """The validation set, read on first use."""
        transform = resize_transform(self.val_short_side, self.max_long_side)
        options: Any = {"seed": self.seed, "depth": self.depth}
        options["on_broken_image"] = "blank" if self.skip_broken else "stop"
        dataset = CocoDataset(*self.val_files, transform, **options)
        rank_zero_info(dataset.summary())
        return dataset

    @property
    def categories(self) -> tuple[Category, ...]:
        """Categories of the validation set, which is small; the training set must have the same."""
        return self.val_dataset.categories

    @property
    def num_classes(self) -> int:
        """K, the number of categories."""
        return len(self.categories)

    @property
    def val_annotation_file(self) -> str:
        """The json of the validation set."""
        return str(self.val_files[0])

    def setup(self, stage: str) -> None:
        """Reads the annotations, so that errors in them show before the training starts."""
        datasets = [self.val_dataset, *([self.train_dataset] if stage == "fit" else [])]
        if self.check_images:
            self._check_images(datasets)

    def _check_images(self, datasets: list[CocoDataset]) -> None:
        workers = {"num_workers": self.workers, "worker_init_fn": one_thread}
        lines = []
        for dataset in datasets:
            broken = broken_images(dataset, *self._rank_and_world_size(), workers)
            if broken:
                count = f"{len(broken)} of {len(dataset)} images are broken"
                lines += [f"{dataset.annotation_file}: {count}:", *(f"  {one}" for one in broken)]
                self._skipped.named |= set(broken)
        if lines and not self.skip_broken:
            raise ValueError("\n".join(lines))
        if lines:
            rank_zero_warn("\n".join(lines))

    def train_dataloader(self) -> TrainLoader:
        sizes = self.train_dataset.sizes
        batches = GlobalBatchSampler(
            len(self.train_dataset),
            self.batch_size,
            self.seed,
            *self._rank_and_world_size(),
            self._trained_batches,
            (sizes[:, 0] > sizes[:, 1]).astype(np.int64) if self.group_by_aspect else None,
        )
        return TrainLoader(self.train_dataset, batch_sampler=batches, **self._loader_options())

    def val_dataloader(self) -> DataLoader[Sample]:
        rank, world_size = self._rank_and_world_size()
        shard = range(rank, len(self.val_dataset), world_size)  # each image once over all ranks
        batches = BatchSampler(shard, self.val_batch_size, drop_last=False)
        return DataLoader(self.val_dataset, batch_sampler=batches, **self._loader_options())

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self._skipped.name_broken(batch)
        trainer: Any = self.trainer
        if trainer is not None and trainer.training:
            self._skipped.count(batch, trainer.current_epoch, trainer.strategy)
        return batch

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self._skipped.log(self.trainer.strategy)  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, int]:
        return self._skipped.state(self.trainer.strategy)  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skipped.load_state(state, self.trainer.is_global_zero)  # type: ignore[union-attr]

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _trained_batches(self) -> int:
        """Batches trained since the run began, before interruptions included."""
        trainer: Any = self.trainer
        if trainer is None or trainer.overfit_batches:
            return 0  # overfitting repeats the same batches each epoch
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.workers > 0,
            "worker_init_fn": one_thread,
            # Otherwise each epoch's iterator draws a seed from the training's random numbers.
            "generator": torch.Generator(),
        }


def one_thread(worker: int) -> None:
    """Initialises a worker: OpenCV's threads would compete with the other workers."""
    cv2.setNumThreads(0)


def _listed(categories: set[Category]) -> str:
    ordered = sorted(categories, key=lambda category: category.id)
    few = ", ".join(f"{category.id} {category.name!r}" for category in ordered[:5])
    return (few + (", ..." if len(ordered) > 5 else "")) or "none"

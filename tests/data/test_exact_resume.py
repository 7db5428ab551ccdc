"""A run that is interrupted anywhere continues with exactly the batches it would have seen."""

import hashlib
from contextlib import nullcontext
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.coco import CocoSet

from condseg.data import skipped
from condseg.data.datamodule import DataModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*is smaller than the logging interval",
    "ignore:.*GPU available but not used",
    "ignore:.*isinstance.treespec, LeafSpec",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* exists and is not empty",
)
DATA = {
    "short_sides": (10, 19),
    "short_side_sampling": "range",
    "max_long_side": 32,
    "val_short_side": 16,
    "supervision": "mixed",
}
EPOCH = 3  # steps: 10 images in batches of 3
STEPS = 11


class InterruptionError(Exception):
    pass


class Recorder(pl.LightningModule):
    """Records what each training step sees; raises before the step ``break_before``."""

    def __init__(self, break_before=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.break_before = [], break_before

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.break_before:
            raise InterruptionError
        digest = hashlib.md5(batch.images.numpy().tobytes(), usedforsecurity=False).hexdigest()
        ids = tuple(info.image_id for info in batch.infos)
        self.seen.append((ids, digest, batch.lost_objects))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Image 100 + k has a large object, and k % 3 objects that resizing loses."""
    folder = tmp_path_factory.mktemp("set")
    train = CocoSet(folder, "train", [(20, 30), (30, 20)] * 5, objects=1)
    for k, image in enumerate(train.content["images"]):
        for _ in range(k % 3):
            train.add(image["id"], None, [14, 14, 0.5, 0.5])
    train.write()
    return CocoSet(folder, "val").root


def run(
    root,
    folder,
    workers=0,
    ckpt_path=None,
    break_before=None,
    every=1,
    on_broken_image="stop",
    **options,
):
    """Trains; returns what the steps saw and the path of the last checkpoint."""
    at = {"every_n_train_steps": every} if every else {"every_n_epochs": 1}
    saver = ModelCheckpoint(
        folder, filename="{step}", save_top_k=-1, save_on_train_epoch_end=not every or None, **at
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **{"max_steps": STEPS, "max_epochs": -1} | options,
    )
    skip = {"on_broken_image": on_broken_image}
    data = DataModule(str(root), batch_size=3, workers=workers, crop=0.2, **DATA, **skip)
    recorder = Recorder(break_before)
    interrupted = pytest.raises(InterruptionError) if break_before else nullcontext()
    with interrupted:
        trainer.fit(recorder, data, ckpt_path=ckpt_path)
    return recorder.seen, saver.best_model_path or None


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """What an uninterrupted run of STEPS sees."""
    seen, _ = run(root, tmp_path_factory.mktemp("whole"))
    assert len(seen) == len(set(seen)) == STEPS
    return seen


@pytest.mark.parametrize(
    ("workers", "break_before"), [(0, 1), (2, 2), (2, 3), (0, 4), (1, 8), (2, 10)]
)
def test_interrupted_anywhere(root, tmp_path, whole, monkeypatch, workers, break_before):
    """The same batches, and the same log of lost objects of each epoch."""
    messages = []
    monkeypatch.setattr(skipped, "rank_zero_info", messages.append)
    first, last = run(root, tmp_path / "first", workers, break_before=break_before)
    second, _ = run(root, tmp_path / "second", workers, last)
    assert first + second == whole

    lost = [count for _, _, count in whole]
    expected = [sum(lost[i : i + EPOCH]) for i in range(0, STEPS, EPOCH)]
    assert min(expected) > 0
    logged = [text.split() for text in messages if "objects skipped, since no pixel" in text]
    assert {(int(words[1][:-1]), int(words[2])) for words in logged} == set(enumerate(expected))
    # An epoch that ended after the last checkpoint is logged again by the second run.
    assert len(logged) == len(expected) + (break_before == EPOCH)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 3},
        {"every": None},
        {"every": None, "max_steps": -1, "max_epochs": 4},
        {"limit_train_batches": 2},
        {"val_check_interval": 2},
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 2, "max_steps": 6},
    ],
    ids=str,
)
def test_with_any_option_of_the_trainer(root, tmp_path, options):
    whole, _ = run(root, tmp_path / "whole", **options)
    first, _ = run(root, tmp_path / "first", break_before=8, **options)
    assert first == whole[:8]
    checkpoints = sorted((tmp_path / "first").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for number in {0, len(checkpoints) - 1}:
        second, _ = run(root, tmp_path / f"{number}", 0, checkpoints[number], **options)
        # A checkpoint may be some steps old; from there on all is the same.
        assert 0 < len(second) < len(whole)
        assert second == whole[-len(second) :]


@pytest.fixture
def broken(tmp_path):
    """Two of ten training images and one of validation cannot be read."""
    train = CocoSet(tmp_path / "set", "train", [(20, 30)] * 10, objects=1)
    val = CocoSet(tmp_path / "set", "val")
    for path in (train.images / "004.png", train.images / "005.png", val.images / "001.png"):
        path.write_bytes(b"")
    return train.root


def test_interrupted_with_broken_images(broken, tmp_path, monkeypatch):
    """The same batches with the same replacements; each broken image is named once."""
    named, counted = Mock(), []
    monkeypatch.setattr(skipped, "log", named)
    monkeypatch.setattr(skipped, "rank_zero_info", counted.append)
    options = {"on_broken_image": "skip", "val_check_interval": 3}
    whole, _ = run(broken, tmp_path / "whole", **options)
    names = [call.args[0] for call in named.warning.call_args_list]
    files = sorted(name.split(" (image")[0].split("set/")[1] for name in names)
    assert files == ["train/004.png", "train/005.png", "val/001.png"]
    expected = counted.copy()
    assert sum(int(text.split()[2]) for text in expected) >= 5
    counted.clear()
    first, last = run(broken, tmp_path / "1", break_before=5, **options)
    second, _ = run(broken, tmp_path / "2", 2, last, **options)
    assert first + second == whole
    assert set(counted) == set(expected)
    alone, one, two = (
        seen_by(broken, trainer_of(*rank), on_broken_image="skip")[0]
        for rank in ((0, 1), (0, 2), (1, 2))
    )
    for batch, part, other in zip(alone, one, two, strict=True):
        assert sorted(part + other) == sorted(batch)


def test_interrupted_twice(root, tmp_path, whole):
    first, last = run(root, tmp_path / "1", break_before=4)
    second, last = run(root, tmp_path / "2", 1, last, break_before=5)
    third, _ = run(root, tmp_path / "3", 0, last)
    assert first + second + third == whole


def test_overfitting_repeats_the_same_batches(root, tmp_path):
    options = {"overfit_batches": 2, "limit_val_batches": 0, "max_steps": 6}
    seen, _ = run(root, tmp_path, **options)
    assert seen == seen[:2] * 3


def test_other_data_than_before(root, tmp_path):
    _, last = run(root, tmp_path / "1", break_before=6)
    state = torch.load(last, weights_only=False)
    loader = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"seed": 0, "batch_size": 3, "images": 10}]
    loader[0]["seed"] = 5
    torch.save(state, last)
    with pytest.warns(UserWarning, match="'seed': 5.*'seed': 0"):
        run(root, tmp_path / "2", ckpt_path=last)


def trainer_of(rank, world_size, processed=0):
    """What the data module reads of a trainer: the process and the number of batches trained."""
    trainer = Mock(global_rank=rank, world_size=world_size, overfit_batches=0)
    trainer.fit_loop.epoch_loop.batch_progress.total.processed = processed
    return trainer


def seen_by(root, trainer, **options):
    data = DataModule(str(root), batch_size=4, workers=0, **DATA, **options)
    data.trainer = trainer
    train = [[(i.image_id, i.size) for i in batch.infos] for batch in data.train_dataloader()]
    return train, [info.image_id for batch in data.val_dataloader() for info in batch.infos]


@pytest.mark.parametrize("processed", [0, 4])
def test_processes_together_see_what_one_sees(root, processed):
    train, val = seen_by(root, trainer_of(0, 1, processed))
    (one, val_one), (two, val_two) = (
        seen_by(root, trainer_of(rank, 2, processed)) for rank in range(2)
    )
    for batch, part, other in zip(train, one, two, strict=True):
        assert sorted(part + other) == sorted(batch)
    assert sorted(val_one + val_two) == val == [100, 101, 102]


def test_more_processes_than_validation_images(root):
    assert [len(seen_by(root, trainer_of(rank, 4))[1]) for rank in range(4)] == [1, 1, 1, 0]

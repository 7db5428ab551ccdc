"""A run that breaks off anywhere goes on with exactly the batches it would have seen."""

import hashlib
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from condseg.data.datamodule import DataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class BreakError(Exception):
    pass


class Recorder(pl.LightningModule):
    """Notes what each training step sees, and breaks off before a step."""

    def __init__(self, break_before=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.break_before = [], break_before

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.break_before:
            raise BreakError
        digest = hashlib.md5(batch.images.numpy().tobytes(), usedforsecurity=False).hexdigest()
        self.seen.append((tuple(info.image_id for info in batch.infos), digest))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def root(coco_set):
    coco_set("train", [(40, 60), (60, 40)] * 7)
    return coco_set("val").root


STEPS = 18  # four epochs and a half: 14 pictures in batches of 3 are 4 steps


def run(root, folder, workers=0, ckpt_path=None, break_before=None, every=1, **options):
    """Trains; returns what the steps saw and the path of the last checkpoint."""
    limits = {"max_steps": STEPS, "max_epochs": -1} | options
    on_epoch_end = every is None
    saver = ModelCheckpoint(
        folder,
        filename="{step}",
        save_top_k=-1,
        every_n_train_steps=every,
        every_n_epochs=1 if on_epoch_end else None,
        save_on_train_epoch_end=on_epoch_end or None,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **limits,
    )
    data = DataModule(
        str(root),
        batch_size=3,
        workers=workers,
        short_sides=(20, 39),
        short_side_sampling="range",
        max_long_side=64,
        val_short_side=32,
        crop=0.2,
    )
    recorder = Recorder(break_before)
    if break_before is None:
        trainer.fit(recorder, data, ckpt_path=ckpt_path)
    else:
        with pytest.raises(BreakError):
            trainer.fit(recorder, data, ckpt_path=ckpt_path)
    return recorder.seen, saver.best_model_path or None


@pytest.mark.parametrize(
    ("workers", "break_before"), [(0, 1), (2, 3), (0, 4), (2, 4), (2, 5), (0, 8), (1, 11), (2, 17)]
)
def test_broken_anywhere(root, tmp_path, workers, break_before):
    whole, _ = run(root, tmp_path / "whole")
    assert len(whole) == STEPS
    assert len(set(whole)) == STEPS
    first, last = run(root, tmp_path / "first", workers, break_before=break_before)
    second, _ = run(root, tmp_path / "second", workers, last)
    assert first + second == whole


@pytest.mark.parametrize(
    "options",
    [
        {"every": 3},
        {"every": None},
        {"every": None, "max_steps": -1, "max_epochs": 5},
        {"max_steps": -1, "max_epochs": 5},
        {"limit_train_batches": 3},
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 2, "max_steps": 9},
    ],
    ids=str,
)
def test_whatever_the_trainer_does(root, tmp_path, options):
    whole, _ = run(root, tmp_path / "whole", **options)
    for break_before in (6, 10):
        first, last = run(root, tmp_path / "a", 1, break_before=break_before, **options)
        second, _ = run(root, tmp_path / f"b{break_before}", 1, last, **options)
        # A checkpoint may lie some steps back; from there on all is the same.
        assert len(first) == break_before
        assert first == whole[:break_before]
        assert len(second) < len(whole)
        assert second == whole[-len(second) :]


def test_broken_twice(root, tmp_path):
    whole, _ = run(root, tmp_path / "whole")
    first, last = run(root, tmp_path / "1", break_before=6)
    second, last = run(root, tmp_path / "2", 1, last, break_before=7)
    third, _ = run(root, tmp_path / "3", 0, last)
    assert first + second + third == whole


def test_overfitting_sees_the_same_batches_again(root, tmp_path):
    options = {"overfit_batches": 2, "limit_val_batches": 0, "max_steps": 6}
    seen, _ = run(root, tmp_path, **options)
    assert seen == seen[:2] * 3


def test_other_data_than_before_are_told(root, tmp_path):
    _, last = run(root, tmp_path / "1", break_before=6)
    state = torch.load(last, weights_only=False)
    loader = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"seed": 0, "batch_size": 3, "pictures": 14}]
    loader[0]["seed"] = 5
    torch.save(state, last)
    with pytest.warns(UserWarning, match="'seed': 5.*'seed': 0"):
        run(root, tmp_path / "2", ckpt_path=last)


class Place:
    """What the data ask a trainer: which process this is, and how far the training came."""

    def __init__(self, rank, world_size, processed=0):
        total = SimpleNamespace(processed=processed)
        progress = SimpleNamespace(batch_progress=SimpleNamespace(total=total))
        self.fit_loop = SimpleNamespace(epoch_loop=progress)
        self.global_rank, self.world_size = rank, world_size
        self.overfit_batches = 0


def seen_by(root, place):
    options = {"short_sides": (20, 39), "short_side_sampling": "range", "val_short_side": 32}
    data = DataModule(str(root), batch_size=4, workers=0, max_long_side=64, **options)
    data.trainer = place
    train = [[(i.image_id, i.size) for i in batch.infos] for batch in data.train_dataloader()]
    val = [info.image_id for batch in data.val_dataloader() for info in batch.infos]
    return train, val


@pytest.mark.parametrize("processed", [0, 4])
def test_processes_see_together_what_one_sees(root, processed):
    train, val = seen_by(root, Place(0, 1, processed))
    shares = [seen_by(root, Place(rank, 2, processed)) for rank in range(2)]
    for step, batch in enumerate(train):
        assert sorted(shares[0][0][step] + shares[1][0][step]) == sorted(batch)
    assert sorted(shares[0][1] + shares[1][1]) == val == [100, 101, 102]


def test_more_processes_than_validation_pictures(root):
    assert [len(seen_by(root, Place(rank, 4))[1]) for rank in range(4)] == [1, 1, 1, 0]

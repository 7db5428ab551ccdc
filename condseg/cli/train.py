"""``condseg train --data my/dataset``, ``condseg train --config quickstart``: trains a model.

``--data``, a folder or a json (then with ``--images``, the folder of its images), without a
configuration file chooses all options by the data and the machine, and prints them. Otherwise,
``configs/default.yaml`` is overridden by each ``--config`` file, later files override earlier
ones, and options (``--key value``) override files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from condseg.cli.arguments import TrainingArguments, training_parser
from condseg.cli.help import TRAIN, asks_for_help
from condseg.cli.messages import as_typed, command
from condseg.cli.trainer import build_trainer, trainer_errors
from condseg.errors import user_errors
from condseg.training.callbacks import BestCheckpoint, LastCheckpoint, RunConfig
from condseg.training.config_differences import check_same_network
from condseg.training.failures import explain, kill_workers, quiet_writers
from condseg.training.metrics_file import run_loggers
from condseg.training.resume import ResumePoint
from condseg.training.runs import last_of, lock_run, newest_run, reserve_run
from condseg.training.signals import Stopped
from condseg.zoo.checkpoint import RECIPE, best_of
from condseg.zoo.pretrained import start_from

LESS_MEMORY = (
    "a lower --data.batch_size (with --trainer.accumulate_grad_batches), lower --data.short_sides, "
    "--model.mask_loss.topk_proposals_per_image 32, --trainer.precision bf16-mixed"
)


class CommandLine(TrainingArguments):
    """Builds data, model and trainer from the arguments, and trains.

    The data is built first, as it determines the number of classes.

    Args:
        args: the arguments; None for those of the process.

    Attributes:
        run_folder: folder of checkpoints, logs and images; set by :meth:`fit`, and None if the
            trainer's ``fast_dev_run`` is set, with which nothing is written.
    """

    run_folder: Path | None = None

    def before_instantiate_classes(self) -> None:
        network, record = self._config_of("model")["network"], self._record()
        if self._origin.ckpt_path == "auto":
            run = newest_run(self._origin.runs, record)
            if run is not None and last_of(run).is_file():
                self._resumed, self._start = ResumePoint.of(last_of(run)), None
        if self._resumed is not None:
            self._resumed.check(network)
            rank_zero_info(self._resumed.summary(record))
        elif self._start is not None:
            # Besides the classes and the weights, how the backbone is trained may differ.
            ignored = {
                *("num_classes", "backbone.weights", "backbone.freeze_stages", "backbone.norm")
            }
            other = self._start[RECIPE]["model"]["network"]
            check_same_network(f"--init_from {self.config.init_from}", other, network, ignored)
        elif network["backbone"]["weights"] is None:
            _tell_what_stays_random(network["backbone"])
        if self._plan is not None and self._resumed is None:
            rank_zero_info(self._plan.text(record, self.config.init_from))

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.trainer = self.instantiate_trainer()
        if self._start is not None:
            categories, source = self.datamodule.categories, self.config.init_from
            rank_zero_info(start_from(self.model.network, self._start, categories, source))
        self._start = None  # frees its tensors
        model = self._config_of("model")
        self.model.recipe = {
            "model": {
                "network": {**model["network"], "num_classes": self.datamodule.num_classes},
                "postprocess": model["postprocess"],
            },
            "data": self._config_of("data"),
            "config": self._record(),
            "categories": [{"id": c.id, "name": c.name} for c in self.datamodule.categories],
            "short_side": self.datamodule.val_short_side,
            "max_long_side": self.datamodule.max_long_side,
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert not kwargs
        parts, config = self.config_init, self.config_init.trainer
        best = BestCheckpoint("val/mask_AP" if parts.data.val_dataset.has_masks else "val/box_AP")
        callbacks = [parts.temperature, parts.progress, parts.loader_timeout, best]
        if not config.fast_dev_run:
            checkpoint = None if self._resumed is None else self._resumed.path
            run_config = RunConfig(yaml.safe_dump(self._record(), sort_keys=False), checkpoint)
            callbacks += [parts.last_checkpoint, parts.validation_images, run_config]
        return build_trainer(vars(config), callbacks, self.config.process_timeout)

    def fit(self) -> None:
        """Trains; resumes if ``--ckpt_path`` is set.

        Raises:
            Stopped: a signal ended the training; a checkpoint is written.
        """
        resumed = self._resumed
        checkpoint = None if resumed is None else resumed.path
        if self.config.trainer.fast_dev_run:
            self._train(checkpoint)
            return
        if resumed is not None and resumed.ended and self._origin.ckpt_path == "auto":
            self.run_folder = resumed.run
            rank_zero_info(resumed.at_end())
            return
        self._open_run_folder(0 if resumed is None else resumed.step)
        assert self.run_folder is not None
        with lock_run(self.run_folder) if self.trainer.is_global_zero else nullcontext():
            self._train(checkpoint)
        if resumed is not None and resumed.step == self.trainer.global_step:
            rank_zero_info(resumed.at_end())

    def _train(self, checkpoint: Path | None) -> None:
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        rank_zero_info(
            f"parameters: {sum(n for n, _ in counts):,}, trained: "
            f"{sum(n for n, trained in counts if trained):,}\nrun folder: {self.run_folder}"
        )
        last: LastCheckpoint = self.config_init.last_checkpoint
        try:
            with trainer_errors(), quiet_writers():
                self.trainer.fit(
                    self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True
                )
        except (Stopped, RuntimeError, OSError, ValueError) as error:
            kill_workers()
            if last.saved_step >= 0:
                resume = command("train", "--ckpt_path", last.path)
                rank_zero_info(
                    f"\nstopped; {last.path} is after {last.saved_step} steps; to resume:\n"
                    f"  {resume}"
                )
            if last.signals.received:
                raise Stopped(last.signals.received) from error
            if explanation := explain(error):
                raise ValueError(explanation) from error
            raise
        finally:
            last.signals.restore()

    def _open_run_folder(self, step: int) -> None:
        """The run folder decides where all files go, whatever the configuration's loggers are."""
        self.run_folder = None if self._resumed is None else self._resumed.run
        if self.run_folder is None:
            runs = self._origin.runs
            # The other ranks receive it from rank 0 as soon as they are connected.
            self.run_folder = reserve_run(runs) if self.trainer.is_global_zero else runs / "version"
        own = run_loggers(self.run_folder, step, self.config.trainer.logger is not False)
        self.trainer.loggers = [*own, *self.trainer.loggers]


def _tell_what_stays_random(backbone: Mapping[str, Any]) -> None:
    frozen = {"freeze_stages": 0, "norm": "batch"}
    wrong = {k: v for k, v in frozen.items() if backbone[k] != v}
    if wrong:
        prefix = "model.network.backbone"
        now = " and ".join(f"{prefix}.{key} {backbone[key]}" for key in wrong)
        cure = " ".join(f"--{prefix}.{key} {value}" for key, value in wrong.items())
        rank_zero_info(f"{prefix}.weights is null, and {now} keep them random; {cure} trains all")


parser = training_parser


def main(args: Sequence[str] | None = None) -> CommandLine:
    """Trains, then prints where the results are and the next commands.

    Args:
        args: the arguments; None for those of the process.

    Raises:
        SystemExit: code 2 after an error that the user can correct; 128 + signal when stopped.
    """
    args = sys.argv[1:] if args is None else args
    if asks_for_help(args):
        print(as_typed(TRAIN), end="")
        raise SystemExit(0)
    with user_errors(LESS_MEMORY):
        cli = CommandLine(args)
        cli.fit()
    if cli.trainer.is_global_zero:
        print(f"\n{_results(cli)}")
    return cli


def _results(cli: CommandLine) -> str:
    """The files that a run has written, and the next commands."""
    run = cli.run_folder
    if run is None:
        return "fast_dev_run: nothing was written"
    files = [name for name in ("checkpoints", "metrics.csv", "images") if (run / name).exists()]
    lines = [f"{', '.join(files)} are in {run}"]
    checkpoint = best_of(run / "checkpoints")
    if checkpoint is not None:
        image, depth = cli.datamodule.val_dataset.files(0)
        depth_option = ["--depth", depth] if depth else []
        lines += [
            "next:",
            "  " + command("eval", "--checkpoint", checkpoint),
            "  " + command("predict", "--checkpoint", checkpoint, image, *depth_option),
        ]
    return "\n".join(lines)

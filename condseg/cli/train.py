"""``python tools/train.py --config quickstart.yaml``: trains a model.

``configs/default.yaml`` is overridden by each ``--config`` file, later files override earlier
ones, and options (``--key value``) override files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from condseg.cli.messages import silence_irrelevant_warnings
from condseg.cli.parser import CONFIGS, ConfigFile, Parser
from condseg.data.datamodule import DataModule
from condseg.errors import user_errors
from condseg.models.postprocess import postprocess_arguments
from condseg.ops.precision import fast_precision
from condseg.training.build import build_module
from condseg.training.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    LoaderTimeout,
    Progress,
    TemperatureAnnealing,
    ValidationImages,
)
from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.training.failures import explain, kill_workers
from condseg.training.runs import check_same_network, find_checkpoint, run_loggers
from condseg.training.signals import Stopped
from condseg.training.sync_batchnorm import SyncBatchNorm
from condseg.zoo.checkpoint import RECIPE, load, restrict_parsing
from condseg.zoo.pretrained import start_content, start_from

LESS_MEMORY = (
    "a lower --data.batch_size (with --trainer.accumulate_grad_batches), lower --data.short_sides, "
    "--model.mask_loss.topk_proposals_per_image 32, --trainer.precision bf16-mixed"
)


class CommandLine(LightningCLI):
    """Parses the arguments and builds data, model and trainer from them.

    ``default.yaml`` < network of ``--init_from`` < ``--config`` files < ``--key value``. The data
    is built first, as it determines the number of classes.

    Args:
        args: the arguments; None for those of the process.

    Attributes:
        run_folder: folder of checkpoints, logs and images; set by :meth:`fit`.
    """

    run_folder: Path

    def __init__(self, args: Sequence[str] | None = None) -> None:
        restrict_parsing()
        silence_irrelevant_warnings()
        self._checkpoint: Path | None = None
        self._step = 0
        init_from = _init_from(args)
        self._start = None if init_from is None else start_content(init_from)
        super().__init__(
            build_module,
            DataModule,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [BestCheckpoint()]},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},
            args=None if args is None else list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="configuration file; may be repeated"
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, which warns when ``args`` are passed by a program that has its own."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from; 'last' is that of this configuration's newest run",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="checkpoint, or name of a published model, with whose network and weights to "
            "start; the classes may differ",
        )
        parser.add_argument(
            "--process_timeout",
            type=PositiveFloat,
            default=900.0,
            help="seconds after which a process of the training that does not answer the others "
            "is an error; more than a validation's evaluation takes",
        )
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(LoaderTimeout, "loader_timeout")
        parser.add_lightning_class_args(TemperatureAnnealing, "temperature")
        parser.add_lightning_class_args(ValidationImages, "validation_images")
        parser.add_lightning_class_args(Progress, "progress")
        parser.link_arguments(
            "data.num_classes", "model.network.num_classes", apply_on="instantiate"
        )
        parser.link_arguments("data.supervision", "model.mask_loss.supervision")
        parser.link_arguments(
            "model.network.depth_channels", "data.depth", compute_fn=_is_not_none, apply_on="parse"
        )
        parser.set_defaults(yaml.safe_load((CONFIGS / "default.yaml").read_text()))
        if self._start is not None:
            parser.set_defaults({"model": _start_defaults(self._start)})

    @property
    def name(self) -> str:
        """The configurations' names, joined: the name of the folder of their runs."""
        files = [Path(str(path)).stem for path in self.config.get("config") or []]
        return "-".join(files) or "default"

    def before_instantiate_classes(self) -> None:
        self._checkpoint = find_checkpoint(self.config.ckpt_path, self._runs, self._command())
        network = self._config_of("model")["network"]
        may_differ = {"num_classes", "backbone.weights"}
        if self._checkpoint is not None:
            content = load(self._checkpoint)
            self._step = int(content["global_step"])
            if RECIPE not in content:
                raise ValueError(f"checkpoint {self._checkpoint}: not written by tools/train.py")
            other = content[RECIPE]["model"]["network"]
            check_same_network(f"checkpoint {self._checkpoint}", other, network, may_differ)
        if self.config.init_from is not None:
            # An init_from in a file is known too late to be a default below the files.
            self._start = self._start or start_content(self.config.init_from)
            other = self._start[RECIPE]["model"]["network"]
            may_differ |= {"backbone.freeze_stages", "backbone.norm"}  # how it is trained
            check_same_network(f"--init_from {self.config.init_from}", other, network, may_differ)

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.trainer = self.instantiate_trainer()
        if self._start is not None and self._checkpoint is None:
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
            "categories": [{"id": c.id, "name": c.name} for c in self.datamodule.categories],
            "short_side": self.datamodule.val_short_side,
            "max_long_side": self.datamodule.max_long_side,
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if config.sync_batchnorm:
            kwargs |= {"sync_batchnorm": False}
            kwargs["plugins"].append(SyncBatchNorm())
        if config.logger in (None, True):
            kwargs["logger"] = run_loggers(self._runs, self._checkpoint, self._step)
        if config.precision is None:
            kwargs["precision"] = fast_precision(config.accelerator)
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy) and isinstance(config.strategy, str):
            trainer.strategy._timeout = timedelta(seconds=self.config.process_timeout)
        return trainer

    def fit(self) -> None:
        """Trains; resumes if ``--ckpt_path`` is set.

        Raises:
            Stopped: a signal ended the training; a checkpoint is written.
        """
        self.run_folder = Path(str(self.trainer.log_dir))  # a collective call: on all ranks
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        rank_zero_info(
            f"parameters: {sum(n for n, _ in counts):,}, trained: "
            f"{sum(n for n, trained in counts if trained):,}\nrun folder: {self.run_folder}"
        )
        last: LastCheckpoint = self.config_init.last_checkpoint
        try:
            self.trainer.fit(
                self.model, self.datamodule, ckpt_path=self._checkpoint, weights_only=True
            )
        except (Stopped, RuntimeError, OSError, ValueError) as error:
            kill_workers()
            if last.saved_step >= 0:
                rank_zero_info(
                    f"\nstopped; {last.path} is after {last.saved_step} steps; to resume:\n"
                    f"  {self._command()} --ckpt_path last"
                )
            if last.signals.received:
                raise Stopped(last.signals.received) from error
            if explanation := explain(error):
                raise ValueError(explanation) from error
            raise
        finally:
            last.signals.restore()

    @property
    def _runs(self) -> Path:
        return Path(self.config.trainer.default_root_dir or "runs") / self.name

    def _config_of(self, group: str) -> dict[str, Any]:
        """The configuration of an argument group as plain data."""
        if not hasattr(self, "config_dump"):
            self._dump_config()
        return dict(self.config_dump[group])

    def _command(self) -> str:
        files = [f"--config {Path(str(path)).name}" for path in self.config.get("config") or []]
        start = [f"--init_from {self.config.init_from}"] if self.config.init_from else []
        return " ".join(["python tools/train.py", *files, *start])


def _init_from(args: Sequence[str] | None) -> str | None:
    """``--init_from``, which must be known before the parser is built."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init_from")
    init_from: str | None = parser.parse_known_args(args)[0].init_from
    return init_from


def _start_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """The network and post-process of a checkpoint, as defaults of ``model``."""
    model = content[RECIPE]["model"]
    network = {key: value for key, value in model["network"].items() if key != "num_classes"}
    network["backbone"] = {**network["backbone"], "weights": None}
    return {"network": network, "postprocess": postprocess_arguments(model["postprocess"])}


def _is_not_none(value: object) -> bool:
    return value is not None


def main(args: Sequence[str] | None = None) -> CommandLine:
    """Trains, then prints where the results are and the next commands.

    Args:
        args: the arguments; None for those of the process.

    Raises:
        SystemExit: code 2 after an error that the user can correct; 128 + signal when stopped.
    """
    with user_errors(LESS_MEMORY):
        cli = CommandLine(args)
        cli.fit()
    if cli.trainer.is_global_zero:
        best = cli.run_folder / "checkpoints" / "best.ckpt"
        image, depth = cli.datamodule.val_dataset.files(0)
        depth_option = f" --depth {depth}" if depth else ""
        print(f"\ncheckpoints, metrics.csv and images are in {cli.run_folder}\nnext:")
        print(f"  python tools/eval.py --checkpoint {best}")
        print(f"  python tools/demo.py --checkpoint {best} {image}{depth_option}")
    return cli

"""``condseg train --data my/dataset``, ``condseg train --config quickstart``: trains a model.

``--data``, a folder or a json (then with ``--images``, the folder of its images), without a
configuration file chooses all options by the data and the machine, and prints them. Otherwise,
``configs/default.yaml`` is overridden by each ``--config`` file, later files override earlier
ones, and options (``--key value``) override files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from condseg.cli.config_files import CONFIGS, read_config
from condseg.cli.messages import command, silence_irrelevant_warnings
from condseg.cli.own_data import HELP, Plan, expand
from condseg.cli.parser import ConfigFile, Origin, Parser
from condseg.cli.trainer import build_trainer, trainer_errors
from condseg.data.datamodule import DataModule
from condseg.errors import user_errors
from condseg.models.postprocess import postprocess_arguments
from condseg.training.build import build_module
from condseg.training.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    LoaderTimeout,
    Progress,
    RunConfig,
    TemperatureAnnealing,
    ValidationImages,
)
from condseg.training.config_differences import check_same_network
from condseg.training.failures import explain, kill_workers
from condseg.training.metrics_file import run_loggers
from condseg.training.resume import ResumePoint
from condseg.training.runs import last_of, newest_checkpoint, newest_run, reserve_run
from condseg.training.signals import Stopped
from condseg.zoo.checkpoint import RECIPE, best_of, restrict_parsing
from condseg.zoo.pretrained import start_content, start_from

LESS_MEMORY = (
    "a lower --data.batch_size (with --trainer.accumulate_grad_batches), lower --data.short_sides, "
    "--model.mask_loss.topk_proposals_per_image 32, --trainer.precision bf16-mixed"
)


class CommandLine(LightningCLI):
    """Parses the arguments and builds data, model and trainer from them.

    ``default.yaml`` < plan of ``--data`` < network of ``--init_from``, or configuration of the run
    of ``--ckpt_path`` < ``--config`` files < ``--key value``. The data is built first, as it
    determines the number of classes.

    Args:
        args: the arguments; None for those of the process.

    Attributes:
        run_folder: folder of checkpoints, logs and images; set by :meth:`fit`, and None if the
            trainer's ``fast_dev_run`` is set, with which nothing is written.
    """

    run_folder: Path | None = None

    def __init__(self, args: Sequence[str] | None = None) -> None:
        restrict_parsing()
        silence_irrelevant_warnings()
        args = sys.argv[1:] if args is None else list(args)
        self._origin = Origin.of(args)
        self._plan = Plan.of(self._origin)
        self._resumed: ResumePoint | None = None
        self._start: Mapping[str, Any] | None = None
        if self._origin.ckpt_path == "last":
            self._resumed = ResumePoint.of(newest_checkpoint(self._origin.runs))
        elif self._origin.ckpt_path not in (None, "auto"):
            self._resumed = ResumePoint.of(Path(self._origin.ckpt_path))
        elif self._origin.init_from is not None:
            self._start = start_content(self._origin.init_from)
        super().__init__(
            build_module,
            DataModule,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},
            args=expand(args),
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
        if self._resumed is not None:
            for name in ("callbacks", "logger"):
                self._replace_parts(name, _list_of(self._resumed.config, name))

    def _replace_parts(self, name: str, before: list[Any]) -> None:
        """Drops the run's parts of whose class one was added, as ``--config`` files add theirs."""
        parts = _list_of(self._record(), name)
        if parts[: len(before)] == before:
            added = {part["class_path"] for part in parts[len(before) :]}
            kept = [part["class_path"] not in added for part in before]
            kept += [True] * (len(parts) - len(before))
            if not all(kept):
                trainer = self.config.trainer
                trainer[name] = [p for p, keep in zip(trainer[name], kept, strict=True) if keep]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from, with its run's configuration, which files and "
            "options override; 'last' is that of the newest run with these configuration files; "
            "'auto' resumes the newest run of exactly this configuration, or starts one",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="checkpoint, or name of a published model, with whose network and weights to "
            "start; the classes may differ",
        )
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="folder of the run in trainer.default_root_dir; by default, the names of the "
            "configuration files, or that of the data",
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
        (data,) = (action for action in parser._actions if action.dest == "data")
        data.help, data.metavar = HELP, "PATH"
        parser.set_defaults(read_config(CONFIGS / "default.yaml"))
        if self._plan is not None:
            parser.set_defaults(self._plan.defaults(self._start))
        if self._start is not None:
            parser.set_defaults({"model": _start_defaults(self._start)})
        if self._resumed is not None:
            assert isinstance(parser, Parser)
            parser.set_checked_defaults(self._resumed.config, self._resumed.config_source)

    @property
    def name(self) -> str:
        """The configurations' names, joined: the name of the folder of their runs."""
        return self._origin.runs.name

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
        step = 0 if self._resumed is None else self._resumed.step
        if not self.config.trainer.fast_dev_run:
            self._open_run_folder(step)
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        rank_zero_info(
            f"parameters: {sum(n for n, _ in counts):,}, trained: "
            f"{sum(n for n, trained in counts if trained):,}\nrun folder: {self.run_folder}"
        )
        checkpoint = None if self._resumed is None else self._resumed.path
        last: LastCheckpoint = self.config_init.last_checkpoint
        try:
            with trainer_errors():
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
        if step and self.trainer.global_step == step:
            rank_zero_info(
                f"{checkpoint} is at the end of its training of {step} steps; "
                "a larger --trainer.max_steps continues it"
            )

    def _open_run_folder(self, step: int) -> None:
        """The run folder decides where all files go, whatever the configuration's loggers are."""
        self.run_folder = None if self._resumed is None else self._resumed.run
        if self.run_folder is None:
            runs = self._origin.runs
            # The other ranks receive it from rank 0 as soon as they are connected.
            self.run_folder = reserve_run(runs) if self.trainer.is_global_zero else runs / "version"
        own = run_loggers(self.run_folder, step, self.config.trainer.logger is not False)
        self.trainer.loggers = [*own, *self.trainer.loggers]

    def _config_of(self, group: str) -> dict[str, Any]:
        """The configuration of an argument group as plain data."""
        if not hasattr(self, "config_dump"):
            self._dump_config()
        return dict(self.config_dump[group])

    def _record(self) -> dict[str, Any]:
        """The configuration as plain data, from which the same run can be started or resumed."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        return {key: value for key, value in yaml.safe_load(text).items() if key != "ckpt_path"}


def _list_of(config: Mapping[str, Any], name: str) -> list[Any]:
    value = (config.get("trainer") or {}).get(name)
    return value if isinstance(value, list) else []


def _start_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """The network and post-process of a checkpoint, as defaults of ``model``."""
    model = content[RECIPE]["model"]
    network = {key: value for key, value in model["network"].items() if key != "num_classes"}
    network["backbone"] = {**network["backbone"], "weights": None}
    return {"network": network, "postprocess": postprocess_arguments(model["postprocess"])}


def _tell_what_stays_random(backbone: Mapping[str, Any]) -> None:
    frozen = {"freeze_stages": 0, "norm": "batch"}
    wrong = {k: v for k, v in frozen.items() if backbone[k] != v}
    if wrong:
        prefix = "model.network.backbone"
        now = " and ".join(f"{prefix}.{key} {backbone[key]}" for key in wrong)
        cure = " ".join(f"--{prefix}.{key} {value}" for key, value in wrong.items())
        rank_zero_info(f"{prefix}.weights is null, and {now} keep them random; {cure} trains all")


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

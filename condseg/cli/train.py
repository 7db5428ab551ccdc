"""The command line of the training: configurations laid over each other, errors in one line."""

from __future__ import annotations

import argparse
import csv
import difflib
import importlib
import inspect
import logging
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info

from condseg.data.datamodule import DataModule
from condseg.errors import user_errors
from condseg.training.callbacks import (
    LastCheckpoint,
    Progress,
    Stopped,
    TemperatureAnnealing,
    ValidationPictures,
)
from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.training.module import CondInstModule
from condseg.training.sync_batchnorm import SyncBatchNorm
from condseg.zoo.checkpoint import CONCRETE, RECIPE, load, restrict_parsing
from condseg.zoo.pretrained import start_content, start_from

LESS_MEMORY = (
    "a lower --data.batch_size (with --trainer.accumulate_grad_batches), lower --data.short_sides, "
    "--model.criterion.topk_proposals_per_image 32, --trainer.precision bf16-mixed"
)


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are one line: what is wrong, and the nearest right name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside of another, which knows where we are
            super().error(message, ex)
        keys = {action.dest for action in self._actions}
        sys.stderr.write(f"error: {one_line(message, keys)}\n")
        raise SystemExit(2)


def one_line(message: str, keys: Iterable[str]) -> str:
    """What a user needs of the parser's message.

    Args:
        message: of jsonargparse, maybe of many lines.
        keys: full names of the parser's arguments.
    """
    if match := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        return _unknown_key(".".join(match.groups()), keys)
    if match := re.search(r"unrecognized arguments: --([^\s=]+)", message):
        return _unknown_key(match[1], keys)
    if match := re.search(r"Key '(\S+)' is not expected", message):
        return _unknown_key(match[1], keys)
    where = match[1] if (match := re.search(r'Parser key "(\S+?)"', message)) else ""
    if match := re.search(r"Option '(\S+)' is not accepted", message):
        owner = re.search(r"class_path[= ]'([\w.]+)'", message)
        names = _arguments_of(owner[1]) if owner else []
        flat = owner and owner[1].rpartition(".")[2] in {part.__name__ for part in CONCRETE}
        level = where if flat else f"{where}.init_args"
        return _unknown_key(f"{level}.{match[1]}", [f"{level}.{name}" for name in names])
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        names = [f"{match[1]}.{name}" for name in dir(importlib.import_module(match[1]))]
        return f"{where}: no class {match[1]}.{match[2]}" + _nearest(
            f"{match[1]}.{match[2]}", names
        )
    if match := re.search(r"Importing '(\S+)' is not allowed", message):
        return (
            f"{where}: {match[1]} is not allowed; classes of condseg, torch.nn, torch.optim and "
            "lightning.pytorch are"
        )
    if match := re.search(r"Expected an? (.+?)\. Got value: (.*)", message):
        wanted = re.sub(r"<class '([\w.]+)'>|typing\.", r"\1", match[1])
        return f"{where}: {match[2]!r} is wrong, {wanted} is allowed"
    return " ".join(message.split())


def _unknown_key(key: str, keys: Iterable[str]) -> str:
    return f"unknown key {key}" + _nearest(key, keys)


def _nearest(name: str, names: Iterable[str]) -> str:
    """The most similar name; the last part counts first, for typos are seldom in two parts."""
    head, _, tail = name.rpartition(".")
    brothers = {n.rpartition(".")[2].lower(): n for n in names if n.rpartition(".")[0] == head}
    near = difflib.get_close_matches(tail.lower(), brothers, 1)
    found = [brothers[n] for n in near] or difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):
        return []


class ConfigFile(ActionConfigFile):
    """``--config NAME.yaml``: a file where it says, else the one of this name in ``configs/``."""

    folder = Path("configs")

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        path = Path(str(values))
        if not path.is_file():
            path = self.folder / path.name
        if not path.is_file():
            known = sorted(p.name for p in self.folder.glob("*.yaml"))
            parser.error(
                f"no configuration {values}{_nearest(str(values), known)} "
                f"There are {', '.join(known)}"
            )
        _check_top_level(parser, path)
        super().__call__(parser, cfg, str(path), option_string)  # type: ignore[no-untyped-call]


def _check_top_level(parser: Any, path: Path) -> None:
    """jsonargparse passes over an unknown group of the first level when it is empty below."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        parser.error(f"{path}: no YAML: {' '.join(str(error).split())}")
    if content is None:
        return
    if not isinstance(content, dict):
        parser.error(f"{path}: must have keys and values, has {type(content).__name__}")
    known = {action.dest.split(".")[0] for action in parser._actions}
    for key in content:
        if key.rstrip("+") not in known:
            parser.error(f"{path}: " + _unknown_key(str(key), known))


class MetricsWriter(ExperimentWriter):
    """Goes on in a ``metrics.csv`` that is there, without the rows a resumed run writes again."""

    def __init__(self, log_dir: str, first_step: int) -> None:
        self.first_step = first_step
        super().__init__(log_dir)
        if Path(self.metrics_file_path).is_file():
            self._keep_until(first_step)

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file here."""

    def _keep_until(self, first_step: int) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.metrics_keys = list(reader.fieldnames or [])
            rows = [row for row in reader if int(row["step"]) < first_step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class MetricsLogger(CSVLogger):
    """Lightning's CSV logger, but a resumed run goes on in its own file.

    Args:
        save_dir: folder of all runs.
        name: folder of the configuration.
        version: folder of the run.
        first_step: rows from this step on are dropped, for the run writes them again.
    """

    def __init__(self, save_dir: str, name: str, version: str, first_step: int = 0) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=1)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = MetricsWriter(self.log_dir, self.first_step)
        return self._experiment


class CommandLine(LightningCLI):
    """``default.yaml`` < ``--config a.yaml`` < ``--config b.yaml`` < ``--key value``.

    The data is built first (and complains first); it says how many classes the network has.

    Args:
        configs: folder with ``default.yaml`` and the files that go by their bare names.
        args: the words of the command line; None takes the process's own.

    Attributes:
        run_folder: where :meth:`fit` puts checkpoints, logs and pictures.
    """

    run_folder: Path

    def __init__(self, configs: Path, args: Sequence[str] | None = None) -> None:
        restrict_parsing()
        _hush()
        self._configs = configs
        self._checkpoint: Path | None = None
        self._step = 0
        asked = _asked_start(args)
        self._start = None if asked is None else start_content(asked)
        with _start_layer(self._start) as layer:
            self._parse_and_build(configs, args, layer)

    def _parse_and_build(
        self, configs: Path, args: Sequence[str] | None, layer: Sequence[str]
    ) -> None:
        super().__init__(
            CondInstModule,
            DataModule,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "callbacks": [
                    ModelCheckpoint(
                        monitor="val/mask_AP",
                        mode="max",
                        filename="best",
                        enable_version_counter=False,
                    )
                ]
            },
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,
                "default_config_files": [str(configs / "default.yaml"), *layer],
            },
            args=None if args is None else list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        action = type("ConfigFile", (ConfigFile,), {"folder": self._configs})
        parser.add_argument("-c", "--config", action=action, help="configuration file; may repeat")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's warns when a program that has words of its own passes others on."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to go on from; 'last' is that of this configuration's newest run",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="checkpoint, or name of a published model, whose network and weights to start "
            "from; the classes may be other ones",
        )
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(TemperatureAnnealing, "temperature")
        parser.add_lightning_class_args(ValidationPictures, "pictures")
        parser.add_lightning_class_args(Progress, "progress")
        parser.link_arguments(
            "data.num_classes", "model.network.num_classes", apply_on="instantiate"
        )
        parser.link_arguments("data.supervision", "model.criterion.supervision")
        parser.link_arguments(
            "model.network.depth_channels", "data.depth", compute_fn=_is_given, apply_on="parse"
        )

    @property
    def name(self) -> str:
        """Names of the configurations, which is what the run's folder is called."""
        files = [Path(str(path)).stem for path in self.config.get("config") or []]
        return "-".join(files) or "default"

    def before_instantiate_classes(self) -> None:
        self._checkpoint = find_checkpoint(
            self.config.ckpt_path, self._runs / self.name, self._command()
        )
        if self._checkpoint is not None:
            content = load(self._checkpoint)
            self._step = int(content["global_step"])
            self._check_same_model(content.get(RECIPE) or {})
        if self.config.init_from is not None:
            # Asked for in a file, it could not lie below the configurations, which must fit it.
            self._start = self._start or start_content(self.config.init_from)
            self._check_same_start(self._start[RECIPE]["model"]["network"])

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule, self.model = self.config_init.data, self.config_init.model
        self.trainer = self.instantiate_trainer()
        if self._start is not None and self._checkpoint is None:
            done = start_from(
                self.model.network,
                self._start,
                self.datamodule.categories,
                self.config.init_from,
            )
            rank_zero_info(done)
        self._start = None  # its tensors are in the network now
        data = self._plain("data")
        self.model.recipe = {
            "model": {part: self._plain(f"model.{part}") for part in ("network", "postprocess")},
            "data": data,
            "categories": [{"id": c.id, "name": c.name} for c in self.datamodule.categories],
            "short_side": self.datamodule.val_short_side,
            "max_long_side": self.datamodule.max_long_side,
        }
        self.model.recipe["model"]["network"]["num_classes"] = self.datamodule.num_classes

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if config.sync_batchnorm:
            kwargs |= {"sync_batchnorm": False}
            kwargs["plugins"].append(SyncBatchNorm())
        if config.logger in (None, True):
            kwargs["logger"] = self._loggers()
        if config.precision is None:
            kwargs["precision"] = fast_precision(config.accelerator)
        return super().instantiate_trainer(**kwargs)

    def fit(self) -> None:
        """Trains, from the checkpoint if one is given.

        Raises:
            Stopped: a signal came; a checkpoint is left.
        """
        self.run_folder = Path(str(self.trainer.log_dir))  # all ranks take part in asking
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        rank_zero_info(
            f"parameters: {sum(n for n, _ in counts):,}, of which "
            f"{sum(n for n, trains in counts if trains):,} train\nrun folder: {self.run_folder}"
        )
        last: LastCheckpoint = self.config_init.last_checkpoint
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        try:
            self.trainer.fit(
                self.model, self.datamodule, ckpt_path=self._checkpoint, weights_only=True
            )
        except (Stopped, RuntimeError, OSError) as error:
            if not last.signal:
                raise
            rank_zero_info(
                f"\nstopped; {last.path} is after {last.saved_step} steps; to go on:\n"
                f"  {self._command()} --ckpt_path last"
            )
            raise Stopped(last.signal) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @property
    def _runs(self) -> Path:
        return Path(self.config.trainer.default_root_dir or "runs")

    def _loggers(self) -> list[Any]:
        folder = self._runs / self.name
        if self._checkpoint is not None and self._checkpoint.parent.name == "checkpoints":
            run = self._checkpoint.resolve().parent.parent
        else:
            run = folder / f"version_{max(map(_version, folder.glob('version_*')), default=-1) + 1}"
        where: dict[str, Any] = {
            "save_dir": str(run.parent.parent),
            "name": run.parent.name,
            "version": run.name,
        }
        purge: dict[str, Any] = {"purge_step": self._step} if self._step else {}
        return [
            TensorBoardLogger(**where, default_hp_metric=False, **purge),
            MetricsLogger(**where, first_step=self._step),
        ]

    def _plain(self, key: str) -> dict[str, Any]:
        """An argument group as plain data."""
        if not hasattr(self, "config_dump"):
            self._dump_config()
        content: Any = self.config_dump
        for part in key.split("."):
            content = content[part]
        return dict(content)

    def _check_same_model(self, recipe: Mapping[str, Any]) -> None:
        """A checkpoint of another network is named as such, key by key."""
        if not recipe:
            raise ValueError(f"checkpoint {self._checkpoint}: not written by tools/train.py")
        there = _flat(recipe["model"]["network"])
        here = _flat(self._plain("model.network"))
        ignored = ("num_classes", "backbone.weights")
        for key in sorted(there.keys() | here.keys()):
            if not key.startswith(ignored) and there.get(key) != here.get(key):
                raise ValueError(
                    f"checkpoint {self._checkpoint} has model.network.{key} {there.get(key)}, "
                    f"this configuration {here.get(key)}"
                )

    def _check_same_start(self, start: Mapping[str, Any]) -> None:
        """Configurations may change how the start's network trains, not what it computes."""
        there, here = _flat(start), _flat(self._plain("model.network"))
        ignored = ("num_classes", "backbone.weights", "backbone.freeze_stages", "backbone.norm")
        for key in sorted(there):
            if not key.startswith(ignored) and there[key] != here.get(key):
                raise ValueError(
                    f"--init_from {self.config.init_from} has model.network.{key} {there[key]}, "
                    f"this configuration {here.get(key)}"
                )

    def _command(self) -> str:
        files = [f"--config {Path(str(path)).name}" for path in self.config.get("config") or []]
        start = [f"--init_from {self.config.init_from}"] if self.config.init_from else []
        return " ".join(["python tools/train.py", *files, *start])


def _asked_start(args: Sequence[str] | None) -> str | None:
    """``--init_from``, which must be known before the parser is built."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--init_from")
    start: str | None = parser.parse_known_args(args)[0].init_from
    return start


@contextmanager
def _start_layer(content: Mapping[str, Any] | None) -> Iterator[list[str]]:
    """The start's network as a file that lies between ``default.yaml`` and the configurations."""
    if content is None:
        yield []
        return
    model = content[RECIPE]["model"]
    network = {key: value for key, value in model["network"].items() if key != "num_classes"}
    network["backbone"] = {**network["backbone"], "weights": None}
    layer = {"model": {"network": network, "postprocess": model["postprocess"]}}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(layer, file)
        file.flush()
        yield [file.name]


def _hush() -> None:
    """What Lightning says that no user can act on: advertisements, its own use of old names."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # The figures are those of all ranks already.
    warnings.filterwarnings("ignore", message=".*self.log\\('val/")
    # Frozen parts of the backbone stay in eval mode, as they should.
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: "Tip:" not in record.getMessage())


def fast_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 where the machine has instructions for it (twice as fast, and half the memory).

    Args:
        accelerator: as the trainer takes it, "auto", "cpu", "gpu", ...
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def find_checkpoint(asked: str | None, runs: Path, command: str = "") -> Path | None:
    """The checkpoint to go on from.

    Args:
        asked: a path, ``last`` or None.
        runs: folder of this configuration's runs.
        command: how to start a run without, for the message.

    Raises:
        ValueError: where there is none.
    """
    if asked is None:
        return None
    if asked != "last":
        return Path(asked)
    found = runs.glob("version_*/checkpoints/last.ckpt")
    newest: Path | None = max(found, key=lambda path: _version(path.parents[1]), default=None)
    if newest is None:
        raise ValueError(f"--ckpt_path last: no run in {runs} has one; start with: {command}")
    return newest


def _version(folder: Path) -> int:
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _is_given(value: object) -> bool:
    return value is not None


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def main(configs: Path, args: Sequence[str] | None = None) -> CommandLine:
    """Parses, builds and trains; what a user can put right ends in one line and code 2."""
    with user_errors(LESS_MEMORY):
        cli = CommandLine(configs, args)
        cli.fit()
    return cli

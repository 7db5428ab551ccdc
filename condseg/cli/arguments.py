"""The arguments of the training command, and the layers of defaults below them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse.typing import PositiveFloat
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from condseg.cli.config_files import CONFIGS, read_config
from condseg.cli.messages import silence_irrelevant_warnings
from condseg.cli.own_data import HELP, Plan, expand
from condseg.cli.parser import ConfigFile, Origin, Parser
from condseg.cli.reference import HelpAll
from condseg.data.datamodule import DataModule
from condseg.models.postprocess import postprocess_arguments
from condseg.training.build import build_module
from condseg.training.callbacks import (
    LastCheckpoint,
    LoaderTimeout,
    Progress,
    TemperatureAnnealing,
    ValidationImages,
)
from condseg.training.resume import ResumePoint
from condseg.training.runs import newest_checkpoint
from condseg.zoo.allowed import allowing
from condseg.zoo.checkpoint import RECIPE, restrict_parsing
from condseg.zoo.pretrained import start_content

NOT_RECORDED = ("ckpt_path", "allow", "images")


class TrainingArguments(LightningCLI):
    """Parses the arguments of a training.

    ``default.yaml`` < plan of ``--data`` < network of ``--init_from``, or configuration of the run
    of ``--ckpt_path`` < ``--config`` files < ``--key value``.

    Args:
        args: the arguments; None for those of the process.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        restrict_parsing()
        silence_irrelevant_warnings()
        self._resumed: ResumePoint | None = None
        self._start: Mapping[str, Any] | None = None
        args = sys.argv[1:] if args is None else list(args)
        self._origin = Origin.of(args)
        with allowing(self._origin.allow):
            self._parse_and_build(args)

    def _parse_and_build(self, args: Sequence[str]) -> None:
        self._plan = Plan.of(self._origin)
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
        parser.add_argument("--help-all", action=HelpAll, help="print every option")
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="configuration file; may be repeated"
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, which warns when ``args`` are passed by a program that has its own."""
        self.config = parser.parse_args(args)
        assert isinstance(parser, Parser)
        parser.check_groups(self.config)
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
        parser.add_argument("--images", metavar="PATH", help="folder of the images, for a json")
        parser.add_argument(
            "--allow",
            metavar="PACKAGE",
            help="package or module whose classes configurations and checkpoints may name, which "
            "runs its code; also of the current folder; may be repeated",
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
            parser.set_defaults({"model": start_defaults(self._start)})
        if self._resumed is not None:
            assert isinstance(parser, Parser)
            parser.set_checked_defaults(self._resumed.config, self._resumed.config_source)

    @property
    def name(self) -> str:
        """The configurations' names, joined: the name of the folder of their runs."""
        return self._origin.runs.name

    def _config_of(self, group: str) -> dict[str, Any]:
        """The configuration of an argument group as plain data."""
        if not hasattr(self, "config_dump"):
            self._dump_config()
        return dict(self.config_dump[group])

    def _record(self) -> dict[str, Any]:
        """The configuration as plain data, from which the same run can be started or resumed."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        return {
            key: value for key, value in yaml.safe_load(text).items() if key not in NOT_RECORDED
        }


class _OnlyParser(TrainingArguments):
    """Ends when its parser is built."""

    class Built(Exception):
        """Its argument is the parser."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise self.Built(parser)


def training_parser() -> LightningArgumentParser:
    """The parser of a training without arguments."""
    try:
        _OnlyParser([])
    except _OnlyParser.Built as built:
        parser: LightningArgumentParser = built.args[0]
        return parser
    raise AssertionError("LightningCLI parses its arguments")


def _list_of(config: Mapping[str, Any], name: str) -> list[Any]:
    value = (config.get("trainer") or {}).get(name)
    return value if isinstance(value, list) else []


def start_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """The network and post-process of a checkpoint, as defaults of ``model``."""
    model = content[RECIPE]["model"]
    network = {key: value for key, value in model["network"].items() if key != "num_classes"}
    network["backbone"] = {**network["backbone"], "weights": None}
    return {"network": network, "postprocess": postprocess_arguments(model["postprocess"])}


def _is_not_none(value: object) -> bool:
    return value is not None

"""The parser of the training's configuration files and options."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from condseg.cli.config_files import config_path, read_config
from condseg.cli.messages import one_line, unknown_key

NOT_IN_FILES = {"config", "print_config", "help", "allow", "images"}
"""Options of the command line alone."""


class Parser(LightningArgumentParser):
    """Lightning's parser with errors of one line, as ValueError."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser, whose caller knows the full key
            super().error(message, ex)
        keys = {action.dest for action in self._actions}
        raise ValueError(one_line(message, keys)) from ex

    def check_groups(self, config: Namespace) -> None:
        """Raises ValueError if there is a value in place of keys, which jsonargparse may accept."""
        names = [action.dest for action in self._actions if not action.dest.endswith(".help")]
        groups = {name[:n] for name in names for n, sign in enumerate(name) if sign == "."}
        for key in sorted(groups):
            value = config.get(key)
            if not isinstance(value, Namespace):
                raise ValueError(f"{key} must have keys and values, has {value!r}")

    def set_checked_defaults(self, config: Mapping[str, Any], source: str) -> None:
        """``set_defaults``, which checks nothing.

        Raises:
            ValueError: a key is unknown or a value is not allowed; names ``source``.
        """
        try:
            self.parse_object(copy.deepcopy(dict(config)))  # parsing changes the object
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        self.set_defaults(copy.deepcopy(dict(config)))


class ConfigFile(ActionConfigFile):
    """``--config NAME``: a path, or the name of a file in ``configs/``."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        try:
            path = config_path(str(values))
            _check_first_level(path, [action.dest for action in parser._actions])
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, str(path), option_string)  # type: ignore[no-untyped-call]


def _check_first_level(path: Path, keys: Sequence[str]) -> None:
    """jsonargparse ignores an unknown key of the first level without keys below it, and a list in
    place of a group.
    """
    names = {key.split(".")[0] for key in keys} - NOT_IN_FILES
    groups = {key.split(".")[0] for key in keys if "." in key}
    for key, value in read_config(path).items():
        if key.rstrip("+") not in names:
            raise ValueError(f"{path}: {unknown_key(key, names)}")
        if key in groups and not isinstance(value, dict):
            raise ValueError(f"{path}: {key} must have keys and values, has {value!r}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The options that decide from what a training starts, and so the defaults of all others.

    Attributes:
        configs: the configuration files.
        root: folder of all runs.
        ckpt_path: see ``--ckpt_path``.
        init_from: see ``--init_from``.
        name: see ``--name``.
        allow: see ``--allow``; not read from files, which may be another's.
        data, images: of ``--data`` and ``--images``.
        train_annotations, train_images, val_annotations, val_images: of the options ``--data.*``.
    """

    configs: tuple[str, ...] = ()
    root: str = "runs"
    ckpt_path: str | None = None
    init_from: str | None = None
    name: str | None = None
    allow: tuple[str, ...] = ()
    data: str | None = None
    images: str | None = None
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None

    @classmethod
    def of(cls, args: Sequence[str] | None) -> Origin:
        """Reads them from the arguments and their files, as the parser does later.

        Raises:
            ValueError: a file is missing or cannot be read.
        """
        parser = argparse.ArgumentParser(
            add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        parser.add_argument("-c", "--config", action="append", dest="configs", nargs="?")
        parser.add_argument("--trainer.default_root_dir", dest="root", nargs="?")
        for option in ("ckpt_path", "init_from", "name", "data", "images"):
            parser.add_argument(f"--{option}", nargs="?")
        parser.add_argument("--allow", action="append", nargs="?")
        for option in ("train_annotations", "train_images", "val_annotations", "val_images"):
            parser.add_argument(f"--data.{option}", dest=option, nargs="?")
        given = vars(parser.parse_known_args(args)[0])
        for option in ("configs", "allow"):
            given[option] = tuple(str(name) for name in given.get(option, ()) if name)
        in_files: dict[str, Any] = {}
        for name in given["configs"]:
            content = read_config(config_path(name))
            trainer = content.get("trainer")
            if isinstance(trainer, dict) and "default_root_dir" in trainer:
                in_files["root"] = trainer["default_root_dir"]
            keys = content.keys() & {"ckpt_path", "init_from", "name"}
            in_files |= {key: content[key] for key in keys}
        options: dict[str, Any] = {
            k: v
            for k, v in (in_files | given).items()
            if v != "null" and isinstance(v, str | tuple)
        }
        return cls(**options)

    @property
    def runs(self) -> Path:
        """Folder of this configuration's runs: its name, else the files' names, joined, else the
        data's.

        Raises:
            ValueError: the name is not that of a folder.
        """
        name = self.name or "-".join(Path(name).stem for name in self.configs)
        if not name and self.data is not None:
            path = Path(self.data).resolve()
            name = path.stem if path.is_file() else path.name
        if self.name is not None and (Path(name).name != name or name in (".", "..")):
            raise ValueError(f"--name is {name!r}; a folder's name is allowed, no path")
        return Path(self.root) / (name or "default")

"""The parser of the training's configuration files and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from condseg.cli.messages import did_you_mean, one_line, unknown_key

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""Folder of the configurations: in the installed package, or beside it in the repository."""


class Parser(LightningArgumentParser):
    """Lightning's parser with errors of one line, as ValueError."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser, whose caller knows the full key
            super().error(message, ex)
        keys = {action.dest for action in self._actions}
        raise ValueError(one_line(message, keys)) from ex


class ConfigFile(ActionConfigFile):
    """``--config NAME.yaml``: a path, or the name of a file in ``configs/``."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        path = Path(str(values))
        if not path.is_file():
            path = CONFIGS / path.name
        if not path.is_file():
            names = sorted(p.name for p in CONFIGS.glob("*.yaml"))
            parser.error(
                f"no configuration {values}{did_you_mean(str(values), names)} "
                f"There are {', '.join(names)}"
            )
        _check_top_level(parser, path)
        super().__call__(parser, cfg, str(path), option_string)  # type: ignore[no-untyped-call]


def _check_top_level(parser: Any, path: Path) -> None:
    """jsonargparse ignores an unknown key of the first level that has no keys below it."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        parser.error(f"{path}: no YAML: {error}")
    if content is None:
        return
    if not isinstance(content, dict):
        parser.error(f"{path}: must have keys and values, has {type(content).__name__}")
    names = {action.dest.split(".")[0] for action in parser._actions}
    for key in content:
        if key.rstrip("+") not in names:
            parser.error(f"{path}: {unknown_key(str(key), names)}")

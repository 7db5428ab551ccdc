"""Configuration files: where they are, and what they may contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from condseg.cli.messages import did_you_mean

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""Folder of the configurations: in the installed package, or beside it in the repository."""

MAX_DEPTH = 32
MAX_VALUES = 10_000
"""Aliases can repeat values without end; configurations have some hundred, in ten levels."""


def config_path(name: str) -> Path:
    """The file of a path, or of a name in ``configs/``, with or without ``.yaml``.

    Raises:
        ValueError: there is none.
    """
    for path in (
        Path(name),
        CONFIGS / Path(name).name,
        Path(f"{name}.yaml"),
        CONFIGS / f"{Path(name).name}.yaml",
    ):
        if path.is_file():
            return path
    names = sorted(p.name for p in CONFIGS.glob("*.yaml"))
    raise ValueError(
        f"no configuration {name}{did_you_mean(name, names) or ';'} There are {', '.join(names)}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
        ValueError: it is not YAML, or not keys and values, or nested too deeply.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: has too many levels; {MAX_DEPTH} are allowed") from error
    except OSError:
        raise
    except Exception as error:  # PyYAML raises IndexError, AttributeError, ... for some values
        raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise ValueError(f"{path}: is empty; keys and values are expected")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must have keys and values, has {type(content).__name__}")
    _check_values(path, content)
    return content


def _check_values(path: Path, content: dict[Any, Any]) -> None:
    values: list[tuple[tuple[str, ...], Any]] = [((), content)]
    count = 0
    while values:
        keys, value = values.pop()
        count += 1
        if len(keys) > MAX_DEPTH:
            raise ValueError(f"{path}: {keys[0]} has too many levels; {MAX_DEPTH} are allowed")
        if count > MAX_VALUES:
            raise ValueError(f"{path}: has too many values; {MAX_VALUES} are allowed")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    where = ".".join(keys) or "the first level"
                    raise ValueError(f"{path}: key {key!r} of {where} must be a string")
            values += [((*keys, key), child) for key, child in value.items()]
        elif isinstance(value, list):
            values += [((*keys, str(i)), child) for i, child in enumerate(value)]

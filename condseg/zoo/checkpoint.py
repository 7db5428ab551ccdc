"""Writing and reading checkpoints, and rebuilding a model from its checkpoint alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import (  # type: ignore[attr-defined]
    ArgumentParser,
    class_from_function,
    set_parsing_settings,
)
from torch import Tensor

from condseg.models.backbones.backbone import Backbone
from condseg.models.backbones.files import load_strict, named_tensors
from condseg.models.backbones.pickled import read_pickled
from condseg.models.build import build_condinst
from condseg.models.condinst import CondInst
from condseg.models.losses.masks import MaskLoss
from condseg.models.postprocess import PostProcess, postprocess_arguments
from condseg.structures import Category
from condseg.zoo.allowed import PACKAGES, forbidden
from condseg.zoo.recipe import check_recipe, recipe_categories, recipe_sides
from condseg.zoo.writing import earlier, write

Network = class_from_function(build_condinst, name="Network")
"""``build_condinst`` as a type: in a signature, its arguments are parsed from configurations."""

CONCRETE = (Backbone, Network, MaskLoss, PostProcess)
"""Parts without alternatives: configurations have their arguments, and no class path."""

RECIPE = "condseg"
"""The checkpoint's entry from which the model is rebuilt: plain data only."""


def restrict_parsing() -> None:
    """Restricts jsonargparse to local files and to the classes of ``PACKAGES``."""
    set_parsing_settings(
        subclasses_disabled=list(CONCRETE),
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=list(PACKAGES),
    )


@dataclass(frozen=True, slots=True)
class Restored:
    """A model from its checkpoint.

    Attributes:
        network: in evaluation mode, with the checkpoint's weights.
        postprocess: with the settings of the training.
        categories: of label k at position k.
        short_side: of an image at evaluation, in pixels.
        max_long_side: likewise.
        data: arguments of the DataModule in training, as plain data.
        source: the file, or the name of the published model.
        steps: optimizer steps of the training; None if unknown.
        recipe: from which the model is built, as plain data.
    """

    network: CondInst
    postprocess: PostProcess
    categories: tuple[Category, ...]
    short_side: int
    max_long_side: int
    data: dict[str, Any]
    source: str = ""
    steps: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_on(self) -> str:
        """The annotations or the folder of the training set."""
        return str(self.data.get("train_annotations") or self.data.get("root") or "unknown data")

    def __str__(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{self.source}: {len(self.categories)} classes, trained on {self.trained_on}{steps}"


def save(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint; a process killed meanwhile leaves the old file or the new one."""
    write(content, path)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without executing code in it.

    Raises:
        ValueError: the file is missing, damaged, or not a condseg checkpoint; names the version
            before it, if that was kept.
    """
    if not Path(path).is_file():
        raise ValueError(f"checkpoint {os.fspath(path)}: no such file")
    try:
        content = read_pickled(Path(path), "checkpoint", device)
        check_content(content, f"checkpoint {os.fspath(path)}")
    except ValueError as error:
        before = earlier(Path(path))
        if before.is_file():
            raise ValueError(f"{error}; the checkpoint before it is {before}") from error
        raise
    return dict(content)


def check_content(content: Any, source: str) -> None:
    """Checks that it has the form of a checkpoint: named tensors under ``state_dict``.

    Raises:
        ValueError: it has not; the message begins with ``source``.
    """
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{source}: not written by condseg (no tensors under state_dict)")
    named_tensors(state, source)


def restore(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Restored:
    """Builds the network and the post-process of a checkpoint.

    Raises:
        ValueError: the file is missing, damaged, or not a condseg checkpoint.
    """
    return restore_content(load(path, device), f"checkpoint {os.fspath(path)}", device)


def recipe_of(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The entry from which a checkpoint's model is built.

    Raises:
        ValueError: the checkpoint has none, or it is wrong.
    """
    recipe = content.get(RECIPE)
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{source}: not written by condseg train (no entry {RECIPE!r} from which to build "
            "the model); other projects' checkpoints are converted by condseg convert"
        )
    try:
        check_recipe(recipe)
    except ValueError as error:
        raise _incompatible(source, error) from error
    return recipe


def _incompatible(source: str, error: Exception) -> ValueError:
    if text := forbidden(str(error)):
        return ValueError(f"{source}: {text}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{source}: not compatible with this version of condseg ({reason[:300]})")


def network_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint, by the network's names."""
    prefix = "network."
    return {
        name.removeprefix(prefix): value
        for name, value in content["state_dict"].items()
        if name.startswith(prefix)
    }


def restore_content(
    content: Mapping[str, Any], source: str, device: str | torch.device = "cpu"
) -> Restored:
    """Like :func:`restore`, for the content of a checkpoint; ``source`` is for messages."""
    recipe = check_fit(content, source)
    network, postprocess = build(recipe["model"])
    load_strict(network, network_state(content), source=source)
    steps = content.get("global_step")
    known = steps if type(steps) is int else None
    return _restored(recipe, network.eval().to(device), postprocess, source, known)


def describe(recipe: dict[str, Any], source: str) -> Restored:
    """Like :func:`restore`, of a recipe alone: the network has no weights (meta device).

    Raises:
        ValueError: the recipe is wrong, or of another version.
    """
    try:
        check_recipe(recipe)
        with torch.device("meta"):
            built = build(recipe["model"])
    except Exception as error:  # as in check_fit
        raise _incompatible(source, error) from error
    return _restored(recipe, *built, source)


def _restored(
    recipe: dict[str, Any],
    network: CondInst,
    postprocess: PostProcess,
    source: str,
    steps: int | None = None,
) -> Restored:
    return Restored(
        network,
        postprocess,
        recipe_categories(recipe),
        *recipe_sides(recipe),
        data=recipe.get("data", {}),
        source=source,
        steps=steps,
        recipe=recipe,
    )


def check_fit(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The recipe of a checkpoint, after its network was built without memory (on the meta device).

    A network that has the shapes of the checkpoint's tensors needs no more memory than these.

    Raises:
        ValueError: the recipe is wrong, or the tensors are not those of its network.
    """
    recipe = recipe_of(content, source)
    try:
        with torch.device("meta"):
            network, _ = build(recipe["model"])
    except Exception as error:  # constructors refuse absurd arguments with any of them
        raise _incompatible(source, error) from error
    load_strict(network, network_state(content), source=source)
    return recipe


def build(config: Mapping[str, Any]) -> tuple[CondInst, PostProcess]:
    """The network, without its weights, and the post-process of a recipe's ``model``."""
    restrict_parsing()
    parser = ArgumentParser(exit_on_error=False)
    # As in training: an own class may have arguments without types.
    parser.add_class_arguments(Network, "network", fail_untyped=False)
    parser.add_class_arguments(PostProcess, "postprocess")
    network = dict(config["network"])
    # The weights are in the checkpoint; nothing is downloaded.
    network["backbone"] = {**network["backbone"], "weights": None}
    postprocess = postprocess_arguments(config["postprocess"])
    parsed = parser.parse_object({"network": network, "postprocess": postprocess})
    built = parser.instantiate(parsed)
    return built.network, built.postprocess


def newest_best(root: str | os.PathLike[str] = "runs") -> Path | None:
    """The newest run's ``best.ckpt`` below ``root``, or its ``last.ckpt`` before any evaluation."""
    runs = [path.parent for path in Path(root).glob("*/version_*/checkpoints/*.ckpt")]
    return next(filter(None, map(best_of, sorted(set(runs), key=_age, reverse=True))), None)


def best_of(checkpoints: Path) -> Path | None:
    """A run's ``best.ckpt``, or its ``last.ckpt`` before any evaluation."""
    paths = (checkpoints / name for name in ("best.ckpt", "last.ckpt"))
    return next((path for path in paths if path.is_file()), None)


def _age(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("*.ckpt")), default=0.0)

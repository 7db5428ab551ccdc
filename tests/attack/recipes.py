"""Checkpoints whose recipe, from which the model is built, has absurd values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack.forks import check, command, may_refuse
from attack.rounds import Attack
from attack.values import DEEP, LONG, Change, changed, changes
from hypothesis import strategies as st
from support import tiny

from condseg import native
from condseg.cli.train import CommandLine
from condseg.errors import user_errors
from condseg.inference.predictor import Predictor
from condseg.zoo.checkpoint import RECIPE, restore, save

OPTIONS = {
    "class_path": ["os.system", "subprocess.Popen", "condseg.layers.ODConv2d", "torch.nn.Linear"],
    "name": ["resnet18", "resnet101", "tf_efficientnet_lite4", "convnext_tiny", "../x"],
}


@dataclass(frozen=True)
class State:
    content: dict[str, Any]
    data: Path


@dataclass(frozen=True)
class Case:
    reader: str
    changes: list[Change]


def prepare(folder: Path) -> State:
    path = tiny.write_checkpoint(folder / "model.ckpt", pyramid=_part("BiFPN", num_repeats=1))
    content = torch.load(path, weights_only=True)
    model = content[RECIPE]["model"]
    # Arguments with their defaults, so that they are changed as well.
    model["network"] |= {"mask_head_channels": 8, "mask_head_layers": 3, "mask_features": 8}
    model["network"]["backbone"] |= {"style": "torchvision", "norm": "frozen", "freeze_stages": 1}
    model["network"]["backbone"] |= {"conv": None, "where": [3, 4, 5]}
    model["postprocess"] |= {"nms_threshold": 0.6, "pre_nms_topk": 1000, "mask_threshold": 0.5}
    native.available()
    return State(content, tiny.make_set(folder / "data", train=4, val=2))


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"condseg.models.{name}", "init_args": arguments}


def cases(state: State) -> st.SearchStrategy[Case]:
    recipe = state.content[RECIPE]
    model = {key: recipe[key] for key in ("model", "short_side", "max_long_side")}
    conv = ("model", "network", "backbone", "conv")
    layers = st.sampled_from(["ODConv2d", "CondConv2d", "DyConv2d", "DeformConv2d", "no"])
    numbers = st.sampled_from([0, -1, 1, 4, 10**4, 10**9, 2**63, 0.5, float("nan"), None, "4"])
    arguments = st.sampled_from(["num_experts", "reduction", "temperature", "groups", "bias"])
    layer = st.builds(
        lambda name, argument, number: [
            Change(
                conv,
                {"class_path": f"condseg.layers.{name}", "init_args": {argument: number}},
            )
        ],
        layers,
        arguments,
        numbers,
    )
    words = st.one_of(
        *[
            st.builds(lambda path, value: [Change(path, value)], st.just(path), st.sampled_from(v))
            for path, v in (
                (("model", "network", "head", "class_path"), OPTIONS["class_path"]),
                (("model", "network", "pyramid", "class_path"), OPTIONS["class_path"]),
                (("model", "network", "backbone", "name"), OPTIONS["name"]),
            )
        ]
    )
    some = st.one_of(*[changes(model, most=1)] * 3, changes(recipe), layer, words)
    some = some.filter(lambda list_: all(one.value not in (DEEP, LONG) for one in list_))
    return st.builds(Case, st.sampled_from(["predict", "predict", "init_from"]), some)


def run(state: State, case: Case, folder: Path) -> None:
    """Refused, or a network that predicts what its thresholds allow."""
    path = folder / "model.ckpt"
    recipe = changed(state.content[RECIPE], case.changes)
    with may_refuse("surrogate"):  # text that no file can hold
        save({**state.content, RECIPE: recipe}, path)
    if case.reader == "init_from":
        _train(state, path, folder)
        return
    with may_refuse(path.name):
        restored = restore(path)
    for key in ("score_threshold", "nms_threshold", "mask_threshold", "max_detections"):
        value = getattr(restored.postprocess, key)
        check(value is None or (math.isfinite(value) and value >= 0), f"{key} is {value}")
    with may_refuse("image"):
        found = Predictor(restored, "cpu")(np.zeros((48, 64, 3), np.uint8))
    count = len(found)
    check(count <= restored.postprocess.max_detections, f"{count} detections")
    check(found.masks.shape == (count, 48, 64), "masks of another shape")
    check(all(map(math.isfinite, found.scores.tolist())), "scores that are not finite")
    check(all(0 <= k < len(restored.categories) for k in found.labels.tolist()), "labels")


def _train(state: State, path: Path, folder: Path) -> None:
    def build() -> None:
        with user_errors():
            CommandLine(tiny.arguments(state.data, folder / "runs", f"--init_from={path}"))

    # The configuration file decides on the network; a recipe that differs is refused.
    command(build, path.name, "model.")


ATTACK = Attack(
    "recipes",
    "a checkpoint whose recipe has absurd values or classes, for a prediction or --init_from",
    prepare,
    cases,
    run,
    per_round=3,
    seconds=200,
)

"""What is trained: budgets, trainings and what they have in common."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.comparison.data import Sets
from studies.comparison.variants import VARIANTS, arguments
from studies.report import write_json


@dataclass(frozen=True, slots=True)
class Budget:
    """Length of a training and size of its training set.

    Attributes:
        steps: optimizer steps; the attentions' temperature falls in the first quarter.
        images: training images.
    """

    steps: int
    images: int

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.images} images"


@dataclass(frozen=True, slots=True)
class Trial:
    """One training.

    Attributes:
        output: folder of the comparison.
        budget: of the training.
        part: the images that judge it, "tuning" or "test".
        variant: name of what is trained.
        rate: learning rate of the optimizer.
        seed: of initialisation, order of images and augmentation.
    """

    output: Path
    budget: Budget
    part: str
    variant: str
    rate: float
    seed: int

    @property
    def folder(self) -> Path:
        """Of its files; another training has another one."""
        name = f"{self.budget.steps}_steps_{self.budget.images}_images"
        place = self.output / "trials" / name / self.part / self.variant
        return place / f"lr_{self.rate:g}" / f"seed_{self.seed}"

    @property
    def runs(self) -> Path:
        """Folder of its run, which is deleted at its end."""
        return self.folder / "run"

    @property
    def result(self) -> dict[str, Any] | None:
        """Its result; None before its end."""
        path = self.folder / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def __str__(self) -> str:
        name = f"{VARIANTS[self.variant].label}, learning rate {self.rate:g}, seed {self.seed}"
        return f"{self.budget}, {self.part}: {name}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trainings have in common.

    Attributes:
        configs: configurations; later ones override earlier ones.
        data: the data set: a folder, or "tabletop".
        images: number of "tuning" and "test" images.
        device: cpu, cuda, cuda:1, ...
        arguments: further ones of the command line.
    """

    configs: tuple[str, ...]
    data: str
    images: dict[str, int]
    device: str
    arguments: tuple[str, ...] = ()

    def command(self, trial: Trial, sets: Sets) -> list[str]:
        """Arguments of a training, without seed and folder."""
        kind, _, index = self.device.partition(":")
        steps = trial.budget.steps
        options = {
            "trainer.accelerator": kind,
            "trainer.devices": f"[{index}]" if index else 1,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "temperature.steps": steps // 4,
            "last_checkpoint.every_n_steps": max(50, steps // 4),
            "model.optimizer.init_args.lr": trial.rate,
        }
        return [
            *(f"--config={name}" for name in self.configs),
            *sets.arguments(trial.budget.images, trial.part),
            *(f"--{key}={value}" for key, value in options.items()),
            *arguments(VARIANTS[trial.variant]),
            *self.arguments,
        ]

    def check(self, output: Path) -> None:
        """Write it into the folder; ValueError if the trainings there had another one."""
        path = output / "setting.json"
        new: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else new
        for key in new:
            if old.get(key) != new[key]:
                there = f"{output} holds trainings with {key} {old.get(key)}, not {new[key]}"
                raise ValueError(f"output: {there}; choose another folder")
        write_json(new, path)

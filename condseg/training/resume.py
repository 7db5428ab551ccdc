"""The checkpoint from which a run resumes, with the configuration of that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condseg.models.postprocess import postprocess_arguments
from condseg.training.config_differences import check_same_network, differences
from condseg.training.runs import CONFIG, read_run_config, run_of
from condseg.zoo.checkpoint import load, recipe_of


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What a training must know of a checkpoint before it restores it.

    Attributes:
        path: of the checkpoint.
        step: optimizer steps done.
        ended: whether the training was at its end, by its number of steps or a callback.
        network: arguments of its network.
        config: the configuration of its run.
        config_source: where that was read from, for messages.
    """

    path: Path
    step: int
    ended: bool
    network: Mapping[str, Any]
    config: Mapping[str, Any]
    config_source: str

    @classmethod
    def of(cls, path: Path) -> ResumePoint:
        """Reads a checkpoint; the run's ``config.yaml`` has priority over the copy in it.

        Raises:
            ValueError: it cannot be read, or holds no state of a training.
        """
        if not path.is_file():
            raise ValueError(f"--ckpt_path {path}: no such file")
        content, source = load(path), f"checkpoint {path}"
        recipe = recipe_of(content, source)
        if "global_step" not in content:
            raise ValueError(
                f"{source} has weights but no state of a training to resume; --init_from {path} "
                "starts a training with them"
            )
        run = run_of(path)
        if run is not None and (run / CONFIG).is_file():
            config, config_source = read_run_config(run / CONFIG), str(run / CONFIG)
        elif "config" in recipe:
            config, config_source = recipe["config"], source
        else:
            raise ValueError(
                f"{source} is in no run folder with {CONFIG} and holds no configuration; "
                f"--init_from {path} starts a training with its weights"
            )
        model = config.get("model") or {}
        if "postprocess" in model:
            postprocess = postprocess_arguments(model["postprocess"])
            config = {**config, "model": {**model, "postprocess": postprocess}}
        step, ended = int(content["global_step"]), content.get("ended") is True
        return cls(path, step, ended, recipe["model"]["network"], config, config_source)

    @property
    def run(self) -> Path | None:
        """The folder of its run; None if the file was moved elsewhere."""
        return run_of(self.path)

    def at_end(self) -> str:
        """That the training was at its end, and what continues it."""
        return (
            f"{self.path} is at the end of its training of {self.step} steps; "
            f"--ckpt_path {self.path} with a larger --trainer.max_steps continues it"
        )

    def check(self, network: Mapping[str, Any]) -> None:
        """ValueError if the checkpoint's network is not the configured one."""
        may_differ = {"num_classes", "backbone.weights"}
        check_same_network(f"checkpoint {self.path}", self.network, network, may_differ)

    def summary(self, config: Mapping[str, Any]) -> str:
        """Where the training goes on, and how ``config`` differs from the run's configuration."""
        lines = (
            f"  {key} is {here}, was {there}"
            for key, there, here in differences(self.config, config)
        )
        return "\n".join([f"resuming {self.path} after {self.step} steps", *lines])

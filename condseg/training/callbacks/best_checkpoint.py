"""The checkpoint with the best result so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from condseg.zoo.checkpoint import load


class BestCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/best.ckpt`` after each validation that is better than all before.

    A resumed run compares with the score inside ``best.ckpt``, not with the one in the checkpoint
    from which it resumes: the file is written at another moment, or may be from a later step.

    Args:
        monitor: the logged metric; higher is better.
    """

    def __init__(self, monitor: str = "val/mask_AP") -> None:
        super().__init__(monitor=monitor, mode="max", filename="best", enable_version_counter=False)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        path = self.format_checkpoint_name({})
        score = self._score_in(Path(path)) if trainer.is_global_zero else None
        score = trainer.strategy.broadcast(score)
        if score is not None:
            self.best_model_score = self.kth_value = torch.tensor(score)
            self.best_model_path = self.kth_best_model_path = path
            self.best_k_models = {path: self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignores the state in the checkpoint from which the run resumes."""

    def _score_in(self, path: Path) -> float | None:
        """The score with which a file was written, None without one."""
        if not path.is_file():
            return None
        try:
            states = load(path)["callbacks"].values()
        except ValueError as error:
            rank_zero_warn(f"{error}; the next validation replaces it")
            return None
        scores = [s["best_model_score"] for s in states if s.get("monitor") == self.monitor]
        return float(scores[0]) if scores else None

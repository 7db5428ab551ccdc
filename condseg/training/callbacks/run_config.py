"""The configuration in the folder of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from condseg.training.runs import CONFIG, write_text


class RunConfig(Callback):
    """Writes ``config.yaml`` when the training starts, which is after a checkpoint is restored.

    Args:
        config: the configuration as YAML.
        checkpoint: from which this process resumes.

    Raises:
        ValueError: processes resume from different checkpoints.
    """

    def __init__(self, config: str, checkpoint: Path | None) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self._path: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own = str(self.checkpoint)
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(first == own):
            raise ValueError(
                f"rank {trainer.global_rank} resumes from {own}, rank 0 from {first}; all ranks "
                "must see the same run folders"
            )
        self._path = Path(str(trainer.log_dir)) / CONFIG  # a collective call: on all ranks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, self.config)

"""The trainer from its options; what would fail only later is refused here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies import DDPStrategy

from condseg.ops.precision import fast_precision
from condseg.training.checkpoint_io import AtomicCheckpointIO
from condseg.training.elastic import separate_restarts
from condseg.training.sync_batchnorm import SyncBatchNorm

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
METRIC = re.compile(
    r"train/(lr|gradient_norm)|(train|val)/loss(_\w+)?|val_(box|mask)_AP/.+|"
    r"val/(box|mask)_(AP(50|75|s|m|l)?|AR[sml]|A[PR]@\d+)"
)
"""The names that a training logs."""


@contextmanager
def trainer_errors() -> Iterator[None]:
    """Turns what Lightning says about the trainer's options into a ``ValueError`` of one line."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        message = " ".join(str(error).split())
        if type(error) is RuntimeError and "conditioned on metric" not in message:
            raise  # not EarlyStopping's error
        raise ValueError(f"trainer: {message}") from error


def build_trainer(
    config: Mapping[str, Any], callbacks: Sequence[Callback], process_timeout: float
) -> Trainer:
    """Builds the trainer, without condseg's loggers, whose folder is not known yet.

    Args:
        config: the trainer's arguments, instantiated.
        callbacks: condseg's, after those of the configuration. A progress bar of the configuration
            replaces the one among them.
        process_timeout: seconds after which a process that does not answer is an error.

    Raises:
        ValueError: an option, or a combination of some, is not supported.
    """
    options = dict(config)
    own = _list(options["callbacks"])
    for callback in own:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and not METRIC.fullmatch(monitor):
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} has the monitor {monitor}; allowed "
                "are the columns of metrics.csv, as val/mask_AP, val/box_AP50 or train/loss"
            )
    no_bar = options["enable_progress_bar"] is False
    if no_bar or any(isinstance(callback, ProgressBar) for callback in own):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    options["callbacks"] = [*own, *callbacks]
    options["plugins"] = [*_list(options["plugins"]), AtomicCheckpointIO()]
    if options["sync_batchnorm"]:
        options["sync_batchnorm"] = False
        options["plugins"].append(SyncBatchNorm())
    if options["logger"] in (None, True):
        options["logger"] = False
    if options["precision"] is None:
        options["precision"] = fast_precision(options["accelerator"])
    separate_restarts()
    with trainer_errors():
        trainer = Trainer(**options)
    if isinstance(trainer.strategy, DDPStrategy) and isinstance(options["strategy"], str):
        trainer.strategy._timeout = timedelta(seconds=process_timeout)
    if trainer.precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}; {', '.join(PRECISIONS)} are allowed"
        )
    return trainer


def _list(value: Any) -> list[Any]:
    """None, one object or several, as Lightning takes them."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]

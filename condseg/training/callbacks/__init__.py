"""Callbacks: checkpoints, temperature annealing, weight averaging, progress, drawn images,
the run's configuration."""

from condseg.training.callbacks.best_checkpoint import BestCheckpoint
from condseg.training.callbacks.exponential_averaging import ExponentialAveraging
from condseg.training.callbacks.last_checkpoint import LastCheckpoint
from condseg.training.callbacks.loader_timeout import LoaderTimeout
from condseg.training.callbacks.progress import Progress
from condseg.training.callbacks.run_config import RunConfig
from condseg.training.callbacks.temperature_annealing import TemperatureAnnealing
from condseg.training.callbacks.validation_images import ValidationImages

__all__ = [
    "BestCheckpoint",
    "ExponentialAveraging",
    "LastCheckpoint",
    "LoaderTimeout",
    "Progress",
    "RunConfig",
    "TemperatureAnnealing",
    "ValidationImages",
]

"""Requeueing a job of SLURM that ends before its time limit."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


def requeue_signal(trainer: Trainer) -> list[int]:
    """The signal that asks for requeueing, if this is a job of SLURM.

    It is SIGUSR1, or what a :class:`SLURMEnvironment` in ``--trainer.plugins`` says.
    """
    environment: Any = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    return [environment.requeue_signal] if requeues else []


def requeue(trainer: Trainer, number: int) -> None:
    """Puts the job back into SLURM's queue if the signal asks for it.

    SLURM starts the same command again; with ``--ckpt_path auto`` it continues the same run.
    Lightning's handler of this signal is not used: it writes a checkpoint in the middle of a step
    and outside of the run's folder, with which any later run in that folder would begin.

    Args:
        trainer: whose environment says whether this is a job of SLURM.
        number: the signal that has ended the training.
    """
    if number not in requeue_signal(trainer) or not trainer.is_global_zero:
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        rank_zero_warn(
            f"scontrol requeue {job} failed ({str(reason).strip()}); requeue it yourself"
        )
    else:
        rank_zero_info(f"job {job} is requeued")

"""The attacks, in the order in which they run."""

from __future__ import annotations

from attack import (
    annotations,
    checkpoints,
    configurations,
    downloads,
    images,
    libraries,
    recipes,
    runs,
)

WITHOUT_TRAINING = (
    annotations.ATTACK,
    images.ATTACK,
    checkpoints.DAMAGED,
    checkpoints.HOSTILE,
    recipes.ATTACK,
    configurations.ATTACK,
    downloads.ATTACK,
    libraries.ATTACK,
)
"""Seconds a round; the others start trainings."""

ATTACKS = (
    *WITHOUT_TRAINING,
    runs.KILLED,
    runs.DAMAGED,
    runs.TWO,
    runs.FULL_DISK,
    runs.RANKS,
)

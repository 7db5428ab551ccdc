"""Colours and decorations, in linear light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
Paint = Callable[[Array], Array]  # points (N, 3) in the thing's own frame -> linear RGB (N, 3)


def linear(colour: Sequence[float] | Array) -> Array:
    """sRGB 0..1 -> linear light."""
    return np.asarray(np.asarray(colour, np.float64) ** 2.2)


PALETTE = {
    "red": (0.80, 0.15, 0.14), "coral": (0.93, 0.45, 0.37), "orange": (0.94, 0.55, 0.16),
    "yellow": (0.95, 0.79, 0.23), "lime": (0.62, 0.75, 0.25), "green": (0.20, 0.55, 0.29),
    "teal": (0.12, 0.55, 0.55), "sky": (0.41, 0.70, 0.87), "blue": (0.16, 0.34, 0.70),
    "navy": (0.14, 0.19, 0.38), "violet": (0.47, 0.32, 0.65), "pink": (0.92, 0.58, 0.69),
    "brown": (0.45, 0.30, 0.20), "sand": (0.82, 0.71, 0.54), "cream": (0.95, 0.91, 0.81),
    "white": (0.94, 0.94, 0.93), "grey": (0.56, 0.57, 0.58), "charcoal": (0.20, 0.21, 0.23),
}  # fmt: skip


def colours(rng: Rng, count: int) -> list[Array]:
    """Different colours of the one palette that all classes share, each a little off."""
    names = rng.choice(len(PALETTE), count, replace=False)
    values = list(PALETTE.values())
    return [linear(np.clip(values[n] + rng.uniform(-0.05, 0.05, 3), 0.03, 0.97)) for n in names]


def smooth(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t: Array = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def blend(a: Array, b: Array, weight: Any) -> Array:
    """From colours a (weight 0) to b (weight 1); weight (N,) may be a truth value."""
    return np.asarray(a + (b - a) * weight[:, None])


def noise(points: Array, seed: int, octaves: int = 3) -> Array:
    """Value noise, about 0..1, of points (N, D): random lattice, smooth between, octaves summed."""
    total, scale = np.zeros(len(points)), 0.0
    for octave in range(octaves):
        q = points * 2.0**octave
        cell = np.floor(q).astype(np.int64)
        t = q - cell
        t = t * t * (3 - 2 * t)
        value = np.zeros(len(points))
        for corner in np.ndindex(*(2,) * points.shape[1]):
            h = np.full(len(points), seed * 7919 + octave * 104729, np.uint64)
            for axis, c in enumerate(corner):
                h = (h ^ (cell[:, axis] + c).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
                h ^= h >> np.uint64(29)
            weight = np.prod([t[:, a] if c else 1 - t[:, a] for a, c in enumerate(corner)], axis=0)
            value += weight * (h >> np.uint64(40)).astype(np.float64) / 2.0**24
        total += value * 0.5**octave
        scale += 0.5**octave
    return total / scale


def pattern(rng: Rng, u_period: float | None = None) -> Callable[[Array, Array], Array]:
    """A random decoration of a surface with coordinates (u, v) in units; u may be periodic."""
    a, b, c = colours(rng, 3)
    kind = rng.choice(["plain", "rings", "bars", "checks", "dots", "bands", "marble"],
                      p=[0.30, 0.14, 0.12, 0.10, 0.13, 0.13, 0.08])  # fmt: skip
    step, phase, key = rng.uniform(0.10, 0.24), rng.uniform(0, 1), int(rng.integers(1 << 30))
    duty, edges = rng.uniform(0.3, 0.6), np.sort(rng.uniform(-0.6, 0.6, 2))
    u_step = step if u_period is None else u_period / max(3, round(u_period / step))

    def paint(u: Array, v: Array) -> Array:
        cu, cv = u / u_step + phase, v / step + phase
        match kind:
            case "rings":
                weight = (cv % 1 < duty) * 1.0
            case "bars":
                weight = (cu % 1 < duty) * 1.0
            case "checks":
                weight = (np.floor(cu) + np.floor(cv)) % 2
            case "dots":
                shift = 0.5 * (np.floor(cv) % 2)
                weight = 1 - smooth(0.26, 0.32, np.hypot((cu + shift) % 1 - 0.5, cv % 1 - 0.5))
            case "bands":
                weight = ((v > edges[0]) & (v < edges[1])) * 1.0
                base = blend(a, b, weight)
                return blend(base, c, ((np.abs(v - edges[0]) < 0.04) | (v > 0.9)) * 1.0)
            case "marble":
                weight = smooth(0.42, 0.58, noise(np.stack([u, v], 1) * 4, key, 4))
            case _:
                weight = np.zeros(len(u))
        return blend(a, b, weight)

    return paint

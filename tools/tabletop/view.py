"""Camera, light and ground of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from tabletop.colour import Array, Paint, Rng, blend, colours, linear, noise, smooth

GROUNDS = {
    "wood": 0.2, "planks": 0.12, "plain": 0.12, "cloth": 0.1, "gingham": 0.1,
    "stripes": 0.08, "tiles": 0.1, "marble": 0.1, "terrazzo": 0.08,
}  # fmt: skip
WOODS = (
    (0.72, 0.52, 0.33), (0.56, 0.37, 0.23), (0.82, 0.66, 0.46), (0.40, 0.27, 0.19),
    (0.68, 0.60, 0.50),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole; `fov` is vertical, in degrees."""

    eye: Array
    target: Array
    fov: float
    width: int
    height: int
    near_far: tuple[float, float] = (1.0, 40.0)
    up: Array = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))

    @property
    def axes(self) -> Array:
        """Rows: right, up, back."""
        back = self.eye - self.target
        back = back / np.linalg.norm(back)
        right = np.cross(self.up, back)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back])

    @property
    def tangents(self) -> tuple[float, float]:
        t = math.tan(math.radians(self.fov) / 2)
        return t * self.width / self.height, t

    def rays(self) -> Array:
        """(H, W, 3) directions of length 1 along the axis; Bullet samples a pixel at (x, y + 1)."""
        tx, ty = self.tangents
        x = (np.arange(self.width) / self.width * 2 - 1) * tx
        y = (1 - (np.arange(self.height) + 1) / self.height * 2) * ty
        right, up, back = self.axes
        return np.asarray(x[None, :, None] * right + y[:, None, None] * up - back)

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Pixel x and y (integers at the samples) and distance of points (N, 3)."""
        tx, ty = self.tangents
        axes = self.axes.astype(points.dtype)
        q = points @ axes.T - (self.axes @ self.eye).astype(points.dtype)
        z = -q[:, 2]
        x = (q[:, 0] / z / tx + 1) * self.width / 2
        return x, (1 - q[:, 1] / z / ty) * self.height / 2 - 1, z


def direction(azimuth: float, elevation: float) -> Array:
    """Unit vector; radians."""
    flat = math.cos(elevation)
    return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


def choose_camera(rng: Rng, width: int, height: int, count: int) -> Camera:
    """A view of the middle of the ground that `count` things about fill."""
    fov, azimuth = rng.uniform(32, 58), rng.uniform(0, 2 * math.pi)
    elevation = math.radians(rng.uniform(22, 65))
    frame = rng.uniform(0.88, 1.2) * (0.8 + 0.22 * math.sqrt(count))  # half height seen, in units
    distance = frame / math.tan(math.radians(fov) / 2)
    target = np.array([*rng.uniform(-0.25, 0.25, 2), rng.uniform(0.15, 0.5)])
    roll = np.array([*rng.uniform(-0.05, 0.05, 2), 1.0])
    eye = target + distance * direction(azimuth, elevation)
    return Camera(eye, target, fov, width, height, up=roll)


@dataclass(frozen=True, slots=True)
class Light:
    """A soft lamp far off and a sky of two colours."""

    key: Array  # direction to the lamp
    softness: float  # radians
    key_colour: Array
    zenith: Array
    horizon: Array


def choose_light(rng: Rng, camera: Camera) -> Light:
    """Light from the side or from behind the camera; a warm lamp comes with a cool sky."""
    back = camera.axes[2]
    view = math.atan2(back[1], back[0])
    azimuth = view + rng.uniform(-1.9, 1.9)
    key = direction(azimuth, math.radians(rng.uniform(28, 75)))
    warmth = rng.uniform(-1, 1)
    warm, cool, white = np.array([1.0, 0.80, 0.58]), np.array([0.78, 0.88, 1.0]), np.ones(3)
    tint = white + (warm - white) * max(warmth, 0) + (cool - white) * max(-warmth, 0)
    against = white + (cool - white) * max(warmth, 0) * 0.7 + (warm - white) * max(-warmth, 0) * 0.4
    strength = rng.uniform(1.2, 4.2)
    return Light(
        key,
        math.radians(rng.uniform(1.0, 9.0)),
        tint * strength,
        against * rng.uniform(0.6, 1.0),
        against * rng.uniform(0.3, 0.7),
    )


def ground_paint(rng: Rng) -> tuple[Paint, float]:
    """A table or floor as a function of points (N, 3), and its gloss."""
    a, b, c = colours(rng, 3)
    tone = rng.uniform(0.55, 1.0)
    kind = str(rng.choice(list(GROUNDS), p=list(GROUNDS.values())))
    key, turn = int(rng.integers(1 << 30)), rng.uniform(0, math.pi)
    step = rng.uniform(0.35, 0.9)
    light_wood = linear(WOODS[int(rng.integers(len(WOODS)))])
    soft = 0.35 * a + 0.65 * linear((0.85, 0.84, 0.82)) * tone

    def paint(p: Array) -> Array:
        out: Array
        u = p[:, 0] * math.cos(turn) + p[:, 1] * math.sin(turn)
        v = p[:, 1] * math.cos(turn) - p[:, 0] * math.sin(turn)
        flat = np.stack([u, v], 1)
        fine = 0.94 + 0.12 * noise(flat * 12, key + 1, 2)
        if kind in ("wood", "planks"):
            plank = np.floor(v / (1.1 * step + 0.3)) if kind == "planks" else np.zeros(len(u))
            shift = (plank * 12.9898) % 7
            warp = noise(np.stack([u * 0.35 + shift * 3, v * 1.6], 1), key, 3)
            rings = 0.5 + 0.5 * np.sin((v * 3 + warp * 9) * 4)
            fibre = noise(np.stack([u * 1.5 + shift, v * 40], 1), key + 2, 2)
            out = light_wood * (0.72 + 0.22 * rings + 0.22 * fibre)[:, None]
            out = out * (0.85 + 0.3 * ((plank * 0.618) % 1))[:, None]
            gap = np.abs((v / (1.1 * step + 0.3)) % 1 - 0.5) > 0.488
            return blend(out, light_wood * 0.2, gap & (kind == "planks"))
        if kind == "cloth":
            weave = noise(flat * (4, 34), key + 1, 2) + noise(flat * (34, 4), key + 2, 2)
            return soft * ((0.8 + 0.2 * weave) * (0.85 + 0.3 * noise(flat * 1.3, key, 3)))[:, None]
        if kind == "gingham":
            across = ((u / step) % 1 < 0.5) * 0.5 + ((v / step) % 1 < 0.5) * 0.5
            return blend(linear((0.93, 0.92, 0.89)) * fine[:, None], a, across * 0.9)
        if kind == "stripes":
            return blend(soft * fine[:, None], b, ((u / step) % 1 < 0.35) * 0.75)
        if kind == "tiles":
            cell = np.floor(flat / (step * 1.3))
            each = 0.85 + 0.3 * noise(cell * 1.7 + 0.5, key, 1)
            joint = (np.abs(flat / (step * 1.3) - cell - 0.5) > 0.47).any(1)
            base = np.where(((cell.sum(1) % 2) > 0)[:, None], soft, 0.6 * soft + 0.4 * b)
            return blend(base * (each * fine)[:, None], linear((0.6, 0.6, 0.58)), joint)
        if kind == "marble":
            bend = noise(flat * 1.7, key + 3, 3)[:, None] * 1.5
            vein = np.abs(noise(flat * 0.9 + bend, key, 4) - 0.5)
            return blend(soft * fine[:, None], soft * 0.35, 1 - smooth(0.0, 0.06, vein))
        if kind == "terrazzo":
            out = soft * fine[:, None]
            for i, chip in enumerate((a, b, c)):
                here = noise(flat * 5.5, key + i, 2) > 0.70
                out = blend(out, 0.7 * chip + 0.3 * soft, here)
            return out
        return np.asarray(soft * (fine * (0.9 + 0.2 * noise(flat * 0.7, key, 3)))[:, None])

    return paint, {"tiles": 0.5, "marble": 0.5, "wood": 0.18, "planks": 0.18}.get(kind, 0.0)

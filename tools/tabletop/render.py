"""Renders a world at rest: light and shadow, lens and sensor, masks, depth."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from tabletop.colour import Array, Rng, blend, colours, linear, noise, smooth
from tabletop.styles import apply
from tabletop.view import Camera, Light, choose_camera, choose_light, ground_paint
from tabletop.world import MAX_OVERLAP, World, populate

SPLITS = ("train", "val")
SUPERSAMPLE = 2
MIN_VISIBLE = 120  # pixels in the image; things with fewer are removed from the scene
KEY_SAMPLES, DOME_SAMPLES, SHADOW_SIZE = 10, 20, 256


@dataclass(frozen=True, slots=True)
class Rendering:
    image: Array  # (H, W, 3) uint8
    depth: Array  # (H, W) uint16 millimetres
    masks: list[Array]  # (H, W) bool each
    categories: list[str]
    visibility: list[float]


def surface_normals(points: Array, ids: Array, depth: Array, view: Array) -> Array:
    """Normals from neighbouring points, always from the side that belongs to the same surface."""

    def slope(axis: int) -> Array:
        step = np.diff(points, axis=axis)
        cost = np.abs(np.diff(depth, axis=axis)) + 1e3 * (np.diff(ids, axis=axis) != 0)
        pad = [(0, 0)] * 3
        pad[axis] = (1, 0)
        before, before_cost = np.pad(step, pad), np.pad(cost, pad[:2], constant_values=1e6)
        pad[axis] = (0, 1)
        after, after_cost = np.pad(step, pad), np.pad(cost, pad[:2], constant_values=1e6)
        return np.where((before_cost < after_cost)[..., None], before, after)

    normal: Array = np.cross(slope(1), slope(0))
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    normal *= np.where((normal * view).sum(-1, keepdims=True) < 0, -1, 1)
    return normal


def shadow(world: World, towards: Array, points: Array, normals: Array, dither: Array) -> Array:
    """1 where points are lit by the lamp in a direction, 0 where a thing is in between.

    `dither` (N, 2) moves each lookup by a part of a texel, so that averaged pixels are soft.
    """
    lamp = Camera(30 * towards, np.zeros(3), 11.0, SHADOW_SIZE, SHADOW_SIZE, (22.0, 40.0))
    ids, depth = world.render(lamp)
    depth = np.where(ids < 0, np.inf, depth).astype(np.float32)
    lift = 0.05 - 0.03 * np.clip(normals @ towards.astype(np.float32), 0, 1)
    x, y, z = lamp.project(points + normals * lift[:, None])
    column, row = np.rint(x + dither[:, 0]), np.rint(y + dither[:, 1])
    inside = (column >= 0) & (row >= 0) & (column < SHADOW_SIZE) & (row < SHADOW_SIZE)
    cell = np.where(inside, row * SHADOW_SIZE + column, 0).astype(np.int32)
    return np.asarray((z < depth.ravel()[cell] + 0.01) | ~inside)


def disc(count: int) -> Array:
    """Points spread evenly over the unit disc (sunflower)."""
    k = np.arange(count)
    r, a = np.sqrt((k + 0.5) / count), k * 2.399963
    return np.stack([r * np.cos(a), r * np.sin(a)], 1)


def frame_of(towards: Array) -> tuple[Array, Array]:
    """Two directions perpendicular to one and to each other."""
    side = np.cross(towards, [0.0, 0.0, 1.0] if abs(towards[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    return side, np.cross(towards, side)


@dataclass(frozen=True, slots=True)
class Surface:
    """What is seen at each of N points."""

    points: Array  # (N, 3)
    normals: Array  # (N, 3)
    view: Array  # (N, 3) unit vectors to the eye
    albedo: Array  # (N, 3) linear
    gloss: Array  # (N, 1) 0..1
    dither: Array  # (N, 2) -0.5 or 0.5: which of the four subpixels


def flat(x: Array) -> Array:
    """(H, W, C) -> (H W, C) in single precision."""
    return x.reshape(-1, x.shape[-1]).astype(np.float32)


def shade(world: World, light: Light, surface: Surface) -> Array:
    """Linear light (N, 3) towards the eye: lamp, sky with occlusion, reflections."""
    points, normals, view = surface.points, surface.normals, surface.view
    gloss, dither = surface.gloss[:, 0], surface.dither
    side, up = frame_of(light.key)
    lamp = np.zeros(len(points))
    for x, y in disc(KEY_SAMPLES) * math.tan(light.softness):
        towards = light.key + x * side + y * up
        lamp += shadow(world, towards / np.linalg.norm(towards), points, normals, dither)
    lamp /= KEY_SAMPLES
    sky = np.zeros((len(points), 3))
    open_sky, total = np.zeros(len(points)), np.zeros(len(points))
    for x, y in disc(DOME_SAMPLES) * 0.96:  # even on the disc = cosine-weighted on the dome
        towards = np.array([x, y, math.sqrt(1 - x * x - y * y)])
        facing = np.clip(normals @ towards, 0, None) / towards[2]
        seen = shadow(world, towards, points, normals, dither)
        colour = light.horizon + (light.zenith - light.horizon) * towards[2]
        sky += (facing * seen)[:, None] * colour
        open_sky, total = open_sky + seen * facing, total + facing
    openness = (open_sky / np.maximum(total, 1e-6))[:, None]
    sky /= DOME_SAMPLES
    down = 0.5 - 0.5 * normals[:, 2:]
    bounce = down * (light.key_colour * max(light.key[2], 0) * 0.35 + light.zenith * 0.35) * 0.6
    diffuse = np.clip(normals @ light.key, 0, None)[:, None] * lamp[:, None] * light.key_colour
    reaching = diffuse + sky + bounce * openness + 0.06 * light.zenith * openness
    matt = surface.albedo * reaching

    half = light.key + view
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    power = 12.0 + 240.0 * gloss**2
    spec = np.clip((normals * half).sum(1), 0, None) ** power * (power + 8) / 60.0
    facing = np.clip((normals * view).sum(1), 0, 1)
    fresnel = 0.04 + 0.96 * (1 - facing) ** 5 * 0.7
    mirror = 2 * (normals * view).sum(1, keepdims=True) * normals - view
    height = np.clip(mirror[:, 2:], -1, 1)
    around_it = light.horizon + (light.zenith - light.horizon) * np.clip(height, 0, 1)
    around_it = np.where(height < 0, 0.25 * light.horizon, around_it) * openness
    seen_lamp = smooth(0.86, 0.93, mirror @ light.key)[:, None]
    window = seen_lamp * light.key_colour * 1.5 * lamp[:, None]
    shine = (gloss * fresnel)[:, None] * (around_it + window)
    glint = (0.05 * gloss * spec * lamp)[:, None] * light.key_colour
    return np.asarray(matt + shine + glint)


def develop(light: Array, rng: Rng) -> Array:
    """Exposure, tone curve, lens and sensor: linear (2H, 2W, 3) -> uint8 (H, W, 3)."""
    grey = light @ np.array([0.21, 0.72, 0.07])
    exposure = rng.uniform(0.27, 0.42) / max(float(np.exp(np.log(grey + 1e-3).mean())), 1e-3)
    exposure = min(exposure, 1.35 / float(np.percentile(grey, 99)))
    x = cv2.resize(light * exposure, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    height, width = x.shape[:2]
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    x = x * (1 - rng.uniform(0, 0.22) * (u**2 + v**2) / 2)[..., None]
    if (blur := rng.uniform(0, 0.55)) > 0.2:
        x = cv2.GaussianBlur(x, (0, 0), blur)
    x = x * (1 + x / 2.6**2) / (1 + x * 0.55)  # bright parts roll off
    x = np.clip(x, 0, 1) ** (1 / 2.2)
    x = x + 0.25 * (x * x * (3 - 2 * x) - x)  # a little contrast
    sigma = rng.uniform(0.002, 0.012)
    x = x + sigma * rng.standard_normal(x.shape)
    return np.asarray(np.clip(np.rint(x * 255), 0, 255).astype(np.uint8))


def halve_ids(ids: Array, depth: Array) -> tuple[Array, Array]:
    """The thing with the most of four subpixels (the nearest of several) and its mean distance."""

    def quads(x: Array) -> Array:
        h, w = x.shape
        return x.reshape(h // 2, 2, w // 2, 2).transpose(0, 2, 1, 3).reshape(h // 2, w // 2, 4)

    four, far = quads(ids), quads(depth)
    same = four[..., :, None] == four[..., None, :]
    votes = same.sum(-1) - 1e-3 * far / far.max()
    winner = np.take_along_axis(four, votes.argmax(-1)[..., None], -1)
    mine = four == winner
    return winner[..., 0], (far * mine).sum(-1) / mine.sum(-1)


def draw(world: World, camera: Camera, rng: Rng) -> Rendering:
    """Render a world at rest."""
    light = choose_light(rng, camera)
    ids, depth = world.render(camera)
    rays = camera.rays()
    empty = ids < 0
    wall_distance, wall_turn = rng.uniform(4.5, 11.0), rng.uniform(-0.6, 0.6)
    away = -camera.axes[2]
    azimuth = math.atan2(away[1], away[0]) + wall_turn
    wall = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    with np.errstate(divide="ignore"):
        to_ground = np.where(rays[..., 2] < 0, -camera.eye[2] / rays[..., 2], np.inf)
        towards = rays @ wall
        to_wall = np.where(towards > 0, (wall_distance - camera.eye @ wall) / towards, np.inf)
    behind = np.minimum(np.minimum(to_ground, to_wall), 60.0)
    depth = np.where(empty, behind, depth)
    on_wall = empty & (to_wall < to_ground)
    ids = np.where(on_wall, -2, ids)
    points = camera.eye + rays * depth[..., None]
    view = -rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    normals = surface_normals(points, ids, depth, view)
    normals[ids == -1], normals[ids == -2] = (0, 0, 1), -wall

    albedo, gloss = np.zeros_like(points), np.zeros(ids.shape)
    paint, shine = ground_paint(rng)
    albedo[ids == -1], gloss[ids == -1] = paint(points[ids == -1]), shine
    tone, other = colours(rng, 2)
    base = (0.45 * tone + 0.55 * linear((0.8, 0.8, 0.78))) * rng.uniform(0.5, 1.0)
    rough, skirting = int(rng.integers(1 << 30)), rng.random() < 0.4
    if on_wall.any():
        p = points[on_wall]
        colour = base * (0.88 + 0.24 * noise(p * 0.8, rough, 4))[:, None]
        albedo[on_wall] = blend(colour, other * 0.5 + 0.2, (p[:, 2] < 0.5) * skirting * 1.0)
    for body, thing in world.things.items():
        mask = ids == body
        rotation, position = world.pose(body)
        albedo[mask] = thing.paint((points[mask] - position) @ rotation)
        gloss[mask] = thing.gloss
    corner = np.indices(ids.shape).transpose(1, 2, 0) % 2 - 0.5
    surface = Surface(*map(flat, (points, normals, view, albedo, gloss[..., None], corner)))
    lit = shade(world, light, surface).reshape(points.shape)
    to_corner = np.where(on_wall, points[..., 2], wall_distance - points @ wall)
    lit *= np.where(empty, 1 - 0.4 * np.exp(-np.maximum(to_corner, 0) / 0.8), 1)[..., None]

    small, small_depth = halve_ids(ids, depth)
    shown = [body for body in world.things if (small == body).any()]
    return Rendering(
        develop(lit, rng),
        np.rint(small_depth * 100).clip(0, 65535).astype(np.uint16),
        [small == body for body in shown],
        [world.things[body].category for body in shown],
        [float((ids == body).sum() / world.alone(body, camera).sum()) for body in shown],
    )


def prune(world: World, camera: Camera) -> bool:
    """Remove what is hardly visible until every remaining thing can be annotated.

    False if fewer than two remain, or one is so near that the camera would be inside it.
    """
    while len(world.things) >= 2:
        small, depth = halve_ids(*world.render(camera))
        if depth.min() < 1.15 * camera.near_far[0]:
            return False
        faint = [b for b in world.things if (small == b).sum() < MIN_VISIBLE]
        if not faint:
            return True
        for body in faint:
            world.remove(body)
        if not (world.wait_until_still(600) and world.overlap() < MAX_OVERLAP):
            return False
    return False


def make_scene(
    seed: int, split: str, index: int, width: int, height: int, styles: int = 1
) -> Rendering:
    """The scene with this index; an attempt without two things at rest is repeated.

    With several styles, consecutive scenes have different ones; the scenes are the same.
    """
    for attempt in range(50):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, attempt])
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder))
            try:
                count = min(2 + int(rng.poisson(4.5)), 12)
                camera = choose_camera(rng, width * SUPERSAMPLE, height * SUPERSAMPLE, count)
                if populate(world, rng, count) and prune(world, camera):
                    scene = draw(world, camera, rng)
                    image = apply(index % styles, scene.image, scene.depth, rng)
                    return replace(scene, image=image)
            finally:
                world.close()
    raise RuntimeError(f"no scene for seed {seed}, {split} {index} in 50 attempts")

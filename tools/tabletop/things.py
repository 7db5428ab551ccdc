"""The classes: one function each, from a random generator to a thing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tabletop.colour import Array, Paint, Rng, blend, colours, linear, noise, pattern, smooth
from tabletop.meshes import (
    Mesh,
    around,
    block,
    corners,
    revolve,
    ring_hulls,
    rounded,
    solid_hulls,
    tube,
)


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing: its surface, convex pieces for collisions, paint, and the tilts it may start with.

    The frame's origin is on the axis, half way up.
    """

    category: str
    mesh: Mesh
    hulls: list[Array]
    paint: Paint
    gloss: float
    tilts: tuple[float, ...] = (0.0,)  # radians about x that it may be put down with
    sphere: float = 0.0  # radius, for what rolls


def turned(decoration: Callable[[Array, Array], Array], radius: float) -> Paint:
    """Wrap a decoration around the z axis."""
    return lambda p: decoration(np.arctan2(p[:, 1], p[:, 0]) * radius, p[:, 2])


def ball(rng: Rng) -> Thing:
    r = rng.uniform(0.32, 0.50)
    t = np.linspace(0, math.pi, 32)
    a, b, c = colours(rng, 3)
    kind = rng.choice(["plain", "beach", "band", "marble", "dots"])
    sectors = int(rng.integers(3, 6))
    key, width = int(rng.integers(1 << 30)), rng.uniform(0.12, 0.4)
    golden, z = np.arange(22) * 2.399963, 1 - (np.arange(22) + 0.5) / 11
    flat = np.sqrt(1 - z * z)
    centres = np.stack([np.cos(golden) * flat, np.sin(golden) * flat, z], 1)

    def paint(p: Array) -> Array:
        n = p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-9)
        if kind == "beach":
            wedge = np.floor(np.arctan2(n[:, 1], n[:, 0]) / (2 * math.pi) * 2 * sectors) % 2
            return blend(blend(a, b, wedge), c, np.abs(n[:, 2]) > 0.92)
        if kind == "band":
            edge = (np.abs(np.abs(n[:, 2]) - width) < 0.05) * 1.0
            return blend(blend(a, b, (np.abs(n[:, 2]) < width)), c, edge)
        if kind == "dots":
            return blend(a, b, (n @ centres.T).max(1) > 0.965)
        if kind == "marble":
            return blend(a, b, smooth(0.40, 0.60, noise(n * 2.2, key, 4)))
        return np.broadcast_to(a, p.shape)

    mesh = revolve(np.stack([r * np.sin(t), -r * np.cos(t)], 1))
    return Thing("ball", mesh, [], paint, rng.uniform(0.1, 0.9), (0.0, 0.7, 1.6), sphere=r)


def bottle(rng: Rng) -> Thing:
    r, h = rng.uniform(0.24, 0.40), rng.uniform(0.6, 1.2)
    neck, neck_h = r * rng.uniform(0.28, 0.48), rng.uniform(0.12, 0.4)
    shoulder, cap_h = rng.uniform(0.12, 0.42), rng.uniform(0.10, 0.2)
    t = np.linspace(0, 1, 10)
    bulge = r + (neck - r) * (0.5 - 0.5 * np.cos(math.pi * t))
    total = h + shoulder + neck_h + cap_h
    cap = neck + rng.uniform(0.015, 0.05)
    z1 = h + shoulder + neck_h
    foot = rounded([(0, 0), (r, 0), (r, h)], 0.07)
    lid = rounded([(neck, z1), (cap, z1), (cap, total), (0, total)], 0.025)
    profile = np.concatenate([foot[:-1], np.stack([bulge, h + shoulder * t], 1), lid])
    profile[:, 1] -= total / 2
    body, cap_colour, label, mark = colours(rng, 4)
    low, high = h * rng.uniform(0.08, 0.3), h * rng.uniform(0.62, 0.95)
    has_label, stripe = rng.random() < 0.75, rng.uniform(0.03, 0.12)
    wrap = turned(pattern(rng, 2 * math.pi * r), r)
    plain_label = rng.random() < 0.5

    def paint(p: Array) -> Array:
        z = p[:, 2] + total / 2
        out = np.broadcast_to(body, p.shape)
        on = (z > low) & (z < high)
        if has_label:
            out = blend(out, label, on) if plain_label else np.where(on[:, None], wrap(p), out)
            out = blend(out, mark, (np.abs(z - (low + high) / 2) < stripe) & on & plain_label)
        return blend(out, cap_colour, z > z1 - 1e-3)

    slope = zip(bulge[[3, 6]], h + shoulder * t[[3, 6]], strict=True)
    pieces = [(r, 0), (r, h), *slope, (neck, h + shoulder), (cap, z1), (cap, total)]
    hulls = solid_hulls(np.array(pieces) - (0, total / 2))
    lie = math.pi / 2
    return Thing("bottle", revolve(profile), hulls, paint, rng.uniform(0.3, 1.0), (0, 0, 0, lie))


def bowl(rng: Rng) -> Thing:
    r, h = rng.uniform(0.48, 0.85), rng.uniform(0.26, 0.5)
    foot, wall = r * rng.uniform(0.35, 0.55), rng.uniform(0.035, 0.06)
    power = rng.uniform(0.35, 0.8)
    t = np.linspace(0, 1, 14)
    outer = np.stack([foot + (r - foot) * t**power, h * t], 1)
    inner = np.stack([np.maximum(outer[:, 0] - wall, 0), wall + (h - wall) * t], 1)[::-1]
    rim = np.array([[r - wall * 0.15, h + wall * 0.35], [r - wall * 0.85, h + wall * 0.35]])
    profile = np.concatenate([[(0, 0)], outer, rim, inner, [(0, wall)]])
    profile[:, 1] -= h / 2
    wrap = turned(pattern(rng, 2 * math.pi * r), r)
    inside, edge = colours(rng, 2)
    has_edge, same = rng.random() < 0.5, rng.random() < 0.35

    def paint(p: Array) -> Array:
        radius = np.hypot(p[:, 0], p[:, 1])
        height = np.clip((p[:, 2] + h / 2) / h, 0, 1)
        within = radius < foot + (r - foot) * height**power - wall * 0.5
        out = wrap(p) if same else np.where(within[:, None], inside, wrap(p))
        return blend(out, edge, (p[:, 2] > h / 2 - 0.03) * has_edge)

    hulls = solid_hulls(np.array([[foot, -h / 2], [foot, wall - h / 2]]))
    for i, j in pairwise((0, 3, 7, 13)):
        section = np.concatenate([outer[[i, j]], outer[[j, i]] - (wall, -wall * 0.4)]) - (0, h / 2)
        hulls += ring_hulls(section)
    return Thing("bowl", revolve(profile), hulls, paint, rng.uniform(0.2, 0.9))


def box(rng: Rng) -> Thing:
    half = rng.uniform((0.20, 0.16, 0.14), (0.62, 0.50, 0.60))
    a, b, c = colours(rng, 3)
    kinds = ["carton", "product", "gift", "pattern", "plain"]
    kind = rng.choice(kinds, p=[0.2, 0.3, 0.2, 0.2, 0.1])
    if kind == "carton":
        a = linear((0.70, 0.54, 0.37)) * rng.uniform(0.7, 1.1)
    tape, band, key = rng.uniform(0.05, 0.1), rng.uniform(-0.3, 0.5), int(rng.integers(1 << 30))
    wrap = pattern(rng)
    sheet = linear((0.84, 0.74, 0.56))

    def paint(p: Array) -> Array:
        q = p / half
        side = np.abs(q).argmax(1)
        u = np.where(side == 0, p[:, 1], p[:, 0])
        v = np.where(side == 2, p[:, 1], p[:, 2])
        out = np.broadcast_to(a, p.shape)
        if kind == "carton":
            grain = 0.92 + 0.16 * noise(p * 9, key, 3)
            strip = (np.abs(p[:, 1]) < tape) & ((side == 2) | ((side == 0) & (q[:, 2] > 0.45)))
            return blend(out, sheet, strip) * grain[:, None]
        if kind == "gift":
            return blend(out, b, (np.abs(p[:, :2]) < tape).any(1))
        if kind == "product":
            lu = u / np.where(side == 0, half[1], half[0])
            lv = v / np.where(side == 2, half[1], half[2])
            label = (np.abs(lu) < 0.6) & (np.abs(lv + 0.15) < 0.42)
            lines = label & (np.abs(lu) < 0.48) & ((lv * 5) % 1 < 0.4) & (lv < 0.1)
            out = blend(out, b, q[:, 2] > band)
            return blend(blend(out, c, label), a * 0.5, lines)
        return wrap(u, v) if kind == "pattern" else out

    tilts = (0.0, 0.0, math.pi / 2)
    return Thing("box", block(half, 0.025), [corners(half)], paint, rng.uniform(0.0, 0.6), tilts)


def brick(rng: Rng) -> Thing:
    unit = rng.uniform(0.24, 0.34)
    nx, ny = int(rng.integers(2, 5)), int(rng.integers(1, 3))
    h = unit * rng.choice([1.2, 1.2, 0.6])
    half = np.array([nx * unit / 2, ny * unit / 2, h / 2])
    r, stud = 0.31 * unit, 0.24 * unit
    mesh, hulls = block(half, 0.015), [corners(half)]
    for i, j in np.ndindex(nx, ny):
        centre = np.array([(i + 0.5) * unit - half[0], (j + 0.5) * unit - half[1], h / 2])
        peg = revolve(rounded([(r, -0.01), (r, stud), (0, stud)], 0.012, 3), 20)
        mesh += Mesh(peg.vertices + centre, peg.faces)
        hulls.append(around(np.array([r, r]), np.array([0, stud]), 10).reshape(-1, 3) + centre)
    (colour,) = colours(rng, 1)
    tilts = (0.0, 0.0, 0.0, math.pi / 2, math.pi)
    gloss = rng.uniform(0.5, 0.9)
    return Thing("brick", mesh, hulls, lambda p: np.broadcast_to(colour, p.shape), gloss, tilts)


def can(rng: Rng) -> Thing:
    flat = rng.random() < 0.25
    low, high = ((0.36, 0.26), (0.50, 0.42)) if flat else ((0.25, 0.62), (0.40, 1.20))
    r, h = rng.uniform(low, high)
    lip, dip = 0.035, 0.05
    rim = r * 0.93
    wall = [(0, 0), (r * 0.92, 0), (r, 0.05), (r, h - 0.06), (rim, h - 0.015), (rim, h)]
    profile = rounded([*wall, (rim - lip, h), (rim - lip, h - dip), (0, h - dip)], 0.015)
    profile[:, 1] -= h / 2
    wrap = turned(pattern(rng, 2 * math.pi * r), r)
    label, dark = colours(rng, 2)
    metal, badge = linear((0.78, 0.79, 0.80)), rng.random() < 0.6
    size = rng.uniform(0.45, 0.8)

    def paint(p: Array) -> Array:
        out = wrap(p)
        angle, z = np.arctan2(p[:, 1], p[:, 0]), p[:, 2] / h
        inside = (np.hypot(angle / size, z / 0.3) < 1) & badge
        out = blend(out, label, inside)
        out = blend(out, dark, inside & (np.abs(angle) < size * 0.6) & (np.abs(z) < 0.07))
        ends = (np.abs(p[:, 2]) > h / 2 - 0.055) | (np.hypot(p[:, 0], p[:, 1]) < r * 0.94)
        return blend(out, metal, ends)

    side = [[r * 0.92, -h / 2], [r, 0.05 - h / 2], [r, h / 2 - 0.06], [rim, h / 2]]
    hulls = solid_hulls(np.array(side))
    lie = () if flat else (math.pi / 2,)
    return Thing("can", revolve(profile), hulls, paint, rng.uniform(0.4, 1.0), (0, 0, *lie))


def donut(rng: Rng) -> Thing:
    major, minor = rng.uniform(0.30, 0.46), rng.uniform(0.12, 0.19)
    squash = rng.uniform(0.75, 1.0)
    t = np.linspace(0, 2 * math.pi, 33)
    section = np.stack([major + minor * np.sin(t), -minor * squash * np.cos(t)], 1)
    icing, *bits = colours(rng, 4)
    dough = linear((0.78, 0.55, 0.32)) * rng.uniform(0.6, 1.15)
    kind = rng.choice(["glazed", "sprinkled", "toy"], p=[0.3, 0.4, 0.3])
    key = int(rng.integers(1 << 30))
    wrap = turned(pattern(rng, 2 * math.pi * major), major)

    def paint(p: Array) -> Array:
        if kind == "toy":
            return wrap(p)
        angle = np.arctan2(p[:, 1], p[:, 0])
        wave = 0.25 * (noise(np.stack([np.cos(angle), np.sin(angle)], 1) * 2.5, key, 2) - 0.5)
        top = p[:, 2] / (minor * squash) > wave - 0.05
        crust = np.broadcast_to(dough, p.shape) * (0.85 + 0.3 * noise(p * 14, key, 2))[:, None]
        out = np.where(top[:, None], icing, crust)
        if kind == "sprinkled":
            for i, bit in enumerate(bits):
                spots = noise(p * (16, 16, 9), key + 1 + i, 1) > 0.80
                out = blend(out, bit, spots & top)
        return out

    hulls = ring_hulls(section[:-1:3])
    tilts = (0, 0, 0, 0.3)
    return Thing("donut", revolve(section), hulls, paint, rng.uniform(0.2, 0.8), tilts)


def mug(rng: Rng) -> Thing:
    r, h, wall = rng.uniform(0.32, 0.48), rng.uniform(0.62, 1.05), rng.uniform(0.03, 0.05)
    low = r * rng.uniform(0.72, 1.0)
    line = [(0, 0), (low, 0), (r, h), (r - wall, h), (low - wall, wall * 1.5), (0, wall * 1.5)]
    profile = rounded(line, 0.05, 5)
    profile[:, 1] -= h / 2
    reach, rise, thick = rng.uniform((0.18, 0.22, 0.035), (0.30, 0.32, 0.06)) * (1, h, 1)
    t = np.linspace(-0.12, math.pi + 0.12, 28)
    square = rng.uniform(0.6, 1.0)
    s, c = np.sin(t), np.cos(t)
    x = (low + r) / 2 - wall / 2 + reach * np.sign(s) * np.abs(s) ** square
    path = np.stack([x, 0 * t, rise * np.sign(c) * np.abs(c) ** square], 1)
    across = np.array([0.0, 1.0, 0.0])
    handle = tube(path, across, thick * rng.uniform(1.0, 1.6), thick)
    wrap = turned(pattern(rng, 2 * math.pi * r), r)
    inside, grip = colours(rng, 2)
    plain_inside, own_grip = rng.random() < 0.6, rng.random() < 0.4

    def paint(p: Array) -> Array:
        radius = np.hypot(p[:, 0], p[:, 1])
        edge = low + (r - low) * np.clip(p[:, 2] / h + 0.5, 0, 1)
        out = wrap(p)
        if plain_inside:
            out = np.where((radius < edge - wall * 0.5)[:, None], inside, out)
        return blend(out, grip, (radius > edge + 0.012) & (p[:, 0] > 0)) if own_grip else out

    section = np.array([(low, 0), (r, h), (r - wall, h), (low - wall, 0)]) - (0, h / 2)
    hulls = ring_hulls(section) + solid_hulls(np.array([[low, -h / 2], [low, wall * 1.5 - h / 2]]))
    bends = pairwise(range(0, 28, 3))
    hulls += [tube(path[[i, j]], across, thick * 1.3, thick, 6).vertices for i, j in bends]
    tilts = (0, 0, 0, 0, math.pi / 2)
    return Thing("mug", revolve(profile) + handle, hulls, paint, rng.uniform(0.3, 1.0), tilts)


MAKERS: tuple[Callable[[Rng], Thing], ...] = (ball, bottle, bowl, box, brick, can, donut, mug)
CATEGORIES = tuple(maker.__name__ for maker in MAKERS)

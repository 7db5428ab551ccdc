"""Triangle meshes, and the convex pieces that stand for them in collisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tabletop.colour import Array


@dataclass(frozen=True, slots=True)
class Mesh:
    vertices: Array  # (V, 3)
    faces: Array  # (F, 3)

    def __add__(self, other: Mesh) -> Mesh:
        faces = np.concatenate([self.faces, other.faces + len(self.vertices)])
        return Mesh(np.concatenate([self.vertices, other.vertices]), faces)


def grid_faces(rows: int, columns: int, closed: bool) -> Array:
    i, j = np.mgrid[: rows - 1, : columns if closed else columns - 1].reshape(2, -1)
    k = (j + 1) % columns
    a, b, c, d = (r * columns + s for r, s in ((i, j), (i, k), (i + 1, k), (i + 1, j)))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def around(r: Array, z: Array, count: int) -> Array:
    """(len(r), count, 3) points: the (r, z) turned about the z axis."""
    angle = np.arange(count) * (2 * math.pi / count)
    x, y = r[:, None] * np.cos(angle), r[:, None] * np.sin(angle)
    return np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], -1)


def revolve(profile: Array, count: int = 64) -> Mesh:
    """The surface that an (r, z) polyline sweeps; outward when it goes up on the outside."""
    points = around(profile[:, 0], profile[:, 1], count)
    return Mesh(points.reshape(-1, 3), grid_faces(len(profile), count, closed=True))


def solid_hulls(profile: Array, count: int = 24) -> list[Array]:
    """One convex piece for each step of a solid's profile."""
    return [
        around(p[:, 0], p[:, 1], count).reshape(-1, 3)
        for p in (np.stack(pair) for pair in pairwise(profile))
        if np.ptp(p[:, 1]) > 1e-6
    ]


def ring_hulls(section: Array, count: int = 18) -> list[Array]:
    """Convex pieces of a ring whose cross-section is the convex polygon (r, z)."""
    points = around(section[:, 0], section[:, 1], count)
    return [points[:, [i, (i + 1) % count]].reshape(-1, 3) for i in range(count)]


def rounded(points: Sequence[tuple[float, float]], radius: float, steps: int = 4) -> Array:
    """A polyline with its inner corners cut by small arcs."""
    p = np.asarray(points, float)
    out = [p[:1]]
    for before, corner, after in zip(p, p[1:], p[2:], strict=False):
        into, off = before - corner, after - corner
        reach = min(radius, 0.45 * np.linalg.norm(into), 0.45 * np.linalg.norm(off))
        start = corner + into / np.linalg.norm(into) * reach
        end = corner + off / np.linalg.norm(off) * reach
        t = np.linspace(0, 1, steps)[:, None]
        out.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    return np.concatenate([*out, p[-1:]])


def block(half: Array, radius: float) -> Mesh:
    """A box with rounded edges: the faces of an inner box, pushed outwards by `radius`."""
    mesh = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    bend = np.tan(np.linspace(0, math.pi / 4, 4))[1:]
    push_along = np.r_[-bend[::-1], 0, 0, bend]  # along each axis: where on the inner box,
    nodes = [(np.repeat([-size, size], 4), push_along) for size in half - radius]  # which way out
    for axis in range(3):
        (u, du), (v, dv) = nodes[(axis + 1) % 3], nodes[(axis + 2) % 3]
        for sign in (-1.0, 1.0):
            core, push = np.empty((len(v), len(u), 3)), np.empty((len(v), len(u), 3))
            core[..., axis], push[..., axis] = sign * (half[axis] - radius), sign
            core[..., (axis + 1) % 3], push[..., (axis + 1) % 3] = u, du
            core[..., (axis + 2) % 3], push[..., (axis + 2) % 3] = v[:, None], dv[:, None]
            points = core + radius * push / np.linalg.norm(push, axis=-1, keepdims=True)
            faces = grid_faces(len(v), len(u), closed=False)
            mesh += Mesh(points.reshape(-1, 3), faces[:, :: int(sign)])  # the back is not drawn
    return mesh


def corners(half: Array) -> Array:
    return np.asarray(np.array(list(np.ndindex(2, 2, 2))) * 2.0 * half - half)


def tube(path: Array, side: Array, width: float, depth: float, count: int = 16) -> Mesh:
    """An elliptic tube along a path in the plane whose normal is `side`."""
    along = np.gradient(path, axis=0)
    up = np.cross(side, along / np.linalg.norm(along, axis=1, keepdims=True))
    angle = np.arange(count) * (2 * math.pi / count)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    points = path[:, None] + depth * c * up[:, None] + width * s * side
    return Mesh(points.reshape(-1, 3), grid_faces(len(path), count, closed=True))

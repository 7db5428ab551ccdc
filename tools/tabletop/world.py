"""The simulation in which things fall; the only module that imports pybullet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tabletop.colour import Array, Rng
from tabletop.things import MAKERS, Thing
from tabletop.view import Camera

MAX_OVERLAP = 0.03
MAX_SUPPORT = 0.75  # nothing is placed on taller things


def write_obj(path: Path, pieces: Sequence[Array], faces: Array | None = None) -> str:
    """Write vertices and faces; without faces, Bullet uses the convex hull of each piece."""
    lines, start = [], 1
    for number, points in enumerate(pieces):
        lines.append(f"o part{number}\n")
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in points]
        fan = [(0, i, i + 1) for i in range(1, len(points) - 1)] if faces is None else faces
        lines += [f"f {a + start} {b + start} {c + start}\n" for a, b, c in fan]
        start += len(points)
    path.write_text("".join(lines))
    return str(path)


class World:
    """Bullet with a ground and things."""

    def __init__(self, folder: Path) -> None:
        import pybullet

        self.bullet, self.folder = pybullet, folder
        self.client = pybullet.connect(pybullet.DIRECT)
        self.things: dict[int, Thing] = {}
        pybullet.setGravity(0, 0, -98.0)
        pybullet.setPhysicsEngineParameter(numSolverIterations=60, deterministicOverlappingPairs=1)
        plane = pybullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=[40, 40, 1])
        # Without a look of its own Bullet would draw it.
        unseen = pybullet.createVisualShape(pybullet.GEOM_SPHERE, radius=1e-4)
        ground = pybullet.createMultiBody(0, plane, unseen, [0, 0, -1])
        pybullet.changeDynamics(ground, -1, lateralFriction=0.9)

    def close(self) -> None:
        self.bullet.disconnect(self.client)

    def add(self, thing: Thing, position: Sequence[float], rotation: Sequence[float]) -> int:
        """Add a thing at a position, rotated by Euler angles; returns its body number."""
        b, stem = self.bullet, self.folder / str(len(self.things))
        name = write_obj(stem.with_suffix(".look.obj"), [thing.mesh.vertices], thing.mesh.faces)
        look = b.createVisualShape(b.GEOM_MESH, fileName=name)
        if thing.sphere:
            solid = b.createCollisionShape(b.GEOM_SPHERE, radius=thing.sphere)
        else:
            name = write_obj(stem.with_suffix(".hulls.obj"), thing.hulls)
            solid = b.createCollisionShape(b.GEOM_MESH, fileName=name)
        turn = b.getQuaternionFromEuler(rotation)
        body = int(b.createMultiBody(0.3, solid, look, position, turn))
        friction = {"lateralFriction": 0.8, "rollingFriction": 0.02, "spinningFriction": 0.02}
        damping = {"angularDamping": 0.25, "linearDamping": 0.1}
        b.changeDynamics(body, -1, restitution=0.05, **friction, **damping)
        self.things[body] = thing
        return body

    def remove(self, body: int) -> None:
        self.bullet.removeBody(body)
        del self.things[body]

    def wait_until_still(self, steps: int, patience: int = 40) -> bool:
        """Step until nothing has moved for ``patience`` steps; False after ``steps`` steps."""
        calm = 0
        for _ in range(steps):
            self.bullet.stepSimulation()
            speeds = [self.bullet.getBaseVelocity(body) for body in self.things]
            still = all(max(map(abs, v)) < 0.15 and max(map(abs, w)) < 0.5 for v, w in speeds)
            calm = calm + 1 if still else 0
            if calm >= patience:
                return True
        return False

    def top(self, x: float, y: float, reach: float) -> float:
        """Height of what stands within `reach` of (x, y)."""
        boxes = [self.bullet.getAABB(body) for body in self.things]
        near = [
            high[2]
            for low, high in boxes
            if low[0] - reach < x < high[0] + reach and low[1] - reach < y < high[1] + reach
        ]
        return max(near, default=0.0)

    def overlap(self) -> float:
        """The largest penetration depth of two things."""
        contacts = [c for body in self.things for c in self.bullet.getContactPoints(body)]
        return max((-float(contact[8]) for contact in contacts), default=0.0)

    def pose(self, body: int) -> tuple[Array, Array]:
        """Rotation (3, 3) and position (3,) of a thing."""
        position, rotation = self.bullet.getBasePositionAndOrientation(body)
        matrix = np.array(self.bullet.getMatrixFromQuaternion(rotation)).reshape(3, 3)
        return matrix, np.array(position)

    def render(self, camera: Camera) -> tuple[Array, Array]:
        """Body number (-1 = none) and distance along the camera's axis of every pixel."""
        b, (near, far) = self.bullet, camera.near_far
        view = b.computeViewMatrix(camera.eye.tolist(), camera.target.tolist(), camera.up.tolist())
        lens = b.computeProjectionMatrixFOV(camera.fov, camera.width / camera.height, near, far)
        _, _, _, depth, ids = b.getCameraImage(
            camera.width, camera.height, view, lens, shadow=0, renderer=b.ER_TINY_RENDERER
        )
        shape = (camera.height, camera.width)
        depth = np.reshape(depth, shape).astype(np.float64)
        return np.reshape(ids, shape).astype(np.int64), far * near / (far - (far - near) * depth)

    def alone(self, body: int, camera: Camera) -> Array:
        """The pixels of a thing if nothing occluded it."""
        poses = {o: self.bullet.getBasePositionAndOrientation(o) for o in self.things if o != body}
        for other, (_, rotation) in poses.items():
            self.bullet.resetBasePositionAndOrientation(other, (0, 0, -500), rotation)
        ids, _ = self.render(camera)
        for other, (position, rotation) in poses.items():
            self.bullet.resetBasePositionAndOrientation(other, position, rotation)
        return np.equal(ids, body)


def populate(world: World, rng: Rng, count: int) -> bool:
    """Add things one by one, some on others, and wait until they are at rest."""
    spread = 0.55 + 0.27 * math.sqrt(count) * rng.uniform(0.85, 1.25)
    places: list[tuple[float, float]] = []
    for _ in range(count):
        thing = MAKERS[int(rng.integers(len(MAKERS)))](rng)
        reach = float(np.abs(thing.mesh.vertices).max())
        on_top = bool(places) and rng.random() < 0.22
        if on_top:
            x, y = places[int(rng.integers(len(places)))] + rng.uniform(-0.15, 0.15, 2)
        if not on_top or world.top(x, y, 0.1) > MAX_SUPPORT:
            spots = [
                (spread * math.sqrt(u) * math.cos(a), spread * math.sqrt(u) * math.sin(a))
                for u, a in rng.uniform((0, 0), (1, 2 * math.pi), (30, 2))
            ]
            free = [s for s in spots if world.top(*s, reach * 0.8) == 0.0]
            x, y = (free or spots)[0]
        tilt = float(rng.choice(thing.tilts))
        extent = float(np.abs(thing.mesh.vertices @ [0, math.sin(tilt), math.cos(tilt)]).max())
        z = world.top(x, y, reach * 0.8) + extent + 0.02
        world.add(thing, (x, y, z), (tilt, 0.0, float(rng.uniform(0, 2 * math.pi))))
        places.append((float(x), float(y)))
        world.wait_until_still(80, patience=8)
    return world.wait_until_still(900) and world.overlap() < MAX_OVERLAP

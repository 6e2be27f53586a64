"""What is in a picture: who, in which pose and clothes, where, lit and seen how. All follows from (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .body import ANCESTRIES, Shape
from .camera import Camera
from .poses import sample_pose
from .wardrobe import Outfit, sample_outfit

# What of a person fills the picture: how often, and from which share of the height of the head's top to which. The
# whole person includes arms above the head, the others do not.
FRAMINGS = {
    "whole": (0.55, 0.0, 9.0),
    "knees_up": (0.15, 0.26, 1.0),
    "hips_up": (0.13, 0.48, 1.0),
    "bust": (0.08, 0.68, 1.0),
    "legs": (0.04, 0.0, 0.6),
    "middle": (0.05, 0.3, 0.85),
    "face": (0.03, 0.86, 1.0),
}
MIN_DISTANCE_M = 0.6  # between two people's feet


@dataclass(frozen=True)
class Person:
    """One person before the mesh is posed.

    Attributes:
        yaw_deg: 0 looks along the world's -y; positive turns to the person's left.
        noise_seed: of folds in the cloth and blotches on the skin.
    """

    shape: Shape
    pose_name: str
    pose: np.ndarray
    outfit: Outfit
    yaw_deg: float
    noise_seed: int


@dataclass(frozen=True)
class Light:
    """Linear colours of the lamps; `to_key` (3,) points from the scene to the main lamp, in the world."""

    to_key: np.ndarray
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    softness: float


def sample_shape(rng: np.random.Generator) -> Shape:
    """A build: one in seven a child, the others from young to old."""
    age = rng.uniform(0.16, 0.5) if rng.random() < 0.14 else rng.uniform(0.55, 1.0)
    values = {
        "gender": float(rng.choice([rng.uniform(0, 0.12), rng.uniform(0.88, 1), rng.random()], p=[0.45, 0.45, 0.1])),
        "age": float(age),
        "muscle": float(np.clip(rng.normal(0.55, 0.18), 0.1, 1)),
        "weight": float(np.clip(rng.normal(0.5, 0.22), 0.05, 1)),
        "height": float(np.clip(rng.normal(0.5, 0.2), 0.05, 0.95)),
        "proportions": float(rng.uniform(0.1, 0.9)),
        "cupsize": float(np.clip(rng.normal(0.5, 0.2), 0.05, 0.95)),
        "firmness": float(rng.uniform(0.3, 0.9)),
    }
    values |= dict(zip(ANCESTRIES, rng.dirichlet([0.6, 0.6, 0.6]).tolist(), strict=True))
    smile, blink, mouth = rng.uniform(0, 0.8), rng.random(), rng.random()
    facial = {"mouthSmileLeft": smile, "mouthSmileRight": smile} if rng.random() < 0.45 else {}
    if mouth < 0.22:
        facial["jawOpen"] = rng.uniform(0.15, 0.9)
        if mouth < 0.05:
            facial["tongueOut"] = rng.uniform(0.4, 1.0)
    elif mouth < 0.28:
        facial["mouthPucker"] = rng.uniform(0.3, 0.9)
    if blink < 0.08:
        facial |= {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}
    if rng.random() < 0.2:
        facial["browInnerUp"] = rng.uniform(0.3, 1.0)
    return Shape(values, facial)


def sample_person(rng: np.random.Generator) -> Person:
    """Someone facing the camera more often than not; `place_people` finds the places."""
    shape = sample_shape(rng)
    name, pose = sample_pose(rng)
    outfit = sample_outfit(rng, masculine=1 - shape.values["gender"], age=shape.values["age"])
    yaw = float(rng.choice([rng.normal(0, 25), rng.uniform(-100, 100), rng.uniform(-180, 180)], p=[0.5, 0.25, 0.25]))
    return Person(shape, name, pose, outfit, yaw, int(rng.integers(2**32)))


def stand(vertices: np.ndarray, points: np.ndarray, person: Person) -> tuple[np.ndarray, np.ndarray]:
    """Turn a posed body by its yaw and set its lowest point on the ground: vertices and points in the world."""
    angle = np.radians(person.yaw_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shift = np.array([0.0, 0.0, -float(vertices[:, 2].min())])
    return vertices.astype(np.float64) @ turn.T + shift, points @ turn.T + shift


def sample_camera(
    rng: np.random.Generator,
    vertices: np.ndarray,
    head: np.ndarray,
    height: int,
    width: int,
    framings: tuple[str, ...] | None = None,
) -> tuple[str, Camera]:
    """A camera in front of (at smaller y than) the first person, framing a part of it.

    Args:
        vertices: (num_vertices, 3) the first person in the world.
        head: numbers of the vertices of the head.
        framings: names from `FRAMINGS` to choose from; None for all.
    """
    names = tuple(FRAMINGS) if framings is None else framings
    weights = np.array([FRAMINGS[name][0] for name in names])
    framing = names[rng.choice(len(names), p=weights / weights.sum())]
    _, low, high = FRAMINGS[framing]
    top = vertices[head, 2].max()
    inside = vertices[head] if framing == "face" else vertices
    inside = inside[(inside[:, 2] >= low * top) & (inside[:, 2] <= high * top)]
    middle = (inside.min(0) + inside.max(0)) / 2
    span_x, _, span_z = np.ptp(inside, axis=0)
    margin = rng.uniform(1.06, 1.7)
    span = margin * max(span_z, 0.85 * span_x * height / width)
    focal_px = max(height, width) * rng.uniform(0.85, 2.4)
    distance = max(focal_px * span / height, 0.45)
    pitch = np.radians(np.clip(rng.normal(7, 9), -22, 38))
    azimuth = np.radians(rng.normal(0, 4))
    back = np.array([np.cos(pitch) * np.sin(azimuth), -np.cos(pitch), np.sin(pitch)])
    position = middle + distance * back
    position[2] = max(position[2], 0.12)
    slack = max(margin - 1, 0.1) / margin / 2
    aim = middle + np.array([rng.uniform(-1, 1), 0, rng.uniform(-1, 1)]) * slack * span * np.array(
        [width / height, 1, 1]
    )
    return framing, Camera.look_at(position, aim, focal_px, height, width, roll_deg=float(rng.normal(0, 2.0)))


def place_people(rng: np.random.Generator, camera: Camera, count: int) -> list[np.ndarray]:
    """Places (x, y) of people: the first at the origin, the others where the camera sees the ground, apart.

    Fewer than `count` places come back when the view has no room for more.
    """
    places = [np.zeros(2)]
    first = float(camera.to_camera(np.array([0.0, 0.0, 0.9]))[2])
    for _ in range(24 * (count - 1)):
        if len(places) == count:
            break
        depth = first * np.exp(rng.uniform(-0.35, 0.75)) + rng.uniform(-0.2, 0.9)
        pixel = np.array([rng.uniform(-0.05, 1.05) * camera.width, camera.center_px[1]])
        spot = (camera.position + depth * (camera.rays(pixel) @ camera.rotation))[:2]
        apart = min(np.linalg.norm(spot - other) for other in places)
        if depth > 0.8 and apart > MIN_DISTANCE_M and np.linalg.norm(spot - camera.position[:2]) > 0.8:
            places.append(spot)
    return places


def sample_light(rng: np.random.Generator, camera: Camera) -> Light:
    """A main lamp somewhere above and mostly on the camera's side, and a sky that fills the shadows."""
    azimuth, elevation = np.radians(rng.normal(0, 65)), np.radians(rng.uniform(12, 75))
    toward = -camera.rotation[2] * np.array([1, 1, 0])
    toward = toward / max(np.linalg.norm(toward), 1e-9)
    aside = np.array([-toward[1], toward[0], 0])
    to_key = np.cos(elevation) * (np.cos(azimuth) * toward + np.sin(azimuth) * aside) + np.array(
        [0, 0, np.sin(elevation)]
    )
    warmth = rng.uniform(-0.25, 0.3)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    strength = rng.uniform(0.25, 1.0)
    ambient = rng.uniform(0.28, 0.6)
    sky = ambient * np.array([1 - 0.4 * warmth, 1.0, 1 + 0.4 * warmth])
    key, ground = 1.5 * strength * tint, sky * rng.uniform(0.3, 0.75)
    softness = float(rng.uniform(0.0, 0.12))
    return Light(to_key, key.astype(np.float32), sky.astype(np.float32), ground.astype(np.float32), softness)

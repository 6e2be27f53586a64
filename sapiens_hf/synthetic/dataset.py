"""Synthetic people as a dataset: item i of seed s is always the same picture with the same labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import labels as label_sets
from .body import load_body
from .camera import Camera
from .render import label, label_faces, pose_people, see, shade, trace, visible_points
from .scene import FRAMINGS, place_people, sample_camera, sample_light, sample_person

Sample = dict[str, Any]
MAX_ATTEMPTS = 50


class SyntheticHumans:
    """Pictures of one to four people with exact labels, made when they are asked for.

    `dataset[i]` depends on the arguments, the seed and i alone: not on order, workers or what was asked before. Each
    item is a dictionary of numpy arrays:

    - image (height, width, 3) uint8 RGB
    - boxes (num_people, 4) float32: COCO x, y, width, height around the pixels of each person that can be seen
    - keypoints (num_people, 133, 3) float32: x, y, visibility of the WholeBody set. Integers are pixel centres.
      Visibility 2: seen; 1: in the picture but hidden; 0 (with x = y = 0): outside, or a point without a truth
    - keypoints_308 (num_people, 308, 3) float32: the Goliath points of the same names, the others 0
    - segmentation (height, width) uint8: Goliath-28 classes, 0 background
    - depth (height, width) float32: metres along the camera's z axis, 0 where there is no person
    - normals (height, width, 3) float32: unit vectors, x to the right, y up, z towards the camera, 0 elsewhere
    - mask (height, width) bool: where people are
    - instances (height, width) int8: row of the person in `boxes`, -1 elsewhere
    - face_segmentation (height, width) uint8: FaceSynthetics-19 classes, only if asked for
    - intrinsics (3, 3) float64: focal length and principal point in pixels

    Args:
        seed: the dataset. Training and test sets take different seeds.
        size: (height, width) in pixels.
        people: fewest and most people in a picture; a picture has fewer when the view has no room for more.
        length: number of items, for `len()` and samplers.
        crop: True shows one person in the middle, as a top-down pose model sees its box: the box, padded by 1.25,
            fills the picture. Others may still walk into it; labels then have the person of the crop in row 0.
        min_pixels: people with fewer visible pixels get no row (they stay in the dense labels).
        framings: names of `scene.FRAMINGS` to choose from; None for all.
        face_segmentation: also make the FaceSynthetics labels.

    Raises:
        ImportError: if the packages of the `synthetic` extra are missing.
        ValueError: if a size, a number of people or a framing makes no sense.
        RuntimeError: from an item, if no view shows `min_pixels` of the first person.
    """

    def __init__(
        self,
        seed: int,
        size: tuple[int, int] = (256, 192),
        people: tuple[int, int] = (1, 4),
        length: int = 1_000_000,
        crop: bool = False,
        min_pixels: int = 32,
        framings: tuple[str, ...] | None = None,
        face_segmentation: bool = False,
    ) -> None:
        if len(size) != 2 or min(size) < 16:
            raise ValueError(f"size is (height, width) with at least 16 pixels each, got {size!r}.")
        if not 1 <= people[0] <= people[1] <= 4:
            raise ValueError(f"people is (fewest, most) between 1 and 4, got {people!r}.")
        if seed < 0 or length < 1:
            raise ValueError(f"seed must be at least 0 and length at least 1, got seed={seed} and length={length}.")
        for name in framings or ():
            if name not in FRAMINGS:
                raise ValueError(f"Unknown framing {name!r}; choose from {', '.join(FRAMINGS)}.")
        self.seed, self.size, self.people, self.length = seed, (int(size[0]), int(size[1])), people, length
        self.crop, self.min_pixels = crop, min_pixels
        self.framings, self.face_segmentation = framings, face_segmentation

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        index = range(self.length)[index]
        for attempt in range(MAX_ATTEMPTS):
            # A view in which the first person is hidden or out of the picture is drawn again, from the next stream.
            sample = self._draw(np.random.default_rng([self.seed, index, attempt]))
            if sample is not None:
                return sample
        raise RuntimeError(
            f"None of {MAX_ATTEMPTS} views for item {index} shows {self.min_pixels} pixels of its first person; "
            f"pass a smaller min_pixels or a larger size than {self.size}."
        )

    def _draw(self, rng: np.random.Generator) -> Sample | None:
        height, width = self.size
        counts = np.arange(self.people[0], self.people[1] + 1)
        count = rng.choice(counts, p=(1 / counts) / (1 / counts).sum())  # small groups are the common ones
        people = [sample_person(rng) for _ in range(count)]
        standing = pose_people(people)
        _, camera = sample_camera(rng, standing[0][0], load_body().head, height, width, self.framings)
        places = place_people(rng, camera, len(people))
        light = sample_light(rng, camera)
        seen = []
        for person, (vertices, points), place in zip(people, standing, places, strict=False):
            shift = np.array([*place, 0.0])
            seen.append((person, vertices + shift, points + shift))
        if self.crop:
            camera = _crop_to_person(rng, camera, seen[0][1])
        view = trace([see(*one, camera) for one in seen], camera)
        if view is None:
            return None
        dense = label(view)
        pixels = np.bincount(dense["instances"][dense["mask"]], minlength=len(seen))
        if pixels[0] < self.min_pixels:
            return None
        rows = np.flatnonzero(pixels >= self.min_pixels)
        wholebody, goliath = _named_keypoints(visible_points(view)[rows])
        renamed = np.full(len(seen) + 1, -1, dtype=np.int8)  # the last entry is the background's
        renamed[rows] = np.arange(len(rows))
        dense["instances"] = renamed[dense["instances"]]
        if self.face_segmentation:
            dense["face_segmentation"] = label_faces(view)
        return {
            "image": shade(view, light, rng),
            "boxes": _boxes(dense["instances"], len(rows)),
            "keypoints": wholebody,
            "keypoints_308": goliath,
            **dense,
            "intrinsics": camera.matrix,
        }


def _crop_to_person(rng: np.random.Generator, camera: Camera, vertices: np.ndarray) -> Camera:
    """The part of the picture around a person: its box padded by 1.25, give or take, in the picture's aspect ratio."""
    pixels, _ = camera.project(vertices)
    pixels = pixels[~np.isnan(pixels[:, 0])]
    low = np.maximum(pixels.min(0), -0.5)
    high = np.minimum(pixels.max(0), np.array([camera.width, camera.height]) - 0.5)
    span = np.maximum(high - low, 1.0)
    width_px = 1.25 * max(span[0], span[1] * camera.width / camera.height) * np.exp(rng.normal(0, 0.07))
    x, y = (low + high) / 2 + rng.normal(0, 0.02, size=2) * width_px
    return camera.crop(x, y, width_px, camera.height, camera.width)


def _boxes(instances: np.ndarray, count: int) -> np.ndarray:
    """COCO boxes (count, 4) around the pixels of each row."""
    boxes = np.zeros((count, 4), dtype=np.float32)
    for row in range(count):
        mine = instances == row
        columns, lines = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
        boxes[row] = columns[0], lines[0], columns[-1] - columns[0] + 1, lines[-1] - lines[0] + 1
    return boxes


def _named_keypoints(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The body's points in the order of the WholeBody and of the Goliath set; points they do not share stay 0."""
    known = {name: column for column, name in enumerate(load_body().joint_names)}
    result = []
    for name in ("coco_wholebody", "goliath"):
        names = label_sets.keypoint_set(name).names
        ordered = np.zeros((len(points), len(names), 3), dtype=np.float32)
        shared = [column for column, name in enumerate(names) if name in known]
        ordered[:, shared] = points[:, [known[names[column]] for column in shared]]
        result.append(ordered)
    return result[0], result[1]

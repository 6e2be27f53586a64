"""A pinhole camera: world to pixels and pixels to rays.

Camera axes are x right, y down, z forwards; depth is z in metres. Integer pixel coordinates are pixel centres, so the
picture covers [-0.5, width - 0.5] x [-0.5, height - 0.5].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MIN_DEPTH_M = 1e-3  # what is nearer is behind the camera


@dataclass(frozen=True)
class Camera:
    """Where the camera is and what it sees.

    Attributes:
        position: (3,) world, metres.
        rotation: (3, 3), rows are the camera's x, y and z axes in the world.
        focal_px: focal length in pixels, the same in x and y.
        center_px: (2,) principal point (x, y).
        height, width: picture size in pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    focal_px: float
    center_px: tuple[float, float]
    height: int
    width: int

    @classmethod
    def look_at(
        cls,
        position: np.ndarray,
        target: np.ndarray,
        focal_px: float,
        height: int,
        width: int,
        roll_deg: float = 0.0,
    ) -> Camera:
        """A camera at `position` with `target` in the middle of the picture and the world's z upwards."""
        forward = np.asarray(target, dtype=np.float64) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
        rotation = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
        center = ((width - 1) / 2, (height - 1) / 2)
        return cls(np.asarray(position, dtype=np.float64), rotation, float(focal_px), center, height, width)

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) intrinsics: camera coordinates to homogeneous pixels."""
        return np.array([[self.focal_px, 0, self.center_px[0]], [0, self.focal_px, self.center_px[1]], [0, 0, 1]])

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) in camera axes."""
        return (np.asarray(points, dtype=np.float64) - self.position) @ self.rotation.T

    def to_pixels(self, seen: np.ndarray) -> np.ndarray:
        """Points (..., 3) in camera axes to pixels (..., 2) as (x, y); NaN for what is not in front of the camera."""
        depth = np.where(seen[..., 2:] > MIN_DEPTH_M, seen[..., 2:], seen.dtype.type(np.nan))
        return self.focal_px * (seen[..., :2] / depth) + np.asarray(self.center_px, dtype=seen.dtype)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (..., 3) to pixels (..., 2) as (x, y) and depths (...), metres."""
        seen = self.to_camera(points)
        return self.to_pixels(seen), seen[..., 2]

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Directions (..., 3) in camera axes through pixels (..., 2), with z = 1: a ray's length in them is depth."""
        pixels = np.asarray(pixels, dtype=np.float64)
        xy = (pixels - np.asarray(self.center_px)) / self.focal_px
        return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)

    def crop(self, x: float, y: float, width_px: float, height: int, width: int) -> Camera:
        """The camera that sees a part of this picture, enlarged.

        Args:
            x, y: centre of the part in this camera's pixels.
            width_px: width of the part in this camera's pixels; its height follows from the new aspect ratio.
            height, width: size of the new picture.
        """
        zoom = width / width_px
        center = tuple(
            (c - at) * zoom + (size - 1) / 2
            for c, at, size in zip(self.center_px, (x, y), (width, height), strict=True)
        )
        return replace(self, focal_px=self.focal_px * zoom, center_px=center, height=height, width=width)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths (num, 1) of vectors (num, 3); several times faster than `np.linalg.norm`."""
    return np.sqrt(np.einsum("nc,nc->n", vectors, vectors))[:, None]

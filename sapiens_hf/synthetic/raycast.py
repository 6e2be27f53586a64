"""First hits of rays on triangle meshes: Embree finds the triangle, float64 finds the point on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np


def missing_extra(package: str) -> ImportError:
    """The error for an optional package of the `synthetic` extra that is not installed."""
    return ImportError(
        f"Synthetic humans need the package {package!r}, which is not installed. "
        'Install the extra: pip install "sapiens_hf[synthetic]"'
    )


@dataclass(frozen=True)
class Hits:
    """What each ray meets first.

    Attributes:
        mesh (num_rays,): index of the mesh, -1 where the ray meets nothing; the other fields are 0 there.
        face (num_rays,): index into that mesh's faces.
        weights (num_rays, 3): barycentric weights of the face's corners.
        distance (num_rays,): in lengths of the ray's direction, float64.
    """

    mesh: np.ndarray
    face: np.ndarray
    weights: np.ndarray
    distance: np.ndarray


@cache
def _embree() -> tuple[Any, Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore import EmbreeDevice
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise missing_extra("embreex") from error
    return EmbreeDevice(), EmbreeScene, TriangleMesh


class RayCaster:
    """Meshes that rays can meet.

    Args:
        meshes: pairs of vertices (num_vertices, 3) and faces (num_faces, 3). Use coordinates near the rays' origins:
            Embree works in float32.

    Raises:
        ImportError: if embreex is not installed; the message names the extra.
        ValueError: if there is no face at all.
    """

    def __init__(self, meshes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        device, scene_class, mesh_class = _embree()
        self.meshes = meshes
        starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
        self._faces = np.concatenate([faces + start for (_, faces), start in zip(meshes, starts[:-1], strict=True)])
        if len(self._faces) == 0:
            raise ValueError("RayCaster got meshes without faces; a scene needs at least one triangle.")
        self._vertices = np.concatenate([vertices for vertices, _ in meshes]).astype(np.float32)
        self._columns = np.ascontiguousarray(self._vertices.T).astype(np.float64)
        self._mesh_starts = np.cumsum([0, *(len(faces) for _, faces in meshes)])
        self._scene = scene_class(device)
        mesh_class(self._scene, self._vertices, self._faces.astype(np.int32))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays (num_rays, 3); `origins` may be (3,)."""
        directions = np.asarray(directions, dtype=np.float64)
        origins = np.broadcast_to(np.asarray(origins, dtype=np.float64), directions.shape)
        found = self._scene.run(origins.astype(np.float32), directions.astype(np.float32), query="INTERSECT")
        hit = np.flatnonzero(found >= 0)
        faces = found[hit]
        a, b, c = (np.take(self._columns, self._faces[faces, corner], axis=1) for corner in range(3))
        distance, weights = _intersect(origins[hit].T, directions[hit].T, a, b, c)
        result = Hits(
            mesh=np.full(len(directions), -1, dtype=np.int64),
            face=np.zeros(len(directions), dtype=np.int64),
            weights=np.zeros((len(directions), 3)),
            distance=np.zeros(len(directions)),
        )
        mesh = np.searchsorted(self._mesh_starts, faces, side="right") - 1
        result.mesh[hit], result.face[hit] = mesh, faces - self._mesh_starts[mesh]
        result.weights[hit], result.distance[hit] = weights, distance
        return result

    def blocked(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether anything lies along each ray: (num_rays,) bool."""
        rays = np.ascontiguousarray(directions, dtype=np.float32)
        starts = np.ascontiguousarray(np.broadcast_to(origins, rays.shape), dtype=np.float32)
        return self._scene.run(starts, rays, query="OCCLUDED") == 0


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _intersect(
    origins: np.ndarray, directions: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet the planes of their triangles (Moeller and Trumbore 1997); all arguments are (3, num_rays).

    Returns:
        Distances (num_rays,) in lengths of the directions, and barycentric weights (num_rays, 3) of a, b and c.
    """
    edge1, edge2, start = b - a, c - a, origins - a
    p, q = _cross(directions, edge2), _cross(start, edge1)
    inverse = 1 / _dot(edge1, p)
    u, v = _dot(start, p) * inverse, _dot(directions, q) * inverse
    return _dot(edge2, q) * inverse, np.stack([1 - u - v, u, v], axis=1)

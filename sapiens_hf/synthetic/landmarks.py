"""The inner points of the WholeBody face (brows, nose, eyes, mouth) as places on the mesh.

Each point is defined where a ray from the front meets the canonical face; it then moves with that place of the skin.
The 17 points of the jaw are left out: annotators put them on the outline of the face in the picture, which is no place
on the skin, so they have no truth here.
"""

from __future__ import annotations

import numpy as np

from .raycast import RayCaster

# Canonical x (to the person's left) and height z, metres, of the left half in the order of the 68-point scheme.
_MIDDLE = {
    **{27: 0.6985, 28: 0.6860, 29: 0.6730, 30: 0.6605, 33: 0.6510},  # nose: root to tip, base
    **{51: 0.6393, 57: 0.6178, 62: 0.6320, 66: 0.6283},  # lips: upper, lower, inner upper, inner lower
}
_LEFT = {
    **{22: (0.0130, 0.7165), 23: (0.0220, 0.7182), 24: (0.0310, 0.7193), 25: (0.0400, 0.7187), 26: (0.0490, 0.7170)},
    **{34: (0.0070, 0.6520), 35: (0.0135, 0.6548)},
    **{42: (0.0192, 0.6942), 43: (0.0274, 0.7010), 44: (0.0350, 0.7012)},
    **{45: (0.0432, 0.6953), 46: (0.0350, 0.6906), 47: (0.0274, 0.6906)},
    **{52: (0.0075, 0.6402), 53: (0.0145, 0.6375), 54: (0.0218, 0.6292), 55: (0.0165, 0.6222), 56: (0.0090, 0.6185)},
    **{63: (0.0100, 0.6320), 64: (0.0195, 0.6292), 65: (0.0100, 0.6283)},
}
# Which point of the right half mirrors which of the left.
_MIRROR = {
    **{22: 21, 23: 20, 24: 19, 25: 18, 26: 17, 34: 32, 35: 31, 42: 39, 43: 38, 44: 37, 45: 36, 46: 41, 47: 40},
    **{52: 50, 53: 49, 54: 48, 55: 59, 56: 58, 63: 61, 64: 60, 65: 67},
}


def face_anchors(canonical: np.ndarray, faces: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Where the points are on the mesh.

    Args:
        canonical: (num_vertices, 3) the canonical body, looking along -y.
        faces: (num_faces, 3).

    Returns:
        WholeBody names, the vertices (num_points, 3) of the face that each point lies on, and its barycentric weights.
    """
    places = {number: (0.0, z) for number, z in _MIDDLE.items()} | _LEFT
    places |= {_MIRROR[number]: (-x, z) for number, (x, z) in _LEFT.items()}
    numbers = sorted(places)
    x, z = np.array([places[number] for number in numbers]).T
    origins = np.stack([x, np.full_like(x, -1.0), z], axis=1)
    hits = RayCaster([(canonical, faces)]).cast(origins, np.broadcast_to([0.0, 1.0, 0.0], origins.shape))
    return tuple(f"face-{number}" for number in numbers), faces[hits.face], hits.weights.astype(np.float32)

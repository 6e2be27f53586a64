"""Smooth random fields: value noise in space (for cloth and skin) and in the image (for backgrounds)."""

from __future__ import annotations

import numpy as np
from PIL import Image


class SpaceNoise:
    """Smooth noise in [0, 1] anywhere in space, repeating every 32 cells. One table per scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.table = rng.random(32**3, dtype=np.float32)

    def __call__(
        self, points: np.ndarray, frequency: float | tuple[float, float, float], octaves: int = 1
    ) -> np.ndarray:
        """Noise at points (num, 3); `frequency` is in cells per metre, one number or one per axis. Gives (num,)."""
        total = np.zeros(len(points), dtype=np.float32)
        scaled = points * np.asarray(frequency, dtype=np.float32)
        for octave in range(octaves):
            total += 0.5**octave * self._trilinear(scaled * np.float32(2**octave) + np.float32(7.3 * octave))
        return total / np.float32(2 - 0.5 ** (octaves - 1))

    def _trilinear(self, points: np.ndarray) -> np.ndarray:
        cell = np.floor(points)
        x, y, z = (points - cell).T
        x, y, z = (t * t * (3 - 2 * t) for t in (x, y, z))
        i, j, k = cell.astype(np.int32).T
        i0, j0, k0 = i & 31, (j & 31) << 5, (k & 31) << 10
        i1, j1, k1 = (i + 1) & 31, ((j + 1) & 31) << 5, ((k + 1) & 31) << 10
        table = self.table
        near = _mix(
            _mix(table[i0 + j0 + k0], table[i1 + j0 + k0], x), _mix(table[i0 + j1 + k0], table[i1 + j1 + k0], x), y
        )
        far = _mix(
            _mix(table[i0 + j0 + k1], table[i1 + j0 + k1], x), _mix(table[i0 + j1 + k1], table[i1 + j1 + k1], x), y
        )
        return _mix(near, far, z)


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    return a + (b - a) * t


def image_noise(rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 4) -> np.ndarray:
    """Noise in [0, 1], (height, width): octaves of small random pictures, enlarged; `cells` across the longer side."""
    total = np.zeros((height, width), dtype=np.float32)
    scale = cells / max(height, width)
    for octave in range(octaves):
        rows = min(height, max(2, round(height * scale * 2**octave) + 1))
        columns = min(width, max(2, round(width * scale * 2**octave) + 1))
        small = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
        total += 0.5**octave * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return (total / (2 - 0.5 ** (octaves - 1))).clip(0, 1)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = ((value - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)

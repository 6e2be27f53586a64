"""Sampling an image and its label maps at the same positions.

Positions follow the package's pixel convention: an integer is the centre of a pixel. A map from output to source
pixels is a float64 matrix (2, 3) that takes (x, y, 1); several steps of an augmentation become one matrix, so an image
is interpolated once.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

IDENTITY = np.eye(3)


def shift(x: float, y: float) -> np.ndarray:
    """(3, 3) matrix that adds (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def resize(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """(3, 3) matrix from pixels of an image of `new_size` to those of one of `size`, both (height, width).

    Whole pixels are areas here, as in `cv2.resize` and in the processor: x = (x' + 0.5) * width / new_width - 0.5.
    """
    y, x = size[0] / new_size[0], size[1] / new_size[1]
    return np.array([[x, 0.0, 0.5 * x - 0.5], [0.0, y, 0.5 * y - 0.5], [0.0, 0.0, 1.0]])


def mirror(width: int) -> np.ndarray:
    """(3, 3) matrix that mirrors columns; its own inverse."""
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def rotate(angle_deg: float, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) matrix that turns points by `angle_deg`, clockwise as seen, about the middle of an image of `size`."""
    angle = np.deg2rad(angle_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return shift(x, y) @ turn @ shift(-x, -y)


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) or (3, 3) matrix to points (..., 2)."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def positions(matrix: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel of an output of `size` lies in the source: float32 x and y, each (height, width)."""
    columns = torch.arange(size[1], dtype=torch.float64)
    rows = torch.arange(size[0], dtype=torch.float64)[:, None]
    x, y = ((float(row[0]) * columns + float(row[1]) * rows + float(row[2])).to(torch.float32) for row in matrix[:2])
    return x, y


def sample_bilinear(image: np.ndarray, x: torch.Tensor, y: torch.Tensor, border: str = "zeros") -> np.ndarray:
    """Grey levels (height, width, 3) uint8 at positions x, y, rounded to whole levels.

    Args:
        image: (source_height, source_width, 3) uint8.
        x: columns (height, width), in source pixels.
        y: rows, likewise.
        border: outside the image "zeros" is black (as `cv2.warpAffine`), "border" the nearest pixel (`cv2.resize`).
    """
    height, width = image.shape[:2]
    # Only the part that is looked at becomes floats: a person may fill a small corner of a large photograph.
    left, right = _reach(x, width)
    top, bottom = _reach(y, height)
    part = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right])).permute(2, 0, 1).float()
    grid = torch.stack([(2 * (x - left) + 1) / (right - left) - 1, (2 * (y - top) + 1) / (bottom - top) - 1], dim=-1)
    values = F.grid_sample(part[None], grid[None], mode="bilinear", padding_mode=border, align_corners=False)
    return values[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def sample_nearest(values: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Values of a map (source_height, source_width, ...) at the nearest pixels; beyond the border the last one."""
    height, width = values.shape[:2]
    columns = (x + 0.5).floor_().clamp_(0, width - 1).to(torch.int64)
    rows = (y + 0.5).floor_().clamp_(0, height - 1).to(torch.int64)
    flat = values.reshape(height * width, *values.shape[2:])
    return flat[(rows * width + columns).numpy()]


def _reach(coordinate: torch.Tensor, length: int) -> tuple[int, int]:
    """First pixel and one past the last pixel that positions along an axis read, at least one pixel of the image."""
    first = int(coordinate.min().clamp(-2, length + 1)) - 2
    last = int(coordinate.max().clamp(-2, length + 1)) + 3
    first = min(max(first, 0), length - 1)
    return first, min(max(last, first + 1), length)

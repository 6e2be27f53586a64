"""Colour, blur and holes: augmentations that leave every pixel in its place.

Each function takes an image (height, width, 3) uint8 RGB and a generator and returns a new one. Colours go through
look-up tables with one entry per grey level: as fast as a copy, and every step truncates to whole levels as the
original's does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

LEVELS = np.arange(256, dtype=np.float64)
BRIGHTNESS_LEVELS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
# Added to a hue of 0 to 179 (OpenCV's steps of two degrees), first included, last excluded.
HUE_STEPS = (-18, 18)
KERNELS_PX = (3, 5, 7)


def distort_dense(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours of the dense tasks (original mmseg `PhotoMetricDistortion`): each step with probability one half.

    Brightness; contrast, before or after what follows; saturation; hue.
    """
    picture = Image.fromarray(image)
    if rng.random() < 0.5:
        picture = _brightness(picture, rng)
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        picture = _contrast(picture, rng.uniform(*CONTRAST))
    if rng.random() < 0.5:
        picture = _hue_saturation(picture, rng.uniform(*SATURATION), 0)
    if rng.random() < 0.5:
        picture = _hue_saturation(picture, 1.0, int(rng.integers(*HUE_STEPS)))
    if not contrast_first and rng.random() < 0.5:
        picture = _contrast(picture, rng.uniform(*CONTRAST))
    return np.asarray(picture)


def distort_pose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours of pose (original mmpose `PhotometricDistortion`), with its two oddities.

    Brightness with probability one half; contrast twice, by the same factor, with probability one quarter and else
    never, because both places where it may happen ask the same coins; nothing, saturation and hue, hue, or saturation,
    one of four; the channels in a random order with probability one half. A hue below 0 wraps at 256 instead of 180,
    as in 8 bits.
    """
    picture = Image.fromarray(image)
    if rng.random() < 0.5:
        picture = _brightness(picture, rng)
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.25 else None
    if contrast is not None:
        picture = _contrast(picture, contrast)
    mode = int(rng.integers(4))
    saturation = rng.uniform(*SATURATION) if mode in (1, 3) else 1.0
    hue = int(rng.integers(*HUE_STEPS)) if mode in (2, 3) else 0
    if mode:
        picture = _hue_saturation(picture, saturation, hue, wrap=256)
    if contrast is not None:
        picture = _contrast(picture, contrast)
    values = np.asarray(picture)
    if rng.random() < 0.5:
        values = np.ascontiguousarray(values[..., rng.permutation(3)])
    return values


def blur(image: np.ndarray, rng: np.random.Generator, blur_prob: float, median_prob: float) -> np.ndarray:
    """A box blur, then a median filter, each with its probability and a kernel of 3, 5 or 7 pixels."""
    picture = Image.fromarray(image)
    if rng.random() < blur_prob:
        picture = picture.filter(ImageFilter.BoxBlur((int(rng.choice(KERNELS_PX)) - 1) / 2))
    if rng.random() < median_prob:
        picture = picture.filter(ImageFilter.MedianFilter(int(rng.choice(KERNELS_PX))))
    return np.asarray(picture)


def drop_hole(image: np.ndarray, rng: np.random.Generator, shares: tuple[float, float]) -> np.ndarray:
    """Black out one rectangle whose height and width are a share of the image's (albumentations `CoarseDropout`)."""
    height, width = image.shape[:2]
    hole_height, hole_width = (int(length * rng.uniform(*shares)) for length in (height, width))
    top, left = int(rng.integers(height - hole_height + 1)), int(rng.integers(width - hole_width + 1))
    image = image.copy()
    image[top : top + hole_height, left : left + hole_width] = 0
    return image


def _brightness(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _look_up(picture, LEVELS + rng.uniform(-BRIGHTNESS_LEVELS, BRIGHTNESS_LEVELS))


def _contrast(picture: Image.Image, factor: float) -> Image.Image:
    return _look_up(picture, LEVELS * factor)


def _hue_saturation(picture: Image.Image, saturation: float, hue_steps: int, wrap: int = 180) -> Image.Image:
    """PIL keeps a full turn in 255 steps, rounded down, where OpenCV has 180: the table goes there and back."""
    steps = np.rint((LEVELS + 0.5) * 180 / 255)
    hue = np.rint((steps + hue_steps) % wrap % 180 * 255 / 180) if hue_steps else LEVELS
    return _look_up(picture.convert("HSV"), hue, LEVELS * saturation, LEVELS).convert("RGB")


def _look_up(picture: Image.Image, *tables: np.ndarray) -> Image.Image:
    """Replace levels by those of one table for all channels, or of one table for each."""
    if len(tables) == 1:
        tables = tables * len(picture.getbands())
    return picture.point(np.concatenate([np.clip(table, 0, 255).astype(np.uint8) for table in tables]).tolist())

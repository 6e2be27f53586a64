"""The original's augmentations, in its order and with its parameters, as functions of (sample, generator).

All chance comes from the generator, which the dataset seeds from (seed, epoch, index): a sample is the same whatever
the number of workers, processes or restarts. Geometry is one matrix from the network's pixels to the image's, so
image, labels, depth, normals, masks and keypoints cannot disagree, and an image is interpolated once, where the
original resizes, crops, stretches and rotates in turn. Only a zoom that leaves less than the network sees is a step
of its own, since it loses detail that the stretch does not bring back.

A sample goes in at the size of its image and comes out at the size of the network:
    image (height, width, 3) uint8 RGB
    pose: box (4,) COCO, keypoints (num_keypoints, 3) as x, y, visibility -> keypoints in pixels of the crop
    segmentation: segmentation_map (height, width) uint8
    depth: depth (height, width) float32, mask (height, width) bool
    normal: normals (height, width, 3) float32, mask
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from PIL import Image

from sapiens_hf.heatmaps_sapiens import BOX_PADDING, crop_matrix

from .augment_color import blur, distort_dense, distort_pose, drop_hole
from .layouts import KeypointLayout, Pairs
from .warp import mirror, positions, resize, rotate, sample_bilinear, sample_nearest, shift, transform_points

Sample = dict[str, Any]
Size = tuple[int, int]
NORMAL_DISTRIBUTION = NormalDist()
TAIL = NORMAL_DISTRIBUTION.cdf(-1.0)
# Depth in the corners that a rotation uncovers (original `DepthRandomRotate`); the mask is False there.
ROTATED_DEPTH = 1e10


@dataclass(frozen=True)
class PoseAugmentation:
    """Original pose configs, `train_pipeline`; the same for all twelve."""

    flip_prob: float = 0.5
    half_body_prob: float = 0.3
    half_body_min_visible: int = 9
    upper_body_prob: float = 0.7
    min_upper_visible: int = 2
    min_lower_visible: int = 3
    half_body_padding: float = 1.5
    shift_prob: float = 0.3
    shift_share: float = 0.16
    scale_prob: float = 1.0
    scale_spread: float = 0.5
    rotate_prob: float = 0.6
    rotate_deg: float = 80.0
    color: bool = True
    blur_prob: float = 0.1
    median_prob: float = 0.1
    hole_prob: float = 1.0
    hole_shares: tuple[float, float] = (0.2, 0.4)


@dataclass(frozen=True)
class DenseAugmentation:
    """Original segmentation, depth and normal configs, `train_pipeline`."""

    background_prob: float = 0.0
    zoom: tuple[float, float] = (0.2, 2.0)
    max_class_share: float | None = None
    rotate_prob: float = 0.0
    rotate_deg: float = 0.0
    flip_prob: float = 0.5
    color: bool = True


NO_POSE_AUGMENTATION = PoseAugmentation(
    flip_prob=0, half_body_prob=0, shift_prob=0, scale_prob=0, rotate_prob=0, color=False, blur_prob=0,
    median_prob=0, hole_prob=0,
)  # fmt: skip
SEGMENTATION_AUGMENTATION = DenseAugmentation(
    background_prob=0.8, max_class_share=0.75, rotate_prob=0.5, rotate_deg=45.0
)
DEPTH_AUGMENTATION = DenseAugmentation(background_prob=0.5, rotate_prob=0.5, rotate_deg=60.0)
NORMAL_AUGMENTATION = DenseAugmentation(background_prob=0.5)


def truncated_normal(rng: np.random.Generator, count: int = 1) -> np.ndarray:
    """Draws (count,) of a standard normal distribution cut to [-1, 1], by its inverse distribution function."""
    return np.array([NORMAL_DISTRIBUTION.inv_cdf(TAIL + u * (1 - 2 * TAIL)) for u in rng.random(count)])


# ------------------------------------------------------------------------------------------------------------- pose
def augment_pose(
    sample: Sample, rng: np.random.Generator, *, size: Size, layout: KeypointLayout, options: PoseAugmentation
) -> Sample:
    """One person's crop: flip, half body, shift, zoom, rotation, crop, colours, blur, hole.

    Args:
        sample: image, box and keypoints, as above.
        rng: all chance.
        size: (height, width) of the crop.
        layout: flip pairs, and the points of the upper and lower body.
        options: probabilities and ranges.

    Returns:
        image (height, width, 3) and keypoints (num_keypoints, 3) float32 in pixels of the crop. Keypoints outside the
        crop keep their visibility, as in the original; the target decides.
    """
    image, keypoints = sample["image"], np.array(sample["keypoints"], dtype=np.float64)
    to_image = np.eye(3)
    box = np.array(sample["box"], dtype=np.float64)
    center, scale = box[:2] + box[2:] / 2, box[2:] * BOX_PADDING
    if rng.random() < options.flip_prob:
        to_image = mirror(image.shape[1])
        keypoints = flip_keypoints(keypoints, image.shape[1], layout.flip_pairs)
        center = transform_points(to_image, center)
    if np.sum(keypoints[:, 2] > 0) >= options.half_body_min_visible and rng.random() < options.half_body_prob:
        center, scale = half_body(keypoints, layout, rng, options) or (center, scale)
    if rng.random() < options.shift_prob:
        center = center + truncated_normal(rng, 2) * options.shift_share * scale
    if rng.random() < options.scale_prob:
        scale = scale * (1 + truncated_normal(rng)[0] * options.scale_spread)
    angle_deg = truncated_normal(rng)[0] * options.rotate_deg if rng.random() < options.rotate_prob else 0.0

    scale = _with_aspect(scale, size)
    forward = crop_matrix(torch.from_numpy(center)[None], torch.from_numpy(scale)[None], size, angle_deg)[0].double()
    to_crop = np.vstack([forward.numpy(), [0.0, 0.0, 1.0]])
    x, y = positions(to_image @ np.linalg.inv(to_crop), size)
    crop = sample_bilinear(image, x, y, border="zeros")
    keypoints[:, :2] = transform_points(to_crop, keypoints[:, :2])
    if options.color:
        crop = distort_pose(crop, rng)
    crop = blur(crop, rng, options.blur_prob, options.median_prob)
    if rng.random() < options.hole_prob:
        crop = drop_hole(crop, rng, options.hole_shares)
    return {"name": sample.get("name", ""), "image": crop, "keypoints": keypoints.astype(np.float32)}


def flip_keypoints(keypoints: np.ndarray, width: int, flip_pairs: Pairs) -> np.ndarray:
    """Keypoints (num_keypoints, 3) of the mirrored image of `width` pixels; its own inverse."""
    order = np.arange(len(keypoints))
    for first, second in flip_pairs:
        order[[first, second]] = second, first
    flipped = keypoints[order]
    flipped[:, 0] = width - 1 - flipped[:, 0]
    return flipped


def half_body(
    keypoints: np.ndarray, layout: KeypointLayout, rng: np.random.Generator, options: PoseAugmentation
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and scale of the visible upper or lower body, None where too few of its points are visible.

    The centre is the mean of the points, the scale their extent times 1.5 (original `RandomHalfBody`).
    """
    visible = keypoints[:, 2] > 0
    upper = [i for i in layout.upper_body_ids if visible[i]]
    lower = [i for i in layout.lower_body_ids if visible[i]]
    prefers_upper = rng.random() < options.upper_body_prob
    choices = [(upper, options.min_upper_visible), (lower, options.min_lower_visible)]
    for chosen, minimum in choices if prefers_upper else choices[::-1]:
        points = keypoints[chosen, :2]
        extent = np.ptp(points, axis=0) if len(chosen) >= minimum else np.zeros(2)
        if (extent > 0).any():
            return points.mean(axis=0), extent * options.half_body_padding
    return None


def _with_aspect(scale: np.ndarray, size: Size) -> np.ndarray:
    """Grow a region's (width, height) to the aspect of the network."""
    aspect = size[1] / size[0]
    width, height = scale
    return np.array([width, width / aspect]) if width > height * aspect else np.array([height * aspect, height])


# ------------------------------------------------------------------------------------------------------- dense tasks
def augment_dense(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size: Size,
    options: DenseAugmentation,
    swap_pairs: Pairs = (),
    rotate_fill_label: int = 0,
    ignore_index: int = 255,
    backgrounds: Sequence[Any] = (),
    compose: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Sample:
    """Background, zoom, crop, stretch, rotation, flip, colours: image and labels at the size of the network.

    Args:
        sample: image with segmentation_map, or depth and mask, or normals and mask.
        rng: all chance.
        size: (height, width) of the network.
        options: probabilities and ranges.
        swap_pairs: classes that a mirrored image exchanges.
        rotate_fill_label: class in the corners that a rotation uncovers.
        ignore_index: class that does not count.
        backgrounds: files (or images) to put behind the people; none leaves the background as it is.
        compose: (image, background, person mask) -> image; `paste` by default. The original used the colour transfer
            of the package libcom, and nothing at all where that was not installed.

    Returns:
        The same keys as the sample, at `size`.
    """
    image = sample["image"]
    if rng.random() < options.background_prob and len(backgrounds):
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        person = sample["segmentation_map"] > 0 if "segmentation_map" in sample else sample["mask"]
        if not isinstance(background, np.ndarray):
            with Image.open(background) as file:
                background = np.asarray(file.convert("RGB"))
        image = (compose or paste)(image, fit_background(background, image.shape[:2]), person)

    labels = sample.get("segmentation_map")
    zoomed, (top, left), crop_size = draw_crop(image.shape[:2], size, rng, options, labels, ignore_index)
    angle_deg = rng.uniform(-options.rotate_deg, options.rotate_deg)
    is_rotated = rng.random() < options.rotate_prob
    is_flipped = rng.random() < options.flip_prob
    # Output pixel -> before the flip -> before the rotation -> in the crop -> in the zoomed image -> in the image.
    to_view = (rotate(-angle_deg, size) if is_rotated else np.eye(3)) @ (mirror(size[1]) if is_flipped else np.eye(3))
    to_image = resize(image.shape[:2], zoomed) @ shift(left, top)
    result: Sample = {**sample, "image": image}
    if crop_size != size:
        result, to_image = _sample_maps(result, to_image, crop_size), np.eye(3)
    result = _sample_maps(result, to_image @ resize(crop_size, size) @ to_view, size)
    outside = _outside(to_view, size) if is_rotated else None

    if labels is not None and is_flipped:
        result["segmentation_map"] = swap_classes(result["segmentation_map"], swap_pairs)
    if "normals" in result and is_flipped:
        result["normals"][..., 0] *= -1
    if outside is not None:
        fills = {"image": 0, "segmentation_map": rotate_fill_label, "mask": False, "depth": ROTATED_DEPTH}
        for key, fill in fills.items():
            if key in result:
                result[key][outside] = fill
    if options.color:
        result["image"] = distort_dense(result["image"], rng)
    return result


def fit_to_network(sample: Sample, rng: np.random.Generator | None = None, *, size: Size) -> Sample:
    """Stretch a sample to the size of the network; in the place of an augmentation, but without chance."""
    return _sample_maps(sample, resize(sample["image"].shape[:2], size), size)


def _sample_maps(sample: Sample, to_source: np.ndarray, size: Size) -> Sample:
    """Image and maps of `size`, whose pixels the matrix takes to those of the sample."""
    x, y = positions(to_source, size)
    result: Sample = {"name": sample.get("name", ""), "image": sample_bilinear(sample["image"], x, y, border="border")}
    for key in ("segmentation_map", "mask", "depth", "normals"):
        if key in sample:
            result[key] = sample_nearest(sample[key], x, y)
    return result


def draw_crop(
    image_size: Size,
    size: Size,
    rng: np.random.Generator,
    options: DenseAugmentation,
    labels: np.ndarray | None = None,
    ignore_index: int = 255,
) -> tuple[Size, tuple[int, int], Size]:
    """Zoomed image size, (top, left) and size of the crop in it.

    The zoom keeps the aspect: it fits the image's longer side to the network's longer side times the factor, and the
    shorter to the shorter (original `RandomResize`, which asks for no orientation). A zoomed image smaller than the
    crop is taken whole; the stretch to the network's size is then not uniform, as in the original. With labels, a crop
    is drawn up to ten times until it holds two classes and none has `max_class_share` of the pixels that count.
    """
    factor = rng.uniform(*options.zoom)
    target = sorted(int(length * factor) for length in size)
    scale = min(target[1] / max(image_size), target[0] / min(image_size))
    zoomed = (max(1, int(image_size[0] * scale + 0.5)), max(1, int(image_size[1] * scale + 0.5)))
    crop_size = (min(zoomed[0], size[0]), min(zoomed[1], size[1]))

    def draw() -> tuple[int, int]:
        return tuple(int(rng.integers(full - part + 1)) for full, part in zip(zoomed, crop_size, strict=True))  # type: ignore[return-value]

    corner = draw()
    if labels is not None and options.max_class_share is not None:
        for _ in range(10):
            # The part of the label map that the crop shows has the same shares as the crop itself.
            rows, columns = (
                slice(int(first * full / z), max(int((first + part) * full / z), int(first * full / z) + 1))
                for first, part, full, z in zip(corner, crop_size, image_size, zoomed, strict=True)
            )
            counts = np.bincount(labels[rows, columns].ravel())
            counts = np.delete(counts, ignore_index) if len(counts) > ignore_index else counts
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < options.max_class_share:
                break
            corner = draw()
    return zoomed, corner, crop_size


def swap_classes(labels: np.ndarray, swap_pairs: Pairs) -> np.ndarray:
    """Labels with each pair of classes exchanged; its own inverse."""
    table = np.arange(256, dtype=labels.dtype)
    for first, second in swap_pairs:
        table[[first, second]] = second, first
    return table[labels]


def fit_background(background: np.ndarray, size: Size) -> np.ndarray:
    """A background at the height of the image, its middle cut out; stretched where it is too narrow."""
    height, width = size
    picture = Image.fromarray(background)
    new_width = int(picture.width * height / picture.height)
    if new_width < width:
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    left = (new_width - width) // 2
    return np.asarray(picture.resize((new_width, height), Image.Resampling.BILINEAR))[:, left : left + width]


def paste(image: np.ndarray, background: np.ndarray, person: np.ndarray) -> np.ndarray:
    """The person before another background, with a hard edge."""
    return np.where(person[..., None], image, background)


def _outside(to_view: np.ndarray, size: Size) -> np.ndarray:
    """Output pixels (height, width) that a rotation fills from beyond the picture."""
    x, y = positions(to_view, size)
    return ((x < -0.5) | (x > size[1] - 0.5) | (y < -0.5) | (y > size[0] - 0.5)).numpy()

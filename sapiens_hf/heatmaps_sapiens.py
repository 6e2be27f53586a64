# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and limitations under the License.
"""Person boxes <-> crops and keypoints <-> heatmaps.

The pixel convention, said here and nowhere else (UDP, "unbiased data processing", Huang et al. 2020, sections 3 and
4):

* An integer coordinate is the *centre* of a pixel; (0, 0) is the centre of the top left one. Points are (x, y), sizes
  are (height, width), boxes are COCO (x, y, width, height).
* A grid of `width` pixels spans `width - 1` units, from its first to its last pixel centre. Two grids that show the
  same region (a person crop of 1024 x 768 and its heatmaps of 256 x 192) therefore differ by the factor `(width - 1) /
  (other_width - 1)`.
* A region of the image is given by its centre (x, y) and its scale (width, height), in image pixels. Its left edge
  falls on the first pixel centre of the grid and its right edge on the last one:

      image x  --image_to_crop-->  crop x = (x - center_x + scale_w / 2) * (width - 1) / scale_w
      image x  <--crop_to_image--  crop x

  With `size` = the crop's size the points are crop pixels; with `size` = the heatmaps' size they are heatmap pixels.

Every crop, target and decoded keypoint of the package goes through the functions below. Each stands beside its
inverse.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .resampling_sapiens import LevelTransform, sample_grid, taps_at

logger = logging.get_logger(__name__)

# Context kept around a person box: Sapiens, pose configs of the original, `GetBBoxCenterScale(padding=1.25)`.
BOX_PADDING = 1.25
# Boxes that also make sense as corners are taken for corners if a COCO box would lie outside its image by more than
# this share of its area. People at the edge of a photo are often cut off by half, hardly ever by this much.
CORNERS_OUTSIDE = 0.8


def _as_float(values: Tensor) -> Tensor:
    """Keep float32 and float64; integers and half precision become float32 (pixel positions need over 11 bits)."""
    return values if values.dtype in (torch.float32, torch.float64) else values.to(torch.float32)


def boxes_to_crops(boxes: Tensor, size: tuple[int, int], padding: float = BOX_PADDING) -> tuple[Tensor, Tensor]:
    """Regions around person boxes that have the shape of the network input; boxes only ever grow.

    Args:
        boxes: COCO boxes (num_boxes, 4) as (x, y, width, height) in image pixels.
        size: (height, width) of the network input; only their ratio matters here.
        padding: factor on width and height, 1.25 in every config of the original.

    Returns:
        Centres (num_boxes, 2) as (x, y) and scales (num_boxes, 2) as (width, height), in image pixels and in the
        floating type of the boxes.

    Source: original mmpose `bbox_xyxy2cs` and `TopdownAffine._fix_aspect_ratio`.
    """
    boxes = _as_float(boxes)
    height, width = size
    aspect = width / height
    centers = boxes[:, :2] + boxes[:, 2:] * 0.5
    box_width, box_height = (boxes[:, 2:] * padding).unbind(-1)
    wide = box_width > box_height * aspect
    scales = torch.stack(
        [torch.where(wide, box_width, box_height * aspect), torch.where(wide, box_width / aspect, box_height)], dim=-1
    )
    return centers, scales


def crop_matrix(centers: Tensor, scales: Tensor, size: tuple[int, int], rotation_deg: float | Tensor = 0.0) -> Tensor:
    """The affine maps behind `image_to_crop`, for code that warps whole images.

    Args:
        centers: region centres (num_boxes, 2) as (x, y).
        scales: region scales (num_boxes, 2) as (width, height).
        size: (height, width) of the crop.
        rotation_deg: rotation in degrees, one number or (num_boxes,).

    Returns:
        float32 matrices (num_boxes, 2, 3) that take image (x, y, 1) to crop (x, y).

    Source: original mmpose `get_udp_warp_matrix`, which also computes in double and stores single precision.
    """
    device = centers.device
    centers, scales = _double(centers), _double(scales)
    angle = torch.deg2rad(torch.as_tensor(rotation_deg, dtype=torch.float64, device=centers.device))
    cos, sin = (t.expand(centers.shape[0]) for t in (torch.cos(angle), torch.sin(angle)))
    factor_x, factor_y = ((size[1] - 1) / scales[:, 0], (size[0] - 1) / scales[:, 1])
    x, y = centers.unbind(-1)
    half_width, half_height = (scales / 2).unbind(-1)
    top = torch.stack([cos, -sin, -x * cos + y * sin + half_width], dim=-1) * factor_x[:, None]
    bottom = torch.stack([sin, cos, -x * sin - y * cos + half_height], dim=-1) * factor_y[:, None]
    return torch.stack([top, bottom], dim=1).to(device, torch.float32)  # 2 x (N, 3) -> (N, 2, 3)


def image_to_crop(points: Tensor, centers: Tensor, scales: Tensor, size: tuple[int, int]) -> Tensor:
    """Image pixels -> pixels of a grid laid over each region. Inverse: `crop_to_image`.

    Args:
        points: (num_boxes, num_points, 2) as (x, y) in image pixels.
        centers: region centres (num_boxes, 2).
        scales: region scales (num_boxes, 2) as (width, height).
        size: (height, width) of the grid: the crop, or its heatmaps.

    Returns:
        (num_boxes, num_points, 2) in pixels of the grid; points outside the region fall outside the grid.
    """
    last = torch.tensor([size[1] - 1, size[0] - 1], dtype=scales.dtype, device=scales.device)
    return (points - (centers - scales * 0.5)[:, None]) * (last / scales)[:, None]


def crop_to_image(points: Tensor, centers: Tensor, scales: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of a grid laid over each region -> image pixels. Inverse: `image_to_crop`; arguments as there."""
    last = torch.tensor([size[1] - 1, size[0] - 1], dtype=scales.dtype, device=scales.device)
    return points * (scales / last)[:, None] + (centers - scales * 0.5)[:, None]


def _double(values: Tensor) -> Tensor:
    """float64, on the tensor's own device where that device has doubles (Apple's has not)."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def validate_boxes(
    boxes: object, num_images: int, image_sizes: Sequence[tuple[int, int]] | None = None
) -> list[Tensor]:
    """Read person boxes nested per image, or say which one is wrong.

    Args:
        boxes: per image, a list, array or tensor of COCO boxes (x, y, width, height); an image without people has
            `[]`.
        num_images: how many images there are.
        image_sizes: (height, width) of each image. With it, boxes wholly outside their image are errors, and so are
            corner boxes (x1, y1, x2, y2) where they can be told apart: all boxes of the image fit into it as corners,
            all of them reach beyond it as COCO boxes, and at least one of them has over `CORNERS_OUTSIDE` of its area
            outside; if none has, a warning tells. Other boxes partly outside are fine.

    Returns:
        One float64 tensor (num_boxes, 4) per image, on the CPU.

    Raises:
        ValueError: naming the box and its index.
    """
    shape = "boxes are nested per image: [[[x, y, width, height], ...], ...], with [] for an image without people"
    if boxes is None or isinstance(boxes, str | bytes | dict) or not hasattr(boxes, "__len__"):
        raise ValueError(f"boxes is {boxes!r}; {shape}.")
    rows = [_read_image_boxes(item, f"boxes[{index}]", shape) for index, item in enumerate(boxes)]  # type: ignore[arg-type, var-annotated]
    if len(rows) != num_images:
        raise ValueError(f"boxes has {len(rows)} entries for {num_images} images; {shape}.")
    for index, image_boxes in enumerate(rows):
        _check_boxes(image_boxes, f"boxes[{index}]", None if image_sizes is None else image_sizes[index])
    return rows


def validate_image_boxes(boxes: object, image_size: tuple[int, int], name: str) -> Tensor:
    """The boxes of one image, as `validate_boxes` reads and checks those of several.

    Args:
        boxes: COCO boxes (x, y, width, height), or `[]`.
        image_size: (height, width) of the image.
        name: what messages call them.

    Returns:
        A float64 tensor (num_boxes, 4) on the CPU.

    Raises:
        ValueError: naming the box.
    """
    read = _read_image_boxes(boxes, name, "the boxes of an image are [[x, y, width, height], ...], or []")
    _check_boxes(read, name, image_size)
    return read


def _read_image_boxes(item: object, name: str, shape: str) -> Tensor:
    try:
        if isinstance(item, Tensor):
            values = item.detach().to("cpu", torch.float64)
        else:
            plain = [box.tolist() if hasattr(box, "tolist") else box for box in item]  # type: ignore[attr-defined]
            values = torch.tensor(plain, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {item!r}, which cannot be read as boxes ({error}); {shape}.") from error
    if values.numel() == 0:
        return values.new_zeros(0, 4)
    if values.ndim != 2 or values.shape[1] != 4:
        hint = "one level of nesting is missing" if values.ndim < 2 and values.numel() == 4 else "4 numbers per box"
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected (num_boxes, 4): {hint}; {shape}.")
    return values


def _check_boxes(boxes: Tensor, name: str, image_size: tuple[int, int] | None) -> None:
    x, y, box_width, box_height = boxes.unbind(-1)

    def refuse(wrong: Tensor, what: str) -> None:
        if bool(wrong.any()):
            number = int(wrong.nonzero()[0, 0])
            raise ValueError(f"{name}[{number}] = {boxes[number].tolist()} {what}.")

    refuse(~boxes.isfinite().all(dim=-1), "has NaN or infinite values; expected (x, y, width, height) in pixels")
    refuse(
        (box_width <= 0) | (box_height <= 0),
        "has zero or negative size; expected (x, y, width, height) in pixels, width and height above 0",
    )
    if image_size is None:
        return
    height, width = int(image_size[0]), int(image_size[1])
    seen_width = (x + box_width).clamp(max=width) - x.clamp(min=0)
    seen_height = (y + box_height).clamp(max=height) - y.clamp(min=0)
    refuse((seen_width <= 0) | (seen_height <= 0), f"lies wholly outside its image of {width} x {height} pixels")
    fits_as_corners = (x >= 0) & (y >= 0) & (x < box_width) & (y < box_height) & (box_width <= width)
    fits_as_corners &= box_height <= height
    runs_out = (x + box_width > width) | (y + box_height > height)
    if bool((fits_as_corners & runs_out).all()):
        refuse(
            seen_width * seen_height < (1 - CORNERS_OUTSIDE) * box_width * box_height,
            f"read as (x, y, width, height) lies mostly outside its image of {width} x {height} pixels, but fits as "
            "corners (x1, y1, x2, y2); pass COCO boxes: (x1, y1, x2 - x1, y2 - y1)",
        )
        logger.warning_once(
            f"{name} = {boxes.tolist()}: read as (x, y, width, height) they all reach out of their image of "
            f"{width} x {height} pixels. If they are corners (x1, y1, x2, y2), pass (x1, y1, x2 - x1, y2 - y1)."
        )


def encode_heatmaps(
    keypoints: Tensor, visibility: Tensor, size: tuple[int, int], heatmap_size: tuple[int, int], sigma: float = 6.0
) -> tuple[Tensor, Tensor]:
    """Training targets: a Gaussian bump per keypoint. Inverse: `decode_heatmaps`.

    The bump sits at the sub-pixel position but is cut to a window of 3 sigma around the nearest heatmap pixel. It is
    not normalised: its peak is at most 1.

    Args:
        keypoints: (num_people, num_keypoints, 2) as (x, y) in pixels of the crop (see `image_to_crop`).
        visibility: (num_people, num_keypoints); below 0.5 the map stays empty.
        size: (height, width) of the crop.
        heatmap_size: (height, width) of the heatmaps.
        sigma: width of the bump in heatmap pixels.

    Returns:
        float32 heatmaps (num_people, num_keypoints, height, width) and weights (num_people, num_keypoints): the
        visibility, or zero where the whole window falls outside the map.

    Source: original mmpose `UDPHeatmap.encode` and `generate_udp_gaussian_heatmaps`. As there, a bump whose window
    ends exactly one pixel before the map has an empty map and keeps its weight.
    """
    height, width = heatmap_size
    center, first, end, on_map = _bump_windows(keypoints, size, heatmap_size, sigma)
    visible = visibility >= 0.5

    def bump(axis: int, length: int) -> Tensor:
        pixel = torch.arange(length, dtype=torch.float32, device=keypoints.device)
        inside = (pixel >= first[..., axis, None]) & (pixel < end[..., axis, None])
        values = torch.exp(-((pixel - center[..., axis, None]) ** 2) / (2 * sigma**2))
        return torch.where(inside & (visible & on_map)[..., None], values, 0.0)

    heatmaps = bump(1, height)[..., :, None] * bump(0, width)[..., None, :]  # (N, K, h, 1) * (N, K, 1, w)
    weights = visibility.to(torch.float32)
    return heatmaps, torch.where(visible & ~on_map, 0.0, weights)


def is_on_heatmap(
    keypoints: Tensor, size: tuple[int, int], heatmap_size: tuple[int, int], sigma: float = 6.0
) -> Tensor:
    """Which keypoints `encode_heatmaps` gives a weight, without making maps: bool (num_people, num_keypoints).

    Arguments are those of `encode_heatmaps`. A keypoint may lie outside the crop by a little more than 3 sigma.
    """
    return _bump_windows(keypoints, size, heatmap_size, sigma)[-1]


def _bump_windows(
    keypoints: Tensor, size: tuple[int, int], heatmap_size: tuple[int, int], sigma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres, first and one past the last pixels of bumps (num_people, num_keypoints, 2), and which reach the map."""
    height, width = heatmap_size
    # The original divides by a float32 factor; multiplying by its inverse in double would move bumps by some 1e-6
    # pixels.
    factor = torch.tensor(
        [(size[1] - 1) / (width - 1), (size[0] - 1) / (height - 1)], dtype=torch.float32, device=keypoints.device
    )
    center = keypoints.to(torch.float32) / factor
    nearest = (center + 0.5).trunc()  # toward zero, also for negative positions
    first, end = (nearest - 3 * sigma).trunc(), (nearest + 3 * sigma + 1).trunc()
    extent = torch.tensor([width, height], dtype=torch.float32, device=keypoints.device)
    return center, first, end, ((first < extent) & (end >= 0)).all(dim=-1)


# The original clips the blurred map to this range before the logarithm (mmpose `refine_keypoints_dark_udp`).
LOG_RANGE = (1e-3, 50.0)
# Short Gaussian kernels of `cv2.GaussianBlur(..., sigma=0)`, which for sizes up to 9 come from a table (OpenCV
# `getGaussianKernel`).
SHORT_KERNELS = {
    3: (0.25, 0.5),
    5: (0.0625, 0.25, 0.375),
    7: (0.03125, 0.109375, 0.21875, 0.28125),
    9: (0.015625, 0.05078125, 0.1171875, 0.19921875, 0.234375),
}


@torch.no_grad()
def decode_heatmaps(heatmaps: Tensor, kernel_size: int = 11) -> tuple[Tensor, Tensor]:
    """Sub-pixel keypoints by one Newton step on the logarithm of the blurred map (DARK). Inverse: `encode_heatmaps`.

    The peak is the first largest value of the raw map, which is also the score. Around it the map is blurred (zeros
    outside), rescaled so that blurred and raw maximum agree, clipped to `LOG_RANGE` and its logarithm differentiated.
    Rescaling drops out of the derivatives of a logarithm, so the blur is evaluated in the 3 x 3 window around the peak
    only; the whole map is blurred just where clipping can take part, since then the factor matters.

    A map without a positive value gives (-1, -1) and its own maximum as score; one with a NaN or an infinite maximum
    gives (-1, -1) and score 0; where the step is not finite the keypoint stays on its peak. Outputs are always finite.
    The step is not limited: on a nearly flat map a keypoint can land far outside, as in the original.

    Args:
        heatmaps: (num_people, num_keypoints, height, width), any floating type; half precision is computed in float32
            or better. Left unchanged.
        kernel_size: odd size of the blur, 3 or more; the standard deviation follows from it as in OpenCV (11 gives 2
            pixels).

    Returns:
        float32 keypoints (num_people, num_keypoints, 2) as (x, y) in heatmap pixels, and float32 scores
        (num_people, num_keypoints), on the device of the heatmaps.

    Raises:
        ValueError: for heatmaps of another rank or an unusable kernel size.

    Source: Zhang et al. 2020, "Distribution-aware coordinate representation", section 3.2; original mmpose
    `UDPHeatmap.decode`.
    """
    if heatmaps.ndim != 4:
        raise ValueError(
            f"heatmaps have shape {tuple(heatmaps.shape)}, expected (num_people, num_keypoints, height, width)."
        )
    people, num_keypoints, height, width = heatmaps.shape
    kernel = _blur_kernel(kernel_size, heatmaps.device)
    if heatmaps.numel() == 0:
        return heatmaps.new_zeros(people, num_keypoints, 2, dtype=torch.float32), heatmaps.new_zeros(
            people, num_keypoints, dtype=torch.float32
        )
    maps = heatmaps.detach().contiguous().view(-1, height, width)  # (N, K, h, w) -> (N*K, h, w)
    scores, x, y = _find_peaks(maps)
    window = _blurred_window(maps, x, y, kernel)
    scores, x, y = (t.to(window.device) for t in (scores, x, y))
    found = scores.isfinite() & (scores > 0)
    scores = torch.where(scores.isfinite(), scores, 0.0)

    lowest, highest = window.amin(dim=(1, 2)), window.amax(dim=(1, 2))
    # The blurred maximum lies between `highest` and the raw one, so after rescaling every value of a positive window
    # lies between its present value and the raw maximum. Nothing is clipped if those two are in range; everything is
    # if the raw maximum is below it.
    unclipped = (lowest >= LOG_RANGE[0]) & (scores <= LOG_RANGE[1])
    flat = (highest > 0) & (scores <= LOG_RANGE[0])
    rescale = torch.ones_like(scores, dtype=window.dtype)
    clipped = (found & ~(unclipped | flat)).nonzero()[:, 0]
    if len(clipped):
        ratio = (scores[clipped] / _blurred_maximum(maps, clipped.to(maps.device), kernel).to(scores)).to(rescale)
        # The ratio is negative where the whole blurred map is, and the original uses it so. Only 0 has none.
        rescale[clipped] = torch.where(ratio.isfinite(), ratio, 1.0)
    logs = (window * rescale[:, None, None]).clamp(*LOG_RANGE).log()

    peak = torch.stack([x, y], dim=-1)
    refined = (peak - _newton_step(logs)).to(torch.float32)
    refined = torch.where(refined.isfinite().all(dim=-1, keepdim=True), refined, peak.to(torch.float32))
    keypoints = torch.where(found[:, None], refined, -1.0).view(people, num_keypoints, 2)
    return keypoints.to(maps.device), scores.view(people, num_keypoints).to(maps.device)


def _blur_kernel(kernel_size: int, device: torch.device) -> Tensor:
    """The (kernel_size,) weights of OpenCV's Gaussian with automatic standard deviation, in double precision."""
    if not isinstance(kernel_size, int) or kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size!r}, expected an odd number of at least 3 (the models use 11).")
    half = SHORT_KERNELS.get(kernel_size)
    if half is not None:
        kernel = torch.tensor([*half, *half[-2::-1]], dtype=torch.float64)
    else:
        sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
        offset = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
        kernel = torch.exp(-(offset**2) / (2 * sigma**2))
        kernel = kernel / kernel.sum()
    return kernel if device.type == "mps" else kernel.to(device)


def _find_peaks(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest value, x and y of the first place that holds it in reading order, for maps (n, height, width).

    The largest value per row is one vectorised pass over the maps; what remains is one row of row maxima and one row
    of pixels per map.
    """
    row_maxima = maps.amax(dim=-1)
    y = row_maxima.argmax(dim=-1)
    rows = maps[torch.arange(len(maps), device=maps.device), y]  # (n, height, width) -> (n, width)
    x = rows.argmax(dim=-1)
    scores = row_maxima.gather(1, y[:, None])[:, 0]
    return scores.to(torch.float32), x, y


def _blurred_window(maps: Tensor, x: Tensor, y: Tensor, kernel: Tensor) -> Tensor:
    """Blurred values (n, 3, 3), in double, around the pixels (x, y); beyond the border the nearest one repeats."""
    height, width = maps.shape[1:]
    reach = len(kernel) // 2 + 1
    offset = torch.arange(-reach, reach + 1, device=maps.device)
    rows, columns = y[:, None] + offset, x[:, None] + offset
    on_map = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    start = torch.arange(len(maps), device=maps.device)[:, None, None] * (height * width)
    index = start + rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    patch = _double(torch.where(on_map, maps.view(-1)[index], 0.0))  # (n, 2 * reach + 1, 2 * reach + 1)

    # Three shifted copies of the kernel per axis, as one matrix product for the nine positions.
    shifted = torch.stack([torch.nn.functional.pad(kernel, (shift, 2 - shift)) for shift in range(3)])
    weights = torch.einsum("ai,bj->ijab", shifted, shifted).reshape(-1, 9)
    window = (patch.flatten(1) @ weights).view(-1, 3, 3)

    near = torch.arange(-1, 2, device=maps.device)
    repeat_y = ((y[:, None] + near).clamp(0, height - 1) - y[:, None] + 1).to(window.device)
    repeat_x = ((x[:, None] + near).clamp(0, width - 1) - x[:, None] + 1).to(window.device)
    window = window.gather(1, repeat_y[:, :, None].expand(-1, -1, 3))
    return window.gather(2, repeat_x[:, None, :].expand(-1, 3, -1))


def _blurred_maximum(maps: Tensor, index: Tensor, kernel: Tensor) -> Tensor:
    """Largest value of the blurred maps (n, height, width) with these indices, in float32, zeros outside."""
    # A few maps at a time, in the same memory, stay in the processor's cache; other devices prefer large operations.
    chunk = min(4 if maps.device.type == "cpu" else 512, len(index))
    height, width = maps.shape[1:]
    reach = len(kernel) // 2
    taps = kernel.tolist()
    tall = torch.zeros(chunk, height + 2 * reach, width, device=maps.device)
    wide = torch.zeros(chunk, height, width + 2 * reach, device=maps.device)
    blurred, pair = torch.empty(2, chunk, height, width, device=maps.device)

    def blur(padded: Tensor, axis: int, length: int) -> None:
        torch.mul(padded.narrow(axis, reach, length), taps[reach], out=blurred)
        for tap in range(reach):
            other = padded.narrow(axis, 2 * reach - tap, length)
            torch.add(padded.narrow(axis, tap, length), other, out=pair)
            blurred.add_(pair, alpha=taps[tap])

    maxima = []
    for part in index.split(chunk):
        tall[: len(part), reach : reach + height] = maps[part]
        blur(tall, 1, height)
        wide[:, :, reach : reach + width] = blurred
        blur(wide, 2, width)
        maxima.append(blurred[: len(part)].amax(dim=(1, 2)))
    return torch.cat(maxima)


def _newton_step(logs: Tensor) -> Tensor:
    """Inverse Hessian times gradient, as (n, 2) in (x, y), from log values (n, 3, 3) indexed [y, x]."""
    center, left, right = logs[:, 1, 1], logs[:, 1, 0], logs[:, 1, 2]
    up, down = logs[:, 0, 1], logs[:, 2, 1]
    gradient_x, gradient_y = (right - left) / 2, (down - up) / 2
    # The single precision epsilon is the original's, although it inverts in double.
    epsilon = torch.finfo(torch.float32).eps
    curve_x = right - 2 * center + left + epsilon
    curve_y = down - 2 * center + up + epsilon
    # Only one of the two diagonals enters the mixed derivative.
    mixed = (logs[:, 2, 2] - right - down + 2 * center - left - up + logs[:, 0, 0]) / 2
    determinant = curve_x * curve_y - mixed * mixed
    step_x = (curve_y * gradient_x - mixed * gradient_y) / determinant
    step_y = (curve_x * gradient_y - mixed * gradient_x) / determinant
    return torch.stack([step_x, step_y], dim=-1)


def flip_heatmaps(heatmaps: Tensor, flip_pairs: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Heatmaps of a mirrored image -> heatmaps of the image: mirror the columns and swap left and right keypoints.

    Args:
        heatmaps: (num_people, num_keypoints, height, width).
        flip_pairs: (num_pairs, 2) keypoint indices that trade places; the others stay.

    Returns:
        Tensor of the same shape. Nothing is shifted by a pixel (the original's `shift_heatmap=False`). It is its own
        inverse.

    Raises:
        ValueError: naming the pair that is not two keypoint indices or repeats one. Not while compiling, and values of
            a tensor on an accelerator are not looked at, which would wait for the device.

    Source: original mmpose `flip_heatmaps`.
    """
    if not torch.compiler.is_compiling():
        flip_pairs = _read_flip_pairs(flip_pairs, heatmaps.shape[1])
    pairs = torch.as_tensor(flip_pairs, dtype=torch.long, device=heatmaps.device).reshape(-1, 2)
    order = torch.arange(heatmaps.shape[1], device=heatmaps.device)
    order = order.scatter(0, pairs.flatten(), pairs.flip(-1).flatten())
    return heatmaps.flip(-1).index_select(1, order)


def _read_flip_pairs(flip_pairs: Any, num_keypoints: int) -> Tensor | list[list[int]]:
    expected = f"expected pairs of keypoint indices from 0 to {num_keypoints - 1}, each index at most once"
    if isinstance(flip_pairs, Tensor) and flip_pairs.device.type != "cpu":
        is_whole = torch.can_cast(flip_pairs.dtype, torch.long) and flip_pairs.dtype != torch.bool
        if flip_pairs.numel() and not (is_whole and flip_pairs.shape[1:] == (2,)):
            raise ValueError(f"flip_pairs is {flip_pairs.dtype} of shape {tuple(flip_pairs.shape)}, {expected}.")
        return flip_pairs
    pairs = as_plain(flip_pairs)
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise ValueError(f"flip_pairs is {pairs!r}, {expected}.")
    seen: set[int] = set()
    read = []
    for pair in map(as_plain, pairs):
        indices = [as_plain(index) for index in pair] if isinstance(pair, list | tuple) else []
        if len(indices) != 2 or not all(type(index) is int and 0 <= index < num_keypoints for index in indices):
            raise ValueError(f"flip_pairs holds {pair!r}, {expected}.")
        if indices[0] == indices[1] or not seen.isdisjoint(indices):
            raise ValueError(f"flip_pairs holds {pair!r} with an index that came before, {expected}.")
        seen.update(indices)
        read.append(indices)
    return read


def as_plain(value: Any) -> Any:
    """Lists and numbers of Python's own for arrays, tensors and their numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


@torch.no_grad()
def sample_crops(
    image: Tensor,
    centers: Tensor,
    scales: Tensor,
    size: tuple[int, int],
    transform: LevelTransform = LevelTransform(),  # noqa: B008  (an immutable tuple)
    out: Tensor | None = None,
) -> Tensor:
    """Cut regions out of an image: bilinear, black outside the image, whole grey levels.

    Args:
        image: grey levels 0..255, uint8 or float32 (num_channels, height, width). Crops are made on its device.
        centers: region centres (num_boxes, 2) as (x, y), from `boxes_to_crops`.
        scales: region scales (num_boxes, 2) as (width, height).
        size: (height, width) of the crops.
        transform: rounding (on by default) and normalisation of the sampled levels.
        out: float32 (num_boxes, num_channels, height, width) on the image's device to write to; made here if absent.

    Returns:
        float32 crops (num_boxes, num_channels, height, width).

    Source: original mmpose `TopdownAffine` (`cv2.warpAffine`, INTER_LINEAR, constant border 0), without rotation.
    """
    if out is None:
        out = torch.empty((len(centers), image.shape[0], *size), dtype=torch.float32, device=image.device)
    pixels = torch.arange(max(size), dtype=torch.float64)
    grid = torch.stack([pixels, pixels], dim=-1)[None]  # (1, longer side, 2): along x and along y at once
    points = crop_to_image(grid, _double(centers).cpu(), _double(scales).cpu(), size)
    rows = taps_at(points[:, : size[0], 1], image.shape[1])
    columns = taps_at(points[:, : size[1], 0], image.shape[2])
    # Regions differ in the rows and columns that they read; each is a few vectorised passes over its own part of the
    # image.
    for index, crop in enumerate(out):
        sample_grid(image, rows[index], columns[index], transform, crop)
    return out

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
"""Bilinear sampling of an image on an axis-aligned grid: the whole-image stretch and the person crop without rotation.

Both are separable: a row of weights along the columns, then one along the rows. Each output value needs two source
columns and two source rows, so only those are read and turned into floats, a block of rows at a time (a block fits the
CPU's cache).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Output values per block on a CPU: 1 MB of float32, which together with its inputs stays in a second level cache.
VALUES_PER_BLOCK = 1 << 18


@dataclass(frozen=True)
class Taps:
    """The two source pixels behind each sampled position along one axis.

    first, second: int64 (..., num_positions), always valid indices.
    first_weight, second_weight: float32 (..., num_positions); a pixel outside the image weighs 0.
    """

    first: Tensor
    second: Tensor
    first_weight: Tensor
    second_weight: Tensor

    def __getitem__(self, part: int | slice) -> "Taps":
        """Some of the positions, or those of one of several regions."""
        return Taps(self.first[part], self.second[part], self.first_weight[part], self.second_weight[part])


class LevelTransform(NamedTuple):
    """What happens to a sampled grey level: optional rounding, then (level - offset) / divisor.

    offset, divisor: float32 (num_channels,), or None to leave the levels as they are.
    """

    round_levels: bool = True
    offset: Tensor | None = None
    divisor: Tensor | None = None


def taps_at(positions: Tensor, length: int) -> Taps:
    """Taps of positions along an axis of `length` pixels; outside the image everything is black (0).

    Args:
        positions: float64 (..., num_positions) in pixels, integers being pixel centres.
        length: number of pixels along the axis.
    """
    first = positions.floor()
    fraction = positions - first
    second = first + 1

    def weight(index: Tensor, share: Tensor) -> Tensor:
        return torch.where((index >= 0) & (index < length), share, 0.0).to(torch.float32)

    return Taps(
        first.clamp(0, length - 1).long(),
        second.clamp(0, length - 1).long(),
        weight(first, 1 - fraction),
        weight(second, fraction),
    )


def stretch_taps(num_positions: int, length: int) -> Taps:
    """Taps that stretch an axis of `length` pixels to `num_positions` as `cv2.INTER_LINEAR` does: no antialias."""
    positions = (torch.arange(num_positions, dtype=torch.float64) + 0.5) * (length / num_positions) - 0.5
    return taps_at(positions.clamp(0, length - 1), length)


def nearest_index(num_positions: int, length: int) -> Tensor:
    """Source index floor(i * length / num_positions) of each position: `cv2.INTER_NEAREST`, torch's mode "nearest"."""
    return torch.arange(num_positions) * length // num_positions


@torch.no_grad()
def sample_grid(image: Tensor, rows: Taps, columns: Taps, transform: LevelTransform, out: Tensor) -> None:
    """Sample an image bilinearly where `rows` and `columns` cross.

    Args:
        image: uint8 or float32 grey levels (num_channels, height, width). A permuted view of a contiguous
            (height, width, num_channels) array is read as it lies.
        rows: taps of the output's rows, from top to bottom, on the CPU.
        columns: taps of the output's columns, on the CPU.
        transform: rounding and normalisation of the sampled levels.
        out: float32 (num_channels, num_rows, num_columns) on the image's device, overwritten.
    """
    num_channels, num_rows, num_columns = out.shape
    device = image.device
    planes, samples = _as_planes(image)
    groups = planes.shape[0]
    target = out.unflatten(0, (groups, samples))
    row_length = samples * num_columns
    left, right = (_interleaved(tap, samples).to(device) for tap in (columns.first, columns.second))
    left_weight = columns.first_weight.repeat(samples).to(device)
    right_weight = columns.second_weight.repeat(samples).to(device)
    row_pairs = torch.stack([rows.first, rows.second], dim=1)
    row_weights = torch.stack([rows.first_weight, rows.second_weight], dim=1).to(device)
    offset, divisor = (None if v is None else v.to(device).view(groups, samples, 1, 1) for v in transform[1:])

    block = max(1, VALUES_PER_BLOCK // (num_channels * num_columns)) if device.type == "cpu" else num_rows
    tops = rows.first[::block].tolist()
    bottoms = [*rows.second[block - 1 :: block].tolist(), int(rows.second[-1])][: len(tops)]
    # Every block reuses the same memory: fresh pages cost more than the arithmetic.
    most_values = (
        groups * row_length * max(min(end - top + 1, 2 * block) for top, end in zip(tops, bottoms, strict=True))
    )
    levels = torch.empty(2, most_values, dtype=image.dtype, device=device)
    floats = torch.empty(2, most_values, dtype=torch.float32, device=device)
    for index, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        part = slice(index * block, (index + 1) * block)
        pairs = row_pairs[part]
        num = len(pairs)
        if bottom - top < 2 * num:
            source, pairs = planes[:, top : bottom + 1], pairs - top
        else:  # strong downscaling: most rows are never looked at
            source = planes.index_select(1, pairs.flatten().to(device))
            pairs = torch.arange(2 * num).view(num, 2)
        shape = (groups, source.shape[1], row_length)
        size = shape[0] * shape[1] * shape[2]
        left_levels, right_levels = (values[:size].view(shape) for values in levels)
        blended, right_floats = (values[:size].view(shape) for values in floats)
        torch.gather(source, 2, left.expand(shape), out=left_levels)
        torch.gather(source, 2, right.expand(shape), out=right_levels)
        blended.copy_(left_levels).mul_(left_weight).addcmul_(right_floats.copy_(right_levels), right_weight)

        pairs = pairs.to(device) + shape[1] * torch.arange(groups, device=device)[:, None, None]
        values = F.embedding_bag(  # the weighted sum of two rows, in one pass
            pairs.flatten(0, 1),
            blended.flatten(0, 1),
            mode="sum",
            per_sample_weights=row_weights[part].repeat(groups, 1),
        )
        if transform.round_levels:
            values.round_()
            if image.is_floating_point():
                values.clamp_(0, 255)
        values = values.view(groups, num, samples, num_columns).transpose(1, 2)  # -> (groups, samples, rows, columns)
        if offset is None or divisor is None:
            target[:, :, part].copy_(values)
        else:
            torch.sub(values, offset, out=target[:, :, part]).div_(divisor)


def _as_planes(image: Tensor) -> tuple[Tensor, int]:
    """Planes (num_planes, height, width * samples) of an image, and the samples per pixel in each.

    One plane with 3 samples per pixel for a photo as files and cameras store it, three planes with one for a tensor.
    """
    pixels = image.permute(1, 2, 0)
    if pixels.is_contiguous():
        return pixels.flatten(1)[None], image.shape[0]  # (H, W, C) -> (1, H, W * C)
    return image.contiguous(), 1


def _interleaved(index: Tensor, samples: int) -> Tensor:
    """Pixel columns -> columns of a plane's rows, sample by sample: (num_columns,) -> (samples * num_columns,)."""
    return (index * samples + torch.arange(samples)[:, None]).flatten()

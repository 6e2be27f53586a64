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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Output values per block and CPU thread: 0.5 MB of float32. Smaller blocks pay for more calls, larger ones leave the
# cache.
VALUES_PER_BLOCK = 1 << 17


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
        image: uint8 or float32 grey levels (num_channels, height, width) in any memory layout; a permuted view of a
            (height, width, num_channels) array is read as it lies.
        rows: taps of the output's rows, from top to bottom, on the CPU.
        columns: taps of the output's columns, on the CPU.
        transform: rounding and normalisation of the sampled levels.
        out: float32 (num_channels, num_rows, num_columns) on the image's device, overwritten.
    """
    num_channels, num_rows, num_columns = out.shape
    device = image.device
    left_weight, right_weight = columns.first_weight.to(device), columns.second_weight.to(device)
    offset, divisor = (None if v is None else v.to(device).view(-1, 1, 1) for v in transform[1:])

    block = num_rows
    if device.type == "cpu":
        values_per_block = VALUES_PER_BLOCK * torch.get_num_threads()
        block = max(1, min(values_per_block // (num_channels * num_columns), num_rows))
    sources, num_source_rows, pairs, weights = _row_blocks(image, rows, block)
    shape = (num_channels, num_source_rows, num_columns)
    left, right = (index.to(device).expand(shape) for index in (columns.first, columns.second))
    # Every block reuses the same memory: fresh pages cost more than the arithmetic.
    left_levels, right_levels = torch.empty(2, *shape, dtype=image.dtype, device=device)
    blended, right_floats = torch.empty(2, *shape, dtype=torch.float32, device=device)
    table = blended.flatten(0, 1)
    bags = torch.arange(0, pairs.shape[1], 2, device=device)
    for source, pair, weight, target in zip(sources, pairs, weights, out.split(block, dim=1), strict=True):
        torch.gather(source, 2, left, out=left_levels)
        torch.gather(source, 2, right, out=right_levels)
        blended.copy_(left_levels).mul_(left_weight).addcmul_(right_floats.copy_(right_levels), right_weight)
        values = F.embedding_bag(pair, table, bags, mode="sum", per_sample_weights=weight)  # two rows in one pass
        if transform.round_levels:
            values.round_()
            if image.is_floating_point():
                values.clamp_(0, 255)
        values = values.view(num_channels, block, num_columns)[:, : target.shape[1]]  # the last block may be short
        if offset is None or divisor is None:
            target.copy_(values)
        else:
            torch.sub(values, offset, out=target).div_(divisor)


def _row_blocks(image: Tensor, rows: Taps, block: int) -> tuple[Iterator[Tensor], int, Tensor, Tensor]:
    """What every block of output rows reads: blocks of equal shape, the last one padded with its last row.

    Args:
        image: (num_channels, height, width).
        rows: taps of the output's rows.
        block: output rows per block.

    Returns:
        Per block the source rows (num_channels, num_source_rows, width), and their number; the pairs of source rows
        behind each output row, counted over all channels (num_blocks, num_channels * block * 2); their weights, shaped
        alike.
    """
    num_channels, height, _ = image.shape
    device = image.device
    num_blocks = -(-len(rows.first) // block)
    padded = torch.arange(num_blocks * block).clamp_(max=len(rows.first) - 1)
    pairs = torch.stack([rows.first, rows.second], dim=1)[padded].view(num_blocks, 2 * block)
    weights = torch.stack([rows.first_weight, rows.second_weight], dim=1)[padded].view(num_blocks, 1, 2 * block)
    tops = pairs[:, 0]
    num_source_rows = int((pairs[:, -1] - tops).max()) + 1
    if num_source_rows <= 2 * block:
        tops = tops.clamp(max=height - num_source_rows)
        sources = (image[:, top : top + num_source_rows] for top in tops.tolist())
        pairs = pairs - tops[:, None]
    else:  # strong downscaling: most rows are never looked at
        num_source_rows = 2 * block
        sources = (image[:, index] for index in pairs.to(device))
        pairs = torch.arange(num_source_rows).expand(num_blocks, -1)
    pairs = pairs[:, None] + num_source_rows * torch.arange(num_channels)[:, None]  # (blocks, channels, 2 * block)
    weights = weights.expand(-1, num_channels, -1)
    return sources, num_source_rows, pairs.flatten(1).to(device), weights.flatten(1).to(device)

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

Both are separable: a row of weights along the columns, then one along the rows. Each output value needs two source columns and two
source rows, so only those are read and turned into floats, a block of rows at a time (a block fits the CPU's cache).
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
    """Taps that stretch an axis of `length` pixels to `num_positions`, as `cv2.resize(..., INTER_LINEAR)`: no antialias."""
    positions = (torch.arange(num_positions, dtype=torch.float64) + 0.5) * (length / num_positions) - 0.5
    return taps_at(positions.clamp(0, length - 1), length)


def nearest_index(num_positions: int, length: int) -> Tensor:
    """Source index floor(i * length / num_positions) of each position: `cv2.INTER_NEAREST`, torch's mode "nearest"."""
    return torch.arange(num_positions) * length // num_positions


@torch.no_grad()
def sample_grid(image: Tensor, rows: Taps, columns: Taps, transform: LevelTransform, out: Tensor) -> None:
    """Sample an image bilinearly where `rows` and `columns` cross.

    Args:
        image: uint8 or float32 grey levels (num_channels, height, width). A permuted view of a contiguous (height, width,
            num_channels) array is read as it lies.
        rows: taps of the output's rows, on the CPU.
        columns: taps of the output's columns, on the CPU.
        transform: rounding and normalisation of the sampled levels.
        out: float32 (num_channels, num_rows, num_columns) on the image's device, overwritten.
    """
    num_channels, height, width = image.shape
    num_rows, num_columns = out.shape[1:]
    device = image.device
    # An image is `groups` planes of rows with `samples` values per pixel: (1, 3) as photos are stored, (3, 1) as tensors are.
    samples = num_channels if image.permute(1, 2, 0).is_contiguous() else 1
    groups = num_channels // samples
    planes = image.permute(1, 2, 0)[None] if groups == 1 else image.contiguous()[..., None]
    planes = planes.reshape(groups, height, width * samples)

    channel = torch.arange(samples)[:, None]
    sources = torch.cat([(tap * samples + channel).flatten() for tap in (columns.first, columns.second)]).to(device)
    left_weight, right_weight = (
        weight.repeat(samples).to(device) for weight in (columns.first_weight, columns.second_weight)
    )
    if transform.offset is not None and transform.divisor is not None:
        offset, divisor = (v.to(device).view(groups, samples, 1, 1) for v in (transform.offset, transform.divisor))

    rows_per_block = max(1, VALUES_PER_BLOCK // (num_channels * num_columns)) if device.type == "cpu" else num_rows
    for start in range(0, num_rows, rows_per_block):
        taps = rows[start : start + rows_per_block]
        num = len(taps.first)
        top, bottom = int(taps.first.min()), int(taps.second.max()) + 1
        if bottom - top <= 2 * num:
            block = planes[:, top:bottom]
            pairs = torch.stack([taps.first, taps.second], dim=1) - top
        else:  # strong downscaling: most rows are never looked at
            block = planes.index_select(1, torch.cat([taps.first, taps.second]).to(device))
            pairs = torch.stack([torch.arange(num), torch.arange(num) + num], dim=1)
        block_height = block.shape[1]
        gathered = block.gather(2, sources.expand(groups, block_height, -1)).to(torch.float32)
        left, right = gathered.unflatten(2, (2, -1)).unbind(2)
        blended = (
            (left * left_weight).addcmul_(right, right_weight).flatten(0, 1)
        )  # (groups * rows, samples * columns)
        pairs = pairs.to(device) + block_height * torch.arange(groups, device=device)[:, None, None]
        weights = torch.stack([taps.first_weight, taps.second_weight], dim=1).to(device)
        values = F.embedding_bag(
            pairs.flatten(0, 1), blended, mode="sum", per_sample_weights=weights.repeat(groups, 1)
        )  # the weighted sum of two rows in one pass
        if transform.round_levels:
            values.round_()
            if image.is_floating_point():
                values.clamp_(0, 255)
        values = values.view(groups, num, samples, num_columns).transpose(1, 2)  # -> (groups, samples, rows, columns)
        target = out[:, start : start + num].unflatten(0, (groups, samples))
        if transform.offset is None or transform.divisor is None:
            target.copy_(values)
        else:
            torch.sub(values, offset, out=target)
            target.div_(divisor)

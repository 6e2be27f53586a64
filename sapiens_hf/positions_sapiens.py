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
# See the License for the specific language governing permissions and
# limitations under the License.
"""Position tables: the fixed one of pretraining, and any table on another grid."""

import torch
import torch.nn.functional as F


def sincos_position_table(hidden_size: int, grid_size: tuple[int, int], num_prefix_tokens: int) -> torch.Tensor:
    """Fixed position table of pretraining, shape `(1, num_prefix_tokens + rows * columns, hidden_size)`, float32.

    The first half of the channels encodes the row, the second half the column (halves swapped against ViTMAE), each as
    [sine | cosine] of the integer coordinate at `hidden_size / 4` frequencies. Prefix rows are zero. Source: original
    pretrain/mmpretrain/models/utils/position_encoding.py, build_2d_sincos_position_embedding.
    """
    frequencies = 10000.0 ** (-torch.arange(hidden_size // 4, dtype=torch.float32) / (hidden_size // 4))
    rows, columns = (torch.arange(n, dtype=torch.float32)[:, None] * frequencies for n in grid_size)
    rows = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(-1, grid_size[1], -1)
    columns = torch.cat([columns.sin(), columns.cos()], dim=-1)[None].expand(grid_size[0], -1, -1)
    table = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (rows, columns, C) -> (N, C)
    return F.pad(table, (0, 0, num_prefix_tokens, 0))[None]


def resize_position_table(
    table: torch.Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int], num_prefix_tokens: int
) -> torch.Tensor:
    """Interpolate a position table to another grid: bicubic, no antialias, in float32; prefix rows stay as they are.

    Args:
        table: `(1, num_prefix_tokens + rows * columns, hidden_size)`.
        grid_size: its rows and columns.
        new_grid_size: rows and columns wanted.
        num_prefix_tokens: rows of the table that belong to no patch.
    """
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    patches = patches.transpose(1, 2).unflatten(2, grid_size).float()  # (1, N, C) -> (1, C, rows, columns)
    patches = F.interpolate(patches, size=new_grid_size, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


__all__ = ["resize_position_table", "sincos_position_table"]

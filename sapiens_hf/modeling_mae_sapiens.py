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
"""Sapiens as a masked autoencoder: the visible patches go through the encoder, a small decoder rebuilds the rest."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_sapiens import SapiensConfig
from .losses_sapiens import reconstruction_loss
from .modeling_sapiens import (
    SapiensEmbeddings,
    SapiensLayer,
    SapiensModel,
    SapiensPreTrainedModel,
    gather_tokens,
)
from .positions_sapiens import resize_position_table, sincos_position_table


@auto_docstring
@dataclass
class SapiensForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`):
        Mean squared error over the hidden patches.
    logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_size ** 2 * num_channels)`):
        Predicted pixels of every patch; `unpatchify` turns them into an image.
    mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`):
        1 where a patch was hidden, 0 where it was seen.
    ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
        Position of each patch in the shuffled order.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SapiensDecoder(nn.Module):
    """Rebuilds all patches from the visible ones: `(B, 1 + M, C)` -> `(B, N, patch_size ** 2 * num_channels)`."""

    def __init__(self, config: SapiensConfig):
        super().__init__()
        self.config = config
        width, num_patches = config.decoder_hidden_size, config.grid_size[0] * config.grid_size[1]
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, width), requires_grad=False)
        self.layers = nn.ModuleList(
            SapiensLayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.predictor = nn.Linear(width, config.patch_size**2 * config.num_channels)

    def forward(
        self, tokens: torch.Tensor, ids_restore: torch.Tensor, grid_size: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        tokens = self.embed(tokens)
        num_hidden = ids_restore.shape[1] - (tokens.shape[1] - 1)
        hidden_patches = self.mask_token.expand(tokens.shape[0], num_hidden, -1)
        patches = gather_tokens(torch.cat([tokens[:, 1:], hidden_patches], dim=1), ids_restore)
        positions = self.position_embeddings
        if grid_size != self.config.grid_size:
            positions = resize_position_table(positions, self.config.grid_size, grid_size, 1)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + positions
        for layer in self.layers:
            tokens = layer(tokens, **kwargs)
        return self.predictor(self.layernorm(tokens)[:, 1:])


@auto_docstring(custom_intro="Sapiens as a masked autoencoder (arXiv 2111.06377), for pretraining on images alone.")
class SapiensForPreTraining(SapiensPreTrainedModel):
    def __init__(self, config: SapiensConfig):
        super().__init__(config)
        if not config.use_cls_token:
            raise ValueError("SapiensForPreTraining needs a class token: set use_cls_token=True in the config.")
        self.model = SapiensModel(config)
        self.model.embeddings.position_embeddings.requires_grad = False
        self.decoder = SapiensDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As for every Sapiens model; the mask token is N(0, 0.02), the decoder's position table a fixed one too."""
        super()._init_weights(module)
        if isinstance(module, SapiensDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, self.position_table(module))

    def position_table(self, module: SapiensEmbeddings | SapiensDecoder) -> torch.Tensor:
        """The fixed table of the embeddings or the decoder at `config.image_size`."""
        return sincos_position_table(module.position_embeddings.shape[-1], self.config.grid_size, 1)

    def resize_position_embeddings(self, image_size: list[int] | int, use_cls_token: bool | None = None):
        """As for every Sapiens model, for both position tables; the class token cannot be dropped."""
        if use_cls_token is False:
            raise ValueError("SapiensForPreTraining needs its class token: use_cls_token must be True.")
        if self.config.image_size == image_size:
            return
        super().resize_position_embeddings(image_size)
        for module in (self.model.embeddings, self.decoder):  # fixed tables are made anew, not interpolated
            table = self.position_table(module).to(module.position_embeddings)
            module.position_embeddings = nn.Parameter(table, requires_grad=False)

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, num_channels, H, W)` -> `(B, N, patch_size ** 2 * num_channels)`, patches as (row, column, channel)."""
        patch = self.config.patch_size
        rows = pixel_values.permute(0, 2, 3, 1).contiguous()  # colours side by side first: larger pieces to copy then
        patches = rows.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # (B, h, p, w, q, C)
        return patches.transpose(2, 3).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Inverse of `patchify`: `(B, N, patch_size ** 2 * num_channels)` -> `(B, num_channels, *image_size)`."""
        patch = self.config.patch_size
        height, width = image_size or self.config.image_size
        if patches.shape[1] * patch**2 != height * width:
            raise ValueError(
                f"{patches.shape[1]} patches of {patch} x {patch} do not make a {height} x {width} image."
            )
        patches = patches.unflatten(1, (height // patch, -1)).unflatten(3, (patch, patch, -1))  # (B, h, w, p, q, C)
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4).flatten(2, 3)

    def random_masking(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which patches to keep `(B, M)`, the mask `(B, N)` (1 = hidden), and where each patch went `(B, N)`."""
        batch_size, _, height, width = pixel_values.shape
        num_patches = (height // self.config.patch_size) * (width // self.config.patch_size)
        if noise is None:
            noise = torch.rand(batch_size, num_patches, device=pixel_values.device)
        elif tuple(noise.shape) != (batch_size, num_patches):
            raise ValueError(f"noise must have shape {(batch_size, num_patches)}, got {tuple(noise.shape)}.")
        shuffled = noise.argsort(dim=1)
        ids_restore = shuffled.argsort(dim=1)
        num_kept = int(num_patches * (1 - self.config.mask_ratio))
        return shuffled[:, :num_kept], (ids_restore >= num_kept).float(), ids_restore

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        noise: torch.FloatTensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapiensForPreTrainingOutput:
        r"""
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
            The patches with the smallest values are seen, the rest hidden; random by default.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute the loss. `Trainer` looks for this name when it evaluates a model without labels.
        """
        kept_patches, mask, ids_restore = self.random_masking(pixel_values, noise)
        outputs = self.model(pixel_values, kept_patches=kept_patches, **kwargs)
        grid_size = tuple(s // self.config.patch_size for s in pixel_values.shape[-2:])
        logits = self.decoder(outputs.last_hidden_state, ids_restore, grid_size, **kwargs)
        loss = None
        if return_loss:
            loss = reconstruction_loss(logits, self.patchify(pixel_values), mask, self.config.norm_pix_loss)
        return SapiensForPreTrainingOutput(loss, logits, mask, ids_restore, outputs.hidden_states, outputs.attentions)


__all__ = ["SapiensForPreTraining"]

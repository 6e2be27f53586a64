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
"""Sapiens models (arXiv 2408.12569): one vision transformer, one dense head, five tasks.

    pixel_values (B, 3, H, W)
      | SapiensEmbeddings: patch convolution + position table                    (B, N, C), N = H/16 * W/16
      | SapiensEncoder: L x SapiensLayer, then the final layer norm              (B, N, C)
      | tokens_to_map                                                            (B, C, H/16, W/16)
      | SapiensDenseHead: transposed convolutions x2 each, 1x1 convolutions      (B, K, H/4 .. H, W/4 .. W)
    heatmaps | logits | predicted_depth | predicted_normal

Pretraining sends only the visible patches through the encoder and rebuilds the hidden ones with a small decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    DepthEstimatorOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_sapiens import SapiensConfig
from .heatmaps_sapiens import flip_heatmaps
from .loading_sapiens import SapiensLoadingMixin
from .losses_sapiens import depth_loss, heatmap_loss, normal_loss, segmentation_loss
from .positions_sapiens import resize_position_table, sincos_position_table

logger = logging.get_logger(__name__)


@auto_docstring
@dataclass
class SapiensPoseEstimationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Mean squared error of the heatmaps, or that of the hardest keypoints.
    heatmaps (`torch.FloatTensor` of shape `(batch_size, num_keypoints, height / 4, width / 4)`):
        One heatmap per keypoint; not probabilities.
    """

    loss: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring
@dataclass
class SapiensNormalEstimationOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
        Cosine plus L1 distance over the pixels of people.
    predicted_normal (`torch.FloatTensor` of shape `(batch_size, 3, height / 2, width / 2)`):
        Camera-space normals (x, y, z), not of unit length; post-processing normalises after the resize.
    """

    loss: torch.FloatTensor | None = None
    predicted_normal: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def normals(self) -> torch.FloatTensor | None:
        """`predicted_normal` under the name that transformers' other normal estimators use."""
        return self.predicted_normal


def gather_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens `(B, N, C)` at `indices` `(B, M)` -> `(B, M, C)`."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


class SapiensPatchEmbeddings(nn.Module):
    """Image to patch tokens, `(B, 3, H, W)` -> `(B, N, C)`, row by row, or `(B, M, C)`, those of the kept patches."""

    def __init__(self, config: SapiensConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            padding=config.patch_embeddings_padding,
        )

    def forward(self, pixel_values: torch.Tensor, kept_patches: torch.LongTensor | None = None) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch_size, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        (height, width), patch = pixel_values.shape[-2:], self.config.patch_size
        if height % patch or width % patch or not height or not width:
            near = " x ".join(
                " or ".join(str(n * patch) for n in sorted({max(1, s // patch), max(1, -(-s // patch))}))
                for s in (height, width)
            )
            raise ValueError(
                f"Height and width must be multiples of the patch size {patch}, got {height} x {width}. "
                f"Nearest sizes that work (height x width): {near}."
            )
        if kept_patches is not None and self.config.patch_embeddings_padding:  # patches then overlap their neighbours
            return gather_tokens(self(pixel_values), kept_patches)
        if kept_patches is not None:  # side by side, as an image of one row: the rest need not be projected
            patches = pixel_values.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, 3, h, p, w, q)
            images = torch.arange(pixel_values.shape[0], device=pixel_values.device)[:, None]
            rows, columns = kept_patches // (width // patch), kept_patches % (width // patch)
            kept = patches.permute(0, 2, 4, 1, 3, 5)[images, rows, columns]  # (B, M, 3, p, q)
            pixel_values = kept.permute(0, 2, 3, 1, 4).flatten(3)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


class SapiensEmbeddings(nn.Module):
    """Patch tokens plus position table, and the class token in front if the model has one."""

    def __init__(self, config: SapiensConfig):
        super().__init__()
        self.config = config
        self.num_prefix_tokens = int(config.use_cls_token)
        num_positions = self.num_prefix_tokens + config.grid_size[0] * config.grid_size[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.patch_embeddings = SapiensPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, kept_patches: torch.LongTensor | None = None) -> torch.Tensor:
        pixel_values = pixel_values.to(self.patch_embeddings.projection.weight.dtype)
        hidden_states = self.patch_embeddings(pixel_values, kept_patches)
        positions = self.position_embeddings
        grid_size = tuple(s // self.config.patch_size for s in pixel_values.shape[-2:])
        if grid_size != self.config.grid_size:
            positions = resize_position_table(positions, self.config.grid_size, grid_size, self.num_prefix_tokens)
        patch_positions = positions[:, self.num_prefix_tokens :]
        if kept_patches is not None:
            patch_positions = gather_tokens(patch_positions.expand(kept_patches.shape[0], -1, -1), kept_patches)
        hidden_states = hidden_states + patch_positions
        if self.cls_token is not None:
            cls_token = (self.cls_token + positions[:, :1]).expand(hidden_states.shape[0], -1, -1)
            hidden_states = torch.cat([cls_token, hidden_states], dim=1)
        return self.dropout(hidden_states)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention over `(batch_size, num_heads, num_tokens, head_dim)`; also returns the weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, heads, N, N)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights  # (B, N, heads, head_dim)


class SapiensAttention(nn.Module):
    """Multi-head self-attention without mask. Width and heads are arguments because the MAE decoder has its own."""

    def __init__(self, config: SapiensConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states)
            .unflatten(-1, (-1, self.head_dim))
            .transpose(1, 2)  # (B, N, C) -> (B, heads, N, d)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if hidden_states.shape[0] == 0:  # an image without people; the fused kernels refuse an empty batch
            attend = eager_attention_forward
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(output.flatten(2)), weights  # (B, N, heads, d) -> (B, N, C)


class SapiensMLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: SapiensConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.fc2.initial_bias_std = 1e-6

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class SapiensDropPath(nn.Module):
    """Stochastic depth: drops the whole residual branch of a sample while training (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return hidden_states * keep / (1 - self.rate)


class SapiensLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self,
        config: SapiensConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SapiensAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = SapiensMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SapiensDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        transformed = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(transformed))


class SapiensHeadLayer(nn.Module):
    """Convolution, instance norm over this image alone (no parameters, also in evaluation), SiLU."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(maps)
        if maps.shape[0] == 0:  # torch refuses to normalise an empty batch; an image without people makes one
            return maps
        maps = F.instance_norm(maps, eps=1e-5)
        return F.silu(maps, inplace=not torch.is_grad_enabled())  # a map of the last layers takes 600 MB


class SapiensDenseHead(nn.Module):
    """Feature map to one map per output channel, `(B, C, h, w)` -> `(B, num_channels, h * 2^n, w * 2^n)`.

    Source: original pose heatmap_head.py HeatmapHead and seg vit_head.py VitHead, which differ in the dropout and in
    the initial weights (`_init_weights`).
    """

    def __init__(self, config: SapiensConfig, num_channels: int, hidden_init_std: float | None = None):
        super().__init__()
        widths = [config.hidden_size, *config.deconv_out_channels, *config.conv_out_channels]
        num_deconvs = len(config.deconv_out_channels)
        self.deconv_layers = nn.ModuleList(
            SapiensHeadLayer(
                # Kernel 4, 3, 2 -> padding 1, 1, 0 and output padding 0, 1, 0: each doubles height and width exactly.
                nn.ConvTranspose2d(
                    c_in, c_out, kernel, stride=2, padding=(kernel - 1) // 2, output_padding=kernel % 2, bias=False
                )
            )
            for c_in, c_out, kernel in zip(widths, config.deconv_out_channels, config.deconv_kernel_sizes)
        )
        self.conv_layers = nn.ModuleList(
            SapiensHeadLayer(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2))
            for c_in, c_out, kernel in zip(widths[num_deconvs:], config.conv_out_channels, config.conv_kernel_sizes)
        )
        self.dropout = nn.Dropout2d(config.head_dropout2d_prob)
        self.final_conv = nn.Conv2d(widths[-1], num_channels, kernel_size=1)
        for layer in [*self.deconv_layers, *self.conv_layers]:
            layer.convolution.initial_std = hidden_init_std
        self.final_conv.initial_std = hidden_init_std or 0.01

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        for layer in self.deconv_layers:
            maps = layer(maps)
        for layer in self.conv_layers:
            maps = layer(maps)
        return self.final_conv(self.dropout(maps))


@auto_docstring
class SapiensPreTrainedModel(SapiensLoadingMixin, PreTrainedModel):
    config_class = SapiensConfig
    config: SapiensConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # every loss is a mean: Trainer must divide it by the accumulation steps
    _no_split_modules = ["SapiensEmbeddings", "SapiensLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SapiensLayer, "attentions": SapiensAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initial weights of the original; `initializer_range` scales them, 0.02 reproduces them.

        | module | weight | bias |
        |---|---|---|
        | linear | Xavier uniform | 0; second of an MLP N(0, 1e-6) |
        | patch convolution | Xavier uniform over the flattened kernel | 0 |
        | layer norm | 1 | 0 |
        | class token, mask token | N(0, 0.02) | |
        | position table | truncated N(0, 0.02); with a class token (pretraining) fixed sine-cosine | |
        | head, hidden layers | pose N(0, 0.001), else PyTorch's default | 0 (an instance norm follows) |
        | head, last convolution | pose N(0, 0.001), else N(0, 0.01) | 0 |
        """
        std = self.config.initializer_range
        gain = std / 0.02
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=gain)
            if module.bias is not None:
                init.normal_(module.bias, std=getattr(module, "initial_bias_std", 0.0) * gain)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # transformers asks each module for its own parameters only, so the rule sits on the convolution
            if (conv_std := getattr(module, "initial_std", None)) is not None:
                init.normal_(module.weight, std=conv_std * gain)
            else:
                bound = self._uniform_bound(module) * gain
                init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SapiensEmbeddings):
            if module.cls_token is not None:
                init.normal_(module.cls_token, std=std)
                size = self.config.grid_size, module.num_prefix_tokens
                init.copy_(module.position_embeddings, sincos_position_table(self.config.hidden_size, *size))
            else:
                init.trunc_normal_(module.position_embeddings, std=std)

    @staticmethod
    def _uniform_bound(convolution: nn.Conv2d | nn.ConvTranspose2d) -> float:
        fan_in = convolution.weight[0].numel()
        if convolution.kernel_size == convolution.stride:  # the patch convolution: Xavier over the flattened kernel
            return (6.0 / (fan_in + convolution.out_channels)) ** 0.5
        return fan_in**-0.5

    def resize_position_embeddings(self, image_size: list[int] | int, use_cls_token: bool | None = None):
        """Make the position table fit another native image size; drop the class token if `use_cls_token` is False.

        Args:
            image_size: new `[height, width]` in pixels, multiples of the patch size.
            use_cls_token: False to turn a pretrained encoder into a task backbone; None keeps what there is.

        Raises:
            ValueError: if the size does not divide, or a class token is asked for that the model does not have.
        """
        config = self.config
        embeddings: SapiensEmbeddings = self.base_model.embeddings
        image_size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        use_cls_token = config.use_cls_token if use_cls_token is None else use_cls_token
        if (image_size, use_cls_token) == (config.image_size, config.use_cls_token):
            return
        if any(s % config.patch_size or s <= 0 for s in image_size):
            raise ValueError(f"image_size must be multiples of the patch size {config.patch_size}, got {image_size}.")
        if use_cls_token and not config.use_cls_token:
            raise ValueError("This checkpoint has no class token: only pretraining ones do. Pass use_cls_token=False.")
        grid_size = (image_size[0] // config.patch_size, image_size[1] // config.patch_size)
        table, prefix = embeddings.position_embeddings, embeddings.num_prefix_tokens
        if table.is_meta and hasattr(embeddings, "_hf_hook"):
            raise ValueError("An offloaded position table cannot be resized: keep `embeddings` on a device.")
        new_table = resize_position_table(table.detach(), config.grid_size, grid_size, prefix)
        new_table = new_table[:, prefix - int(use_cls_token) :].contiguous()
        embeddings.position_embeddings = nn.Parameter(new_table, requires_grad=table.requires_grad)
        if not use_cls_token:
            embeddings.cls_token, embeddings.num_prefix_tokens = None, 0
        config.image_size, config.use_cls_token = image_size, use_cls_token


class SapiensEncoder(SapiensPreTrainedModel):
    """The stack of transformer blocks, without the final norm."""

    def __init__(self, config: SapiensConfig):
        super().__init__(config)
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            SapiensLayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path_rate=config.drop_path_rate * i / last,
            )
            for i in range(config.num_hidden_layers)
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


def tokens_to_map(tokens: torch.Tensor, pixel_values: torch.Tensor, config: SapiensConfig) -> torch.Tensor:
    """Patch tokens `(B, [1 +] N, C)` of an image `(B, 3, H, W)` as a feature map `(B, C, H / patch, W / patch)`."""
    height, width = pixel_values.shape[-2:]
    patches = tokens[:, int(config.use_cls_token) :]
    return patches.transpose(1, 2).unflatten(2, (height // config.patch_size, width // config.patch_size))


@auto_docstring(custom_intro="The Sapiens vision transformer, giving one feature vector per 16 x 16 patch.")
class SapiensModel(SapiensPreTrainedModel):
    def __init__(self, config: SapiensConfig):
        super().__init__(config)
        self.embeddings = SapiensEmbeddings(config)
        self.encoder = SapiensEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        kept_patches: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        kept_patches (`torch.LongTensor` of shape `(batch_size, num_kept_patches)`, *optional*):
            Indices of the patches that enter the encoder; all by default. Pretraining passes the visible ones.
        """
        encoded = self.encoder(self.embeddings(pixel_values, kept_patches), **kwargs)
        tokens = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 0] if self.config.use_cls_token else tokens.mean(dim=1),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


@auto_docstring(custom_intro="The Sapiens vision transformer as a backbone: feature maps at `config.out_indices`.")
class SapiensBackbone(BackboneMixin, SapiensModel):
    def __init__(self, config: SapiensConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Returns feature maps of shape `(batch_size, hidden_size, height / 16, width / 16)`. Like the original's, those
        of inner stages are not normalised; the last stage has the final norm.
        """
        kwargs["output_hidden_states"] = True  # every stage is needed to pick from
        encoded = self.encoder(self.embeddings(pixel_values), **kwargs)
        stages = [*encoded.hidden_states[:-1], self.layernorm(encoded.hidden_states[-1])]
        feature_maps = tuple(
            tokens_to_map(tokens, pixel_values, self.config)
            for name, tokens in zip(self.stage_names, stages)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class SapiensDensePredictor(SapiensPreTrainedModel):
    """Backbone and head, shared by the four dense tasks; each adds its output, activation and loss."""

    hidden_init_std: float | None = None

    def __init__(self, config: SapiensConfig):
        super().__init__(config)
        self.model = SapiensModel(config)
        self.head = SapiensDenseHead(config, self.num_output_channels(config), self.hidden_init_std)
        self.post_init()

    @staticmethod
    def num_output_channels(config: SapiensConfig) -> int:
        return len(config.id2label)

    def predict_maps(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """Raw maps of the head, `(B, num_output_channels, h, w)`, and the backbone's outputs."""
        outputs = self.model(pixel_values, **kwargs)
        return self.head(tokens_to_map(outputs.last_hidden_state, pixel_values, self.config)), outputs


@auto_docstring(custom_intro="Sapiens with a heatmap head: 2D pose of the person in each crop.")
class SapiensForPoseEstimation(SapiensDensePredictor):
    _task = "pose"
    hidden_init_std = 0.001

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.FloatTensor | None = None,
        keypoint_weights: torch.FloatTensor | None = None,
        flip_pairs: torch.LongTensor | list | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapiensPoseEstimationOutput:
        r"""
        labels (`torch.FloatTensor` of shape `(batch_size, num_keypoints, height / 4, width / 4)`, *optional*):
            Target heatmaps, as the image processor makes them.
        keypoint_weights (`torch.FloatTensor` of shape `(batch_size, num_keypoints)`, *optional*):
            Weight of each keypoint in the loss, 0 where it is not annotated; 1 everywhere by default.
        flip_pairs (`torch.LongTensor` of shape `(num_pairs, 2)`, *optional*):
            For a flip test: `pixel_values` are mirrored, so mirror the heatmaps back and swap these pairs.

        Example:
            >>> import torch
            >>> from sapiens_hf import SapiensConfig, SapiensForPoseEstimation
            >>> config = SapiensConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            ...     intermediate_size=64, image_size=[64, 48], num_labels=17, deconv_out_channels=[16] * 2)
            >>> SapiensForPoseEstimation(config)(torch.zeros(1, 3, 64, 48)).heatmaps.shape
            torch.Size([1, 17, 16, 12])
        """
        heatmaps, outputs = self.predict_maps(pixel_values, **kwargs)
        if flip_pairs is not None:
            heatmaps = flip_heatmaps(heatmaps, flip_pairs)
        loss = None
        if labels is not None:
            loss = heatmap_loss(heatmaps, labels, keypoint_weights, self.config.keypoint_loss_top_k)
        return SapiensPoseEstimationOutput(loss, heatmaps, outputs.hidden_states, outputs.attentions)


@auto_docstring(custom_intro="Sapiens with a segmentation head: one class per pixel, for example body parts.")
class SapiensForSemanticSegmentation(SapiensDensePredictor):
    _task = "segmentation"

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel; `config.semantic_loss_ignore_index` where it does not count.

        Example:
            >>> import torch
            >>> from sapiens_hf import SapiensConfig, SapiensForSemanticSegmentation
            >>> config = SapiensConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            ...     intermediate_size=64, image_size=[64, 48], num_labels=5, deconv_out_channels=[16] * 3)
            >>> SapiensForSemanticSegmentation(config)(torch.zeros(1, 3, 64, 48)).logits.shape
            torch.Size([1, 5, 32, 24])
        """
        logits, outputs = self.predict_maps(pixel_values, **kwargs)
        loss = None
        if labels is not None:
            loss = segmentation_loss(
                logits, labels, self.config.semantic_loss_class_weights, self.config.semantic_loss_ignore_index
            )
        return SemanticSegmenterOutput(loss, logits, outputs.hidden_states, outputs.attentions)


@auto_docstring(
    custom_intro="Sapiens with a depth head: relative depth, 0 at the nearest and 1 at the farthest point."
)
class SapiensForDepthEstimation(SapiensDensePredictor):
    _task = "depth"

    @staticmethod
    def num_output_channels(config: SapiensConfig) -> int:
        return 1

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DepthEstimatorOutput:
        r"""
        labels (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            Depth scaled to [0, 1] over the person, larger is farther; -1 where there is no person.
        """
        maps, outputs = self.predict_maps(pixel_values, **kwargs)
        predicted_depth = maps.squeeze(1)  # (B, 1, H, W) -> (B, H, W)
        loss = None if labels is None else depth_loss(predicted_depth, labels)
        return DepthEstimatorOutput(loss, predicted_depth, outputs.hidden_states, outputs.attentions)


@auto_docstring(custom_intro="Sapiens with a normal head: the camera-space surface normal of each pixel.")
class SapiensForNormalEstimation(SapiensDensePredictor):
    _task = "normal"

    @staticmethod
    def num_output_channels(config: SapiensConfig) -> int:
        return 3

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapiensNormalEstimationOutput:
        r"""
        labels (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
            Unit normals (x, y, z) in camera space; -1000 where there is no person.
        """
        predicted_normal, outputs = self.predict_maps(pixel_values, **kwargs)
        loss = None if labels is None else normal_loss(predicted_normal, labels)
        return SapiensNormalEstimationOutput(loss, predicted_normal, outputs.hidden_states, outputs.attentions)


__all__ = [
    "SapiensBackbone",
    "SapiensForDepthEstimation",
    "SapiensForNormalEstimation",
    "SapiensForPoseEstimation",
    "SapiensForSemanticSegmentation",
    "SapiensModel",
    "SapiensPreTrainedModel",
]

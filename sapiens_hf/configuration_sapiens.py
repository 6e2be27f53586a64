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
"""Configuration of the Sapiens models (arXiv 2408.12569)."""

import difflib
import operator
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Paper, table 2: hidden_size, num_hidden_layers, num_attention_heads, intermediate_size.
SIZES: dict[str, dict[str, int]] = {
    "0.3b": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "0.6b": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120),
    "1b": dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, intermediate_size=6144),
    "2b": dict(hidden_size=1920, num_hidden_layers=48, num_attention_heads=32, intermediate_size=7680),
}

# What a task needs beside the size: head widths, labels, and the padding of the patch convolution, which the original
# sets per task (2 px for pose and normals). Pretraining is square and has a class token.
TASKS: dict[str, dict[str, Any]] = {
    "pretraining": dict(image_size=[1024, 1024], use_cls_token=True),
    "encoder": dict(image_size=[1024, 1024], use_cls_token=True),
    "pose": dict(
        deconv_out_channels=[768] * 2,
        conv_out_channels=[768] * 2,
        patch_embeddings_padding=2,
        head_dropout2d_prob=0.0,
        num_labels=308,
    ),
    "segmentation": dict(deconv_out_channels=[768] * 3, conv_out_channels=[768] * 3, num_labels=28),
    "depth": dict(deconv_out_channels=[384] * 4, conv_out_channels=[384] * 2),
    "normal": dict(deconv_out_channels=[768] * 3, conv_out_channels=[768] * 3, patch_embeddings_padding=2),
}


def patch_padding(task: str, num_labels: int | None = None) -> int:
    """Padding in pixels of the patch convolution in the original's configurations of a task.

    Args:
        task: One of `TASKS`.
        num_labels: Of segmentation: the 20 classes of LIP and CIHP have 2, unlike Goliath's and FaceSynthetics'.
    """
    if task == "segmentation" and num_labels == 20:
        return 2
    return TASKS[task].get("patch_embeddings_padding", 0)


def _lookup(kind: str, name: str, table: dict[str, dict]) -> dict:
    if name not in table:
        near = difflib.get_close_matches(str(name).lower(), table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown Sapiens {kind} {name!r}: expected one of {', '.join(map(repr, table))}.{hint}")
    return table[name]


@strict
class SapiensConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of [`SapiensModel`], [`SapiensBackbone`] and the `SapiensFor*` models.

    The defaults are those of Sapiens-0.3B with the head of body-part segmentation. Field names follow the open
    transformers pull request #33167, so that its ONNX and transformers.js configurations fit.

    Args:
        hidden_size (`int`, defaults to 1024): Width of the transformer.
        num_hidden_layers (`int`, defaults to 24): Number of transformer blocks.
        num_attention_heads (`int`, defaults to 16): Number of attention heads.
        intermediate_size (`int`, defaults to 4096): Width of the hidden layer of each MLP.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLPs (exact GELU).
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after embeddings, attention and MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout of the attention weights.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last block; rises linearly from 0.
        initializer_range (`float`, defaults to 0.02): Scale of the initial weights; 0.02 gives the original's.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norms.
        image_size (`int` or `[height, width]`, defaults to `[1024, 768]`): Pixels the position table is made for.
        patch_size (`int`, defaults to 16): Edge of a patch in pixels.
        num_channels (`int`, defaults to 3): Channels of the input image.
        qkv_bias (`bool`, defaults to `True`): Whether query, key and value projections have a bias.
        patch_embeddings_padding (`int`, defaults to 0):
            Zero padding of the patch convolution in pixels. The original uses 2 for pose and surface normals and 0
            elsewhere; weights have the same shape either way, so a wrong value changes the outputs silently.
        use_cls_token (`bool`, defaults to `False`): Whether a class token precedes the patches (pretraining only).
        deconv_out_channels (`list[int]`, defaults to `[768, 768, 768]`): Widths of the head's transposed convolutions.
        deconv_kernel_sizes (`list[int]`, *optional*): Their kernels, 2, 3 or 4; 4 for each by default.
        conv_out_channels (`list[int]`, defaults to `[768, 768, 768]`): Widths of the head's convolutions.
        conv_kernel_sizes (`list[int]`, *optional*): Their (odd) kernels; 1 for each by default.
        head_dropout2d_prob (`float`, defaults to 0.1):
            Channel dropout before the last convolution. Pose has none (`from_size(task="pose")` sets 0).
        semantic_loss_ignore_index (`int`, defaults to 255): Label that the segmentation loss leaves out.
        semantic_loss_class_weights (`list[float]`, *optional*): Weight of each class in the segmentation loss.
        flip_pairs (`list[list[int]]`, *optional*): Left/right pairs of keypoint indices that a mirror image swaps.
        keypoint_loss_top_k (`int`, *optional*):
            If set, the pose loss is the mean of each sample's `k` hardest keypoints instead of the mean over all.
        decoder_hidden_size (`int`, defaults to 512): Width of the masked-autoencoder decoder.
        decoder_num_hidden_layers (`int`, defaults to 8): Its number of blocks.
        decoder_num_attention_heads (`int`, defaults to 16): Its number of attention heads.
        decoder_intermediate_size (`int`, defaults to 2048): Width of its MLPs.
        mask_ratio (`float`, defaults to 0.75): Share of the patches that pretraining hides.
        norm_pix_loss (`bool`, defaults to `True`): Whether pretraining targets are normalised per patch.

    Raises:
        ValueError: if a size does not divide, lists differ in length, or label-bound lists do not fit `num_labels`.

    Example:
        >>> from sapiens_hf import SapiensConfig
        >>> SapiensConfig.from_size("0.6b", task="pose", num_labels=17).deconv_out_channels
        [768, 768]
    """

    model_type = "sapiens"
    # The encoder's blocks are the units that transformers' own FSDP2 integration shards.
    base_model_fsdp_plan = {"encoder.layers.*": "free_full_weight", "layernorm": "keep_full_weight"}

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, int] = (1024, 768)
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    patch_embeddings_padding: int = 0
    use_cls_token: bool = False
    deconv_out_channels: list[int] | tuple[int, ...] = (768, 768, 768)
    deconv_kernel_sizes: list[int] | tuple[int, ...] | None = None
    conv_out_channels: list[int] | tuple[int, ...] = (768, 768, 768)
    conv_kernel_sizes: list[int] | tuple[int, ...] | None = None
    head_dropout2d_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float | int] | None = None
    flip_pairs: list | tuple | None = None
    keypoint_loss_top_k: int | None = None
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
    norm_pix_loss: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        size = self.image_size
        self.image_size = [size, size] if isinstance(size, int) else list(size)
        self.deconv_out_channels = list(self.deconv_out_channels)
        self.conv_out_channels = list(self.conv_out_channels)
        self.deconv_kernel_sizes = list(self.deconv_kernel_sizes or [4] * len(self.deconv_out_channels))
        self.conv_kernel_sizes = list(self.conv_kernel_sizes or [1] * len(self.conv_out_channels))
        if self.flip_pairs is not None:
            try:
                self.flip_pairs = [[operator.index(i) for i in pair] for pair in self.flip_pairs]
            except TypeError as error:
                raise ValueError(f"flip_pairs is {self.flip_pairs!r}: expected pairs of keypoint indices.") from error
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        if self.id2label and not self.label2id:
            self.label2id = {name: index for index, name in self.id2label.items()}

    def validate_architecture(self):
        """Called by `@strict` after initialisation: refuse combinations that cannot be built."""
        super().validate_architecture()
        for name in ("num_attention_heads", "decoder_num_attention_heads", "patch_size", "keypoint_loss_top_k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} ({getattr(self, width)}) must be a multiple of {heads} ({getattr(self, heads)})."
                )
            if self.use_cls_token and getattr(self, width) % 4:
                raise ValueError(
                    f"{width} ({getattr(self, width)}) must be a multiple of 4 with use_cls_token=True: sines and "
                    "cosines of row and column share the channels of the fixed position table."
                )
        image_size: Any = self.image_size  # a list since __post_init__
        if len(image_size) != 2 or any(s <= 0 or s % self.patch_size for s in image_size):
            raise ValueError(
                f"image_size must be [height, width], both positive multiples of patch_size ({self.patch_size}); "
                f"got {self.image_size}."
            )
        if not 0 <= 2 * self.patch_embeddings_padding < self.patch_size:
            raise ValueError(
                f"patch_embeddings_padding must lie in [0, patch_size / 2) so that the grid keeps its size; got "
                f"{self.patch_embeddings_padding} with patch_size {self.patch_size}."
            )
        for name in ("deconv", "conv"):
            channels, kernels = getattr(self, f"{name}_out_channels"), getattr(self, f"{name}_kernel_sizes")
            if len(channels) != len(kernels):
                raise ValueError(
                    f"{name}_out_channels has {len(channels)} entries but {name}_kernel_sizes has {len(kernels)}: "
                    "give one kernel per layer."
                )
        if any(k not in (2, 3, 4) for k in self.deconv_kernel_sizes or ()):
            raise ValueError(f"deconv_kernel_sizes must be 2, 3 or 4, got {self.deconv_kernel_sizes}.")
        if any(k < 1 or k % 2 == 0 for k in self.conv_kernel_sizes or ()):
            raise ValueError(f"conv_kernel_sizes must be odd, got {self.conv_kernel_sizes}.")
        for name in ("mask_ratio", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        weights = self.semantic_loss_class_weights
        if weights is not None and len(weights) != self.num_labels:
            raise ValueError(
                f"semantic_loss_class_weights has {len(weights)} entries for {self.num_labels} labels: give one each."
            )
        last = len(self.id2label or {}) - 1
        seen: set[int] = set()
        for pair in self.flip_pairs or []:
            if len(pair) != 2 or not all(0 <= i <= last for i in pair):
                raise ValueError(f"flip_pairs holds {pair}: expected two keypoint indices from 0 to {last}.")
            if pair[0] == pair[1] or not seen.isdisjoint(pair):
                raise ValueError(f"flip_pairs holds {pair} with an index that came before: each swaps with one other.")
            seen.update(pair)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        height, width = self.image_size  # type: ignore[misc]  # a list since __post_init__
        return height // self.patch_size, width // self.patch_size

    @classmethod
    def from_size(cls, size: str, task: str | None = None, **overrides) -> "SapiensConfig":
        """Configuration of a released size and task.

        Args:
            size: `"0.3b"`, `"0.6b"`, `"1b"` or `"2b"`.
            task: `"pretraining"`, `"encoder"`, `"pose"`, `"segmentation"`, `"depth"`, `"normal"`, or `None` for the
                plain defaults (those of segmentation).
            **overrides: any field of this class, or `num_labels`.

        Raises:
            ValueError: if `size` or `task` is unknown.
        """
        fields = dict(_lookup("size", size, SIZES))
        if task is not None:
            fields.update(_lookup("task", task, TASKS))
        if {"id2label", "label2id"} & overrides.keys():
            fields.pop("num_labels", None)
        return cls(**{**fields, **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, with overrides normalised and checked like constructor arguments.

        A changed number of labels drops the stored `flip_pairs` and class weights: they speak of the old labels.
        """
        config_dict = dict(config_dict)
        # Two labels are the default of transformers, which leaves them out of the file.
        old_num_labels = len(config_dict.get("id2label") or range(config_dict.get("num_labels", 2)))
        num_labels = len(kwargs["id2label"]) if kwargs.get("id2label") else kwargs.get("num_labels")
        if num_labels is not None and num_labels != old_num_labels:
            stale = [
                n for n in ("flip_pairs", "semantic_loss_class_weights") if config_dict.get(n) and n not in kwargs
            ]
            if stale:
                logger.warning(
                    f"{old_num_labels} labels become {num_labels}: {' and '.join(stale)} of the checkpoint no longer "
                    f"apply and {'is' if len(stale) == 1 else 'are'} dropped. Pass new ones to set them."
                )
                config_dict.update(dict.fromkeys(stale))
            config_dict.pop("id2label", None)
            config_dict.pop("label2id", None)
        depth = config_dict.get("num_hidden_layers")
        if kwargs.get("num_hidden_layers", depth) != depth:
            for name in ("out_features", "out_indices", "stage_names"):  # they speak of the old depth
                config_dict.pop(name, None)
        own = [name for name in cls.__annotations__ if not name.startswith("_")] + ["id2label", "label2id"]
        config_dict.update({name: kwargs.pop(name) for name in own if name in kwargs})
        return super().from_dict(config_dict, **kwargs)


__all__ = ["SapiensConfig"]

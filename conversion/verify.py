"""Parity of a converted model with the original network.

`original_outputs` is a second rendering of the original, written from its description in plain torch functions over
the tensors under their original names. It shares no code with the models of sapiens_hf, so an agreement of the two
says that the conversion (names, order of query, key and value, padding, heads, position table) is right.

    pixels -> patch convolution -> + positions -> layers -> norm -> [head | masked decoder]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import sapiens_hf
from sapiens_hf.original import (
    CLASS_TASKS,
    find_original,
    load_original,
    original_config,
    original_tensors,
    read_original,
)

from .recipes import format_table

# Two float32 renderings that sum in another order: measured differences of the original against itself are 1e-6 to
# 5e-6 at magnitudes of 5 to 15.
FEATURE_TOLERANCE = 1e-5
HEAD_TOLERANCE = 2e-5
# A position table may have been resized; a head or a decoder may be new.
MAY_DIFFER = ("backbone.pos_embed", "pos_embed", "head.", "decode_head.", "neck.")


@dataclass(frozen=True)
class Comparison:
    """One line of the verdict: the largest difference, the largest value compared, and what is allowed."""

    name: str
    difference: float
    magnitude: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed: absolute, or relative to the largest value."""
        return self.difference <= self.tolerance * max(1.0, self.magnitude)


# ------------------------------------------------------------------------------------------------ the original network
def _norm(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _linear(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str, num_heads: int) -> torch.Tensor:
    batch, tokens, width = x.shape
    qkv = _linear(_norm(x, weights, f"{name}.ln1"), weights, f"{name}.attn.qkv")
    query, key, value = qkv.view(batch, tokens, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    weighted = torch.softmax(query @ key.mT / math.sqrt(width // num_heads), dim=-1) @ value  # (B, heads, N, d)
    x = x + _linear(weighted.transpose(1, 2).reshape(batch, tokens, width), weights, f"{name}.attn.proj")
    hidden = F.gelu(_linear(_norm(x, weights, f"{name}.ln2"), weights, f"{name}.ffn.layers.0.0"))
    return x + _linear(hidden, weights, f"{name}.ffn.layers.1")


def _layers(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str, num_heads: int) -> torch.Tensor:
    index = 0
    while f"{name}.{index}.ln1.weight" in weights:
        x = _layer(x, weights, f"{name}.{index}", num_heads)
        index += 1
    return x


def _patches(pixel_values: torch.Tensor, weights: Mapping[str, torch.Tensor], padding: int) -> torch.Tensor:
    name = "backbone.patch_embed.projection"
    maps = F.conv2d(pixel_values, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=16, padding=padding)
    return maps.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


def _head(maps: torch.Tensor, weights: Mapping[str, torch.Tensor], prefix: str) -> torch.Tensor:
    for kind in ("deconv", "conv"):
        index = 0
        while f"{prefix}.{kind}_layers.{index}.weight" in weights:
            kernel = weights[f"{prefix}.{kind}_layers.{index}.weight"]
            if kind == "deconv":
                padding, output_padding = {4: (1, 0), 3: (1, 1), 2: (0, 0)}[kernel.shape[-1]]
                maps = F.conv_transpose2d(maps, kernel, stride=2, padding=padding, output_padding=output_padding)
            else:
                bias = weights[f"{prefix}.{kind}_layers.{index}.bias"]
                maps = F.conv2d(maps, kernel, bias, padding=kernel.shape[-1] // 2)
            mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), keepdim=True, unbiased=False)
            maps = F.silu((maps - mean) / torch.sqrt(variance + 1e-5))
            index += 3
    last = f"{prefix}.{'final_layer' if prefix == 'head' else 'conv_seg'}"
    return F.conv2d(maps, weights[f"{last}.weight"], weights[f"{last}.bias"])


def _decode(
    tokens: torch.Tensor, weights: Mapping[str, torch.Tensor], num_heads: int, ids_restore: torch.Tensor
) -> torch.Tensor:
    tokens = _linear(tokens, weights, "neck.decoder_embed")
    batch, num_patches = ids_restore.shape
    masked = weights["neck.mask_token"].expand(batch, num_patches + 1 - tokens.shape[1], -1)
    patches = torch.cat([tokens[:, 1:], masked], dim=1)
    patches = torch.stack([sample[order] for sample, order in zip(patches, ids_restore)])
    tokens = torch.cat([tokens[:, :1], patches], dim=1) + weights["neck.decoder_pos_embed"]
    tokens = _norm(_layers(tokens, weights, "neck.decoder_blocks", num_heads), weights, "neck.ln1")
    return _linear(tokens, weights, "neck.decoder_pred")[:, 1:]


@torch.no_grad()
def original_outputs(
    weights: Mapping[str, torch.Tensor],
    pixel_values: torch.Tensor,
    *,
    num_attention_heads: int,
    patch_padding: int,
    decoder_num_attention_heads: int = 16,
    noise: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Runs the original network.

    Args:
        weights: Tensors by original name, with `backbone.` in front of the encoder's.
        pixel_values: `(batch_size, 3, height, width)`, normalised; the size of the position table.
        num_attention_heads: Heads of the encoder.
        patch_padding: Padding of the patch convolution in pixels.
        decoder_num_attention_heads: Heads of the masked decoder.
        noise: `(batch_size, num_patches)`; the quarter of the patches with the smallest values is seen by the decoder.

    Returns:
        `"features"`: tokens after the final norm `(batch_size, num_tokens, hidden_size)`; `"output"`: maps of the head
        `(batch_size, num_channels, height, width)`, or predicted patches `(batch_size, num_patches, 768)`, if the
        weights have a head or a decoder.
    """
    patches, positions = _patches(pixel_values, weights, patch_padding), weights["backbone.pos_embed"]
    has_token = "backbone.cls_token" in weights
    patches = patches + positions[:, int(has_token) :]
    token = (weights["backbone.cls_token"] + positions[:, :1]).expand(len(patches), -1, -1) if has_token else None

    def encode(x: torch.Tensor) -> torch.Tensor:
        x = x if token is None else torch.cat([token, x], dim=1)
        return _norm(_layers(x, weights, "backbone.layers", num_attention_heads), weights, "backbone.ln1")

    outputs = {"features": encode(patches)}
    prefix = next((name for name in ("head", "decode_head") if f"{name}.deconv_layers.0.weight" in weights), None)
    if prefix:
        height, width = (side // 16 for side in pixel_values.shape[2:])
        outputs["output"] = _head(outputs["features"].mT.unflatten(2, (height, width)), weights, prefix)
    if noise is not None and "neck.mask_token" in weights:
        order = noise.argsort(dim=1)
        seen = order[:, : int(noise.shape[1] * 0.25)]
        visible = torch.stack([sample[keep] for sample, keep in zip(patches, seen)])
        outputs["output"] = _decode(encode(visible), weights, decoder_num_attention_heads, order.argsort(dim=1))
    return outputs


# --------------------------------------------------------------------------------------------------------- comparison
def _difference(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> Comparison:
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: shape {tuple(ours.shape)}, the original gives {tuple(theirs.shape)}.")
    return Comparison(name, float((ours - theirs).abs().max()), float(theirs.abs().max()), tolerance)


def compare_weights(model: Any, path: Path) -> list[Comparison]:
    """Every tensor of the file against the model's, put back under the original's names; equal to the bit.

    Tensors are read one at a time. Tensors that the model does not have on purpose (the class token and the decoder in
    a task model, a replaced head) are left out, and so is a position table that was resized.

    Raises:
        ValueError: The model has another tensor that the file does not have.
    """
    stored = {name.removeprefix("module."): tensor for name, tensor in read_original(path).tensors.items()}
    worst, magnitude, count = 0.0, 0.0, 0
    for name, ours in original_tensors(model):
        theirs = stored.get(name) or stored.get(f"backbone.{name}") or stored.get(name.removeprefix("backbone."))
        if theirs is None or theirs.shape != tuple(ours.shape):
            if not name.startswith(MAY_DIFFER):
                raise ValueError(f"{path} has no {name} of shape {list(ours.shape)}, but the model has.")
            continue
        value = theirs.read().to(ours.dtype).float()
        worst = max(worst, float((ours.float() - value).abs().max()))
        magnitude, count = max(magnitude, float(value.abs().max())), count + 1
    return [Comparison(f"{count} of {len(stored)} stored tensors", worst, magnitude, 0.0)]


@torch.no_grad()
def compare_outputs(model: Any, path: Path, seed: int = 0, **config_overrides: Any) -> list[Comparison]:
    """Features and head of the model against `original_outputs`, on a random image of the model's own size.

    The padding of the patch convolution is the one that the file (or its recipe) tells, not the model's.

    Args:
        model: A Sapiens model that was made from the file.
        path: The original file.
        seed: Of the random image (and of the masking noise, for pretraining).
        **config_overrides: What the caller told `load_original`.

    Raises:
        ValueError: The model has another number of attention heads than the file says.
    """
    config, task = model.config, CLASS_TASKS[type(model).__name__]
    given = {name: getattr(config, name) for name in ("num_attention_heads", "image_size", "num_labels")}
    if task == "pretraining":
        given["decoder_num_attention_heads"] = config.decoder_num_attention_heads
    told = original_config(path, task=task, **given | config_overrides)
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(1, 3, *config.image_size, generator=generator)
    noise = torch.rand(1, config.grid_size[0] * config.grid_size[1], generator=generator)
    weights = {
        name if name.startswith(("backbone.", "neck.", "head.", "decode_head.")) else f"backbone.{name}": tensor
        for name, tensor in _file_weights(path, model.dtype).items()
    }
    table = model.base_model.embeddings.position_embeddings.detach()
    if table.shape != weights["backbone.pos_embed"].shape:
        weights["backbone.pos_embed"] = table.float()  # resized on loading, and compared by the tests of the resize
        weights.pop("backbone.cls_token", None)
    theirs = original_outputs(
        weights,
        pixel_values,
        num_attention_heads=told.num_attention_heads,
        patch_padding=told.patch_embeddings_padding,
        decoder_num_attention_heads=told.decoder_num_attention_heads,
        noise=noise if task == "pretraining" else None,
    )
    model = model.float().eval()
    features = (model if task == "encoder" else model.model)(pixel_values).last_hidden_state
    rows = [_difference("features", features, theirs["features"], FEATURE_TOLERANCE)]
    if task == "encoder" or "output" not in theirs:
        return rows
    if task == "pretraining":
        output = model(pixel_values, noise=noise).logits
    else:
        output = model.predict_maps(pixel_values)[0]
    return [
        *rows,
        _difference({"pretraining": "predicted patches"}.get(task, "head"), output, theirs["output"], HEAD_TOLERANCE),
    ]


def _file_weights(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of the file, rounded to the model's dtype, as float32."""
    stored = read_original(path).tensors
    return {
        name.removeprefix("module."): tensor.read().to(dtype).float()
        for name, tensor in stored.items()
        if not name.startswith("data_preprocessor.")
    }


def verify(
    target: str | Path,
    source: str | Path | None = None,
    *,
    filename: str | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> list[Comparison]:
    """Compares a converted folder, or a freshly loaded checkpoint, with the original network.

    Args:
        target: A converted folder, then with `source`; or a checkpoint of the original, which is loaded first.
        source: The checkpoint that the folder was made from: a file, a folder or a repository id.
        filename: File of the folder or repository, where there are several.
        revision: Of the repository.
        **config_overrides: Fields of `SapiensConfig` for loading a checkpoint.

    Returns:
        Weights, features and head, each with its largest difference.

    Raises:
        ValueError: A converted folder without the checkpoint it came from.
    """
    config = Path(target) / "config.json"
    if config.is_file() and source is None:
        raise ValueError(f"{target} is a converted folder: pass source=, the checkpoint that it was made from.")
    path = find_original(target if source is None else source, filename, revision, {})
    if source is None:
        model = load_original(path, **config_overrides)
    else:
        architecture = sapiens_hf.SapiensConfig.from_pretrained(target).architectures[0]
        model = getattr(sapiens_hf, architecture).from_pretrained(target).eval()
    return [*compare_weights(model, path), *compare_outputs(model, path, **config_overrides)]


def verdict_table(comparisons: list[Comparison]) -> str:
    """The comparisons as text, one line each."""
    rows = [("compared", "max difference", "max value", "allowed", "verdict")]
    rows += [
        (c.name, f"{c.difference:.3g}", f"{c.magnitude:.3g}", f"{c.tolerance:g}", "equal" if c.passed else "DIFFERENT")
        for c in comparisons
    ]
    return format_table(rows)

"""Pictures of what a masked autoencoder makes of the patches that it does not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .checkpoints import naming_what_fails, whole_file

HIDDEN_LEVEL = 100  # grey that stands for hidden patches, as in the original's pictures


def reconstruct(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the model makes of normalised images, and which pixels it did not see.

    With `norm_pix_loss` the network predicts each patch up to its mean and spread, which are then taken from the true
    patch: such pictures show the right colours whatever the network has learned.

    Args:
        model: a `SapiensForPreTraining`, bare or wrapped.
        inputs: pixel_values (batch_size, 3, height, width) and noise (batch_size, num_patches).

    Returns:
        Images (batch_size, 3, height, width) that hold the seen patches as they are and the prediction elsewhere, and
        the mask (batch_size, 1, height, width), 1 where a pixel was hidden.
    """
    bare = model
    while hasattr(bare, "module"):  # DDP, DeepSpeed
        bare = bare.module
    pixels = inputs["pixel_values"]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(**inputs)
    model.train(was_training)
    patches = bare.patchify(pixels).float()
    predicted = outputs.logits.float()
    if bare.config.norm_pix_loss:
        predicted = predicted * (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt() + patches.mean(dim=-1, keepdim=True)
    hidden = outputs.mask.float()[..., None]
    size = tuple(pixels.shape[-2:])
    joined = bare.unpatchify(predicted * hidden + patches * (1 - hidden), size)
    mask = bare.unpatchify(hidden.expand_as(patches).contiguous(), size)[:, :1]
    return joined, mask


def picture_grid(original: np.ndarray, mask: np.ndarray, rebuilt: np.ndarray, gap_px: int = 4) -> Image.Image:
    """One row per image: original, what the network saw, and what it made of it.

    Args:
        original: (num_images, height, width, 3) uint8.
        mask: (num_images, height, width), 1 where a pixel was hidden.
        rebuilt: (num_images, height, width, 3) uint8.
        gap_px: white space between pictures.
    """
    seen = np.where(mask[..., None] > 0, np.uint8(HIDDEN_LEVEL), original)
    rows = np.concatenate(
        [np.pad(part, _gap(gap_px), constant_values=255) for part in (original, seen, rebuilt)], axis=2
    )
    return Image.fromarray(np.concatenate(list(rows), axis=0)[gap_px:, gap_px:])


def _gap(gap_px: int) -> tuple[tuple[int, int], ...]:
    return (0, 0), (gap_px, 0), (gap_px, 0), (0, 0)


def save_picture(picture: Image.Image, folder: Path, step: int) -> Path:
    """Write a grid as `step-NNNNNNNN.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.png"
    with naming_what_fails(path), whole_file(path) as partial:
        picture.save(partial, format="PNG")
    return path


def send_picture(tracker: Any, picture: Image.Image, step: int) -> None:
    """Show a grid in TensorBoard or Weights & Biases; Accelerate's other trackers agree on no form for pictures."""
    values = {"reconstructions": np.asarray(picture)[None]}  # (1, H, W, 3)
    if tracker.name == "tensorboard":
        tracker.log_images(values, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images(values, step=step)

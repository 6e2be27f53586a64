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
"""Losses of the five Sapiens heads, each exactly the original's, as functions of tensors.

They are computed in float32 whatever the model's precision, and travel with the checkpoint, so that a downloaded
model trains with `Trainer` alone.
"""

import torch
import torch.nn.functional as F


def _check_shape(name: str, got: torch.Tensor, expected: tuple[int | str, ...]) -> None:
    if got.ndim != len(expected) or any(isinstance(e, int) and g != e for g, e in zip(got.shape, expected)):
        wanted = ", ".join(map(str, expected))
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(got.shape)}.")


def _upsample(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Predictions `(B, C, h, w)` at the size of their labels; labels are never resized."""
    maps = maps.float()
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Mean that is 0 for an empty batch, as images without people make one: a NaN would end the training."""
    return values.sum() / max(values.numel(), 1)


def heatmap_loss(
    heatmaps: torch.Tensor,
    labels: torch.Tensor,
    keypoint_weights: torch.Tensor | None = None,
    top_k: int | None = None,
) -> torch.Tensor:
    """Mean squared error of heatmaps, or that of each sample's `top_k` hardest keypoints.

    Keypoints of weight 0 stay in the denominator. In the second form the weight multiplies prediction and target
    before the square. Source: original mmpose/models/losses/heatmap_loss.py, KeypointMSELoss, KeypointOHKMMSELoss.

    A batch without people costs 0. Its labels may have any number of keypoints: the image processor, which makes them
    from an empty list of people, cannot know the model's.

    Args:
        heatmaps: predictions, `(batch_size, num_keypoints, height, width)`.
        labels: targets of the same shape.
        keypoint_weights: `(batch_size, num_keypoints)`; all 1 by default.
        top_k: number of hardest keypoints that count, or None for all.

    Raises:
        ValueError: if a shape differs.
    """
    if len(heatmaps) == 0:
        _check_shape("labels (target heatmaps)", labels, (0, "num_keypoints", *heatmaps.shape[2:]))
        if keypoint_weights is not None:
            _check_shape("keypoint_weights", keypoint_weights, (0, "num_keypoints"))
        return heatmaps.float().sum()
    _check_shape("labels (target heatmaps)", labels, tuple(heatmaps.shape))
    heatmaps, labels = heatmaps.float(), labels.float()
    weights = heatmaps.new_ones(heatmaps.shape[:2]) if keypoint_weights is None else keypoint_weights.float()
    _check_shape("keypoint_weights", weights, tuple(heatmaps.shape[:2]))
    if top_k is None:
        return _mean((heatmaps - labels).square() * weights[..., None, None])
    errors = (heatmaps - labels).square().mean(dim=(2, 3)) * weights.square()  # (B, K)
    return _mean(errors.topk(min(top_k, errors.shape[1]), dim=1).values.sum(dim=1) / top_k)


def segmentation_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: list[float] | None = None, ignore_index: int = 255
) -> torch.Tensor:
    """Class-weighted cross-entropy, averaged over all pixels: ignored ones count in the denominator.

    Unlike torch's weighted mean it does not divide by the sum of the weights. Source: original
    mmseg/models/losses/cross_entropy_loss.py with reduction 'none', then the mean of parse_losses.

    Args:
        logits: `(batch_size, num_labels, height, width)`, resized bilinearly to the labels.
        labels: class indices, `(batch_size, label_height, label_width)`.
        class_weights: one weight per class, or None.
        ignore_index: label that does not count.

    Raises:
        ValueError: if the shape differs or, on the CPU, a label is out of range.
    """
    _check_shape("labels (class indices)", labels, (logits.shape[0], "height", "width"))
    if (
        labels.device.type == "cpu" and not torch.compiler.is_compiling()
    ):  # elsewhere the check would wait for the device
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= logits.shape[1]))]
        if wrong.numel():
            raise ValueError(
                f"labels hold the value {wrong[0].item()}: expected 0 to {logits.shape[1] - 1}, or {ignore_index} for "
                "pixels to ignore. Set num_labels to the number of classes, or map the value to a class."
            )
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    labels = labels.long()
    if logits.device.type == "cpu" and logits.shape[-2:] != labels.shape[-2:]:
        # Classes side by side: a CPU softmaxes them faster then, but not by what a copy at full size costs.
        logits = _upsample(logits.contiguous(memory_format=torch.channels_last), labels.shape[-2:])
        logits, labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()  # (B * H * W, C)
    else:
        logits = _upsample(logits, labels.shape[-2:])
    return _mean(F.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="none"))


def depth_loss(predicted_depth: torch.Tensor, labels: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Scale-invariant logarithmic loss per image (arXiv 1406.2283 with lambda 0.5), averaged over the batch.

    A pixel counts where its label exceeds `eps`: the background (-1) and the very nearest point (0) do not. An image
    without such pixels contributes 0. Source: original mmseg/models/losses/silog_loss.py.

    Args:
        predicted_depth: `(batch_size, height, width)`, resized bilinearly to the labels.
        labels: depth in [0, 1], -1 where there is no person, `(batch_size, label_height, label_width)`.
        eps: predictions and labels are clamped from below at this value.

    Raises:
        ValueError: if the shape differs.
    """
    _check_shape("labels (depth)", labels, (predicted_depth.shape[0], "height", "width"))
    labels = labels.float()
    predicted_depth = _upsample(predicted_depth[:, None], labels.shape[-2:])[:, 0]
    difference = labels.clamp(min=eps).log() - predicted_depth.clamp(min=eps).log()
    valid = (labels > eps) & ~difference.isnan()
    difference = torch.where(valid, difference, 0.0).flatten(1)  # (B, H, W) -> (B, H * W)
    count = valid.flatten(1).sum(dim=1).clamp(min=1)
    variance = difference.square().sum(dim=1) / count - 0.5 * (difference.sum(dim=1) / count).square()
    # The square root has no gradient at 0 (a perfect or an empty image): keep it out of the graph there.
    positive = variance > 0
    return _mean(torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0))


def normal_loss(predicted_normal: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cosine distance plus L1 distance over the pixels of people, both averaged over all such pixels of the batch.

    The L1 term takes the raw prediction, sums the three channels and divides by the number of pixels. A term that is
    not finite counts as 0. Source: original mmseg/models/losses/cosine_similarity_loss.py and l1_loss.py.

    Args:
        predicted_normal: `(batch_size, 3, height, width)`, resized bilinearly to the labels.
        labels: unit normals, `(batch_size, 3, label_height, label_width)`; below -100 where there is no person.

    Raises:
        ValueError: if the shape differs.
    """
    _check_shape("labels (normals)", labels, (predicted_normal.shape[0], 3, "height", "width"))
    labels = labels.float()
    predicted_normal = _upsample(predicted_normal, labels.shape[-2:])
    valid = labels[:, 0] > -100
    count = valid.sum().clamp(min=1)
    similarity = (F.normalize(predicted_normal, dim=1, eps=1e-6) * F.normalize(labels, dim=1, eps=1e-6)).sum(dim=1)
    cosine = torch.where(valid, 1 - similarity, 0.0).sum() / count
    absolute = torch.where(valid, (predicted_normal - labels).abs().sum(dim=1), 0.0).sum() / count
    return cosine.nan_to_num(0.0, 0.0, 0.0) + absolute.nan_to_num(0.0, 0.0, 0.0)


def reconstruction_loss(
    logits: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor, norm_pix_loss: bool = True
) -> torch.Tensor:
    """Mean squared error over the hidden patches of a masked autoencoder (arXiv 2111.06377).

    Args:
        logits: predicted patches, `(batch_size, num_patches, patch_size ** 2 * num_channels)`.
        patches: true patches of the same shape.
        mask: 1 where a patch was hidden, `(batch_size, num_patches)`.
        norm_pix_loss: whether targets are normalised per patch, with the unbiased variance.
    """
    logits, patches = logits.float(), patches.float()
    num_values = patches.shape[-1]
    if norm_pix_loss:  # (x - mean) / sqrt(var + 1e-6) in one kernel, which divides its variance by P, not P - 1
        bias = (num_values - 1) / num_values
        patches = F.layer_norm(patches, (num_values,), patches.new_full((num_values,), bias**0.5), eps=1e-6 * bias)
    errors = F.mse_loss(logits, patches, reduction="none").sum(dim=-1)  # (B, N, P) -> (B, N)
    return (errors * mask).sum() / (num_values * mask.sum().clamp(min=1))


__all__ = ["depth_loss", "heatmap_loss", "normal_loss", "reconstruction_loss", "segmentation_loss"]

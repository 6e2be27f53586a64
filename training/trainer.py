"""Evaluation for `transformers.Trainer` that keeps no maps: one batch at a time, small numbers only.

    metrics = TrainerMetrics("segmentation", num_labels=28)
    Trainer(..., compute_metrics=metrics, preprocess_logits_for_metrics=metrics.shrink,
            args=TrainingArguments(..., batch_eval_metrics=True))

The metrics are those of `training.evaluators`, at the size of the network's labels instead of the photographs'. For
pose the labels are heatmaps of crops, which tell neither the person's box nor which keypoints are hidden: `crop_pck`
counts all keypoints within the crop, and measures against its diagonal without the padding. That is the box's for
boxes of the crop's shape and larger for others, so it is higher than `pck` and not to be compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sapiens_hf.heatmaps_sapiens import BOX_PADDING, decode_heatmaps

from .evaluators import DepthEvaluator, NormalEvaluator, PoseEvaluator, SegmentationEvaluator


class TrainerMetrics:
    """`compute_metrics` and `preprocess_logits_for_metrics` of a task.

    Args:
        task: "pose", "segmentation", "depth" or "normal".
        num_labels: classes, for segmentation.
        ignore_index: label that does not count, for segmentation.
    """

    def __init__(self, task: str, num_labels: int = 0, ignore_index: int = 255):
        self.task = task
        self.evaluator: Any
        if task == "pose":
            self.evaluator = PoseEvaluator(None)
        elif task == "segmentation":
            self.evaluator = SegmentationEvaluator(None, num_labels, ignore_index)
        else:
            self.evaluator = DepthEvaluator(None) if task == "depth" else NormalEvaluator(None)

    @torch.no_grad()
    def shrink(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is kept of a batch's outputs, on their device: class indices, keypoints, or maps of the labels' size.

        Args:
            logits: the model's maps.
            labels: the batch's labels.
        """
        if self.task == "pose":
            return decode_heatmaps(logits.float())[0]
        size = labels.shape[-2:]
        maps = logits.float()
        maps = maps[:, None] if maps.ndim == 3 else maps
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return maps.argmax(dim=1).to(torch.uint8) if self.task == "segmentation" else maps

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        """Add a batch; give the metrics of all when it is the last."""
        predictions, labels = (torch.as_tensor(part).cpu() for part in (prediction.predictions, prediction.label_ids))
        measure = {
            "pose": self._pose,
            "segmentation": self._segmentation,
            "depth": self._depth,
            "normal": self._normal,
        }
        measure[self.task](predictions, labels)
        if not compute_result:
            return {}
        results = self.evaluator.compute(self.evaluator.totals)
        self.evaluator.reset()
        return {"crop_pck": results["pck"]} if self.task == "pose" else results

    def _pose(self, points: Tensor, heatmaps: Tensor) -> None:
        # A keypoint is where its bump is, and not labelled where the map is empty. The edge of a bump whose keypoint
        # lies outside has its peak on the border, and is decoded beyond it.
        truth, peaks = decode_heatmaps(heatmaps.float())
        height, width = heatmaps.shape[-2:]
        inside = ((truth > 0) & (truth < truth.new_tensor([width - 1, height - 1]))).all(dim=-1)
        rows = torch.cat([truth, ((peaks > 0) & inside)[..., None] * 1.0], dim=-1)
        self.evaluator.measure(points.numpy(), rows.numpy(), np.hypot(height, width) / BOX_PADDING)

    def _segmentation(self, predicted: Tensor, labels: Tensor) -> None:
        for one, truth in zip(predicted.numpy(), labels.numpy(), strict=True):
            self.evaluator.measure(one, truth)

    def _depth(self, predicted: Tensor, labels: Tensor) -> None:
        # Labels are relative depth with 0 at the nearest point: ratios need a depth above 0, so 1 is added to both.
        for one, truth in zip(predicted[:, 0].numpy(), labels.numpy(), strict=True):
            self.evaluator.measure(one + 1, truth + 1, truth >= 0)

    def _normal(self, predicted: Tensor, labels: Tensor) -> None:
        for one, truth in zip(predicted.numpy(), labels.numpy(), strict=True):
            self.evaluator.measure(one, truth, truth[0] > -100)

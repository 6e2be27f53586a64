"""Evaluation during training: each task's metrics from sums that do not grow with the data set.

An evaluator adds a vector of numbers per image to its totals. Processes add up their totals, so nothing but one small
tensor travels between them, and memory stays the same for ten images or a million. The formulas are those of
`sapiens_hf.metrics`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from .data import BatchLoader
from .formats import BadSampleError, Sample, SampleList

logger = logging.get_logger(__name__)


class Evaluator:
    """Base of the four: what is best, the totals, and the processor's part.

    Attributes:
        best: name of the metric that chooses the best checkpoint.
        higher_is_better: its direction.
    """

    best: str
    higher_is_better = True

    def __init__(self, processor: Any, num_totals: int):
        self.processor = processor
        self.totals = np.zeros(num_totals, dtype=np.float64)

    def reset(self) -> None:
        """Forget everything added."""
        self.totals[:] = 0

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The model's inputs for whole samples, as at inference."""
        return dict(self.processor(images=[sample["image"] for sample in samples], return_tensors="pt"))

    def predict(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """The model's outputs."""
        return model(**inputs)

    def add(self, outputs: Any, samples: Sequence[Sample]) -> None:
        """Measure a batch of outputs; there may be more outputs than samples, the rest do not count."""
        raise TypeError(f"{type(self).__name__} does not say how to measure.")

    def compute(self, totals: np.ndarray) -> dict[str, float]:
        """Metrics from totals, of one process or added up over all."""
        raise TypeError(f"{type(self).__name__} does not say how to compute.")

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value of the metric `best` beats another; NaN never does."""
        if value != value:
            return False
        return than is None or (value > than if self.higher_is_better else value < than)


class PoseEvaluator(Evaluator):
    """Share of keypoints within 0.05 of the diagonal of the person's box, on ground-truth boxes.

    `pck` counts labelled keypoints, `pck_visible` those that are seen (visibility 2).
    """

    best = "pck"
    threshold = 0.05

    def __init__(self, processor: Any, flip_pairs: Sequence[Sequence[int]] | None = None):
        super().__init__(processor, 4)
        self.flip_pairs = flip_pairs

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        images = [sample["image"] for sample in samples]
        return dict(self.processor(images=images, boxes=_boxes(samples), return_tensors="pt"))

    def predict(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        outputs = model(**inputs)
        if self.flip_pairs is None:
            return outputs, None
        pairs = torch.tensor(self.flip_pairs, device=inputs["pixel_values"].device)
        return outputs, model(inputs["pixel_values"].flip(-1), flip_pairs=pairs)

    def add(self, outputs: Any, samples: Sequence[Sample]) -> None:
        straight, flipped = outputs
        straight.heatmaps = straight.heatmaps[: len(samples)].float()
        if flipped is not None:
            flipped.heatmaps = flipped.heatmaps[: len(samples)].float()
        people = self.processor.post_process_pose_estimation(straight, _boxes(samples), outputs_flipped=flipped)
        for (person,), sample in zip(people, samples, strict=True):
            self.measure(person["keypoints"].cpu().numpy(), sample["keypoints"], np.hypot(*sample["box"][2:]))

    def measure(self, points: np.ndarray, truth: np.ndarray, diagonal: float) -> None:
        """Points (..., num_keypoints, 2), truth (..., num_keypoints, 3), the box's diagonal in the same pixels."""
        distances = np.linalg.norm(points - truth[..., :2], axis=-1)
        for place, labelled in ((0, truth[..., 2] > 0), (2, truth[..., 2] >= 2)):
            self.totals[place] += np.sum(labelled & (distances <= self.threshold * diagonal))
            self.totals[place + 1] += np.sum(labelled)

    def compute(self, totals: np.ndarray) -> dict[str, float]:
        return {"pck": _ratio(totals[0], totals[1]), "pck_visible": _ratio(totals[2], totals[3])}


class SegmentationEvaluator(Evaluator):
    """Intersection over union at the size of the image, summed over the data set."""

    best = "mean_iou"

    def __init__(self, processor: Any, num_labels: int, ignore_index: int = 255):
        super().__init__(processor, num_labels**2)
        self.num_labels, self.ignore_index = num_labels, ignore_index

    def add(self, outputs: Any, samples: Sequence[Sample]) -> None:
        outputs.logits = outputs.logits[: len(samples)].float()
        labels = self.processor.post_process_semantic_segmentation(outputs, target_sizes=_sizes(samples))
        for predicted, sample in zip(labels, samples, strict=True):
            self.measure(predicted.cpu().numpy(), sample["segmentation_map"])

    def measure(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """One image: two label maps (height, width)."""
        counts = truth != self.ignore_index
        pairs = truth[counts].astype(np.int64) * self.num_labels + predicted[counts]
        self.totals += np.bincount(pairs, minlength=self.num_labels**2)

    def compute(self, totals: np.ndarray) -> dict[str, float]:
        confusion = totals.reshape(self.num_labels, self.num_labels)  # truth by prediction
        hits, area = confusion.diagonal(), confusion.sum(axis=1)
        union = area + confusion.sum(axis=0) - hits
        return {
            "mean_iou": float(np.mean(hits[union > 0] / union[union > 0])) if (union > 0).any() else float("nan"),
            "mean_accuracy": float(np.mean(hits[area > 0] / area[area > 0])) if (area > 0).any() else float("nan"),
            "overall_accuracy": _ratio(hits.sum(), area.sum()),
        }


class DepthEvaluator(Evaluator):
    """Depth errors on people after a scale and a shift per image, which relative depth needs, averaged over images."""

    best = "delta1"

    def __init__(self, processor: Any):
        self.metric = metric_module("depth_metrics")
        self.names = self.metric.NAMES
        super().__init__(processor, len(self.names) + 1)

    def add(self, outputs: Any, samples: Sequence[Sample]) -> None:
        outputs.predicted_depth = outputs.predicted_depth[: len(samples)].float()
        maps = self.processor.post_process_depth_estimation(outputs, target_sizes=_sizes(samples))
        for predicted, sample in zip(maps, samples, strict=True):
            self.measure(predicted["predicted_depth"].cpu().numpy(), sample["depth"], sample["mask"])

    def measure(self, predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One image: two depth maps and a mask (height, width); without a valid pixel it does not count."""
        predicted, truth = self.metric.valid_pixels(predicted.astype(np.float64), truth.astype(np.float64), mask)
        if len(truth):
            self.totals[:-1] += self.metric.depth_errors(self.metric.align_scale_shift(predicted, truth), truth)
            self.totals[-1] += 1

    def compute(self, totals: np.ndarray) -> dict[str, float]:
        return {name: _ratio(total, totals[-1]) for name, total in zip(self.names, totals[:-1], strict=True)}


class NormalEvaluator(Evaluator):
    """Angles between normals on people, in degrees, pooled over all pixels."""

    best = "mean"
    higher_is_better = False

    def __init__(self, processor: Any):
        self.metric = metric_module("normal_metrics")
        super().__init__(processor, self.metric.NUM_BINS + len(self.metric.LIMITS_DEG) + 3)

    def add(self, outputs: Any, samples: Sequence[Sample]) -> None:
        outputs.predicted_normal = outputs.predicted_normal[: len(samples)].float()
        maps = self.processor.post_process_normal_estimation(outputs, target_sizes=_sizes(samples))
        for predicted, sample in zip(maps, samples, strict=True):
            truth = np.moveaxis(sample["normals"], -1, 0)  # (H, W, 3) -> (3, H, W)
            self.measure(predicted["normals"].cpu().numpy(), truth, sample["mask"])

    def measure(self, predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One image: two normal maps (3, height, width) and a mask (height, width)."""
        bins = self.metric.NUM_BINS
        angles = self.metric.angles_deg(predicted.astype(np.float64), truth.astype(np.float64), mask)
        places = np.minimum((angles / self.metric.BIN_WIDTH_DEG).astype(np.int64), bins - 1)
        self.totals[:bins] += np.bincount(places, minlength=bins)
        self.totals[bins : bins + 3] += len(angles), angles.sum(), (angles**2).sum()
        self.totals[bins + 3 :] += [(angles < limit).sum() for limit in self.metric.LIMITS_DEG.values()]

    def compute(self, totals: np.ndarray) -> dict[str, float]:
        bins = self.metric.NUM_BINS
        count, total, squares = totals[bins : bins + 3]
        middle = int(np.searchsorted(np.cumsum(totals[:bins]), count / 2))
        shares = {
            name: 100 * _ratio(within, count)
            for name, within in zip(self.metric.LIMITS_DEG, totals[bins + 3 :], strict=True)
        }
        median = (middle + 0.5) * self.metric.BIN_WIDTH_DEG if count else float("nan")
        return {"mean": _ratio(total, count), "median": median, "rmse": _ratio(squares, count) ** 0.5, **shares}


class EvaluationSet(Dataset):
    """This process's share of a data set, in batches that all processes have equally many of.

    A model that is sharded over processes must be called equally often by each, so the last batches may repeat samples
    that are not counted.
    """

    def __init__(self, samples: SampleList, evaluator: Evaluator, skip_bad: bool = False):
        self.samples, self.evaluator, self.skip_bad = samples, evaluator, skip_bad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return self.samples[index]
        except BadSampleError as error:
            if not self.skip_bad:
                raise
            logger.warning_once(f"Skipped: {error}")
            return None

    def collate(self, samples: Sequence[Sample | None]) -> tuple[dict[str, Tensor] | None, list[Sample]]:
        """The model's inputs and the samples; none of both for a batch of bad samples."""
        good = [sample for sample in samples if sample is not None]
        return (self.evaluator.inputs(good) if good else None), good

    def loader(self, batch_size: int, num_processes: int, process: int, num_workers: int) -> DataLoader:
        """Batches of this process; each index is `process`, `process + num_processes`, ..."""
        rounds = -(-len(self) // num_processes)
        indices = [process + num_processes * number for number in range(rounds)]
        batches = [indices[start : start + batch_size] for start in range(0, rounds, batch_size)]
        return BatchLoader(_Wrapped(self), batch_sampler=batches, num_workers=num_workers, collate_fn=self.collate)


class _Wrapped(Dataset):
    """Indices past the end repeat the first sample, marked as not to be counted."""

    def __init__(self, inner: EvaluationSet):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample | None:
        if index < len(self.inner):
            return self.inner[index]
        sample = self.inner[0]
        return None if sample is None else {**sample, "uncounted": True}


@torch.no_grad()
def evaluate(
    model: Any, dataset: EvaluationSet, loader: DataLoader, accelerator: Any, progress: Callable[[Any], Any] = iter
) -> dict[str, float]:
    """Metrics of a model over all processes' shares of a data set."""
    evaluator = dataset.evaluator
    evaluator.reset()
    was_training = model.training
    model.eval()
    for inputs, samples in progress(loader):
        if inputs is None:
            continue
        inputs = {name: tensor.to(accelerator.device) for name, tensor in inputs.items()}
        outputs = evaluator.predict(model, inputs)
        counted = [sample for sample in samples if "uncounted" not in sample]
        if counted:
            evaluator.add(outputs, counted)
    model.train(was_training)
    totals = torch.from_numpy(evaluator.totals)
    if accelerator.device.type != "mps":  # which has no float64
        totals = totals.to(accelerator.device)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals, reduction="sum")
    return evaluator.compute(totals.cpu().numpy())


def metric_module(name: str) -> Any:
    """The formulas of one of `sapiens_hf.metrics`.

    Raises:
        ImportError: if the package `evaluate` is not installed.
    """
    try:
        return importlib.import_module(f"sapiens_hf.metrics.{name}.{name}")
    except ImportError as error:
        raise ImportError("Evaluation needs the `evaluate` package: pip install sapiens_hf[eval].") from error


def _boxes(samples: Sequence[Sample]) -> list[list[list[float]]]:
    return [[sample["box"].tolist()] for sample in samples]


def _sizes(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    return [sample["image"].shape[:2] for sample in samples]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")

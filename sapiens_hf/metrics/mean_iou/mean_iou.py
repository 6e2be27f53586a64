"""Mean intersection over union of label maps, summed over the data set.

Speaks the names of `evaluate`'s own `mean_iou`, with three differences: maps may differ in size from image to image,
only the joint label histogram of each image is stored (never the map), and a label outside the classes is an error.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

# A histogram of label pairs needs the square of this; more labels than that are instance ids or a colour picture.
MAX_LABELS = 4096

_DESCRIPTION = "IoU and accuracy of label maps; intersections and unions are summed over the whole data set."

_INPUTS = """
Args:
    predictions: label maps, integers (height, width), one per image; sizes may differ between images.
    references: label maps of the same sizes.
    num_labels (int, in `compute`): number of classes.
    ignore_index (int, in `compute`, default 255): reference label of the pixels that do not count.
    nan_to_num (float, in `compute`, optional): number that replaces NaN in the two per-category lists.

Returns:
    mean_iou, mean_accuracy, overall_accuracy: floats in [0, 1].
    per_category_iou, per_category_accuracy: lists of `num_labels` floats; NaN for a class that the references (IoU:
    both sides) lack. The two means skip these.
"""


def joint_histogram(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Count how often each pair of labels occurs.

    Args:
        prediction: integers of any shape.
        reference: integers of the same shape.

    Returns:
        (num_pairs, 3) int64 rows of reference label, predicted label, number of pixels.

    Raises:
        TypeError: if an array does not hold integers.
        ValueError: if the shapes differ or the labels span more than `MAX_LABELS` values.
    """
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels.dtype.kind not in "iub":
            raise TypeError(f"The {name} holds {labels.dtype}, expected integer labels. For logits, take the argmax.")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"The prediction is {prediction.shape} and its reference {reference.shape}. Resize the logits to the "
            "reference with post_process_semantic_segmentation(target_sizes=...), never the reference."
        )
    if reference.size == 0:
        return np.zeros((0, 3), dtype=np.int64)
    lowest = min(int(prediction.min()), int(reference.min()))
    width = max(int(prediction.max()), int(reference.max())) - lowest + 1
    if width > MAX_LABELS:
        raise ValueError(
            f"The labels span {width} values, expected at most {MAX_LABELS}. Is this an instance map or a depth map?"
        )
    codes = (reference.astype(np.int64).ravel() - lowest) * width + (prediction.astype(np.int64).ravel() - lowest)
    pixels = np.bincount(codes)
    seen = np.flatnonzero(pixels)
    return np.stack([seen // width + lowest, seen % width + lowest, pixels[seen]], axis=1)


def confusion_matrix(pairs: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """Sum histogram rows into a (num_labels, num_labels) matrix, reference by prediction.

    Raises:
        ValueError: if a counted pixel has a label outside the classes, or no pixel counts.
    """
    pairs = pairs[pairs[:, 0] != ignore_index]
    if not len(pairs):
        raise ValueError(f"No reference pixel differs from ignore_index={ignore_index}: there is nothing to score.")
    for name, labels in (("reference", pairs[:, 0]), ("prediction", pairs[:, 1])):
        wrong = np.unique(labels[(labels < 0) | (labels >= num_labels)])
        if len(wrong):
            raise ValueError(
                f"A {name} holds the labels {wrong.tolist()[:10]}, expected 0 to {num_labels - 1} (references also "
                f"ignore_index={ignore_index}). Check num_labels and the label map."
            )
    matrix = np.bincount(pairs[:, 0] * num_labels + pairs[:, 1], weights=pairs[:, 2], minlength=num_labels**2)
    return matrix.reshape(num_labels, num_labels)


def _labels(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


class MeanIoU(evaluate.Metric):
    """Mean IoU. `add_batch` stores a small histogram per image, so a data set of any size fits in memory."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"pairs": datasets.Sequence(datasets.Sequence(datasets.Value("int64")))}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Count the label pairs of some images."""
        if len(predictions) != len(references):
            raise ValueError(f"Got {len(predictions)} predictions but {len(references)} references.")
        maps = zip(predictions, references, strict=True)
        super().add_batch(pairs=[joint_histogram(_labels(prediction), _labels(truth)) for prediction, truth in maps])

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Count the label pairs of one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        num_labels: int,
        ignore_index: int = 255,
        nan_to_num: float | None = None,
    ) -> dict[str, Any]:
        """Score what was added, and these images too."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        return super().compute(num_labels=num_labels, ignore_index=ignore_index, nan_to_num=nan_to_num)

    def _compute(self, pairs, num_labels, ignore_index, nan_to_num) -> dict[str, Any]:
        if not len(pairs):
            raise ValueError("There are no images to score: add predictions and references first.")
        rows = np.concatenate([np.asarray(image, dtype=np.int64).reshape(-1, 3) for image in pairs])
        confusion = confusion_matrix(rows, num_labels, ignore_index)
        hits, area = confusion.diagonal(), confusion.sum(axis=1)
        union = area + confusion.sum(axis=0) - hits
        iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
        accuracy = np.where(area > 0, hits / np.maximum(area, 1), np.nan)
        per_category = [iou, accuracy] if nan_to_num is None else np.nan_to_num([iou, accuracy], nan=nan_to_num)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "overall_accuracy": float(hits.sum() / area.sum()),
            "per_category_iou": per_category[0].tolist(),
            "per_category_accuracy": per_category[1].tolist(),
        }

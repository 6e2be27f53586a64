"""Percentage of correct keypoints: a keypoint is correct within `threshold` times the size of the person's box.

Yang and Ramanan 2013 ("Articulated human detection with flexible mixtures of parts"). The default size is the diagonal
of the box; mmpose's `PCKAccuracy(norm_item="bbox")` is `norm="max_side"`, averaged as `mean_keypoint_pck` here.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

NORMS = ("diagonal", "max_side")

_DESCRIPTION = "Share of labelled keypoints predicted within a fraction of the size of the person's box."

_INPUTS = """
Args:
    predictions: (num_keypoints, 2 or more) array per person, columns x, y in pixels; further columns are not read.
    references: (num_keypoints, 3) array per person, columns x, y, visibility (0: not labelled, 1: hidden, 2: visible).
    bboxes: (4,) COCO box per person: x, y, width, height in pixels.
    threshold (float, in `compute`, default 0.05): fraction of the size that is still correct (inclusive).
    norm (str, in `compute`, default "diagonal"): "diagonal" or "max_side" of the box.
    min_visibility (int, in `compute`, default 1): 2 counts visible keypoints only.

Returns:
    pck: share of correct keypoints over all counted keypoints of all persons, in [0, 1].
    mean_keypoint_pck: the mean over keypoints of their own shares.
    per_keypoint_pck: list of num_keypoints floats, NaN where a keypoint never counts.
    num_keypoints_counted: how many keypoints counted.
"""


def _floats(value: Any) -> np.ndarray:
    return value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)


def distances_px(prediction: np.ndarray, reference: np.ndarray, person: int) -> np.ndarray:
    """Distances (num_keypoints,) in pixels of one person; 0 where the reference is not labelled.

    Raises:
        ValueError: if shapes are wrong or a coordinate that counts is not finite.
    """
    if reference.ndim != 2 or reference.shape[1] != 3 or prediction.shape[:1] != reference.shape[:1]:
        raise ValueError(
            f"Person {person}: predictions are {prediction.shape} and references {reference.shape}, expected "
            "(num_keypoints, 2) and (num_keypoints, 3) with the same number of keypoints."
        )
    labelled = reference[:, 2] > 0
    distances = np.where(labelled, np.linalg.norm(prediction[:, :2] - reference[:, :2], axis=1), 0.0)
    if not np.isfinite(distances).all():
        wrong = np.flatnonzero(~np.isfinite(distances)).tolist()
        raise ValueError(f"Person {person}: keypoints {wrong[:10]} are NaN or infinite.")
    return distances


class Pck(evaluate.Metric):
    """PCK. `add_batch` stores two numbers per keypoint."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"distances_px": numbers, "visibility": numbers, "box_size_px": numbers}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, bboxes: Any = None) -> None:
        """Measure some persons."""
        if bboxes is None or not len(predictions) == len(references) == len(bboxes):
            num_boxes = "no" if bboxes is None else len(bboxes)
            raise ValueError(
                f"Got {len(predictions)} predictions, {len(references)} references and {num_boxes} bboxes; expected "
                "one of each per person."
            )
        references = [_floats(person) for person in references]
        sizes = np.stack([_floats(box) for box in bboxes])[:, 2:] if len(bboxes) else np.ones((0, 2))
        if not (sizes > 0).all():
            wrong = np.flatnonzero(~(sizes > 0).all(axis=1)).tolist()
            raise ValueError(f"The boxes of persons {wrong[:10]} have no area; expected x, y, width > 0, height > 0.")
        pairs = enumerate(zip(predictions, references, strict=True))
        super().add_batch(
            distances_px=[distances_px(_floats(prediction), truth, person) for person, (prediction, truth) in pairs],
            visibility=[truth[:, 2] for truth in references],
            box_size_px=list(sizes),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, bbox: Any = None) -> None:
        """Measure one person."""
        self.add_batch(predictions=[prediction], references=[reference], bboxes=None if bbox is None else [bbox])

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        bboxes: Any = None,
        threshold: float = 0.05,
        norm: str = "diagonal",
        min_visibility: int = 1,
    ) -> dict[str, Any]:
        """Score what was added, and these persons too."""
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}, expected one of {', '.join(NORMS)}.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, bboxes=bboxes)
        return super().compute(threshold=threshold, norm=norm, min_visibility=min_visibility)

    def _compute(self, distances_px, visibility, box_size_px, threshold, norm, min_visibility) -> dict[str, Any]:
        counts = sorted({len(person) for person in visibility})
        if len(counts) > 1:
            raise ValueError(f"Persons have different numbers of keypoints: {counts}. Evaluate one set at a time.")
        if not counts:
            raise ValueError("There are no persons to score.")
        width_height = np.array(box_size_px)
        size = np.hypot(*width_height.T) if norm == "diagonal" else width_height.max(axis=1)
        counted = np.array(visibility) >= max(min_visibility, 1)
        correct = counted & (np.array(distances_px) <= threshold * size[:, None])
        num_counted = counted.sum(axis=0)
        if not num_counted.any():
            raise ValueError(f"No keypoint of the {len(counted)} persons has visibility >= {min_visibility}.")
        per_keypoint = np.where(num_counted > 0, correct.sum(axis=0) / np.maximum(num_counted, 1), np.nan)
        return {
            "pck": float(correct.sum() / counted.sum()),
            "mean_keypoint_pck": float(np.nanmean(per_keypoint)),
            "per_keypoint_pck": per_keypoint.tolist(),
            "num_keypoints_counted": int(counted.sum()),
        }

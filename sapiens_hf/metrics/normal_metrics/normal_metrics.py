"""Angular errors of surface normals in degrees, pooled over all valid pixels of the data set.

Sapiens v1 publishes no normal metric; this follows the evaluator of its successor (Sapiens2, `NormalEvaluator`), whose
median is the centre of a bin of a half-degree histogram: exact to 0.25 degrees with constant memory.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

LIMITS_DEG = {"within_5": 5.0, "within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
BIN_WIDTH_DEG = 0.5
NUM_BINS = 360

_DESCRIPTION = "Angles between predicted and true surface normals, pooled over all valid pixels."

_INPUTS = """
Args:
    predictions: normal maps (3, height, width), one per image, of any length; sizes may differ between images.
    references: true normals of the same sizes. Pixels with a zero vector do not count.
    masks: bool maps (height, width), e.g. the person; only true pixels count. Default: all.

Returns:
    mean, median (to 0.25 degrees), rmse: degrees, lower is better.
    within_5, within_11_25, within_22_5, within_30: percent of pixels strictly below that angle, higher is better.
    num_pixels: pixels that counted.
"""


def angles_deg(prediction: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Angles between two normal maps at the pixels that count.

    Args:
        prediction: (3, height, width), any length; a zero vector is 90 degrees from everything.
        reference: (3, height, width), any length; zero vectors do not count.
        mask: (height, width) or None.

    Returns:
        (num_pixels,) degrees.

    Raises:
        ValueError: if shapes are wrong or a value that counts is not finite.
    """
    if reference.ndim != 3 or reference.shape[0] != 3:
        raise ValueError(f"A reference is {reference.shape}, expected (3, height, width): transpose (H, W, 3) maps.")
    if prediction.shape != reference.shape or (mask is not None and mask.shape != reference.shape[1:]):
        sizes = f"prediction {prediction.shape}, reference {reference.shape}"
        sizes += "" if mask is None else f", mask {mask.shape}"
        raise ValueError(
            f"The sizes of one image differ: {sizes}. Resize predictions with "
            "post_process_normal_estimation(target_sizes=...), never the reference."
        )
    # Neither zero vectors count nor -1000, the background of training labels, which the loss tells by the same limit.
    inside = np.any(reference != 0, axis=0) & ~(reference[0] <= -100)
    if mask is not None:
        inside &= mask.astype(bool)
    pair = []
    for name, normals in (("prediction", prediction), ("reference", reference)):
        vectors = normals[:, inside]
        if not np.isfinite(vectors).all():
            count = int((~np.isfinite(vectors)).any(axis=0).sum())
            raise ValueError(f"A {name} is NaN or infinite at {count} pixels that count; expected finite vectors.")
        # The floor on the length is the reference evaluator's.
        pair.append(vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-6))
    cosine = np.clip((pair[0] * pair[1]).sum(axis=0), -1.0, 1.0)
    return np.degrees(np.arccos(cosine))


def _floats(value: Any) -> np.ndarray:
    return value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)


class NormalMetrics(evaluate.Metric):
    """Angular errors. `add_batch` stores a histogram and six sums per image, never the maps."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "histogram": datasets.Sequence(datasets.Value("int64")),
                    "sums_deg": datasets.Sequence(datasets.Value("float64")),
                    "within": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, masks: Any = None) -> None:
        """Measure some images."""
        masks = [None] * len(references) if masks is None else masks
        if not len(predictions) == len(references) == len(masks):
            raise ValueError(
                f"Got {len(predictions)} normal maps, {len(references)} references and {len(masks)} masks; "
                "expected as many of each."
            )
        rows: dict[str, list] = {"histogram": [], "sums_deg": [], "within": []}
        for image, truth, mask in zip(predictions, references, masks, strict=True):
            angles = angles_deg(_floats(image), _floats(truth), None if mask is None else _floats(mask))
            bins = np.minimum((angles / BIN_WIDTH_DEG).astype(np.int64), NUM_BINS - 1)  # 180 degrees: the last bin
            rows["histogram"].append(np.bincount(bins, minlength=NUM_BINS))
            rows["sums_deg"].append([angles.sum(), (angles**2).sum()])
            rows["within"].append([(angles < limit).sum() for limit in LIMITS_DEG.values()])
        super().add_batch(**rows)

    def add(self, *, prediction: Any = None, reference: Any = None, mask: Any = None) -> None:
        """Measure one image."""
        self.add_batch(predictions=[prediction], references=[reference], masks=None if mask is None else [mask])

    def compute(self, *, predictions: Any = None, references: Any = None, masks: Any = None) -> dict[str, Any]:
        """Pool what was added, and these images too."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, masks=masks)
        return super().compute()

    def _compute(self, histogram, sums_deg, within) -> dict[str, Any]:
        counts = np.sum(histogram, axis=0)
        num_pixels = int(counts.sum())
        if num_pixels == 0:
            raise ValueError(f"None of the {len(histogram)} images has a valid pixel: check masks and references.")
        middle_bin = int(np.searchsorted(np.cumsum(counts), num_pixels / 2))
        angle_sum, square_sum = np.sum(sums_deg, axis=0) / num_pixels
        shares = 100.0 * np.sum(within, axis=0) / num_pixels
        return {
            "mean": float(angle_sum),
            "median": (middle_bin + 0.5) * BIN_WIDTH_DEG,
            "rmse": float(np.sqrt(square_sum)),
            **dict(zip(LIMITS_DEG, shares.tolist(), strict=True)),
            "num_pixels": num_pixels,
        }

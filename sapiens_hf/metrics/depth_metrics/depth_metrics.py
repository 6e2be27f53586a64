"""Depth errors: measured per image over its valid pixels, then averaged over images.

Formulas: mmseg `DepthMetric` in the original repository (spec "Metrics"), Eigen et al. 2014 (arXiv:1406.2283). The
alignment is the per-image scale and shift of the Sapiens paper's protocol: least squares over the valid pixels.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

NAMES = ("rmse", "rmse_log", "abs_rel", "sq_rel", "log10", "silog", "delta1", "delta2", "delta3")
ALIGNMENTS = ("none", "scale_shift")
# Logarithms and ratios need a positive depth; the customary floor of depth benchmarks, in the unit of the reference.
MIN_PREDICTION = 1e-3

_DESCRIPTION = "Depth errors per image, averaged over images, with and without scale-and-shift alignment."

_INPUTS = """
Args:
    predictions: depth maps (height, width), one per image; sizes may differ between images.
    references: true depths of the same sizes. Pixels with 0 < depth < infinity count.
    masks: bool maps of the same sizes, e.g. the person; only true pixels count. Default: all.
    align (str, in `compute`): "none", or "scale_shift" to fit `scale * prediction + shift` to each image first.

Returns:
    rmse, rmse_log, abs_rel, sq_rel, log10, silog: lower is better; delta1, delta2, delta3: shares of pixels with
    max(p / t, t / p) < 1.25, 1.25^2, 1.25^3, higher is better. num_images: images that counted; num_empty: images
    without a valid pixel, which are left out.
    A prediction below 0.001, negative ones included, counts as 0.001 in rmse_log, log10, silog and the deltas.
"""


def align_scale_shift(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return `scale * prediction + shift` nearest to the reference in the least-squares sense (1-D float64 arrays).

    A constant prediction has no scale and becomes the mean of the reference.
    """
    centred = prediction - prediction.mean()
    variance = (centred**2).mean()
    scale = (centred * reference).mean() / variance if variance > 0 else 0.0
    return scale * centred + reference.mean()


def depth_errors(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """Errors in the order of `NAMES` over the valid pixels of one image (1-D float64 arrays, references > 0)."""
    error = prediction - reference
    positive = np.maximum(prediction, MIN_PREDICTION)
    log_error = np.log(positive) - np.log(reference)
    ratio = np.maximum(positive / reference, reference / positive)
    log_mean_square = (log_error**2).mean()
    values = (
        np.sqrt((error**2).mean()),
        np.sqrt(log_mean_square),
        (np.abs(error) / reference).mean(),
        (error**2 / reference).mean(),
        np.abs(log_error).mean() / np.log(10),
        np.sqrt(log_mean_square - 0.5 * log_error.mean() ** 2),
        *((ratio < 1.25**power).mean() for power in (1, 2, 3)),
    )
    return [float(value) for value in values]


def valid_pixels(prediction: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Select the pixels that count.

    Returns:
        Two 1-D float64 arrays: predictions and references.

    Raises:
        ValueError: if sizes differ, a map has several channels, the reference is NaN inside the mask, or a prediction
            that counts is not finite.
    """
    if prediction.shape != reference.shape or (mask is not None and mask.shape != reference.shape):
        sizes = f"prediction {prediction.shape}, reference {reference.shape}"
        sizes += "" if mask is None else f", mask {mask.shape}"
        raise ValueError(
            f"The sizes of one image differ: {sizes}. Resize predictions with "
            "post_process_depth_estimation(target_sizes=...), never the reference."
        )
    if reference.ndim > 2 and 1 not in (reference.shape[0], reference.shape[-1]):
        raise ValueError(f"A map is {reference.shape}; expected depth (height, width).")
    inside = np.ones(reference.shape, dtype=bool) if mask is None else mask.astype(bool)
    if np.isnan(reference[inside]).any():
        count = int(np.isnan(reference[inside]).sum())
        raise ValueError(f"A reference is NaN at {count} pixels. Mask them out, or set them to 0 (no depth known).")
    inside &= (reference > 0) & (reference < np.inf)
    prediction, reference = prediction[inside], reference[inside]
    if not np.isfinite(prediction).all():
        count = int((~np.isfinite(prediction)).sum())
        raise ValueError(f"A prediction is NaN or infinite at {count} pixels that count; expected finite depths.")
    return prediction, reference


def _floats(value: Any) -> np.ndarray:
    return value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)


class DepthMetrics(evaluate.Metric):
    """Depth errors. `add_batch` stores eighteen numbers per image: the errors with and without alignment."""

    def _info(self) -> evaluate.MetricInfo:
        errors = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(dict.fromkeys(ALIGNMENTS, errors)),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, masks: Any = None) -> None:
        """Measure some images."""
        masks = [None] * len(references) if masks is None else masks
        if not len(predictions) == len(references) == len(masks):
            counts = f"{len(predictions)} predictions, {len(references)} references and {len(masks)} masks"
            raise ValueError(f"Got {counts}; expected one of each per image.")
        rows: dict[str, list] = {name: [] for name in ALIGNMENTS}
        for prediction, truth, mask in zip(predictions, references, masks, strict=True):
            inside = None if mask is None else _floats(mask)
            predicted, true = valid_pixels(_floats(prediction), _floats(truth), inside)
            rows["none"].append(depth_errors(predicted, true) if len(true) else [])
            aligned = align_scale_shift(predicted, true) if len(true) else true
            rows["scale_shift"].append(depth_errors(aligned, true) if len(true) else [])
        super().add_batch(**rows)

    def add(self, *, prediction: Any = None, reference: Any = None, mask: Any = None) -> None:
        """Measure one image."""
        self.add_batch(predictions=[prediction], references=[reference], masks=None if mask is None else [mask])

    def compute(
        self, *, predictions: Any = None, references: Any = None, masks: Any = None, align: str = "none"
    ) -> dict[str, Any]:
        """Average what was added, and these images too."""
        if align not in ALIGNMENTS:
            raise ValueError(f"align is {align!r}, expected one of {', '.join(ALIGNMENTS)}.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, masks=masks)
        return super().compute(align=align)

    def _compute(self, align, **errors) -> dict[str, Any]:
        measured = [image for image in errors[align] if image]
        if not measured:
            raise ValueError(f"None of the {len(errors[align])} images has a valid pixel: check masks and references.")
        means = dict(zip(NAMES, np.mean(measured, axis=0).tolist(), strict=True))
        return {**means, "num_images": len(measured), "num_empty": len(errors[align]) - len(measured)}

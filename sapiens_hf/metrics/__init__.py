"""Metrics of the four tasks as `evaluate` modules, one folder each: `evaluate.load(folder)` works on each alone."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate

METRICS = ("mean_iou", "depth_metrics", "normal_metrics", "keypoint_ap", "pck")


def load_metric(name: str, **kwargs: Any) -> evaluate.EvaluationModule:
    """Load one of this package's metrics, offline.

    Args:
        name: one of `METRICS`.
        kwargs: passed on to `evaluate.load`, e.g. `num_process`, `process_id` and `experiment_id`.

    Raises:
        ImportError: if the `evaluate` package is not installed.
        ValueError: if there is no metric of that name.
    """
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(METRICS)}."
        raise ValueError(f"There is no metric named {name!r}. {hint}")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(
            'Metrics need the `evaluate` package, which is not installed. Run `pip install "sapiens_hf[eval]"`.'
        ) from error
    return evaluate.load(str(Path(__file__).parent / name), **kwargs)

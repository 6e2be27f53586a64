"""normal_metrics against the golden numbers, known angles, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf.metrics import load_metric

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def metric():
    return load_metric("normal_metrics")


def tilted(angles_deg):
    """Normals (3, height, width) at these angles from the z axis."""
    radians = np.radians(angles_deg)
    return np.stack([np.sin(radians), np.zeros_like(radians), np.cos(radians)])


def test_equals_the_golden_numbers(metric):
    golden = np.load(GOLDEN / "metric_normal_metrics_sapiens2.npz")
    result = metric.compute(predictions=golden["pred"], references=golden["gt"], masks=golden["mask"][:, 0])
    names = {"mean": "normal_mae", "median": "normal_median_deg", "rmse": "normal_rmse", "within_5": "within_5_0_deg"}
    names |= {"within_11_25": "within_11_25_deg", "within_22_5": "within_22_5_deg", "within_30": "within_30_0_deg"}
    for ours, theirs in names.items():
        assert result[ours] == pytest.approx(float(golden[f"metric.{theirs}"]), rel=1e-6), ours


def test_known_angles(metric):
    angles = np.array([[1.0, 6.0, 12.0, 24.0, 40.0]])
    reference = tilted(np.zeros((1, 5)))
    result = metric.compute(predictions=[tilted(angles)], references=[reference])
    assert result["mean"] == pytest.approx(angles.mean())
    assert result["rmse"] == pytest.approx(np.sqrt((angles**2).mean()))
    assert result["median"] == pytest.approx(12.0, abs=0.25)
    assert [result[k] for k in ("within_5", "within_11_25", "within_22_5", "within_30")] == [20, 40, 60, 80]
    assert result["num_pixels"] == 5


def test_lengths_do_not_matter_and_opposite_vectors_are_180_degrees_apart(metric):
    reference = tilted(np.zeros((2, 3)))
    assert metric.compute(predictions=[7 * reference], references=[0.1 * reference])["mean"] == 0.0
    assert metric.compute(predictions=[-reference], references=[reference])["mean"] == pytest.approx(180.0)
    assert metric.compute(predictions=[0 * reference], references=[reference])["mean"] == pytest.approx(90.0)


def test_pools_pixels_and_not_images(metric):
    zero = tilted(np.zeros((1, 3)))
    predictions = [zero, tilted(np.full((2, 4), 20.0))]
    references = [zero, tilted(np.zeros((2, 4)))]
    result = metric.compute(predictions=predictions, references=references)
    assert result["mean"] == pytest.approx(20.0 * 8 / 11)


def test_only_pixels_of_the_mask_with_a_true_vector_count(metric):
    reference = tilted(np.zeros((1, 4)))
    reference[:, 0, 1] = 0.0
    prediction = tilted(np.array([[10.0, 50.0, 60.0, 30.0]]))
    prediction[:, 0, 1] = np.nan
    mask = np.array([[True, True, False, True]])
    result = metric.compute(predictions=[torch.tensor(prediction)], references=[reference], masks=[mask])
    assert result["mean"] == pytest.approx(20.0)
    assert result["num_pixels"] == 2
    reference[:, 0, 0] = -1000  # what training labels hold where nobody is
    result = metric.compute(predictions=[torch.tensor(prediction)], references=[reference], masks=[mask])
    assert result["mean"] == pytest.approx(30.0) and result["num_pixels"] == 1


def test_streaming_equals_one_call(metric):
    rng = np.random.default_rng(2)
    maps = [rng.normal(size=(2, 3, 5, 4 + k)) for k in range(2)]
    masks = [rng.random((5, 4 + k)) < 0.6 for k in range(2)]
    at_once = metric.compute(predictions=[m[0] for m in maps], references=[m[1] for m in maps], masks=masks)
    metric.add(prediction=maps[0][0], reference=maps[0][1], mask=masks[0])
    metric.add_batch(predictions=[maps[1][0]], references=[maps[1][1]], masks=masks[1:])
    assert metric.compute() == at_once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": [np.ones((4, 5, 3))]}, "transpose"),
        ({"predictions": [np.ones((3, 5, 4))]}, r"prediction \(3, 5, 4\), reference \(3, 4, 5\)"),
        ({"masks": [np.ones((5, 4), bool)]}, r"mask \(5, 4\)"),
        ({"predictions": [np.full((3, 4, 5), np.nan)]}, "prediction is NaN or infinite at 20 pixels"),
        ({"references": [np.full((3, 4, 5), np.inf)]}, "reference is NaN or infinite at 20 pixels"),
        ({"predictions": []}, "0 normal maps"),
        ({"masks": [np.zeros((4, 5), bool)]}, "None of the 1 images"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {"predictions": [np.ones((3, 4, 5))], "references": [np.ones((3, 4, 5))], "masks": None, **changes}
    with pytest.raises(ValueError, match=message):
        load_metric("normal_metrics").compute(**arguments)

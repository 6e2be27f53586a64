"""depth_metrics against the golden numbers, hand-made cases, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf.metrics import load_metric

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = {f"delta{k}": f"d{k}" for k in (1, 2, 3)}


@pytest.fixture(scope="module")
def metric():
    return load_metric("depth_metrics")


def depth_maps(seed=3):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 4.0, size) for size in ((7, 5), (4, 9))]


def test_equals_the_golden_numbers(metric):
    golden = np.load(GOLDEN / "metric_depth_metrics.npz")
    result = metric.compute(predictions=golden["pred"], references=golden["gt"], masks=golden["gt"] < 3.0)
    for name in ("rmse", "rmse_log", "abs_rel", "sq_rel", "log10", "silog", "delta1", "delta2", "delta3"):
        assert result[name] == pytest.approx(float(golden[f"metric.{GOLDEN_NAMES.get(name, name)}"]), rel=1e-6), name
    assert result["num_images"] == 3


def test_known_values_of_a_doubled_depth(metric):
    truth = depth_maps()[0]
    result = metric.compute(predictions=[2 * truth], references=[truth])
    assert result["abs_rel"] == pytest.approx(1.0)
    assert result["rmse_log"] == pytest.approx(np.log(2))
    assert result["log10"] == pytest.approx(np.log10(2))
    assert result["silog"] == pytest.approx(np.log(2) * np.sqrt(0.5))
    assert result["rmse"] == pytest.approx(np.sqrt((truth**2).mean()))
    assert result["sq_rel"] == pytest.approx(truth.mean())
    assert [result[f"delta{k}"] for k in (1, 2, 3)] == [0.0, 0.0, 0.0]


def test_images_weigh_the_same_whatever_their_size(metric):
    truths = depth_maps()
    result = metric.compute(predictions=[1.5 * truths[0], 2.5 * truths[1]], references=truths)
    assert result["abs_rel"] == pytest.approx((0.5 + 1.5) / 2)


def test_alignment_undoes_any_scale_and_shift_per_image(metric):
    truths = depth_maps()
    predictions = [0.1 * truths[0] + 7.0, -3.0 * truths[1]]
    aligned = metric.compute(predictions=predictions, references=truths, align="scale_shift")
    assert aligned["rmse"] < 1e-12
    assert aligned["delta1"] == 1.0


def test_alignment_is_the_least_squares_fit_on_the_mask(metric):
    rng = np.random.default_rng(5)
    truth, prediction, mask = rng.uniform(1, 3, (6, 8)), rng.uniform(1, 3, (6, 8)), rng.random((6, 8)) < 0.5
    columns = np.stack([prediction[mask], np.ones(mask.sum())], axis=1)
    fit = np.linalg.lstsq(columns, truth[mask], rcond=None)[0]
    expected = np.sqrt(((columns @ fit - truth[mask]) ** 2).mean())
    result = metric.compute(predictions=[prediction], references=[truth], masks=[mask], align="scale_shift")
    assert result["rmse"] == pytest.approx(expected, rel=1e-12)


def test_a_constant_prediction_is_aligned_to_the_mean(metric):
    truth = depth_maps()[1]
    result = metric.compute(predictions=[np.full(truth.shape, 9.0)], references=[truth], align="scale_shift")
    assert result["rmse"] == pytest.approx(truth.std())


def test_only_pixels_with_a_depth_inside_the_mask_count(metric):
    truth = np.array([[1.0, 2.0, 0.0], [-1.0, np.inf, 4.0]])
    prediction = np.array([[1.0, 4.0, np.nan], [np.nan, np.nan, 99.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    result = metric.compute(predictions=[torch.tensor(prediction)], references=[truth], masks=[mask])
    assert result["abs_rel"] == pytest.approx(0.5)


def test_negative_predictions_are_wrong_and_never_nan(metric):
    truth = np.full((2, 3), 0.5)
    result = metric.compute(predictions=[-truth], references=[truth])
    assert [result[f"delta{k}"] for k in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert result["abs_rel"] == 2.0
    assert result["rmse_log"] == pytest.approx(np.log(500))
    assert np.isfinite(list(result.values())).all()


def test_streaming_equals_one_call(metric):
    truths = depth_maps()
    predictions = [truth[::-1] for truth in truths]
    masks = [truth > 1 for truth in truths]
    at_once = metric.compute(predictions=predictions, references=truths, masks=masks, align="scale_shift")
    metric.add(prediction=predictions[0], reference=truths[0], mask=masks[0])
    metric.add_batch(predictions=predictions[1:], references=truths[1:], masks=masks[1:])
    assert metric.compute(align="scale_shift") == at_once


def test_images_without_a_valid_pixel_are_left_out_and_counted(metric):
    truth = depth_maps()[0]
    result = metric.compute(predictions=[truth, truth], references=[truth, np.zeros(truth.shape)])
    assert (result["num_images"], result["num_empty"]) == (1, 1)
    with pytest.raises(ValueError, match="None of the 1 images"):
        load_metric("depth_metrics").compute(predictions=[truth], references=[-truth])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": [np.ones((3, 4))]}, r"prediction \(3, 4\), reference \(4, 3\)"),
        ({"masks": [np.ones((3, 4), bool)]}, r"mask \(3, 4\)"),
        ({"predictions": [np.full((4, 3), np.nan)]}, "NaN or infinite at 12 pixels"),
        ({"references": [np.full((4, 3), np.nan)]}, "reference is NaN at 12 pixels"),
        ({"align": "median"}, "'median'.*scale_shift"),
        ({"masks": []}, "0 masks"),
    ],
)
def test_bad_input_is_refused(metric, changes, message):
    arguments = {"predictions": [np.ones((4, 3))], "references": [np.ones((4, 3))], "masks": None, **changes}
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)

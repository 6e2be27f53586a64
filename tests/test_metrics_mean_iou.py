"""mean_iou against the golden numbers, evaluate's conventions, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf.metrics import load_metric

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def metric():
    return load_metric("mean_iou")


def random_maps(seed=0, num_labels=7):
    rng = np.random.default_rng(seed)
    sizes = [(11, 5), (6, 9), (3, 8)]
    return [[rng.integers(0, num_labels, size).astype(np.uint8) for size in sizes] for _ in range(2)]


def test_equals_the_golden_numbers(metric):
    golden = np.load(GOLDEN / "metric_seg_metrics.npz")
    result = metric.compute(predictions=golden["pred"], references=golden["gt"], num_labels=6)
    np.testing.assert_allclose(result["per_category_iou"], golden["perclass.IoU"], rtol=1e-6)
    np.testing.assert_allclose(result["per_category_accuracy"], golden["perclass.Acc"], rtol=1e-6)
    for name, summary in (("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("overall_accuracy", "aAcc")):
        assert round(100 * result[name], 2) == golden[f"summary.{summary}"]


def test_streaming_equals_one_call_and_forgets_afterwards(metric):
    predictions, references = random_maps()
    at_once = metric.compute(predictions=predictions, references=references, num_labels=7)
    metric.add(prediction=torch.tensor(predictions[0]), reference=torch.tensor(references[0]))
    metric.add_batch(predictions=predictions[1:2], references=references[1:2])
    streamed = metric.compute(predictions=predictions[2:], references=references[2:], num_labels=7)
    assert streamed == at_once
    assert metric.compute(predictions=predictions, references=references, num_labels=7) == at_once


def test_sums_over_the_data_set_and_not_over_images(metric):
    references = [np.zeros((1, 8), int), np.array([[0, 1]])]
    predictions = [np.zeros((1, 8), int), np.array([[1, 1]])]
    result = metric.compute(predictions=predictions, references=references, num_labels=2)
    assert result["per_category_iou"] == [8 / 9, 1 / 2]
    assert result["per_category_accuracy"] == [8 / 9, 1.0]
    assert result["overall_accuracy"] == 9 / 10


def test_ignored_pixels_do_not_count_whatever_is_predicted_there(metric):
    reference = np.array([[0, 1, -100], [1, -100, 0]])
    prediction = np.array([[0, 1, 9], [0, 1, 0]])
    result = metric.compute(predictions=[prediction], references=[reference], num_labels=2, ignore_index=-100)
    assert result["overall_accuracy"] == 3 / 4


def test_absent_classes_are_nan_or_the_number_asked_for(metric):
    maps = [np.array([[0, 2, 2]])]
    result = metric.compute(predictions=maps, references=maps, num_labels=4)
    assert np.isnan(result["per_category_iou"]).tolist() == [False, True, False, True]
    assert result["mean_iou"] == 1.0
    filled = metric.compute(predictions=maps, references=maps, num_labels=4, nan_to_num=0.0)
    assert filled["per_category_iou"] == [1.0, 0.0, 1.0, 0.0]
    assert filled["mean_iou"] == 1.0


def test_stores_the_histogram_and_not_the_map(metric, tmp_path):
    small = load_metric("mean_iou", cache_dir=str(tmp_path))
    labels = np.random.default_rng(1).integers(0, 3, (512, 384))
    for _ in range(8):
        small.add(prediction=labels, reference=labels)
    small.compute(num_labels=3)
    assert len(small) == 0
    small.add(prediction=labels, reference=labels)
    small.writer.finalize()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.arrow")) < 4096


def test_an_empty_map_counts_nothing(metric):
    predictions = [np.zeros((0, 4), int), np.array([[1]])]
    assert metric.compute(predictions=predictions, references=predictions, num_labels=2)["overall_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "error", "message"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), ValueError, r"\(3, 4\).*\(4, 3\)"),
        (np.zeros((3, 4)), np.zeros((3, 4), int), TypeError, "argmax"),
        (np.zeros((3, 4), int), np.full((3, 4), 70000), ValueError, "70001"),
        (np.full((3, 4), 5), np.zeros((3, 4), int), ValueError, r"prediction holds the labels \[5\]"),
        (np.zeros((3, 4), int), np.full((3, 4), -1), ValueError, r"reference holds the labels \[-1\]"),
        (np.zeros((3, 4), int), np.full((3, 4), 255), ValueError, "ignore_index=255"),
    ],
)
def test_bad_input_is_refused(prediction, reference, error, message):
    with pytest.raises(error, match=message):
        load_metric("mean_iou").compute(predictions=[prediction], references=[reference], num_labels=5)


def test_as_many_predictions_as_references(metric):
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.add_batch(predictions=[np.zeros((2, 3), int)] * 2, references=[np.zeros((2, 3), int)])

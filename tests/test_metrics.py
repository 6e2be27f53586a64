"""Every metric folder loads offline, by name and as a folder, and works across processes."""

import threading
from pathlib import Path

import numpy as np
import pytest

from sapiens_hf import metrics
from sapiens_hf.metrics import METRICS, load_metric


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_loads_without_a_network(name, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a metric opened a connection"))
    metric = load_metric(name)
    assert isinstance(metric, evaluate.Metric)
    assert "predictions" in metric.inputs_description


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="'mean_iou'"):
        load_metric("mean_iu")
    with pytest.raises(ValueError, match="keypoint_ap"):
        load_metric("zzz")


def test_a_missing_evaluate_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"sapiens_hf\[eval\]"):
        load_metric("pck")


def test_the_list_of_metrics_is_what_the_folder_holds():
    root = Path(metrics.__file__).parent
    assert sorted(METRICS) == sorted(script.stem for script in root.glob("*/*.py") if script.stem != "__init__")


@pytest.mark.parametrize("name", METRICS)
def test_compute_before_add_says_so(name):
    required = {"mean_iou": {"num_labels": 3}, "keypoint_ap": {"keypoint_set": "coco"}}.get(name, {})
    with pytest.raises(ValueError, match="add_batch"):
        load_metric(name).compute(**required)


def test_two_processes_equal_one(tmp_path):
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 5, (2, 6 + k, 4)) for k in range(4)]
    alone = load_metric("mean_iou").compute(
        predictions=[pair[0] for pair in maps], references=[pair[1] for pair in maps], num_labels=5
    )
    results = [None, None]

    def work(rank):
        metric = load_metric(
            "mean_iou", num_process=2, process_id=rank, experiment_id="two", cache_dir=str(tmp_path), timeout=30
        )
        for prediction, truth in maps[rank::2]:
            metric.add(prediction=prediction, reference=truth)
        results[rank] = metric.compute(num_labels=5)

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == [alone, None]

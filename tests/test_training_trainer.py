"""The examples of docs/training.md for `transformers.Trainer`, run as they stand on eight pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import CLASSES, DECONVS, NAMES, write_tree
from transformers import pipeline

import sapiens_hf
from training.build import MODEL_CLASSES
from training.hub import PIPELINES
from training.trainer import TrainerMetrics

DOCS = Path(__file__).resolve().parents[1] / "docs" / "training.md"
LABELS = {"pose": len(NAMES), "segmentation": len(CLASSES), "depth": 1, "normal": 3}


def example(task: str, swaps: dict[str, str]) -> str:
    """The code of a task with these changes."""
    code = re.search(rf"<!-- trainer: {task} -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    for old, new in swaps.items():
        code = code.replace(old, new)
    return code


LAYOUTS = {
    'keypoint_layout("coco")': 'keypoint_layout("my_data/keypoints.layout.json")',
    'class_layout("goliath28")': 'class_layout("my_data/classes.layout.json")',
}
# Rates and lengths for a tiny model, and no augmentation, to overfit.
OVERFIT = LAYOUTS | {
    "options=PoseAugmentation())": "options=NO_POSE_AUGMENTATION)",
    "learning_rate=5e-5": "learning_rate=5e-3",
    "lr=5e-5": "lr=5e-3",
    "num_train_epochs=10": "num_train_epochs=45",
    "logging_steps=10": "logging_steps=1, disable_tqdm=True",
    "augment = partial(augment_dense, size=size": "augment = partial(fit_to_network, size=size)  # ",
}


def run_example(task: str, swaps: dict[str, str]) -> dict:
    """Run the code of a task on a small tree in the working folder; returns its variables."""
    write_tree(Path("my_data"))
    write_tree(Path("my_data_val"), count=3)
    torch.manual_seed(0)
    config = sapiens_hf.SapiensConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 48],
        deconv_out_channels=[int(n) for n in DECONVS[task][1:-1].split(",")], conv_out_channels=[16],
        num_labels=LABELS[task] + (task == "pose"), head_dropout2d_prob=0,
    )  # fmt: skip
    getattr(sapiens_hf, MODEL_CLASSES[task])(config).save_pretrained("my_checkpoint")
    names: dict = {}
    exec(compile(example(task, swaps), f"docs/training.md, {task}", "exec"), names)
    return names


@pytest.mark.parametrize("task", ("pose", "segmentation", "depth", "normal"))
def test_example_with_its_own_augmentation(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_example(task, LAYOUTS | {"num_train_epochs=10": "max_steps=2"})
    assert names["trainer"].state.global_step == 2 and np.isfinite(names["results"]["eval_loss"])


@pytest.mark.parametrize("task", ("pose", "segmentation", "depth", "normal"))
def test_example(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_example(task, OVERFIT)
    curve = [line["loss"] for line in names["trainer"].state.log_history if "loss" in line]
    assert len(curve) == 90 and np.mean(curve[-4:]) < 0.5 * np.mean(curve[:4])
    expected = {
        "pose": "eval_crop_pck",
        "segmentation": "eval_mean_iou",
        "depth": "eval_delta1",
        "normal": "eval_mean",
    }
    value = names["results"][expected[task]]
    assert 0 < value < 40 if task == "normal" else 0 <= value <= 1
    if task == "segmentation":
        assert not (tmp_path / "runs" / "trainer" / "adapter_model.safetensors").exists()
        assert value > 0.3
    pipeline(PIPELINES[task], model="runs/trainer")


def prediction(logits, labels):
    return type("Prediction", (), {"predictions": logits, "label_ids": labels})


@pytest.mark.parametrize("task", ("pose", "segmentation", "depth", "normal"))
def test_metrics_of_true_answers(task):
    """What the labels themselves score, over two batches; what is kept of a batch does not grow."""
    rng = np.random.default_rng(0)
    metrics = TrainerMetrics(task, num_labels=7)
    for last in (False, True):
        if task == "pose":
            from sapiens_hf.heatmaps_sapiens import encode_heatmaps

            points = torch.from_numpy(rng.uniform(20, 40, (2, 5, 2))).float()
            labels, _ = encode_heatmaps(points, torch.ones(2, 5), (64, 48), (32, 24), sigma=2.0)
            labels[0, 3] = 0
            shrunk = metrics.shrink(labels * 0.9, labels)
            assert shrunk.shape == (2, 5, 2)
        elif task == "segmentation":
            labels = torch.from_numpy(rng.integers(0, 7, (2, 6, 4)))
            logits = torch.nn.functional.one_hot(labels, 7).permute(0, 3, 1, 2).float()
            labels[0, 0] = 255
            shrunk = metrics.shrink(logits, labels)
            assert shrunk.dtype == torch.uint8 and shrunk.shape == (2, 6, 4)
        elif task == "depth":
            labels = torch.from_numpy(rng.uniform(0, 1, (2, 6, 4))).float()
            labels[:, 0] = -1
            shrunk = metrics.shrink(0.2 * labels + 3, labels)
        else:
            labels = torch.from_numpy(rng.normal(size=(2, 3, 6, 4))).float()
            labels /= labels.norm(dim=1, keepdim=True)
            labels[:, :, 0] = -1000
            shrunk = metrics.shrink(2 * labels, labels)
        results = metrics(prediction(shrunk.numpy(), labels.numpy()), compute_result=last)
        assert (results == {}) != last
    if task == "pose":
        assert list(results) == ["crop_pck"] and metrics.evaluator.totals.sum() == 0
        outside, _ = encode_heatmaps(
            torch.tensor([[[-6.0, 30.0], [20.0, 30.0]]]), torch.ones(1, 2), (64, 48), (32, 24), 2.0
        )
        guess = metrics.shrink(outside, outside)  # right for the map's bump, wrong for the keypoint outside
        guess[0, 0] += 99
        assert metrics(prediction(guess.numpy(), outside.numpy()), compute_result=True) == {"crop_pck": 1.0}
    best = {"pose": ("crop_pck", 1), "segmentation": ("mean_iou", 1), "depth": ("delta1", 1), "normal": ("mean", 0)}[
        task
    ]
    assert results[best[0]] == pytest.approx(best[1], abs=0.03)
    assert (metrics.evaluator.totals == 0).all()

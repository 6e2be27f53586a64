"""The loop: restarts, several processes, unusable losses, full disks, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import arguments, write_tree

from training import checkpoints, loop
from training.checkpoints import SavingError, TrainerState, checkpoint_folder, find_checkpoint, read_metrics
from training.data import StepPlan
from training.finetune_depth import main as train_depth
from training.finetune_normal import main as train_normal
from training.finetune_pose import main as train_pose
from training.loop import LossGuard, StopOnSignal, TrainingStoppedError, step_seed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def test_kill_and_resume_give_the_same_curve(data, tmp_path):
    """A run killed with SIGKILL while it trains and resumed equals one left alone, in every loss and weight."""
    steps = 40
    options = ["--save_every", "3", "--gradient_accumulation_steps", "2"]
    dropout = ["hidden_dropout_prob=0.1"]  # chance inside the model must follow too

    def line(output):
        given = arguments("pose", data, output, *options, steps=steps)
        place = given.index("--config_overrides") + 1
        return given[:place] + dropout + given[place:]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = ROOT / "training" / "finetune_pose.py"
    process = subprocess.Popen(
        [sys.executable, str(script), *line(killed)], env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(metrics.read_text().splitlines())
    assert 5 <= done < steps
    # What a kill in the middle of saving leaves behind, which must not be picked, and a cut line.
    half = checkpoint_folder(killed, 39)
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    with metrics.open("a") as file:
        file.write('{"step": 7, "lo')
    assert find_checkpoint("latest", killed).name < half.name

    train_pose([*line(killed), "--resume_from_checkpoint", "latest"])
    train_pose(line(whole))
    assert losses(killed) == losses(whole)
    assert [step for step, _ in losses(whole)] == list(range(1, steps + 1))
    first, second = (load_file(run / "model.safetensors") for run in (killed, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)

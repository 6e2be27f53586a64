"""The study of the paper's claims and the demonstration, at a size that shows only that they run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from training import generic_images
from training.experiments import Run, execute, execute_all, first_pictures, pictures_of_anything_else
from training.generic_images import generic_image, photo_files, write_generic
from training.pretrain_demo import summary
from training.pretrain_mae import main as pretrain
from training.study import SMOKE, Network, Study, compare, describe, main, make_arms, summarise


def test_the_study_runs_and_goes_on(tmp_path):
    """All three figures; a second call does nothing again, in two processes as in one."""
    rows = main(["--output_dir", str(tmp_path), "--smoke", "--num_processes", "1"])
    assert (
        json.loads((tmp_path / "results.json").read_text()).keys() == rows.keys() == {"data", "images", "parameters"}
    )
    assert [(row["task"], row["label"]) for row in rows["data"]] == [
        (task, label) for task in ("pose", "normal") for label in ("random", "generic", "people")
    ]
    assert [(row["task"], row["label"]) for row in rows["parameters"]] == [
        (task, label) for task in ("normal", "pose") for label in ("16x1", "16x2", "32x1", "32x2")
    ]
    assert all(math.isfinite(row["mean"]) and len(row["scores"]) == 1 for part in rows.values() for row in part)
    people = {row["task"]: row["mean"] for row in rows["data"] if row["label"] == "people"}
    assert {row["task"]: row["mean"] for row in rows["images"]} == people  # the same runs, done once
    for name in rows:
        with Image.open(tmp_path / f"{name}.png") as figure:
            assert figure.size[0] > figure.size[1] > 300
    text = (tmp_path / "study.md").read_text()
    assert "one seed says nothing" in text and "--figure parameters" in text

    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    done.pop(tmp_path / "results.json")
    arms = make_arms(SMOKE, tmp_path, ["images"], 1)
    assert execute_all([arm.finetuning for arm in arms], 2) == [execute(arm.finetuning) for arm in arms]
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())


def test_larger_networks_get_fewer_steps_unless_images_are_equal(tmp_path, monkeypatch):
    for name in ("pictures_of_people", "labelled_people"):
        monkeypatch.setattr(f"training.study.{name}", lambda folder, *_: folder)
    steps = {}
    for equal_images in (False, True):
        arms = make_arms(Study(seeds=(0,), equal_images=equal_images), tmp_path, ["parameters"], 1)
        given = [dict(zip(arm.pretraining.arguments, arm.pretraining.arguments[1:])) for arm in arms]
        steps[equal_images] = [int(one["--max_steps"]) for one in given[:4]]  # the other task has the same
    assert steps[True] == [1200] * 4
    assert steps[False][2] == 1200 and steps[False] == sorted(steps[False], reverse=True)
    flops = [network.flops(Study().scale.size) for network in Study().networks]
    spent = [number * cost for number, cost in zip(steps[False], flops)]
    assert max(spent) / min(spent) < 1.01
    assert Network(192, 6).config((128, 96)).num_attention_heads == 12


def row(label, scores, task="pose"):
    spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
    mean = float(np.mean(scores))
    return {"task": task, "metric": "m", "label": label, "mean": mean, "spread": spread, "scores": scores}


def test_verdicts_say_when_a_claim_does_not_show():
    low, high, unsure = row("a", [0.1, 0.11, 0.12]), row("b", [0.5, 0.51, 0.52]), row("c", [0.0, 0.11, 0.3])
    assert compare("pose", low, high) == ("shows", pytest.approx(0.4))
    assert compare("pose", high, low) == ("the opposite shows", pytest.approx(-0.4))
    assert compare("normal", high, low) == ("shows", pytest.approx(0.4))  # degrees: lower is better
    assert compare("pose", low, unsure)[0] == "does not show: within the spread"
    assert compare("pose", row("a", [1.0]), row("b", [2.0]))[0] == "one seed says nothing"
    text = describe({"data": [low, unsure, high]}, Study())
    assert "- pose: c over a: gain +0.0267, does not show" in text
    assert "- pose: b over a: gain +0.4000, shows." in text
    runs = [Run("pose", name, ()) for name in ("x", "y")]
    arms = [type("Arm", (), dict(task="pose", label="l", finetuning=run)) for run in runs]
    (summed,) = summarise(arms, {"x": {"pck": 0.25}, "y": {"pck": 0.75}})
    assert summed["mean"] == 0.5 and summed["spread"] == pytest.approx(0.3536, abs=1e-4)


def test_pictures_without_people(tmp_path, monkeypatch):
    assert {"astronaut", "camera"}.isdisjoint(path.stem for path in photo_files()) and len(photo_files()) >= 5
    for kind in ("_place", "_texture", "_photo"):
        picture = getattr(generic_images, kind)(np.random.default_rng(3), 80, 56)
        assert picture.shape == (80, 56, 3) and picture.dtype == np.uint8 and picture.std() > 1
    pictures = [generic_image(5, index, (48, 40)) for index in range(4)]
    assert all(np.array_equal(one, generic_image(5, index, (48, 40))) for index, one in enumerate(pictures))
    assert not np.array_equal(pictures[0], pictures[1])
    write_generic(range(2), tmp_path / "some", 5, (48, 40))
    first = (tmp_path / "some" / "000000.png").stat()
    write_generic(range(3), tmp_path / "some", 5, (48, 40))
    assert len(list((tmp_path / "some").iterdir())) == 3
    assert (tmp_path / "some" / "000000.png").stat().st_ino == first.st_ino  # it stayed
    pictures_of_anything_else(tmp_path / "parts", 5, 4, (48, 40), workers=2)
    assert len(list((tmp_path / "parts").iterdir())) == 4
    assert (tmp_path / "parts" / "000001.png").read_bytes() == (tmp_path / "some" / "000001.png").read_bytes()
    with Image.open(tmp_path / "some" / "000001.png") as file:
        assert np.array_equal(np.asarray(file), pictures[1])
    links = first_pictures(tmp_path / "first", tmp_path / "some", 2)
    first_pictures(links, tmp_path / "some", 2)
    assert sorted(path.name for path in links.iterdir()) == ["000000.png", "000001.png"]


def test_demonstration(tmp_path, capsys):
    numbers = ["--num_images", "6", "--steps", "2", "--finetune_steps", "2", "--num_labels", "4", "--width", "32"]
    given = ["--demo", "--output_dir", str(tmp_path), "--task", "depth", *numbers, "--layers", "1"]
    scores = pretrain([*given, "--size", "64", "48"])
    assert scores.keys() == {"pretrained", "random"} and all(math.isfinite(value) for value in scores.values())
    said = capsys.readouterr().out
    assert "depth, rmse (lower is better): pretrained" in said and "this is one seed" in said
    with Image.open(tmp_path / "pretrained" / "pictures" / "step-00000002.png") as grid:
        assert grid.width == 3 * 48 + 8
    assert not json.loads((tmp_path / "pretrained" / "config.json").read_text())["norm_pix_loss"]
    assert "Pretraining is behind" in summary("normal", {"pretrained": 30.0, "random": 20.0}, tmp_path)

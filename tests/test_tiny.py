"""The small checkpoints of the repository, the demonstration on them, and the program that made them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open

import sapiens_hf
from sapiens_hf.hub import check_repository
from sapiens_hf.synthetic import SyntheticHumans
from training import tiny
from training.build import MODEL_CLASSES
from training.tiny import GOALS, RUNS, SHIPPED, Goal

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS, PEOPLE = ROOT / "checkpoints", ROOT / "examples" / "people"
FOLDERS = {task: CHECKPOINTS / f"tiny-{task}" for task in GOALS}


def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "docs" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", GOALS)
def test_shipped_folders_are_complete(task):
    folder = FOLDERS[task]
    card = check_repository(folder)
    assert card["license"] == "apache-2.0"
    text = (folder / "README.md").read_text()
    assert text.count("\n---\n") == 1 and text.count("library_name:") == 1
    stored = json.loads((folder / "training.json").read_text())
    goal = GOALS[task]
    for fact in (f"| {goal.metric} | {stored['results'][goal.metric]:.4f} |", f"seed {tiny.TRAIN_SEED}", goal.title):
        assert fact in text
    assert list(stored["runs"]) == tiny.chain(SHIPPED[task])
    for name, options in stored["runs"].items():
        leg = RUNS[name]
        assert (options["max_steps"], options["learning_rate"]) == (leg.max_steps, leg.learning_rate)
        assert str(options["model_name_or_path"] or None).split("/")[0] == str(leg.start)
        assert leg.keeps_head or leg.start is None or options["model_name_or_path"] == leg.start_encoder
        assert f"- {name}: {leg.max_steps} steps" in text
        assert not any(str(value).startswith("/") for value in options.values())
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}
    model = getattr(sapiens_hf, MODEL_CLASSES[task]).from_pretrained(folder)
    assert model.dtype == torch.float32  # what CPUs are fast in


def test_shipped_folders_are_small():
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) <= 16e6


def test_examples_are_what_the_seed_gives():
    """They are unseen: another seed than that of training."""
    recipe = json.loads((PEOPLE / "dataset.json").read_text())
    assert recipe["seed"] == tiny.VAL_SEED != tiny.TRAIN_SEED
    sample = SyntheticHumans(tiny.VAL_SEED, tiny.SIZE, tiny.PEOPLE, 1, crop=True)[0]
    assert Image.open(PEOPLE / "images" / "000000.png").size == tiny.SIZE[::-1]
    stored = json.loads((PEOPLE / "annotations" / "person_keypoints.json").read_text())["annotations"]
    assert len([person for person in stored if person["image_id"] == stored[0]["image_id"]]) == len(sample["boxes"])


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", "--output", str(tmp_path)])
    module = demo()
    with torch.no_grad():
        module.main()
    sheets = sorted(path.name for path in tmp_path.iterdir())
    assert sheets == [*(f"people_{number:06}.png" for number in range(6)), "photograph.png"]
    width, height = Image.open(tmp_path / sheets[0]).size
    assert width > 5 * 2 * tiny.SIZE[1] and height > 2 * 2 * tiny.SIZE[0]
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()[:1]}
    for task, goal in GOALS.items():
        training = json.loads((FOLDERS[task] / "training.json").read_text())
        assert Goal(**training["goal"]) == goal
        stored = training["results"][goal.metric]
        numbers = [float(word) for word in rows[task].split() if word.replace(".", "", 1).isdigit()]
        assert numbers[-2:] == [goal.value, pytest.approx(stored, abs=5e-4)]
        assert ("not met" in rows[task]) != goal.is_met(stored)


def test_the_program_makes_such_folders(tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests: it keeps the first precision
    given = ["--output_dir", str(tmp_path), "--steps", "1", "--num_train", "4", "--num_val", "2"]
    scores = tiny.main(given)
    assert set(scores) == set(GOALS) and "NOT met" in capsys.readouterr().out
    for task in GOALS:
        folder = tmp_path / "checkpoints" / f"tiny-{task}"
        check_repository(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in FOLDERS[task].iterdir())
    (tmp_path / "checkpoints" / "tiny-pose" / "README.md").unlink()
    weights = (tmp_path / "depth-1" / "model.safetensors").stat().st_mtime_ns
    again = tiny.main(given)  # runs that have ended are not done again
    for task in GOALS:
        assert again[task] == pytest.approx(scores[task], nan_ok=True)
    assert (tmp_path / "depth-1" / "model.safetensors").stat().st_mtime_ns == weights
    AcceleratorState._reset_state(reset_partial_state=True)


def test_runs_wait_for_what_they_start_from():
    assert tiny.chain("depth-2") == ["segmentation-1", "depth-1", "depth-2"]
    done: set[str] = set()
    for names in tiny.rounds():
        assert all(RUNS[name].start is None or RUNS[name].start in done for name in names)
        done.update(names)
    assert done == set(RUNS) and set(SHIPPED) == set(GOALS)


def test_stretched_patches_see_what_smaller_ones_saw(tmp_path):
    fields = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    config = sapiens_hf.SapiensConfig(image_size=[32, 24], patch_size=8, use_cls_token=False, **fields)
    sapiens_hf.SapiensModel(config).save_pretrained(tmp_path / "small")
    tiny.stretch(tmp_path / "small", 16, tmp_path / "large")
    small, large = (sapiens_hf.SapiensModel.from_pretrained(tmp_path / name) for name in ("small", "large"))
    assert (large.config.image_size, large.config.patch_size) == ([64, 48], 16)
    picture = torch.randn(2, 3, 32, 24)
    larger = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        expected, got = small(picture).last_hidden_state, large(larger).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    written = (tmp_path / "large" / "model.safetensors").stat().st_mtime_ns
    tiny.stretch(tmp_path / "small", 16, tmp_path / "large")  # it is there
    assert (tmp_path / "large" / "model.safetensors").stat().st_mtime_ns == written


def test_goals():
    assert Goal("mean", "", 15.0, higher_is_better=False).is_met(15.0)
    assert not Goal("mean", "", 15.0, higher_is_better=False).is_met(15.1)
    assert Goal("pck", "", 0.9).is_met(0.9) and not Goal("pck", "", 0.9).is_met(0.89)

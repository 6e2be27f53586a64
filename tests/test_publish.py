"""Publishing released checkpoints: names, resuming, what stops it, and the whole way for a few stand-ins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from zoo_rehearsal import HEADS, NAMESPACE, rehearsal_table, rehearse, stand_in

from conversion import publish as publish_module
from conversion.__main__ import main
from conversion.publish import STATE_FILE, find_recipes, publication_table, publish, target_name
from conversion.recipes import RECIPES
from sapiens_hf.hub import file_sha256

POSE, DEPTH, DETECTOR = "sapiens-pose-0.3b", "sapiens-depth-0.6b", "sapiens-pose-bbox-detector"


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A loopback Hub with stand-ins for two released files and the detector, used by this process."""
    with LoopbackHub() as hub:
        hub.patch(monkeypatch, tmp_path / "home")
        (tmp_path / "made").mkdir()
        for seed, recipe in enumerate(find_recipes([POSE, DEPTH, DETECTOR])):
            content = b"detector" if recipe.task == "detector" else stand_in(recipe, tmp_path / "made", seed)
            hub.add(recipe.repo, {recipe.file: content})
        yield hub


def run(tmp_path, *names, **options):
    lines: list[str] = []
    options = {"config_overrides": HEADS, "report": lines.append, **options}
    return publish(find_recipes(names), NAMESPACE, tmp_path / "work", **options), lines


def test_every_released_file_has_its_own_name():
    names = [target_name(recipe) for recipe in RECIPES]
    assert len(set(names)) == len(names) == len(RECIPES)
    assert {"sapiens-pretrain-0.3b", "sapiens-seg-2b-torchscript", "sapiens-pose-coco-wholebody-1b"} <= set(names)
    assert "sapiens-depth-2b-bfloat16" in names and all("_" not in name for name in names)


def test_recipes_are_found_by_each_of_their_names():
    recipe = next(r for r in RECIPES if target_name(r) == POSE)
    for name in (recipe.repo, recipe.file, Path(recipe.file).name, POSE):
        assert find_recipes([name]) == [recipe]
    assert find_recipes([recipe.repo, POSE]) == [recipe]
    assert len(find_recipes(["noahcao/sapiens-pose-coco"])) == 16
    assert find_recipes([], everything=True) == list(RECIPES)
    with pytest.raises(ValueError, match="'sapiens-pose-9b' is no released checkpoint"):
        find_recipes(["sapiens-pose-9b"])
    with pytest.raises(ValueError, match="--all"):
        find_recipes([])


def test_published_repository_states_its_source(online, tmp_path):
    results, lines = run(tmp_path, POSE, DETECTOR)
    pose, detector = results
    assert (pose.status, detector.status) == ("published", "left out")
    assert lines[0].startswith("[1/2] tester/sapiens-pose-0.3b: published") and "left out" in lines[1]
    files = online.files(pose.target, pose.commit)
    (tmp_path / "README.md").write_bytes(files["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    source = online.repositories["model", "facebook/sapiens-pose-0.3b"]
    for fact in (pose.sha256, source.refs["main"], "57.3", "the authors; not measured again here"):
        assert fact in card.text
    assert pose.revision == source.refs["main"] and pose.difference < 1e-4
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == "facebook/sapiens-pose-0.3b"
    assert card.data.eval_results[0].metric_value == 57.3
    assert not Path(pose.folder).exists()
    table = publication_table(results).splitlines()
    assert len(table) == 3 and "published" in table[1] and pose.commit[:8] in table[1]


def test_second_run_goes_on_where_the_first_stopped(online, tmp_path):
    run(tmp_path, POSE)
    before = len(online.requests)
    (pose, depth), _ = run(tmp_path, POSE, DEPTH, with_code=True)
    assert (pose.status, depth.status) == ("unchanged", "published")
    uploads = [line for line in online.requests[before:] if "/commit/" in line]
    assert uploads == ["POST /api/models/tester/sapiens-depth-0.6b/commit/main"]
    assert "modeling_sapiens.py" in online.files(depth.target)
    assert set(json.loads((tmp_path / "work" / STATE_FILE).read_text())) == {pose.target, depth.target}

    del online.repositories["model", depth.target]  # somebody deleted it: made again
    (depth,), _ = run(tmp_path, DEPTH)
    assert depth.status == "published"


def test_interrupted_upload_is_taken_up_again(online, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    online.fail("POST .*/commit/", 500, times=100)
    (pose,), lines = run(tmp_path, POSE)
    assert pose.status == "failed" and "Try again" in pose.note and "failed" in lines[0]
    online.failures.clear()
    before = len(online.requests)
    (pose,), _ = run(tmp_path, POSE)
    assert pose.status == "published"
    assert not [line for line in online.requests[before:] if line.startswith("PUT")]


def test_dry_run_checks_everything_and_sends_nothing(online, tmp_path):
    (pose,), _ = run(tmp_path, POSE, dry_run=True)
    assert (pose.status, pose.commit) == ("checked", "") and Path(pose.folder, "model.safetensors").is_file()
    assert not [line for line in online.requests if "/commit/" in line or line.startswith("PUT") or "create" in line]
    assert not (tmp_path / "work" / STATE_FILE).exists()


def test_changed_source_stops_until_accepted(online, tmp_path):
    (first,), _ = run(tmp_path, DEPTH)
    recipe = find_recipes([DEPTH])[0]
    online.add(recipe.repo, {recipe.file: stand_in(recipe, tmp_path / "made", seed=99)})
    before = len(online.requests)
    (changed,), _ = run(tmp_path, DEPTH)
    assert changed.status == "failed" and "has changed: SHA-256" in changed.note
    assert "--accept-new-source --replace" in changed.note and first.sha256[:12] in changed.note
    assert not [line for line in online.requests[before:] if "/commit/" in line]
    (accepted,), _ = run(tmp_path, DEPTH, accept_new_source=True, replace_existing=True)
    assert accepted.status == "published" and accepted.sha256 != first.sha256


def test_damaged_download_is_noticed(online, tmp_path, monkeypatch):
    real = publish_module.hf_hub_download

    def damaged(*arguments, **options):
        path = Path(real(*arguments, **options))
        content = path.read_bytes()
        path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return str(path)

    monkeypatch.setattr(publish_module, "hf_hub_download", damaged)
    (pose,), _ = run(tmp_path, POSE)
    assert (
        pose.status == "failed"
        and "arrived damaged" in pose.note
        and ("model", pose.target) not in online.repositories
    )


def test_other_content_missing_source_and_wrong_conversion(online, tmp_path, monkeypatch):
    online.add("tester/sapiens-pose-0.3b", {"README.md": b"# mine"})
    del online.repositories["model", "facebook/sapiens-depth-0.6b"]
    (pose, depth), _ = run(tmp_path, POSE, DEPTH)
    assert (
        "exists on the Hub with other content" in pose.note
        and "no repository facebook/sapiens-depth-0.6b" in depth.note
    )
    assert (pose.status, depth.status) == ("failed", "failed")
    online.add("facebook/sapiens-depth-0.6b", {"README.md": b"moved"})
    (depth,), _ = run(tmp_path, DEPTH)
    assert "has no sapiens_0.6b_render_people_epoch_70.pth" in depth.note

    real = publish_module.compare_outputs
    monkeypatch.setattr(publish_module, "compare_outputs", lambda *a: [replace(real(*a)[0], difference=0.5)])
    (pose,), _ = run(tmp_path, POSE)
    assert "differs from the original by 0.5" in pose.note and "Nothing was uploaded" in pose.note
    monkeypatch.setattr(
        publish_module, "compare_weights", lambda *a: [replace(real(*a)[0], name="weights", difference=9)]
    )
    (pose,), _ = run(tmp_path, POSE)
    assert "weights differs" in pose.note
    assert online.files("tester/sapiens-pose-0.3b") == {"README.md": b"# mine"}


def test_damaged_notes_are_explained(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / STATE_FILE).write_text("{")
    with pytest.raises(ValueError, match="publish.json is damaged"):
        run(tmp_path, POSE)


def test_former_file_name_and_leftover_folder(online, tmp_path):
    recipe = find_recipes([POSE])[0]
    content = online.files(recipe.repo)[recipe.file]
    del online.repositories["model", recipe.repo]
    online.add(recipe.repo, {recipe.former_files[0]: content})
    leftover = tmp_path / "work" / "folders" / POSE / "half.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    (pose,), _ = run(tmp_path, POSE, keep_folders=True)
    assert pose.status == "published" and "half.safetensors" not in online.files(pose.target)
    assert Path(pose.folder).is_dir() and recipe.former_files[0] in online.files(pose.target)["README.md"].decode()


def test_command_line(online, tmp_path, capsys):
    work = str(tmp_path / "work")
    assert main(["publish", POSE, "--namespace", "tester", "--work", work, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "[1/1] tester/sapiens-pose-0.3b: checked" in shown and "source SHA-256" in shown
    assert main(["publish", DEPTH, "--namespace", "tester", "--work", work]) == 0
    online.add("tester/sapiens-pose-0.3b", {"README.md": b"# mine"})
    assert main(["publish", POSE, "--namespace", "tester", "--work", work]) == 1
    assert main(["publish", "--namespace", "tester"]) == 2
    assert "--all" in capsys.readouterr().err


def test_rehearsal_of_one_checkpoint_of_each_format(tmp_path):
    """The whole way for three files: the rehearsal of all of them is `python tests/zoo_rehearsal.py`."""
    sources = ["sapiens-normal-1b", "sapiens-pretrain-0.3b-torchscript", "sapiens-seg-0.6b-bfloat16", DETECTOR]
    (tmp_path / "zoo").mkdir()
    rows = rehearse(tmp_path / "zoo", sources, with_node=False, say=lambda line: None)
    tasks = ["normal-estimation", "image-feature-extraction", "image-segmentation"]
    assert [row["loaded"].get("task") for row in rows] == [*tasks, None]
    for row in rows[:3]:
        assert row["status"] == "published" and row["loaded"]["code"] == "transformers_modules", row
        assert row["difference"] < 1e-4 and row["loaded"]["difference"] < 1e-4
        folder = Path(row["folder"])
        assert (folder / "onnx" / "model.onnx").is_file() and file_sha256(folder / "model.safetensors")
    assert rows[3]["status"] == "left out"
    assert len(rehearsal_table(rows).splitlines()) == 5

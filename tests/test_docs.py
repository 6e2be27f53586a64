"""The pages under docs/ and README.md: every snippet runs, commands and links exist, tables are those of the data."""

import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import original_files as files
import pytest
import torch
from original_files import NARROW
from PIL import Image
from test_hub import DIMENSIONS, tiny

import conversion.__main__
import sapiens_hf
from conversion.recipes import RECIPES
from docs import models_page
from sapiens_hf import cli, pipeline_sapiens

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = "test_publishing_docs.py, test_training_trainer.py or test_synthetic.py runs it"
# For each page, what its Python snippets find there, in order: a scene below, or a test that has one of its own.
SCENES = {
    "README.md": ["checkout", "four folders", "released file"],
    "conversion.md": ["checkpoint", "checkpoint"],
    "evaluation.md": ["results", "record", "stream"],
    "licences.md": [ELSEWHERE],
    "models.md": ["checkpoint"],
    "onnx.md": [ELSEWHERE],
    "pretraining.md": ["pretraining"],
    "publishing.md": [ELSEWHERE] * 2,
    "quickstart.md": ["pose", "segmentation", "depth", "normal", "segmentation", "segmentation"],
    "synthetic.md": ["nothing"],
    "tasks.md": ["goliath", "nothing"],
    "training.md": ["trained", *[ELSEWHERE] * 4],
}
NOT_SCRIPTS = ("pip", "make", "sbatch", "export", "npm")
MAINS = {"sapiens_hf.cli": cli.main, "conversion": conversion.__main__.main}


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)
    return [text for name, text in fenced if name == language]


SNIPPETS = [
    pytest.param(page, code, scene, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (code, scene) in enumerate(zip(blocks(page, "python"), SCENES.get(page.name, [])))
    if scene != ELSEWHERE
]


def test_every_snippet_has_a_scene():
    assert {page.name: len(blocks(page, "python")) for page in PAGES if blocks(page, "python")} == {
        name: len(scenes) for name, scenes in SCENES.items()
    }


# -------------------------------------------------------------------------------------------------------------- scenes
def save_model(task: str, folder: str, model=None) -> str:
    torch.manual_seed(3)
    (model or tiny(task)).save_pretrained(folder)
    sapiens_hf.SapiensImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def write_results() -> None:
    """Three people and maps that are predicted as they are."""
    rng = np.random.default_rng(1)
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    results = []
    for index in range(3):
        points = np.concatenate([rng.uniform(5, 60, (17, 2)), np.full((17, 1), 2)], 1)
        box = [2.0, 3.0, 60.0, 70.0]
        truth["images"].append({"id": index, "height": 80, "width": 70, "file_name": f"{index}.jpg"})
        person = {"id": index + 1, "image_id": index, "category_id": 1, "bbox": box, "area": 4200.0, "iscrowd": 0}
        truth["annotations"].append({**person, "keypoints": points.ravel().tolist(), "num_keypoints": 17})
        scored = np.concatenate([points[:, :2], np.full((17, 1), 0.9)], 1)
        results.append({"image_id": index, "keypoints": scored.ravel().tolist(), "bbox": box, "bbox_score": 0.98})
    Path("person_keypoints_val2017.json").write_text(json.dumps(truth))
    Path("results.json").write_text(json.dumps(results))
    for name in ("predicted", "true", "masks"):
        Path(name).mkdir()
    Image.fromarray(np.full((6, 5), 255, np.uint8)).save("masks/a.png")


def write_maps(call: str) -> None:
    """Maps of the kind that a call of sapiens_hf.evaluation reads, equal in both folders."""
    rng = np.random.default_rng(4)
    labels, depth, normals = (
        np.arange(30, dtype=np.uint8).reshape(6, 5) % 28,
        rng.random((6, 5)),
        rng.random((6, 5, 3)),
    )
    for folder in map(Path, ("predicted", "true")):
        for old in folder.iterdir():
            old.unlink()
        if "segmentation" in call:
            Image.fromarray(labels).save(folder / "a.png")
        else:
            np.save(folder / "a.npy", (depth if "depth" in call else normals).astype(np.float32) + 1)


def scene_of(scene: str, monkeypatch) -> dict:
    """Puts into the current folder what a snippet speaks of; returns the names that it takes for given."""
    if scene in ("pose", "segmentation", "depth", "normal"):
        return {"folder": save_model(scene, f"my-{scene}")}
    if scene == "goliath":
        config = sapiens_hf.SapiensConfig(**DIMENSIONS, num_labels=308)
        return {"folder": save_model("pose", "my-pose", sapiens_hf.SapiensForPoseEstimation(config))}
    if scene == "trained":
        save_model("segmentation", "runs/parts")
    if scene == "checkout":
        monkeypatch.chdir(ROOT)
    if scene == "four folders":
        for task, name in zip(("pose", "segmentation", "depth", "normal"), ("pose", "parts", "depth", "normals")):
            save_model(task, f"my-{name}")
        person = {"label": "person", "score": 0.9, "box": {"xmin": 4, "ymin": 2, "xmax": 40, "ymax": 66}}
        monkeypatch.setattr(pipeline_sapiens, "pipeline", lambda *a, **k: lambda image, threshold: [person])
    if scene == "checkpoint":
        path = str(files.write_pth(Path("a.pth").absolute(), NARROW["depth"]))
        return {"checkpoint": path, "folder": path}
    if scene == "released file":
        files.write_pth(Path("sapiens_1b_goliath_best_goliath_AP_639.pth").absolute(), NARROW["pose"])
        return {"image": Image.open("photo.jpg"), "boxes": [[12, 5, 30, 60], [1, 2, 20, 50]]}
    if scene == "pretraining":
        save_model("pretraining", "runs/mae")
    if scene == "record":
        return {name: 1.0 for name in ("x", "y", "score", "width", "height")}
    if scene == "stream":
        maps = np.random.default_rng(0).integers(0, 28, (2, 6, 5))
        return {"loader": [{"labels": maps}], "predicted_maps": maps}
    if scene == "results":
        write_results()
    return {}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (70, 50, 3), dtype=np.uint8)).save("photo.jpg")
    return tmp_path


@pytest.mark.parametrize(("page", "code", "scene"), SNIPPETS)
def test_snippet(page, code, scene, desk, monkeypatch):
    names = scene_of(scene, monkeypatch)
    parts = [code]
    if scene == "results":  # four calls on four kinds of files, under the same names
        head, *calls = [line for line in code.splitlines() if line]
        parts = [f"{head}\n{call}" for call in calls]
    for part in parts:
        if scene == "results":
            write_maps(part.splitlines()[-1])
        exec(compile(part, f"{page.name}, {scene}", "exec"), names)
    checks = {
        "checkout": lambda: {"Background", "Upper_Clothing"} <= {part["label"] for part in names["found"]},
        "four folders": lambda: len(names["people"]) == 1 and names["normals"].shape == (3, 70, 50),
        "released file": lambda: len(names["people"]) == 2,
        "goliath": lambda: names["coco"].names[9] == "left_wrist",
        "pretraining": lambda: names["model"].config.num_labels == 28,
        "checkpoint": lambda: isinstance(names["model"], sapiens_hf.SapiensForDepthEstimation),
    }
    assert checks.get(scene, lambda: True)()


# -------------------------------------------------------------------------------------------------- commands and links
def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        plain = [text for text in blocks(page, "") if re.match(r"pip |python |sapiens-hf ", text)]
        for block in blocks(page, "bash") + plain:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                found += [words] if words else []
    return found


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Module or file that a command runs, and its words; `None` for commands that are checked otherwise."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\w+", word)]
    if words[0] in NOT_SCRIPTS:
        return None
    if words[0] == "sapiens-hf":
        return "sapiens_hf.cli", words[1:]
    if "-m" in words:
        place = words.index("-m") + 1
        return words[place], words[place + 1 :]
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return words[place], words[place + 1 :]


def shown_help(name: str, verb: str, capsys, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", [name, *([verb] if verb else []), "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    path = list(sys.path)
    with pytest.raises(SystemExit) as ended:
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        elif name in MAINS:
            raise SystemExit(MAINS[name](sys.argv[1:]))
        else:
            runpy.run_module(name, run_name="__main__")
    sys.path[:] = path
    assert not ended.value.code, f"{name} {verb} --help"
    return capsys.readouterr().out


def test_commands_use_options_that_exist(capsys, monkeypatch):
    """`--help` of each script and verb knows every option that a page gives it."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for words in commands():
        found = script_of(words)
        if found is None:
            continue
        name, rest = found
        with_verbs = name in ("sapiens_hf.cli", "conversion", "sapiens_hf.synthetic")
        options = {word.split("=")[0] for word in rest if word.startswith("--")}
        wanted.setdefault((name, rest[0] if with_verbs else ""), set()).update(options)
    assert len(wanted) >= 10 and sum(map(len, wanted.values())) >= 30
    for (name, verb), options in wanted.items():
        text = shown_help(name, verb, capsys, monkeypatch)
        # The demonstration is another program behind one option of the first.
        unknown = {option for option in options - {"--demo"} if not re.search(rf"{option}\b", text)}
        assert not unknown, f"{name} {verb}: {unknown}"


def test_other_commands_exist():
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = ", section, re.M)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
        for word in words:
            if re.search(r"^(\.|sapiens_hf)\[", word):
                assert set(re.search(r"\[(.*)\]", word)[1].split(",")) <= set(extras), word
            if word.endswith((".yaml", ".sbatch", ".py")):
                assert (ROOT / word).exists(), word
    assert all(
        set(names.split(",")) <= set(extras)
        for page in PAGES
        for names in re.findall(r"pip install (?:-e )?['\"]?(?:\.|sapiens_hf)\[([\w,]+)\]", page.read_text())
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_links_every_page():
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in PAGES[1:]}


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    for picture in pictures:
        assert os.path.getsize(picture) < 400_000
        Image.open(picture).verify()


# -------------------------------------------------------------------------------------------------------------- tables
def test_the_page_of_models_is_that_of_the_list():
    page = models_page.PAGE.read_text()
    assert page == models_page.updated(page), "run python -m docs.models_page"
    for recipe in RECIPES:
        (row,) = (line for line in page.splitlines() if f"| `{Path(recipe.file).name}` |" in line)
        assert row.startswith(f"| {recipe.size} |") and f"[{recipe.repo}](" in row
        assert recipe.score is None or f"{recipe.score['value']:g} {recipe.score['metric']} |" in row
        assert ("not seen" in row) == (recipe.evidence == "name by pattern")

"""check_data: what it reports, and what it refuses."""

from __future__ import annotations

import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image
from training_helpers import CLASSES, SIZE, person, write_tree

from training.check_data import Report, Votes, main, rim_of


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", count=6)


def run(capsys, tree, task, *more):
    layout = {"pose": "--keypoint_set", "segmentation": "--class_set"}.get(task)
    name = {"pose": "keypoints.layout.json", "segmentation": "classes.layout.json"}.get(task, "")
    given = [str(tree), "--task", task, *([layout, str(tree / name)] if layout and layout not in more else []), *more]
    status = main([*given, "--as_json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", ("pose", "segmentation", "depth", "normal"))
def test_a_good_data_set_passes(tree, task, capsys):
    status, report = run(capsys, tree, task)
    assert status == 0 and report["problems"] == [] and report["facts"]["samples looked at"] == 6
    assert report["facts"]["image sizes (height x width)"] == "96 x 80 to 96 x 80"
    assert run(capsys, tree, task, "--limit", "2")[1]["facts"]["samples looked at"] == 2


def test_what_is_counted(tree, capsys):
    facts = run(capsys, tree, "pose")[1]["facts"]
    assert (
        facts["people"] == 6
        and facts["labelled keypoints per person"] == 5
        and facts["of these seen, not hidden"] == "80.0%"
    )
    _, report = run(capsys, tree, "segmentation")
    share = np.mean([(person(i)["segmentation_map"] == 3).mean() for i in range(6)])
    assert f"Torso: {share:.2%}, 6" in report["facts"]["share of pixels, and images, per class"]
    assert report["warnings"] == ["1 of 7 classes never occur: Hat."]
    facts = run(capsys, tree, "depth")[1]["facts"]
    assert facts["depth on people"].startswith("2") and facts["larger is"] == "farther (100% of 6 samples)"
    facts = run(capsys, tree, "normal")[1]["facts"]
    assert facts["order of the components"] == "x, y, z" and facts["y points"] == "up (100% of 6 samples)"


def change_normals(tree, change, count=6):
    for path in sorted((tree / "normals").iterdir())[:count]:
        np.save(path, np.ascontiguousarray(change(np.load(path))))


@pytest.mark.parametrize(
    "change, count, problem",
    [
        (lambda n: n[..., ::-1], 6, r"components look like \(z, y, x\), expected \(x, y, z\)"),
        (lambda n: n[..., [1, 0, 2]], 6, r"look like \(y, x, z\)"),
        (lambda n: n * np.float32([1, -1, 1]), 3, "y points up in 50% of the samples: conventions are mixed"),
        (lambda n: n * np.float32([1, 1, -1]), 2, "z points toward the camera in 67% of the samples"),
    ],
)
def test_axes_of_normals(tree, capsys, change, count, problem):
    change_normals(tree, change, count)
    status, report = run(capsys, tree, "normal")
    assert status == 1 and len(report["problems"]) == 1
    assert re.search(problem, report["problems"][0])


def test_another_convention_is_a_warning(tree, capsys):
    change_normals(tree, lambda n: n * np.float32([1, -1, -1]))
    status, report = run(capsys, tree, "normal")
    assert status == 0 and [text[:15] for text in report["warnings"]] == ["y points down; ", "z points away f"]


def test_inverse_and_constant_depth(tree, capsys):
    for path in (tree / "depths").iterdir():
        depth = np.load(path)
        np.save(path, np.where(depth > 0, 1 / np.maximum(depth, 1e-3), 0).astype(np.float32))
    status, report = run(capsys, tree, "depth")
    assert (
        status == 1 and "inverse depth" in report["problems"][0] and report["facts"]["larger is"].startswith("nearer")
    )
    for path in (tree / "depths").iterdir():
        np.save(path, np.full(SIZE, -4, np.float32))
    status, report = run(capsys, tree, "depth")
    assert [("depth is -4 on the whole person" in text) for text in report["problems"]] == [True] * 6
    assert "0 or negative" in report["warnings"][0] and report["facts"]["larger is"] == "unknown"


def test_bad_files_are_listed_and_the_others_still_looked_at(tree, capsys):
    Image.new("L", SIZE[::-1]).save(tree / "masks" / "p001.png")
    np.save(tree / "depths" / "p004.npy", np.full(SIZE, np.nan, np.float32))
    status, report = run(capsys, tree, "depth")
    assert status == 1 and report["facts"]["samples that cannot be used"] == 2
    assert "p001.npy: the mask is empty" in report["problems"][0] and "p004.npy: depth has" in report["problems"][1]
    assert report["facts"]["depth on people"].startswith("2")
    (tree / "masks" / "p003.png").unlink()
    status, report = run(capsys, tree, "depth")
    assert status == 1 and "lacks 1 of the 6 files" in report["problems"][0]


def test_labels(tree, capsys):
    for path in (tree / "segmentations").iterdir():
        Image.new("L", SIZE[::-1], 3).save(path)
    _, report = run(capsys, tree, "segmentation")
    assert "6 label maps hold a single class." in report["warnings"]
    layout = tree / "alone.json"
    layout.write_text(json.dumps({"names": [*CLASSES[:6], "Left_Ear"]}))
    status, report = run(capsys, tree, "segmentation", "--class_set", str(layout))
    assert status == 1 and "no partner" in report["problems"][0] and "Left_Ear" in report["problems"][0]


def test_people(tree, capsys):
    path = tree / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["keypoints"] = (np.array(annotation["keypoints"]).reshape(-1, 3) + [300, 0, 0]).ravel().tolist()
        annotation["keypoints"][14] = 0
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "5 people have most keypoints far from their box" in report["problems"][0]
    assert report["warnings"] == [
        "1 of 5 keypoints are never labelled: right_foot.",
        "20 labelled keypoints lie outside their image.",
    ]
    assert report["facts"]["people left out"] == "1 crowds"


def test_one_misfit_among_many_is_a_warning(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", count=60)
    content = json.loads((tree / "annotations.json").read_text())
    content["annotations"][7]["bbox"] = [0, 0, 4, 4]
    (tree / "annotations.json").write_text(json.dumps(content))
    status, report = run(capsys, tree, "pose")
    assert status == 0 and "1 people have most keypoints far from their box" in report["warnings"][0]


def test_streams_and_text(tmp_path, capsys):
    (tmp_path / "t").mkdir()
    people = [person(i) for i in range(5)]
    labels = [Image.fromarray(p["segmentation_map"]) for p in people]
    labels[2] = Image.new("L", SIZE[::-1], 255)
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(p["image"]) for p in people], "label": labels})
    for column in ("image", "label"):
        table = table.cast_column(column, datasets.Image())
    table.to_parquet(tmp_path / "t" / "train.parquet")
    assert (
        main([str(tmp_path / "t"), "--task", "segmentation", "--class_set", "lip", "--streaming", "--limit", "4"]) == 1
    )
    text = capsys.readouterr().out
    assert "samples looked at: 4" in text and "PROBLEM" in text and "of epoch 0]: every pixel" in text
    assert text.strip().endswith("1 problems, 1 warnings")


def test_an_unknown_task_is_named(tree):
    with pytest.raises(ValueError, match="unknown task 'normals'. Did you mean 'normal'"):
        main([str(tree), "--task", "normals"])


def test_an_empty_list_is_a_problem():
    from training.check_data import check

    report = check([], "depth")
    assert report.problems == ["The data set is empty."] and "0 warnings" in report.text()
    assert Report().text() == "0 problems, 0 warnings" and Votes().words("a", "b") == "unknown"


def test_the_rim_points_out_and_ends_at_the_border():
    mask = np.zeros((40, 30), bool)
    mask[10:, 5:25] = True  # cut off by the lower border
    rim, outward = rim_of(mask)
    assert rim[20, 5] and rim[20, 24] and rim[10, 15] and not rim[39, 15]
    assert outward[20, 5, 0] < -0.9 and outward[20, 24, 0] > 0.9 and outward[10, 15, 1] < -0.9

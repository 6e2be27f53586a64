"""check_data: what it reports, and what it refuses."""

from __future__ import annotations

import json
import re
from functools import partial

import datasets
import numpy as np
import pytest
from PIL import Image
from training_helpers import CLASSES, SIZE, person, write_tree

from training.augment import fit_to_network
from training.check_data import Report, Votes, check, check_geometry, main, rim_of
from training.data import TrainingSet
from training.formats import BadSampleError
from training.jobs import make_job
from training.options import DepthOptions, PoseOptions, SegmentationOptions, parse_options
from training.sources import open_samples


def fit_to_network_of(*size):
    return partial(fit_to_network, size=size)


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
    assert facts["order of the components"] == "x, y, z (100% of 6 samples)"
    assert facts["y points"] == "up (100% of 6 samples)"


def change_normals(tree, change, count=6):
    for path in sorted((tree / "normals").iterdir())[:count]:
        np.save(path, np.ascontiguousarray(change(np.load(path))))


@pytest.mark.parametrize(
    "change, count, problem, files",
    [
        (lambda n: n[..., ::-1], 6, r"components look like \(z, y, x\), expected \(x, y, z\), in 6 samples", range(6)),
        (lambda n: n[..., ::-1], 2, r"look like \(z, y, x\), expected \(x, y, z\), in 2 samples", (0, 1)),
        (lambda n: n[..., [1, 0, 2]], 1, r"look like \(y, x, z\), .* in 1 samples", (0,)),
        (lambda n: n[..., [2, 0, 1]], 5, r"look like \(z, x, y\), .* in 5 samples", range(5)),
        (lambda n: n * np.float32([-1, 1, 1]), 2, "mixed: x points right in 4 samples, but left in 2 samples", (0, 1)),
        (lambda n: n * np.float32([1, -1, 1]), 3, "y points up in 3 samples, but down in 3 samples", range(3)),
        (lambda n: n * np.float32([1, 1, -1]), 5, "z points away .* in 5 samples, but toward .* in 1 samples", (5,)),
    ],
)
def test_axes_of_normals(tree, capsys, change, count, problem, files):
    change_normals(tree, change, count)
    status, report = run(capsys, tree, "normal")
    assert status == 1 and len(report["problems"]) == 1 and report["warnings"] == []
    assert re.search(problem, report["problems"][0])
    assert re.findall(r"p00(\d)\.png", report["problems"][0]) == [str(i) for i in files]


def test_a_run_looks_past_a_single_odd_sample(tree):
    """One of many may look wrong, from close up; of two, or of few, it is not chance."""

    def found(count):
        change_normals(tree, lambda n: n * np.float32([-1, 1, 1]), count)
        wrong = check_geometry(open_samples(str(tree), "normal"), "normal")
        change_normals(tree, lambda n: n * np.float32([-1, 1, 1]), count)
        return wrong

    assert found(0) is None and found(1) is None
    assert "mixed: x points right in 4 samples, but left in 2 samples" in found(2)
    votes = Votes("up")
    for answer in ("up", "up", "down"):
        votes.add(answer, "x")
    votes.forget_single()
    assert votes.counts == {"up": 2, "down": 1}


def test_normals_that_show_no_axes(tree, capsys):
    change_normals(tree, lambda n: np.where(n.any(axis=-1, keepdims=True), np.float32([0, 0.6, 0.8]), 0), 5)
    mask = np.zeros(SIZE, np.uint8)
    mask[40:48, 30:36] = 255  # too little of a person to have a vote, even in another order
    Image.fromarray(mask).save(tree / "masks" / "p005.png")
    normals = np.load(tree / "normals" / "p005.npy")[..., ::-1]
    np.save(tree / "normals" / "p005.npy", np.ascontiguousarray(normals))
    status, report = run(capsys, tree, "normal")
    assert status == 0 and report["facts"]["order of the components"] == "unknown"
    assert report["warnings"] == ["Order and signs of the components cannot be told: no sample shows them clearly."]


def test_another_convention_is_a_warning(tree, capsys):
    change_normals(tree, lambda n: n * np.float32([1, -1, -1]))
    status, report = run(capsys, tree, "normal")
    assert status == 0 and [text[:15] for text in report["warnings"]] == ["y points down; ", "z points away f"]


def change_depths(tree, change, count=6):
    for path in sorted((tree / "depths").iterdir())[:count]:
        np.save(path, change(np.load(path)).astype(np.float32))


@pytest.mark.parametrize("count, larger", [(6, "nearer (100%"), (3, "farther (50%"), (1, "farther (83%")])
def test_inverse_depth(tree, capsys, count, larger):
    change_depths(tree, lambda depth: np.where(depth > 0, 1 / np.maximum(depth, 1e-3), 0), count)
    status, report = run(capsys, tree, "depth")
    assert status == 1 and len(report["problems"]) == 1 and report["facts"]["larger is"] == f"{larger} of 6 samples)"
    assert f"inverse depth (disparity), larger at outlines than further in, in {count} samp" in report["problems"][0]
    assert len(re.findall(r"p00\d\.png", report["problems"][0])) == count


def test_constant_depth(tree, capsys):
    change_depths(tree, lambda depth: np.full(SIZE, -4))
    status, report = run(capsys, tree, "depth")
    assert status == 1 and report["facts"]["larger is"] == "unknown"
    assert [("depth is -4 on the whole person" in text) for text in report["problems"]] == [True] * 6 + [False]
    assert "0 or negative, in number over 1% of the pixels of people, in 6 samples" in report["problems"][6]


def without_masks(tree):
    for path in (tree / "masks").iterdir():
        path.unlink()
    (tree / "masks").rmdir()


@pytest.mark.parametrize("task", ("depth", "normal"))
def test_a_background_with_values_counts_as_people(tree, tmp_path, capsys, caplog, task):
    """Without masks, nothing else tells who is a person."""
    change_depths(tree, lambda depth: np.where(depth > 0, depth, 1e4))
    change_normals(tree, lambda n: np.where(n.any(axis=-1, keepdims=True), n, np.float32([0, 0, 1])))
    assert run(capsys, tree, task)[0] == 0  # the masks do
    without_masks(tree)
    status, report = run(capsys, tree, task)
    assert status == 1 and len(report["problems"]) == 1
    assert "the whole picture in 6 samples" in report["problems"][0] and "Add masks" in report["problems"][0]
    caplog.clear()
    assert check_geometry(open_samples(str(tree), task), task) is None and "the whole picture in" in caplog.text


def test_a_run_on_inverse_depth_does_not_start(tree, tmp_path):
    change_depths(tree, lambda depth: np.where(depth > 0, 1 / np.maximum(depth, 1e-3), 0))
    line = ["--train_data", str(tree), "--output_dir", str(tmp_path / "run"), "--model_size", "tiny"]
    with pytest.raises(ValueError, match="looks like inverse depth"):
        make_job(parse_options(DepthOptions, line))
    make_job(parse_options(DepthOptions, [*line, "--skip_bad_samples"]))


def with_holes(value, rows):
    def change(depth):
        depth[rows] = value
        return depth

    return change


def test_zeros_on_people(tree, capsys):
    change_depths(tree, with_holes(0, slice(30, 60, 2)), 2)
    status, report = run(capsys, tree, "depth")
    assert status == 1 and len(report["problems"]) == 1 and report["facts"]["larger is"].startswith("farther (100%")
    assert re.search(r"0 or negative, .* in 2 samples: \S*p000\.png \(\d+ pixels\), \S*p001", report["problems"][0])
    depth = np.load(tree / "depths" / "p002.npy")
    depth[48, 40] = 0
    np.save(tree / "depths" / "p002.npy", depth)
    change_depths(tree, lambda depth: np.where(depth == 0, 3, depth), 2)
    status, report = run(capsys, tree, "depth")
    assert status == 0 and re.search(r"a few pixels in 1 samples: \S*p002\.png \(1 pixels\)\.", report["warnings"][0])


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_depth_that_is_not_finite_without_masks(tree, capsys, value):
    change_depths(tree, with_holes(value, slice(30, 60)), 1)
    assert "p000.npy: depth has" in run(capsys, tree, "depth")[1]["problems"][0]
    without_masks(tree)
    status, report = run(capsys, tree, "depth")
    assert status == 1 and len(report["problems"]) == 1 and report["facts"]["samples looked at"] == 6
    samples = TrainingSet(open_samples(str(tree), "depth"), fit_to_network_of(64, 48))
    with pytest.raises(BadSampleError, match=r"p000\.png: depth has 2400 NaN or infinite values and no mask"):
        samples[0]
    assert samples[1]["mask"].any()
    assert re.search(r"NaN or infinite, .* in 1 samples: \S*p000\.png \(2400 pixels\)\.", report["problems"][0])
    change_depths(tree, lambda depth: np.where(np.isfinite(depth), depth, 0), 1)
    change_depths(tree, with_holes(value, (48, 40)), 2)
    status, report = run(capsys, tree, "depth")
    assert status == 0 and "NaN or infinite on a few pixels in 2 samples" in report["warnings"][0]


@pytest.mark.parametrize("streaming", [False, True])
def test_depth_of_tables_that_is_not_finite(tmp_path, capsys, streaming):
    people = [person(index) for index in range(4)]
    depths = [np.where(p["mask"] > 0, p["depth"], 0).astype(np.float32) for p in people]
    depths[2][30:60] = np.nan
    columns = {"image": [Image.fromarray(p["image"]) for p in people], "depth": [Image.fromarray(d) for d in depths]}
    features = datasets.Features({name: datasets.Image() for name in columns})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "table")
    status, report = run(capsys, tmp_path / "table", "depth", *(["--streaming"] if streaming else []))
    assert status == 1 and len(report["problems"]) == 1 and report["facts"]["samples looked at"] == 4
    assert re.search(r"NaN or infinite, .* in 1 samples: \S*table\[\d\b.*\] \(2400 pixels\)\.", report["problems"][0])


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


def test_label_maps_of_nothing_but_background(tree, capsys, tmp_path):
    for path in (tree / "segmentations").iterdir():
        Image.new("L", SIZE[::-1]).save(path)
    status, report = run(capsys, tree, "segmentation")
    assert status == 1 and report["problems"] == ["Every pixel is Background: nothing can be learned."]


@pytest.mark.parametrize("axis", (0, -1))
def test_label_maps_with_an_axis_of_one_channel(tree, capsys, axis):
    for path in list((tree / "segmentations").iterdir()):
        np.save(path.with_suffix(".npy"), np.expand_dims(np.array(Image.open(path)), axis))
        path.unlink()
    assert run(capsys, tree, "segmentation")[0] == 0
    np.save(path.with_suffix(".npy"), np.zeros(SIZE, np.float32))
    assert "expected class indices as whole numbers" in run(capsys, tree, "segmentation")[1]["problems"][0]


def test_files_that_a_mac_leaves_are_no_pictures(tree, capsys):
    for folder in ("images", "segmentations"):
        (tree / folder / "._p000.png").write_bytes(b"not a picture")
    status, report = run(capsys, tree, "segmentation")
    assert status == 0 and report["facts"]["samples looked at"] == 6


def test_masks_of_0_and_255_teach_nothing(tree, capsys, tmp_path):
    for path in (tree / "segmentations").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    layout = tree / "two.json"
    layout.write_text(json.dumps({"names": ["background", "person"]}))
    status, report = run(capsys, tree, "segmentation", "--class_set", str(layout))
    assert status == 1 and "Every pixel is background or has the label 255" in report["problems"][0]
    line = ["--train_data", str(tree), "--output_dir", str(tmp_path / "run"), "--model_size", "tiny"]
    with pytest.raises(ValueError, match="write 1 for 255, or set another ignore_index"):
        make_job(parse_options(SegmentationOptions, [*line, "--class_set", str(layout)]))
    layout.write_text(json.dumps({"names": ["background", "person"], "ignore_index": 254}))
    for path in (tree / "segmentations").iterdir():
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(path)
    assert run(capsys, tree, "segmentation", "--class_set", str(layout))[0] == 0


def change_people(tree, change):
    content = json.loads((tree / "annotations.json").read_text())
    change(content)
    (tree / "annotations.json").write_text(json.dumps(content))


def test_corners_in_the_place_of_sizes(tree, capsys):
    def to_corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width + 40, y + height + 40]

    change_people(tree, to_corners)
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "6 of 6 boxes reach beyond" in report["problems"][0]
    assert "not two corners" in report["problems"][0]
    line = ["--train_data", str(tree), "--output_dir", str(tree / "run"), "--model_size", "tiny"]
    with pytest.raises(ValueError, match="not two corners"):
        make_job(parse_options(PoseOptions, [*line, "--keypoint_set", str(tree / "keypoints.layout.json")]))


def test_shares_in_the_place_of_pixels(tree, capsys):
    def to_shares(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = (np.array(annotation["bbox"]) / [80, 96, 80, 96]).tolist()
            points = np.array(annotation["keypoints"]).reshape(-1, 3) / [80, 96, 1]
            annotation["keypoints"] = points.ravel().tolist()

    change_people(tree, to_shares)
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "boxes are less than 2 pixels wide or high" in report["problems"][0]

    def to_whole_pictures(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [0, 0, 80, 96]

    change_people(tree, to_whole_pictures)
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "keypoints of 6 of 6 people lie within 2 pixels" in report["problems"][0]


def test_images_of_another_size_than_the_file_says(tree, capsys):
    name = sorted((tree / "images").iterdir())[2]
    Image.open(name).resize((40, 48)).save(name)
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "has 40 x 48 pixels upright, but" in report["problems"][0]
    assert str(name) in report["problems"][0] and "says 80 x 96" in report["problems"][0]


def test_keypoints_in_another_order(tree, capsys):
    names = json.loads((tree / "keypoints.layout.json").read_text())["names"]
    change_people(tree, lambda content: content["categories"][0].update(keypoints=[name.title() for name in names]))
    assert run(capsys, tree, "pose")[0] == 0
    other = {"id": 2, "name": "animal", "keypoints": names[::-1]}  # whose order is nobody's
    change_people(tree, lambda content: content["categories"].append(other))
    assert run(capsys, tree, "pose")[0] == 0
    swapped = [names[1], names[0], *names[2:]]
    change_people(tree, lambda content: content["categories"][0].update(keypoints=swapped))
    status, report = run(capsys, tree, "pose")
    assert status == 1 and f"keypoint 0 is '{names[1]}' by its category" in report["problems"][0]
    assert json.dumps(swapped) in report["problems"][0]


def test_subfolders_are_not_read_in_silence(tree, capsys, caplog):
    for kind in ("images", "segmentations"):
        (tree / kind / "second").mkdir()
        for path in sorted((tree / kind).glob("p00[345].*")):
            path.rename(tree / kind / "second" / path.name)
    _, report = run(capsys, tree, "segmentation")
    assert report["facts"]["samples looked at"] == 3
    assert "3 files are used. The 3 in folders below it are not read" in caplog.text


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


def test_names_without_a_side(tree, capsys):
    layout = tree / "sides.json"
    layout.write_text(json.dumps({"names": ["nose", "a", "b", "c", "d"]}))
    status, report = run(capsys, tree, "pose", "--keypoint_set", str(layout))
    assert status == 0 and "No keypoint of sides has a side in its name" in report["warnings"][0]
    for content in ({"flip_pairs": [[1, 2]]}, {"names": ["nose", "LeftHand", "RightHand", "LFoot", "RFoot"]}):
        layout.write_text(json.dumps({"names": ["nose", "a", "b", "c", "d"]} | content))
        assert run(capsys, tree, "pose", "--keypoint_set", str(layout))[1]["warnings"] == []


@pytest.mark.parametrize(
    "given, message",
    [
        (["--task", "normals"], "unknown task 'normals'. Did you mean 'normal'"),
        ([], "arguments are required: --task"),
        (["--task", "pose", "--keypoint_set", "coko"], "coko"),
        (["--task", "pose", "--keypoint_set", "nowhere.json"], "no label file nowhere.json"),
        (["--task", "depth", "--limmit", "3"], "unknown option '--limmit'. Did you mean '--limit'"),
        (["--task", "depth", "--limit", "0"], "--limit is 0; expected at least 1"),
        (["--task", "depth", "--columns", "image"], "--columns takes name=VALUE, got 'image'"),
    ],
)
def test_a_wrong_command_line(tree, capsys, given, message):
    with pytest.raises(SystemExit, match="2"):
        main([str(tree), *given])
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert "arguments are required: --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, message",
    [
        (ConnectionError("no route"), "cannot be read as depth data: ConnectionError: no route."),
        (KeyError("id"), "cannot be read as depth data: KeyError: 'id'."),
        (RuntimeError("broken."), "cannot be read as depth data: RuntimeError: broken."),
        (ImportError("Tables need it."), "Tables need it."),
    ],
)
def test_no_error_of_opening_is_a_traceback(capsys, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("training.check_data.open_samples", fail)
    assert main(["somewhere", "--task", "depth"]) == 1
    assert f"PROBLEM  {message}" in capsys.readouterr().out.replace("somewhere ", "")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content["annotations"][0].update(bbox=None),
        lambda content: content["annotations"][0].update(bbox=["1", "2", "3", "4"]),
        lambda content: content["annotations"][0].update(keypoints=None),
        lambda content: content["images"][1].pop("file_name"),
        lambda content: content["images"][1].pop("id"),
        lambda content: content["categories"][0].pop("id"),
    ],
)
def test_broken_annotation_files(tree, capsys, break_it):
    content = json.loads((tree / "annotations.json").read_text())
    break_it(content)
    (tree / "annotations.json").write_text(json.dumps(content))
    status, report = run(capsys, tree, "pose")
    assert status == 1 and len(report["problems"]) == 1 and str(tree) in report["problems"][0]


def test_other_errors_of_samples_are_listed():
    def fail():
        raise KeyError("id")

    report = check([fail] * 20, "depth")
    assert report.facts["samples that cannot be used"] == 20 and len(report.problems) == 8
    assert report.problems[1] == "Sample 2 cannot be read: KeyError: 'id'."


def test_an_empty_list_is_a_problem():
    report = check([], "depth")
    assert report.problems == ["The data set is empty."] and "0 warnings" in report.text()
    assert Report().text() == "0 problems, 0 warnings" and Votes("a").words() == "unknown"


def test_the_rim_points_out_and_ends_at_the_border():
    mask = np.zeros((40, 30), bool)
    mask[10:, 5:25] = True  # cut off by the lower border
    rim, outward, width = rim_of(mask)
    assert width == 1.5 and rim[20, 5] and rim[20, 24] and rim[10, 15] and not rim[39, 15]
    assert outward[20, 5, 0] < -0.9 and outward[20, 24, 0] > 0.9 and outward[10, 15, 1] < -0.9


def test_people_of_another_category(tree, capsys):
    def rename(content):
        content["categories"] = [{"id": 1, "name": "Human"}, {"id": 2, "name": "person"}]

    change_people(tree, rename)
    status, report = run(capsys, tree, "pose")
    assert status == 1 and "holds nobody to train on: 6 of categories that are no people" in report["problems"][0]

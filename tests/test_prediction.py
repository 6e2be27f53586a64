"""Prediction on files and the command line, with tiny models on small pictures that are never square."""

import json

import numpy as np
import pytest
import torch
from original_files import Spec, write_pth
from PIL import Image

from sapiens_hf import (
    SapiensConfig,
    SapiensForDepthEstimation,
    SapiensForNormalEstimation,
    SapiensForPoseEstimation,
    SapiensForSemanticSegmentation,
    SapiensImageProcessor,
    SapiensModel,
    class_set,
    keypoint_set,
    prediction,
)
from sapiens_hf.cli import main

MODELS = {
    "pose": (SapiensForPoseEstimation, 2),
    "segmentation": (SapiensForSemanticSegmentation, 3),
    "depth": (SapiensForDepthEstimation, 4),
    "normal": (SapiensForNormalEstimation, 3),
}
BOXES = [[10.0, 4.0, 30.0, 50.0], [40.0, 8.0, 24.0, 44.0]]


def make_model(folder, task, **extra):
    torch.manual_seed(0)
    cls, num_deconvs = MODELS[task]
    if task == "pose":
        points = keypoint_set("coco")
        extra = {"id2label": points.id2label(), "flip_pairs": points.flip_pairs, **extra}
    elif task == "segmentation":
        extra = {"id2label": class_set("goliath28").id2label(), **extra}
    config = SapiensConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        image_size=[64, 48],
        deconv_out_channels=[16] * num_deconvs,
        conv_out_channels=[12],
        **extra,
    )
    cls(config).save_pretrained(folder)
    SapiensImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {task: make_model(root / task, task) for task in MODELS}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (60, 90), "inner/b.jpg": (75, 50), "c.png": (48, 64)}.items():
        Image.fromarray(noise.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("task", MODELS)
def test_every_task_writes_its_files_for_a_folder(task, models, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("predict", photos, "--model", models[task], "--output", out, "--batch-size", 2) == 0
    for name in ("a", "inner/b", "c"):
        for suffix in prediction.OUTPUTS[task]:
            assert (out / f"{name}{suffix}").stat().st_size > 0
    assert "3 of 3 images" in capsys.readouterr().out


def test_pose_json_holds_people_in_source_pixels(models, photos, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": BOXES}))
    assert run("predict", photos / "a.png", "--model", models["pose"], "--output", tmp_path, "--boxes", boxes) == 0
    content = json.loads((tmp_path / "a.pose.json").read_text())
    assert (content["height"], content["width"], len(content["people"])) == (60, 90, 2)
    person = content["people"][1]
    assert person["box"] == {"xmin": 40.0, "ymin": 8.0, "xmax": 64.0, "ymax": 52.0}
    assert [point["label"] for point in person["keypoints"]] == list(keypoint_set("coco").names)


def test_images_without_an_entry_in_boxes_have_no_people(models, photos, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps({"images": [{"id": 7, "file_name": "x/a.png"}], "annotations": [{"image_id": 7, "bbox": BOXES[0]}]})
    )
    assert run("predict", photos, "--model", models["pose"], "--output", tmp_path, "--boxes", boxes) == 0
    assert len(json.loads((tmp_path / "a.pose.json").read_text())["people"]) == 1
    assert json.loads((tmp_path / "c.pose.json").read_text())["people"] == []


def test_segmentation_labels_are_those_of_the_model(models, photos, tmp_path):
    model, processor = prediction.load_model(str(models["segmentation"]))
    with torch.no_grad():
        outputs = model(**processor(images=Image.open(photos / "a.png"), return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]
    assert run("predict", photos / "a.png", "--model", models["segmentation"], "--output", tmp_path) == 0
    stored = np.array(Image.open(tmp_path / "a.labels.png"))
    assert stored.shape == (60, 90) and (stored == expected.numpy()).all()
    pixels = json.loads((tmp_path / "a.segmentation.json").read_text())["pixels"]
    assert sum(pixels.values()) == 60 * 90 and set(pixels) <= set(class_set("goliath28").names)


def test_depth_png_gives_the_depth_back(models, photos, tmp_path):
    assert run("predict", photos / "a.png", "--model", models["depth"], "--output", tmp_path) == 0
    depth = np.load(tmp_path / "a.depth.npy")
    scale = json.loads((tmp_path / "a.depth.json").read_text())
    stored = np.array(Image.open(tmp_path / "a.depth16.png")).astype(np.float64)
    assert depth.shape == (60, 90)
    np.testing.assert_allclose(stored * scale["step"] + scale["offset"], depth, atol=0.51 * scale["step"])


def test_normals_are_unit_vectors_with_the_axis_last(models, photos, tmp_path):
    assert run("predict", photos / "a.png", "--model", models["normal"], "--output", tmp_path) == 0
    normals = np.load(tmp_path / "a.normal.npy")
    assert normals.shape == (60, 90, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=2e-2)  # n / (|n| + 1e-5), small n


def test_batches_do_not_change_results(models, photos):
    model, processor = prediction.load_model(str(models["depth"]))
    files = prediction.find_images([photos])
    alone = [r.data for _, r in prediction.predict_files(prediction.Predictor(model, processor, "cpu", 1), files)]
    together = [r.data for _, r in prediction.predict_files(prediction.Predictor(model, processor, "cpu", 3), files)]
    for a, b in zip(alone, together):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_mask_model_blackens_the_background(models, photos, tmp_path):
    arguments = ("predict", photos / "a.png", "--model", models["normal"], "--mask-model", models["segmentation"])
    assert run(*arguments, "--output", tmp_path) == 0
    assert run("predict", photos / "a.png", "--model", models["segmentation"], "--output", tmp_path) == 0
    background = np.array(Image.open(tmp_path / "a.labels.png")) == 0
    picture = np.array(Image.open(tmp_path / "a.normal.png"))
    assert background.any() and (picture[background] == 0).all() and (~background).any()
    assert (picture[~background] > 0).any()


def test_an_unreadable_image_is_reported_and_the_rest_go_on(models, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image")
    assert run("predict", photos, "--model", models["depth"], "--output", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "3 of 4 images" in printed.out and "broken.jpg" in printed.err
    assert len(list((tmp_path / "out").rglob("*.depth.npy"))) == 3


def test_a_wrong_box_is_reported_with_its_image(models, photos, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": [[5, 5, 0, 10]], "c.png": [[5, 5, 20, 30]]}))
    assert run("predict", photos, "--model", models["pose"], "--output", tmp_path, "--boxes", boxes) == 1
    assert "a.png" in capsys.readouterr().err and (tmp_path / "c.pose.json").exists()


def test_nothing_is_overwritten_silently(models, photos, tmp_path, capsys):
    arguments = ("predict", photos / "a.png", "--model", models["depth"], "--output", tmp_path)
    assert run(*arguments) == 0
    before = (tmp_path / "a.depth.npy").stat().st_mtime_ns
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "a.depth.npy").stat().st_mtime_ns == before
    assert run(*arguments, "--overwrite") == 0


def test_names_that_collide_keep_their_suffix(photos):
    Image.new("RGB", (20, 30)).save(photos / "a.jpg")
    relatives = {str(relative) for _, relative in prediction.find_images([photos])}
    assert relatives == {"a.png", "a.jpg", "inner/b", "c"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png"], "no file or folder nowhere.png"),
        (["{photos}", "--task", "pose"], "--task depth"),
    ],
)
def test_wrong_use_says_what_to_do(arguments, message, models, photos, tmp_path, capsys):
    arguments = [argument.format(photos=photos) for argument in arguments]
    assert run("predict", *arguments, "--model", models["depth"], "--output", tmp_path) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_says_what_was_looked_for(models, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("predict", tmp_path / "empty", "--model", models["depth"], "--output", tmp_path) == 2
    assert ".jpg" in capsys.readouterr().err


def test_a_model_without_a_task_head_is_refused(models, photos, tmp_path, capsys):
    config = SapiensConfig.from_pretrained(models["depth"])
    SapiensModel(config).save_pretrained(tmp_path / "encoder")
    assert run("predict", photos, "--model", tmp_path / "encoder", "--output", tmp_path) == 2
    assert "SapiensModel" in capsys.readouterr().err


def test_labels_of_ones_own_are_drawn(photos, tmp_path):
    for task, names in (("pose", {0: "tip", 1: "base"}), ("segmentation", {0: "rest", 1: "glove", 2: "hat"})):
        folder = make_model(tmp_path / task, task, id2label=names, **({"flip_pairs": None} if task == "pose" else {}))
        assert run("predict", photos / "a.png", "--model", folder, "--output", tmp_path) == 0
        assert Image.open(tmp_path / f"a.{task}.png").width >= 90


def test_boxes_file_of_another_form(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="neither"):
        prediction.read_boxes(path)


def test_info_says_what_a_model_is(models, capsys):
    assert run("info", models["pose"]) == 0
    printed = capsys.readouterr().out
    for expected in ("SapiensForPoseEstimation", "64 x 48", "17: nose", "8"):
        assert expected in printed


def test_unknown_task_in_load_model(models):
    with pytest.raises(ValueError, match="Unknown task 'albedo'"):
        prediction.load_model(str(models["pose"]), "albedo")


# ---------------------------------------------------------------------------------------------------------- evaluate
def test_evaluate_reads_what_predict_wrote(models, photos, tmp_path, capsys):
    """A model's own output as the truth scores perfectly; another truth does not."""
    out = tmp_path / "out"
    for task in ("segmentation", "depth", "normal"):
        assert run("predict", photos / "a.png", "--model", models[task], "--output", out) == 0
    for task in ("segmentation", "normal"):
        (tmp_path / task).mkdir()
    Image.open(out / "a.labels.png").save(tmp_path / "segmentation" / "a.png")
    np.save(tmp_path / "normal" / "a.npy", np.load(out / "a.normal.npy"))
    capsys.readouterr()
    for task, expected in (("segmentation", "mean_iou"), ("normal", "mean ")):
        assert run("evaluate", "--task", task, "--predictions", out, "--truth", tmp_path / task) == 0
        line = next(row for row in capsys.readouterr().out.splitlines() if row.startswith(expected))
        assert float(line.split()[-1]) == pytest.approx(1.0 if task == "segmentation" else 0.0, abs=0.1)


def test_evaluate_pose_matches_people_by_name_and_image(models, photos, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": BOXES[:1]}))
    assert run("predict", photos / "a.png", "--model", models["pose"], "--output", tmp_path, "--boxes", boxes) == 0
    person = json.loads((tmp_path / "a.pose.json").read_text())["people"][0]
    flat = [value for point in person["keypoints"] for value in (point["x"], point["y"], 2)]
    annotation = {"id": 1, "image_id": 5, "category_id": 1, "bbox": BOXES[0], "area": 1500.0, "iscrowd": 0}
    truth = {
        "images": [{"id": 5, "file_name": "a.png", "height": 60, "width": 90}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{**annotation, "num_keypoints": 17, "keypoints": flat}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    arguments = ("evaluate", "--task", "pose", "--predictions", tmp_path, "--truth", tmp_path / "truth.json")
    assert run(*arguments) == 0
    scores = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    assert float(scores["AP"]) == pytest.approx(1.0) and scores["num_images"] == "1"


def test_evaluate_names_what_is_missing(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    assert run("evaluate", "--task", "depth", "--predictions", tmp_path / "p", "--truth", tmp_path / "t") == 2
    assert "no folder" in capsys.readouterr().err


def test_info_of_a_file_in_the_original_format(tmp_path, capsys):
    path = write_pth(tmp_path / "pose.pth", Spec())
    assert run("info", path) == 0
    printed = capsys.readouterr().out
    assert "Meta's original format" in printed and "SapiensForPoseEstimation" in printed

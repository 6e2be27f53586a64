"""Prediction on files and the command line, with tiny models on small pictures that are never square."""

import json
import shutil

import numpy as np
import pytest
import torch
from original_files import Spec, write_pth
from PIL import Image
from transformers import YolosConfig

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
    assert "3 of 4 images" in printed.out
    (line,) = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert (
        line.startswith(f"failed: {photos / 'broken.jpg'}: cannot be read as an image (") and line.count("broken") == 1
    )
    assert len(list((tmp_path / "out").rglob("*.depth.npy"))) == 3


def test_a_wrong_box_is_reported_with_its_image(models, photos, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": [[5, 5, 0, 10]], "c.png": [[5, 5, 20, 30]]}))
    assert run("predict", photos, "--model", models["pose"], "--output", tmp_path, "--boxes", boxes) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert f"{photos / 'a.png'}: boxes[0]" in line and "nested" not in line and line.count("a.png") == 1
    assert (tmp_path / "c.pose.json").exists()


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


@pytest.fixture
def two_folders(tmp_path):
    """A/x.jpg, A/y.jpg and B/x.jpg."""
    folders = tmp_path / "A", tmp_path / "B"
    for folder, names, size in zip(folders, (("x.jpg", "y.jpg"), ("x.jpg",)), ((60, 40), (50, 70))):
        folder.mkdir()
        for name in names:
            Image.new("RGB", size, (90, 60, 30)).save(folder / name)
    return folders


def test_inputs_with_the_same_names_do_not_overwrite_each_other(models, two_folders, tmp_path):
    assert run("predict", *two_folders, "--model", models["depth"], "--output", tmp_path / "out") == 0
    shapes = {name: np.load(tmp_path / "out" / f"{name}.depth.npy").shape for name in ("A/x", "A/y", "B/x")}
    assert shapes == {"A/x": (40, 60), "A/y": (40, 60), "B/x": (70, 50)}
    files = prediction.find_images([folder / "x.jpg" for folder in two_folders])
    assert [str(relative) for _, relative in files] == ["A/x", "B/x"]


def test_one_image_by_two_names_of_its_folder_counts_once(two_folders):
    first = two_folders[0]
    files = prediction.find_images([first / "x.jpg", first, first.parent / "B" / ".." / "A"])
    assert [str(relative) for _, relative in files] == ["x", "y"]


def test_names_that_collide_in_spite_of_their_folders_are_refused(two_folders, tmp_path):
    (tmp_path / "C").mkdir()
    again = two_folders[0].rename(tmp_path / "C" / "A")
    two_folders[0].mkdir()
    Image.new("RGB", (30, 20)).save(two_folders[0] / "x.jpg")
    with pytest.raises(ValueError, match=r"A/x\.jpg and .*C/A/x\.jpg would write the same files, A/x"):
        prediction.find_images([two_folders[0], again])


def test_results_inside_an_input_folder_are_no_inputs(models, photos, capsys):
    arguments = ("predict", photos, "--model", models["normal"], "--output", photos / "results", "--overwrite")
    for _ in range(2):
        assert run(*arguments) == 0
        assert "3 of 3 images" in capsys.readouterr().out
    results = prediction.find_images([photos / "results"], exclude=photos / "results")
    assert len(results) == 3  # an input that is asked for is searched


def test_results_beside_their_images_are_no_inputs(models, photos, capsys):
    Image.new("RGB", (50, 40)).save(photos / "a.jpg")  # beside a.png
    arguments = ("predict", photos, "--model", models["depth"], "--output", photos, "--overwrite")
    for _ in range(2):
        assert run(*arguments) == 0
        assert "4 of 4 images" in capsys.readouterr().out
    assert (photos / "a.jpg.depth.png").exists() and (photos / "c.depth.png").exists()
    assert len(prediction.find_images([photos])) == 12  # without an output folder every picture is one: two of depth


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png"], "no file or folder nowhere.png"),
        (["{photos}", "--task", "pose"], "--task depth"),
        (["{photos}", "--dtype", "int8"], "int8 is for the onnxruntime backend"),
        (["{photos}", "--model", "{pose}", "--resize", "direct"], "resize is for segmentation and depth and normal"),
        (["{photos}", "--model", "no/such/folder"], "There is no model at no/such/folder"),
        (["{photos}", "--model", "{photos}/a.png"], "a.png is no model: expected a folder with config.json"),
        (["{photos}", "--model", "{pose}/model.safetensors"], "Pass the folder that it lies in"),
    ],
)
def test_wrong_use_says_what_to_do(arguments, message, models, photos, tmp_path, capsys):
    arguments = [argument.format(photos=photos, pose=models["pose"]) for argument in arguments]
    assert run("predict", "--model", models["depth"], "--output", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_says_what_was_looked_for(models, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("predict", tmp_path / "empty", "--model", models["depth"], "--output", tmp_path) == 2
    assert ".jpg" in capsys.readouterr().err


def test_a_model_without_a_task_head_is_refused(models, photos, tmp_path, capsys):
    config = SapiensConfig.from_pretrained(models["depth"])
    SapiensModel(config).save_pretrained(tmp_path / "encoder")
    assert run("predict", photos, "--model", tmp_path / "encoder", "--output", tmp_path) == 2
    printed = capsys.readouterr().err
    assert "holds SapiensModel, which has no task to predict" in printed and "None" not in printed


def test_a_model_that_does_not_say_its_task(models, photos, tmp_path, capsys):
    shutil.copytree(models["depth"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    arguments = ("predict", photos, "--model", tmp_path / "model", "--output", tmp_path / "out")
    assert run(*arguments) == 2 and "names no architecture" in capsys.readouterr().err
    assert run(*arguments, "--task", "depth") == 0


def test_labels_of_ones_own_are_drawn(photos, tmp_path):
    for task, names in (("pose", {0: "tip", 1: "base"}), ("segmentation", {0: "rest", 1: "glove", 2: "hat"})):
        folder = make_model(tmp_path / task, task, id2label=names, **({"flip_pairs": None} if task == "pose" else {}))
        assert run("predict", photos / "a.png", "--model", folder, "--output", tmp_path) == 0
        assert Image.open(tmp_path / f"a.{task}.png").width >= 90


COCO = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7, "bbox": BOXES[0]}]}


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "boxes.json holds neither"),
        ({"a.png": "person"}, "boxes.json holds neither"),
        (
            {**COCO, "annotations": [{"image_id": 7, "bbox": BOXES[0]}, {"image_id": 8, "bbox": BOXES[0]}]},
            "image_id 8",
        ),
        ({**COCO, "annotations": [{"image_id": 7}]}, r"boxes.json: annotations\[0\] has no bbox"),
        ({**COCO, "images": 3}, "boxes.json has no list 'images' .*: expected a COCO file"),
        ({**COCO, "annotations": [3]}, r"annotations\[0\] has no image_id: 3"),
        ({**COCO, "images": [{"id": 7}]}, r"images\[0\] has no file_name"),
    ],
)
def test_boxes_file_of_another_form(content, message, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        prediction.read_boxes(path)


def test_boxes_file_that_is_no_json_or_missing(tmp_path):
    (tmp_path / "boxes.json").write_text("a.png 1 2 3 4")
    with pytest.raises(ValueError, match="boxes.json is not valid JSON"):
        prediction.read_boxes(tmp_path / "boxes.json")
    with pytest.raises(FileNotFoundError, match="none.json"):
        prediction.read_boxes(tmp_path / "none.json")


def test_other_categories_in_a_coco_file_are_no_people(tmp_path):
    annotations = [{"image_id": 7, "bbox": box, "category_id": kind} for box, kind in zip(BOXES, (2, 1))]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    (tmp_path / "coco.json").write_text(json.dumps({**COCO, "annotations": annotations, "categories": categories}))
    assert prediction.read_boxes(tmp_path / "coco.json") == {"a.png": BOXES[1:]}


def test_boxes_by_path_and_by_base_name(photos):
    Image.new("RGB", (40, 30)).save(photos / "inner" / "a.png")
    files = prediction.find_images([photos])
    boxes = {"a.png": [1], "inner/a.png": [2], "b.jpg": [3], str(photos / "c.png"): [4]}
    matched = prediction.match_boxes(boxes, files)
    assert {path.relative_to(photos).as_posix(): box for path, box in matched.items()} == {
        "a.png": [1], "inner/a.png": [2], "inner/b.jpg": [3], "c.png": [4]
    }  # fmt: skip


def test_boxes_of_a_data_set_with_folders(tmp_path):
    """val/1.png is not train/1.png, also where the input is the folder val itself."""
    for name in ("val/1.png", "val/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = prediction.find_images([tmp_path / "val"])
    boxes = prediction.CocoBoxes({"train/1.png": [1], "val/1.png": [2], "train/2.png": [3]})
    assert prediction.match_boxes(boxes, files) == {tmp_path / "val" / "1.png": [2]}
    moved = prediction.CocoBoxes({"elsewhere/1.png": [1], "2.png": [2]})
    assert prediction.match_boxes(moved, files) == {tmp_path / "val" / "1.png": [1], tmp_path / "val" / "2.png": [2]}


@pytest.mark.parametrize(
    "boxes, message",
    [
        ({"x.jpg": [], "A/y.jpg": []}, r"'x\.jpg' fits 2 images, .*A/x\.jpg, .*B/x\.jpg"),
        ({"A/y.jpg": [], "y.jpg": []}, r"entries 'A/y\.jpg' and 'y\.jpg' both name .*A/y\.jpg"),
        (
            {"A/x.jpg": [], "A/z.jpg": []},
            r"'A/z\.jpg' names none of the 3 input images; did you mean 'A/[xy]\.jpg' or",
        ),
        (
            {"B/x.jpg": [], "someone": [], "noone": []},
            r"'someone' \(and 1 more\) names none .* they are x\.jpg, y",
        ),
        (prediction.CocoBoxes({"q.jpg": []}), "'q.jpg' names none"),
    ],
)
def test_boxes_that_fit_no_image_or_several(boxes, message, two_folders):
    with pytest.raises(ValueError, match=message):
        prediction.match_boxes(boxes, prediction.find_images(two_folders))


def test_a_coco_file_may_hold_more_images_than_the_inputs(two_folders):
    boxes = prediction.CocoBoxes({"A/x.jpg": BOXES, "other/q.jpg": []})
    assert list(prediction.match_boxes(boxes, prediction.find_images(two_folders)).values()) == [BOXES]


# -------------------------------------------------------------------------------------------- options that do not fit
@pytest.mark.parametrize("device", ["cuda:63", "gpu", "meta"])
def test_a_device_that_is_not_there_is_named(device, models, photos, tmp_path, capsys):
    arguments = ("predict", photos, "--model", models["depth"], "--output", tmp_path, "--device", device)
    assert run(*arguments) == 2
    assert f"The device '{device}' cannot be used here" in capsys.readouterr().err
    assert run(*arguments[:-1], "cpu") == 0


@pytest.mark.parametrize("number", ["0", "-2", "many"])
def test_a_batch_size_below_one_is_refused(number, models, photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("predict", photos, "--model", models["depth"], "--output", tmp_path, "--batch-size", number)
    assert stop.value.code == 2 and "--batch-size: expected a whole number of at least 1" in capsys.readouterr().err


def test_a_predictor_refuses_a_batch_size_below_one(models):
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        prediction.Predictor(*prediction.load_model(str(models["depth"])), "cpu", batch_size=0)


@pytest.mark.parametrize(
    "task, arguments, message",
    [
        ("depth", ["--boxes", "{boxes}"], "boxes is for pose"),
        ("normal", ["--detector", "default"], "detector is for pose"),
        ("segmentation", ["--flip-test"], "flip_test is for pose"),
        ("depth", ["--threshold", "0"], "threshold is for pose"),
        ("pose", ["--mask-model", "{mask}"], "mask_model is for depth and normal"),
        ("segmentation", ["--mask-model", "{mask}"], "mask_model is for depth and normal"),
    ],
)
def test_options_of_another_task_are_refused(task, arguments, message, models, photos, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": BOXES}))
    filled = [a.format(boxes=tmp_path / "boxes.json", mask=models["segmentation"]) for a in arguments]
    assert run("predict", photos, "--model", models[task], "--output", tmp_path / "out", *filled) == 2
    assert f"{message}, but the task of the model is {task}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_boxes_for_another_task_are_refused_in_python(models, photos):
    predictor = prediction.Predictor(*prediction.load_model(str(models["depth"])), "cpu")
    with pytest.raises(ValueError, match="boxes is for pose"):
        next(prediction.predict_files(predictor, prediction.find_images([photos]), boxes={}))


@pytest.mark.parametrize("task, error", [("depth", ValueError), ("pose", TypeError)])
def test_a_mistyped_option_is_named(task, error, models):
    with pytest.raises(error, match="flip_tset"):
        prediction.Predictor(*prediction.load_model(str(models[task])), "cpu", flip_tset=True)


def test_out_of_memory_says_what_to_do(models, photos, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(prediction, "predict_folder", fail)
    assert run("predict", photos, "--model", models["depth"], "--output", tmp_path, "--batch-size", 4) == 2
    assert "--batch-size below 4 or --dtype bfloat16" in capsys.readouterr().err


def test_bugs_keep_their_traceback(models, photos, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(prediction, "predict_folder", fail)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        run("predict", photos, "--model", models["depth"], "--output", tmp_path)


def test_a_model_of_another_type_is_refused_by_info(tmp_path, capsys):
    YolosConfig().save_pretrained(tmp_path)
    assert run("info", tmp_path) == 2
    assert "'yolos' model, not Sapiens" in capsys.readouterr().err


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


def test_evaluate_refuses_options_of_other_tasks(tmp_path, capsys):
    places = ("--predictions", tmp_path, "--truth", tmp_path)
    assert run("evaluate", "--task", "pose", *places, "--masks", tmp_path) == 2
    assert "--masks is for --task depth or normal, not for pose" in capsys.readouterr().err
    assert run("evaluate", "--task", "normal", *places, "--align", "scale_shift") == 2
    assert "--align is for --task depth, not for normal" in capsys.readouterr().err


def test_evaluate_names_what_is_missing(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    assert run("evaluate", "--task", "depth", "--predictions", tmp_path / "p", "--truth", tmp_path / "t") == 2
    assert "no folder" in capsys.readouterr().err


def test_info_of_a_file_in_the_original_format(tmp_path, capsys):
    path = write_pth(tmp_path / "pose.pth", Spec())
    assert run("info", path) == 0
    printed = capsys.readouterr().out
    assert "Meta's original format" in printed and "SapiensForPoseEstimation" in printed


@pytest.mark.parametrize("task", ["pose", "depth"])
def test_onnxruntime_writes_what_torch_writes(task, models, photos, tmp_path):
    from conversion.onnx import export_onnx

    export_onnx(str(models[task]), tmp_path / "onnx")
    arguments = ("predict", photos / "a.png", "--model")
    assert run(*arguments, models[task], "--output", tmp_path / "torch") == 0
    assert run(*arguments, tmp_path / "onnx", "--backend", "onnxruntime", "--output", tmp_path / "ort") == 0
    if task == "depth":
        expected, got = (np.load(tmp_path / name / "a.depth.npy") for name in ("torch", "ort"))
    else:
        people = (json.loads((tmp_path / name / "a.pose.json").read_text())["people"] for name in ("torch", "ort"))
        expected, got = ([point["score"] for point in person[0]["keypoints"]] for person in people)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    exported, processor = prediction.load_model(str(tmp_path / "onnx"), backend="onnxruntime")
    with pytest.raises(ValueError, match="device is 'cuda', but an ONNX model was loaded for the CPU"):
        prediction.Predictor(exported, processor, device="cuda")

"""Evaluation of files: equal to the metrics in memory, and clear about what is missing or wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sapiens_hf.evaluation import _read_mask, evaluate_depth, evaluate_normals, evaluate_pose, evaluate_segmentation
from sapiens_hf.labels import convert_keypoints, keypoint_set
from sapiens_hf.metrics import load_metric

GOLDEN = Path(__file__).parent / "golden"
SIZES = {"b": (9, 6), "a": (5, 8), "c.1": (4, 7)}
STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def write_maps(folder, maps, suffix=".npy"):
    folder.mkdir()
    for stem, array in maps.items():
        path = folder / f"{stem}{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path)
    return folder


def golden_results(num_keypoints):
    saved = np.load(GOLDEN / f"metric_oks{num_keypoints}_preds.npz")
    columns = (saved[name] for name in ("img_id", "keypoints", "keypoint_scores", "bbox_scores", "bbox_scales"))
    return [
        {
            "image_id": int(image),
            "category_id": 1,
            "keypoints": np.concatenate([keypoints, scores[:, None]], axis=1).ravel().tolist(),
            "bbox_score": float(box_score),
            "area": float(np.prod(scale)),
        }
        for image, keypoints, scores, box_score, scale in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("num_keypoints", [17, 133])
def test_pose_equals_the_golden_numbers_from_files(tmp_path, num_keypoints):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(golden_results(num_keypoints)))
    ours = evaluate_pose(GOLDEN / f"metric_oks{num_keypoints}_gt.json", str(results), num_keypoints)
    golden = json.loads((GOLDEN / f"metric_oks{num_keypoints}_result.json").read_text())["default"]
    np.testing.assert_allclose([ours[name] for name in STATISTICS], list(golden.values()), rtol=0, atol=1e-12)
    assert "pck" not in ours
    assert ours["num_images"] == len(json.loads((GOLDEN / f"metric_oks{num_keypoints}_gt.json").read_text())["images"])


def test_pose_options_reach_the_metric():
    golden = json.loads((GOLDEN / "metric_oks133_result.json").read_text())
    truth = json.loads((GOLDEN / "metric_oks133_gt.json").read_text())
    for variant, threshold in (("nms05", 0.5), ("nonms", None)):
        ours = evaluate_pose(truth, golden_results(133), "coco_wholebody", nms_threshold=threshold)
        assert ours["AP"] == pytest.approx(golden[variant]["AP"], abs=1e-12)


def one_person(num_keypoints, **more):
    rng = np.random.default_rng(num_keypoints)
    keypoints = np.concatenate([rng.uniform(10, 200, (num_keypoints, 2)), np.full((num_keypoints, 1), 2)], axis=1)
    annotation = {"id": 8, "image_id": 4, "category_id": 1, "bbox": [10, 10, 150, 200], "area": 15000.0}
    annotation |= {"keypoints": keypoints.ravel().tolist(), **more}
    truth = {"images": [{"id": 4, "file_name": "x.jpg"}], "annotations": [annotation]}
    truth["categories"] = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    return truth, {"image_id": 4, "keypoints": annotation["keypoints"], "bbox": [10, 10, 150, 200]}


def test_other_categories_do_not_count():
    truth, guess = one_person(17)
    dog = {**truth["annotations"][0], "id": 9, "category_id": 2}
    truth["annotations"].append(dog)
    assert evaluate_pose(truth, [guess, {**guess, "category_id": 2}], "coco")["AR"] == 1.0


def test_pck_when_predictions_name_their_annotation():
    truth, guess = one_person(17)
    keypoints = np.reshape(guess["keypoints"], (17, 3))
    keypoints[:3, 0] += 20.0  # the diagonal is 250 px
    answer = {**guess, "keypoints": keypoints.tolist(), "annotation_id": 8}
    result = evaluate_pose(truth, [answer], "coco")
    assert result["pck"] == result["mean_keypoint_pck"] == 14 / 17
    assert evaluate_pose(truth, [answer], "coco", pck_threshold=0.1)["pck"] == 1.0
    assert "pck" not in evaluate_pose(truth, [answer, answer], "coco")
    assert "pck" not in evaluate_pose(truth, [], "coco")


def test_pck_where_the_boxes_were_the_annotations():
    truth, guess = one_person(17)
    other = {**truth["annotations"][0], "id": 9, "bbox": [30.5, 10, 100, 90.25]}
    truth["annotations"].append(other)
    second = {**guess, "bbox": [30.50001, 10, 100, 90.25]}
    assert evaluate_pose(truth, [second, guess], "coco")["pck"] == 1.0
    for others in ([guess], [guess, guess], [guess, {**second, "bbox": [30, 10, 100, 90]}]):
        assert "pck" not in evaluate_pose(truth, others, "coco")


def test_only_people_need_keypoints_and_boxes():
    """Dogs have none; of a person without, nothing is labelled; null is nothing."""
    truth, guess = one_person(17)
    alone = evaluate_pose(truth, [guess], "coco")
    truth["categories"] = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    person = {**truth["annotations"][0], "category_id": 1, "id": 8}
    dog = {"id": 9, "image_id": person["image_id"], "category_id": 2}
    far = {**{k: v for k, v in person.items() if k != "keypoints"}, "id": 10, "bbox": [900.0, 900.0, 20.0, 30.0]}
    truth["annotations"] = [dog, person, far]
    assert evaluate_pose(truth, [{**guess, "bbox": None}], "coco", nms_threshold=None)["AP"] == alone["AP"]
    with pytest.raises(ValueError, match="The prediction 0 has no keypoints"):
        evaluate_pose(truth, [{**guess, "keypoints": None}], "coco")
    with pytest.raises(ValueError, match=r"bbox has 5 numbers; expected x, y, width, height"):
        evaluate_pose(truth, [{**guess, "bbox": [1.0, 2.0, 3.0, 4.0, 5.0]}], "coco")


def test_goliath_annotations_and_groups():
    truth, guess = one_person(308)
    truth["annotations"][0]["goliath_wholebody_kpts"] = truth["annotations"][0]["keypoints"]
    truth["annotations"][0]["keypoints"] = [0.0] * 51
    result = evaluate_pose(truth, [guess], "goliath")
    assert result["face_AP"] == result["extra_AP"] == result["AP"] == pytest.approx(1.0)


def test_goliath_predictions_are_converted_to_the_smaller_set():
    truth, guess = one_person(308)
    goliath = np.reshape(guess["keypoints"], (308, 3))
    body = convert_keypoints(goliath[:, :2], goliath[:, 2], to="coco")
    flat = np.concatenate([body.keypoints, body.scores[:, None]], axis=1).ravel().tolist()
    truth["annotations"][0]["keypoints"] = flat
    assert evaluate_pose(truth, [guess], "coco")["AP"] == pytest.approx(1.0)

    parts = convert_keypoints(goliath[:, :2], goliath[:, 2], to="coco_wholebody")
    whole = np.concatenate([parts.keypoints, parts.scores[:, None]], axis=1)
    cuts = np.split(whole, [17, 23, 91, 112])
    names = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
    truth["annotations"][0] |= {name: cut.ravel().tolist() for name, cut in zip(names, cuts, strict=True)}
    result = evaluate_pose(truth, [guess], "coco_wholebody")
    assert result["body_AP"] == result["foot_AP"] == result["lefthand_AP"] == pytest.approx(1.0)
    assert result["face_AP"] == -1.0  # Goliath shares no face point, and nothing is labelled here


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 5}, "prediction is of image_id 5"),
        ({"keypoints": [1.0, 2.0]}, r"x\.jpg.*2 numbers"),
        ({"keypoints": [1.0] * 15}, r"x\.jpg.*5 keypoints, expected 17 of coco"),
        ({"keypoints": [float("nan")] * 51}, r"x\.jpg: .*NaN"),
        ({"keypoints": "abc"}, r"x\.jpg .*keypoints is abc; expected a list of numbers"),
        ({"keypoints": [{"x": 1}] * 17}, r"x\.jpg .*expected a list of numbers"),
        ({"image_id": [4]}, r"prediction is of image_id \[4\]"),
        ({"bbox_score": "high"}, r"x\.jpg .*bbox_score is \['high'\]; expected a list of numbers"),
        ({"score": float("nan")}, r"x\.jpg .*score is nan; expected a finite number"),
    ],
)
def test_bad_predictions_name_the_image(changes, message):
    truth, guess = one_person(17)
    with pytest.raises(ValueError, match=message):
        evaluate_pose(truth, [guess | changes], "coco")


def test_people_of_predict_in_another_form_are_named(tmp_path):
    truth, _ = one_person(17)
    truth["images"][0]["file_name"] = "a.png"
    box, path = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, tmp_path / "a.pose.json"
    for person, message in (
        ({"box": box, "score": 1}, r"a\.pose\.json: people\[0\] has no keypoints"),
        ({"keypoints": [], "score": 1, "box": {"xmin": 1}}, "people.0. has no ymin and no xmax and no ymax"),
        ({"keypoints": [{"label": "nose"}], "score": 1, "box": box}, "people.0. has no x and no y and no score"),
    ):
        path.write_text(json.dumps({"image": "a.png", "people": [person]}))
        with pytest.raises(ValueError, match=message):
            evaluate_pose(truth, tmp_path, "coco")


def test_normals_are_no_depth(tmp_path):
    write_maps(tmp_path / "maps", {"a": np.ones((6, 5, 3), np.float32)})
    with pytest.raises(ValueError, match=r"a: A map is \(6, 5, 3\); expected depth"):
        evaluate_depth(tmp_path / "maps", tmp_path / "maps")


def test_bad_json_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        evaluate_pose(tmp_path / "nothing.json", [], "coco")
    for content in (b'{"images": [', b"\xff\xd8 no text"):
        (tmp_path / "half.json").write_bytes(content)
        with pytest.raises(ValueError, match="half.json is not valid JSON"):
            evaluate_pose(tmp_path / "half.json", [], "coco")


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([], r"truth.json has no list 'images' \(list\)"),
        ({"annotations": [], "info": {}}, r"truth.json has no list 'images' \(keys \['annotations', 'info'\]\)"),
        ({"annotations": [], "images": []}, "truth.json has an empty list of images"),
        ({"annotations": [], "images": [{"file_name": "x.jpg"}]}, r"truth.json: images\[0\] has no id"),
        ({"annotations": [], "images": [{"id": 4}], "categories": [{}]}, r"truth.json: categories\[0\] has no id"),
        (one_person(17, bbox=None)[0], r"x\.jpg: A reference lacks bbox; expected a COCO annotation"),
        (one_person(17, bbox=["1", 2, 3, 4])[0], "bbox is .*; expected a list of numbers"),
        (
            {"annotations": [{"image_id": 4}], "images": [{"id": 4}]},
            "4: A reference lacks bbox, area; expected a COCO annotation",
        ),
    ],
)
def test_truth_of_another_form_is_named(tmp_path, truth, message):
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match=message):
        evaluate_pose(tmp_path / "truth.json", [], "coco")


def test_predictions_of_another_form_are_named(tmp_path):
    truth, guess = one_person(17)
    (tmp_path / "results.json").write_text(json.dumps(guess))
    with pytest.raises(ValueError, match="results.json holds a dict; expected COCO results"):
        evaluate_pose(truth, tmp_path / "results.json", "coco")
    with pytest.raises(ValueError, match="prediction 1 has no image_id: 7"):
        evaluate_pose(truth, (guess, 7), "coco")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.pose.json").write_text("[]")
    with pytest.raises(ValueError, match=r"x\.pose\.json has no image and no people"):
        evaluate_pose(truth, folder, "coco")
    del truth["images"][0]["file_name"]
    with pytest.raises(ValueError, match="image 0 of the ground truth has no file_name"):
        evaluate_pose(truth, folder, "coco")


@pytest.mark.parametrize("content", [b"", b"no array at all"])
def test_a_broken_array_is_named(tmp_path, content):
    folders = [write_maps(tmp_path / name, {"a": np.ones((5, 4))}) for name in ("pred", "gt")]
    (folders[0] / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        evaluate_depth(*folders)


@pytest.fixture
def label_maps():
    rng = np.random.default_rng(6)
    return [{stem: rng.integers(0, 19, size).astype(np.uint8) for stem, size in SIZES.items()} for _ in range(2)]


def test_segmentation_equals_the_metric_in_memory(tmp_path, label_maps):
    predictions, references = label_maps
    references["a"][0, 0] = 255
    folders = write_maps(tmp_path / "pred", predictions), write_maps(tmp_path / "gt", references, ".png")
    result = evaluate_segmentation(*folders, "face_synthetics19")
    expected = load_metric("mean_iou").compute(
        predictions=list(predictions.values()), references=list(references.values()), num_labels=19
    )
    assert result["mean_iou"] == expected["mean_iou"]
    assert result["iou_Nose"] == expected["per_category_iou"][2]
    assert result["accuracy_Background"] == expected["per_category_accuracy"][0]
    assert result["num_images"] == 3
    assert all(isinstance(value, float | int) for value in result.values())


def test_segmentation_with_another_ignored_label(tmp_path, label_maps):
    folders = [write_maps(tmp_path / name, label_maps[0], ".png") for name in ("pred", "gt")]
    everything = evaluate_segmentation(*folders, 19)
    without = evaluate_segmentation(*folders, 19, ignore_index=0)
    assert everything["accuracy_Background"] == 1.0
    assert np.isnan(without["accuracy_Background"])


def test_own_keypoints(tmp_path):
    """COCO's first five points as a set of one's own: the same scores as by hand, and as converted from all 17."""
    points = keypoint_set("coco")
    truth = json.loads((GOLDEN / "metric_oks17_gt.json").read_text())
    results = golden_results(17)
    few = [{**person, "keypoints": person["keypoints"][:15]} for person in results]
    for person in truth["annotations"]:
        person["keypoints"] = person["keypoints"][:15]
        person["num_keypoints"] = int((np.array(person["keypoints"][2::3]) > 0).sum())
    path = tmp_path / "face.json"
    path.write_text(json.dumps({"names": points.names[:5], "sigmas": points.sigmas[:5]}))
    ours = evaluate_pose(truth, few, str(path))
    metric = load_metric("keypoint_ap")
    for image in truth["images"]:
        prediction, reference = (
            [
                {**person, "keypoints": np.reshape(person["keypoints"], (-1, 3))}
                for person in people
                if person["image_id"] == image["id"]
            ]
            for people in (few, truth["annotations"])
        )
        metric.add(prediction=prediction, reference=reference)
    assert {name: ours[name] for name in STATISTICS} == metric.compute(sigmas=points.sigmas[:5])
    assert 0 < ours["AP"] < 1
    path.write_text(json.dumps({"names": points.names[:5]}))
    assert evaluate_pose(truth, few, str(path))["AP"] > ours["AP"]  # COCO's sigmas of the face are its smallest
    for content, message in (
        ({"names": points.names[:5], "sigmas": [0.1] * 4}, "face.json: sigmas has 4 entries for 5 names"),
        ({"names": points.names[:5], "sigmas": "wide"}, "face.json: sigmas is wide"),
        ({"names": ["nose", "nose"]}, "face.json: names holds 'nose' twice"),
        ({"names": "nose"}, "face.json: names is 'nose'"),
        ({"points": []}, "face.json has unknown keys points"),
        ({"names": points.names[:4]}, "has 5 keypoints, expected 4 of face"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            evaluate_pose(truth, few, str(path))


def test_own_classes_and_labels_that_are_none(tmp_path):
    names = tmp_path / "classes.json"
    names.write_text(json.dumps({"names": ["ground", "hat", "bag"], "ignore_index": 9}))
    for folder, values in (("truth", [[0, 1, 9], [2, 1, 0]]), ("guess", [[0, 1, 1], [1, 1, 0]])):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / folder / "a.png")
    result = evaluate_segmentation(tmp_path / "guess", tmp_path / "truth", str(names))
    assert result["iou_hat"] == pytest.approx(2 / 3) and result["iou_bag"] == 0.0 and result["overall_accuracy"] == 0.8
    with pytest.raises(ValueError, match=r"truth.a.png holds the labels \[9\], expected 0 to 2"):
        evaluate_segmentation(tmp_path / "guess", tmp_path / "truth", str(names), ignore_index=255)
    Image.fromarray(np.array([[0, 1, 1], [77, 3, 0]], np.uint8)).save(tmp_path / "guess" / "a.png")
    with pytest.raises(ValueError, match=r"guess.a.png holds the labels \[3, 77\], expected 0 to 2"):
        evaluate_segmentation(tmp_path / "guess", tmp_path / "truth", str(names))
    names.write_text("{}")
    with pytest.raises(ValueError, match="classes.json has no list `names`"):
        evaluate_segmentation(tmp_path / "guess", tmp_path / "truth", str(names))


def test_traces_of_jpeg_are_no_mask(tmp_path):
    mask = np.zeros((24, 40), np.uint8)
    mask[5:17, 11:30] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=60)
    assert ((np.asarray(Image.open(tmp_path / "a.jpg")) > 0) != (mask > 0)).any()
    np.testing.assert_array_equal(_read_mask(tmp_path / "a.jpg"), mask > 0)


def test_depth_equals_the_metric_in_memory(tmp_path):
    rng = np.random.default_rng(7)
    predictions, references = [{s: rng.uniform(0.5, 3, size) for s, size in SIZES.items()} for _ in range(2)]
    masks = {stem: (rng.random(size) < 0.7).astype(np.uint8) * 255 for stem, size in SIZES.items()}
    colour = {stem: np.stack([mask] * 3, axis=-1) for stem, mask in masks.items()}
    folders = [write_maps(tmp_path / "pred", predictions), write_maps(tmp_path / "gt", references)]
    metric = load_metric("depth_metrics")
    lists = {"predictions": list(predictions.values()), "references": list(references.values())}
    for mask_dir in (write_maps(tmp_path / "gray", masks, ".png"), write_maps(tmp_path / "rgb", colour, ".png")):
        expected = metric.compute(**lists, masks=list(masks.values()), align="scale_shift")
        assert evaluate_depth(*folders, mask_dir, "scale_shift") == pytest.approx(expected, rel=1e-12)
    arrays = write_maps(tmp_path / "arrays", masks)
    assert evaluate_depth(*folders, arrays)["rmse"] == pytest.approx(
        metric.compute(**lists, masks=list(masks.values()))["rmse"], rel=1e-12
    )
    assert evaluate_depth(*folders)["rmse"] == pytest.approx(metric.compute(**lists)["rmse"], rel=1e-12)


def test_normals_in_both_orders_of_axes(tmp_path):
    rng = np.random.default_rng(8)
    predictions, references = [{s: rng.normal(size=(3, *size)) for s, size in SIZES.items()} for _ in range(2)]
    expected = load_metric("normal_metrics").compute(
        predictions=list(predictions.values()), references=list(references.values())
    )
    last = {stem: np.moveaxis(normals, 0, -1) for stem, normals in references.items()}
    result = evaluate_normals(write_maps(tmp_path / "pred", predictions), write_maps(tmp_path / "gt", last))
    assert result == pytest.approx(expected, rel=1e-12)


def test_missing_files_are_named(tmp_path, label_maps):
    references = write_maps(tmp_path / "gt", label_maps[0])
    with pytest.raises(FileNotFoundError, match="no folder .*pred"):
        evaluate_segmentation(tmp_path / "pred", references)
    empty = write_maps(tmp_path / "pred", {})
    with pytest.raises(FileNotFoundError, match="holds no file"):
        evaluate_segmentation(empty, references)
    np.save(empty / "a.npy", label_maps[0]["a"])
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of the 3 files.*b, c\.1 \(with"):
        evaluate_segmentation(empty, references)
    Image.fromarray(label_maps[0]["a"]).save(empty / "a.png")
    with pytest.raises(ValueError, match="several files named a"):
        evaluate_segmentation(empty, references)


def test_many_missing_files_are_cut_short(tmp_path):
    references = write_maps(tmp_path / "gt", {f"{k}": np.ones((2, 3)) for k in range(7)})
    predictions = write_maps(tmp_path / "pred", {"other": np.ones((2, 3))})
    with pytest.raises(FileNotFoundError, match=r"lacks 7 of the 7 .*0, 1, 2, 3, 4, \.\.\."):
        evaluate_depth(predictions, references)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.ones((4, 5)), r"^a: The sizes"),
        (np.full((5, 4), np.nan), "^a: A prediction is NaN"),
    ],
)
def test_bad_depth_names_the_sample(tmp_path, prediction, message):
    folders = write_maps(tmp_path / "pred", {"a": prediction}), write_maps(tmp_path / "gt", {"a": np.ones((5, 4))})
    with pytest.raises(ValueError, match=message):
        evaluate_depth(*folders)


def test_bad_maps_name_the_sample(tmp_path):
    floats = write_maps(tmp_path / "float", {"a": np.ones((5, 4))})
    colours = write_maps(tmp_path / "colour", {"a": np.ones((5, 4, 3), np.uint8)}, ".png")
    flat = write_maps(tmp_path / "flat", {"a": np.ones((5, 4))})
    labels = write_maps(tmp_path / "labels", {"a": np.ones((5, 4), np.uint8)}, ".png")
    with pytest.raises(ValueError, match="^a: .*argmax"):
        evaluate_segmentation(floats, labels)
    with pytest.raises(ValueError, match=r"^a: .*a\.png is \(5, 4, 3\)"):
        evaluate_segmentation(colours, labels)
    with pytest.raises(ValueError, match=r"^a: .*a\.npy is \(5, 4\), expected \(height, width, 3\)"):
        evaluate_normals(flat, flat)


def test_every_set_has_the_whole_body_keys_order():
    assert keypoint_set("coco_wholebody").groups["foot"] == tuple(range(17, 23))
    assert keypoint_set("coco_wholebody").groups["right_hand"] == tuple(range(112, 133))

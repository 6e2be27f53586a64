"""keypoint_ap and pck against the golden numbers, pycocotools itself, and hand-made cases."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sapiens_hf import metrics
from sapiens_hf.heatmaps_sapiens import boxes_to_crops
from sapiens_hf.labels import keypoint_set
from sapiens_hf.metrics import load_metric

GOLDEN = Path(__file__).parent / "golden"
STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
PARTS = {"body": 17, "foot": 6, "face": 68, "lefthand": 21, "righthand": 21}
SETS = {17: "coco", 133: "coco_wholebody"}


@pytest.fixture(scope="module")
def metric():
    return load_metric("keypoint_ap")


@pytest.fixture(scope="module")
def pck():
    return load_metric("pck")


@pytest.fixture(scope="module")
def script():
    """The metric's own functions, from its file."""
    path = Path(metrics.__file__).parent / "keypoint_ap" / "keypoint_ap.py"
    spec = importlib.util.spec_from_file_location("keypoint_ap_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_persons(num_keypoints):
    """Predictions and references per image, as the metric takes them."""
    truth = json.loads((GOLDEN / f"metric_oks{num_keypoints}_gt.json").read_text())
    saved = np.load(GOLDEN / f"metric_oks{num_keypoints}_preds.npz")
    references = {image["id"]: [] for image in truth["images"]}
    predictions = {image["id"]: [] for image in truth["images"]}
    for person in truth["annotations"]:
        parts = ["keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"]
        keypoints = sum((person.get(part, []) for part in parts), [])
        references[person["image_id"]].append({**person, "keypoints": keypoints})
    columns = ("id", "img_id", "keypoints", "keypoint_scores", "bbox_scores", "bbox_scales")
    for number, image, keypoints, scores, box_score, scale in zip(*(saved[name] for name in columns), strict=True):
        person = {"keypoints": keypoints, "scores": scores, "bbox_score": box_score, "area": np.prod(scale)}
        predictions[int(image)].append(person | {"number": int(number)})
    return list(predictions.values()), list(references.values())


@pytest.mark.parametrize("num_keypoints", SETS)
@pytest.mark.parametrize(
    ("variant", "options"),
    [("default", {}), ("nms05", {"nms_threshold": 0.5}), ("bbox", {}), ("nonms", {"nms_threshold": None})],
)
def test_equals_the_golden_numbers(metric, num_keypoints, variant, options):
    golden = json.loads((GOLDEN / f"metric_oks{num_keypoints}_result.json").read_text())[variant]
    predictions, references = golden_persons(num_keypoints)
    if variant == "bbox":
        for person in sum(predictions, []):
            person["score"] = person["bbox_score"]
    result = metric.compute(
        predictions=predictions, references=references, keypoint_set=SETS[num_keypoints], **options
    )
    np.testing.assert_allclose([result[name] for name in STATISTICS], list(golden.values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_keypoints", SETS)
def test_nms_keeps_as_many_as_the_golden(script, num_keypoints):
    golden = json.loads((GOLDEN / f"metric_oks{num_keypoints}_result.json").read_text())
    predictions, _ = golden_persons(num_keypoints)
    sigmas, groups = script.read_keypoint_set(SETS[num_keypoints])
    for variant, threshold in (("default", 0.9), ("nms05", 0.5), ("nonms", None)):
        packed = [script._table([script._prediction_row(person) for person in image]) for image in predictions]
        kept = [script.detections(image, sigmas, np.array(groups["body"]), threshold, 0.2) for image in packed]
        assert sum(map(len, kept)) == golden[f"{variant}_n_kept"]


def test_parts_equal_xtcocotools(metric):
    golden = json.loads((GOLDEN / "metric_oks133_parts.json").read_text())["statistics"]
    predictions, references = golden_persons(133)
    truth = json.loads((GOLDEN / "metric_oks133_gt.json").read_text())["annotations"]
    without_hand = {person["id"] for number, person in enumerate(truth) if number % 3 == 0}
    for person in sum(references, []):
        if person["id"] in without_hand:
            keypoints = np.reshape(person["keypoints"], (133, 3))
            keypoints[91:112, 2] = 0
            person["keypoints"] = keypoints
    for person in sum(predictions, []):
        person["score"] = person["bbox_score"]
        if person["number"] % 4 == 0:
            person["scores"] = np.where((np.arange(133) >= 23) & (np.arange(133) < 91), 0.0, person["scores"])
    result = metric.compute(
        predictions=predictions, references=references, keypoint_set="coco_wholebody", nms_threshold=None
    )
    for part in (*PARTS, "wholebody"):
        ours = [result[f"{part}_{name}"] for name in STATISTICS]
        np.testing.assert_allclose(ours, golden[part], rtol=0, atol=1e-12, err_msg=part)


def test_equals_plain_pycocotools_with_crowds_and_unlabelled_people(metric):
    rng = np.random.default_rng(4)
    images, annotations, results = range(5), [], []
    for image in images:
        for _ in range(3):
            box = [*rng.uniform(0, 300, 2), *rng.uniform(30, 200, 2)]
            points = rng.uniform(0, 1, (17, 2)) * box[2:] + box[:2]
            visibility = rng.integers(0, 3, (17, 1)) * (rng.random() < 0.8)
            keypoints = np.concatenate([points, visibility], axis=1).ravel().tolist()
            number, crowd = len(annotations) + 1, int(rng.random() < 0.2)
            annotation = {"id": number, "image_id": image, "category_id": 1, "iscrowd": crowd, "bbox": box}
            annotation |= {"area": 0.6 * box[2] * box[3], "keypoints": keypoints}
            annotations.append(annotation | {"num_keypoints": int((visibility > 0).sum())})
            noisy = points + rng.normal(0, 6, (17, 2))
            scored = np.concatenate([noisy, np.full((17, 1), 0.7)], axis=1).ravel().tolist()
            results.append({"image_id": image, "category_id": 1, "keypoints": scored, "score": float(rng.random())})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": i} for i in images], "categories": [{"id": 1}], "annotations": annotations}
        truth.createIndex()
        truth.dataset["info"] = {}
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_image = [[[p for p in people if p["image_id"] == i] for i in images] for people in (results, annotations)]
    ours = metric.compute(predictions=by_image[0], references=by_image[1], keypoint_set="coco", nms_threshold=None)
    assert list(ours) == list(STATISTICS)
    np.testing.assert_allclose(list(ours.values()), evaluation.stats, rtol=0, atol=1e-12)
    assert 0.1 < ours["AP"] < 0.9


@pytest.mark.parametrize("name", ["oks_iou", "oks308_iou"])
def test_similarity_equals_the_golden(script, name):
    golden = np.load(GOLDEN / f"metric_{name}.npz")
    keypoints = np.stack([golden["g"], *golden["d"]]).reshape(5, -1, 3)[:, :, :2]
    areas = np.array([golden["a_g"], *golden["a_d"]])
    similar = script.oks_with_one(keypoints, areas, 0, golden["sigmas"])
    np.testing.assert_allclose(similar[1:], golden["oks"], rtol=2e-6)
    assert similar[0] == 1.0


def test_nms_of_308_keypoints_equals_the_golden(script):
    golden = np.load(GOLDEN / "metric_oks308_iou.npz")
    keypoints = golden["d"].reshape(4, 308, 3)[:, :, :2]
    areas = np.full(4, golden["nms_area"])
    for threshold in (0.2, 0.5, 0.9):
        kept = script.oks_nms(keypoints, areas, golden["nms_scores"], golden["sigmas"], threshold)
        np.testing.assert_array_equal(kept, golden[f"nms_keep_thr{threshold}"])


def test_sigmas_and_parts_are_those_of_the_label_module(script):
    for name, count in (("coco", 17), ("coco_wholebody", 133), ("goliath", 308)):
        sigmas, groups = script.read_keypoint_set(name)
        assert sigmas.tolist() == list(keypoint_set(name).sigmas)
        assert len(sigmas) == count
        for part, ids in groups.items():
            ours = {"lefthand": "left_hand", "righthand": "right_hand"}.get(part, part)
            assert ids == list(keypoint_set(name).groups[ours])


def test_the_nms_area_is_that_of_the_crop(script):
    boxes = np.array([[3.0, 5.0, 40.0, 90.0], [0.0, 0.0, 200.0, 50.0], [9.0, 9.0, 75.0, 100.0]])
    _, scales = boxes_to_crops(torch.tensor(boxes), (1024, 768))
    np.testing.assert_allclose(script.crop_areas(boxes), scales.prod(dim=1), rtol=1e-6)


def test_instance_scores(script):
    scores = np.array([[0.9, 0.5, 0.2], [0.1, 0.2, 0.15]])
    np.testing.assert_allclose(script.instance_scores(scores, np.array([0.5, 0.8]), 0.2), [0.35, 0.0])


def perfect_person(seed, num_keypoints, part=None):
    """An annotation and the prediction that hits it; with `part`, the prediction is right there and far off else."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(20, 220, (num_keypoints, 2))
    truth = np.concatenate([points, np.full((num_keypoints, 1), 2)], axis=1)
    guess = truth.copy()
    if part is not None:
        far = np.setdiff1d(np.arange(num_keypoints), part)
        guess[far, :2] += 1000.0
    annotation = {"keypoints": truth, "bbox": [20, 20, 200, 200], "area": 30000.0}
    return annotation, {"keypoints": guess, "bbox": [20, 20, 200, 200], "bbox_score": 0.9}


def test_goliath_groups(metric):
    groups = keypoint_set("goliath").groups
    people = [perfect_person(seed, 308, groups["left_hand"]) for seed in range(3)]
    result = metric.compute(
        predictions=[[guess] for _, guess in people],
        references=[[truth] for truth, _ in people],
        keypoint_set="goliath",
    )
    assert result["lefthand_AP"] == pytest.approx(1.0)
    for part in ("body", "foot", "face", "righthand", "extra", "wholebody"):
        assert result[f"{part}_AP"] == 0.0, part
    assert result["AP"] == 0.0
    assert result["lefthand_APM"] == -1.0


def test_own_sigmas_and_groups(metric):
    truth, guess = perfect_person(1, 5, [0, 1])
    options = {"sigmas": torch.full((5,), 0.05), "groups": {"first": [0, 1], "rest": [2, 3, 4]}}
    result = metric.compute(predictions=[[guess]], references=[[truth]], **options)
    assert (result["first_AP"], result["rest_AP"]) == (pytest.approx(1.0), 0.0)
    plain = metric.compute(predictions=[[guess]], references=[[truth]], sigmas=[0.05] * 5)
    assert list(plain) == list(STATISTICS)


def test_streaming_equals_one_call(metric):
    predictions, references = golden_persons(17)
    at_once = metric.compute(predictions=predictions, references=references, keypoint_set="coco")
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    assert metric.compute(keypoint_set="coco") == at_once


def test_images_without_people_on_either_side(metric):
    truth, guess = perfect_person(2, 17)
    result = metric.compute(predictions=[[guess], [], []], references=[[truth], [truth], []], keypoint_set="coco")
    assert result["AR"] == 0.5
    only_false = metric.compute(predictions=[[guess]], references=[[]], keypoint_set="coco")
    assert only_false["AP"] == -1.0


def test_nothing_is_printed(metric, capsys):
    truth, guess = perfect_person(2, 17)
    metric.compute(predictions=[[guess]], references=[[truth]], keypoint_set="coco")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change_guess", "change_truth", "options", "message"),
    [
        ({}, {}, {}, "either keypoint_set= or sigmas="),
        ({}, {}, {"keypoint_set": "coc"}, "coco_wholebody"),
        ({}, {}, {"keypoint_set": "coco_wholebody"}, "has 17 keypoints, but the keypoint set has 133"),
        ({"keypoints": np.ones((17, 2))}, {}, {"keypoint_set": "coco"}, "scores"),
        ({"keypoints": np.full((17, 3), np.nan)}, {}, {"keypoint_set": "coco"}, "NaN"),
        ({}, {"area": None}, {"keypoint_set": "coco"}, "lacks area"),
        ({"bbox": None}, {}, {"keypoint_set": "coco"}, "nms_threshold=None"),
    ],
)
def test_bad_input_is_refused(change_guess, change_truth, options, message):
    truth, guess = perfect_person(3, 17)
    guess = {key: value for key, value in {**guess, **change_guess}.items() if value is not None}
    truth = {key: value for key, value in {**truth, **change_truth}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_metric("keypoint_ap").compute(predictions=[[guess]], references=[[truth]], **options)


def test_mixed_keypoint_counts_and_missing_images_are_refused(metric):
    truth, guess = perfect_person(3, 17)
    with pytest.raises(ValueError, match="different numbers of keypoints"):
        metric.add(prediction=[guess, perfect_person(3, 5)[1]], reference=[truth])
    with pytest.raises(ValueError, match="2 images but references of 1"):
        metric.add_batch(predictions=[[guess], []], references=[[truth]])


@pytest.mark.parametrize(
    "guess, message",
    [
        ({"bbox": [0, 0, 5, 5]}, "A prediction lacks keypoints"),
        ("abc", "A prediction is a str; expected per image a list of persons"),
        ({"keypoints": np.ones((17, 3)), "bbox": None}, "A prediction lacks bbox"),
        ({"keypoints": np.ones((17, 3)), "area": "wide"}, "box, area and scores are expected as numbers"),
        ({"keypoints": np.ones((17, 3)), "area": 1.0, "bbox_score": np.nan}, "NaN as its bbox_score"),
    ],
)
def test_predictions_of_another_form_are_refused(metric, guess, message):
    with pytest.raises(ValueError, match=message):
        metric.add(prediction=[guess], reference=[])


def test_a_lone_metric_folder_asks_for_sigmas(script, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="sigmas="):
        script.read_keypoint_set("coco")


def people_for_pck():
    """Two persons of four keypoints: offsets in pixels of the predictions, visibilities, boxes."""
    rng = np.random.default_rng(0)
    truths = [np.concatenate([rng.uniform(0, 99, (4, 2)), [[v] for v in row]], axis=1) for row in ([2, 1, 2, 0],) * 2]
    offsets = [[0.0, 4.9, 5.1, 900.0], [10.0, 1.0, 30.0, np.nan]]
    guesses = [truth[:, :2] + np.stack([row, np.zeros(4)], axis=1) for truth, row in zip(truths, offsets, strict=True)]
    boxes = [[7.0, 3.0, 60.0, 80.0], [1.0, 2.0, 160.0, 120.0]]  # diagonals 100 and 200 px
    return {"predictions": guesses, "references": truths, "bboxes": boxes}


def test_pck_of_known_distances(pck):
    result = pck.compute(**people_for_pck())
    assert result["pck"] == 4 / 6
    assert result["per_keypoint_pck"][:3] == [1.0, 1.0, 0.0]
    assert np.isnan(result["per_keypoint_pck"][3])
    assert result["mean_keypoint_pck"] == 2 / 3
    assert result["num_keypoints_counted"] == 6


def test_pck_options(pck):
    people = people_for_pck()
    assert pck.compute(**people, min_visibility=2)["num_keypoints_counted"] == 4
    assert pck.compute(**people, norm="max_side")["per_keypoint_pck"][0] == 0.5  # 10 px > 0.05 * 160 px
    assert pck.compute(**people, threshold=0.5)["pck"] == 1.0


def test_pck_streams(pck):
    people = people_for_pck()
    at_once = pck.compute(**people)
    for person in range(2):
        arrays = [torch.tensor(people[name][person]) for name in ("predictions", "references", "bboxes")]
        pck.add(prediction=arrays[0], reference=arrays[1], bbox=arrays[2])
    np.testing.assert_equal(pck.compute(), at_once)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bboxes": None}, "no bboxes"),
        ({"bboxes": [[0, 0, 5, 5], [0, 0, 0, 5]]}, r"persons \[1\] have no area"),
        ({"predictions": [np.ones((3, 2)), np.ones((4, 2))]}, r"Person 0: predictions are \(3, 2\)"),
        ({"predictions": [np.ones((4, 2)), np.full((4, 2), np.nan)]}, r"Person 1: keypoints \[0, 1, 2\] are NaN"),
        ({"norm": "torso"}, "'torso'"),
        ({"min_visibility": 3}, "No keypoint of the 2 persons"),
        (
            {"references": [np.ones((4, 3)), np.ones((5, 3))], "predictions": [np.ones((4, 2)), np.ones((5, 2))]},
            "4, 5",
        ),
    ],
)
def test_pck_refuses_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        load_metric("pck").compute(**{**people_for_pck(), **changes})


def test_pck_of_nobody_is_not_a_number():
    with pytest.raises(ValueError, match="no persons"):
        load_metric("pck").compute(predictions=[], references=[], bboxes=[])

"""The pipelines that Sapiens adds, and transformers' own with Sapiens models."""

import http.server
import json
import logging
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import enliven, tiny_model
from transformers import Pipeline, YolosConfig, YolosForObjectDetection, YolosImageProcessor, pipeline
from transformers.utils import logging as hf_logging

import sapiens_hf
from sapiens_hf import SapiensImageProcessor, SapiensKeypointDetectionPipeline, pipeline_sapiens

NAMES = {0: "nose", 1: "left_eye", 2: "right_eye", 3: "left_ear", 4: "right_ear"}
BOXES = [[20.0, 10.0, 30.0, 60.0], [-5.0, 30.0, 40.0, 45.0], [50.5, 20.25, 33.0, 50.0]]


def photo(seed: int = 0, size: tuple[int, int] = (90, 110)) -> np.ndarray:
    """A smooth picture of height x width, uint8 RGB."""
    coarse = torch.rand(1, 3, 7, 5, generator=torch.Generator().manual_seed(seed)) * 255
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255)
    return fine[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    options = {"pose": dict(id2label=NAMES, flip_pairs=[[1, 2], [3, 4]]), "segmentation": dict(id2label=NAMES)}
    for task in ("encoder", "pose", "segmentation", "depth", "normal"):
        tiny_model(task, **options.get(task, {})).save_pretrained(root / task)
        SapiensImageProcessor(size={"height": 64, "width": 48}).save_pretrained(root / task)
    return root


@pytest.fixture(scope="module")
def pose(folders):
    return pipeline("keypoint-detection", model=str(folders / "pose"))


@pytest.fixture
def log():
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record):
            lines.append(f"{record.levelname}: {record.getMessage()}")

    handler, loggers = Collect(), [hf_logging.get_logger("transformers"), logging.getLogger("sapiens_hf")]
    for logger in loggers:
        logger.addHandler(handler)
    hf_logging.warning_once.cache_clear()
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


class FakeDetector:
    """Finds what it is told to, as transformers' object-detection pipelines answer."""

    def __init__(self, *found: tuple[str, float, tuple[float, float, float, float]]):
        self.found, self.calls = found, []

    def __call__(self, image, threshold):
        self.calls.append((image.size, threshold))
        return [
            {"label": label, "score": score, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
            for label, score, box in self.found
            if score > threshold
        ]


def assert_same_people(got: list[dict], want: list[dict], tolerance: float = 1e-3) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert one["box"] == pytest.approx(other["box"]) and one["score"] == pytest.approx(other["score"])
        assert [k["label"] for k in one["keypoints"]] == [k["label"] for k in other["keypoints"]]
        for name in ("x", "y", "score"):
            values = [k[name] for k in one["keypoints"]]
            assert values == pytest.approx([k[name] for k in other["keypoints"]], abs=tolerance)


# ------------------------------------------------------------------------------------------------- keypoint detection
def test_people_are_those_of_model_and_processor(pose, folders):
    image = photo()
    people = pose(image, boxes=BOXES)
    model, processor = sapiens_hf.SapiensForPoseEstimation.from_pretrained(folders / "pose"), pose.image_processor
    inputs = processor(images=[image], boxes=[BOXES], return_tensors="pt")
    with torch.no_grad():
        wanted = processor.post_process_pose_estimation(model(inputs["pixel_values"]), [BOXES])[0]
    assert len(people) == 3
    for person, want, (x, y, width, height) in zip(people, wanted, BOXES):
        assert set(person) == {"score", "box", "keypoints"} and person["score"] == 1.0
        assert person["box"] == pytest.approx({"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height})
        assert [k["label"] for k in person["keypoints"]] == list(NAMES.values())
        got = torch.tensor([[k["x"], k["y"]] for k in person["keypoints"]])
        torch.testing.assert_close(got, want["keypoints"], rtol=1e-4, atol=1e-3)
        scores = torch.tensor([k["score"] for k in person["keypoints"]])
        torch.testing.assert_close(scores, want["scores"], rtol=1e-4, atol=1e-5)
    assert json.loads(json.dumps(people)) == people  # plain numbers and names


def test_every_kind_of_input_gives_the_same_people(pose, tmp_path):
    array = photo()
    picture, path = Image.fromarray(array), tmp_path / "photo.png"
    picture.save(path)
    want = pose(array, boxes=BOXES[:2])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/photo.png"
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        for given in (picture, str(path), path, url, tensor, array.astype(np.float32) / 255):
            assert_same_people(pose(given, boxes=BOXES[:2]), want)
    finally:
        server.shutdown()
        server.server_close()
    assert [len(people) for people in pose([picture, path], boxes=[BOXES[:2], BOXES[:1]])] == [2, 1]
    assert_same_people(pose(np.stack([array, array]), boxes=[BOXES[:2], []])[0], want)
    assert_same_people(pose(tensor[None], boxes=[BOXES[:2]])[0], want)


def test_an_iterator_gives_an_iterator_and_reads_no_further_than_needed(pose):
    taken = []

    def images():
        for seed in range(4):
            taken.append(seed)
            yield photo(seed)

    results = pose(images(), boxes=iter([BOXES[:1]] * 4), batch_size=2)
    assert not isinstance(results, list) and taken == []
    first = next(results)
    assert taken == [0, 1] and len(first) == 1
    assert len(list(results)) == 3 and taken == [0, 1, 2, 3]


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_across_images_change_nothing(pose, batch_size):
    images = [photo(1), photo(2, (70, 130)), photo(3), photo(4, (120, 80))]
    boxes = [BOXES, [], BOXES[1:2], BOXES[:2]]
    one_by_one = [pose(image, boxes=b) for image, b in zip(images, boxes)]
    together = pose(images, boxes=boxes, batch_size=batch_size)
    assert [len(people) for people in together] == [3, 0, 1, 2]
    for got, want in zip(together, one_by_one):
        assert_same_people(got, want)


def test_the_batch_size_bounds_the_forward_passes(pose, monkeypatch):
    sizes, forward = [], pose.model.forward

    def counting(pixel_values, **kwargs):
        sizes.append(len(pixel_values))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(pose.model, "forward", counting)
    pose([photo(1), photo(2)], boxes=[BOXES, BOXES[:2]], batch_size=2)
    assert sum(sizes) == 5 and max(sizes) <= 2
    sizes.clear()
    assert pose([photo(1), photo(2)], boxes=[[], []], batch_size=2) == [[], []] and sizes == []


def test_threshold_and_subset(pose):
    everything = pose(photo(), boxes=BOXES)
    scores = sorted(k["score"] for person in everything for k in person["keypoints"])
    cut = scores[len(scores) // 2]
    for got, want in zip(pose(photo(), boxes=BOXES, threshold=cut), everything):
        kept = [k["label"] for k in want["keypoints"] if k["score"] > cut]  # strictly above
        assert [k["label"] for k in got["keypoints"]] == kept
    chosen = pose(photo(), boxes=BOXES, keypoint_indices=[3, 0])
    want = [{**p, "keypoints": [p["keypoints"][3], p["keypoints"][0]]} for p in everything]
    assert_same_people(chosen, want)
    fixed = pipeline("keypoint-detection", model=pose.model, image_processor=pose.image_processor, threshold=cut)
    assert fixed(photo(), boxes=BOXES) == pose(photo(), boxes=BOXES, threshold=cut)
    assert_same_people(fixed(photo(), boxes=BOXES, threshold=-1e9), everything)


def test_flip_test_averages_both_heatmaps(pose, monkeypatch):
    got = pose(photo(), boxes=BOXES, flip_test=True, batch_size=3)
    model, processor = pose.model, pose.image_processor
    pixels = processor(images=[photo()], boxes=[BOXES], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        plain, mirrored = model(pixels), model(pixels.flip(-1)).heatmaps.flip(-1)[:, [0, 2, 1, 4, 3]]
    plain.heatmaps = (plain.heatmaps + mirrored) / 2
    want = processor.post_process_pose_estimation(plain, [BOXES])[0]
    for person, wanted in zip(got, want):
        xy = torch.tensor([[k["x"], k["y"]] for k in person["keypoints"]])
        torch.testing.assert_close(xy, wanted["keypoints"], rtol=1e-3, atol=1e-2)
    monkeypatch.setattr(model.config, "flip_pairs", None)
    for pairs in ([[1, 2], [3, 4]], torch.tensor([[3, 4], [1, 2]])):
        assert_same_people(pose(photo(), boxes=BOXES, flip_test=True, flip_pairs=pairs, batch_size=3), got)
    other = pose(photo(), boxes=BOXES, flip_test=True, flip_pairs=[[0, 1]], batch_size=3)
    assert any(a["score"] != b["score"] for a, b in zip(other[0]["keypoints"], got[0]["keypoints"]))
    with pytest.raises(ValueError, match="flip_test=True needs config.flip_pairs"):
        pose(photo(), boxes=BOXES, flip_test=True)


def test_without_boxes_the_whole_image_is_one_person_and_a_warning_says_so(pose, log):
    (person,) = pose(photo())
    assert person["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 110.0, "ymax": 90.0}
    assert any(line.startswith("WARNING") and "neither boxes= nor detector=" in line for line in log)


def test_half_precision(folders):
    low = pipeline("keypoint-detection", model=str(folders / "pose"), dtype=torch.bfloat16)
    people = low(photo(), boxes=BOXES)
    assert low.model.dtype == torch.bfloat16 and len(people) == 3
    assert all(np.isfinite([k["x"], k["y"], k["score"]]).all() for p in people for k in p["keypoints"])


# ----------------------------------------------------------------------------------------------------------- detectors
def test_a_detector_finds_the_people(pose):
    detector = FakeDetector(
        ("person", 0.9, (20, 10, 50, 70)),
        ("person", 0.8, (21, 11, 51, 72)),  # the same person once more
        ("cat", 0.95, (0, 0, 30, 30)),
        ("Person", 0.6, (-9, 40, 35, 200)),  # over the edges
        ("person", 0.5, (115, 10, 130, 40)),  # wholly outside
        ("person", 0.2, (60, 10, 90, 40)),  # below the threshold
    )
    people = pose(photo(), detector=detector)
    assert detector.calls == [((110, 90), 0.3)]
    assert [p["score"] for p in people] == pytest.approx([0.9, 0.6])
    assert people[1]["box"] == pytest.approx({"xmin": 0, "ymin": 40, "xmax": 35, "ymax": 90})
    want = pose(photo(), boxes=[[20, 10, 30, 60], [0, 40, 35, 50]])
    assert_same_people([{**p, "score": 1.0} for p in people], want)
    assert len(pose(photo(), detector=detector, detector_threshold=0.1)) == 3
    assert detector.calls[-1][1] == 0.1


def test_nobody_found_gives_nobody(pose):
    for detector in (FakeDetector(), FakeDetector(("cat", 0.9, (5, 5, 50, 50)))):
        assert pose(photo(), detector=detector) == []
        assert pose([photo(), photo(1)], detector=detector, batch_size=4) == [[], []]


def test_given_boxes_win_over_the_detector(pose):
    detector = FakeDetector(("person", 0.9, (20, 10, 50, 70)))
    assert len(pose(photo(), boxes=BOXES, detector=detector)) == 3 and detector.calls == []


@pytest.mark.parametrize(
    "scores, kept",
    [
        ([0.9, 0.8, 0.7, 0.6], [0, 2]),  # 1 overlaps 0; 3 overlaps 2
        ([0.6, 0.8, 0.7, 0.9], [3, 1]),
    ],
)
def test_of_overlapping_people_the_better_one_stays(scores, kept):
    corners = np.array([[0, 0, 40, 60], [4, 2, 42, 61], [70, 0, 100, 50], [72, 3, 99, 52]], np.float32)
    got = pipeline_sapiens._non_maximum_suppression(corners, np.array(scores, np.float32), 0.3)
    assert got.tolist() == kept
    none = pipeline_sapiens._non_maximum_suppression(corners[:0], np.zeros(0, np.float32), 0.3)
    assert none.shape == (0,)


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    """A narrow object detector of transformers with random weights."""
    folder = tmp_path_factory.mktemp("detector")
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=[32, 48],
        num_detection_tokens=6,
        id2label={0: "person", 1: "cat"},
        label2id={"person": 0, "cat": 1},
    )
    enliven(YolosForObjectDetection(config), seed=1).save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    return folder


def test_a_detector_of_transformers_by_folder_and_by_pipeline(pose, detector_folder, monkeypatch):
    detector = pipeline("object-detection", model=str(detector_folder))
    found = [item for item in detector(Image.fromarray(photo()), threshold=0.0) if item["label"] == "person"]
    assert found
    people = pose(photo(), detector=detector, detector_threshold=0.0)
    assert 1 <= len(people) <= len(found)
    assert {round(p["score"], 5) for p in people} <= {round(item["score"], 5) for item in found}
    assert_same_people(pose(photo(), detector=str(detector_folder), detector_threshold=0.0), people)
    monkeypatch.setattr(pipeline_sapiens, "pipeline", None)  # loaded once, kept for the next call
    assert_same_people(pose(photo(), detector=str(detector_folder), detector_threshold=0.0), people)


def test_a_detector_without_people_is_refused_and_one_class_counts_as_people(pose, detector_folder, monkeypatch):
    detector = pipeline("object-detection", model=str(detector_folder))
    monkeypatch.setattr(detector.model.config, "id2label", {0: "dog", 1: "cat"})
    with pytest.raises(ValueError, match="detector knows no class 'person' among cat, dog"):
        pose(photo(), detector=detector, detector_threshold=0.0)
    monkeypatch.setattr(detector.model.config, "id2label", dict.fromkeys((0, 1), "pedestrian"))
    assert len(pose(photo(), detector=detector, detector_threshold=0.0)) >= 1


def test_the_default_detector_is_fetched_only_when_asked_for(folders, monkeypatch):
    asked = []

    def fake_pipeline(task, model, device):
        asked.append((task, model))
        return FakeDetector(("person", 0.9, (20, 10, 50, 70)))

    monkeypatch.setattr(pipeline_sapiens, "pipeline", fake_pipeline)
    pose = pipeline("keypoint-detection", model=str(folders / "pose"))
    pose(photo(), boxes=BOXES)
    assert asked == []
    assert len(pose(photo(), detector="default")) == len(pose(photo(1), detector="default")) == 1
    assert asked == [("object-detection", pipeline_sapiens.DEFAULT_DETECTOR)]


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "images, boxes, message",
    [
        (lambda: photo(), [[10, 10, 20, 20], [5, 5, -3, 9]], "boxes[0][1]"),
        (lambda: [photo(), photo()], [[[10, 10, 20, 20]], [[500, 5, 30, 9]]], "boxes[1][0]"),
        (lambda: [photo(), photo()], [BOXES], "boxes has 1 entries for 2 images"),
        (lambda: [photo(), "no/such/file.png"], [BOXES, BOXES], "inputs[1]"),
        (lambda: [photo(), np.zeros((0, 4, 3), np.uint8)], [BOXES, BOXES], "inputs[1]"),
        (lambda: 7, None, "inputs is int"),
    ],
)
def test_bad_input_is_named(pose, images, boxes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pose(images(), boxes=boxes)


def test_unknown_arguments_are_named(pose, folders):
    with pytest.raises(TypeError, match="Unknown arguments for keypoint-detection: box_threshold, cats"):
        pose(photo(), boxes=BOXES, cats=1, box_threshold=2)
    normals = pipeline("normal-estimation", model=str(folders / "normal"))
    with pytest.raises(TypeError, match="Unknown arguments for normal-estimation: cats"):
        normals(photo(), cats=1)


# --------------------------------------------------------------------------------------------------- normal estimation
def test_normals_alone_in_lists_and_in_batches(folders):
    normals = pipeline("normal-estimation", model=str(folders / "normal"))
    images = [photo(1), photo(2, (70, 130)), photo(3)]
    alone = [normals(Image.fromarray(image)) for image in images]
    for image, result in zip(images, alone):
        height, width = image.shape[:2]
        assert set(result) == {"normals", "normal_map"}
        assert result["normals"].shape == (3, height, width) and result["normals"].dtype == torch.float32
        lengths = result["normals"].norm(dim=0)
        assert float((lengths - 1).abs().max()) < 0.01
        assert result["normal_map"].size == (width, height) and result["normal_map"].mode == "RGB"
        want = ((result["normals"] + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(result["normal_map"]), want)
    for batch_size in (1, 2):
        for result, want in zip(normals(images, batch_size=batch_size), alone):
            torch.testing.assert_close(result["normals"], want["normals"], rtol=1e-4, atol=1e-4)
    model, processor = normals.model, normals.image_processor
    with torch.no_grad():
        outputs = model(**processor(images=[images[1]], return_tensors="pt"))
    want = processor.post_process_normal_estimation(outputs, [(70, 130)])[0]["normals"]
    torch.testing.assert_close(alone[1]["normals"], want, rtol=1e-4, atol=1e-5)


def test_normals_name_the_image_that_cannot_be_used(folders):
    normals = pipeline("normal-estimation", model=str(folders / "normal"))
    for given in ([photo(), "no/such/file.png"], (photo(), 7), (image for image in (photo(), "no/such/file.png"))):
        with pytest.raises(ValueError, match=r"inputs\[1\]"):
            list(normals(given))
    with pytest.raises(ValueError, match="^inputs: there is no file"):
        normals("no/such/file.png")
    assert normals([]) == []
    for several in (np.stack([photo(), photo(1)]), (photo(), photo(1)), (photo(i) for i in range(2))):
        results = list(normals(several))
        assert [result["normal_map"].size for result in results] == [(110, 90)] * 2
        torch.testing.assert_close(results[1]["normals"], normals(photo(1))["normals"], rtol=1e-4, atol=1e-4)


def test_normals_resized_in_one_step_or_two(folders):
    normals = pipeline("normal-estimation", model=str(folders / "normal"))
    processor = normals.image_processor
    with torch.no_grad():
        outputs = normals.model(**processor(images=[photo()], return_tensors="pt"))
    got = {}
    for resize in ("two_step", "direct"):
        got[resize] = normals(photo(), resize=resize)["normals"]
        want = processor.post_process_normal_estimation(outputs, [(90, 110)], resize=resize)[0]["normals"]
        torch.testing.assert_close(got[resize], want, rtol=1e-4, atol=1e-5)
    assert not torch.equal(got["two_step"], got["direct"])
    assert torch.equal(normals(photo())["normals"], got["two_step"])
    with pytest.raises(ValueError, match="resize"):
        normals(photo(), resize="three_step")


def test_normals_in_half_precision(folders):
    result = pipeline("normal-estimation", model=str(folders / "normal"), dtype=torch.bfloat16)(photo())
    assert result["normals"].isfinite().all() and result["normal_map"].size == (110, 90)


# --------------------------------------------------------------------------------------- the pipelines of transformers
def test_image_segmentation(folders, log):
    segment = pipeline("image-segmentation", model=str(folders / "segmentation"))
    masks = segment(Image.fromarray(photo()))
    assert {mask["label"] for mask in masks} <= set(NAMES.values()) and len(masks) > 1
    assert all(mask["mask"].size == (110, 90) for mask in masks)
    covered = sum((np.asarray(mask["mask"]) > 0).astype(int) for mask in masks)
    assert (covered == 1).all()  # each pixel has one label
    together = segment([Image.fromarray(photo()), Image.fromarray(photo(1, (70, 130)))], batch_size=2)
    assert [m["label"] for m in together[0]] == [m["label"] for m in masks]
    assert together[1][0]["mask"].size == (130, 70)
    assert not [line for line in log if line.startswith("ERROR")]


def test_depth_estimation(folders, log):
    depth = pipeline("depth-estimation", model=str(folders / "depth"))
    alone = [depth(Image.fromarray(photo(seed, size))) for seed, size in ((0, (90, 110)), (1, (70, 130)))]
    assert alone[0]["predicted_depth"].shape == (90, 110) and alone[0]["depth"].size == (110, 90)
    together = depth([Image.fromarray(photo()), Image.fromarray(photo(1, (70, 130)))], batch_size=2)
    for got, want in zip(together, alone):
        torch.testing.assert_close(got["predicted_depth"], want["predicted_depth"], rtol=1e-4, atol=1e-4)
    assert not [line for line in log if line.startswith("ERROR")]


def test_image_feature_extraction(folders):
    extract = pipeline("image-feature-extraction", model=str(folders / "encoder"))
    assert np.shape(extract(Image.fromarray(photo()))) == (1, 12, 32)
    assert np.shape(extract(Image.fromarray(photo()), pool=True)) == (1, 32)


# -------------------------------------------------------------------------------------------------- names and folders
def test_the_alias_is_the_same_pipeline(folders, pose):
    alias = pipeline("pose-estimation", model=str(folders / "pose"))
    assert type(alias) is type(pose) is SapiensKeypointDetectionPipeline
    assert_same_people(alias(photo(), boxes=BOXES), pose(photo(), boxes=BOXES))


@pytest.mark.parametrize("torchvision", [True, False])
def test_a_model_in_memory_needs_no_image_processor(folders, pose, log, monkeypatch, torchvision):
    monkeypatch.setattr(pipeline_sapiens, "is_torchvision_available", lambda: torchvision)
    ours = pipeline("keypoint-detection", model=pose.model)
    assert type(ours.image_processor).__name__ == f"SapiensImageProcessor{'' if torchvision else 'Pil'}"
    assert any("no image processor" in line and "64 x 48" in line for line in log)
    log.clear()
    assert_same_people(ours(photo(), boxes=BOXES), pose(photo(), boxes=BOXES), tolerance=1e-2)
    by_folder = pipeline("normal-estimation", model=str(folders / "normal"))
    assert log == []
    in_memory = pipeline("normal-estimation", model=by_folder.model)
    torch.testing.assert_close(in_memory(photo())["normals"], by_folder(photo())["normals"], rtol=1e-3, atol=1e-3)


def test_a_pipeline_can_be_saved(pose, tmp_path):
    folder = tmp_path / "saved"
    pose.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert not any(name.endswith(".py") for name in names)  # the installed package is what reads it
    assert "custom_pipelines" not in json.loads((folder / "config.json").read_text())
    again = SapiensKeypointDetectionPipeline(
        model=sapiens_hf.SapiensForPoseEstimation.from_pretrained(folder),
        image_processor=SapiensImageProcessor.from_pretrained(folder),
    )
    assert isinstance(again, Pipeline)
    assert_same_people(again(photo(), boxes=BOXES), pose(photo(), boxes=BOXES))
    by_name = pipeline("keypoint-detection", model=str(folder))
    assert_same_people(by_name(photo(), boxes=BOXES), pose(photo(), boxes=BOXES))

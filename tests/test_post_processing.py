"""post_processing_sapiens: golden maps and keypoints, memory-bounded label maps against the plain computation, bad
input."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.utils import ModelOutput

import sapiens_hf
from sapiens_hf import post_processing_sapiens
from sapiens_hf.post_processing_sapiens import SapiensPostProcessingMixin

GOLDEN = Path(__file__).parent / "golden"
NETWORK, SOURCE = (128, 96), (203, 157)


class Processor(SapiensPostProcessingMixin):
    size = {"height": NETWORK[0], "width": NETWORK[1]}


@pytest.fixture(scope="module")
def dense() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "dense_maps.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def pose() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pose_decode.npz") as data:
        return dict(data)


def seg(logits: torch.Tensor, *args, **kwargs):
    return Processor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), *args, **kwargs)


def plain(maps: torch.Tensor, *sizes: tuple[int, int]) -> torch.Tensor:
    for size in sizes:
        maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    return maps


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def box_of(center: np.ndarray, scale: np.ndarray) -> list[float]:
    """The box whose padded crop has this centre and scale (which already have the network's shape)."""
    width, height = scale / 1.25
    return [float(center[0] - width / 2), float(center[1] - height / 2), float(width), float(height)]


def pose_case(pose: dict[str, np.ndarray], name: str) -> tuple[SimpleNamespace, list[list[float]]]:
    heatmaps = torch.from_numpy(pose[f"{name}_heatmaps"].astype(np.float32))
    centers, scales = (pose[f"{name}_{k}"].astype(np.float64) for k in ("centers", "scales"))
    return SimpleNamespace(heatmaps=heatmaps), [box_of(c, s) for c, s in zip(centers, scales)]


def assert_same_person(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys() == {"keypoints", "scores", "labels", "bbox"}
    assert all(torch.equal(got[key], want[key]) for key in want)


# -------------------------------------------------------------------------------------------------------- segmentation
def test_labels_golden(dense, threads):
    logits = torch.from_numpy(dense["seg_logits"])[None]
    labels = seg(logits, [SOURCE])[0]
    assert labels.dtype == torch.int64 and labels.shape == SOURCE
    assert np.array_equal(labels.numpy(), dense["seg_labels"])
    scored = seg(logits, [SOURCE], return_segmentation_scores=True)[0]
    assert torch.equal(scored.segmentation, labels)
    assert np.abs(scored.segmentation_scores[:, ::11, ::11].numpy() - dense["seg_resized_sub11"]).max() < 2e-5
    # The single step of the small demo is another map.
    direct = seg(logits, [SOURCE], resize="direct")[0]
    assert 0.01 < (direct != labels).float().mean() < 0.5


@pytest.mark.parametrize("target", [(90, 161), (161, 90), (13, 70), (1, 4), (40, 35), (52, 1)])
@pytest.mark.parametrize("resize", ["two_step", "direct"])
@pytest.mark.parametrize("band_bytes", [1, 20_000, 2**24])
def test_labels_are_those_of_the_plain_computation(target, resize, band_bytes, threads, monkeypatch):
    monkeypatch.setattr(post_processing_sapiens, "BAND_BYTES", band_bytes)
    logits = randn(2, 7, 40, 35)
    sizes = (NETWORK, target) if resize == "two_step" else (target,)
    for got, one in zip(seg(logits, [target, target], resize=resize), logits):
        scores = plain(one, *sizes)
        top = scores.topk(2, dim=0).values
        clear = top[0] - top[1] > 1e-5
        assert got.shape == target and clear.float().mean() > 0.99
        assert torch.equal(got[clear], scores.argmax(dim=0)[clear])


def test_labels_at_the_network_size(threads):
    logits = randn(1, 5, 64, 48)
    assert torch.equal(seg(logits, [NETWORK])[0], plain(logits[0], NETWORK).argmax(dim=0))
    labels = seg(logits, [(80, 50)], size=(64, 48))[0]  # the first step changes nothing
    assert torch.equal(labels, plain(logits[0], (80, 50)).argmax(dim=0))


def test_labels_of_equal_logits_are_the_first(threads):
    logits = torch.zeros(1, 6, 20, 15)
    logits[:, [2, 4]] = 1.5
    logits[:, 5, 10:] = 1.5
    assert (seg(logits, [(61, 33)])[0] == 2).all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_labels_with_values_that_are_no_numbers(odd):
    logits = randn(1, 6, 20, 15)
    logits[0, 3, 4:7, 5:9] = odd
    logits[0, 1, 6:9, 8:12] = odd
    want = plain(logits[0], NETWORK, (61, 33)).argmax(dim=0)
    assert torch.equal(seg(logits, [(61, 33)])[0], want)


def test_label_map_by_labels_is_argmax():
    logits = randn(6, 20, 15)
    want = plain(logits, NETWORK, (61, 33))
    got = post_processing_sapiens._label_map_by_labels(logits, [NETWORK, (61, 33)])
    assert torch.equal(got, want.argmax(dim=0)) and got.dtype == torch.int64


def test_label_memory_is_bounded(monkeypatch):
    """Nothing near the resized logits is ever allocated for labels alone: the largest piece is the map itself."""
    largest = []
    for name in ("empty", "zeros"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, **k: largest.append(made := make(*a, **k)) or made)
    monkeypatch.setattr(post_processing_sapiens, "BAND_BYTES", 2**18)
    seg(randn(1, 28, 128, 96), [(1080, 1920)])
    sizes = [t.numel() * t.element_size() for t in largest]
    assert len(sizes) > 3 and sorted(sizes)[-1] == 1080 * 1920 * 8 and sorted(sizes)[-2] <= 2**21


def test_labels_without_target_sizes_and_many_images():
    logits = randn(3, 5, 20, 15)
    labels = seg(logits)
    assert len(labels) == 3 and all(torch.equal(a, b.argmax(dim=0)) for a, b in zip(labels, logits))
    scored = seg(logits, return_segmentation_scores=True)
    assert torch.equal(scored[2].segmentation_scores, logits[2])
    sizes = [(30, 41), (7, 9), (64, 48)]
    lists, tensors = [list(size) for size in sizes], [torch.tensor(size) for size in sizes]
    for given in (sizes, torch.tensor(sizes), np.array(sizes), tensors, lists):
        assert [tuple(m.shape) for m in seg(logits, given)] == sizes
    assert seg(logits[:0], []) == [] and seg(logits[:0]) == []


def test_probabilities():
    scored = seg(randn(1, 5, 20, 15) * 3, [(31, 44)], return_probabilities=True)[0]
    probabilities = scored.segmentation_scores
    assert probabilities.shape == (5, 31, 44) and (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(31, 44))
    assert torch.equal(probabilities.argmax(dim=0), scored.segmentation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = randn(1, 5, 20, 15).to(dtype)
    assert torch.equal(seg(logits, [(61, 33)])[0], seg(logits.float(), [(61, 33)])[0])
    scores = seg(logits, [(61, 33)], return_segmentation_scores=True)[0].segmentation_scores
    assert scores.dtype == torch.float32
    processor, sizes = Processor(), [(61, 33)]
    depth = processor.post_process_depth_estimation(SimpleNamespace(predicted_depth=logits[:, 0]), sizes)
    assert depth[0]["predicted_depth"].dtype == torch.float32
    normal = processor.post_process_normal_estimation(SimpleNamespace(predicted_normal=logits[:, :3]), sizes)
    assert normal[0]["normals"].dtype == torch.float32


# --------------------------------------------------------------------------------------------------- depth and normals
def test_depth_golden(dense):
    outputs = SimpleNamespace(predicted_depth=torch.from_numpy(dense["depth_head"]))
    result = Processor().post_process_depth_estimation(outputs, [SOURCE])  # as the built-in pipeline calls it
    assert len(result) == 1 and result[0]["predicted_depth"].shape == SOURCE
    assert np.abs(result[0]["predicted_depth"][::4, ::4].numpy() - dense["depth_map_sub4"]).max() < 1e-5
    same = Processor().post_process_depth_estimation(outputs)[0]["predicted_depth"]
    assert torch.equal(same, outputs.predicted_depth[0])


def test_normals_golden(dense):
    outputs = SimpleNamespace(predicted_normal=torch.from_numpy(dense["normal_head"])[None])
    normals = Processor().post_process_normal_estimation(outputs, [SOURCE])[0]["normals"]
    assert normals.shape == (3, *SOURCE)
    assert np.abs(normals[:, ::6, ::6].numpy().transpose(1, 2, 0) - dense["normal_sub6"]).max() < 1e-4
    native = Processor().post_process_normal_estimation(outputs)[0]["normals"]
    length = outputs.predicted_normal[0].norm(dim=0)
    torch.testing.assert_close(native * (length + 1e-5), outputs.predicted_normal[0])
    zero = Processor().post_process_normal_estimation(SimpleNamespace(predicted_normal=torch.zeros(1, 3, 6, 5)))
    assert not zero[0]["normals"].any()


def test_single_step_of_depth_and_normals():
    maps, target = randn(2, 3, 20, 15), (33, 61)
    depth = Processor().post_process_depth_estimation(
        SimpleNamespace(predicted_depth=maps[:, 0]), [target, (9, 4)], resize="direct"
    )
    assert torch.equal(depth[0]["predicted_depth"], plain(maps[0, :1], target)[0])
    assert depth[1]["predicted_depth"].shape == (9, 4)
    normals = Processor().post_process_normal_estimation(
        SimpleNamespace(predicted_normal=maps), [target, target], resize="direct"
    )
    want = plain(maps[1], target)
    torch.testing.assert_close(normals[1]["normals"], want / (want.norm(dim=0) + 1e-5))


# ---------------------------------------------------------------------------------------------------------------- pose
@pytest.mark.parametrize("name", ["17", "133", "308", "edge", "fullres"])
@pytest.mark.parametrize("kind", ["SapiensImageProcessor", "SapiensImageProcessorPil"])
def test_keypoints_golden(pose, name, kind):
    outputs, boxes = pose_case(pose, name)
    before = outputs.heatmaps.clone()
    processor = getattr(sapiens_hf, kind)(size={"height": NETWORK[0], "width": NETWORK[1]})
    people = processor.post_process_pose_estimation(outputs, [boxes])[0]
    assert len(people) == len(boxes) and torch.equal(outputs.heatmaps, before)
    for person, box, keypoints, scores in zip(people, boxes, pose[f"{name}_keypoints"], pose[f"{name}_scores"]):
        assert person["keypoints"].dtype == person["bbox"].dtype == torch.float32
        assert np.abs(person["keypoints"].double().numpy() - keypoints).max() < 2e-4
        assert np.array_equal(person["scores"].numpy(), scores)
        assert person["labels"].tolist() == list(range(len(scores))) and person["labels"].dtype == torch.int64
        x, y, width, height = box
        assert np.abs(person["bbox"].numpy() - [x, y, x + width, y + height]).max() < 1e-3


def test_images_without_people_and_order(pose):
    outputs, boxes = pose_case(pose, "17")
    processor = Processor()
    together = processor.post_process_pose_estimation(outputs, [boxes])[0]
    apart = processor.post_process_pose_estimation(outputs, [[], [boxes[0]], [], [boxes[1]]])
    assert [len(people) for people in apart] == [0, 1, 0, 1]
    assert_same_person(apart[1][0], together[0])
    assert_same_person(apart[3][0], together[1])
    none = SimpleNamespace(heatmaps=outputs.heatmaps[:0])
    assert processor.post_process_pose_estimation(none, [[], []]) == [[], []]
    assert processor.post_process_pose_estimation(none, []) == []
    assert processor.post_process_pose_estimation(none, [[], []], keypoint_indices=[3], threshold=0.5) == [[], []]


def test_threshold_is_strict(pose):
    outputs, boxes = pose_case(pose, "17")
    every = Processor().post_process_pose_estimation(outputs, [boxes])[0]
    limit = float(every[0]["scores"].sort().values[8])
    for kept, all_of in zip(Processor().post_process_pose_estimation(outputs, [boxes], threshold=limit)[0], every):
        keep = all_of["scores"] > limit
        assert kept["labels"].tolist() == keep.nonzero()[:, 0].tolist()
        assert torch.equal(kept["keypoints"], all_of["keypoints"][keep])
        assert torch.equal(kept["scores"], all_of["scores"][keep])
    assert 8 == int((every[0]["scores"] > limit).sum())


@pytest.mark.parametrize("indices", [[5, 0, 16], torch.tensor([2]), np.array([16, 3]), range(4, 9), [], [np.int64(7)]])
def test_subset_has_the_numbers_of_the_full_decode(pose, indices):
    outputs, boxes = pose_case(pose, "17")
    flipped = SimpleNamespace(heatmaps=outputs.heatmaps.flip(0) * 0.5)
    for extra in ({}, {"outputs_flipped": flipped}):
        full = Processor().post_process_pose_estimation(outputs, [boxes], **extra)[0]
        some = Processor().post_process_pose_estimation(outputs, [boxes], keypoint_indices=indices, **extra)[0]
        order = torch.tensor([int(i) for i in indices], dtype=torch.long)
        for person, whole in zip(some, full):
            want = {"keypoints": whole["keypoints"][order], "scores": whole["scores"][order], "labels": order}
            assert_same_person(person, want | {"bbox": whole["bbox"]})


def test_flipped_heatmaps_are_averaged(pose):
    outputs, boxes = pose_case(pose, "17")
    other = outputs.heatmaps.roll(1, dims=-1) * 0.8
    got = Processor().post_process_pose_estimation(outputs, [boxes], outputs_flipped=SimpleNamespace(heatmaps=other))
    mean = SimpleNamespace(heatmaps=(outputs.heatmaps + other) * 0.5)
    want = Processor().post_process_pose_estimation(mean, [boxes])
    assert_same_person(got[0][1], want[0][1])
    half = [SimpleNamespace(heatmaps=h.bfloat16()) for h in (outputs.heatmaps, other)]
    wide = [SimpleNamespace(heatmaps=h.heatmaps.float()) for h in half]
    got, want = (Processor().post_process_pose_estimation(a, [boxes], outputs_flipped=b) for a, b in (half, wide))
    assert_same_person(got[0][0], want[0][0])


def test_kernel_size_reaches_the_decoder(pose):
    outputs, boxes = pose_case(pose, "17")
    eleven, five = (Processor().post_process_pose_estimation(outputs, [boxes], kernel_size=k)[0][0] for k in (11, 5))
    assert torch.equal(eleven["scores"], five["scores"]) and not torch.equal(eleven["keypoints"], five["keypoints"])


def test_keypoints_in_target_pixels(pose):
    outputs, boxes = pose_case(pose, "17")
    nested = [[boxes[0]], [], [boxes[1]]]
    sources, targets = [(200, 300), (50, 60), (400, 100)], [(100, 900), (5, 6), (400, 50)]
    plain_result = Processor().post_process_pose_estimation(outputs, nested, source_sizes=sources)
    for given in (targets, torch.tensor(targets)):
        result = Processor().post_process_pose_estimation(outputs, nested, source_sizes=sources, target_sizes=given)
        for image, factor in ((0, (3.0, 0.5)), (2, (0.5, 1.0))):
            want, got = plain_result[image][0], result[image][0]
            torch.testing.assert_close(got["keypoints"], want["keypoints"] * torch.tensor(factor))
            torch.testing.assert_close(got["bbox"], want["bbox"] * torch.tensor(factor * 2))
            assert torch.equal(got["scores"], want["scores"])


def test_size_of_the_crops(pose):
    outputs, boxes = pose_case(pose, "17")
    want = Processor().post_process_pose_estimation(outputs, [boxes])[0][0]
    other = Processor()
    other.size = {"height": 64, "width": 80}
    with pytest.raises(ValueError, match=r"heatmaps are 32 x 24 .* crops of 64 x 80; pass size="):
        other.post_process_pose_estimation(outputs, [boxes])
    nobody = SimpleNamespace(heatmaps=outputs.heatmaps[:0])
    assert other.post_process_pose_estimation(nobody, [[]]) == [[]]
    for size in (NETWORK, {"height": 128, "width": 96}, SimpleNamespace(height=128, width=96), torch.tensor(NETWORK)):
        assert_same_person(other.post_process_pose_estimation(outputs, [boxes], size=size)[0][0], want)


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"boxes": [[[1, 2, 3, 4]]]}, ["(2, 17, 32, 24)", "1 people in 1 images"]),
        ({"boxes": [[[1, 2, 3, 4]] * 2, [[1, 2, 3, 4]]]}, ["(2, 17, 32, 24)", "3 people in 2 images"]),
        ({"boxes": [1, 2, 3, 4]}, ["boxes[0] is 1"]),
        ({"boxes": None}, ["boxes is None"]),
        ({"boxes": [[[1, 2, 3, 4], [1, 2, 0, 4]]]}, ["boxes[0][1]", "zero or negative"]),
        ({"keypoint_indices": [3, 17]}, ["keypoint_indices holds 17", "0 to 16"]),
        ({"keypoint_indices": [-1]}, ["keypoint_indices holds -1"]),
        ({"keypoint_indices": [2, 0, 2]}, ["keypoint_indices holds 2 twice"]),
        ({"keypoint_indices": torch.tensor([0.0, 3.0])}, ["keypoint_indices holds 0.0, expected whole numbers"]),
        ({"keypoint_indices": [4, 2.7]}, ["keypoint_indices holds 2.7"]),
        ({"keypoint_indices": torch.arange(17) < 5}, ["keypoint_indices holds True", "mask.nonzero()"]),
        ({"keypoint_indices": np.arange(17) > 5}, ["keypoint_indices holds False", "mask.nonzero()"]),
        ({"keypoint_indices": ["nose"]}, ["keypoint_indices holds 'nose'"]),
        ({"keypoint_indices": "nose"}, ["keypoint_indices is 'nose'"]),
        ({"keypoint_indices": 3}, ["keypoint_indices is 3"]),
        ({"keypoint_indices": [[3, 4]]}, ["keypoint_indices holds [3, 4]"]),
        ({"source_sizes": [(5, 6)] * 2}, ["source_sizes has 2 entries for 1 images"]),
        ({"source_sizes": [(5, 6)], "target_sizes": [(5, 6)] * 3}, ["target_sizes has 3 entries for 1 images"]),
        ({"target_sizes": [(5, 6)]}, ["needs source_sizes"]),
        ({"source_sizes": [(0, 6)], "target_sizes": [(5, 6)]}, ["source_sizes[0] is (0, 6)"]),
        ({"outputs_flipped": SimpleNamespace(heatmaps=torch.zeros(1, 17, 32, 24))}, ["(2, 17, 32, 24)", "(1, 17"]),
        ({"kernel_size": 10}, ["kernel_size is 10"]),
        ({"outputs_flipped": {"logits": 1}}, ["dict with logits", "`heatmaps`"]),
        ({"size": (5,)}, ["size is (5,)", "(height, width)"]),
        ({"size": (64, 64)}, ["heatmaps are 32 x 24", "crops of 64 x 64"]),
        ({"size": (96, 128)}, ["heatmaps are 32 x 24", "crops of 96 x 128"]),
    ],
)
def test_bad_pose_input(pose, arguments, words):
    outputs, boxes = pose_case(pose, "17")
    with pytest.raises(ValueError) as error:
        Processor().post_process_pose_estimation(outputs, **{"boxes": [boxes], **arguments})
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target_sizes": [(5, 6)]}, ["target_sizes has 1 entries for 2 maps"]),
        ({"target_sizes": [(5, 6)] * 3}, ["target_sizes has 3 entries for 2 maps"]),
        ({"target_sizes": torch.ones(4, 2)}, ["target_sizes has 4 entries for 2 maps"]),
        ({"target_sizes": [(5, 6), (7, 0)]}, ["target_sizes[1] is (7, 0)", "above 0"]),
        ({"target_sizes": [(5, 6), (7.5, 3)]}, ["target_sizes[1] is (7.5, 3)"]),
        ({"target_sizes": [(5, 6), 7]}, ["target_sizes[1] is 7", "(height, width)"]),
        ({"target_sizes": [(5, 6), None]}, ["target_sizes[1] is None"]),
        ({"target_sizes": [(5, 6), (7, 8, 3)]}, ["target_sizes[1] is (7, 8, 3)"]),
        ({"resize": "two-step"}, ["'two-step'", "Did you mean 'two_step'?"]),
        ({"resize": "x"}, ["'x'", "'two_step', 'direct'"]),
        ({"target_sizes": [(5, 6)] * 2, "size": {"shortest_edge": 3}}, ["size is (None, None)"]),
    ],
)
@pytest.mark.parametrize(
    ("method", "field", "shape"),
    [
        ("post_process_semantic_segmentation", "logits", (2, 5, 8, 6)),
        ("post_process_depth_estimation", "predicted_depth", (2, 8, 6)),
        ("post_process_normal_estimation", "predicted_normal", (2, 3, 8, 6)),
    ],
)
def test_bad_dense_input(method, field, shape, arguments, words):
    outputs = SimpleNamespace(**{field: torch.zeros(shape)})
    with pytest.raises(ValueError) as error:
        getattr(Processor(), method)(outputs, **arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("method", "field", "shape"),
    [
        ("post_process_pose_estimation", "heatmaps", (1, 5, 32, 24)),
        ("post_process_semantic_segmentation", "logits", (2, 5, 8, 6)),
        ("post_process_depth_estimation", "predicted_depth", (2, 8, 6)),
        ("post_process_normal_estimation", "predicted_normal", (2, 3, 8, 6)),
    ],
)
def test_outputs_of_another_task_are_refused(method, field, shape):
    call, maps = getattr(Processor(), method), torch.rand(shape)
    boxes = [[[[1, 2, 3, 4]]]] if field == "heatmaps" else []
    for outputs in ({field: maps}, ModelOutput({field: maps}), SimpleNamespace(**{field: maps})):
        assert len(call(outputs, *boxes)) == shape[0]
    refused = [
        ({"depth": maps, "loss": 1.0}, "outputs is dict with depth, loss"),
        (DepthEstimatorOutput(loss=maps), "outputs is DepthEstimatorOutput with loss"),
        (SimpleNamespace(feature_maps=maps), "outputs is SimpleNamespace with feature_maps"),
        (maps, "outputs is Tensor without any field"),
        ({}, "outputs is dict without any field"),
        (None, "outputs is NoneType without any field"),
        ({field: maps.numpy()}, f"outputs is dict whose {field} is ndarray"),
        ({field: maps[0]}, f"{field} has shape {tuple(shape[1:])}"),
    ]
    if field == "predicted_normal":
        refused.append(({field: maps[:, :2]}, "predicted_normal has shape (2, 2, 8, 6)"))
    for outputs, words in refused:
        with pytest.raises(ValueError) as error:
            call(outputs, *boxes)
        assert words in str(error.value) and f"expected `{field}` (" in str(error.value), str(error.value)

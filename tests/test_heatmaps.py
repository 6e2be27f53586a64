"""heatmaps_sapiens: crops, targets and decoding against golden numbers and a slow reference written from the spec."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf.heatmaps_sapiens import (
    boxes_to_crops,
    crop_matrix,
    crop_to_image,
    decode_heatmaps,
    encode_heatmaps,
    flip_heatmaps,
    image_to_crop,
    validate_boxes,
    validate_image_boxes,
)

GOLDEN = Path(__file__).parent / "golden"
SIZE, HEATMAP = (128, 96), (32, 24)


@pytest.fixture(scope="module")
def golden_decode() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pose_decode.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def golden_targets() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pose_targets.npz") as data:
        return dict(data)


def maps_of(data: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(data[f"{name}_heatmaps"].astype(np.float32))


# ----------------------------------------------------------------------------------------------------- slow references
def reference_decode(heatmap: np.ndarray, kernel_size: int = 11) -> np.ndarray:
    """One map, float64, step by step: blur the whole map, rescale, clip, log, pad, differentiate."""
    height, width = heatmap.shape
    y, x = divmod(int(heatmap.argmax()), width)
    if not heatmap.max() > 0:
        return np.array([-1.0, -1.0])
    sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
    reach = kernel_size // 2
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(heatmap.astype(np.float64), reach)
    blurred = sum(t * padded[i : i + height] for i, t in enumerate(taps))
    blurred = sum(t * blurred[:, i : i + width] for i, t in enumerate(taps))
    if blurred.max() != 0:
        blurred = blurred * (float(heatmap.max()) / blurred.max())
    logs = np.pad(np.log(np.clip(blurred, 1e-3, 50)), 1, mode="edge")

    def at(dx: int, dy: int) -> float:
        return logs[y + 1 + dy, x + 1 + dx]

    gradient = np.array([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)]) / 2
    xx, yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    xy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    epsilon = np.finfo(np.float32).eps
    return np.array([x, y]) - np.linalg.inv([[xx + epsilon, xy], [xy, yy + epsilon]]) @ gradient


def reference_encode(points, visibility, size, heatmap_size, sigma):
    """One person, keypoint by keypoint, with the integer window of the original."""
    height, width = heatmap_size
    factor = np.array([(size[1] - 1) / (width - 1), (size[0] - 1) / (height - 1)], np.float32)
    heatmaps, weights = np.zeros((len(points), height, width)), np.array(visibility, np.float32)
    for index, (x, y) in enumerate(np.asarray(points, np.float32) / factor):
        if weights[index] < 0.5:
            continue
        mu_x, mu_y = int(x + np.float32(0.5)), int(y + np.float32(0.5))
        reach = int(3 * sigma)
        if mu_x - reach >= width or mu_y - reach >= height or mu_x + reach + 1 < 0 or mu_y + reach + 1 < 0:
            weights[index] = 0
            continue
        for row in range(max(0, mu_y - reach), min(height, mu_y + reach + 1)):
            for column in range(max(0, mu_x - reach), min(width, mu_x + reach + 1)):
                heatmaps[index, row, column] = np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * sigma**2))
    return heatmaps, weights


def bump(x: float, y: float, height: float, size: tuple[int, int] = (40, 30), sigma: float = 2.5) -> torch.Tensor:
    rows, columns = torch.arange(size[0], dtype=torch.float64)[:, None], torch.arange(size[1], dtype=torch.float64)
    return (height * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))).float()


# --------------------------------------------------------------------------------------------------------------- crops
def test_boxes_grow_to_the_shape_of_the_network():
    boxes = torch.tensor([[10.0, 20.0, 80.0, 40.0], [-5.0, 7.0, 30.0, 100.0]])
    centers, scales = boxes_to_crops(boxes, (1024, 768))
    assert torch.equal(centers, torch.tensor([[50.0, 40.0], [10.0, 57.0]]))
    torch.testing.assert_close(scales, torch.tensor([[100.0, 100 / 0.75], [125 * 0.75, 125.0]]))
    assert boxes_to_crops(boxes.double(), (1024, 768))[1].dtype == torch.float64
    assert boxes_to_crops(boxes.long(), (1024, 768))[1].dtype == torch.float32
    assert boxes_to_crops(boxes.half(), (1024, 768))[0].dtype == torch.float32
    bare = boxes_to_crops(boxes, (1024, 768), padding=1.0)[1]
    torch.testing.assert_close(bare * 1.25, scales)
    assert [tuple(t.shape) for t in boxes_to_crops(torch.zeros(0, 4), SIZE)] == [(0, 2), (0, 2)]


def test_crop_matrix_golden(golden_targets):
    # spec/pose.md section 3.2
    centers, scales = torch.tensor([[200.0, 250.0]] * 2), torch.tensor([[375.0, 500.0]] * 2)
    got = crop_matrix(centers, scales, (1024, 768), torch.tensor([0.0, 30.0]))
    want = [
        [[2.0453334, 0, -25.566668], [0, 2.046, 0]],
        [[1.7713107, -1.0226667, 284.90454], [1.0230000, 1.7718878, -136.07199]],
    ]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-6, atol=1e-5)
    assert got.dtype == torch.float32
    three = (torch.tensor([[100.0, 80.0]] * 3), torch.tensor([[150.0, 200.0]] * 3))
    rotated = crop_matrix(*three, (1024, 768), torch.tensor([0.0, 15.0, -40.0]))
    assert np.abs(rotated.numpy() - golden_targets["matrices"]).max() <= 1e-5


def test_rotated_keypoints_golden(golden_targets):
    center, scale = (torch.from_numpy(golden_targets[k]) for k in ("rot_center", "rot_out_scale"))
    matrix = crop_matrix(center, scale, SIZE, float(golden_targets["rot_rotation"][0]))
    points = torch.from_numpy(golden_targets["rot_keypoints"])
    got = points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
    assert np.abs(got.numpy() - golden_targets["rot_out"]).max() < 1e-4


def test_crop_points_and_back():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3, 5, 2, generator=generator, dtype=torch.float64) * 300 - 50
    boxes = torch.tensor([[3.0, -8.0, 60.0, 90.0], [40.0, 10.0, 200.0, 30.0], [0.0, 0.0, 11.0, 200.0]]).double()
    centers, scales = boxes_to_crops(boxes, SIZE)
    crop = image_to_crop(points, centers, scales, SIZE)
    torch.testing.assert_close(crop_to_image(crop, centers, scales, SIZE), points)
    matrix = crop_matrix(centers, scales, SIZE).double()
    torch.testing.assert_close(
        crop, points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2], atol=1e-4, rtol=0
    )
    # The edges of the region are the first and the last pixel centre of the crop and of its heatmaps alike.
    edges = torch.stack([centers - scales / 2, centers + scales / 2], dim=1)
    for height, width in (SIZE, HEATMAP):
        ends = image_to_crop(edges, centers, scales, (height, width))
        want = torch.tensor([[0.0, 0.0], [width - 1.0, height - 1.0]], dtype=torch.float64).expand(3, 2, 2)
        torch.testing.assert_close(ends, want, atol=1e-9, rtol=0)


# --------------------------------------------------------------------------------------------------------------- boxes
def test_good_boxes():
    nested = [[[1, 2.5, 3, 4], [-2, -2, 9, 9]], [], np.array([[0, 0, 5, 6]], np.float32)]
    got = validate_boxes(nested, 3, [(20, 30)] * 3)
    assert [tuple(b.shape) for b in got] == [(2, 4), (0, 4), (1, 4)]
    assert all(b.dtype == torch.float64 for b in got)
    assert got[0].tolist() == [[1, 2.5, 3, 4], [-2, -2, 9, 9]]
    assert validate_boxes(torch.ones(2, 3, 4), 2)[1].shape == (3, 4)
    assert validate_boxes([[torch.tensor([1.0, 2, 3, 4]), np.ones(4)]], 1)[0].shape == (2, 4)
    assert validate_boxes([], 0) == []
    assert validate_boxes([np.zeros((0, 4)), torch.zeros(0)], 2)[1].shape == (0, 4)
    # partly outside on each side; a wide box that reaches out below and right; corners that cannot be told apart
    fine = [[-5, 3, 10, 10], [25, 15, 10, 10], [5, 5, 28, 17], [2, 3, 20, 15]]
    assert len(validate_boxes([fine], 1, [(20, 30)])[0]) == 4


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (None, ["None", "nested per image"]),
        ("boxes", ["'boxes'", "nested per image"]),
        (3, ["boxes is 3"]),
        ([1.0, 2.0, 3.0, 4.0], ["boxes[0] is 1.0", "nested per image"]),
        ([[1.0, 2.0, 3.0, 4.0]], ["boxes[0]", "(4,)", "one level of nesting is missing"]),
        (torch.ones(2, 4), ["boxes[0]", "(4,)"]),
        ([[[1, 2, 3]]], ["boxes[0]", "(1, 3)", "4 numbers per box"]),
        ([[[1, 2, 3, 4], [1, 2]]], ["boxes[0]", "cannot be read"]),
        ([[[1, 2, 3, "a"]]], ["boxes[0]", "cannot be read"]),
        ([None], ["boxes[0] is None"]),
        ([[], [[1, 2, 3, 4]]], ["2 entries for 1 images"]),
        ([[[1, 2, 3, 4], [5, 6, float("nan"), 8]]], ["boxes[0][1]", "nan", "NaN"]),
        ([[[1, 2, 3, float("inf")]]], ["boxes[0][0]", "infinite"]),
        ([[[1, 2, 3, 4], [5, 6, 0, 8]]], ["boxes[0][1] = [5.0, 6.0, 0.0, 8.0]", "zero or negative size"]),
        ([[[1, 2, 3, -4]]], ["boxes[0][0]", "zero or negative size"]),
        ([[[1, 2, 3, 4], [30, 2, 3, 4]]], ["boxes[0][1]", "wholly outside", "30 x 20"]),
        ([[[1, -9, 3, 9]]], ["boxes[0][0]", "wholly outside"]),
        ([[[9, 7, 25, 19], [20, 12, 28, 19]]], ["boxes[0][1]", "corners (x1, y1, x2, y2)", "x2 - x1"]),
    ],
)
def test_bad_boxes(boxes, words):
    with pytest.raises(ValueError) as error:
        validate_boxes(boxes, 1, [(20, 30)])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_box_error_names_the_image():
    with pytest.raises(ValueError, match=r"boxes\[1\]\[0\]"):
        validate_boxes([[], [[0, 0, 0, 1]]], 2)


def test_corner_boxes_are_refused_only_when_practically_certain():
    far_out = [18, 12, 28, 19]  # 18 % of it in the image
    for boxes in ([far_out], [[2, 12, 29, 18], far_out]):
        with pytest.raises(ValueError, match="corners"):
            validate_boxes([boxes], 1, [(20, 30)])
    # the second box does not fit as corners, or lies within the image as a COCO box: the list is COCO
    for second in ([3, 2, 2, 10], [1, 1, 20, 15]):
        assert len(validate_boxes([[far_out, second]], 1, [(20, 30)])[0]) == 2
    assert len(validate_boxes([[far_out]], 1)[0]) == 1


@pytest.mark.parametrize(("box", "size"), [([40, 50, 60, 70], (90, 70)), ([40, 50, 60, 70], (70, 90))])
def test_boxes_mostly_outside_are_fine(box, size):
    """29 and 24 % of them lie in the image."""
    assert validate_boxes([[box]], 1, [size])[0].tolist() == [box]


def test_the_share_outside_that_tells_corners():
    # 8 x 20 of 30 x 25 pixels are seen, then 7 x 20
    assert len(validate_boxes([[[22, 5, 30, 25]]], 1, [(25, 30)])[0]) == 1
    with pytest.raises(ValueError, match=r"\(x1, y1, x2, y2\)"):
        validate_boxes([[[23, 5, 30, 25]]], 1, [(25, 30)])


# ------------------------------------------------------------------------------------------------------------- targets
def test_encode_golden(golden_targets):
    g = golden_targets
    heatmaps, weights = encode_heatmaps(
        torch.from_numpy(g["full_keypoints"]), torch.from_numpy(g["full_visible"]), (1024, 768), (256, 192)
    )
    assert heatmaps.shape == (1, 5, 256, 192) and heatmaps.dtype == torch.float32
    assert np.abs(heatmaps[0, :, ::5, ::3].numpy() - g["full_heatmaps_sub"]).max() < 1e-6
    assert np.abs(heatmaps[0].double().sum((1, 2)).numpy() - g["full_sum"]).max() < 1e-3
    assert (heatmaps[0] > 0).sum((1, 2)).tolist() == g["full_nonzeros"].tolist()
    assert np.array_equal(weights.numpy(), g["full_weights"])

    heatmaps, weights = encode_heatmaps(
        torch.from_numpy(g["small_keypoints"]), torch.from_numpy(g["small_visible"]), SIZE, HEATMAP, sigma=2
    )
    assert heatmaps.shape == (2, 17, *HEATMAP)
    assert (
        np.abs(heatmaps.numpy() - g["small_heatmaps_f16"].astype(np.float32)).max() < 5e-4
    )  # stored in half precision
    assert np.array_equal(weights.numpy(), g["small_weights"])


def test_encode_spec_numbers():
    heatmaps, weights = encode_heatmaps(torch.tensor([[[100.25, 200.75]]]), torch.ones(1, 1), (1024, 768), (256, 192))
    assert int((heatmaps > 0).sum()) == 1369 and weights.item() == 1
    assert abs(float(heatmaps.sum()) - 225.2804) < 1e-3 and abs(float(heatmaps.max()) - 0.99996) < 1e-5


def test_encode_against_slow_reference():
    generator = np.random.RandomState(3)
    points = generator.uniform(-60, 160, (2, 40, 2)).astype(np.float32)
    visibility = generator.choice([0.0, 0.3, 0.5, 1.0, 2.0], (2, 40)).astype(np.float32)
    before = points.copy()
    heatmaps, weights = encode_heatmaps(torch.from_numpy(points), torch.from_numpy(visibility), SIZE, HEATMAP, sigma=3)
    for person in range(2):
        want, want_weights = reference_encode(points[person], visibility[person], SIZE, HEATMAP, 3)
        assert np.abs(heatmaps[person].numpy() - want).max() < 1e-5
        assert np.array_equal(weights[person].numpy(), want_weights)
    assert np.array_equal(points, before)


def test_encode_window_that_just_misses_keeps_its_weight():
    # 3 sigma = 18: the window of mu = -19 is [-37, -1]; its open end 0 is not below 0: the original keeps the weight.
    factor = 767 / 191
    points = torch.tensor([[[-19.7 * factor, 100.0], [-20.7 * factor, 100.0], [209.6 * factor, 100.0]]])
    heatmaps, weights = encode_heatmaps(points, torch.ones(1, 3), (1024, 768), (256, 192))
    assert weights.tolist() == [[1.0, 0.0, 0.0]]
    assert not heatmaps.any()


def test_encode_odd_input():
    points = torch.tensor([[[float("nan"), 3.0], [50.0, 60.0]]])
    heatmaps, weights = encode_heatmaps(points, torch.ones(1, 2), SIZE, HEATMAP, sigma=2)
    assert heatmaps.isfinite().all() and weights.tolist() == [[0.0, 1.0]]
    heatmaps, weights = encode_heatmaps(torch.zeros(0, 17, 2), torch.zeros(0, 17), SIZE, HEATMAP)
    assert heatmaps.shape == (0, 17, *HEATMAP) and weights.shape == (0, 17)


def test_encode_then_decode():
    points = torch.tensor(
        [[[200.5, 301.25], [420.0, 655.5], [333.3, 77.7]], [[600.0, 900.0], [123.4, 567.8], [700, 99]]]
    )
    heatmaps, _ = encode_heatmaps(points, torch.ones(2, 3), (1024, 768), (256, 192))
    keypoints, scores = decode_heatmaps(heatmaps)
    crop = keypoints * torch.tensor([767 / 191, 1023 / 255])
    torch.testing.assert_close(crop, points, atol=0.02, rtol=0)
    assert (scores > 0.99).all()


# ------------------------------------------------------------------------------------------------------------ decoding
@pytest.mark.parametrize("name", ["17", "133", "308", "edge", "fullres"])
def test_decode_golden(golden_decode, name):
    heatmaps = maps_of(golden_decode, name)
    centers, scales = (torch.from_numpy(golden_decode[f"{name}_{k}"]).double() for k in ("centers", "scales"))
    before = heatmaps.clone()
    keypoints, scores = decode_heatmaps(heatmaps)
    assert keypoints.dtype == scores.dtype == torch.float32
    image = crop_to_image(keypoints.double(), centers, scales, heatmaps.shape[-2:])
    assert np.abs(image.numpy() - golden_decode[f"{name}_keypoints"]).max() < 1e-4
    assert np.array_equal(scores.numpy(), golden_decode[f"{name}_scores"])
    assert torch.equal(heatmaps, before)


def test_decode_spec_numbers():
    rows, columns = torch.arange(256.0)[:, None], torch.arange(192.0)
    maps = [
        a * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 72)
        for a, x, y in ((0.9, 50.3, 100.7), (0.5, 0.4, 254.6), (0.004, 90.5, 30.25))
    ]
    keypoints, scores = decode_heatmaps(torch.stack(maps)[None])
    network = keypoints[0].double() / torch.tensor([191, 255]) * torch.tensor([768, 1024])
    want = [[202.253400, 404.379596], [-2.010470, 1026.007843], [363.895288, 121.474517]]
    assert (network - torch.tensor(want, dtype=torch.float64)).abs().max() < 3e-4
    assert (scores[0] - torch.tensor([0.8977528, 0.4977827, 0.0039827])).abs().max() < 1e-6


def test_decode_empty_map_is_finite(golden_decode):
    keypoints, scores = decode_heatmaps(maps_of(golden_decode, "zero"))
    assert keypoints.isfinite().all() and keypoints[0, 1].tolist() == [-1, -1] and scores[0, 1] == 0
    assert np.array_equal(scores.numpy(), golden_decode["zero_scores"])
    centers, scales = (torch.from_numpy(golden_decode[f"zero_{k}"]).double() for k in ("centers", "scales"))
    image = crop_to_image(keypoints.double(), centers, scales, HEATMAP).numpy()
    assert np.abs(image - golden_decode["zero_keypoints"])[0, [0, 2]].max() < 1e-4


def assert_like_reference(maps: torch.Tensor, atol: float = 1e-4, **kwargs) -> None:
    keypoints, scores = decode_heatmaps(maps[None], **kwargs)
    want = np.stack([reference_decode(m.numpy(), **kwargs) for m in maps])
    nudged = np.stack([reference_decode(m.numpy() * (1 + 1e-6), **kwargs) for m in maps])
    steady = np.abs(want - nudged).max(-1) < 1e-5  # the reference itself does not hang on the last digits
    assert steady.sum() >= len(maps) * 0.8
    assert np.abs(keypoints[0].numpy() - want)[steady].max() < atol
    assert torch.equal(scores[0], maps.amax((1, 2)))


@pytest.mark.parametrize("factor", [1.0, 20.0, 60.0, 100.0, 5e-3, 1.2e-3, 9e-4])
def test_decode_inside_and_outside_the_log_range(factor):
    spots = [(8.3, 11.7), (20.5, 30.2), (14.9, 5.1), (1.2, 2.8), (28.9, 38.6), (0.0, 20.0), (15.0, 39.0)]
    assert_like_reference(torch.stack([bump(x, y, factor) for x, y in spots]))


def test_decode_noise():
    # White noise: blurred windows that are partly or wholly below the clip, which then hangs on a far maximum.
    maps = torch.randn(40, 40, 30, generator=torch.Generator().manual_seed(7))
    assert_like_reference(maps)


def test_decode_with_a_blurred_maximum_elsewhere():
    # A one-pixel peak over a broad, lower bump: the blurred maximum, which rescales, lies far from the raw one.
    broad = bump(20, 28, 30.0, sigma=5)
    for height in (31.0, 60.0, 400.0):
        maps = broad.clone()
        maps[6, 7] = height
        assert_like_reference(maps[None])
    low = bump(20, 28, 0.004, sigma=5) - 0.0005
    low[6, 7] = 0.006
    assert_like_reference(low[None])


def test_decode_negative_blurred_maximum():
    # The raw maximum is positive, every blurred value negative: so is the rescaling factor, and the original uses it.
    maps = torch.full((40, 30), -1.0)
    rows, columns = torch.arange(40.0)[:, None], torch.arange(30.0)
    maps = maps - 0.03 * ((columns - 11.3) ** 2 + (rows - 17.6) ** 2)
    maps[18, 11] = 0.25
    keypoints, scores = decode_heatmaps(maps[None, None])
    want = reference_decode(maps.numpy())
    assert np.abs(want - [11, 18]).max() > 0.05, "the refinement does something here"
    assert np.abs(keypoints[0, 0].numpy() - want).max() < 1e-4 and scores.item() == 0.25


def test_decode_first_of_equal_maxima_wins():
    maps = torch.zeros(1, 1, 40, 30)
    for y, x in ((9, 8), (9, 25), (30, 3)):
        maps[0, 0, y - 3 : y + 4, x - 2 : x + 3] = 0.5
        maps[0, 0, y, x] = 0.75
    keypoints, _ = decode_heatmaps(maps)
    assert (keypoints[0, 0] - torch.tensor([8.0, 9.0])).abs().max() < 0.1


def test_decode_values_that_are_no_numbers():
    nan, inf = float("nan"), float("inf")
    maps = bump(8.3, 11.7, 0.8)[None].repeat(6, 1, 1)
    maps[0, 3, 4] = nan
    maps[1, 30, 20] = inf
    maps[2] = -inf
    maps[3, 30:, 20:] = -inf  # far from the peak
    maps[4] = -0.5
    keypoints, scores = decode_heatmaps(maps[None])
    assert keypoints.isfinite().all() and scores.isfinite().all()
    assert keypoints[0, [0, 1, 2, 4]].eq(-1).all()
    assert scores[0, :3].tolist() == [0, 0, 0] and scores[0, 4] == -0.5
    assert torch.equal(keypoints[0, 3], keypoints[0, 5]), "values out of reach do not matter"
    near = bump(8.3, 11.7, 0.8)
    near[13, 9] = -inf
    assert decode_heatmaps(near[None, None])[0][0, 0].tolist() == [8.0, 12.0], "no finite step: the peak itself"


def test_decode_subset_and_order_of_people():
    maps = torch.randn(2, 9, 40, 30, generator=torch.Generator().manual_seed(2)) + bump(12.2, 20.8, 4.0)
    keypoints, scores = decode_heatmaps(maps)
    index = torch.tensor([7, 0, 3])
    some_keypoints, some_scores = decode_heatmaps(maps.flip(0)[:, index])
    assert torch.equal(some_keypoints, keypoints.flip(0)[:, index])
    assert torch.equal(some_scores, scores.flip(0)[:, index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decode_other_precisions(dtype):
    maps = torch.stack([bump(8.3, 11.7, 0.8), bump(20.5, 30.2, 0.002), bump(14, 20, 90.0)])[None].to(dtype)
    got, want = decode_heatmaps(maps), decode_heatmaps(maps.float())
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(got, want))


def test_decode_other_memory_layouts():
    maps = torch.randn(2, 6, 40, 30, generator=torch.Generator().manual_seed(5))
    want = decode_heatmaps(maps)[0]
    assert torch.equal(decode_heatmaps(maps.to(memory_format=torch.channels_last))[0], want)
    assert torch.equal(decode_heatmaps(maps.transpose(2, 3).contiguous().transpose(2, 3))[0], want)
    assert not decode_heatmaps(maps.clone().requires_grad_())[0].requires_grad


@pytest.mark.parametrize("kernel_size", [13, 17])
def test_decode_other_kernels(kernel_size):
    assert_like_reference(torch.stack([bump(8.3, 11.7, 0.8), bump(20.5, 30.2, 70.0)]), kernel_size=kernel_size)


@pytest.mark.parametrize(
    ("kernel_size", "taps"),
    [(3, [1, 2, 1]), (5, [1, 4, 6, 4, 1]), (7, [4, 14, 28, 36, 28, 14, 4]), (9, [4, 13, 30, 51, 60, 51, 30, 13, 4])],
)
def test_decode_short_kernels_are_opencvs(kernel_size, taps):
    # A second, lower pixel to the right of the peak pulls the keypoint; the 3 x 3 window follows from the taps alone.
    weights = np.pad(np.array(taps) / np.sum(taps), 2)
    maps = torch.ones(40, 30)
    maps[20, 15], maps[20, 16] = 2.0, 1.5
    near = len(weights) // 2 + np.arange(-1, 2)
    logs = np.log(1 + np.outer(weights[near], weights[near] + 0.5 * weights[near - 1]))
    xx, yy = logs[1, 2] - 2 * logs[1, 1] + logs[1, 0], logs[2, 1] - 2 * logs[1, 1] + logs[0, 1]
    xy = (logs[2, 2] - logs[1, 2] - logs[2, 1] + 2 * logs[1, 1] - logs[1, 0] - logs[0, 1] + logs[0, 0]) / 2
    step = np.linalg.solve([[xx, xy], [xy, yy]], [(logs[1, 2] - logs[1, 0]) / 2, 0])
    keypoints = decode_heatmaps(maps[None, None], kernel_size)[0][0, 0].numpy()
    assert step[0] < -0.1
    assert np.abs(keypoints - ([15, 20] - step)).max() < 1e-4


@pytest.mark.parametrize("kernel_size", [1, 4, -3, 11.0])
def test_decode_bad_kernel(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}"):
        decode_heatmaps(torch.zeros(1, 2, 8, 6), kernel_size)


def test_decode_shapes():
    with pytest.raises(ValueError, match=r"\(2, 8, 6\)"):
        decode_heatmaps(torch.zeros(2, 8, 6))
    for shape in ((0, 17, 8, 6), (3, 0, 8, 6)):
        keypoints, scores = decode_heatmaps(torch.zeros(shape, dtype=torch.float16))
        assert keypoints.shape == (*shape[:2], 2) and scores.shape == shape[:2] and scores.dtype == torch.float32
    keypoints, _ = decode_heatmaps(bump(1.2, 2.1, 0.5, size=(4, 3))[None, None])  # smaller than the kernel
    assert np.abs(keypoints[0, 0].numpy() - reference_decode(bump(1.2, 2.1, 0.5, size=(4, 3)).numpy())).max() < 1e-4


# ---------------------------------------------------------------------------------------------------------------- flip
def test_flip_heatmaps():
    maps = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4)
    pairs = [[1, 3], [4, 2]]
    got = flip_heatmaps(maps, pairs)
    assert torch.equal(got, maps[:, [0, 3, 4, 1, 2]].flip(-1))
    assert torch.equal(flip_heatmaps(maps, torch.tensor(pairs)), got)
    assert torch.equal(flip_heatmaps(got, pairs), maps)
    assert torch.equal(flip_heatmaps(maps, []), maps.flip(-1))
    for same in (np.array(pairs), [torch.tensor([1, 3]), (np.int64(4), 2)], ((1, 3), (4, 2))):
        assert torch.equal(flip_heatmaps(maps, same), got)
    assert torch.equal(flip_heatmaps(maps, torch.zeros(0, 2)), maps.flip(-1))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([[1, 3], [4, 5]], "flip_pairs holds [4, 5], expected pairs of keypoint indices from 0 to 4"),
        ([[1, -1]], "flip_pairs holds [1, -1]"),
        (torch.tensor([[0, 1], [2, 7]]), "flip_pairs holds [2, 7]"),
        ([[1, 3], [3, 4]], "flip_pairs holds [3, 4] with an index that came before"),
        (np.array([[0, 1], [2, 2]]), "flip_pairs holds [2, 2] with an index"),
        ([(0, 1.5)], "flip_pairs holds (0, 1.5)"),
        (torch.tensor([[0.0, 1.0]]), "flip_pairs holds [0.0, 1.0]"),
        ([[True, 3]], "flip_pairs holds [True, 3]"),
        ([["left", "right"]], "flip_pairs holds ['left', 'right']"),
        ([[1, 2, 3]], "flip_pairs holds [1, 2, 3]"),
        ([1, 3, 4, 2], "flip_pairs holds 1,"),
        (3, "flip_pairs is 3"),
        ("1-3", "flip_pairs is '1-3'"),
        (torch.zeros(2, 2, device="meta"), "flip_pairs is torch.float32 of shape (2, 2)"),
        (torch.zeros(2, 3, dtype=torch.long, device="meta"), "flip_pairs is torch.int64 of shape (2, 3)"),
    ],
)
def test_bad_flip_pairs(pairs, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        flip_heatmaps(torch.zeros(2, 5, 3, 4), pairs)


def test_flip_pairs_elsewhere_and_compiled():
    maps, pairs = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4), torch.tensor([[1, 3], [4, 2]])
    assert flip_heatmaps(maps.to("meta"), pairs.to("meta")).shape == maps.shape  # values that cannot be looked at
    compiled = torch.compile(flip_heatmaps, fullgraph=True, backend="eager")
    for given in (pairs, pairs.tolist()):
        assert torch.equal(compiled(maps, given), flip_heatmaps(maps, pairs))


def test_boxes_that_may_be_corners_are_told(caplog):
    """All reach out of the image and would fit as corners, none of them by much: taken as they are, with a warning."""
    logger = logging.getLogger("sapiens_hf.heatmaps_sapiens")
    logger.addHandler(caplog.handler)
    try:
        kept = validate_boxes([[[62, 25, 162, 255], [0, 68, 78, 250]]], 1, [(256, 192)])
        assert kept[0].tolist() == [[62, 25, 162, 255], [0, 68, 78, 250]]
        assert "all reach out of their image of 192 x 256 pixels. If they are corners" in caplog.text
        caplog.clear()
        validate_boxes([[[62, 25, 162, 255], [3, 4, 10, 20]]], 1, [(256, 192)])  # one that does not
        assert not caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("boxes", [[62, 25, 100, 230], [[[62, 25, 100, 200]]], None])
def test_boxes_of_one_image_ask_for_the_form_that_is_taken(boxes):
    with pytest.raises(ValueError, match=r"^photo: boxes .*an image are \[\[x, y, width, height\], \.\.\.\], or \[\]"):
        validate_image_boxes(boxes, (256, 192), "photo: boxes")
    assert validate_image_boxes([[62, 25, 100, 200]], (256, 192), "photo: boxes").shape == (1, 4)

"""Augmentation: geometry of image and labels together, chance from the generator alone, the original's parameters."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_helpers import CLASSES, NAMES, person

from sapiens_hf import SapiensImageProcessor, keypoint_set
from training import augment
from training.augment import (
    DEPTH_AUGMENTATION,
    NO_POSE_AUGMENTATION,
    NORMAL_AUGMENTATION,
    SEGMENTATION_AUGMENTATION,
    DenseAugmentation,
    PoseAugmentation,
    draw_crop,
    fit_background,
    flip_keypoints,
    half_body,
    paste,
    swap_classes,
    truncated_normal,
)
from training.augment_color import blur, distort_dense, distort_pose, drop_hole
from training.data import ModelInputs, collate, sample_generator
from training.layouts import KeypointLayout, keypoint_layout
from training.warp import mirror, positions, resize, rotate, sample_bilinear, sample_nearest, shift, transform_points

SIZE = (64, 48)
LAYOUT = KeypointLayout("five", NAMES, ((1, 2), (3, 4)), (0, 1, 2), (3, 4))
STILL = DenseAugmentation(zoom=(1.0, 1.0), flip_prob=0.0, color=False)
ALWAYS = dict(flip_prob=1.0, half_body_prob=0, shift_prob=0, scale_prob=0, rotate_prob=0, color=False, blur_prob=0,
              median_prob=0, hole_prob=0)  # fmt: skip


def augment_pose(sample, size, layout, rng, options):
    return augment.augment_pose(sample, rng, size=size, layout=layout, options=options)


def augment_dense(sample, size, rng, options, **settings):
    return augment.augment_dense(sample, rng, size=size, options=options, **settings)


class FixedGenerator:
    """A generator whose uniform draws are given; to choose one branch of an augmentation."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self, size=None):
        return self.values.pop(0) if size is None else np.array([self.values.pop(0) for _ in range(size)])

    def uniform(self, low=0.0, high=1.0):
        return low + (high - low) * self.values.pop(0)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        return low + int((high - low) * self.values.pop(0))


def dots(size=(96, 80), points=((20, 30), (50, 40), (35, 70), (61, 22), (11, 88))):
    """A black picture with one white blob per point, each of its own strength."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for number, (column, row) in enumerate(points):
        blob = np.exp(-((x - column) ** 2 + (y - row) ** 2) / 8)
        image += (blob * (255 - 30 * number))[..., None]
    keypoints = np.concatenate([np.array(points, float), np.full((len(points), 1), 2.0)], axis=1)
    return {"image": image.clip(0, 255).astype(np.uint8), "keypoints": keypoints, "box": np.array([5, 10, 70, 80.0])}


def peak(image, point, reach=3):
    """Position of the brightest pixel near a point, weighted by brightness."""
    column, row = np.round(point).astype(int)
    y, x = np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1]
    weights = image[y, x, 0].astype(float) ** 2
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("seed", range(6))
def test_keypoints_stay_on_their_pixels(seed):
    """Flip, half body, shift, zoom and rotation: the blob is where the keypoint says."""
    sample = dots()
    size = (128, 96)
    options = replace(
        PoseAugmentation(), rotate_prob=1.0, shift_prob=1.0, color=False, blur_prob=0, median_prob=0, hole_prob=0
    )
    done = augment_pose(sample, size, LAYOUT, sample_generator(seed, 0, 0), options)
    inside = [p for p in done["keypoints"] if 6 < p[0] < size[1] - 7 and 6 < p[1] < size[0] - 7]
    assert done["image"].shape == (*size, 3) and len(inside) >= 1
    others = done["keypoints"][:, :2]
    for point in inside:
        if np.sum(np.linalg.norm(others - point[:2], axis=1) < 14) == 1:
            np.testing.assert_allclose(peak(done["image"], point[:2]), point[:2], atol=0.7)


def test_without_augmentation_the_crop_is_the_processors():
    """Crop, heatmaps and weights are those of inference, whatever the box does."""
    processor = SapiensImageProcessor(size={"height": 64, "width": 48})
    sample = person(3)
    sample["box"] = np.array([-10.0, 20.0, 55.0, 61.0])
    done = augment_pose(sample, SIZE, LAYOUT, np.random.default_rng(0), NO_POSE_AUGMENTATION)
    ours = ModelInputs(processor)(collate([done]))
    theirs = processor(
        sample["image"], boxes=[[sample["box"].tolist()]], keypoints=[[sample["keypoints"]]], return_tensors="pt"
    )
    levels = (ours["pixel_values"] - theirs["pixel_values"]).abs() * 0.225 * 255
    assert levels.max() < 1.2 and (levels > 0.5).float().mean() < 0.01  # one grey level, where a half is rounded
    torch.testing.assert_close(ours["labels"], theirs["labels"], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours["keypoint_weights"], theirs["keypoint_weights"])


def test_flipped_crop_is_the_mirrored_crop():
    sample = dots()
    options = PoseAugmentation(**ALWAYS)
    flipped = augment_pose(sample, SIZE, LAYOUT, np.random.default_rng(0), options)
    mirrored = {**sample, "image": sample["image"][:, ::-1].copy()}
    mirrored["box"] = np.array([79 - 5 - 70, 10, 70, 80.0])
    straight = augment_pose(mirrored, SIZE, LAYOUT, np.random.default_rng(0), NO_POSE_AUGMENTATION)
    assert np.abs(flipped["image"].astype(int) - straight["image"]).max() <= 1
    # The crop shows "left hand", 1, where "right hand", 2, was.
    expected = augment_pose(
        {**mirrored, "keypoints": flip_keypoints(sample["keypoints"], 80, LAYOUT.flip_pairs)},
        SIZE, LAYOUT, np.random.default_rng(0), NO_POSE_AUGMENTATION,
    )  # fmt: skip
    np.testing.assert_allclose(flipped["keypoints"], expected["keypoints"], atol=1e-4)


def test_flips_are_their_own_inverse():
    keypoints, pairs = person(1)["keypoints"], LAYOUT.flip_pairs
    once = flip_keypoints(keypoints, 80, pairs)
    assert once[1, 0] == 79 - keypoints[2, 0] and once[4, 2] == keypoints[3, 2]
    np.testing.assert_allclose(flip_keypoints(once, 80, pairs), keypoints, rtol=1e-12)
    labels = person(1)["segmentation_map"]
    swapped = swap_classes(labels, ((1, 2),))
    assert (swapped[labels == 1] == 2).all() and (swapped[labels == 3] == 3).all()
    np.testing.assert_array_equal(swap_classes(swapped, ((1, 2),)), labels)
    np.testing.assert_allclose(mirror(7) @ mirror(7), np.eye(3))


def test_half_body_takes_the_mean_and_extent_of_the_visible_half():
    keypoints = np.array([[10, 10, 1], [20, 14, 2], [30, 12, 1], [12, 50, 1], [25, 60, 1.0]])
    options = replace(PoseAugmentation(), min_lower_visible=2)
    center, scale = half_body(keypoints, LAYOUT, FixedGenerator(0.1), options)
    np.testing.assert_allclose(center, [20, 12])
    np.testing.assert_allclose(scale, [30, 6])
    center, scale = half_body(keypoints, LAYOUT, FixedGenerator(0.9), options)
    np.testing.assert_allclose(center, [18.5, 55])
    keypoints[3, 2] = 0  # one lower point is too few, so the upper body it is
    np.testing.assert_allclose(half_body(keypoints, LAYOUT, FixedGenerator(0.9), options)[0], [20, 12])
    keypoints[:3, 2] = 0
    assert half_body(keypoints, LAYOUT, FixedGenerator(0.1), options) is None


def test_half_body_needs_nine_visible_points():
    coco = keypoint_layout("coco")
    assert coco.upper_body_ids == keypoint_set(17).upper_body_ids
    rng = np.random.default_rng(0)
    keypoints = np.concatenate([rng.uniform(20, 60, (17, 2)), np.ones((17, 1))], axis=1)
    options = replace(PoseAugmentation(**{**ALWAYS, "flip_prob": 0}), half_body_prob=1.0)
    sample = {"image": person(0)["image"], "box": np.array([5, 5, 70, 85.0]), "keypoints": keypoints}
    whole = augment_pose(sample, SIZE, coco, sample_generator(0, 0, 0), NO_POSE_AUGMENTATION)
    half = augment_pose(sample, SIZE, coco, sample_generator(0, 0, 0), options)
    assert not np.allclose(half["keypoints"], whole["keypoints"])
    keypoints[8:, 2] = 0
    few = augment_pose(sample, SIZE, coco, sample_generator(0, 0, 0), options)
    np.testing.assert_allclose(few["keypoints"][:, :2], whole["keypoints"][:, :2])


def test_shift_zoom_and_rotation_have_the_originals_ranges():
    draws = truncated_normal(np.random.default_rng(0), 4000)
    assert draws.min() > -1 and draws.max() < 1 and abs(draws.mean()) < 0.02
    assert draws.std() == pytest.approx(0.5396, abs=0.01)  # of a normal distribution cut at one deviation
    sample = dots()
    # Largest draws: not flipped, no half body, shift by +0.16 of the padded box, zoom 1.5, +80 degrees.
    top = 1 - 1e-12
    options = PoseAugmentation(color=False, blur_prob=0, median_prob=0, hole_prob=0, half_body_prob=0)
    values = [0.9, 0.0, top, top, 0.0, top, 0.0, top, 1, 1, 1]
    done = augment_pose(sample, SIZE, LAYOUT, FixedGenerator(*values), options)
    padded = np.array([70, 80]) * 1.25
    center = np.array([40, 50]) + 0.16 * padded
    scale = padded * 1.5
    scale = (
        np.array([scale[0], scale[0] / 0.75]) if scale[0] > 0.75 * scale[1] else np.array([0.75 * scale[1], scale[1]])
    )
    angle = np.deg2rad(80)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = ((sample["keypoints"][:, :2] - center) @ turn.T + scale / 2) * (np.array([47, 63]) / scale)
    np.testing.assert_allclose(done["keypoints"][:, :2], expected, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- dense tasks
def column_picture(size=(90, 70)):
    """Labels that are the picture: the class is the column's stripe, the red level says it too."""
    stripe = np.tile(np.arange(size[1]) // 10, (size[0], 1)).astype(np.uint8)
    image = np.stack([stripe * 30, np.zeros_like(stripe), np.full_like(stripe, 7)], axis=-1)
    return {"image": image, "segmentation_map": stripe}


@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_move_together(seed):
    """Zoom, crop, stretch, rotation and flip; red tells which class each pixel shows."""
    options = replace(SEGMENTATION_AUGMENTATION, background_prob=0, color=False, rotate_prob=1.0, zoom=(0.5, 2.0))
    done = augment_dense(column_picture(), SIZE, sample_generator(seed, 1, 2), options, rotate_fill_label=255)
    labels, red, blue = done["segmentation_map"], done["image"][..., 0], done["image"][..., 2]
    assert labels.shape == SIZE and labels.dtype == np.uint8
    inside = labels != 255
    assert (blue[inside] == 7).all() and (blue[~inside] == 0).all() and inside.mean() > 0.5
    # Away from the border between two stripes the red level is exactly the class's.
    off = np.abs(red[inside].astype(int) - labels[inside] * 30)
    assert (off == 0).mean() > 0.75
    # One interpolation shows at most half of the next stripe, the two of a small zoom in few places more.
    rng = sample_generator(seed, 1, 2)
    rng.random()  # the background's
    zoomed = draw_crop((90, 70), SIZE, rng, options, column_picture()["segmentation_map"])
    is_small = zoomed[2] != SIZE
    assert (off <= 15).mean() > 0.97 and off.max() < 30 if is_small else (off <= 15).all()


def test_rotation_turns_the_picture_clockwise_about_its_middle():
    size = (41, 31)
    sample = {
        "image": np.zeros((*size, 3), np.uint8),
        "depth": np.zeros(size, np.float32),
        "mask": np.ones(size, bool),
    }
    sample["image"][20, 25] = 255  # ten pixels to the right of the middle
    sample["depth"][20, 25] = 5
    angle = 0.5 + 30 / 120  # of -60 to 60: 30 degrees
    options = replace(DEPTH_AUGMENTATION, background_prob=0, zoom=(1, 1), color=False)
    done = augment_dense(sample, size, FixedGenerator(0.9, 0.0, 0.0, 0.0, angle, 0.1, 0.9), options)
    expected = np.array([15 + 10 * np.cos(np.pi / 6), 20 + 10 * np.sin(np.pi / 6)])  # down, as rows count down
    np.testing.assert_allclose(peak(done["image"], expected, 2), expected, atol=0.3)
    assert done["depth"][tuple(np.round(expected[::-1]).astype(int))] == 5
    corner = ~done["mask"]
    assert corner[0, 0] and (done["depth"][corner] == 1e10).all() and (done["image"][corner] == 0).all()
    points = transform_points(rotate(30, size), np.array([[25.0, 20.0]]))
    np.testing.assert_allclose(points[0], expected)


def test_normals_change_sign_with_a_flip_and_stay_unit():
    sample = {key: person(2)[key] for key in ("image", "normals", "mask")}
    flip = replace(NORMAL_AUGMENTATION, background_prob=0, zoom=(1, 1), color=False, flip_prob=1.0)
    straight = augment_dense(sample, (96, 80), sample_generator(0, 0, 0), STILL)
    flipped = augment_dense(sample, (96, 80), sample_generator(0, 0, 0), flip)
    np.testing.assert_array_equal(flipped["mask"], straight["mask"][:, ::-1])
    np.testing.assert_array_equal(flipped["normals"], straight["normals"][:, ::-1] * np.array([-1, 1, 1], np.float32))
    lengths = np.linalg.norm(flipped["normals"][flipped["mask"]], axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert (sample["normals"] == person(2)["normals"]).all()  # the sample itself is untouched
    twice = augment_dense({**flipped}, (96, 80), sample_generator(0, 0, 0), flip)
    for key in ("image", "mask", "normals"):
        np.testing.assert_array_equal(twice[key], straight[key])


def test_normals_are_never_rotated():
    assert NORMAL_AUGMENTATION.rotate_prob == 0


def test_labels_swap_sides_with_a_flip():
    sample = {key: person(2)[key] for key in ("image", "segmentation_map")}
    flip = replace(STILL, flip_prob=1.0)
    pairs = ((CLASSES.index("Left_Arm"), CLASSES.index("Right_Arm")),)
    done = augment_dense(sample, (96, 80), sample_generator(0, 0, 0), flip, swap_pairs=pairs)
    # "Left_Arm" is on the left of the picture before and after: its pixels were the right arm's.
    np.testing.assert_array_equal(done["segmentation_map"] == 1, (sample["segmentation_map"] == 2)[:, ::-1])


def test_zoom_and_crop_follow_the_longer_side():
    """The zoom fits long to long and short to short side, whichever way the picture lies."""
    rng = np.random.default_rng(0)
    zoomed, _, crop = draw_crop((200, 300), (64, 48), rng, replace(STILL, zoom=(0.5, 0.5)))
    assert zoomed == (21, 32) and crop == (21, 32)  # 24 / 200 against 32 / 300
    zoomed, corner, crop = draw_crop((300, 200), (64, 48), rng, replace(STILL, zoom=(2.0, 2.0)))
    assert zoomed == (128, 85) and crop == (64, 48) and 0 <= corner[0] <= 64 and 0 <= corner[1] <= 37


@pytest.mark.parametrize("image_size, factor", [((64, 48), 0.5), ((160, 120), 0.25), ((64, 90), 0.75)])
def test_small_zooms_lose_detail(image_size, factor):
    """A picture zoomed below the network's size and stretched back is that of two resizes, labels too."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 5, image_size).astype(np.uint8)
    sample = {"image": rng.integers(0, 256, (*image_size, 3)).astype(np.uint8), "segmentation_map": labels}
    done = augment_dense(sample, SIZE, sample_generator(0, 0, 0), replace(STILL, zoom=(factor, factor)))
    zoomed = draw_crop(image_size, SIZE, rng, replace(STILL, zoom=(factor, factor)))[2]

    def twice(image, mode):
        small = torch.nn.functional.interpolate(image, zoomed, mode=mode)
        return torch.nn.functional.interpolate(small.round(), SIZE, mode=mode).round()[0]

    expected = twice(torch.from_numpy(sample["image"]).permute(2, 0, 1)[None].float(), "bilinear").permute(1, 2, 0)
    difference = np.abs(done["image"].astype(int) - expected.numpy())
    assert zoomed[0] < SIZE[0] and difference.max() <= 1 and difference.mean() < 0.1
    expected = twice(torch.from_numpy(labels)[None, None].float(), "nearest-exact")[0]
    assert (done["segmentation_map"] == expected.numpy()).mean() > 0.99
    assert (done["segmentation_map"] != augment.fit_to_network(sample, size=SIZE)["segmentation_map"]).any()


def test_crops_show_more_than_one_class_where_they_can():
    labels = np.zeros((200, 150), np.uint8)
    labels[90:140, 60:110] = 3
    labels[:, 140:] = 255
    options = replace(SEGMENTATION_AUGMENTATION, zoom=(2.0, 2.0))
    shares = {}
    for share in (0.75, None):
        chosen = replace(options, max_class_share=share)
        hits = []
        for seed in range(60):
            (height, width), (top, left), crop = draw_crop(
                (200, 150), SIZE, np.random.default_rng(seed), chosen, labels
            )
            part = labels[int(top * 200 / height) : int((top + crop[0]) * 200 / height)]
            part = part[:, int(left * 150 / width) : int((left + crop[1]) * 150 / width)]
            counts = np.bincount(part[part != 255].ravel())
            hits.append(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < 0.75)
        shares[share] = np.mean(hits)
    assert shares[0.75] > 0.95 > 0.7 > shares[None]


def test_stretch_maps_borders_to_borders():
    matrix = resize((100, 50), (20, 25))
    np.testing.assert_allclose(
        transform_points(matrix, np.array([[-0.5, -0.5], [24.5, 19.5]])), [[-0.5, -0.5], [49.5, 99.5]]
    )
    np.testing.assert_allclose(shift(2, 3) @ shift(-2, -3), np.eye(3))
    sample = {key: person(5)[key] for key in ("image", "segmentation_map", "depth", "mask", "normals")}
    done = augment.fit_to_network(sample, size=SIZE)
    processor = SapiensImageProcessor(size={"height": 64, "width": 48})
    theirs = processor(sample["image"], return_tensors="pt")["pixel_values"]
    ours = ModelInputs(processor)(collate([done]))["pixel_values"]
    assert ((ours - theirs).abs() * 0.225 * 255).max() < 1.2
    assert {key: done[key].shape[:2] for key in sample} == dict.fromkeys(sample, SIZE)


def test_background_is_put_behind_the_person():
    sample = {key: person(2)[key] for key in ("image", "segmentation_map")}
    wall = np.full((40, 100, 3), (1, 2, 3), np.uint8)
    wall[:, :20] = 200
    options = replace(STILL, background_prob=1.0)
    done = augment_dense(sample, (96, 80), sample_generator(0, 0, 0), options, backgrounds=[wall])
    mask = sample["segmentation_map"] > 0
    np.testing.assert_array_equal(done["image"][mask], sample["image"][mask])
    assert (done["image"][~mask] == (1, 2, 3)).all()  # the middle of the wall
    np.testing.assert_array_equal(
        augment_dense(sample, (96, 80), sample_generator(0, 0, 0), options)["image"], sample["image"]
    )
    called = []
    augment_dense(
        sample, (96, 80), sample_generator(0, 0, 0), options, backgrounds=[wall],
        compose=lambda *given: called.append(given) or paste(*given),
    )  # fmt: skip
    assert called[0][2].dtype == bool
    assert fit_background(wall, (30, 90)).shape == (30, 90, 3)  # too narrow at that height: stretched
    mask_sample = {key: person(2)[key] for key in ("image", "depth", "mask")}
    done = augment_dense(mask_sample, (96, 80), sample_generator(0, 0, 0), options, backgrounds=[wall])
    assert (done["image"][~mask_sample["mask"]] == (1, 2, 3)).all()


def test_backgrounds_are_read_from_files(tmp_path):
    from PIL import Image

    from training.sources import image_files

    (tmp_path / "deep").mkdir()
    Image.new("L", (30, 40), 9).save(tmp_path / "deep" / "wall.jpg")
    sample = {key: person(2)[key] for key in ("image", "depth", "mask")}
    options = replace(STILL, background_prob=1.0)
    files = image_files(str(tmp_path))
    done = augment_dense(sample, (96, 80), sample_generator(0, 0, 0), options, backgrounds=files)
    assert (done["image"][~sample["mask"]] == 9).all()
    assert image_files(None) == []
    (tmp_path / "deep" / "wall.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        image_files(str(tmp_path))


# ------------------------------------------------------------------------------------------------------- colours
def test_colours_are_the_originals_sums():
    """Brightness +16, no contrast first, saturation x 1.25, hue +9 steps, no contrast after."""
    image = person(4)["image"][40:50, 30:36]
    values = [0.0, 0.75, 0.9, 0.0, 0.75, 0.0, 0.75, 0.9]
    done = distort_dense(image, FixedGenerator(*values))
    bright = np.clip(image.astype(int) + 16, 0, 255)
    expected = np.zeros_like(bright)
    for place in np.ndindex(bright.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(bright[place] / 255))
        expected[place] = np.array(colorsys.hsv_to_rgb((hue + 9 / 180) % 1, min(saturation * 1.25, 1), value)) * 255
    # A step of hue, two degrees, is 8.5 levels between two primaries, and is rounded once here and once in PIL; each
    # truncation of saturation, of which there are two, makes the lower channels brighter by up to a level.
    difference = done.astype(int) - expected
    assert np.abs(difference).max() <= 9 and np.abs(difference.mean()) < 2
    only_contrast = distort_dense(image, FixedGenerator(0.9, 0.1, 0.1, 0.25, 0.9, 0.9))
    np.testing.assert_array_equal(only_contrast, (image * 0.75).astype(np.uint8))
    contrast_last = distort_dense(image, FixedGenerator(0.9, 0.9, 0.9, 0.9, 0.1, 0.25))
    np.testing.assert_array_equal(contrast_last, only_contrast)


def test_pose_contrast_comes_twice_or_never():
    image = np.full((4, 5, 3), (100, 150, 200), np.uint8)
    never = distort_pose(image, FixedGenerator(0.9, 0.9, 0.0, 0.9))
    np.testing.assert_array_equal(never, image)
    twice = distort_pose(image, FixedGenerator(0.9, 0.1, 0.25, 0.0, 0.9))  # the factor is drawn once
    np.testing.assert_array_equal(twice, ((image * 0.75).astype(int) * 0.75).astype(np.uint8))

    class Swap(FixedGenerator):
        def permutation(self, count):
            return np.array([2, 0, 1])

    np.testing.assert_array_equal(distort_pose(image, Swap(0.9, 0.9, 0.0, 0.1)), image[..., [2, 0, 1]])


@pytest.mark.parametrize("mode", (1, 2, 3))
def test_pose_hue_and_saturation_modes(mode):
    image = np.full((3, 2, 3), (200, 60, 60), np.uint8)  # hue 0
    values = [0.9, 0.9, mode / 4] + [0.5] * (mode in (1, 3)) + [0.0] * (mode in (2, 3)) + [0.9]
    done = distort_pose(image, FixedGenerator(*values))[0, 0].astype(int)
    if mode == 1:
        np.testing.assert_allclose(done, (200, 60, 60), atol=2)
    else:  # -18 wraps at 256: 238 steps, that is 58 of 180, a green; a true wrap would give a magenta
        assert done.argmax() == 1


def test_blur_hole_and_their_probabilities():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)

    class Choice(FixedGenerator):
        def choice(self, values):
            return values[1]

    box = blur(image, Choice(0.0, 0.9), 0.1, 0.1)
    assert abs(int(box[10, 15, 0]) - image[8:13, 13:18, 0].mean()) < 1.5
    median = blur(image, Choice(0.9, 0.0), 0.1, 0.1)
    assert median[10, 15, 0] == np.median(image[8:13, 13:18, 0])
    np.testing.assert_array_equal(blur(image, Choice(0.9, 0.9), 0.1, 0.1), image)
    white = np.full((100, 60, 3), 255, np.uint8)
    for seed in range(20):
        hole = (drop_hole(white, np.random.default_rng(seed), (0.2, 0.4)) == 0).all(axis=-1)
        rows, columns = hole.any(axis=1).sum(), hole.any(axis=0).sum()
        assert 20 <= rows <= 40 and 12 <= columns <= 24 and hole.sum() == rows * columns
    assert (white == 255).all()


# --------------------------------------------------------------------------------------------------------- sampling
def test_sampling_far_outside_and_at_borders():
    image = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7, 1).repeat(3, axis=2)
    x, y = positions(np.array([[1.0, 0, 100], [0, 1.0, 100]]), (3, 4))
    assert (sample_bilinear(image, x, y) == 0).all() and (sample_bilinear(image, x, y, border="border") == 34).all()
    assert (sample_nearest(image[..., 0], x, y) == 34).all()
    x, y = positions(np.eye(3), (5, 7))
    np.testing.assert_array_equal(sample_bilinear(image, x, y), image)
    np.testing.assert_array_equal(sample_nearest(image, x, y), image)
    x, y = positions(shift(0.5, 0), (5, 7))
    np.testing.assert_array_equal(
        sample_bilinear(image, x, y, border="border")[0, :, 0], np.rint([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6])
    )


@pytest.mark.parametrize("task", ("pose", "segmentation", "depth", "normal"))
def test_a_sample_follows_from_seed_epoch_and_index(task):
    sample = {"name": "a", **person(7)}
    keys = {
        "pose": ["box", "keypoints"],
        "segmentation": ["segmentation_map"],
        "depth": ["depth", "mask"],
        "normal": ["normals", "mask"],
    }
    sample = {key: sample[key] for key in ("name", "image", *keys[task])}

    def made(*key):
        rng = sample_generator(*key)
        if task == "pose":
            return augment_pose(sample, SIZE, LAYOUT, rng, PoseAugmentation())
        options = {
            "segmentation": SEGMENTATION_AUGMENTATION,
            "depth": DEPTH_AUGMENTATION,
            "normal": NORMAL_AUGMENTATION,
        }
        return augment_dense(sample, SIZE, rng, options[task])

    first, again = made(0, 3, 7), made(0, 3, 7)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    for other in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        assert not np.array_equal(made(*other)["image"], first["image"])

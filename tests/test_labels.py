"""Keypoint sets, class sets and the conversions between them."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf import labels
from sapiens_hf.labels import KeypointSet, class_set, convert_keypoints, keypoint_set, part_mask, remap_labels

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"numpy": np.asarray, "torch": torch.from_numpy}


def named_points(name, shape=()):
    """Keypoints whose coordinates and scores tell which point they are: x = 3 * index + 1, y = -index, score = ..."""
    count = len(keypoint_set(name))
    index = np.broadcast_to(np.arange(count, dtype=np.float64), (*shape, count))
    return np.stack([3 * index + 1, -index], axis=-1), (index + 1) / 1000


@pytest.mark.parametrize(
    ("name", "count", "num_links", "num_pairs", "num_upper", "num_lower"),
    [("coco", 17, 19, 8, 11, 6), ("coco_wholebody", 133, 65, 61, 11, 12), ("goliath", 308, 65, 146, 51, 12)],
)
def test_keypoint_sets_are_complete_and_consistent(name, count, num_links, num_pairs, num_upper, num_lower):
    points = keypoint_set(name)
    assert len(points) == len(set(points.names)) == len(points.sigmas) == len(points.colors) == count
    assert len(points.skeleton) == len(points.link_colors) == num_links
    assert (len(points.upper_body_ids), len(points.lower_body_ids)) == (num_upper, num_lower)
    assert len(points.flip_pairs) == num_pairs
    flip = list(range(count))
    for first, second in points.flip_pairs:
        flip[first], flip[second] = second, first
    assert tuple(flip) == points.flip_indices
    assert all(0.007 <= sigma <= 0.107 for sigma in points.sigmas)
    assert all(0 <= value <= 255 for color in (*points.colors, *points.link_colors) for value in color)
    assert all(0 <= end < count and first != second for first, second in points.skeleton for end in (first, second))
    for group in points.groups.values():
        assert len(set(group)) == len(group)
        assert set(group) <= set(range(count))


def test_flip_partners_carry_mirrored_names():
    for name in labels.KEYPOINT_SETS:
        points = keypoint_set(name)
        for point, partner in zip(points.names, points.flip_indices, strict=True):
            if point.startswith("left_"):
                assert points.names[partner] == point.replace("left_", "right_", 1)


def test_flip_pairs_of_the_goliath_face_are_not_a_rename():
    points = keypoint_set("goliath")
    partner = points.names[points.flip_indices[points.index("l_point_2_of_inner_helix")]]
    assert partner == "r_point_8_of_inner_helix"
    assert points.flip_indices[points.index("tip_of_nose")] == points.index("tip_of_nose")


def test_skeleton_links_join_the_named_joints():
    links = {
        name: {frozenset(points.names[end] for end in link) for link in points.skeleton}
        for name, points in ((name, keypoint_set(name)) for name in labels.KEYPOINT_SETS)
    }
    assert links["coco"] <= links["goliath"]
    assert links["coco"] <= links["coco_wholebody"]
    assert frozenset({"left_wrist", "left_thumb_third_joint"}) in links["goliath"]
    assert frozenset({"left_hand_root", "left_thumb1"}) in links["coco_wholebody"]


def test_goliath_traps_are_met_by_name():
    goliath, wholebody = keypoint_set("goliath"), keypoint_set("coco_wholebody")
    assert (goliath.index("left_wrist"), goliath.index("right_wrist")) == (62, 41)
    assert (wholebody.index("left_wrist"), wholebody.index("right_wrist")) == (9, 10)
    tip_first = [goliath.index(f"left_middle_finger{joint}") for joint in (4, 3, 2)]
    base_first = [wholebody.index(f"left_middle_finger{joint}") for joint in (2, 3, 4)]
    assert tip_first == sorted(tip_first)
    assert base_first == sorted(base_first)


def test_groups_and_indices():
    goliath = keypoint_set("goliath")
    assert len(goliath.groups["face"]) == 238
    assert goliath.groups["body"][9:11] == (62, 41)
    assert [goliath.names[i] for i in goliath.groups["left_leg"]] == ["left_hip", "left_knee", "left_ankle"]
    assert {goliath.names[i] for i in goliath.groups["right_arm"]} == {
        *("right_acromion", "right_shoulder", "right_olecranon", "right_cubital_fossa", "right_elbow", "right_wrist")
    }
    assert goliath.indices("nose", "left_leg", "nose") == [0, 9, 11, 13]
    coco = keypoint_set("coco")
    assert [coco.names[i] for i in coco.groups["right_arm"]] == ["right_shoulder", "right_elbow", "right_wrist"]
    assert "left_foot" not in coco.groups
    with pytest.raises(
        ValueError, match=r"goliath has no entry or group named 'left_hands'.*'left_hand'\?.*Groups: body"
    ):
        goliath.indices("left_hands")


@pytest.mark.parametrize(
    ("given", "name"),
    [(17, "coco"), ("COCO-17", "coco"), ("wholebody", "coco_wholebody"), ("coco_wholebody_133", "coco_wholebody")]
    + [(133, "coco_wholebody"), (308, "goliath"), ("Goliath 308", "goliath"), ("goliath", "goliath")],
)
def test_keypoint_set_by_alias_or_count(given, name):
    assert keypoint_set(given) is keypoint_set(name)
    assert keypoint_set(given).name == name


@pytest.mark.parametrize(
    ("given", "name"),
    [(28, "goliath28"), ("goliath", "goliath28"), (20, "lip20"), ("LIP", "lip20"), ("cihp", "cihp20")]
    + [(19, "face_synthetics19"), ("FaceSynthetics", "face_synthetics19"), ("cihp_20", "cihp20")],
)
def test_class_set_by_alias_or_count(given, name):
    assert class_set(given) is class_set(name)
    assert class_set(given).name == name


def test_twenty_classes_are_lip_and_nothing_depends_on_it():
    lip, cihp = class_set("lip20"), class_set("cihp20")
    for field in ("names", "colors", "swap_pairs", "class_weights", "groups", "ignore_index", "rotate_fill_label"):
        assert getattr(lip, field) == getattr(cihp, field)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: keypoint_set("golliath"),
            r"no keypoint set 'golliath'\. Did you mean 'goliath'\? Known: coco, coco_who",
        ),
        (lambda: keypoint_set(18), r"no keypoint set 18\. Known: .*; counts: 17, 133, 308"),
        (lambda: class_set("lip_21"), r"no class set 'lip_21'\. Did you mean 'lip20'"),
        (lambda: class_set(29), r"no class set 29\. .*counts: 28, 20, 19"),
        (
            lambda: keypoint_set("coco").index("left_rist"),
            r"coco has no entry named 'left_rist'\. Did you mean 'left_wrist'",
        ),
        (lambda: class_set("lip").index("xyzzy"), r"lip20 has no entry named 'xyzzy'\.$"),
        (lambda: part_mask(np.zeros((3, 4), int), "left_arms"), r"Did you mean 'left_arm'\? Groups: person, face"),
        (
            lambda: part_mask(np.zeros((3, 4), int), "torso", class_set="lip"),
            r"lip20 has no entry or group named 'torso'",
        ),
        (lambda: part_mask(np.zeros((3, 4), int)), r"needs a class or a group of goliath28: person"),
        (
            lambda: remap_labels(np.zeros((3, 4), int), "lip", 19),
            r"no map lip20 to face_synthetics19\. Maps: lip20_to",
        ),
        (lambda: convert_keypoints(np.zeros((17, 2)), to="openpoze"), r"no keypoint layout 'openpoze'.*'openpose'\?"),
    ],
)
def test_wrong_names_get_an_answer(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sets_are_values():
    points, classes = keypoint_set("coco"), class_set(19)
    assert pickle.loads(pickle.dumps(points)) == points
    assert hash(classes) == hash(pickle.loads(pickle.dumps(classes)))
    assert keypoint_set(points) is points
    assert class_set(classes) is classes
    with pytest.raises(AttributeError):
        points.name = "other"


def test_labels_for_a_config():
    id2label, label2id = keypoint_set(308).id2label(), class_set(28).label2id()
    assert (len(id2label), id2label[62], id2label[41]) == (308, "left_wrist", "right_wrist")
    assert (len(label2id), label2id["Left_Foot"], label2id["Right_Foot"]) == (28, 4, 13)


def test_goliath_classes():
    classes = class_set("goliath28")
    assert classes.swap_pairs == tuple((k, k + 9) for k in range(4, 12))
    expected = [0.1, 10, 3, 2, 4, 4, 2, 2, 6, 10, 3, 3, 1, 4, 4, 2, 2, 6, 10, 3, 3, 1, 1, 10, 10, 10, 10, 10]
    assert list(classes.class_weights) == expected
    assert (classes.ignore_index, classes.background_index, classes.rotate_fill_label) == (255, 0, 0)
    assert class_set("cihp").rotate_fill_label == 255


@pytest.mark.parametrize("name", labels.CLASS_SETS)
def test_class_sets_are_complete_and_mirror_themselves(name):
    classes = class_set(name)
    assert len(classes) == len(classes.colors) == len(classes.class_weights) == int(name[-2:])
    assert classes.groups["person"] == tuple(range(1, len(classes)))
    swap = dict(classes.swap_pairs) | {second: first for first, second in classes.swap_pairs}
    for index, label in enumerate(classes.names):
        mirrored = label.replace("Left", "right").replace("Right", "Left").replace("right", "Right")
        assert classes.names[swap.get(index, index)] == mirrored
    for group, members in classes.groups.items():
        mirrored = {swap.get(index, index) for index in members}
        twin = group.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        assert mirrored == set(classes.groups[twin])


@pytest.mark.parametrize("kind", KINDS)
def test_goliath_to_wholebody_is_the_originals(kind):
    golden = np.load(GOLDEN / "goliath_to_wholebody.npz")
    keypoints, scores, mask, names = convert_keypoints(
        KINDS[kind](golden["keypoints308"]), KINDS[kind](golden["scores308"]), source="goliath", to="coco_wholebody"
    )
    assert isinstance(keypoints, torch.Tensor) == (kind == "torch")
    np.testing.assert_array_equal(np.asarray(keypoints), golden["keypoints133"])
    np.testing.assert_array_equal(np.asarray(scores), golden["scores133"])
    np.testing.assert_array_equal(np.asarray(mask), (golden["scores133"] != 0).all(axis=0))
    assert int(mask.sum()) == 53
    assert names == keypoint_set(133).names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", labels.KEYPOINT_SETS)
@pytest.mark.parametrize("to", [*labels.KEYPOINT_SETS, "openpose", "openpose18"])
def test_every_conversion_goes_by_name(kind, source, to):
    points, point_scores = named_points(source, (3, 2))
    keypoints, scores, mask, names = convert_keypoints(
        KINDS[kind](points), KINDS[kind](point_scores), source=source, to=to
    )
    assert keypoints.shape == (3, 2, len(names), 2)
    assert scores.shape == (3, 2, len(names))
    own = keypoint_set(source).label2id()
    means = {"neck": "shoulder", "mid_hip": "hip"} if to.startswith("openpose") else {}
    for k, name in enumerate(names):
        if name in means:
            ends = [own[f"{side}_{means[name]}"] for side in ("left", "right")]
        else:
            ends = [own[name]] if name in own else []
        assert bool(mask[k]) == bool(ends)
        expected = np.mean([points[1, 1, end] for end in ends], axis=0) if ends else (0, 0)
        np.testing.assert_array_equal(np.asarray(keypoints[1, 1, k]), expected)
        assert scores[1, 1, k] == min([point_scores[1, 1, end] for end in ends], default=0)


def test_openpose_layouts():
    body_25 = convert_keypoints(named_points("goliath")[0], to="body_25")
    assert body_25.mask.all()
    assert [body_25.names[k] for k in (1, 4, 8, 14, 21, 24)] == [
        *("neck", "right_wrist", "mid_hip", "left_ankle", "left_heel", "right_heel")
    ]
    coco_18 = convert_keypoints(named_points("coco")[0], to="openpose18")
    assert coco_18.mask.all()
    assert [coco_18.names[k] for k in (0, 1, 7, 8, 13, 14, 17)] == [
        *("nose", "neck", "left_wrist", "right_hip", "left_ankle", "right_eye", "left_ear")
    ]
    no_feet = convert_keypoints(named_points("coco")[0], to="openpose")
    assert no_feet.mask.tolist() == [True] * 19 + [False] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_converting_without_scores_marks_what_exists(kind):
    points = KINDS[kind](named_points("goliath")[0].astype(np.int64))
    keypoints, scores, mask, _ = convert_keypoints(points, to="coco_wholebody")
    assert np.asarray(keypoints).dtype.kind == "f"
    np.testing.assert_array_equal(np.asarray(scores) == 1, np.asarray(mask))
    np.testing.assert_array_equal(np.asarray(scores) == 0, ~np.asarray(mask))


def test_converting_keeps_input_dtype_and_gradients():
    points, scores = (torch.tensor(values, dtype=torch.float32) for values in named_points("goliath", (2,)))
    before = points.clone()
    converted = convert_keypoints(points.requires_grad_(), scores, to="openpose")
    converted.keypoints.sum().backward()
    assert converted.keypoints.dtype == converted.scores.dtype == torch.float32
    assert torch.equal(points.detach(), before)
    shoulder = keypoint_set("goliath").index("left_shoulder")
    assert points.grad[0, shoulder].tolist() == [1.5, 1.5]  # once itself, half of the neck
    half = convert_keypoints(named_points("coco")[0].astype(np.float16), to="coco")
    assert half.keypoints.dtype == np.float16


def test_converting_nobody_gives_nobody():
    converted = convert_keypoints(np.zeros((0, 308, 2)), np.zeros((0, 308)), to="openpose")
    assert converted.keypoints.shape == (0, 25, 2)
    assert converted.scores.shape == (0, 25)


def test_missing_points_are_zero_even_next_to_nan():
    points, scores = named_points("coco")
    converted = convert_keypoints(points * np.nan, scores * np.nan, to="coco_wholebody")
    assert np.isnan(converted.keypoints[:17]).all()
    assert (converted.keypoints[17:] == 0).all()
    assert (converted.scores[17:] == 0).all()


def test_a_set_of_ones_own_converts_by_name():
    coco = keypoint_set("coco")
    own = KeypointSet(
        name="eyes",
        names=("right_eye", "third_eye", "left_eye"),
        flip_pairs=((0, 2),),
        flip_indices=(2, 1, 0),
        sigmas=(0.025,) * 3,
        skeleton=((0, 2),),
        link_colors=((9, 8, 7),),
        colors=((1, 2, 3),) * 3,
        upper_body_ids=(0, 1, 2),
        lower_body_ids=(),
        groups={},
    )
    points, scores = named_points("coco")
    there = convert_keypoints(points, scores, source=coco, to=own)
    assert there.mask.tolist() == [True, False, True]
    assert there.keypoints[:, 1].tolist() == [-2, 0, -1]
    back = convert_keypoints(there.keypoints, there.scores, source=own, to="coco")
    assert back.names[1:3] == ("left_eye", "right_eye")
    np.testing.assert_array_equal(back.keypoints[1:3], points[1:3])


def test_keypoints_of_ones_own_know_their_mirror_partners():
    names = ("nose", "RightWrist", "left_knee", "bright_spot", "LeftWrist", "right_knee")
    own = labels.make_keypoint_set(names, skeleton=[(0, 3), (2, 5)])
    assert own.flip_pairs == ((1, 4), (2, 5))
    assert own.flip_indices == (0, 4, 5, 3, 1, 2)
    assert own.groups == {"head": (0,), "left_leg": (2,), "right_leg": (5,)}
    assert len(set(own.colors)) == len(own) == len(own.sigmas) == 6
    assert own.link_colors == (own.colors[3], own.colors[5])
    assert own.sigmas[0] == pytest.approx(0.0669, abs=1e-4)
    given = labels.make_keypoint_set(("left_a", "b"), name="mine", flip_pairs=[(0, 1)], sigmas=[0.1, 0.2])
    assert (given.name, given.flip_indices, given.sigmas) == ("mine", (1, 0), (0.1, 0.2))


def test_classes_of_ones_own_know_their_mirror_partners():
    own = labels.make_class_set(["Background", "Left-glove", "Helmet", "Right-glove"], ignore_index=-100)
    assert own.swap_pairs == ((1, 3),)
    assert own.class_weights == (1.0,) * 4
    assert len(set(own.colors)) == 4
    assert own.ignore_index == -100
    assert part_mask(np.array([0, 2, -100]), "person", class_set=own).tolist() == [False, True, False]
    given = labels.make_class_set(["sky", "left_bank"], swap_pairs=(), class_weights=[0.1, 2.0])
    assert (given.swap_pairs, given.class_weights) == ((), (0.1, 2.0))


@pytest.mark.parametrize("name", labels.KEYPOINT_SETS)
def test_partners_by_name_are_the_originals_where_names_say_so(name):
    points = keypoint_set(name)
    sided = {index for index, label in enumerate(points.names) if label.startswith(("left_", "right_"))}
    found = labels.make_keypoint_set(points.names).flip_pairs
    assert {pair for pair in found if set(pair) <= sided} == {p for p in points.flip_pairs if set(p) <= sided}
    # Goliath's face says l_ and r_, and pairs some points by their place and not by their name.
    assert len(set(found) & set(points.flip_pairs)) > 0.5 * len(points.flip_pairs)


def test_classes_by_name_are_the_originals():
    for name in labels.CLASS_SETS:
        classes = class_set(name)
        assert labels.make_class_set(classes.names).swap_pairs == classes.swap_pairs


@pytest.mark.parametrize("make", [labels.make_keypoint_set, labels.make_class_set])
def test_names_of_ones_own_that_cannot_work(make):
    with pytest.raises(ValueError, match="'left_bank' has no partner 'right_bank' to change places with"):
        make(["sky", "left_bank"])
    with pytest.raises(ValueError, match=r"names repeat: a, b\.$"):
        make(["a", "b", "a", "c", "b"])
    with pytest.raises(ValueError, match="names is empty"):
        make([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((17, 3)),), ValueError, r"shape \(17, 3\), expected \(\.\.\., number of points, 2\)"),
        ((np.zeros(2),), ValueError, r"shape \(2,\)"),
        ((np.zeros((4, 18, 2)),), ValueError, r"no keypoint set 18"),
        ((np.zeros((4, 133, 2)), None, "goliath"), ValueError, r"\(4, 133, 2\), but goliath has 308 points.*308, 2\)"),
        ((np.zeros((4, 17, 2)), np.zeros((4, 16))), ValueError, r"\(4, 16\), but keypoints.*need \(4, 17\)"),
        ((np.zeros((17, 2)), torch.zeros(17)), TypeError, r"keypoints are ndarray, scores Tensor"),
    ],
)
def test_wrong_shapes_are_named(arguments, error, message):
    keypoints, scores, source = (*arguments, None, None)[:3]
    with pytest.raises(error, match=message):
        convert_keypoints(keypoints, scores, source=source)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_part_mask(kind, dtype):
    classes = class_set("goliath28")
    label_map = np.array([[0, 3, 255, 5], [6, 10, 8, 14], [2, 27, 22, 11]], dtype=dtype)
    arm = part_mask(KINDS[kind](label_map), "left_arm")
    assert isinstance(arm, torch.Tensor) == (kind == "torch")
    np.testing.assert_array_equal(np.asarray(arm), np.isin(label_map, [5, 6, 10]))
    both = np.asarray(part_mask(KINDS[kind](label_map), "face", "hair", "Left_Shoe"))
    np.testing.assert_array_equal(both, np.isin(label_map, [2, 27, 3, 8]))
    person = np.asarray(part_mask(KINDS[kind](label_map), "person", class_set=classes))
    np.testing.assert_array_equal(person, (label_map > 0) & (label_map < 255))


def test_class_and_group_names_are_told_apart():
    label_map = np.array([[16, 18, 17]])
    assert part_mask(label_map, "Left-leg", class_set="lip").tolist() == [[True, False, False]]
    assert part_mask(label_map, "left_leg", class_set="lip").tolist() == [[True, True, False]]
    assert part_mask([[13, 0]], "face", class_set="cihp").tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.array([[0, 28]]), r"holds the label 28, but goliath28 has the labels 0 to 27 and 255"),
        (np.array([[-1, 0]]), r"holds the label -1"),
        (torch.tensor([[3, 254]], dtype=torch.uint8), r"holds the label 254"),
        (np.array([[0.0, 1.0]]), r"has type float64, expected one of uint8"),
        (torch.zeros(2, 3), r"has type torch\.float32"),
        (np.zeros((2, 3), bool), r"has type bool"),
        (np.zeros((2, 3), np.int8), r"has type int8"),
    ],
)
def test_wrong_labels_are_named(label_map, message):
    with pytest.raises(ValueError, match=message):
        part_mask(label_map, "face")


def test_a_negative_ignore_index_is_no_part():
    classes = class_set("lip")
    own = type(classes)(**{**vars(classes), "ignore_index": -100})
    assert part_mask(np.array([[-100, 2]]), "hair", class_set=own).tolist() == [[False, True]]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_between_goliath_and_sapiens2(kind):
    label_map = np.array([[0, 1, 2, 27], [21, 255, 12, 3]], dtype=np.uint8)
    other = remap_labels(KINDS[kind](label_map), "goliath28", "sapiens2_29")
    assert other.dtype == (torch.uint8 if kind == "torch" else np.uint8)
    assert other.tolist() == [[0, 1, 3, 28], [22, 255, 13, 4]]
    assert remap_labels(other, 29, 28).tolist() == label_map.tolist()
    eyeglass = KINDS[kind](np.full((2, 3), 2))
    assert remap_labels(eyeglass, "sapiens2", "goliath").tolist() == [[255] * 3] * 2


def test_maps_agree_with_the_names():
    data = labels._read_json("segmentation_classes.json")
    ours, theirs = class_set("goliath28").names, [entry["name"] for entry in data["sapiens2_29"]["classes"]]
    assert [theirs[k] for k in remap_labels(np.arange(28), 28, 29)] == list(ours)
    lip = class_set("lip").names
    to_lip = {name: lip[k] for name, k in zip(ours, remap_labels(np.arange(28), 28, 20), strict=True) if k != 255}
    for name in ("Background", "Hair"):
        assert to_lip[name] == name
    for side in ("Left", "Right"):
        assert to_lip[f"{side}_Hand"] == to_lip[f"{side}_Upper_Arm"] == f"{side}-arm"
        assert to_lip[f"{side}_Foot"] == to_lip[f"{side}_Lower_Leg"] == f"{side}-leg"
        assert to_lip[f"{side}_Shoe"] == f"{side}-shoe"
    assert set(ours) - set(to_lip) == {"Apparel", "Torso"}


def test_lip_to_goliath_is_the_originals_and_holds_for_cihp():
    expected = [0, 255, 3, 255, 255, 22, 255, 22, 255, 12, 255, 255, 22, 2, 255, 255, 255, 255, 8, 17]
    for name in ("lip20", "cihp20"):
        assert remap_labels(np.arange(20), name, "goliath28").tolist() == expected
        back = remap_labels([*range(28)], "goliath28", name)
        there = [(k, expected[label]) for k, label in enumerate(back) if label != 255 and expected[label] != 255]
        assert {(k, label) for k, label in there if k != label} == {(k, 2) for k in range(23, 28)}  # lips, teeth: face


def test_remapping_names_a_label_out_of_range():
    with pytest.raises(ValueError, match=r"label 20, but cihp20 has the labels 0 to 19"):
        remap_labels(np.array([20]), "cihp20", "goliath28")


def test_importing_labels_reads_nothing_and_needs_no_torch():
    path = Path(labels.__file__)
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('labels', {str(path)!r})\n"
        "module = sys.modules['labels'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules and module._read_json.cache_info().currsize == 0\n"
        "import numpy as np\n"
        "assert module.part_mask(np.array([3, 0]), 'hair').tolist() == [True, False]\n"
        "assert module._read_json.cache_info().currsize == 1 and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_counts_may_be_text():
    """As they come from a command line."""
    assert keypoint_set("133") == keypoint_set(133) and class_set("28").name == "goliath28"

"""Layouts: sides in names, pairs found by name, and layout files that are refused."""

from __future__ import annotations

import json

import pytest

from sapiens_hf.labels import has_side, missing_pairs, other_side, paired_by_name
from training.layouts import class_layout, keypoint_layout


@pytest.mark.parametrize(
    "left, right",
    [
        ("left_hip", "right_hip"),
        ("LEFT-EYE", "RIGHT-EYE"),
        ("Left foot", "Right foot"),
        ("l_ear", "r_ear"),
        ("LeftFoot", "RightFoot"),
        ("leftHand", "rightHand"),
        ("handLeft", "handRight"),
        ("LHip", "RHip"),
        ("lHip", "rHip"),
        ("HipL", "HipR"),
        ("lefthand", "righthand"),
        ("Lefthand", "Righthand"),
        ("LEFTHAND", "RIGHTHAND"),
        ("midLElbow2", "midRElbow2"),
    ],
)
def test_sides_are_exchanged_and_paired(left, right):
    assert other_side(left) == right and other_side(right) == left
    assert paired_by_name(["nose", right, "chin", left]) == ((1, 3),)
    assert missing_pairs(["nose", right, "chin", left], ()) == [right, left]


@pytest.mark.parametrize(
    "name",
    [
        "cleft",
        "upright",
        "bright",
        "Bright",
        "BRIGHT",
        "UPRIGHT",
        "copyright",
        "leftover",
        "LIP",
        "RGB",
        "XRay",
        "lip",
    ],
)
def test_words_without_a_side(name):
    assert not has_side(name) and other_side(name) == name


def test_class_sets_pair_by_name():
    for name in ("goliath28", "lip20", "cihp20", "face_synthetics19"):
        layout = class_layout(name)
        assert sorted(paired_by_name(layout.names)) == sorted(layout.swap_pairs)


NAMES = ["nose", "LeftHand", "RightHand", "leftfoot", "rightfoot"]


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_keypoint_file(tmp_path):
    file = written(tmp_path / "mine.json", {"names": NAMES, "upper_body_ids": [0, 1, 2]})
    layout = keypoint_layout(file)
    assert layout.name == "mine" and layout.flip_pairs == ((1, 2), (3, 4)) and layout.upper_body_ids == (0, 1, 2)
    assert keypoint_layout(written(file, {"names": NAMES, "flip_pairs": [[4, 3]]})).flip_pairs == ((4, 3),)
    assert keypoint_layout(written(file, {"names": NAMES, "flip_pairs": []})).flip_pairs == ()


@pytest.mark.parametrize(
    "read, content, message",
    [
        (keypoint_layout, '{"names": [', "bad.json is not valid JSON"),
        (keypoint_layout, [NAMES], "bad.json has no list `names`"),
        (keypoint_layout, {"names": "abc"}, "bad.json: names is 'abc'; expected a list of texts"),
        (keypoint_layout, {"names": []}, r"bad.json: names is \[\]; expected a list of texts"),
        (class_layout, {"names": ["a", 2]}, "bad.json: names is .*; expected a list of texts"),
        (class_layout, {"names": ["a", "b", "a"]}, "bad.json: names holds 'a' twice; expected each name once"),
        (keypoint_layout, {"names": NAMES, "flip_pairs": [[0, 1], [1, 2]]}, r"index 1 \('LeftHand'\) twice"),
        (keypoint_layout, {"names": NAMES, "flip_pairs": [[1, 2], [2, 1]]}, "bad.json: flip_pairs holds .* twice"),
        (keypoint_layout, {"names": NAMES, "flip_pairs": [[3, 3]]}, "bad.json: flip_pairs holds the index 3"),
        (keypoint_layout, {"names": NAMES, "flip_pairs": [1, 2]}, r"flip_pairs is \[1, 2\]; expected a list of pairs"),
        (keypoint_layout, {"names": NAMES, "flip_pairs": [["a", "b"]]}, r"flip_pairs is \['a', 'b'\]; expected"),
        (keypoint_layout, {"names": NAMES, "upper_body_ids": [0, 9]}, "bad.json: upper_body_ids holds the index 9"),
        (keypoint_layout, {"names": NAMES, "lower_body_ids": 3}, "bad.json: lower_body_ids is 3; expected a list"),
        (class_layout, {"names": NAMES, "swap_pairs": [[0, 1, 2]]}, "bad.json: swap_pairs is .* pairs of indices"),
        (
            class_layout,
            {"names": NAMES, "class_weights": [1, 1, float("nan"), 1, 1]},
            "class_weights is .*none below 0",
        ),
        (class_layout, {"names": NAMES, "class_weights": [0, 0, 0, 0, 0]}, "class_weights is .*not all 0"),
        (class_layout, {"names": [f"class {i}" for i in range(256)]}, "names holds 256 classes; expected at most 255"),
        (class_layout, {"names": NAMES, "class_weights": 2}, "class_weights is 2; expected a list of numbers"),
        (class_layout, {"names": NAMES, "class_weights": [1, 1, -1, 1, 1]}, "class_weights is .*a list of numbers"),
        (class_layout, {"names": NAMES, "ignore_index": "255"}, "ignore_index is '255'; expected a label"),
        (class_layout, {"names": NAMES, "rotate_fill_label": 300}, "rotate_fill_label is 300; expected a label"),
    ],
)
def test_files_that_are_refused(tmp_path, read, content, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "bad.json", content))

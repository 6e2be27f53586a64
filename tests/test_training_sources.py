"""Keypoint files of COCO and its kin, and what a source's text opens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from training_helpers import person, write_tree

from training.formats import BadSampleError, CocoKeypoints
from training.layouts import keypoint_layout
from training.sources import FirstSamples, open_samples


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"), suffix=".jpg")


def test_coco(tree):
    layout = keypoint_layout(tree / "keypoints.layout.json")
    assert layout.flip_pairs == ((1, 2), (3, 4)) and layout.upper_body_ids == (0, 1, 2)
    for source in (tree, tree / "annotations.json"):
        samples = open_samples(str(source), "pose", layout)
        assert isinstance(samples, CocoKeypoints) and len(samples) == 8
    sample = samples[5]
    np.testing.assert_allclose(sample["keypoints"], person(5)["keypoints"], rtol=1e-6)
    np.testing.assert_allclose(sample["box"], person(5)["box"], rtol=1e-5)
    assert sample["name"].endswith("p005.jpg, annotation 105")
    first = open_samples(str(tree), "pose", layout, limit=3)
    assert isinstance(first, FirstSamples) and len(first) == 3
    np.testing.assert_array_equal(first[2]["box"], samples[2]["box"])
    with pytest.raises(IndexError):
        first[3]


def coco_file(folder, *people, **image):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30, **image}],
        "annotations": list(people),
    }
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


def someone(number=1, keypoints=None, **fields):
    points = [5.0, 6, 2] * 17 if keypoints is None else keypoints
    return {"id": number, "image_id": 7, "category_id": 1, "bbox": [2, 3, 20, 10], "keypoints": points, **fields}


def test_coco_people_that_do_not_count(tmp_path):
    path = coco_file(
        tmp_path,
        someone(1, bbox=[-5, -4, 100, 20]),
        someone(2, iscrowd=1),
        someone(3, [0, 0, 0] * 17),
        someone(4, bbox=[60, 3, 5, 5]),
        someone(5, bbox=[]),
        someone(6, category_id=2),
        someone(7, [-3.0, -4, 1] * 17),
        someone(8, num_keypoints=0),  # as COCO-WholeBody writes for people of whom it knows no body point
    )
    samples = CocoKeypoints(path, 17)
    assert samples.ids == [1] and samples.left_out == {
        "crowds": 1,
        "without a labelled keypoint": 3,
        "with an empty box": 2,
        "of categories that are no people": 1,
    }
    np.testing.assert_array_equal(samples.boxes, [[0, 0, 39, 16]])  # clipped to the last pixel centres
    with pytest.raises(ValueError, match="nobody to train on: 1 crowds"):
        CocoKeypoints(coco_file(tmp_path, someone(1, iscrowd=1)), 17)
    with pytest.raises(ValueError, match="it has no annotation"):
        CocoKeypoints(coco_file(tmp_path), 17)


def test_coco_wholebody_and_goliath(tmp_path):
    parts = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    numbers = {
        key: np.column_stack([np.full((n, 2), 5.0 + i), np.ones(n)]).ravel().tolist()
        for i, (key, n) in enumerate(parts.items())
    }
    goliath = [9.0, 9, 1] * 308
    path = coco_file(
        tmp_path,
        someone(1, **{k: v for k, v in numbers.items() if k != "keypoints"}, goliath_wholebody_kpts=goliath)
        | {"keypoints": numbers["keypoints"]},
    )
    whole = CocoKeypoints(path, 133)[0]["keypoints"]
    assert (
        whole.shape == (133, 3)
        and whole[16, 0] == 5
        and whole[17, 0] == 6
        and whole[23, 0] == 7
        and whole[112, 0] == 9
    )
    assert CocoKeypoints(path, 308)[0]["keypoints"].shape == (308, 3)
    assert CocoKeypoints(path, 17)[0]["keypoints"].shape == (17, 3)


@pytest.mark.parametrize(
    "people, message",
    [
        ([someone(4, [1.0, 2, 2] * 16)], "annotation 4 has 16 keypoints, but the model has 17.*--keypoint_set"),
        ([someone(4, [1.0, float("nan"), 2] * 17)], "annotation 4 has NaN"),
        ([someone(4, image_id=99)], "annotation 4 is of image 99"),
        ([{"id": 4, "keypoints": []}], "annotation 4 has no image_id"),
    ],
)
def test_coco_errors_name_the_annotation(tmp_path, people, message):
    with pytest.raises(ValueError, match=message):
        CocoKeypoints(coco_file(tmp_path, *people), 17)


def test_coco_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        CocoKeypoints(tmp_path / "none.json", 17)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="no list 'images'"):
        CocoKeypoints(tmp_path / "list.json", 17)
    path = coco_file(tmp_path / "x", someone(), file_name="b.png")
    with pytest.raises(FileNotFoundError, match="--image_folder"):
        CocoKeypoints(path, 17)
    samples = CocoKeypoints(path, 17, tmp_path)
    with pytest.raises(BadSampleError, match="b.png"):
        samples[0]
    with pytest.raises(FileNotFoundError, match="no annotation file: expected"):
        (tmp_path / "empty").mkdir()
        open_samples(str(tmp_path / "empty"), "pose", keypoint_layout(17))
    with pytest.raises(ValueError, match="needs to know"):
        open_samples(str(path), "pose")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_samples(str(tmp_path / "nowhere"), "depth")


# ------------------------------------------------------------------------------------------------- broken COCO files
def broken(key, index, **changes):
    """A file of two people in which fields of an entry are something else, or (`...`) missing."""
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}, {"id": 8, "file_name": "b.png"}],
        "annotations": [someone(3), someone(4)],
        "categories": [{"id": 1, "name": "person"}],
    }
    content[key][index].update(changes)
    content[key][index] = {name: value for name, value in content[key][index].items() if value is not ...}
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        (broken("annotations", 1, bbox=None), "annotation 4 has no bbox"),
        (broken("annotations", 1, bbox=...), "annotation 4 has no bbox"),
        (
            broken("annotations", 1, bbox=["1", "2", "3", "4"]),
            r"annotation 4: bbox is \['1'.*a list of numbers",
        ),
        (broken("annotations", 1, bbox=[1, 2, 3]), "annotation 4: bbox has 3 numbers; expected x, y"),
        (broken("annotations", 1, bbox=[[1], [2, 3]]), "annotation 4: bbox is .*expected a list of numbers"),
        (broken("annotations", 1, keypoints=None), "annotation 4: keypoints is None"),
        (broken("annotations", 1, keypoints="5 6 2"), "annotation 4: keypoints is 5 6 2"),
        (broken("annotations", 1, id=...), r"annotations\[1\] has no id"),
        (broken("annotations", 1, image_id=None), "annotation 4 has no image_id"),
        (broken("images", 1, file_name=...), r"images\[1\] has no file_name"),
        (broken("images", 0, id=...), r"images\[0\] has no id"),
        (broken("images", 1, id=7), "several images of id 7"),
        (broken("images", 0, width="40"), r"images\[0\]: width is '40'; expected a number"),
        (broken("categories", 0, id=...), r"categories\[0\] has no id"),
        ({"images": [], "annotations": []}, "empty list of images"),
        ({"images": {}, "annotations": []}, r"no list 'images' \(keys \['annotations', 'images'\]\)"),
        (
            {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [5]},
            r"annotations\[0\] has no id and no image_id",
        ),
    ],
)
def test_broken_entries_are_named(tmp_path, content, message):
    path = coco_file(tmp_path, someone())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"labels.json.*{message}"):
        CocoKeypoints(path, 17)


def test_people_whose_keypoints_were_not_labelled_are_left_out(tmp_path):
    unlabelled = someone(2)
    del unlabelled["keypoints"]
    samples = CocoKeypoints(coco_file(tmp_path, someone(1), unlabelled, someone(3, [])), 17)
    assert samples.ids == [1] and samples.left_out == {"without a labelled keypoint": 2}
    nested = CocoKeypoints(coco_file(tmp_path, someone(1, [[5.0, 6, 2]] * 17)), 17)
    np.testing.assert_array_equal(nested.keypoints, samples.keypoints)


# ------------------------------------------------------------------------------------------------- layouts of folders
def official(root, *files, images="train2017"):
    """COCO's folder: files of annotations/ of which each has another box, with a picture in the given folder."""
    (root / "annotations").mkdir(parents=True)
    coco_file(root / images)
    (root / images / "labels.json").unlink()
    for index, name in enumerate(files):
        whole = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21} if "whole" in name else {}
        fields = {key: [5.0, 6, 2] * count for key, count in whole.items()}
        entry = someone(1, bbox=[index, 3, 20, 10], **fields)
        content = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [entry]}
        (root / "annotations" / name).write_text(json.dumps(content))
    return root


OFFICIAL = ("captions_train2017.json", "person_keypoints_train2017.json", "coco_wholebody_train_v1.0.json")


def test_official_layouts_are_found_by_split_and_keypoints(tmp_path):
    root = official(tmp_path / "coco", *OFFICIAL, images="train2017")
    assert CocoKeypoints(root / "annotations" / OFFICIAL[2], 133).image_folder == root / "train2017"
    for count, name in ((17, OFFICIAL[1]), (133, OFFICIAL[2])):
        samples = open_samples(str(root), "pose", keypoint_layout(count))
        assert samples.annotation_file.name == name and samples[0]["keypoints"].shape == (count, 3)
    (root / "annotations" / OFFICIAL[1]).unlink()
    assert open_samples(str(root), "pose", keypoint_layout(17)).annotation_file.name == OFFICIAL[2]
    own = official(tmp_path / "own", "goliath_train.json", "mine_train.json", images="images/training_pictures")
    found = open_samples(str(own), "pose", keypoint_layout(17))
    assert found.annotation_file.name == "mine_train.json" and found.image_folder.name == "training_pictures"


@pytest.mark.parametrize(
    "name, split, other",
    [
        ("person_keypoints_train2017.json", "train", "val"),
        ("coco_wholebody_val_v1.0.json", "val", "train"),
        ("my_validation.json", "validation", "train"),
    ],
)
def test_a_split_is_never_taken_from_anothers_file(tmp_path, name, split, other):
    root = official(tmp_path / "coco", name, images="pictures")
    pictures = str(root / "pictures")
    assert len(open_samples(str(root), "pose", keypoint_layout(17), split, image_folder=pictures)) == 1
    with pytest.raises(FileNotFoundError, match=f"no annotation file of the split '{other}', but {name}. Give"):
        open_samples(str(root), "pose", keypoint_layout(17), other, image_folder=pictures)


def test_files_that_name_no_split_serve_every_split(tmp_path):
    root = official(tmp_path / "coco", "trainval.json", images="images")
    for split in ("train", "val", "minival"):
        assert len(open_samples(str(root), "pose", keypoint_layout(17), split)) == 1

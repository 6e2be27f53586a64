"""Formats on disk and in tables, and what is refused; from samples to the model's inputs."""

from __future__ import annotations

import json
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import CLASSES, NAMES, SIZE, person, write_tree

from sapiens_hf import SapiensImageProcessor
from sapiens_hf.heatmaps_sapiens import encode_heatmaps
from sapiens_hf.labels import missing_pairs, other_side, paired_by_name
from training.augment import NO_POSE_AUGMENTATION, PoseAugmentation, augment_pose, fit_to_network
from training.data import (
    ModelInputs,
    StepPlan,
    StreamingSet,
    TrainerCollator,
    TrainingSet,
    collate,
    make_loader,
    num_targets,
)
from training.formats import BadSampleError, FaceSynthetics, FolderTree, image_suffixes, read_maps, read_mask, read_rgb
from training.layouts import class_layout, keypoint_layout
from training.sources import SyntheticSamples, open_samples
from training.tables import StreamSamples, TableSamples, load_table, open_table

NETWORK = (64, 48)


def first_draw(sample, rng):
    return {"chance": rng.random()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"), suffix=".jpg")


@pytest.fixture
def own(tmp_path):
    """A tree of two that a test may damage."""
    return write_tree(tmp_path / "own", count=2)


fitted = partial(fit_to_network, size=NETWORK)


# ---------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize(
    "task, keys",
    [("segmentation", ["segmentation_map"]), ("depth", ["depth", "mask"]), ("normal", ["normals", "mask"])],
)
def test_folder_tree(tree, task, keys):
    samples = open_samples(
        str(tree), task, class_layout(tree / "classes.layout.json") if task == "segmentation" else None
    )
    assert isinstance(samples, FolderTree) and len(samples) == 8
    sample = samples[3]
    assert sample["name"] == str(samples.path(3)) == str(tree / "images" / "p003.jpg")
    assert np.abs(sample["image"].astype(int) - person(3)["image"]).mean() < 25  # JPEG
    for key in keys:
        np.testing.assert_allclose(sample[key], person(3)[key], atol=1e-6)
        assert sample[key].dtype == person(3)[key].dtype


def test_masks_are_optional_and_images_may_be_of_any_kind(own):
    import shutil

    shutil.rmtree(own / "masks")
    Image.open(own / "images" / "p001.png").convert("L").save(own / "images" / "p001.webp", lossless=True)
    (own / "images" / "p001.png").unlink()
    for task in ("depth", "normal"):
        sample = FolderTree(own, task)[1]
        np.testing.assert_array_equal(sample["mask"], person(1)["mask"])
        assert sample["image"].shape == (*SIZE, 3)


@pytest.mark.parametrize("suffix, kind", [(".gif", "GIF"), (".JFIF", "JPEG"), (".ppm", "PPM"), (".tga", "TGA")])
def test_pictures_of_rarer_kinds(own, suffix, kind):
    for path in [*(own / "images").iterdir(), *(own / "masks").iterdir()]:
        Image.open(path).save(path.with_suffix(suffix), format=kind)
        path.unlink()
    sample = FolderTree(own, "depth")[1]
    assert sample["name"].endswith(f"p001{suffix}") and sample["image"].shape == (*SIZE, 3)
    np.testing.assert_array_equal(sample["mask"], person(1)["mask"])


def test_what_counts_as_a_picture(own):
    found = image_suffixes()
    assert found[:2] == (".jpg", ".jpeg") and {".png", ".gif", ".pgm"} < set(found) and len(found) == len(set(found))
    assert not {".pdf", ".eps", ".ps", ".mpg", ".psd", ".ico", ".npy"} & set(found)
    for name in ("images", "masks"):
        (own / name / "p001.psd").touch()
    assert len(FolderTree(own, "depth")) == 2


@pytest.mark.parametrize("suffix, options", [(".jpg", {"quality": 60}), (".webp", {"quality": 40})])
def test_masks_whose_compression_is_lossy(tmp_path, suffix, options):
    mask = person(1)["mask"]
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"a{suffix}", **options)
    stored = np.array(Image.open(tmp_path / f"a{suffix}").convert("L"))
    assert ((stored > 0) != mask).mean() > 0.02  # the trap
    assert (read_mask(tmp_path / f"a{suffix}") != mask).mean() < 0.002
    with Image.open(tmp_path / f"a{suffix}") as image:
        np.testing.assert_array_equal(read_mask(image, "x"), read_mask(tmp_path / f"a{suffix}"))


def test_masks_of_small_numbers(tmp_path):
    mask = person(1)["mask"]
    for value, name, options in ((1, "a.png", {}), (1, "b.webp", {"lossless": True}), (90, "c.png", {})):
        Image.fromarray(mask.astype(np.uint8) * value).save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_mask(tmp_path / name), mask)
    np.testing.assert_array_equal(read_mask(mask.astype(np.uint8)), mask)


@pytest.mark.parametrize(
    "task, images, labels, split",
    [
        ("segmentation", "images/val_images", "segmentations/val_segmentations", "val"),  # LIP
        ("segmentation", "Validation/Images", "Validation/Category_ids", "val"),  # CIHP
        ("segmentation", "Training/Images", "Training/Category_ids", "train"),
        ("depth", "rgb", "depth", "train"),  # RenderPeople
        ("normal", "val/images", "val/normals", "val"),
    ],
)
def test_trees_of_the_original(own, task, images, labels, split):
    target = own / "moved"
    for source, place in (
        ("images", images),
        ({"segmentation": "segmentations", "depth": "depths", "normal": "normals"}[task], labels),
    ):
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (own / source).rename(target / place)
    assert len(FolderTree(target, task, split)) == 2
    with pytest.raises(FileNotFoundError, match="none of the folders"):
        FolderTree(own / "masks", task, split)


def test_face_synthetics(tmp_path):
    for index in range(3):
        made = person(index)
        Image.fromarray(made["image"]).save(tmp_path / f"{index:06d}.png")
        Image.fromarray(made["segmentation_map"]).save(tmp_path / f"{index:06d}_seg.png")
    samples = open_samples(str(tmp_path), "segmentation", class_layout("face_synthetics19"))
    assert isinstance(samples, FaceSynthetics) and len(samples) == 3
    np.testing.assert_array_equal(samples[2]["segmentation_map"], person(2)["segmentation_map"])
    assert samples.path(2).name == "000002.png"
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_suffix(".PNG"))
    samples = open_samples(str(tmp_path), "segmentation", class_layout("face_synthetics19"))
    np.testing.assert_array_equal(samples[2]["segmentation_map"], person(2)["segmentation_map"])
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_suffix(".png"))
    (tmp_path / "000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 label maps are alone: 000001_seg.png"):
        FaceSynthetics(tmp_path)
    Image.fromarray(person(1)["image"]).save(tmp_path / "000001.jpg", quality=95)
    assert FaceSynthetics(tmp_path).path(1).name == "000001.jpg"
    np.testing.assert_array_equal(FaceSynthetics(tmp_path)[1]["segmentation_map"], person(1)["segmentation_map"])
    for index in (0, 2):
        (tmp_path / f"{index:06d}_seg.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3 images are alone: 000000.png, 000002.png. Expected"):
        open_samples(str(tmp_path), "segmentation", class_layout("face_synthetics19"))
    with pytest.raises(FileNotFoundError, match=r"no \*_seg.png"):
        FaceSynthetics(tmp_path / "..")


# ------------------------------------------------------------------------------------------------------- bad samples
def damage(own, what):
    depth, normals = own / "depths" / "p001.npy", own / "normals" / "p001.npy"
    label, mask = own / "segmentations" / "p001.png", own / "masks" / "p001.png"
    if what == "nan depth":
        values = np.load(depth)
        values[person(1)["mask"]] = np.nan
        np.save(depth, values)
    elif what == "depth shape":
        np.save(depth, np.zeros((3, 4, 5)))
    elif what == "depth size":
        np.save(depth, np.ones((50, 40), np.float32))
    elif what == "axis order":
        np.save(normals, np.moveaxis(np.load(normals), -1, 0))
    elif what == "not unit":
        np.save(normals, np.load(normals) * 3)
    elif what == "nan normals":
        np.save(normals, np.load(normals) * np.nan)
    elif what == "picture of normals":
        np.save(normals, (np.load(normals) * 127 + 128).astype(np.uint8))
    elif what == "empty mask":
        Image.new("L", SIZE[::-1]).save(mask)
    elif what == "colour labels":
        Image.new("RGB", SIZE[::-1]).save(label)
    elif what == "label too high":
        Image.new("L", SIZE[::-1], 7).save(label)
    elif what == "label far too high":
        Image.fromarray(np.full(SIZE, 300, np.uint16)).save(label)
    elif what == "all ignored":
        Image.new("L", SIZE[::-1], 255).save(label)
    elif what == "cut file":
        depth.write_bytes(depth.read_bytes()[:200])
    elif what == "cut image":
        path = own / "images" / "p001.png"
        path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "what, task, message",
    [
        ("nan depth", "depth", r"p001.npy: depth has \d+ NaN"),
        ("depth shape", "depth", r"p001.npy is \(3, 4, 5\).*expected depth"),
        ("depth size", "depth", r"depth is \(50, 40\), but the image is \(96, 80\)"),
        ("axis order", "normal", r"p001.npy is \(3, 96, 80\); expected \(height, width, 3\)"),
        ("not unit", "normal", r"p001.npy: normals of the person have lengths 3 to 3"),
        ("nan normals", "normal", r"p001.npy: normals of the person have lengths NaN"),
        ("picture of normals", "normal", r"p001.npy holds uint8"),
        ("empty mask", "depth", r"p001.npy: the mask is empty"),
        ("empty mask", "normal", r"p001.npy: the mask is empty"),
        ("colour labels", "segmentation", r"p001.png is \(96, 80, 3\)"),
        ("label too high", "segmentation", r"p001.png holds the label 7, but the model has the classes 0 to 6"),
        ("label far too high", "segmentation", r"p001.png holds labels 300 to 300"),
        ("all ignored", "segmentation", r"p001.png: every pixel has the label 255"),
        ("cut file", "depth", r"p001.npy cannot be read"),
        ("cut image", "depth", r"p001.png"),
    ],
)
def test_bad_samples_stop_or_are_skipped_by_name(own, what, task, message):
    damage(own, what)
    samples = FolderTree(own, task, num_labels=len(CLASSES))
    with pytest.raises(BadSampleError, match=message):
        samples[1]
    with pytest.raises(BadSampleError, match=message):
        TrainingSet(samples, fitted)[0, 1]
    assert TrainingSet(samples, fitted, skip_bad=True)[0, 1]["name"].endswith("p000.png")


def test_normals_that_are_nearly_unit_are_normalised(own):
    path = own / "normals" / "p001.npy"
    np.save(path, np.load(path) * 1.05)
    np.testing.assert_allclose(
        np.linalg.norm(FolderTree(own, "normal")[1]["normals"][person(1)["mask"]], axis=-1), 1, atol=1e-5
    )


def test_depth_outside_people_may_be_anything(own):
    path = own / "depths" / "p001.npy"
    depth = np.load(path)
    depth[~person(1)["mask"]] = np.inf
    np.save(path, depth[..., None])
    sample = FolderTree(own, "depth")[1]
    assert np.isfinite(sample["depth"]).all() and sample["depth"].shape == SIZE
    assert read_maps("depth", np.load(path)[None, ..., 0], None, None, 255, "x")["depth"].shape == SIZE


def test_a_data_set_of_bad_samples_ends(own):
    for name in ("p000", "p001"):
        Image.new("L", SIZE[::-1]).save(own / "masks" / f"{name}.png")
    with pytest.raises(BadSampleError, match="50 samples in a row.*p00.*check_data"):
        TrainingSet(FolderTree(own, "depth"), fitted, skip_bad=True)[0, 1]
    with pytest.raises(ValueError, match="empty"):
        TrainingSet([], fitted)


@pytest.mark.parametrize("folder, name", [("images", "p001.png"), ("masks", "p000.png"), ("normals", "p001.npy")])
def test_missing_partners_are_named(own, folder, name):
    (own / folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} lacks 1 of the 2 files.*{name[:4]}"):
        FolderTree(own, "normal")


def test_folders_that_cannot_be_right(own):
    (own / "images" / "p001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="several files named p001"):
        FolderTree(own, "depth")
    for path in (own / "depths").iterdir():
        path.unlink()
    (own / "images" / "p001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no file with one of .npy"):
        FolderTree(own, "depth")


def test_images_become_upright_rgb(tmp_path):
    picture = Image.new("RGB", (4, 6), (1, 2, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == (4, 6, 3)
    assert read_rgb(np.full((5, 3), 7.4, np.float32), "x").max() == 7  # whole grey levels, three channels


# ------------------------------------------------------------------------------------------------------------ tables
def table(task, count=8):
    people = [person(index) for index in range(count)]
    columns = {"image": [Image.fromarray(p["image"]) for p in people]}
    features = {"image": datasets.Image()}
    if task == "segmentation":
        columns["label"] = [Image.fromarray(p["segmentation_map"]) for p in people]
    elif task == "depth":
        columns |= {
            "depth": [Image.fromarray(p["depth"]) for p in people],
            "mask": [Image.fromarray(p["mask"]) for p in people],
        }
    elif task == "normal":
        columns["normal"] = [
            Image.fromarray(((p["normals"] * 127.5 + 127.5).round() * p["mask"][..., None]).astype(np.uint8))
            for p in people
        ]
    else:
        columns["objects"] = [
            {"bbox": [p["box"].tolist()] * (i % 3), "keypoints": [p["keypoints"].tolist()] * (i % 3)}
            for i, p in enumerate(people)
        ]
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    features |= {name: datasets.Image() for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize(
    "task, key", [("segmentation", "segmentation_map"), ("depth", "depth"), ("normal", "normals")]
)
def test_tables_of_image_columns(task, key):
    samples = open_table(table(task), task, num_labels=7)
    assert isinstance(samples, TableSamples) and len(samples) == 8
    sample = samples[2]
    np.testing.assert_array_equal(sample["image"], person(2)["image"])
    np.testing.assert_allclose(sample[key], person(2)[key], atol=0.02 if task == "normal" else 0)  # 8-bit normals
    if task != "segmentation":
        np.testing.assert_array_equal(sample["mask"], person(2)["mask"])
    assert sample["name"] == "table[2]"


def test_tables_of_people(tmp_path):
    samples = open_table(table("pose"), "pose", num_labels=5)
    assert len(samples) == sum(i % 3 for i in range(8))
    assert samples[2]["name"] == "table[2], person 1"
    np.testing.assert_allclose(samples[2]["keypoints"], person(2)["keypoints"], rtol=1e-5)
    with pytest.raises(BadSampleError, match=r"table\[1\] has 1 boxes and 15 keypoint numbers.*17"):
        open_table(table("pose"), "pose", num_labels=17)
    with pytest.raises(ValueError, match="holds nothing"):
        open_table(table("pose", 1), "pose", num_labels=5)
    nan = table("pose").map(
        lambda row: {"objects": {**row["objects"], "bbox": [[np.nan] * 4] * len(row["objects"]["bbox"])}}
    )
    with pytest.raises(BadSampleError, match="NaN or infinite"):
        open_table(nan, "pose", num_labels=5)


def test_a_missing_split_is_of_the_data(tmp_path):
    (tmp_path / "p").mkdir()
    table("depth").to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(ValueError, match=r"p: .*split.*val"):
        open_samples(str(tmp_path / "p"), "depth", split="val")


@pytest.mark.parametrize("file, text", [("parquet", None), ("jsonl", ""), ("csv", ""), ("csv", "image,depth\n")])
def test_files_without_rows_are_named(tmp_path, file, text):
    path = tmp_path / f"train.{file}"
    if text is None:
        table("depth").select([]).to_parquet(path)
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"No table could be made of {tmp_path} .*have no rows"):
        load_table(str(tmp_path), "train", streaming=False)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match=f"No table could be made of {tmp_path} .*damaged"):
        open_samples(str(tmp_path), "depth")


def test_boxes_of_tables_are_clipped():
    def boxes(box):
        return table("pose").map(
            lambda row: {"objects": {**row["objects"], "bbox": [box] * len(row["objects"]["bbox"])}}
        )

    height, width = person(1)["image"].shape[:2]
    sample = open_table(boxes([-30.0, -20, 90, 400]), "pose", num_labels=5)[0]
    np.testing.assert_array_equal(sample["box"], [0, 0, min(60, width - 1), height - 1])
    outside = open_table(boxes([500.0, 10, 20, 20]), "pose", num_labels=5)
    with pytest.raises(BadSampleError, match=rf"table\[1\], person 0: the box lies outside the image of {width} x"):
        outside[0]


def test_tables_from_disk_with_splits_and_named_columns(tmp_path):
    renamed = table("segmentation").rename_columns({"image": "photo", "label": "parts"})
    datasets.DatasetDict(train=renamed, val=renamed.select(range(3))).save_to_disk(tmp_path / "t")
    layout = class_layout("lip")
    with pytest.raises(ValueError, match="no column image or img.*it has photo, parts.*--columns"):
        open_samples(str(tmp_path / "t"), "segmentation", layout)
    columns = {"image": "photo", "segmentation": "parts"}
    samples = open_samples(str(tmp_path / "t"), "segmentation", layout, "val", columns=columns)
    assert len(samples) == 3
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        open_samples(str(tmp_path / "t"), "segmentation", layout, "test", columns=columns)
    (tmp_path / "p").mkdir()
    table("depth").to_parquet(tmp_path / "p" / "train.parquet")
    assert len(open_samples(str(tmp_path / "p"), "depth")) == 8
    stream = open_samples(str(tmp_path / "p"), "depth", streaming=True)
    assert isinstance(stream, StreamSamples) and len(list(stream.rows(0))) == 8
    first = open_samples(str(tmp_path / "p"), "depth", streaming=True, limit=3)
    images = [[row["image"]["bytes"] for _, row in first.rows(epoch)] for epoch in range(4)]
    expected = {row["image"]["bytes"] for row in open_samples(str(tmp_path / "p"), "depth").table.select(range(3))}
    assert all(set(epoch) == expected for epoch in images)
    assert len({tuple(epoch) for epoch in images}) > 1  # each epoch in an order of its own


def test_sources_that_are_nowhere(tmp_path, monkeypatch):
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "labels").mkdir()
    monkeypatch.chdir(tmp_path)

    def unreachable(source, **options):
        raise ConnectionError(f"Couldn't reach {source!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = r"no file or folder my_partz here \(did you mean 'my_parts'\?\). As the id of a data set .*Couldn't reach"
    with pytest.raises(FileNotFoundError, match=said):
        open_samples("my_partz", "segmentation", class_layout("lip"))
    with pytest.raises(FileNotFoundError, match="who/what here. As the id .*Couldn't reach"):
        open_samples("who/what", "depth")
    with pytest.raises(FileNotFoundError, match=r"no file or folder ./label \(.*'labels'\?\)\.$"):
        open_samples("./label", "depth")
    (tmp_path / "my_parts" / "train.parquet").touch()
    with pytest.raises(ConnectionError):  # what is here has errors of its own
        open_samples("my_parts", "depth")


def image_table(task, label, *values, image=None):
    """One row per value, with Image columns: what a file holds, or None."""
    features = datasets.Features({"image": datasets.Image(), label: datasets.Image()})
    images = [image or person(0)["image"]] * len(values)
    return open_table(
        datasets.Dataset.from_dict({"image": images, label: list(values)}, features=features), task, num_labels=7
    )


def normal_picture(background):
    made = person(0)
    levels = ((made["normals"] + 1) * 127.5 + 0.5).astype(np.uint8)
    return np.where(made["mask"][..., None], levels, np.uint8(background))


@pytest.mark.parametrize("background", (0, 127, 128))
def test_pictures_of_normals(background):
    sample = image_table("normal", "normal", normal_picture(background))[0]
    np.testing.assert_array_equal(sample["mask"], person(0)["mask"])
    assert (sample["normals"][~sample["mask"]] == 0).all()
    cosines = (sample["normals"] * person(0)["normals"]).sum(axis=-1)[sample["mask"]]
    assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 0.5
    np.testing.assert_allclose(np.linalg.norm(sample["normals"], axis=-1)[sample["mask"]], 1, atol=1e-5)


def test_pictures_that_are_no_normals():
    made = person(0)
    photo, white = made["image"], normal_picture(255)
    dim = (normal_picture(128) // 2 + 64).astype(np.uint8)
    samples = image_table("normal", "normal", photo, white, dim, np.full_like(photo, 128))
    for index in range(3):
        with pytest.raises(BadSampleError, match=rf"table\[{index}\]: normals of the person have lengths.*no JPEG"):
            samples[index]
    with pytest.raises(BadSampleError, match=r"table\[3\]: the mask is empty"):
        samples[3]


def test_rows_that_cannot_be_read_are_named(tmp_path):
    label = person(0)["segmentation_map"]
    broken = {"bytes": b"no picture", "path": None}
    samples = image_table("segmentation", "label", label, broken, None, {"bytes": None, "path": "gone.png"})
    assert len(samples) == 4 and samples[0]["segmentation_map"].shape == SIZE
    for index, said in ((1, "'label', cannot be .*10 bytes"), (2, "nothing in its column 'label'"), (3, "gone.png")):
        with pytest.raises(BadSampleError, match=rf"table\[{index}\].*{said}"):
            samples[index]
    with pytest.raises(BadSampleError, match=r"table\[0\].*column 'image', cannot be read as an image"):
        image_table("segmentation", "label", label, image=broken)[0]
    assert TrainingSet(samples, fitted, skip_bad=True)[0, 1]["name"] == "table[0]"


def people_table(*rows, num_labels=5):
    made = [{"image": Image.fromarray(person(0)["image"]), **row} for row in rows]
    return open_table(datasets.Dataset.from_list(made), "pose", num_labels=num_labels)


def test_objects_as_a_list_of_people():
    box, points = person(0)["box"].tolist(), person(0)["keypoints"]
    entry = {"bbox": box, "keypoints": points.ravel().tolist()}
    samples = people_table({"objects": [entry, entry]}, {"objects": []}, {"objects": [entry]})
    assert len(samples) == 3 and samples[2]["name"] == "table[2], person 0"
    np.testing.assert_allclose(samples[1]["keypoints"], points, rtol=1e-5)


@pytest.mark.parametrize(
    "objects, message",
    [
        ({"bbox": None, "keypoints": None}, "nothing in its column 'objects.bbox'"),
        (None, "nothing in its column 'objects.bbox'"),
        (
            {"bbox": [[1.0, 2, 3]], "keypoints": [[1.0] * 15]},
            r"not numbers, 4 per box.*\(cannot reshape",
        ),
        ({"bbox": [[1.0, 2, 3, 4]], "keypoints": [[1.0] * 12]}, "1 boxes and 12 keypoint numbers"),
        ({"bbox": [None], "keypoints": [[1.0] * 15]}, "boxes or keypoints are not numbers"),
    ],
)
def test_one_bad_row_of_people_stops_nobody_else(objects, message):
    good = {"bbox": [person(0)["box"].tolist()], "keypoints": [person(0)["keypoints"].ravel().tolist()]}
    samples = people_table({"objects": good}, {"objects": objects}, {"objects": good})
    assert len(samples) == 3 and samples[2]["name"] == "table[2], person 0"
    with pytest.raises(BadSampleError, match=rf"table\[1\].*{message}"):
        samples[1]
    with pytest.raises(BadSampleError, match=rf"table\[0\].*{message}"):
        people_table({"objects": objects}, {"objects": {"bbox": [], "keypoints": []}})


def streamed(task="segmentation", count=8, **plan):
    stream = open_table(table(task, count).to_iterable_dataset(), task, num_labels=5 if task == "pose" else 7, seed=3)
    augment = (
        partial(augment_pose, size=NETWORK, layout=keypoint_layout(17), options=NO_POSE_AUGMENTATION)
        if task == "pose"
        else None
    )
    return StreamingSet(stream, augment or fitted, StepPlan(**plan))


def test_streams_have_one_order_for_any_workers_processes_and_restarts():
    def names(num_workers=0, **plan):
        plan = {"num_samples": 10, "batch_size": 2, "num_epochs": 2, "seed": 1, **plan}
        dataset = streamed(**plan)
        return [batch["name"] for batch in make_loader(dataset, dataset.plan, num_workers)]

    whole = names()
    assert len(whole) == 10 and whole == names(num_workers=2)
    assert sorted(sum(whole[:4], [])) == sorted(f"table[{i} of epoch 0]" for i in range(8))  # then it starts over
    assert whole[4] == whole[0] and whole[5][0].endswith("of epoch 1]")
    # Two processes: 12 samples an epoch, since the last step is filled up.
    parts = [names(batch_size=1, num_processes=2, process=p) for p in (0, 1)]
    assert [first + second for first, second in zip(*parts)] == whole
    assert names(start_step=3) == whole[3:] and names(start_step=7) == whole[7:]


def test_the_rows_of_a_stream_are_the_same_in_a_worker():
    """By what is in them: their names only count."""

    def pictures(num_workers):
        dataset = streamed(num_samples=8, batch_size=2, num_epochs=2)
        return torch.stack([batch["image"] for batch in make_loader(dataset, dataset.plan, num_workers)])

    alone = pictures(0)
    assert not torch.equal(alone[:4], alone[4:]) and torch.equal(alone, pictures(1))


def test_what_replaces_a_crop_of_a_stream_does_not_depend_on_processes():
    def batches(num_processes, process, start_step=0):
        plan = StepPlan(16, 4 // num_processes, num_processes, process, seed=1, num_epochs=2, start_step=start_step)
        stream = open_table(table("pose", 8).to_iterable_dataset(), "pose", num_labels=5, seed=3)
        options = PoseAugmentation(flip_prob=0, half_body_prob=0, shift_prob=1, shift_share=0.5)
        augment = partial(augment_pose, size=NETWORK, layout=keypoint_layout(17), options=options)
        kept = StreamingSet(stream, augment, plan, min_visible=4)
        return [(batch["image"], batch["name"]) for batch in make_loader(kept, plan, 0)]

    one = batches(1, 0)
    assert len({name for _, names in one for name in names}) < 32  # some were replaced
    parts = zip(batches(2, 0), batches(2, 1), strict=True)
    assert [first[1] + second[1] for first, second in parts] == [names for _, names in one]
    again = batches(1, 0, start_step=3)
    assert all(torch.equal(new, old) for (new, _), (old, _) in zip(again, one[3:], strict=True))


def test_columns_of_a_stream_without_features():
    def rows():
        yield {"photo": Image.new("RGB", SIZE[::-1]), "label": Image.new("L", SIZE[::-1], 3)}

    stream = open_table(datasets.IterableDataset.from_generator(rows), "segmentation", columns={"image": "photo"})
    (_, row), *_ = stream.rows(0)
    assert stream.reader.samples(row, "a")[0]["segmentation_map"].max() == 3
    with pytest.raises(ValueError, match="table holds nothing to train on"):
        open_table(datasets.IterableDataset.from_generator(lambda: iter(())), "segmentation")


def test_tables_of_wholebody_train_cocos_17():
    objects = {"bbox": [[5.0, 6, 20, 30]], "keypoints": [np.arange(399.0).tolist()]}
    points = people_table({"objects": objects}, num_labels=17)[0]["keypoints"]
    assert points.shape == (17, 3) and points[16].tolist() == [48, 49, 50]


def test_streams_of_people_and_bad_rows():
    dataset = streamed("pose", num_samples=6, batch_size=3)
    batches = list(make_loader(dataset, dataset.plan, 0))
    assert len(batches) == 2 and batches[0]["keypoints"].shape == (3, 5, 3)
    rows = table("segmentation", 3)
    images = [*rows["label"]][:2] + [Image.new("L", SIZE[::-1], 255)]
    bad = (
        datasets.Dataset.from_dict({"image": [*rows["image"]], "label": images})
        .cast_column("image", datasets.Image())
        .cast_column("label", datasets.Image())
    )
    stream = StreamSamples(bad.to_iterable_dataset(), open_table(rows, "segmentation").reader, buffer_size=1)
    names = [sample["name"] for sample in StreamingSet(stream, fitted, StepPlan(3, 1), skip_bad=True)]
    assert names == ["stream[0 of epoch 0]", "stream[1 of epoch 0]", "stream[1 of epoch 0]"]
    with pytest.raises(BadSampleError, match=r"stream\[2 of epoch 0\]: every pixel"):
        list(StreamingSet(stream, fitted, StepPlan(3, 1)))
    empty = StreamSamples(bad.to_iterable_dataset().filter(lambda row: False), stream.reader, buffer_size=1)
    with pytest.raises(ValueError, match="holds nothing"):
        list(StreamingSet(empty, fitted, StepPlan(3, 1)))


# ---------------------------------------------------------------------------------------------- inputs of the model
@pytest.mark.parametrize("task", ("segmentation", "depth", "normal"))
def test_inputs_equal_the_processors(tree, task):
    processor = SapiensImageProcessor(size={"height": 96, "width": 80})
    samples = [FolderTree(tree, task)[index] for index in (1, 4)]
    names = {"segmentation": "segmentation_maps", "depth": "depth_maps", "normal": "normal_maps"}
    key = {"segmentation": "segmentation_map", "depth": "depth", "normal": "normals"}[task]
    given = {names[task]: [s[key] for s in samples]}
    if task != "segmentation":
        given["masks"] = [s["mask"] for s in samples]
    theirs = processor([s["image"] for s in samples], **given, return_tensors="pt")
    ours = TrainerCollator(processor)([fit_to_network(s, size=(96, 80)) for s in samples])
    assert set(ours) == {"pixel_values", "labels"}
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["labels"], theirs["labels"], rtol=0, atol=1e-6)
    assert ours["labels"].dtype == theirs["labels"].dtype


def test_depth_of_views_without_range():
    flat = {
        "name": "a",
        "image": np.zeros((4, 3, 3), np.uint8),
        "depth": np.full((4, 3), 2, np.float32),
        "mask": np.zeros((4, 3), bool),
    }
    one = {**flat, "mask": np.eye(4, 3, dtype=bool)}
    labels = ModelInputs(SapiensImageProcessor())(collate([flat, one]))["labels"]
    assert (labels[0] == -1).all() and labels[1].max() == 2 and (labels[1] == -1).sum() == 9


def test_rescaling_is_the_processors():
    processor = SapiensImageProcessor(do_rescale=False, image_mean=[5, 5, 5], image_std=[2, 2, 2])
    batch = {"image": torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)}
    assert (ModelInputs(processor)(batch)["pixel_values"] == 2).all()


def test_crops_with_few_keypoints_are_replaced(tree):
    layout = keypoint_layout(tree / "keypoints.layout.json")

    def far_away(sample, rng):
        done = augment_pose(sample, rng, size=NETWORK, layout=layout, options=NO_POSE_AUGMENTATION)
        if "p002" in sample["name"]:
            done["keypoints"][2:, 0] += 500
        return done

    samples = open_samples(str(tree), "pose", layout)
    assert num_targets(far_away(samples[2], np.random.default_rng(0))) == 2
    taken = TrainingSet(samples, far_away, seed=1, min_visible=3)
    assert "p002" not in taken[0, 2]["name"] and "p003" in taken[0, 3]["name"]
    assert taken[0, 2]["name"] == taken[0, 2]["name"] and "p002" in TrainingSet(samples, far_away)[0, 2]["name"]
    with pytest.raises(BadSampleError, match="fewer than 6 labelled keypoints"):
        TrainingSet(samples, far_away, min_visible=6)[0, 1]


def test_targets_are_those_of_the_loss():
    """A keypoint a little outside the crop still has a target, and how far depends on its width."""
    positions = torch.tensor([[30.0, 20.0], [-60.0, 20.0], [-90.0, 20.0], [30.0, 200.0], [30.0, 20.0]])
    visibility = torch.tensor([2.0, 2, 2, 1, 0])
    sample = {
        "image": np.zeros((128, 96, 3), np.uint8),
        "keypoints": torch.cat([positions, visibility[:, None]], dim=1).numpy(),
    }
    for sigma, expected in ((6.0, 3), (2.0, 1)):
        weights = encode_heatmaps(positions[None], (visibility > 0).float()[None], (128, 96), (32, 24), sigma)[1]
        assert num_targets(sample, sigma) == expected == weights.sum()
    samples = [sample | {"name": "a"}]
    assert TrainingSet(samples, lambda sample, rng: sample, min_visible=3)[0, 0]["name"] == "a"
    with pytest.raises(BadSampleError, match="fewer than 3 labelled keypoints"):
        TrainingSet(samples, lambda sample, rng: sample, min_visible=3, heatmap_sigma=2.0)[0, 0]


def test_workers_do_not_change_batches(tree):
    from training.augment import SEGMENTATION_AUGMENTATION, augment_dense

    def augment(sample, rng):
        return augment_dense(sample, rng, size=NETWORK, options=SEGMENTATION_AUGMENTATION)

    runs = []
    for num_workers in (0, 2):
        plan = StepPlan(8, 3, num_epochs=2, seed=5)
        runs.append(list(make_loader(TrainingSet(FolderTree(tree, "segmentation"), augment, 5), plan, num_workers)))
    assert len(runs[0]) == 6
    for one, other in zip(*runs, strict=True):
        assert one["name"] == other["name"] and torch.equal(one["image"], other["image"])
    dataset = TrainingSet(FolderTree(tree, "segmentation"), augment, 5)
    dataset.set_epoch(1)
    assert np.array_equal(dataset[4]["image"], dataset[1, 4]["image"]) and len(dataset) == 8


@pytest.mark.parametrize("method", ("fork", "spawn"))
def test_workers_that_live_on_see_the_next_epoch(tree, method):
    dataset = TrainingSet(FolderTree(tree, "depth"), first_draw, 5)
    options = dict(num_workers=1, persistent_workers=True, multiprocessing_context=method)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, **options)
    seen = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        seen.append([sample["chance"] for sample in loader])
        assert seen[-1] == [dataset[epoch, index]["chance"] for index in range(8)]
    assert seen[0] != seen[1]


def test_signals_to_the_whole_group_leave_workers_alone(tree):
    import os
    import signal

    plan = StepPlan(8, 1, num_epochs=3)
    batches = iter(make_loader(TrainingSet(FolderTree(tree, "depth"), fitted), plan, 1))
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(batches._workers[0].pid, number)
    assert len(list(batches)) == 23


# ----------------------------------------------------------------------------------------------------------- layouts
def test_layouts():
    for name in ("coco", "coco_wholebody", "goliath"):
        layout = keypoint_layout(name)
        assert layout == keypoint_layout(len(layout.names)) and missing_pairs(layout.names, layout.flip_pairs) == []
    for name in ("goliath28", "lip20", "face_synthetics19"):
        layout = class_layout(name)
        assert missing_pairs(layout.names, layout.swap_pairs) == [] and len(layout.class_weights) == len(layout.names)
    assert paired_by_name(keypoint_layout("coco").names) == keypoint_layout("coco").flip_pairs
    assert [other_side(n) for n in ("left_hip", "LEFT-EYE", "l_ear", "Right foot", "cleft", "model")] == [
        "right_hip", "RIGHT-EYE", "r_ear", "Left foot", "cleft", "model"
    ]  # fmt: skip
    assert missing_pairs(("nose", "left_eye"), ()) == ["left_eye"]


@pytest.mark.parametrize(
    "read, content, message",
    [
        (keypoint_layout, {"names": list(NAMES), "flip_pairs": [[0, 5]]}, "index 5; expected 0 to 4"),
        (keypoint_layout, {"names": list(NAMES), "flip": []}, "unknown keys flip"),
        (class_layout, {"swap_pairs": []}, "no list `names`"),
        (class_layout, {"names": list(CLASSES), "class_weights": [1]}, "1 entries for 7 names"),
    ],
)
def test_layout_files_that_do_not_fit(tmp_path, read, content, message):
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "l.json")
    with pytest.raises(ValueError, match="no label file"):
        read("nowhere.json")


def test_class_layout_file(tmp_path):
    content = {
        "names": list(CLASSES),
        "class_weights": [1, 2, 2, 1, 1, 1, 3],
        "ignore_index": 254,
        "rotate_fill_label": 254,
    }
    (tmp_path / "l.json").write_text(json.dumps(content))
    layout = class_layout(tmp_path / "l.json")
    assert layout.swap_pairs == ((1, 2),) and layout.class_weights[6] == 3 and layout.ignore_index == 254


# ------------------------------------------------------------------------------------------------- synthetic humans
class FakeHumans:
    def __init__(self, seed, size, length, crop, **faces):
        self.made, self.faces = (seed, size, length, crop), faces

    def __len__(self):
        return self.made[2]

    def __getitem__(self, index):
        made = person(index)
        keypoints = np.zeros((2, 133, 3), np.float32)
        keypoints[0, 16] = 1, 2, 2
        return {
            **made,
            "segmentation": made["segmentation_map"],
            "face_segmentation": made["segmentation_map"] + 10,
            "boxes": np.stack([made["box"]] * 2),
            "keypoints": keypoints,
            "keypoints_308": np.ones((2, 308, 3), np.float32),
        }


def test_synthetic_humans_as_samples(monkeypatch):
    import sapiens_hf.synthetic

    monkeypatch.setattr(sapiens_hf.synthetic, "SyntheticHumans", FakeHumans)
    samples = open_samples("synthetic:5:9:96x80", "pose", keypoint_layout(17))
    assert (
        isinstance(samples, SyntheticSamples) and len(samples) == 9 and samples.humans.made == (5, (96, 80), 9, True)
    )
    assert samples[3]["keypoints"].shape == (17, 3) and samples[3]["keypoints"][16, 0] == 1
    assert open_samples("synthetic:5:9", "pose", keypoint_layout(308))[0]["keypoints"].shape == (308, 3)
    assert open_samples("synthetic:5:9", "pose", keypoint_layout(133))[0]["keypoints"].shape == (133, 3)
    for task, key in (("segmentation", "segmentation_map"), ("depth", "depth"), ("normal", "normals")):
        samples = open_samples("synthetic:5:9", task)
        np.testing.assert_array_equal(samples[4][key], person(4)[key])
        assert samples[4]["name"] == "synthetic:5:9[4]" and not samples.humans.made[3]
    faces = open_samples("synthetic:5:3:96x80", "segmentation", class_layout("face_synthetics19"))
    assert faces[0]["segmentation_map"].min() == 10 and faces.humans.faces["framings"] == ("face",)
    with pytest.raises(ValueError, match="classes of goliath28 or face_synthetics19; these 20 are others: Background"):
        open_samples("synthetic:5:3", "segmentation", class_layout("lip20"))
    with pytest.raises(ValueError, match="not synthetic:SEED:COUNT"):
        open_samples("synthetic:5", "depth")
    with pytest.raises(ValueError, match="17, 133 or 308"):
        SyntheticSamples("synthetic:1:2", "pose", 5)

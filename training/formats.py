"""Data sets as they lie on disk, each as a list of samples with one set of keys.

    every task      name (str, for messages), image (height, width, 3) uint8 RGB
    pose            box (4,) COCO x, y, width, height; keypoints (num_keypoints, 3) float32 x, y, visibility
    segmentation    segmentation_map (height, width) uint8
    depth           depth (height, width) float32, mask (height, width) bool
    normal          normals (height, width, 3) float32 unit vectors, mask (height, width) bool

Only lists of names and arrays of numbers stay in memory; images are read when a sample is asked for. Whatever would
train wrongly raises `BadSampleError`, which names the file.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers.utils import logging

from sapiens_hf.coco import (
    GOLIATH_KEY,
    WHOLEBODY_KEYS,
    check_coco,
    is_person,
    numbers,
    person_categories,
    read_box,
    read_json,
    require,
)
from sapiens_hf.image_loading_sapiens import as_mask, read_image, read_values

logger = logging.get_logger(__name__)

Sample = dict[str, Any]
TASKS = ("pose", "segmentation", "depth", "normal")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # the usual ones; see image_suffixes
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")  # of pretraining, which counts animations
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy")
# What PIL reads that is no picture, or lies beside pictures: documents, films, measurements, icons.
NO_PICTURES = frozenset(
    ("BUFR", "CUR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF", "PSD", "WMF")
)
# Names that folders of a tree have in the original's data sets; {split} is "train" or "val".
IMAGE_FOLDERS = (
    "images/{split}_images",
    "images/{split}",
    "{split}/images",
    "Training/Images",
    "images",
    "rgb",
    "Images",
)
LABEL_FOLDERS = {
    "segmentation": (
        *("segmentations/{split}_segmentations", "segmentations/{split}", "{split}/segmentations"),
        *("Training/Category_ids", "segmentations", "segmentation", "labels", "Category_ids"),
    ),
    "depth": ("depths/{split}", "{split}/depths", "depths", "depth"),
    "normal": ("normals/{split}", "{split}/normals", "normals", "normal"),
}
FACE_LABELS = "*_seg.[pP][nN][gG]"
MASK_FOLDERS = ("masks/{split}", "{split}/masks", "masks", "mask")
# A split as a word of a file's name: "train2017", "val", "validation".
SPLIT_WORD = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation|ing)?(?![a-z])")
# Vectors further from unit length than this were not meant as normals; nearer ones are normalised.
MAX_LENGTH_ERROR = 0.1
# Holes in depth on more of a person than this spoil its range.
MAX_HOLES = 0.01
# A box may reach so far beyond its image by rounding.
OVERHANG_PX = 2


class BadSampleError(ValueError):
    """A sample that would train wrongly; the message names its file."""


class SampleList(Protocol):
    """What the rest of the training code asks of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


# ------------------------------------------------------------------------------------------------------------- pose
class CocoKeypoints:
    """People of a COCO, COCO-WholeBody or Goliath keypoint file, one sample each.

    As in the original, crowds, people without a labelled keypoint and empty boxes are left out, and boxes are clipped
    to their image.

    Args:
        annotation_file: JSON in the format of COCO.
        image_folder: where its `file_name`s are; found next to the file by default.
        num_keypoints: of the model; decides which of the file's keypoint lists is read.
        names: of the model's keypoints, to compare with those of the file.

    Raises:
        FileNotFoundError: if the file or the folder is missing.
        ValueError: if the file is not in the format, holds nobody, or has other keypoints or as many in another order.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        num_keypoints: int,
        image_folder: str | Path | None = None,
        names: Sequence[str] = (),
    ):
        path = Path(annotation_file)
        data = read_json(path)
        check_coco(data, str(path), image=("id", "file_name"), annotation=("id", "image_id"))
        self.annotation_file = path
        self.num_keypoints = num_keypoints
        self.image_folder = _coco_images(path, data["images"]) if image_folder is None else Path(image_folder)
        people = person_categories(data.get("categories"), str(path))
        _check_order(path, data.get("categories") or (), people, names)
        images = {image["id"]: number for number, image in enumerate(data["images"])}
        self.file_names = [image["file_name"] for image in data["images"]]
        annotations = [entry for entry in data["annotations"] if is_person(entry, people)]
        for entry in annotations:
            if entry["image_id"] not in images:
                raise ValueError(f"{self._where(entry)} is of image {entry['image_id']}, which the file lacks.")
        points = _table([self._keypoints(entry) for entry in annotations], 3 * num_keypoints)
        points = points.reshape(-1, num_keypoints, 3)
        visible = points[..., 2] > 0
        not_finite = (visible & ~np.isfinite(points).all(axis=-1)).any(axis=-1)
        if not_finite.any():
            raise ValueError(f"{self._where(annotations[not_finite.argmax()])} has NaN or infinite keypoints.")
        points = np.where(visible[..., None], points, 0.0)

        is_crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], dtype=bool)
        # The original drops people whose file says that they have none; WholeBody counts the body's alone.
        says_none = np.array([entry.get("num_keypoints", 1) == 0 for entry in annotations], dtype=bool)
        is_labelled = ~says_none & visible.any(axis=-1) & (points[..., :2].max(axis=(1, 2), initial=0) > 0)
        kept = np.flatnonzero(~is_crowd & is_labelled)
        rows = np.array([images[annotations[place]["image_id"]] for place in kept], dtype=np.int64)
        given = self._boxes([annotations[place] for place in kept])
        image_sizes = _table([(i.get("width", np.inf), i.get("height", np.inf)) for i in data["images"]], 2)
        boxes = clip_boxes(given, image_sizes[rows])
        is_box = (boxes[:, 2:] > 0).all(axis=-1) & np.isfinite(boxes).all(axis=-1)
        left_out = {
            "crowds": is_crowd.sum(),
            "without a labelled keypoint": (~is_crowd & ~is_labelled).sum(),
            "with an empty box": (~is_box).sum(),
            "of categories that are no people": len(data["annotations"]) - len(annotations),
        }
        self.left_out = Counter({reason: int(count) for reason, count in left_out.items() if count})
        if not is_box.any():
            left = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "it has no annotation"
            raise ValueError(f"{path} holds nobody to train on: {left}.")
        overhangs = (given[:, :2] + given[:, 2:] > image_sizes[rows] + OVERHANG_PX).any(axis=1)
        self.num_overhanging = int(overhangs[is_box].sum())
        self.image_sizes = image_sizes
        self.ids = [annotations[place]["id"] for place in kept[is_box]]
        self.rows = rows[is_box]
        self.boxes = boxes[is_box].astype(np.float32)
        self.keypoints = points[kept[is_box]].astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """File of the sample's image."""
        return self.image_folder / self.file_names[self.rows[index]]

    def __getitem__(self, index: int) -> Sample:
        path, (width, height) = self.path(index), self.image_sizes[self.rows[index]]
        image = read_rgb(path)
        if np.isfinite([width, height]).all() and image.shape[:2] != (height, width):
            raise BadSampleError(
                f"{path} has {image.shape[1]} x {image.shape[0]} pixels upright, but {self.annotation_file} says "
                f"{width:g} x {height:g}: boxes and keypoints are not those of this image."
            )
        return {
            "name": f"{path}, annotation {self.ids[index]}",
            "image": image,
            "box": self.boxes[index],
            "keypoints": self.keypoints[index],
        }

    def _where(self, annotation: Mapping[str, Any]) -> str:
        return f"{self.annotation_file}: annotation {annotation['id']}"

    def _keypoints(self, annotation: Mapping[str, Any]) -> np.ndarray:
        """(3 * num_keypoints,) numbers: three for each keypoint as the file has them, zeros where it has none."""
        where, found = self._where(annotation), []
        for keys in (("keypoints",), (GOLIATH_KEY,), WHOLEBODY_KEYS):
            if all(key in annotation for key in keys):
                lists = [numbers(annotation, key, where) for key in keys]
                flat = lists[0] if len(lists) == 1 else np.concatenate(lists)
                if len(flat) == 3 * self.num_keypoints:
                    return flat
                found.append(len(flat))
        if any(found):
            raise ValueError(
                f"{where} has {next(filter(None, found)) / 3:g} keypoints, but the model has {self.num_keypoints}. "
                "Choose the file's own set with --keypoint_set."
            )
        return np.zeros(3 * self.num_keypoints)

    def _boxes(self, annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """COCO boxes (num_people, 4) as the file has them."""
        for entry in annotations:
            require(entry, ("bbox",), self._where(entry))
        return _table([read_box(entry, self._where(entry)) for entry in annotations], 4)


def _check_order(path: Path, categories: Sequence[Mapping[str, Any]], people: set[Any], names: Sequence[str]) -> None:
    """Refuse a file whose own list of people's keypoints has the model's names in other places."""
    wanted = [_folded(name) for name in names]
    for category in categories:
        own = category.get("keypoints") if is_person({"category_id": category["id"]}, people) else None
        if not isinstance(own, list) or len(own) != len(names) or not all(isinstance(name, str) for name in own):
            continue
        for place, name in enumerate(map(_folded, own)):
            if name in wanted and wanted[place] != name:
                raise ValueError(
                    f"{path}: keypoint {place} is {own[place]!r} by its category, but the model's is "
                    f"{names[place]!r}. "
                    f'Write {{"names": {json.dumps(own)}}} into a file and give it as --keypoint_set.'
                )


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """COCO boxes (num_boxes, 4) with corners on pixel centres of their images (original `parse_data_info`).

    Args:
        boxes: x, y, width, height in pixels.
        sizes: (num_boxes, 2) or (2,) width and height of the images.
    """
    first = np.clip(boxes[:, :2], 0, sizes - 1)
    return np.concatenate([first, np.clip(boxes[:, :2] + boxes[:, 2:], 0, sizes - 1) - first], axis=1)


def _table(rows: Sequence[Any], num_columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, num_columns)


def splits_named(name: str) -> set[str]:
    """Splits that are words of a name, in their short form: "val" of `keypoints_val_v1.0`, none of `trainval`."""
    return set(SPLIT_WORD.findall(name.lower()))


def _coco_images(path: Path, images: Sequence[Mapping[str, Any]]) -> Path:
    """The folder near an annotation file that holds its first image: of its split ("train2017"), or of all."""
    first = images[0]["file_name"]
    last_word, splits = path.stem.split("_")[-1], tuple(splits_named(path.stem))
    for base in (path.parent, path.parent.parent):
        for parent in (base / "images", base):
            named = sorted(folder for folder in parent.glob("*") if splits and folder.name.lower().startswith(splits))
            for folder in (parent / last_word, *named):
                if (folder / first).is_file():
                    return folder
        for folder in (base / "images", base / "rgb", base):
            if (folder / first).is_file():
                return folder
    raise FileNotFoundError(f"{path} names the image {first!r}, which is in no folder beside it; give --image_folder.")


# ------------------------------------------------------------------------------------------------------ dense tasks
class FolderTree:
    """Images and maps of the same names (stems) in sibling folders, as the original's data sets have them.

    Args:
        root: the folder that holds the folders.
        task: "segmentation", "depth" or "normal".
        split: "train" or "val", for trees that have both.
        num_labels: classes of the model; a label map with another label is refused.
        ignore_index: one more valid label.

    Raises:
        FileNotFoundError: if a folder is missing, empty or lacks the partner of a file; the message names them.
    """

    def __init__(
        self, root: str | Path, task: str, split: str = "train", num_labels: int | None = None, ignore_index: int = 255
    ):
        self.root, self.task, self.num_labels, self.ignore_index = Path(root), task, num_labels, ignore_index
        folders = [_need_folder(self.root, names, split) for names in (IMAGE_FOLDERS, LABEL_FOLDERS[task])]
        suffixes = [image_suffixes(), LABEL_SUFFIXES if task == "segmentation" else (".npy",)]
        if task != "segmentation":
            mask_folder = find_folder(self.root, MASK_FOLDERS, split)
            folders += [mask_folder] if mask_folder else []
            suffixes += [(*image_suffixes(), ".npy")] if mask_folder else []
        listings = [files_by_stem(folder, allowed) for folder, allowed in zip(folders, suffixes, strict=True)]
        check_pairs(folders, listings)
        self.folders = folders
        self.stems = sorted(listings[0])
        self.files = [[listing[stem] for listing in listings] for stem in self.stems]

    def __len__(self) -> int:
        return len(self.stems)

    def path(self, index: int) -> Path:
        """File of the sample's image."""
        return self.folders[0] / self.files[index][0]

    def __getitem__(self, index: int) -> Sample:
        image, label, *mask = (folder / name for folder, name in zip(self.folders, self.files[index], strict=True))
        sample: Sample = {"name": str(image), "image": read_rgb(image)}
        person = read_mask(mask[0]) if mask else None
        sample |= read_maps(self.task, label, person, self.num_labels, self.ignore_index)
        return check_sizes(sample, str(label))


class FaceSynthetics:
    """Microsoft's FaceSynthetics: `000000.png` (or another picture) with `000000_seg.png` beside it, 19 classes.

    Raises:
        FileNotFoundError: if there is no label map, or an image or a label map lacks its partner; names the first.
        ValueError: if two files have the same stem.
    """

    def __init__(self, root: str | Path, num_labels: int | None = 19, ignore_index: int = 255):
        self.root, self.num_labels, self.ignore_index = Path(root), num_labels, ignore_index
        if next(self.root.glob(FACE_LABELS), None) is None:
            raise FileNotFoundError(f"{self.root} holds no *_seg.png: expected NNNNNN.png with NNNNNN_seg.png.")
        files = files_by_stem(self.root, image_suffixes())
        labels = {stem[: -len("_seg")]: name for stem, name in files.items() if name.lower().endswith("_seg.png")}
        images = {stem: name for stem, name in files.items() if not name.lower().endswith("_seg.png")}
        for kind, have, lack in (("images", images, labels), ("label maps", labels, images)):
            alone = sorted(have[stem] for stem in have.keys() - lack.keys())
            if alone:
                raise FileNotFoundError(
                    f"{self.root}: {len(alone)} of {len(have)} {kind} are alone: {_first(alone)}. Expected NNNNNN.png "
                    "with NNNNNN_seg.png; add the partners or take these files away."
                )
        self.names = [(images[stem], labels[stem]) for stem in sorted(labels)]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """File of the sample's image."""
        return self.root / self.names[index][0]

    def __getitem__(self, index: int) -> Sample:
        path, label = (self.root / name for name in self.names[index])
        sample: Sample = {"name": str(path), "image": read_rgb(path)}
        sample |= read_maps("segmentation", label, None, self.num_labels, self.ignore_index)
        return check_sizes(sample, str(label))


# ------------------------------------------------------------------------------------------------- files and folders
def image_suffixes() -> tuple[str, ...]:
    """File endings of the pictures that PIL reads, the usual ones first; plugins registered by others count."""
    known = Image.registered_extensions()  # loads every plugin, once
    others = (end for end, kind in known.items() if kind in Image.OPEN and kind not in NO_PICTURES)
    return (*IMAGE_SUFFIXES, *sorted(set(others).difference(IMAGE_SUFFIXES)))


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def find_folder(root: Path, names: Sequence[str], split: str) -> Path | None:
    """The first folder of the list that exists below root."""
    for name in names:
        if split != "train":
            name = name.replace("Training", "Validation")
        folder = root / name.format(split=split)
        if folder.is_dir():
            return folder
    return None


def _need_folder(root: Path, names: Sequence[str], split: str) -> Path:
    folder = find_folder(root, names, split)
    if folder is None:
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(n.format(split=split) for n in names)}.")
    return folder


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """File name of each stem in a folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if two files have the same stem.
    """
    with os.scandir(folder) as entries:  # which knows what is a folder without another look at each of many files
        found = [(Path(entry), entry.is_dir()) for entry in entries]
    # A Mac leaves `._name.png` beside files on other file systems.
    files = [p for p, is_folder in found if not is_folder and p.suffix.lower() in suffixes and p.name[0] != "."]
    below = [each for path, is_folder in found if is_folder for each in path.rglob("*")]
    unread = sum(path.suffix.lower() in suffixes for path in below)
    hint = f" The {unread} in folders below it are not read: move them up." if unread else ""
    if not files:
        raise FileNotFoundError(f"{folder} holds no file with one of {_first(suffixes, 10)}.{hint}")
    if unread:
        logger.warning(f"{folder}: {len(files)} files are used.{hint}")
    repeated = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if repeated:
        raise ValueError(f"{folder} holds several files named {min(repeated)}; keep one of each name.")
    return {path.stem: path.name for path in files}


def check_pairs(folders: Sequence[Path], listings: Sequence[Mapping[str, str]]) -> None:
    """Refuse folders of which one lacks a file of another."""
    everything = set().union(*listings)
    for folder, listing in zip(folders, listings, strict=True):
        missing = sorted(everything - set(listing))
        if missing:
            others = ", ".join(str(other) for other in folders if other != folder)
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {len(everything)} files of {others}: {_first(missing)}. "
                "Add them or take their partners away."
            )


def read_rgb(source: Any, name: str | None = None) -> np.ndarray:
    """Image (height, width, 3) uint8 RGB, upright as its EXIF orientation says."""
    try:
        image = read_image(source, str(name or source), convert_rgb=True, expects_levels=True)
    except ValueError as error:
        raise BadSampleError(str(error)) from error
    values = image.permute(1, 2, 0).numpy()
    if values.dtype != np.uint8:
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else np.ascontiguousarray(values[..., :3])


def _read_values(source: Any, name: str) -> tuple[np.ndarray, str | None]:
    try:
        return read_values(source, name)
    except ValueError as error:
        raise BadSampleError(str(error)) from error


def read_mask(source: Any, name: str | None = None) -> np.ndarray:
    """Mask (height, width) bool of a file, a PIL image or an array, by `as_mask`."""
    return as_mask(*_read_values(source, name or str(source)))


def read_maps(
    task: str, source: Any, mask: np.ndarray | None, num_labels: int | None, ignore_index: int, name: str | None = None
) -> Sample:
    """The label of a dense task, checked: `segmentation_map`, or `depth` and `mask`, or `normals` and `mask`.

    Without a mask people are where depth is finite and above 0, or the normal is not 0; `mask_is_derived` says so,
    and `num_not_finite` how many values of depth are not.
    """
    name = name or str(source)
    values, _ = _read_values(source, name)
    if task == "segmentation":
        return {"segmentation_map": check_labels(values, name, num_labels, ignore_index)}
    if task == "depth":
        depth = check_depth(values, name)
        if mask is not None:
            return {"depth": depth, "mask": mask}
        is_finite = np.isfinite(depth)
        derived = {"mask_is_derived": True, "num_not_finite": int((~is_finite).sum())}
        return {"depth": depth, "mask": is_finite & (depth > 0), **derived}
    normals, derived = np.asarray(values), {}
    if mask is None and normals.ndim == 3:
        mask, derived = (normals != 0).any(axis=-1), {"mask_is_derived": True}
    return {"normals": check_normals(normals, mask, name), "mask": mask, **derived}


def check_holes(sample: Sample) -> Sample:
    """Refuse depth without a mask that is NaN or infinite on so many pixels that people may be among them."""
    holes = sample.get("num_not_finite", 0)
    if holes and holes > MAX_HOLES * sample["mask"].sum():
        raise BadSampleError(
            f"{sample['name']}: depth has {holes} NaN or infinite values and no mask that tells whether people are "
            "there. Write 0 where nobody is, or add masks."
        )
    return sample


def check_labels(labels: np.ndarray, name: str, num_labels: int | None, ignore_index: int) -> np.ndarray:
    """Label map (height, width) uint8, or an error that names what is in it."""
    labels = _one_channel(labels)
    if labels.ndim == 2 and labels.dtype.kind == "f":
        raise BadSampleError(f"{name} holds {labels.dtype}; expected class indices as whole numbers (uint8).")
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise BadSampleError(
            f"{name} is {labels.shape} of {labels.dtype}; expected one channel of class indices (height, width). "
            "A colour picture of the classes must be converted to their indices first."
        )
    highest = int(labels.max()) if labels.size else 0
    if labels.min(initial=0) < 0 or highest > 255:
        raise BadSampleError(f"{name} holds labels {labels.min()} to {highest}; expected 0 to 254, or 255 to ignore.")
    labels = labels.astype(np.uint8)
    if (labels == ignore_index).all():
        raise BadSampleError(f"{name}: every pixel has the label {ignore_index}, which does not count.")
    if num_labels is not None:
        wrong = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[num_labels:]) + num_labels
        wrong = wrong[wrong != ignore_index]
        if len(wrong):
            raise BadSampleError(
                f"{name} holds the label {wrong[0]}, but the model has the classes 0 to {num_labels - 1} (and "
                f"{ignore_index}, ignored). Is it the right --class_set?"
            )
    return labels


def _one_channel(values: np.ndarray) -> np.ndarray:
    """A map (height, width), also where it has an axis of one channel, first or last."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        return values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def check_depth(depth: np.ndarray, name: str) -> np.ndarray:
    """Depth (height, width) float32."""
    depth = _one_channel(depth)
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise BadSampleError(f"{name} is {depth.shape} of {depth.dtype}; expected depth (height, width).")
    return depth.astype(np.float32)


def check_normals(normals: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    """Normals (height, width, 3) float32 of unit length on the person.

    Lengths that differ a little are normalised (original `normal_general.py`); others were not meant as normals.
    """
    if normals.ndim != 3 or normals.shape[-1] != 3 or normals.shape[0] == 3 != normals.shape[1]:
        raise BadSampleError(
            f"{name} is {normals.shape}; expected (height, width, 3) with the components x, y, z last."
        )
    if normals.dtype.kind != "f":
        raise BadSampleError(f"{name} holds {normals.dtype}; expected floats from -1 to 1, not a picture of normals.")
    normals = normals.astype(np.float32)
    if mask is None or mask.shape != normals.shape[:2]:
        return normals  # the sizes are compared where the image is known
    lengths = np.linalg.norm(normals[mask], axis=-1)
    error = np.abs(lengths - 1).max(initial=0.0)
    if not error <= MAX_LENGTH_ERROR:
        what = "NaN" if np.isnan(error) else f"{lengths.min():.3g} to {lengths.max():.3g}"
        raise BadSampleError(
            f"{name}: normals of the person have lengths {what}; expected 1. Are they in -1 to 1, and no JPEG?"
        )
    if error > 1e-6:
        normals = normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-6)
    return normals


def check_sizes(sample: Sample, name: str) -> Sample:
    """Refuse maps of another size than the image, an empty mask, and values on the person that are not finite."""
    size = sample["image"].shape[:2]
    for key in ("segmentation_map", "depth", "normals", "mask"):
        if key in sample and sample[key].shape[:2] != size:
            raise BadSampleError(f"{name}: {key} is {sample[key].shape[:2]}, but the image is {size} (height, width).")
    for key in ("depth", "normals"):
        if key in sample:
            bad = int((~np.isfinite(sample[key][sample["mask"]])).sum())
            if bad:
                raise BadSampleError(f"{name}: {key} has {bad} NaN or infinite values on the person.")
            # What lies outside the mask is never read as a label, but would spoil arithmetic on whole maps.
            sample[key] = np.where(np.isfinite(sample[key]), sample[key], 0)
    if "mask" in sample and not sample["mask"].any():
        raise BadSampleError(f"{name}: the mask is empty, nobody is in the picture.")
    return sample

"""From the text after `--train_data` to a data set: by what lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapiens_hf.labels import class_set

from .formats import (
    FACE_LABELS,
    CocoKeypoints,
    FaceSynthetics,
    FolderTree,
    Sample,
    SampleList,
    image_suffixes,
    splits_named,
)
from .layouts import ClassLayout, KeypointLayout
from .tables import StreamSamples, is_saved_table, open_table

COCO_FILES = ("annotations/*{split}*.json", "annotations.json", "annotations/*.json", "*{split}*.json", "coco*.json")
# What the file of a number of keypoints is called, and files of COCO that lie beside it and have no keypoints.
KEYPOINT_FILES = {17: "person_keypoints", 133: "wholebody", 308: "goliath"}
OTHER_FILES = ("captions", "instances", "image_info", "panoptic", "stuff")


def open_samples(
    source: str,
    task: str,
    layout: KeypointLayout | ClassLayout | None = None,
    split: str = "train",
    *,
    image_folder: str | None = None,
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> SampleList | StreamSamples:
    """Open a data set.

    Args:
        source: an annotation file (.json), a folder (COCO, tree, FaceSynthetics, or of the `datasets` library), a Hub
            id, or `synthetic:SEED:COUNT:HxW`.
        task: one of the four.
        layout: keypoints or classes of the model, for pose and segmentation.
        split: of sources that have splits.
        image_folder: of an annotation file.
        streaming: stream a `datasets` source.
        columns: its columns by role.
        limit: use only the first samples; of a stream the first rows, that is images.
        seed: of a stream's order.

    Raises:
        FileNotFoundError: if files are missing; names them.
        ValueError: if the source is of no known kind, or does not fit the task.
    """
    num_labels = len(layout.names) if layout is not None else None
    ignore_index = layout.ignore_index if isinstance(layout, ClassLayout) else 255
    path = Path(source)
    samples: Any
    if source.startswith("synthetic:"):
        samples = SyntheticSamples(source, task, num_labels, _names(layout))
    elif path.suffix.lower() == ".json":
        samples = CocoKeypoints(path, _count(num_labels), image_folder, _names(layout))
    elif path.is_dir() and not _is_table(path):
        samples = _open_folder(path, task, split, num_labels, ignore_index, image_folder, _names(layout))
    elif path.is_absolute() and not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    else:
        options: dict[str, Any] = dict(streaming=streaming, columns=columns, seed=seed)
        samples = open_table(source, task, split, num_labels=num_labels, ignore_index=ignore_index, **options)
    if limit is not None and isinstance(samples, StreamSamples):
        return samples.first(limit)
    if limit is not None and limit < len(samples):
        return FirstSamples(samples, limit)
    return samples


class FirstSamples:
    """The first samples of a list."""

    def __init__(self, samples: SampleList, count: int):
        self.samples, self.count = samples, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.samples[range(self.count)[index]]


class SyntheticSamples:
    """Synthetic humans made while training; `synthetic:SEED:COUNT:HxW`. A folder made once is faster to read.

    Pose takes one person per picture, so that a sample costs one picture. The classes are those of goliath28, or of
    face_synthetics19 on pictures of faces.

    Raises:
        ValueError: if the text is another one, or the model has other keypoints or classes.
    """

    def __init__(self, source: str, task: str, num_labels: int | None, names: Sequence[str] = ()):
        from sapiens_hf.synthetic import SyntheticHumans

        parts = source.split(":")
        try:
            seed, count = int(parts[1]), int(parts[2])
            size = tuple(int(length) for length in parts[3].split("x")) if len(parts) > 3 else (256, 192)
        except (IndexError, ValueError) as error:
            raise ValueError(f"{source!r} is not synthetic:SEED:COUNT or synthetic:SEED:COUNT:HxW.") from error
        options: dict[str, Any] = dict(size=size, length=count, crop=task == "pose")
        self.classes_key = "segmentation"
        if task == "segmentation" and tuple(names) == class_set("face_synthetics19").names:
            self.classes_key = "face_segmentation"
            options |= dict(people=(1, 1), framings=("face",), face_segmentation=True)
        elif task == "segmentation" and names and tuple(names) != class_set("goliath28").names:
            raise ValueError(
                f"Synthetic humans have the classes of goliath28 or face_synthetics19; these {len(names)} are others: "
                f"{', '.join(names[:5])}, ..."
            )
        self.humans = SyntheticHumans(seed, **options)
        self.source, self.task = source, task
        self.keypoints_key = {133: "keypoints", 308: "keypoints_308", 17: "keypoints"}.get(num_labels or 0, "")
        self.num_keypoints = num_labels
        if task == "pose" and not self.keypoints_key:
            raise ValueError(f"Synthetic humans have 17, 133 or 308 keypoints; the model has {num_labels}.")

    def __len__(self) -> int:
        return len(self.humans)

    def __getitem__(self, index: int) -> Sample:
        made = self.humans[index]
        sample: Sample = {"name": f"{self.source}[{index}]", "image": made["image"]}
        if self.task == "pose":
            keypoints = made[self.keypoints_key][0, : self.num_keypoints]  # COCO's 17 come first in WholeBody
            return sample | {"box": made["boxes"][0], "keypoints": keypoints}
        if self.task == "segmentation":
            return sample | {"segmentation_map": made[self.classes_key]}
        key = {"depth": "depth", "normal": "normals"}[self.task]
        return sample | {key: made[key].astype(np.float32), "mask": made["mask"]}


def _open_folder(
    path: Path,
    task: str,
    split: str,
    num_labels: int | None,
    ignore_index: int,
    image_folder: str | None,
    names: Sequence[str],
) -> SampleList:
    if task == "pose":
        count = _count(num_labels)
        return CocoKeypoints(_annotation_file(path, split, count), count, image_folder, names)
    if task == "segmentation" and next(path.glob(FACE_LABELS), None) is not None:
        return FaceSynthetics(path, num_labels, ignore_index)
    return FolderTree(path, task, split, num_labels, ignore_index)


def _names(layout: KeypointLayout | ClassLayout | None) -> tuple[str, ...]:
    return () if layout is None else layout.names


def _annotation_file(folder: Path, split: str, num_keypoints: int) -> Path:
    """The file of a folder that is named for the split and this number of keypoints, or for nothing else."""
    own = KEYPOINT_FILES.get(num_keypoints, "")

    def rank(file: Path) -> tuple[bool, bool, str]:
        of_another_set = any(name in file.name for name in KEYPOINT_FILES.values() if name != own)
        return own not in file.name, of_another_set, file.name

    wanted = splits_named(split) or {split}
    others: set[Path] = set()
    for pattern in COCO_FILES:
        files = {file for file in folder.glob(pattern.format(split=split)) if not file.name.startswith(OTHER_FILES)}
        of_others = {file for file in files if splits_named(file.stem) and wanted.isdisjoint(splits_named(file.stem))}
        if files - of_others:
            return min(files - of_others, key=rank)
        others |= of_others
    if others:
        found = ", ".join(sorted(file.name for file in others))
        raise FileNotFoundError(
            f"{folder} holds no annotation file of the split {split!r}, but {found}. Give the file itself to use it."
        )
    raise FileNotFoundError(f"{folder} holds no annotation file: expected {folder / 'annotations.json'}, or its like.")


def _is_table(path: Path) -> bool:
    """Whether a folder was written by `datasets`, or holds what only `datasets` reads."""
    patterns = ("*.parquet", "data/*.parquet", "*.arrow", "metadata.jsonl", "*/metadata.jsonl")
    return is_saved_table(path) or any(next(path.glob(pattern), None) is not None for pattern in patterns)


def _count(num_labels: int | None) -> int:
    if num_labels is None:
        raise ValueError("An annotation file needs to know the model's keypoints; pass a layout.")
    return num_labels


def image_files(folder: str | None) -> list[Path]:
    """Images of a folder of backgrounds.

    Raises:
        FileNotFoundError: if the folder is missing or holds none.
    """
    if folder is None:
        return []
    suffixes = image_suffixes()
    found = (path for path in Path(folder).rglob("*") if path.name[0] != ".")
    files = sorted(path for path in found if path.suffix.lower() in suffixes)
    if not files:
        raise FileNotFoundError(f"{folder} holds no image with one of {', '.join(suffixes[:10])}, ...")
    return files

"""Writes a synthetic data set to disk in the formats that training reads; can be stopped and continued at any time.

    dataset.json         what was asked for; a folder without it, or with other settings, is refused
    images/ masks/ segmentations/   NNNNNN.png
    depths/ normals/     NNNNNN.npy, float32, exact
    annotations/         coco_wholebody.json and person_keypoints.json
    face_synthetics/     NNNNNN.png with NNNNNN_seg.png beside it: pictures of their own, of faces
    table/               train-*.parquet for the `datasets` library
    records/             one JSON file per finished sample: the people in it, and the mark that its files are complete

A file appears under its name only when it is complete, and a finished sample is never written again.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import labels as label_sets
from .body import load_body
from .dataset import Sample, SyntheticHumans

FORMATS = ("coco", "trees", "face_synthetics", "table")
ROWS_PER_SHARD = 256
VERSION = 1  # raise when the same seed gives other pictures


@dataclass(frozen=True)
class Recipe:
    """What makes a data set; two folders with equal recipes hold equal files."""

    seed: int
    height: int
    width: int
    people: tuple[int, int]
    formats: tuple[str, ...]
    crop: bool = False

    def humans(self, count: int) -> SyntheticHumans:
        """The pictures of people."""
        return SyntheticHumans(self.seed, (self.height, self.width), self.people, count, crop=self.crop)

    def faces(self, count: int) -> SyntheticHumans:
        """The pictures of faces."""
        return SyntheticHumans(
            self.seed, (self.height, self.width), (1, 1), count, framings=("face",), face_segmentation=True
        )


def make(
    folder: str | Path,
    recipe: Recipe,
    count: int,
    workers: int = 1,
    progress: Callable[[Iterator[int], int, int], Iterator[int]] | None = None,
) -> int:
    """Write samples 0 to count - 1 and what lists them; continue where an earlier call stopped.

    Args:
        folder: created if missing. It may hold a smaller or unfinished data set of the same recipe.
        recipe: seed, size, people and formats.
        count: of samples.
        workers: processes; the files do not depend on it.
        progress: wraps the iterator of finished samples, given it, the total and how many were there before.

    Returns:
        How many samples were written now.

    Raises:
        FileExistsError: if the folder holds something else, or a data set of another recipe.
        ImportError: if a package is missing.
        ValueError: if a format is unknown, or count or workers are below 1.
    """
    unknown = set(recipe.formats) - set(FORMATS)
    if unknown or not recipe.formats:
        raise ValueError(
            f"Unknown formats {', '.join(sorted(unknown)) or '(none)'}; choose from {', '.join(FORMATS)}."
        )
    if count < 1 or workers < 1:
        raise ValueError(f"count and workers must be at least 1, got {count} and {workers}.")
    if "table" in recipe.formats:
        _datasets()
    recipe.humans(count)  # refuses what it cannot make before anything is written
    folder = Path(folder)
    _claim(folder, recipe)
    load_body()  # builds anny's cache once, before several processes would
    finished = {int(path.stem) for path in (folder / "records").glob("*.json")}
    missing = [index for index in range(count) if index not in finished]
    steps = _written(folder, recipe, missing, workers)
    for _ in progress(steps, count, count - len(missing)) if progress else steps:
        pass
    records = [
        json.loads((folder / "records" / f"{index:06d}.json").read_text(encoding="utf-8")) for index in range(count)
    ]
    if "coco" in recipe.formats:
        _write_coco(folder / "annotations", records, recipe)
    if "table" in recipe.formats:
        _write_table(folder, records)
    return len(missing)


def _claim(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "dataset.json"
    wanted = json.loads(json.dumps({"version": VERSION, **asdict(recipe)}))
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        other = [
            f"{key} {found.get(key)!r} instead of {value!r}"
            for key, value in wanted.items()
            if found.get(key) != value
        ]
        if other:
            raise FileExistsError(f"{folder} holds a data set with {'; '.join(other)}. Choose another folder.")
    elif any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no dataset.json of this command. Choose another folder."
        )
    else:
        _write(manifest, json.dumps(wanted, indent=1).encode())
    (folder / "records").mkdir(exist_ok=True)


def _written(folder: Path, recipe: Recipe, indices: list[int], workers: int) -> Iterator[int]:
    """Write samples and yield their numbers as they are finished."""
    if workers == 1 or len(indices) < 2:
        for index in indices:
            yield _write_sample(folder, recipe, index)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(indices)), get_context("spawn"), initializer=_single_thread) as pool:
        futures = [pool.submit(_write_sample, folder, recipe, index) for index in indices]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write_sample(folder: Path, recipe: Recipe, index: int) -> int:
    sample = recipe.humans(index + 1)[index]
    name = f"{index:06d}"
    _write(folder / "images" / f"{name}.png", _png(sample["image"]))
    if {"trees", "table"} & set(recipe.formats):
        _write(folder / "masks" / f"{name}.png", _png(sample["mask"].astype(np.uint8) * 255))
        _write(folder / "segmentations" / f"{name}.png", _png(sample["segmentation"]))
        _write(folder / "depths" / f"{name}.npy", _npy(sample["depth"]))
        _write(folder / "normals" / f"{name}.npy", _npy(sample["normals"]))
    if "face_synthetics" in recipe.formats:
        face = recipe.faces(index + 1)[index]
        _write(folder / "face_synthetics" / f"{name}.png", _png(face["image"]))
        _write(folder / "face_synthetics" / f"{name}_seg.png", _png(face["face_segmentation"]))
    record = {"index": index, "file_name": f"{name}.png", "people": _people(sample)}
    _write(folder / "records" / f"{name}.json", json.dumps(record).encode())
    return index


def _write(path: Path, content: bytes) -> None:
    """A file that appears under its name complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------- COCO
_WHOLEBODY_PARTS = {
    "foot": "foot_kpts",
    "face": "face_kpts",
    "left_hand": "lefthand_kpts",
    "right_hand": "righthand_kpts",
}
_WHOLEBODY_BOXES = {"face": "face", "left_hand": "lefthand", "right_hand": "righthand"}


def _people(sample: Sample) -> list[dict[str, Any]]:
    """COCO-WholeBody annotations of a sample, without their numbers; Goliath's points under a key of their own."""
    groups = label_sets.keypoint_set("coco_wholebody").groups
    people = []
    for row, (box, points) in enumerate(zip(sample["boxes"], sample["keypoints"], strict=True)):
        mine = sample["instances"] == row
        body = points[list(groups["body"])]
        person = {
            "category_id": 1,
            "iscrowd": 0,
            "bbox": box.tolist(),
            "area": int(mine.sum()),
            "segmentation": {"size": list(mine.shape), "counts": _run_lengths(mine)},
            "num_keypoints": int((body[:, 2] > 0).sum()),
            "keypoints": _flat(body),
            "goliath_wholebody_kpts": _flat(sample["keypoints_308"][row]),
        }
        for group, key in _WHOLEBODY_PARTS.items():
            part = points[list(groups[group])]
            person[key] = _flat(part)
            short = _WHOLEBODY_BOXES.get(group, group)
            known = part[part[:, 2] > 0, :2]
            person[f"{short}_valid"] = len(known) > 0
            if group in _WHOLEBODY_BOXES:
                low, high = (known.min(0), known.max(0)) if len(known) else (np.zeros(2), np.zeros(2))
                person[f"{short}_box"] = [*low.tolist(), *(high - low).tolist()]
        people.append(person)
    return people


def _flat(points: np.ndarray) -> list[float]:
    return [round(float(number), 3) for number in points.ravel()]


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, background first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _write_coco(folder: Path, records: list[dict[str, Any]], recipe: Recipe) -> None:
    for name, points, keep_all in (("coco_wholebody", "coco_wholebody", True), ("person_keypoints", "coco", False)):
        keypoints = label_sets.keypoint_set(points)
        annotations: list[dict[str, Any]] = []
        for record in records:
            for person in record["people"]:
                kept = {key: value for key, value in person.items() if keep_all or key in _COCO_KEYS}
                annotations.append({"id": len(annotations) + 1, "image_id": record["index"], **kept})
        category = {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": list(keypoints.names),
            "skeleton": [[start + 1, end + 1] for start, end in keypoints.skeleton],
        }
        images = [
            {"id": record["index"], "file_name": record["file_name"], "height": recipe.height, "width": recipe.width}
            for record in records
        ]
        content = {
            "info": {"description": f"sapiens_hf synthetic humans, seed {recipe.seed}", "version": str(VERSION)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [category],
        }
        _write(folder / f"{name}.json", json.dumps(content).encode())


_COCO_KEYS = frozenset({"category_id", "iscrowd", "bbox", "area", "segmentation", "num_keypoints", "keypoints"})


# ------------------------------------------------------------------------------------------------------------ table
def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'The table needs the package `datasets`: pip install "sapiens_hf[synthetic]", '
            "or leave `table` out of --formats."
        ) from error
    return datasets


def _write_table(folder: Path, records: list[dict[str, Any]]) -> None:
    """Parquet shards with Image columns; normals as 8-bit pictures (R = x, G = y, B = z, black where nobody is)."""
    datasets = _datasets()
    image = datasets.Image()
    numbers = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("float32"))))
    features = datasets.Features(
        {
            **dict.fromkeys(("image", "mask", "segmentation", "depth", "normals"), image),
            "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "keypoints": numbers,
            "keypoints_308": numbers,
        }
    )
    shards = [records[start : start + ROWS_PER_SHARD] for start in range(0, len(records), ROWS_PER_SHARD)]
    for number, shard in enumerate(shards):
        rows = [_table_row(folder, record) for record in shard]
        columns = {name: [row[name] for row in rows] for name in features}
        buffer = io.BytesIO()
        datasets.Dataset.from_dict(columns, features=features).to_parquet(buffer)
        _write(folder / "table" / f"train-{number:05d}-of-{len(shards):05d}.parquet", buffer.getvalue())
    # A smaller data set may have grown: its shards have other names.
    for path in (folder / "table").glob("train-*.parquet"):
        if not path.stem.endswith(f"of-{len(shards):05d}"):
            path.unlink()


def _table_row(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    stem = Path(record["file_name"]).stem
    row: dict[str, Any] = {}
    for column, parent in (("image", "images"), ("mask", "masks"), ("segmentation", "segmentations")):
        row[column] = {"bytes": (folder / parent / f"{stem}.png").read_bytes(), "path": None}
    depth = np.load(folder / "depths" / f"{stem}.npy", allow_pickle=False)
    buffer = io.BytesIO()
    Image.fromarray(depth).save(buffer, "TIFF", compression="tiff_lzw")
    row["depth"] = {"bytes": buffer.getvalue(), "path": None}
    normals = np.load(folder / "normals" / f"{stem}.npy", allow_pickle=False)
    picture = ((normals + 1) * 127.5 + 0.5).astype(np.uint8) * (depth > 0)[..., None]
    row["normals"] = {"bytes": _png(picture.astype(np.uint8)), "path": None}
    people = record["people"]
    row["boxes"] = [person["bbox"] for person in people]
    row["keypoints"] = [
        _points([person["keypoints"], *(person[key] for key in _WHOLEBODY_PARTS.values())]) for person in people
    ]
    row["keypoints_308"] = [_points([person["goliath_wholebody_kpts"]]) for person in people]
    return row


def _points(parts: list[list[float]]) -> list[list[float]]:
    return np.array(sum(parts, [])).reshape(-1, 3).tolist()

"""Data sets of the `datasets` library as samples: from the Hub or local, at hand (map-style) or streamed.

A row holds one image. For the dense tasks the label is an Image column (class indices; 16-bit or float depth; 8-bit
RGB normals, R = x, G = y, B = z, black or mid-grey where nobody is) or an array column. For pose, a row has the boxes
and keypoints of its people, directly or inside `objects`, and each person becomes a sample. Images are decoded when a
sample is asked for, so that one which cannot be is a `BadSampleError` that names its row.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .formats import (
    PICTURE_SUFFIXES,
    BadSampleError,
    Sample,
    check_sizes,
    clip_boxes,
    read_maps,
    read_mask,
    read_rgb,
)
from .shards import SHARD_SUFFIXES

COLUMNS = {
    "image": ("image", "img", "pixel_values"),
    "segmentation": ("segmentation_map", "segmentation", "label", "labels", "annotation", "mask"),
    "depth": ("depth", "depth_map", "label"),
    "normal": ("normals", "normal", "normal_map", "label"),
    "mask": ("mask", "masks", "foreground"),
    "box": ("boxes", "bboxes", "bbox"),
    "keypoints": ("keypoints",),
}
# What may be a data set of the Hub, and not only a path.
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MAX_SHARDS = 1024
NUM_COCO, NUM_WHOLEBODY = 17, 133
# Vectors of a picture of normals that are shorter mean that nobody is there; mid-grey, 127 or 128, is 0.007 long.
BACKGROUND_LENGTH = 0.1


class TableReader:
    """Turns rows of a table into samples.

    Args:
        task: one of the four.
        columns: names of the table's columns, with those of `objects` as "objects.NAME".
        chosen: columns by role ("image", "mask", "box", "keypoints", or the task), where names differ from `COLUMNS`.
        num_labels: classes or keypoints of the model.
        ignore_index: segmentation label that does not count.

    Raises:
        ValueError: if a column is missing; the message lists those of the table.
    """

    def __init__(
        self,
        task: str,
        columns: list[str],
        chosen: Mapping[str, str] | None = None,
        num_labels: int | None = None,
        ignore_index: int = 255,
    ):
        self.task, self.num_labels, self.ignore_index = task, num_labels, ignore_index
        roles = ["image", "box", "keypoints"] if task == "pose" else ["image", task]
        self.columns = {role: _find(role, columns, chosen or {}) for role in roles}
        if task in ("depth", "normal"):
            self.columns["mask"] = _find("mask", columns, chosen or {}, required=False)

    def samples(self, row: Mapping[str, Any], name: str) -> list[Sample]:
        """The samples of a row: one, or for pose one per labelled person.

        Raises:
            BadSampleError: if one of them would train wrongly; names the row.
        """
        image = read_rgb(self._get(row, "image", name), name)
        if self.task != "pose":
            source, mask = self._get(row, self.task, name), self._get(row, "mask", name)
            person = None if mask is None else read_mask(mask, name)
            if self.task == "normal":
                source = _decode_normals(source)
            maps = read_maps(self.task, source, person, self.num_labels, self.ignore_index, name)
            return [check_sizes({"name": name, "image": image, **maps}, name)]
        boxes, keypoints = self.people(row, name)
        boxes = clip_boxes(boxes, np.array(image.shape[1::-1], dtype=np.float32))
        empty = ~(boxes[:, 2:] > 0).all(axis=1)
        if empty.any():
            raise BadSampleError(
                f"{name}, person {empty.argmax()}: the box lies outside the image of {image.shape[1]} x "
                f"{image.shape[0]} pixels. Boxes are x, y, width, height in pixels."
            )
        return [
            {"name": f"{name}, person {number}", "image": image, "box": box, "keypoints": points}
            for number, (box, points) in enumerate(zip(boxes, keypoints, strict=True))
        ]

    def people(self, row: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (num_people, 4) and keypoints (num_people, num_keypoints, 3) of the people that have some of both.

        Raises:
            BadSampleError: if they are not numbers, or not as many as the model's keypoints take; names the row.
        """
        boxes, values = self._get(row, "box", name), self._get(row, "keypoints", name)
        try:
            boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
            values = np.concatenate([np.zeros(0), *(np.ravel(person) for person in values)]).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise BadSampleError(
                f"{name}: boxes or keypoints are not numbers, 4 per box and 3 per keypoint ({error})."
            ) from error
        if self.num_labels == NUM_COCO and len(boxes) and len(values) == 3 * NUM_WHOLEBODY * len(boxes):
            values = values.reshape(len(boxes), -1)[:, : 3 * NUM_COCO].ravel()  # COCO's come first in WholeBody
        if len(values) != 3 * len(boxes) * (self.num_labels or 0):
            raise BadSampleError(
                f"{name} has {len(boxes)} boxes and {len(values)} keypoint numbers; expected 3 for each of the "
                f"model's {self.num_labels} keypoints per box."
            )
        keypoints = values.reshape(len(boxes), self.num_labels or 0, 3)
        keypoints = np.where(keypoints[..., 2:] > 0, keypoints, 0)
        if not np.isfinite(keypoints).all() or not np.isfinite(boxes).all():
            raise BadSampleError(f"{name} has NaN or infinite boxes or visible keypoints.")
        counts = (keypoints[..., 2] > 0).any(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        return boxes[counts], keypoints[counts]

    def _get(self, row: Mapping[str, Any], role: str, name: str) -> Any:
        column = self.columns.get(role)
        if column is None:
            return None
        outer, _, inner = column.partition(".")
        value = row[outer]
        if inner and isinstance(value, list):  # a list of objects in place of an object of lists
            value = [None if entry is None else entry[inner] for entry in value]
        elif inner and value is not None:
            value = value[inner]
        if value is None and role != "mask":
            raise BadSampleError(f"{name} has nothing in its column {column!r}.")
        if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:  # an Image column that is not decoded
            value = _decode(value, f"{name}, column {column!r},")
        return value


class TableSamples:
    """A map-style `datasets.Dataset`.

    Raises:
        ValueError: if it holds nothing to train on; for pose also if none of its rows can be read, names the first.
    """

    def __init__(self, table: Any, reader: TableReader, name: str = "table"):
        self.table, self.reader, self.name = undecoded(table), reader, name
        if reader.task == "pose":
            outer = {column.partition(".")[0] for role, column in reader.columns.items() if column and role != "image"}
            numbers = table.select_columns(sorted(outer))
            counts, errors = [], []
            for number, row in enumerate(numbers):
                try:
                    counts.append(len(reader.people(row, f"{name}[{number}]")[0]))
                except BadSampleError as error:
                    counts.append(1)  # a sample that says what is wrong when it is asked for
                    errors.append(error)
            if errors and sum(counts) == len(errors):
                raise errors[0]
            self.rows = np.repeat(np.arange(len(counts)), counts)
            self.people = np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0, int)
        else:
            self.rows = np.arange(len(table))
            self.people = np.zeros(len(table), dtype=np.int64)
        if not len(self.rows):
            raise ValueError(f"{name} holds nothing to train on.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        return self.reader.samples(self.table[row], f"{self.name}[{row}]")[int(self.people[index])]


class StreamSamples:
    """A streamed `datasets.IterableDataset`, shuffled within a buffer in an order that seed and epoch give."""

    def __init__(self, stream: Any, reader: TableReader, name: str = "stream", seed: int = 0, buffer_size: int = 256):
        self.stream, self.reader, self.name = undecoded(stream), reader, name
        self.seed, self.buffer_size = seed, buffer_size

    def first(self, count: int) -> StreamSamples:
        """The first rows only, in an order of their own."""
        return StreamSamples(self.stream.take(count), self.reader, self.name, self.seed, self.buffer_size)

    def rows(self, epoch: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and content of each row of an epoch; Image columns are not yet decoded."""
        stream = self.stream
        if self.buffer_size > 1:
            stream = stream.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        stream.set_epoch(epoch)
        # By batches of one: iterated by itself within a worker, `datasets` shuffles with another generator there.
        for number, batch in enumerate(stream.iter(batch_size=1)):
            yield f"{self.name}[{number} of epoch {epoch}]", {name: values[0] for name, values in batch.items()}


def open_table(
    source: str | Any,
    task: str,
    split: str = "train",
    *,
    streaming: bool = False,
    columns: Mapping[str, str] | None = None,
    num_labels: int | None = None,
    ignore_index: int = 255,
    seed: int = 0,
) -> TableSamples | StreamSamples:
    """Samples of a `datasets` table.

    Args:
        source: a Hub id, a folder (`save_to_disk`, parquet, imagefolder), or a Dataset or IterableDataset.
        task: one of the four.
        split: of a source that has splits.
        streaming: read as it comes, without a copy on disk.
        columns: as `chosen` of `TableReader`.
        num_labels: classes or keypoints of the model.
        ignore_index: segmentation label that does not count.
        seed: of the order of a stream.

    Raises:
        ImportError: if `datasets` is not installed.
        FileNotFoundError: if the source is neither here nor on the Hub; names the nearest file or folder.
        ValueError: if a column or the split is missing.
    """
    datasets = datasets_library()
    name = source if isinstance(source, str) else "table"
    source = load_table(source, split, streaming) if isinstance(source, str) else _of_split(source, split, name)
    known, nested = source.column_names, (source.features or {}).get("objects")
    if known is None:  # a stream without metadata: its first row has the columns
        row = next(iter(source), None)
        if row is None:
            raise ValueError(f"{name} holds nothing to train on.")
        known, nested = list(row), row.get("objects")
        nested = nested[0] if isinstance(nested, list) and nested else nested
    nested = getattr(nested, "feature", nested)
    names = [*known, *(f"objects.{key}" for key in (nested if isinstance(nested, Mapping) else ()))]
    reader = TableReader(task, names, columns, num_labels, ignore_index)
    if isinstance(source, datasets.IterableDataset):
        return StreamSamples(source, reader, name, seed)
    return TableSamples(source, reader, name)


def load_table(source: str, split: str, streaming: bool) -> Any:
    """A Dataset, or an IterableDataset if `streaming`, from a folder or the Hub.

    Raises:
        ImportError: if `datasets` is not installed.
        FileNotFoundError: if the source is neither here nor on the Hub; names the nearest file or folder. What cannot
            be an id is not looked for there.
        ValueError: if the split is missing, or a file has no rows or is damaged.
    """
    datasets = datasets_library()
    from huggingface_hub.errors import HFValidationError

    path = Path(source)
    if is_saved_table(path):
        table = _of_split(datasets.load_from_disk(source), split, source)
        # Shards are what processes share out and what is shuffled; of a table at hand they cost nothing.
        return table.to_iterable_dataset(num_shards=max(min(len(table), MAX_SHARDS), 1)) if streaming else table
    if not path.exists():
        is_file_name = path.suffix.lower() in PICTURE_SUFFIXES + SHARD_SUFFIXES
        if is_file_name or not HUB_ID.fullmatch(source):
            raise FileNotFoundError(f"There is no file or folder {source}{nearest(source)}.")
    try:
        return datasets.load_dataset(source, split=split, streaming=streaming)
    except (OSError, HFValidationError) as error:
        if path.exists():
            raise
        raise FileNotFoundError(
            f"There is no file or folder {source} here{nearest(source)}. As the id of a data set on the Hub it could "
            f"not be read either ({type(error).__name__}: {error})."
        ) from error
    except (ValueError, StopIteration, datasets.exceptions.DatasetGenerationError) as error:
        if str(error).startswith("Unknown split"):
            raise ValueError(f"{source}: {error} Name another split.") from error
        if type(error) is ValueError and "no data" not in str(error):
            raise
        reason = error.__cause__ or error  # for files without rows each format has an error of its own
        said = f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
        raise ValueError(
            f"No table could be made of {source} ({said:.300}). Look for files that have no rows or are damaged."
        ) from error


def _of_split(table: Any, split: str, name: str) -> Any:
    """The table itself, or of several that of the split."""
    if not isinstance(table, Mapping):
        return table
    if split not in table:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(table)}.")
    return table[split]


def is_saved_table(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def datasets_library() -> Any:
    """The `datasets` package, or an ImportError that says how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Tables and shards need the `datasets` package: pip install sapiens_hf[train].") from error
    return datasets


def nearest(source: str) -> str:
    """A question after the part of a path that is there under another name; empty where nothing is alike."""
    path = Path(source)
    while not path.parent.exists():
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    alike = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean '{path.parent / alike[0]}'?)" if alike else ""


def undecoded(table: Any) -> Any:
    """The table with Image columns as bytes or paths."""
    import datasets

    for column, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def encoded(value: Any) -> Any:
    """Path, bytes, picture or array out of what a column holds; a file that lies elsewhere (on the Hub) is fetched."""
    if not isinstance(value, Mapping) or not {"bytes", "path"} & value.keys():
        return value
    content, path = value.get("bytes"), value.get("path")
    if content is not None or path is None:
        return content
    from datasets.utils.file_utils import is_local_path, xopen

    if is_local_path(path):
        return Path(path)
    with xopen(path, "rb") as file:
        return file.read()


def _decode(value: Mapping[str, Any], what: str) -> Image.Image:
    try:
        content = encoded(value)
        image = Image.open(BytesIO(content) if isinstance(content, bytes) else content)
        image.load()
    except Exception as error:  # the decoders of PIL raise OSError, SyntaxError, ValueError, struct.error, EOFError
        size = "no bytes" if value["bytes"] is None else f"{len(value['bytes'])} bytes"
        raise BadSampleError(
            f"{what} cannot be read as an image ({size}, path {value['path']!r}; {type(error).__name__})."
        ) from error
    return image


def _decode_normals(source: Any) -> Any:
    """An 8-bit picture of normals as vectors, those of the background as zero; arrays as they are.

    Lengths stay as they are for `check_normals` to judge: a photograph has all kinds, normals 0.993 to 1.007.
    """
    if not isinstance(source, Image.Image):
        return np.asarray(source, dtype=np.float32)
    levels = np.asarray(source.convert("RGB"), dtype=np.float32)
    vectors = levels / 127.5 - 1
    somebody = (levels > 0).any(axis=-1) & (np.linalg.norm(vectors, axis=-1) >= BACKGROUND_LENGTH)
    return np.where(somebody[..., None], vectors, np.float32(0))


def _find(role: str, columns: list[str], chosen: Mapping[str, str], required: bool = True) -> str | None:
    names = (chosen[role],) if role in chosen else (*COLUMNS[role], *(f"objects.{name}" for name in COLUMNS[role]))
    for name in names:
        if name in columns:
            return name
    if required or role in chosen:
        raise ValueError(
            f"The table has no column {' or '.join(names[:6])} for {role!r}; it has {', '.join(columns)}. Name it "
            f"with --columns {role}=NAME."
        )
    return None

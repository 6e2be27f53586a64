"""What reading JSON takes wherever it is read: COCO's fields and who is a person, and labels of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# COCO-WholeBody spreads a person over these keys, in the order of its keypoints; Goliath has a key of its own.
WHOLEBODY_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
GOLIATH_KEY = "goliath_wholebody_kpts"

# What a user's file of labels may hold.
LABEL_KEYS = {
    "keypoints": ("names", "flip_pairs", "upper_body_ids", "lower_body_ids", "sigmas"),
    "classes": ("names", "swap_pairs", "class_weights", "ignore_index", "rotate_fill_label"),
}


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def require(entry: Any, names: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the fields which an entry lacks (or has as null), and where it stands."""
    missing = [name for name in names if not isinstance(entry, Mapping) or entry.get(name) is None]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}: {str(entry)[:200]}.")


def numbers(entry: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """A field that is a list of numbers, flat.

    Raises:
        ValueError: if it is anything else; names the entry and the field.
    """
    try:
        values = np.asarray(entry[name])
    except ValueError:  # lists of several lengths
        values = np.asarray(None)
    if values.ndim == 0 or values.dtype.kind not in "iuf":
        raise ValueError(f"{where}: {name} is {str(entry[name])[:80]}; expected a list of numbers.")
    return values.reshape(-1)


def read_box(entry: Mapping[str, Any], where: str) -> list[float]:
    """x, y, width and height of an entry's `bbox`; an empty list is an empty box.

    Raises:
        ValueError: if it is anything else than four numbers; names the entry.
    """
    box = numbers(entry, "bbox", where).tolist() or [0.0] * 4
    if len(box) != 4:
        raise ValueError(f"{where}: bbox has {len(box)} numbers; expected x, y, width, height.")
    return box


def check_coco(content: Any, where: str, image: Sequence[str] = ("id",), annotation: Sequence[str] = ()) -> None:
    """Refuse what is not COCO: lists of images and annotations, each entry with the fields that will be read.

    Args:
        content: of the file.
        where: the file's name, for messages.
        image: fields that each image needs.
        annotation: fields that each annotation needs.

    Raises:
        ValueError: if a list or a field is missing, there is no image, or two have one id; names file and entry.
    """
    for name in ("images", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(name), list):
            found = f"keys {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"{where} has no list {name!r} ({found}): expected a COCO file.")
    if not content["images"]:
        raise ValueError(f"{where} has an empty list of images.")
    for index, entry in enumerate(content["images"]):
        require(entry, image, f"{where}: images[{index}]")
        for name in ("width", "height"):
            if not isinstance(entry.get(name, 1), int | float):
                raise ValueError(f"{where}: images[{index}]: {name} is {entry[name]!r}; expected a number of pixels.")
    repeated = [number for number, count in Counter(entry["id"] for entry in content["images"]).items() if count > 1]
    if repeated:
        raise ValueError(f"{where} has several images of id {repeated[0]}.")
    for index, entry in enumerate(content["annotations"]):
        named = isinstance(entry, Mapping) and entry.get("id") is not None
        require(entry, annotation, f"{where}: annotation {entry['id']}" if named else f"{where}: annotations[{index}]")


def person_categories(categories: Iterable[Mapping[str, Any]] | None, where: str = "The file") -> set[Any]:
    """Ids of the categories called "person".

    Raises:
        ValueError: if a category has no id; names it and the file, which `where` is.
    """
    categories = list(categories or ())
    for index, category in enumerate(categories):
        require(category, ("id",), f"{where}: categories[{index}]")
    return {category["id"] for category in categories if category.get("name") == "person"}


def is_person(annotation: Mapping[str, Any], categories: set[Any]) -> bool:
    """Whether an annotation counts: of a person, or of no category; all do where no category is called "person"."""
    return not categories or "category_id" not in annotation or annotation["category_id"] in categories


def read_own_labels(path: str | Path, kind: str) -> dict[str, Any]:
    """A user's own "keypoints" or "classes": a JSON object with the list `names` and, if wanted, more of `LABEL_KEYS`.

    Raises:
        ValueError: if there is no such file, a key is unknown, names repeat, or a number is wrong; names file and
            key. Pairs and indices are left to those who use them.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no label file {path}; give a JSON file, or the name of a set.")
    data, known = read_json(path), LABEL_KEYS[kind]
    unknown = sorted(set(data).difference(known)) if isinstance(data, dict) else []
    if not isinstance(data, dict) or "names" not in data or unknown:
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no list `names`"
        more = ", ".join(known[1:])
        raise ValueError(f"{path} has {what}; expected a JSON object with names and, if wanted, {more}.")
    names = data["names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{path}: names is {names!r:.80}; expected a list of texts, one per label.")
    if kind == "classes" and len(names) > 255:
        raise ValueError(
            f"{path}: names holds {len(names)} classes; expected at most 255, the labels 0 to 254 of 8-bit maps."
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: names holds {', '.join(map(repr, repeated[:5]))} twice; expected each name once.")
    for key in ("sigmas", "class_weights"):
        if data.get(key) is not None and not _are_weights(numbers(data, key, str(path))):
            raise ValueError(
                f"{path}: {key} is {data[key]!r:.80}; expected a list of numbers, none below 0 and not all 0."
            )
        if data.get(key) is not None and len(data[key]) != len(names):
            raise ValueError(f"{path}: {key} has {len(data[key])} entries for {len(names)} names; give one each.")
    for key in ("ignore_index", "rotate_fill_label"):
        if key in data and (type(data[key]) is not int or not 0 <= data[key] <= 255):
            raise ValueError(f"{path}: {key} is {data[key]!r}; expected a label from 0 to 255.")
    return data


def _are_weights(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all() and values.any())

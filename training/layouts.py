"""What the numbers of a label mean while training: names, and what a mirrored image exchanges.

A layout is one of the package's own sets (`coco`, `coco_wholebody`, `goliath`; `goliath28`, `lip20`, ...), or a JSON
file of the user's: `{"names": [...]}` with, if wanted, `flip_pairs`, `upper_body_ids`, `lower_body_ids` and `sigmas`
(keypoints; only `sapiens-hf evaluate` reads the sigmas) or `swap_pairs`, `class_weights`, `ignore_index` and
`rotate_fill_label` (classes). Pairs that the file leaves out are found by name: `left_x` goes with `right_x`, `LeftX`
with `RightX`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapiens_hf.coco import read_json
from sapiens_hf.labels import class_set, keypoint_set

Pairs = tuple[tuple[int, int], ...]
# A side is a word of a name, in snake_case, camelCase or glued to what follows ("left_foot", "LeftFoot", "handLeft",
# "lefthand", "LHip", "hip_l"). Case tells words apart: "cleft", "upright", "Brightness" and "LIP" have none.
SIDE = re.compile(
    r"((?<![A-Za-z])(?:left|right)|Left|Right|(?<![A-Za-z])(?:LEFT|RIGHT))(?!over)"
    r"|(?<![A-Za-z])[lr](?![a-z])|(?<![A-Z])[LR](?=[A-Z][a-z]|[^A-Za-z]|$)"
)
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class KeypointLayout:
    """Keypoints in the order of the model's heatmaps."""

    name: str
    names: tuple[str, ...]
    flip_pairs: Pairs
    upper_body_ids: tuple[int, ...] = ()
    lower_body_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassLayout:
    """Classes in the order of the model's channels."""

    name: str
    names: tuple[str, ...]
    swap_pairs: Pairs
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = 255
    rotate_fill_label: int = 0


def keypoint_layout(source: str | int | Path) -> KeypointLayout:
    """The layout of a keypoint set's name or count, or of a JSON file.

    Raises:
        ValueError: if there is no such set, or the file is not as above; names the file and what is wrong in it.
    """
    if str(source).endswith(".json"):
        data = _read(source, {"names", "flip_pairs", "upper_body_ids", "lower_body_ids", "sigmas"})
        names = tuple(data["names"])
        return KeypointLayout(
            Path(source).stem,
            names,
            _pairs(source, data, "flip_pairs"),
            _indices(source, names, data.get("upper_body_ids", []), "upper_body_ids"),
            _indices(source, names, data.get("lower_body_ids", []), "lower_body_ids"),
        )
    known = keypoint_set(_number(source))
    return KeypointLayout(known.name, known.names, known.flip_pairs, known.upper_body_ids, known.lower_body_ids)


def class_layout(source: str | int | Path) -> ClassLayout:
    """The layout of a class set's name or count, or of a JSON file.

    Raises:
        ValueError: if there is no such set, or the file is not as above; names the file and what is wrong in it.
    """
    if str(source).endswith(".json"):
        known_keys = {"names", "swap_pairs", "class_weights", "ignore_index", "rotate_fill_label"}
        data = _read(source, known_keys)
        names = tuple(data["names"])
        weights = data.get("class_weights")
        if weights is not None and not (
            isinstance(weights, list) and all(type(weight) in (int, float) and weight >= 0 for weight in weights)
        ):
            raise ValueError(f"{source}: class_weights is {weights!r:.80}; expected a list of numbers, one per name.")
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"{source}: class_weights has {len(weights)} entries for {len(names)} names; give one each."
            )
        ignore_index, fill = data.get("ignore_index", 255), data.get("rotate_fill_label", 0)
        for key, label in (("ignore_index", ignore_index), ("rotate_fill_label", fill)):
            if type(label) is not int or not 0 <= label <= 255:
                raise ValueError(f"{source}: {key} is {label!r}; expected a label from 0 to 255.")
        return ClassLayout(
            Path(source).stem,
            names,
            _pairs(source, data, "swap_pairs"),
            None if weights is None else tuple(map(float, weights)),
            ignore_index,
            fill,
        )
    known = class_set(_number(source))
    return ClassLayout(
        known.name, known.names, known.swap_pairs, known.class_weights, known.ignore_index, known.rotate_fill_label
    )


def paired_by_name(names: Sequence[str]) -> Pairs:
    """Pairs of indices whose names differ in the side only: `left_hip` and `right_hip`."""
    places = {name: index for index, name in enumerate(names)}
    pairs = []
    for index, name in enumerate(names):
        other = places.get(other_side(name), index)
        if index < other:
            pairs.append((index, other))
    return tuple(pairs)


def other_side(name: str) -> str:
    """The name with left and right exchanged, in the same case; the name itself if it has no side."""

    def exchange(match: re.Match) -> str:
        word = match.group(0)
        other = OTHER_SIDE[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return SIDE.sub(exchange, name)


def has_side(name: str) -> bool:
    """Whether a name speaks of the left or the right."""
    return SIDE.search(name) is not None


def missing_pairs(names: Sequence[str], pairs: Pairs) -> list[str]:
    """Names with a side that no pair holds: their labels would stay on the wrong side of a mirrored image."""
    paired = set(sum(pairs, ()))
    return [name for index, name in enumerate(names) if has_side(name) and index not in paired]


def _number(source: Any) -> Any:
    return int(source) if str(source).isdigit() else source


def _read(source: str | Path, known: set[str]) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"There is no label file {path}; give a JSON file, or the name of a set.")
    data = read_json(path)
    unknown = sorted(set(data) - known) if isinstance(data, dict) else []
    if not isinstance(data, dict) or "names" not in data or unknown:
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no list `names`"
        raise ValueError(
            f"{path} has {what}; expected a JSON object with names and, if wanted, {', '.join(sorted(known))}."
        )
    names = data["names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{path}: names is {names!r:.80}; expected a list of texts, one per label.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: names holds {', '.join(map(repr, repeated[:5]))} twice; expected each name once.")
    return data


def _pairs(source: Any, data: Mapping[str, Any], key: str) -> Pairs:
    """The pairs of a file, or those that its names give."""
    names = data["names"]
    pairs = data.get(key, paired_by_name(names))
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(
            f"{source}: {key} is {pairs!r:.80}; expected a list of pairs of indices, as [[1, 2], [3, 4]]."
        )
    _indices(source, names, [index for pair in pairs for index in pair], key)
    return tuple((first, second) for first, second in pairs)


def _indices(source: Any, names: Sequence[str], indices: Any, key: str) -> tuple[int, ...]:
    """Different indices of names: a label that two pairs hold could not go back when the image is mirrored again."""
    if not isinstance(indices, list) or not all(type(index) is int for index in indices):
        raise ValueError(f"{source}: {key} is {indices!r:.80}; expected a list of indices of its names.")
    wrong = [index for index in indices if not 0 <= index < len(names)]
    if wrong:
        raise ValueError(
            f"{source}: {key} holds the index {wrong[0]}; expected 0 to {len(names) - 1} for {len(names)} names."
        )
    repeated = [index for index, count in Counter(indices).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{source}: {key} holds the index {repeated[0]} ({names[repeated[0]]!r}) twice; expected each once."
        )
    return tuple(indices)

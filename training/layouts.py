"""What the numbers of a label mean while training: names, and what a mirrored image exchanges.

A layout is one of the package's own sets (`coco`, `coco_wholebody`, `goliath`; `goliath28`, `lip20`, ...), or a JSON
file of the user's: `{"names": [...]}` with, if wanted, `flip_pairs`, `upper_body_ids`, `lower_body_ids` (keypoints)
or `swap_pairs`, `class_weights`, `ignore_index`, `rotate_fill_label` (classes). Pairs that the file leaves out are
found by name: `left_x` goes with `right_x`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapiens_hf.labels import class_set, keypoint_set

Pairs = tuple[tuple[int, int], ...]
# A side is a whole word of the name, or its camelCase or single-letter form at the start ("LeftFoot", "l_hip").
SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)
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
        ValueError: if there is no such set, or the file's indices do not fit its names.
    """
    if str(source).endswith(".json"):
        data = _read(source, {"names", "flip_pairs", "upper_body_ids", "lower_body_ids"})
        names = tuple(data["names"])
        layout = KeypointLayout(
            Path(source).stem,
            names,
            _pairs(data.get("flip_pairs", paired_by_name(names))),
            tuple(data.get("upper_body_ids", ())),
            tuple(data.get("lower_body_ids", ())),
        )
        _check_indices(source, names, [*sum(layout.flip_pairs, ()), *layout.upper_body_ids, *layout.lower_body_ids])
        return layout
    known = keypoint_set(_number(source))
    return KeypointLayout(known.name, known.names, known.flip_pairs, known.upper_body_ids, known.lower_body_ids)


def class_layout(source: str | int | Path) -> ClassLayout:
    """The layout of a class set's name or count, or of a JSON file.

    Raises:
        ValueError: if there is no such set, or the file's indices or weights do not fit its names.
    """
    if str(source).endswith(".json"):
        known_keys = {"names", "swap_pairs", "class_weights", "ignore_index", "rotate_fill_label"}
        data = _read(source, known_keys)
        names = tuple(data["names"])
        weights = data.get("class_weights")
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"{source}: class_weights has {len(weights)} entries for {len(names)} names; give one each."
            )
        layout = ClassLayout(
            Path(source).stem,
            names,
            _pairs(data.get("swap_pairs", paired_by_name(names))),
            None if weights is None else tuple(map(float, weights)),
            int(data.get("ignore_index", 255)),
            int(data.get("rotate_fill_label", 0)),
        )
        _check_indices(source, names, sum(layout.swap_pairs, ()))
        return layout
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


def missing_pairs(names: Sequence[str], pairs: Pairs) -> list[str]:
    """Names with a side that no pair holds: their labels would stay on the wrong side of a mirrored image."""
    paired = set(sum(pairs, ()))
    return [name for index, name in enumerate(names) if other_side(name) != name and index not in paired]


def _number(source: Any) -> Any:
    return int(source) if str(source).isdigit() else source


def _pairs(pairs: Any) -> Pairs:
    return tuple((int(first), int(second)) for first, second in pairs)


def _read(source: str | Path, known: set[str]) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"There is no label file {path}; give a JSON file, or the name of a set.")
    data = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(data) - known) if isinstance(data, dict) else []
    if not isinstance(data, dict) or "names" not in data or unknown:
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no list `names`"
        raise ValueError(
            f"{path} has {what}; expected a JSON object with names and, if wanted, {', '.join(sorted(known))}."
        )
    return data


def _check_indices(source: Any, names: Sequence[str], indices: Sequence[int]) -> None:
    wrong = [index for index in indices if not 0 <= index < len(names)]
    if wrong:
        raise ValueError(
            f"{source} holds the index {wrong[0]}; expected 0 to {len(names) - 1} for {len(names)} names."
        )

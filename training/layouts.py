"""What the numbers of a label mean while training: names, and what a mirrored image exchanges.

A layout is one of the package's own sets (`coco`, `coco_wholebody`, `goliath`; `goliath28`, `lip20`, ...), or a JSON
file of the user's: `{"names": [...]}` with, if wanted, `flip_pairs`, `upper_body_ids`, `lower_body_ids` and `sigmas`
(keypoints; only `sapiens-hf evaluate` reads the sigmas) or `swap_pairs`, `class_weights`, `ignore_index` and
`rotate_fill_label` (classes). Pairs that the file leaves out are found by name: `left_x` goes with `right_x`, `LeftX`
with `RightX`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapiens_hf.coco import read_own_labels
from sapiens_hf.labels import class_set, keypoint_set, paired_by_name

Pairs = tuple[tuple[int, int], ...]


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
    if str(source).lower().endswith(".json"):
        data = read_own_labels(source, "keypoints")
        names = tuple(data["names"])
        return KeypointLayout(
            Path(source).stem,
            names,
            _pairs(source, data, "flip_pairs"),
            _indices(source, names, data.get("upper_body_ids", []), "upper_body_ids"),
            _indices(source, names, data.get("lower_body_ids", []), "lower_body_ids"),
        )
    known = keypoint_set(source)
    return KeypointLayout(known.name, known.names, known.flip_pairs, known.upper_body_ids, known.lower_body_ids)


def class_layout(source: str | int | Path) -> ClassLayout:
    """The layout of a class set's name or count, or of a JSON file.

    Raises:
        ValueError: if there is no such set, or the file is not as above; names the file and what is wrong in it.
    """
    if str(source).lower().endswith(".json"):
        data = read_own_labels(source, "classes")
        names, weights = tuple(data["names"]), data.get("class_weights")
        return ClassLayout(
            Path(source).stem,
            names,
            _pairs(source, data, "swap_pairs"),
            None if weights is None else tuple(map(float, weights)),
            data.get("ignore_index", 255),
            data.get("rotate_fill_label", 0),
        )
    known = class_set(source)
    return ClassLayout(
        known.name, known.names, known.swap_pairs, known.class_weights, known.ignore_index, known.rotate_fill_label
    )


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

# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and limitations under the License.
"""Keypoint sets and class sets: names, links, colours, flip pairs, part groups, and conversions between sets.

The tables live in `assets/keypoints.json` and `assets/segmentation_classes.json`; they are read on first use and kept.
Points and classes are always matched by name: Goliath lists the wrists at 62 (left) and 41 (right) and its fingers
from tip to base, so a slice by position would silently return other points.
"""

from __future__ import annotations

import colorsys
import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

ASSETS = Path(__file__).parent / "assets"
Color: TypeAlias = tuple[int, int, int]
Array: TypeAlias = Any  # a numpy array or a torch tensor

# Names a set may be called by, without case, "-", "_" and spaces; and the number of its entries.
KEYPOINT_SETS = ("coco", "coco_wholebody", "goliath")
KEYPOINT_ALIASES: dict[str | int, str] = {
    17: "coco",
    133: "coco_wholebody",
    308: "goliath",
    "coco17": "coco",
    "wholebody": "coco_wholebody",
    "wholebody133": "coco_wholebody",
    "cocowholebody133": "coco_wholebody",
    "goliath308": "goliath",
}
CLASS_SETS = ("goliath28", "lip20", "cihp20", "face_synthetics19")
CLASS_ALIASES: dict[str | int, str] = {
    28: "goliath28",
    20: "lip20",  # also CIHP's count: both share names, colours, swaps and weights
    19: "face_synthetics19",
    "goliath": "goliath28",
    "lip": "lip20",
    "cihp": "cihp20",
    "face": "face_synthetics19",
    "facesynthetics": "face_synthetics19",
}
OPENPOSE_NAMES: dict[str, tuple[str, ...]] = {
    # Order of OpenPose's BODY_25 and COCO outputs (its doc/02_output.md), spelled as in the COCO set.
    "openpose": (
        *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
        *("mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
        *("right_eye", "left_eye", "right_ear", "left_ear"),
        *("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel"),
    ),
    "openpose18": (
        *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
        *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
        *("right_eye", "left_eye", "right_ear", "left_ear"),
    ),
}
TARGET_ALIASES: dict[str | int, str] = KEYPOINT_ALIASES | {"openpose25": "openpose", "body25": "openpose"}
OPENPOSE_MEANS = {"neck": ("left_shoulder", "right_shoulder"), "mid_hip": ("left_hip", "right_hip")}
LIMBS = {
    "arm": ("acromion", "shoulder", "olecranon", "cubital_fossa", "elbow", "wrist"),
    "leg": ("hip", "knee", "ankle"),
    "foot": ("big_toe", "small_toe", "heel"),
}
# A side is a word of a name, in snake_case, camelCase or glued to what follows ("left_foot", "LeftFoot", "handLeft",
# "lefthand", "LHip", "hip_l"). Case tells words apart: "cleft", "upright", "Brightness" and "LIP" have none.
SIDE = re.compile(
    r"((?<![A-Za-z])(?:left|right)|Left|Right|(?<![A-Za-z])(?:LEFT|RIGHT))(?!over)"
    r"|(?<![A-Za-z])[lr](?![a-z])|(?<![A-Z])[LR](?=[A-Z][a-z]|[^A-Za-z]|$)"
)
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
HEAD = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
TORSO = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
LABEL_DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "uint64", "int64")  # hold 255, the usual ignored label
# Ends of the tables in segmentation_classes.json "maps". CIHP has LIP's classes; 29 classes are known only here.
MAP_SETS = (*CLASS_SETS, "sapiens2_29")
MAP_ALIASES: dict[str | int, str] = CLASS_ALIASES | {29: "sapiens2_29", "sapiens2": "sapiens2_29"}


class _Names:
    """Look-ups by name that both kinds of set share."""

    name: str
    names: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of one keypoint or class.

        Raises:
            ValueError: if the set has no such name; the message offers the nearest one.
        """
        if name not in self.names:
            raise ValueError(_unknown(f"{self.name} has no entry named", name, self.names))
        return self.names.index(name)

    def indices(self, *names: str) -> list[int]:
        """Sorted indices of entries and groups, each once, e.g. `indices("left_hand", "nose")`.

        An entry's exact name comes before a group's exact name.

        Raises:
            ValueError: if a name is neither an entry nor a group of this set.
        """
        found: set[int] = set()
        for name in names:
            if name in self.names:
                found.add(self.names.index(name))
            elif name in self.groups:
                found.update(self.groups[name])
            else:
                message = _unknown(f"{self.name} has no entry or group named", name, (*self.groups, *self.names))
                raise ValueError(f"{message} Groups: {', '.join(self.groups)}.")
        return sorted(found)

    def id2label(self) -> dict[int, str]:
        """Index to name, as a transformers config holds it."""
        return dict(enumerate(self.names))

    def label2id(self) -> dict[str, int]:
        """Name to index, as a transformers config holds it."""
        return {name: index for index, name in enumerate(self.names)}


@dataclass(frozen=True)
class KeypointSet(_Names):
    """A list of named body points and how they belong together. Colours are RGB, 0 to 255."""

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    """Points that exchange their places in a mirrored image. Goliath's are not all a left/right rename."""
    flip_indices: tuple[int, ...]
    """For each point the one that takes its place in a mirrored image; itself if it lies on the middle line."""
    sigmas: tuple[float, ...]
    """OKS sigmas; the variance is `(2 * sigma) ** 2`."""
    skeleton: tuple[tuple[int, int], ...]
    link_colors: tuple[Color, ...]
    colors: tuple[Color, ...]
    upper_body_ids: tuple[int, ...]
    """Points of the upper half, for half-body augmentation. Some points are in neither half."""
    lower_body_ids: tuple[int, ...]
    groups: Mapping[str, tuple[int, ...]] = field(hash=False)
    """The original's groups (`body`, `foot`, `face`, ...) and limbs made from names (`left_arm`, `right_leg`, ...)."""


@dataclass(frozen=True)
class ClassSet(_Names):
    """A list of named segmentation classes. Colours are RGB, 0 to 255."""

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    swap_pairs: tuple[tuple[int, int], ...]
    """Classes that exchange their labels in a mirrored image."""
    class_weights: tuple[float, ...]
    """Cross-entropy weight of each class in the original training configuration."""
    ignore_index: int
    background_index: int
    rotate_fill_label: int
    """Label of the corners that a rotation of the label map uncovers."""
    groups: Mapping[str, tuple[int, ...]] = field(hash=False)
    """Parts made of classes: `face`, `hair`, `left_arm`, `upper_body`, `clothing`, `skin`, `person`, ..."""


class ConvertedKeypoints(NamedTuple):
    """What `convert_keypoints` returns. K is the number of points of the target set."""

    keypoints: Array
    """Coordinates `(..., K, 2)`, 0 where the source set has no such point."""
    scores: Array
    """Scores `(..., K)`, 0 where the source set has no such point."""
    mask: Array
    """Booleans `(K,)`: True where the source set has the point."""
    names: tuple[str, ...]
    """The names of the K points."""


def keypoint_set(name: str | int | KeypointSet) -> KeypointSet:
    """The keypoint set of this name, alias or number of points.

    Args:
        name: "coco" (17 points), "coco_wholebody" (133) or "goliath" (308), an alias such as "wholebody" or
            "goliath308", the number of points, or a `KeypointSet`, which is returned as it is.

    Raises:
        ValueError: if there is no such set.
    """
    if isinstance(name, KeypointSet):
        return name
    return _read_keypoint_set(_resolve("keypoint set", name, KEYPOINT_SETS, KEYPOINT_ALIASES))


def class_set(name: str | int | ClassSet) -> ClassSet:
    """The class set of this name, alias or number of classes.

    Args:
        name: "goliath28", "lip20", "cihp20" or "face_synthetics19", an alias such as "lip" or "face", the number of
            classes, or a `ClassSet`, which is returned as it is. 20 stands for LIP: CIHP has the same names, order,
            colours, swaps and weights, so nothing but the name of the returned set depends on the choice.

    Raises:
        ValueError: if there is no such set.
    """
    if isinstance(name, ClassSet):
        return name
    return _read_class_set(_resolve("class set", name, CLASS_SETS, CLASS_ALIASES))


_class_set = class_set  # part_mask has a parameter of that name


def make_keypoint_set(
    names: Sequence[str],
    *,
    name: str = "custom",
    flip_pairs: Iterable[tuple[int, int]] | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    sigmas: Sequence[float] | None = None,
) -> KeypointSet:
    """A keypoint set of one's own, for a model fine-tuned on other points.

    Args:
        names: of the points, in the model's order; a transformers config has them in `id2label`.
        name: of the set.
        flip_pairs: points that exchange places in a mirrored image; left out, they follow from "left" and "right" in
            the names.
        skeleton: links as pairs of indices.
        sigmas: OKS sigmas; left out, every point gets the mean of COCO's.

    Raises:
        ValueError: if names repeat, or a left or right point has no partner and flip_pairs are left out.
    """
    names = _distinct(names)
    pairs = _mirror_pairs(names) if flip_pairs is None else _tuples(flip_pairs)
    partner = dict(pairs) | {second: first for first, second in pairs}
    colors = _distinct_colors(len(names))
    coco = keypoint_set("coco").sigmas
    return KeypointSet(
        name=name,
        names=names,
        flip_pairs=pairs,
        flip_indices=tuple(partner.get(index, index) for index in range(len(names))),
        sigmas=(sum(coco) / len(coco),) * len(names) if sigmas is None else tuple(sigmas),
        skeleton=_tuples(skeleton),
        link_colors=tuple(colors[second] for _, second in skeleton),
        colors=colors,
        upper_body_ids=(),
        lower_body_ids=(),
        groups=_limbs(names),
    )


def make_class_set(
    names: Sequence[str],
    *,
    name: str = "custom",
    swap_pairs: Iterable[tuple[int, int]] | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int = 255,
) -> ClassSet:
    """A class set of one's own, for a model fine-tuned on other classes. The first class is the background.

    Args:
        names: of the classes, in the model's order; a transformers config has them in `id2label`.
        name: of the set.
        swap_pairs: classes that exchange labels in a mirrored image; left out, they follow from "left" and "right" in
            the names.
        class_weights: for the cross-entropy; left out, all are 1.
        ignore_index: label of pixels that do not count.

    Raises:
        ValueError: if names repeat, or a left or right class has no partner and swap_pairs are left out.
    """
    names = _distinct(names)
    return ClassSet(
        name=name,
        names=names,
        colors=(class_set("goliath28").colors[0], *_distinct_colors(len(names) - 1)),
        swap_pairs=_mirror_pairs(names) if swap_pairs is None else _tuples(swap_pairs),
        class_weights=(1.0,) * len(names) if class_weights is None else tuple(class_weights),
        ignore_index=ignore_index,
        background_index=0,
        rotate_fill_label=0,
        groups={"person": tuple(range(1, len(names)))},
    )


def convert_keypoints(
    keypoints: Array,
    scores: Array | None = None,
    *,
    source: str | int | KeypointSet | None = None,
    to: str | int | KeypointSet = "coco_wholebody",
) -> ConvertedKeypoints:
    """Re-order keypoints from one set into another, by name.

    "openpose" is BODY_25 and "openpose18" is OpenPose's COCO order. Their `neck` and `mid_hip` are, as OpenPose
    defines them, the means of the two shoulders and of the two hips, with the smaller of the two scores. That holds
    for Goliath too, so that all sources give the same skeleton; Goliath's own neck point is
    `keypoint_set("goliath").index("neck")`. From Goliath to COCO-WholeBody 53 points exist, as in the original's
    conversion (goliath_coco_wholebody_metric.py:convert_results_goliath_to_coco_wholebody): no face points, no hand
    roots, no finger roots.

    Args:
        keypoints: numpy array or torch tensor `(..., K, 2)`; integers become floats.
        scores: `(..., K)`, of the same kind. Left out, every point the source has gets the score 1.
        source: set the keypoints are in; left out, the set with K points.
        to: a keypoint set, or "openpose" or "openpose18".

    Returns:
        `ConvertedKeypoints` in the kind (and on the device) of the input; points that the source set does not have get
        coordinates and score 0.

    Raises:
        ValueError: if a set is unknown, or a shape does not fit the source set.
        TypeError: if keypoints and scores are not both arrays or both tensors.
    """
    is_torch = _is_tensor(keypoints)
    if not is_torch:
        keypoints = np.asarray(keypoints)
    if keypoints.ndim < 2 or keypoints.shape[-1] != 2:
        raise ValueError(f"keypoints have shape {tuple(keypoints.shape)}, expected (..., number of points, 2).")
    source_set = keypoint_set(keypoints.shape[-2] if source is None else source)
    if keypoints.shape[-2] != len(source_set):
        raise ValueError(
            f"keypoints have shape {tuple(keypoints.shape)}, but {source_set.name} has {len(source_set)} points: "
            f"expected (..., {len(source_set)}, 2)."
        )
    keypoints = _as_float(keypoints)
    if scores is None:
        scores = keypoints.new_ones(keypoints.shape[:-1]) if is_torch else np.ones_like(keypoints[..., 0])
    if _is_tensor(scores) != is_torch:
        kinds = f"keypoints are {type(keypoints).__name__}, scores {type(scores).__name__}"
        raise TypeError(f"{kinds}: pass two numpy arrays or two torch tensors.")
    scores = scores if is_torch else np.asarray(scores)
    if tuple(scores.shape) != tuple(keypoints.shape[:-1]):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}, but keypoints of shape {tuple(keypoints.shape)} need "
            f"{tuple(keypoints.shape[:-1])}."
        )

    names, means = _target_layout(to)
    places = source_set.label2id()
    ends = [means.get(name, (name, name)) for name in names]
    known = [first in places and second in places for first, second in ends]
    # Points that the source lacks read its point 0 here and are set to 0 at the end.
    firsts = [places[first] if ok else 0 for (first, _), ok in zip(ends, known, strict=True)]
    seconds = [places[second] if ok else 0 for (_, second), ok in zip(ends, known, strict=True)]
    converted, converted_scores = keypoints[..., firsts, :], scores[..., firsts]

    means_at = [k for k, (first, second) in enumerate(zip(firsts, seconds, strict=True)) if first != second]
    if means_at:
        others = [seconds[k] for k in means_at]
        converted[..., means_at, :] = (converted[..., means_at, :] + keypoints[..., others, :]) / 2
        minimum = sys.modules["torch"].minimum if is_torch else np.minimum
        converted_scores[..., means_at] = minimum(converted_scores[..., means_at], scores[..., others])

    missing = [k for k, ok in enumerate(known) if not ok]
    if missing:
        converted[..., missing, :] = 0
        converted_scores[..., missing] = 0
    mask = sys.modules["torch"].tensor(known, device=keypoints.device) if is_torch else np.array(known)
    return ConvertedKeypoints(converted, converted_scores, mask, names)


def part_mask(label_map: Array, *parts: str, class_set: str | int | ClassSet = "goliath28") -> Array:
    """Where a label map shows one of the named classes or part groups.

    Args:
        label_map: integers `(..., height, width)`, numpy array or torch tensor.
        *parts: exact class names ("Left_Hand") or group names ("left_arm", "hair", "clothing").
        class_set: the set the labels are in.

    Returns:
        Booleans of the same shape, kind and device. Pixels of the set's ignore index are False.

    Raises:
        ValueError: if a name is unknown, none is given, or the map holds a label that the set does not have.
    """
    classes = _class_set(class_set)
    if not parts:
        raise ValueError(f"part_mask needs a class or a group of {classes.name}: {', '.join(classes.groups)}.")
    rows = np.isin(np.arange(len(classes)), classes.indices(*parts))
    return look_up(label_map, rows, False, ignore_index=classes.ignore_index, set_name=classes.name)


def remap_labels(label_map: Array, source: str | int, to: str | int) -> Array:
    """Translate a label map into another class set; classes without a counterpart become 255 (ignored).

    There are maps from "lip20" (or "cihp20") to "goliath28" and back, and from "goliath28" to "sapiens2_29" and back.
    The last is the set of Sapiens2: `Eyeglass` in place 2 and every later class one place higher. LIP to Goliath is
    the original's table (it puts skirts under upper clothing); Goliath to LIP is this project's, by name.

    Args:
        label_map: integers `(..., height, width)` wide enough for 255, numpy array or torch tensor.
        source: the set the labels are in.
        to: the set wanted.

    Returns:
        Labels of the same shape, kind, device and integer type.

    Raises:
        ValueError: if there is no such map, or the label map holds a label that the source set does not have.
    """
    ends = [_resolve("class set", name, MAP_SETS, MAP_ALIASES) for name in (source, to)]
    key = "_to_".join(ends).replace("cihp20", "lip20")
    maps = _read_json("segmentation_classes.json")["maps"]
    if key not in maps:
        raise ValueError(f"There is no map {' to '.join(ends)}. Maps: {', '.join(maps)}.")
    if not _is_tensor(label_map):
        label_map = np.asarray(label_map)
    rows = np.array(maps[key]["mapping"])
    remapped = look_up(label_map, rows, 255, ignore_index=255, set_name=ends[0])
    return remapped.to(label_map.dtype) if _is_tensor(label_map) else remapped.astype(label_map.dtype)


def look_up(label_map: Array, rows: np.ndarray, ignored: Any, *, ignore_index: int, set_name: str) -> Array:
    """`rows[label_map]`, with the labels checked first.

    Args:
        label_map: integers `(...)`, numpy array or torch tensor.
        rows: numpy array `(num_classes, ...)`, what to read for each class.
        ignored: what to read for ignored pixels.
        ignore_index: their label, outside the classes; it may be negative.
        set_name: name of the label set, for the message.

    Returns:
        Array or tensor `(..., *rows.shape[1:])` on the label map's device.

    Raises:
        ValueError: if the labels are not integers, or one of them is not valid; the message names it.
    """
    count = len(rows)
    is_torch = _is_tensor(label_map)
    if not is_torch:
        label_map = np.asarray(label_map)
    if str(label_map.dtype).removeprefix("torch.") not in LABEL_DTYPES:
        raise ValueError(f"A label map has type {label_map.dtype}, expected one of {', '.join(LABEL_DTYPES)}.")
    labels = label_map.long() if is_torch else label_map.astype(np.int64, copy=False)
    wrong = ((labels < 0) | (labels >= count)) & (labels != ignore_index)
    if wrong.any():
        raise ValueError(
            f"The label map holds the label {int(labels[wrong][0])}, but {set_name} has the labels 0 to "
            f"{count - 1} and {ignore_index} (ignored). Is it the right class set?"
        )
    # Long enough that the ignored label falls behind the classes, counted from either end.
    table = np.full((count + abs(ignore_index) + 1, *rows.shape[1:]), ignored, dtype=rows.dtype)
    table[:count] = rows
    return sys.modules["torch"].from_numpy(table).to(labels.device)[labels] if is_torch else table[labels]


def _is_tensor(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch: who holds a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_float(values: Array) -> Array:
    if _is_tensor(values):
        return values if values.is_floating_point() else values.to(sys.modules["torch"].float32)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _unknown(message: str, name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"{message} {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")


def _resolve(kind: str, name: str | int, known: Sequence[str], aliases: Mapping[str | int, str]) -> str:
    """The set's own name for a name, an alias or a count."""
    own_names: dict[str | int, str] = {_squash(own): own for own in known}
    key = _squash(name) if isinstance(name, str) else name
    key = int(key) if isinstance(key, str) and key.isdecimal() else key  # a count, from a command line
    found = own_names.get(key) or aliases.get(key)
    if found is not None:
        return found
    counts = ", ".join(str(alias) for alias in aliases if isinstance(alias, int))
    raise ValueError(f"{_unknown(f'There is no {kind}', name, known)} Known: {', '.join(known)}; counts: {counts}.")


def _squash(name: str) -> str:
    return name.lower().translate({ord(character): None for character in "-_ "})


@cache
def _read_json(filename: str) -> dict[str, Any]:
    return json.loads((ASSETS / filename).read_text(encoding="utf-8"))


@cache
def _read_keypoint_set(name: str) -> KeypointSet:
    data = _read_json("keypoints.json")[name]
    points = data["keypoints"]
    names = tuple(point["name"] for point in points)
    return KeypointSet(
        name=name,
        names=names,
        flip_pairs=_tuples(data["flip_pairs"]),
        flip_indices=tuple(point["index"] if point["swap"] is None else point["swap"] for point in points),
        sigmas=tuple(point["sigma"] for point in points),
        skeleton=tuple(tuple(link["link"]) for link in data["skeleton"]),
        link_colors=tuple(tuple(link["color"]) for link in data["skeleton"]),
        colors=tuple(tuple(point["color"]) for point in points),
        upper_body_ids=tuple(data["upper_body_ids"]),
        lower_body_ids=tuple(data["lower_body_ids"]),
        groups={group: tuple(indices) for group, indices in data["groups"].items()} | _limbs(names),
    )


@cache
def _read_class_set(name: str) -> ClassSet:
    data = _read_json("segmentation_classes.json")[name]
    classes = data["classes"]
    names = tuple(entry["name"] for entry in classes)
    return ClassSet(
        name=name,
        names=names,
        colors=tuple(tuple(entry["color_rgb"]) for entry in classes),
        swap_pairs=_tuples(data["swap_pairs"]),
        class_weights=tuple(float(entry["ce_weight"]) for entry in classes),
        ignore_index=data["ignore_index"],
        background_index=data["background_index"],
        rotate_fill_label=data["rotate_fill_label"],
        groups={group: tuple(sorted(map(names.index, members))) for group, members in data["groups"].items()},
    )


def _tuples(pairs: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, second) for first, second in pairs)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        raise ValueError(
            f"names repeat: {', '.join(repeated)}." if repeated else "names is empty, expected at least one."
        )
    return names


def paired_by_name(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
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


def missing_pairs(names: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Names with a side that no pair holds: their labels would stay on the wrong side of a mirrored image."""
    paired = {index for pair in pairs for index in pair}
    return [name for index, name in enumerate(names) if has_side(name) and index not in paired]


def _mirror_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """`paired_by_name`, or a ValueError that names a left or right one without a partner."""
    pairs = paired_by_name(names)
    for name in missing_pairs(names, pairs):
        raise ValueError(
            f"{name!r} has no partner {other_side(name)!r} to change places with in a mirrored image: rename it, "
            "or give the pairs yourself."
        )
    return pairs


def _distinct_colors(count: int) -> tuple[Color, ...]:
    """Colours whose hues lie a golden ratio apart, so that neighbours in the list differ."""
    hues = [(0.618034 * k) % 1 for k in range(count)]
    return tuple(tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.75, 0.95)) for hue in hues)


def _limbs(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Groups that every set can have, from the joints' names; a group without a point is left out."""
    members = {"head": HEAD, "torso": TORSO}
    for side in ("left", "right"):
        members |= {f"{side}_{limb}": tuple(f"{side}_{joint}" for joint in joints) for limb, joints in LIMBS.items()}
    present = {group: [joint for joint in joints if joint in names] for group, joints in members.items()}
    return {group: tuple(map(names.index, joints)) for group, joints in present.items() if joints}


def _target_layout(to: str | int | KeypointSet) -> tuple[tuple[str, ...], Mapping[str, tuple[str, str]]]:
    """Names of a target layout, and those of them that are the mean of two points."""
    if isinstance(to, KeypointSet):
        return to.names, {}
    name = _resolve("keypoint layout", to, (*KEYPOINT_SETS, *OPENPOSE_NAMES), TARGET_ALIASES)
    return (OPENPOSE_NAMES[name], OPENPOSE_MEANS) if name in OPENPOSE_NAMES else (keypoint_set(name).names, {})

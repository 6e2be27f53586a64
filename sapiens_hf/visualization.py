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
"""Pictures of the four tasks: pure functions, PIL in, PIL out, inputs never changed.

`draw_keypoints`, `draw_segmentation`, `draw_depth` and `draw_normals` each make one picture, `side_by_side` puts
pictures together. Arrays may be numpy arrays or torch tensors. Line widths and letters grow with the picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import labels
from .image_loading_sapiens import read_image, read_map
from .labels import Array, ClassSet, Color, ConvertedKeypoints, KeypointSet

NO_PERSON_GREY = 100  # the original's background in depth pictures (lite/demo/vis_depth.py:img_save_and_viz)
PAPER, INK, LINE = (255, 255, 255), (32, 32, 36), (150, 150, 155)
BOX_COLORS: tuple[Color, ...] = ((255, 214, 10), (64, 200, 255), (255, 105, 180), (120, 230, 90), (255, 140, 60))

# Sizes as a share of the picture's mean side, the square root of its area.
POINT_RADIUS = 0.0062
LEGEND_LETTERS, CAPTION_LETTERS = 0.024, 0.034
# No point is larger than this share of the diagonal of its person's points: small people keep their shape.
POINT_RADIUS_OF_PERSON = 0.011
# Point radius by group, relative to the body's: 238 face points at full size would hide the face.
GROUP_SIZES = {"face": 0.38, "left_hand": 0.55, "right_hand": 0.55, "extra": 0.6}
BAND_ROWS = 48
LINK_THICKNESS = 1.0  # relative to the point radius


class _Person(NamedTuple):
    points: np.ndarray  # (M, 2)
    scores: np.ndarray  # (M,)
    indices: np.ndarray  # (M,) places in the keypoint set
    box: np.ndarray | None  # x_min, y_min, x_max, y_max


def draw_keypoints(
    image: Image.Image | Array,
    people: Any,
    keypoint_set: str | int | KeypointSet | None = None,
    threshold: float = 0.3,
    radius: float | None = None,
    thickness: float | None = None,
    draw_boxes: bool = False,
) -> Image.Image:
    """Draw the skeletons and points of people.

    Args:
        image: what the image processors take: a PIL image of any mode, a path, or an array `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` of 8-bit or 16-bit integers or floats. Floats up
            to 1 are read as 0 to 1, larger ones as 0 to 255. EXIF rotation is applied.
        people: what `post_process_pose_estimation` or the keypoint-detection pipeline returns for one image, one such
            person, an array `(people, K, 2)` or `(people, K, 3)` with scores, `(K, 2)` or `(K, 3)`, a list of those,
            or the result of `convert_keypoints`. Points that a person lacks (`labels` with a part of the set) are
            left out, with their links; so are points more than one picture away from the picture's border.
        keypoint_set: name, count or `KeypointSet`; left out, the set with as many points as each person has.
        threshold: points with a score above it are drawn; a link needs both ends. Points without scores are drawn.
        radius: of a body point in pixels. Hands and faces get smaller ones. Left out, it follows picture and person.
        thickness: of a body link in pixels; left out, it follows the radius.
        draw_boxes: also draw each person's box, where there is one.

    Returns:
        A new RGB picture of the same size.

    Raises:
        ValueError: if shapes do not fit each other or the keypoint set, or a label is not in the set.
    """
    canvas = _read_image(image)
    height, width = canvas.shape[:2]
    largest = POINT_RADIUS * _side(canvas)
    for number, (person, points_of) in enumerate(_read_people(people, keypoint_set)):
        if draw_boxes and person.box is not None:
            _draw_box(canvas, person.box, BOX_COLORS[number % len(BOX_COLORS)], max(1.0, 0.4 * largest))
        near = np.abs(person.points - (width / 2, height / 2)) <= (1.5 * width, 1.5 * height)  # False for NaN
        shown = near.all(axis=1) & (person.scores > threshold)
        unit = _point_radius(person.points[shown], largest) if radius is None else radius
        _draw_person(canvas, person, shown, points_of, unit, LINK_THICKNESS * unit if thickness is None else thickness)
    return Image.fromarray(canvas)


def draw_segmentation(
    image: Image.Image | Array,
    label_map: Array | Image.Image,
    class_set: str | int | ClassSet = "goliath28",
    opacity: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """Paint every pixel with its class colour, and list the present classes below the picture.

    As in the original (lite/demo/vis_seg.py:img_save_and_viz) the background is painted too and values are truncated.
    Ignored pixels stay as they are.

    Args:
        image: as for `draw_keypoints`.
        label_map: integers `(height, width)`: array, tensor or PIL image, of the picture's size.
        class_set: name, count or `ClassSet` of the labels.
        opacity: 0 leaves the picture, 1 shows colours only.
        legend: append a strip with colour and name of each class that occurs. The picture above it keeps its size.

    Returns:
        A new RGB picture; with a legend it is higher, and wider if the names need it.

    Raises:
        ValueError: if the sizes differ, a label is not in the class set, or opacity is outside [0, 1].
    """
    pixels, classes = _read_image(image), labels.class_set(class_set)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, expected a number from 0 to 1.")
    found = _read_map(label_map, "label_map", pixels.shape[:2])
    if found.dtype.kind == "f" and np.isfinite(found).all() and (found == np.rint(found)).all():
        found = found.astype(np.int64)
    count = len(classes)
    rows = np.arange(count, dtype=np.uint16)
    found = labels.look_up(found, rows, count, ignore_index=classes.ignore_index, set_name=classes.name)

    colors = np.array([*classes.colors, (0, 0, 0)], dtype=np.float32)  # one more row for ignored pixels
    painted = np.empty_like(pixels)
    for channel in range(3):  # one by one: all at once would need eight times the photo's memory
        painted[..., channel] = pixels[..., channel] * np.float32(1 - opacity) + (colors[:, channel] * opacity)[found]
    painted[found == count] = pixels[found == count]
    picture = Image.fromarray(painted)
    present = np.flatnonzero(np.bincount(found.ravel(), minlength=count)[:count])
    if not legend or present.size == 0:
        return picture
    return _append_legend(picture, [(classes.names[k].replace("_", " "), classes.colors[k]) for k in present])


def draw_depth(image: Image.Image | Array | None, depth: Array, mask: Array | None = None) -> Image.Image:
    """Colour relative depth with inferno: the nearest person pixel is brightest, the rest of the picture is grey.

    The colours span the person's own range, as in the original (lite/demo/vis_depth.py:img_save_and_viz).

    Args:
        image: the photo the depth belongs to, whose size is then checked, or None. It is not seen in the result.
        depth: `(height, width)`, larger is farther. Floats, half precision or integers.
        mask: `(height, width)`, true or positive on people; left out, all of the picture counts. Pixels with NaN or
            infinite depth never count.

    Returns:
        A new RGB picture of the depth map's size; plain grey if there is no person.

    Raises:
        ValueError: if a shape is not as expected or the sizes differ.
    """
    values = _read_map(depth, "depth", None if image is None else _read_image(image).shape[:2])
    person = np.isfinite(values) & _read_mask(mask, values.shape)
    picture = np.full((*values.shape, 3), NO_PERSON_GREY, dtype=np.uint8)
    if person.any():
        values = values[person].astype(np.float64 if values.dtype.itemsize > 4 else np.float32, copy=False)
        nearest, farthest = values.min(), values.max()
        nearness = 1 - (values - nearest) / (farthest - nearest if farthest > nearest else 1)
        picture[person] = _inferno()[(nearness * 255).astype(np.uint8)]
    return Image.fromarray(picture)


def draw_normals(normals: Array, mask: Array | None = None) -> Image.Image:
    """Show surface normals as colours: red is X, green Y, blue Z, each from -1 (0) to 1 (255).

    As in the original (lite/demo/vis_normal.py:img_save_and_viz) values are truncated to whole numbers.

    Args:
        normals: `(3, height, width)`, unit length.
        mask: `(height, width)`, true or positive on people; the rest is black. NaN and infinite normals are black too.

    Returns:
        A new RGB picture.

    Raises:
        ValueError: if a shape is not as expected or the sizes differ.
    """
    values = _to_numpy(read_map(normals, "normals", num_channels=3)).transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    shown = np.isfinite(values).all(axis=-1) & _read_mask(mask, values.shape[:2])
    picture = np.zeros(values.shape, dtype=np.uint8)
    picture[shown] = ((values[shown].clip(-1, 1) + 1) / 2 * 255).astype(np.uint8)
    return Image.fromarray(picture)


def side_by_side(images: Sequence[Image.Image | Array], captions: Sequence[str] | None = None) -> Image.Image:
    """Put pictures in a row, tops aligned, with a caption above each.

    Args:
        images: at least one, each as for `draw_keypoints`; sizes may differ and are kept.
        captions: one per picture. A long one is set smaller, and shortened where even that is too wide.

    Returns:
        A new RGB picture on white.

    Raises:
        ValueError: if there is no picture, or the numbers of pictures and captions differ.
    """
    if not len(images):
        raise ValueError("side_by_side got no images, expected at least one.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"side_by_side got {len(captions)} captions for {len(images)} images: give one for each.")
    panels = [_read_image(image) for image in images]
    size = float(np.mean([_side(panel) for panel in panels]))
    gap, letters = max(2, round(0.012 * size)), max(10, round(CAPTION_LETTERS * size))
    header = round(1.9 * letters) if captions is not None else 0
    row = Image.new(
        "RGB",
        (sum(panel.shape[1] + gap for panel in panels) - gap, header + max(panel.shape[0] for panel in panels)),
        PAPER,
    )
    draw, left = ImageDraw.Draw(row), 0
    for panel, caption in zip(panels, captions or [""] * len(panels), strict=True):
        row.paste(Image.fromarray(panel), (left, header))
        text, font = _fit(caption, letters, panel.shape[1])
        draw.text((left + panel.shape[1] / 2, header / 2), text, fill=INK, font=font, anchor="mm")
        left += panel.shape[1] + gap
    return row


def _draw_person(
    canvas: np.ndarray, person: _Person, shown: np.ndarray, points_of: KeypointSet, unit: float, stroke: float
) -> None:
    """Links first and points over them, so that no line covers a joint.

    Dark rims keep light colours visible on light clothes; on tiny marks they would be all there is, so they fade.
    """
    sizes = np.ones(len(points_of))
    for group, size in GROUP_SIZES.items():
        sizes[list(points_of.groups.get(group, ()))] = size
    place = {int(index): person.points[row] for row, index in enumerate(person.indices) if shown[row]}
    for (first, second), color in zip(points_of.skeleton, points_of.link_colors, strict=True):
        if first in place and second in place:
            half = stroke / 2 * min(sizes[first], sizes[second])
            _stroke(canvas, place[first], place[second], 1.5 * half, INK, min(0.35, half / 4))
            _stroke(canvas, place[first], place[second], half, color, 0.9)
    for index, point in place.items():
        point_radius = unit * sizes[index]
        _stroke(canvas, point, point, 1.2 * point_radius, INK, min(1.0, point_radius / 3))
        _stroke(canvas, point, point, point_radius, points_of.colors[index])


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: Color, stroke: float) -> None:
    left, top, right, bottom = box
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        _stroke(canvas, start, end, stroke / 2, color)


def _stroke(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, color: Color, opacity: float = 1.0
) -> None:
    """Blend a line with round ends, or a disc if start is end, into the canvas, with smooth edges at any size.

    A pixel is covered as far as its centre lies inside the outline, over a border of one pixel. Rows are done in
    bands, each as wide as the line is there, so that a long diagonal costs its length and not its bounding box.
    """
    height, width = canvas.shape[:2]
    reach, along = radius + 1, end - start
    top = max(int(np.floor(min(start[1], end[1]) - reach)), 0)
    bottom = min(int(np.ceil(max(start[1], end[1]) + reach)) + 1, height)
    for y_min in range(top, bottom, BAND_ROWS):
        y_max = min(y_min + BAND_ROWS, bottom)
        # Shares of the line's length between which it comes within reach of this band.
        rows = np.array([y_min - reach, y_max + reach])
        shares = ((rows - start[1]) / along[1]).clip(0, 1) if along[1] else np.array([0, 1])
        columns = start[0] + shares * along[0]
        x_min, x_max = max(int(columns.min() - reach), 0), min(int(columns.max() + reach) + 2, width)
        if x_min >= x_max:
            continue
        x = np.arange(x_min, x_max, dtype=np.float32) - np.float32(start[0])
        y = np.arange(y_min, y_max, dtype=np.float32)[:, None] - np.float32(start[1])
        along_x, along_y = along.astype(np.float32)
        # Foot of the perpendicular from each pixel onto the line, as a share of its length.
        foot = ((x * along_x + y * along_y) / max(along_x**2 + along_y**2, np.float32(1e-12))).clip(0, 1)
        distance = np.hypot(x - foot * along_x, y - foot * along_y)
        cover = (np.float32(radius + 0.5) - distance).clip(0, 1)[..., None] * np.float32(opacity)
        window = canvas[y_min:y_max, x_min:x_max]
        window[:] = np.rint(window + cover * (np.array(color, dtype=np.float32) - window))


def _append_legend(picture: Image.Image, entries: list[tuple[str, Color]]) -> Image.Image:
    """The picture with a strip below it: as many columns as fit, read downwards."""
    letters = max(11, round(LEGEND_LETTERS * _side(np.asarray(picture))))
    font = ImageFont.load_default(letters)
    row, pad = round(1.6 * letters), letters
    column = round(2.4 * letters + max(font.getlength(name) for name, _ in entries))
    columns = max(1, min(len(entries), (picture.width - pad) // column))
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)  # no empty columns
    size = (max(picture.width, columns * column + pad), picture.height + rows * row + pad)
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for k, (name, color) in enumerate(entries):
        left, middle = pad + k // rows * column, picture.height + pad / 2 + (k % rows + 0.5) * row
        square = (left, round(middle - 0.45 * letters), left + round(0.9 * letters), round(middle + 0.45 * letters))
        draw.rectangle(square, fill=color, outline=LINE, width=max(1, letters // 16))
        draw.text((left + 1.4 * letters, middle), name, fill=INK, font=font, anchor="lm")
    return sheet


def _fit(text: str, letters: int, width_px: float) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The text and a font in which it is at most width_px wide: smaller letters first, then fewer of them."""
    font = ImageFont.load_default(letters)
    if font.getlength(text) > width_px:
        font = ImageFont.load_default(max(8, int(letters * width_px / font.getlength(text))))
    short = text
    while short and font.getlength(text) > width_px:
        short = short[:-1]
        text = f"{short.rstrip()}..." if short else ""
    return text, font


def _side(pixels: np.ndarray) -> float:
    """Mean side in pixels: the square root of the area."""
    return float(np.sqrt(pixels.shape[0] * pixels.shape[1]))


def _point_radius(points: np.ndarray, largest: float) -> float:
    """Radius of a body point in pixels: smaller for a small person, so that points stay apart."""
    extent = float(np.hypot(*np.ptp(points, axis=0))) if len(points) > 1 else np.inf
    return max(1.0, min(largest, POINT_RADIUS_OF_PERSON * extent))


def _to_numpy(values: Any) -> np.ndarray:
    """A numpy array of numpy's own types, from a tensor on any device, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
    return np.asarray(values)


def _read_image(image: Any) -> np.ndarray:
    """Colours (height, width, 3) as uint8, read as the image processors read them; a new array."""
    pixels = read_image(image, "image", expects_levels=False)
    if pixels.is_floating_point():
        pixels = (pixels * (255 if float(pixels.max()) <= 1 else 1)).round().clamp(0, 255).byte()
    return np.array(_to_numpy(pixels).transpose(1, 2, 0), order="C")  # (3, H, W) -> (H, W, 3)


def _read_map(values: Any, name: str, size: tuple[int, ...] | None) -> np.ndarray:
    """One number per pixel, (height, width), of the given size if there is one."""
    numbers = _to_numpy(read_map(values, name))
    if size is not None and numbers.shape != size:
        raise ValueError(
            f"{name} is {numbers.shape[0]} x {numbers.shape[1]} pixels (height x width), but the picture it belongs "
            f"to is {size[0]} x {size[1]}: ask post-processing for target_sizes=[{size}]."
        )
    return numbers


def _read_mask(mask: Any, size: tuple[int, ...]) -> np.ndarray:
    return np.ones(size, dtype=bool) if mask is None else _read_map(mask, "mask", size) > 0


@cache
def _inferno() -> np.ndarray:
    """The 256 RGB colours of matplotlib's inferno (CC0), equal to OpenCV's `COLORMAP_INFERNO`."""
    table = json.loads((labels.ASSETS / "inferno.json").read_text(encoding="utf-8"))["rgb_hex"]
    return np.frombuffer(bytes.fromhex("".join(table)), dtype=np.uint8).reshape(256, 3)


def _read_people(people: Any, keypoint_set: str | int | KeypointSet | None) -> Iterator[tuple[_Person, KeypointSet]]:
    """Every person with the keypoint set of its points, from any of the forms that `draw_keypoints` takes."""
    if isinstance(people, ConvertedKeypoints):
        people = np.concatenate([_to_numpy(people.keypoints), _to_numpy(people.scores)[..., None]], axis=-1)
    if isinstance(people, Mapping):
        people = [people]
    elif not isinstance(people, (list, tuple)):
        people = _to_numpy(people)
        if people.ndim not in (2, 3):
            raise ValueError(f"people have shape {people.shape}, expected (people, K, 2), (people, K, 3) or (K, 2).")
        people = people[None] if people.ndim == 2 else people
    for person in people:
        yield _read_person(person, keypoint_set)


def _read_person(person: Any, keypoint_set: str | int | KeypointSet | None) -> tuple[_Person, KeypointSet]:
    if not isinstance(person, Mapping):
        person = {"keypoints": person}
    elif "keypoints" not in person:
        raise ValueError(f"A person has the entries {sorted(person)}, expected 'keypoints' among them.")
    points, scores, indices = person["keypoints"], person.get("scores"), person.get("labels")
    names = None
    if isinstance(points, (list, tuple)) and points and isinstance(points[0], Mapping):  # a pipeline's
        names, scores = [point["label"] for point in points], [point["score"] for point in points]
        points = [(point["x"], point["y"]) for point in points]
    points = _to_numpy(points).astype(np.float64)
    points = points.reshape(0, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"A person's keypoints have shape {points.shape}, expected (K, 2), or (K, 3) with scores.")
    count = len(points)
    if scores is None:
        scores = points[:, 2] if points.shape[1] == 3 else np.full(count, np.inf)
    scores = _to_numpy(scores)

    if keypoint_set is None:
        whole = indices is None or np.array_equal(_to_numpy(indices), np.arange(count))
        if count and not (whole and count in labels.KEYPOINT_ALIASES):
            raise ValueError(f"A person has {count} keypoints, part of a set: say which one with keypoint_set=.")
        keypoint_set = count or labels.KEYPOINT_SETS[0]  # nothing to draw: any set will do
    points_of = labels.keypoint_set(keypoint_set)
    if names is not None:
        indices = [points_of.index(name) for name in names]
    elif indices is None and count not in (0, len(points_of)):
        raise ValueError(f"A person has {count} keypoints without labels, but {points_of.name} has {len(points_of)}.")
    indices = np.arange(count) if indices is None else _to_numpy(indices).astype(np.int64)
    if scores.shape != (count,) or indices.shape != (count,):
        raise ValueError(
            f"A person has keypoints of shape {points.shape}, scores {scores.shape} and labels {indices.shape}: "
            "expected one score and one label per keypoint."
        )
    if ((indices < 0) | (indices >= len(points_of))).any():
        found = f"Keypoint labels run from {indices.min()} to {indices.max()}"
        raise ValueError(f"{found}, but {points_of.name} has {len(points_of)} points, counted from 0.")
    return _Person(points[:, :2], scores, indices, _read_box(person)), points_of


def _read_box(person: Mapping[str, Any]) -> np.ndarray | None:
    """The box as x_min, y_min, x_max, y_max: post-processing's "bbox" or the pipeline's "box"."""
    if "box" in person:
        return np.array([person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")], dtype=np.float64)
    return _to_numpy(person["bbox"]).astype(np.float64).reshape(4) if "bbox" in person else None

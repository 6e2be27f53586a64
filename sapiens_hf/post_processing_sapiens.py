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
# See the License for the specific language governing permissions and
# limitations under the License.
"""From model outputs to results at the size of the source image, for both image processors.

Everything runs on the device of the outputs, in float32. Dense maps are resized the way the original does, in two
bilinear steps: head output -> network input -> source; `resize="direct"` is the single step of its small demo. The two
differ visibly in label maps.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .heatmaps_sapiens import as_plain, boxes_to_crops, crop_to_image, decode_heatmaps, validate_boxes

RESIZE_MODES = ("two_step", "direct")
HEATMAP_SHAPE = ("num_people", "num_keypoints", "height", "width")
# A band of a label map on the CPU: bytes of its half-resized logits, so that labels of any photo take little memory,
# and elements of one line of it: torch splits operations above 32768 elements over its threads, see below.
BAND_BYTES = 24 * 2**20
LINE_ELEMENTS = 2**15
# Columns of labels that are collected before they are transposed into place.
COLUMN_BLOCK = 64


Size = tuple[int, int]
Taps = tuple[Tensor, Tensor, Tensor]


class SapiensPostProcessingMixin:
    """The `post_process_*` methods of the image processors; `self.size` is the network input."""

    size: Any

    @torch.no_grad()
    def post_process_pose_estimation(
        self,
        outputs: Any,
        boxes: Sequence[Any],
        outputs_flipped: Any = None,
        kernel_size: int = 11,
        threshold: float | None = None,
        keypoint_indices: Sequence[int] | Tensor | None = None,
        source_sizes: Sequence[Size] | Tensor | None = None,
        target_sizes: Sequence[Size] | Tensor | None = None,
        size: Any = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Heatmaps -> keypoints in the pixels of each image.

        Args:
            outputs: output with `heatmaps` (num_people, num_keypoints, height, width), people of all images in order.
            boxes: the COCO boxes (x, y, width, height) that the crops were made from, nested per image.
            outputs_flipped: output for the mirrored crops with its heatmaps already mirrored back
                (`model(pixels.flip(-1), flip_pairs=...)`); both heatmaps are averaged.
            kernel_size: odd size of the blur before the sub-pixel step; the original's 11 fits these models.
            threshold: keep only keypoints whose score is strictly above it.
            keypoint_indices: decode only these keypoints, each once, in this order; the numbers are those of a full
                decode. A mask is not taken, but `mask.nonzero()[:, 0]` is.
            source_sizes: (height, width) of each image as the boxes measure it; only with `target_sizes`.
            target_sizes: (height, width) of each image as the results should measure it.
            size: (height, width) of the crops, if it was not the processor's; the heatmaps have the same aspect ratio.

        Returns:
            Per image, per person: `keypoints` (num_keypoints, 2) as float32 (x, y), `scores` (num_keypoints,),
            `labels` (num_keypoints,) with the keypoints' indices, and `bbox` (4,) as corners (x1, y1, x2, y2). An
            image without boxes gives [].

        Raises:
            ValueError: when counts of images, people or sizes disagree, a box or a keypoint index is unusable, or
                `outputs` are those of another task.

        Source: original mmpose `TopdownPoseEstimator.predict` and `add_pred_to_datasample`.
        """
        heatmaps = every_heatmap = _read_maps(outputs, "heatmaps", HEATMAP_SHAPE)
        image_boxes = validate_boxes(boxes, len(boxes) if hasattr(boxes, "__len__") else 0)
        flat_boxes = torch.cat([*image_boxes, torch.zeros(0, 4, dtype=torch.float64)])
        if len(heatmaps) != len(flat_boxes):
            raise ValueError(
                f"heatmaps have shape {tuple(heatmaps.shape)} but boxes hold {len(flat_boxes)} people in "
                f"{len(image_boxes)} images; pass the boxes the crops were made from, one row of heatmaps each."
            )
        network_size = self._network_size(size)
        if len(heatmaps) and heatmaps.shape[2] * network_size[1] != heatmaps.shape[3] * network_size[0]:
            raise ValueError(
                f"heatmaps are {heatmaps.shape[2]} x {heatmaps.shape[3]} (height x width), not of the aspect ratio of "
                f"crops of {network_size[0]} x {network_size[1]}; pass size=(height, width) of the model's crops."
            )
        factors = _keypoint_factors(source_sizes, target_sizes, [len(b) for b in image_boxes])

        labels = _keypoint_labels(keypoint_indices, heatmaps.shape[1]).to(heatmaps.device)
        if keypoint_indices is not None:
            heatmaps = heatmaps.index_select(1, labels)
        if outputs_flipped is not None:
            flipped = _read_maps(outputs_flipped, "heatmaps", HEATMAP_SHAPE)
            if flipped.shape != every_heatmap.shape:
                raise ValueError(f"heatmaps are {tuple(every_heatmap.shape)}, flipped ones {tuple(flipped.shape)}.")
            flipped = flipped if keypoint_indices is None else flipped.index_select(1, labels)
            heatmaps = (heatmaps.float() + flipped.float()) * 0.5

        grid_keypoints, scores = decode_heatmaps(heatmaps, kernel_size)
        # Boxes may be doubles; image positions are rounded to single precision once, at the end.
        centers, scales = boxes_to_crops(flat_boxes, network_size)
        on_cpu = grid_keypoints.to("cpu", torch.float64)
        keypoints = crop_to_image(on_cpu, centers, scales, heatmaps.shape[-2:]) * factors[:, None]
        corners = torch.cat([flat_boxes[:, :2], flat_boxes[:, :2] + flat_boxes[:, 2:]], dim=1) * factors.repeat(1, 2)
        keypoints, corners = (v.to(heatmaps.device, torch.float32) for v in (keypoints, corners))

        people = []
        for person_keypoints, person_scores, bbox in zip(keypoints, scores, corners):
            kept = slice(None) if threshold is None else person_scores > threshold
            person = {"keypoints": person_keypoints[kept], "scores": person_scores[kept], "labels": labels[kept]}
            people.append(person | {"bbox": bbox})
        remaining = iter(people)
        return [[next(remaining) for _ in one_image] for one_image in image_boxes]

    @torch.no_grad()
    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | Tensor | None = None,
        return_segmentation_scores: bool = False,
        return_probabilities: bool = False,
        resize: str = "two_step",
        size: Any = None,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Logits -> the class of every pixel: the largest logit after resizing, as the original.

        Label maps alone never hold the resized logits: 200 MB beyond the logits are enough for a 4K photo.

        Args:
            outputs: output with `logits` (batch_size, num_labels, height, width).
            target_sizes: (height, width) of each source image; without it the maps keep the size of the logits.
            return_segmentation_scores: also return the resized logits (num_labels, height, width) of each image.
            return_probabilities: as `return_segmentation_scores`, but the softmax of the resized logits.
            resize: "two_step" (head output -> network input -> source, the original) or "direct" (head output ->
                source).
            size: (height, width) of the network input, if it was not the processor's.

        Returns:
            Per image an int64 tensor (height, width); with scores a `SemanticSegmentationPostProcessorOutput` with
            `segmentation` and `segmentation_scores`.

        Raises:
            ValueError: for another number of sizes than images, unusable sizes, an unknown `resize` or outputs of
                another task.

        Source: original mmseg `BaseDecodeHead.predict_by_feat` and `BaseSegmentor.postprocess_result`.
        """
        logits = _read_maps(outputs, "logits", ("batch_size", "num_labels", "height", "width"))
        chains = self._resize_chains(len(logits), target_sizes, resize, size)
        results = []
        for image_logits, chain in zip(logits, chains):
            labels = _label_map(image_logits, chain)
            if not (return_segmentation_scores or return_probabilities):
                results.append(labels)
                continue
            scores = _resize(image_logits, chain)
            if return_probabilities:
                scores = scores.softmax(dim=0)
            data = {"segmentation": labels, "segmentation_scores": scores}
            results.append(SemanticSegmentationPostProcessorOutput(data=data))
        return results

    @torch.no_grad()
    def post_process_depth_estimation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | Tensor | None = None,
        resize: str = "two_step",
        size: Any = None,
    ) -> list[dict[str, Tensor]]:
        """Depth maps at the size of the source: relative, 0 nearest and 1 farthest on the person, meaningless off it.

        Args:
            outputs: output with `predicted_depth` (batch_size, height, width).
            target_sizes: (height, width) of each source image; without it the maps keep their size.
            resize: "two_step" or "direct", as for segmentation.
            size: (height, width) of the network input, if it was not the processor's.

        Returns:
            Per image `{"predicted_depth": float32 (height, width)}`.

        Raises:
            ValueError: for another number of sizes than images, unusable sizes, an unknown `resize` or outputs of
                another task.
        """
        depth = _read_maps(outputs, "predicted_depth", ("batch_size", "height", "width"))
        chains = self._resize_chains(len(depth), target_sizes, resize, size)
        return [{"predicted_depth": _resize(one[None], chain)[0]} for one, chain in zip(depth, chains)]

    @torch.no_grad()
    def post_process_normal_estimation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | Tensor | None = None,
        resize: str = "two_step",
        size: Any = None,
    ) -> list[dict[str, Tensor]]:
        """Surface normals of unit length at the size of the source, normalised after resizing.

        Args:
            outputs: output with `predicted_normal` (batch_size, 3, height, width), of any length.
            target_sizes: (height, width) of each source image; without it the maps keep their size.
            resize: "two_step" or "direct", as for segmentation.
            size: (height, width) of the network input, if it was not the processor's.

        Returns:
            Per image `{"normals": float32 (3, height, width)}` in camera space, divided by their norm + 1e-5.

        Raises:
            ValueError: for another number of sizes than images, unusable sizes, an unknown `resize` or outputs of
                another task.

        Source: original `demo_normal_vis.py`.
        """
        normals = _read_maps(outputs, "predicted_normal", ("batch_size", 3, "height", "width"))
        chains = self._resize_chains(len(normals), target_sizes, resize, size)
        results = []
        for one, chain in zip(normals, chains):
            resized = _resize(one, chain)
            results.append({"normals": resized / (resized.norm(dim=0, keepdim=True) + 1e-5)})
        return results

    def _network_size(self, size: Any) -> Size:
        size = self.size if size is None else size
        if hasattr(size, "height") and hasattr(size, "width"):
            size = (size.height, size.width)
        elif isinstance(size, dict):
            size = (size.get("height"), size.get("width"))
        return _read_size(size, "size")

    def _resize_chains(self, num_images: int, target_sizes: Any, resize: str, size: Any) -> list[list[Size]]:
        """The sizes each image's maps go through, in order; none without `target_sizes`."""
        if resize not in RESIZE_MODES:
            near = get_close_matches(str(resize), RESIZE_MODES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"resize is {resize!r}, expected one of {', '.join(map(repr, RESIZE_MODES))}.{hint}")
        if target_sizes is None:
            return [[] for _ in range(num_images)]
        targets = _read_sizes(target_sizes, num_images, "target_sizes", "maps")
        through = [self._network_size(size)] if resize == "two_step" else []
        return [[*through, target] for target in targets]


def _read_maps(outputs: Any, field: str, shape: tuple[str | int, ...]) -> Tensor:
    """The tensor `field` of model outputs or of a dict, of that many dimensions."""
    expected = f"expected `{field}` ({', '.join(map(str, shape))})"
    maps = outputs.get(field) if isinstance(outputs, Mapping) else getattr(outputs, field, None)
    if not isinstance(maps, Tensor):
        fields = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", ())
        what = f"with {', '.join(map(str, fields))}" if len(fields) else "without any field"
        if maps is not None:
            what = f"whose {field} is {type(maps).__name__}"
        raise ValueError(f"outputs is {type(outputs).__name__} {what}; {expected}: that of a model for this task.")
    fits = maps.ndim == len(shape) and all(isinstance(s, str) or s == got for s, got in zip(shape, maps.shape))
    if not fits:
        raise ValueError(f"{field} has shape {tuple(maps.shape)}, {expected}.")
    return maps


def _read_size(size: Any, name: str) -> Size:
    try:
        values = size.tolist() if hasattr(size, "tolist") else list(size)
        height, width = (int(v) for v in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {size!r}, expected (height, width).") from error
    if height <= 0 or width <= 0 or [height, width] != values:
        raise ValueError(f"{name} is {size!r}, expected (height, width) as whole numbers above 0.")
    return height, width


def _read_sizes(sizes: Any, count: int, name: str, of: str) -> list[Size]:
    if len(sizes) != count:
        raise ValueError(f"{name} has {len(sizes)} entries for {count} {of}; pass one (height, width) each.")
    return [_read_size(size, f"{name}[{index}]") for index, size in enumerate(sizes)]


def _keypoint_factors(source_sizes: Any, target_sizes: Any, num_people: list[int]) -> Tensor:
    """Per person the factors (x, y) from source to target pixels, float64 (num_people, 2)."""
    if source_sizes is not None:
        sources = _read_sizes(source_sizes, len(num_people), "source_sizes", "images")
    if target_sizes is None:
        return torch.ones(sum(num_people), 2, dtype=torch.float64)
    targets = _read_sizes(target_sizes, len(num_people), "target_sizes", "images")
    if source_sizes is None:
        raise ValueError("target_sizes needs source_sizes: the (height, width) of each image that the boxes refer to.")
    ratios = [(target[1] / source[1], target[0] / source[0]) for source, target in zip(sources, targets)]
    per_image = torch.tensor(ratios, dtype=torch.float64).reshape(-1, 2)
    return per_image.repeat_interleave(torch.tensor(num_people, dtype=torch.long), dim=0)


def _keypoint_labels(keypoint_indices: Sequence[int] | Tensor | None, num_keypoints: int) -> Tensor:
    if keypoint_indices is None:
        return torch.arange(num_keypoints)
    expected = f"expected whole numbers from 0 to {num_keypoints - 1}, each at most once"
    given = as_plain(keypoint_indices)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"keypoint_indices is {given!r}, {expected}.")
    indices: dict[int, None] = {}  # a set that keeps its order
    for index in map(as_plain, given):
        if type(index) is not int or not 0 <= index < num_keypoints:
            hint = "; a mask becomes indices with mask.nonzero()[:, 0]" if isinstance(index, bool) else ""
            raise ValueError(f"keypoint_indices holds {index!r}, {expected}{hint}.")
        if index in indices:
            raise ValueError(f"keypoint_indices holds {index} twice, {expected}.")
        indices[index] = None
    return torch.tensor(list(indices), dtype=torch.long)


def _resize(maps: Tensor, chain: Sequence[Size]) -> Tensor:
    """Maps (channels, height, width) -> float32 maps at the last size of the chain."""
    maps = maps.float()
    for size in chain:
        maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    return maps


def _label_map(logits: Tensor, chain: Sequence[Size]) -> Tensor:
    """Index of the largest of the resized logits (num_labels, height, width), as int64 (height, width).

    On the CPU torch spends most of its time in the argmax over the outermost dimension, hence a way of its own for it.
    """
    if not chain:
        return logits.argmax(dim=0)
    # A sum is finite only if every logit is. Others have to meet weights exactly as in torch's own resize.
    if logits.device.type == "cpu" and bool(logits.float().sum().isfinite()):
        return _label_map_by_columns(logits, chain)
    return _label_map_by_labels(logits, chain)


def _label_map_by_labels(logits: Tensor, chain: Sequence[Size]) -> Tensor:
    """Resize one label's logits after the other, and remember the best so far."""
    best = _resize(logits[:1], chain)[0]
    labels = torch.zeros(chain[-1], dtype=torch.int64, device=logits.device)
    for label in range(1, len(logits)):
        scores = _resize(logits[label : label + 1], chain)[0]
        # As argmax: the first of equal scores stays, and the first NaN beats every number.
        labels.masked_fill_(~(scores <= best) & ~best.isnan(), label)
        torch.maximum(best, scores, out=best)
    return labels


def _label_map_by_columns(logits: Tensor, chain: Sequence[Size]) -> Tensor:
    """Resize a band of rows along the height, then make its columns one at a time and reduce them in the cache."""
    num_labels, logits_height, logits_width = logits.shape
    height, width = chain[-1]
    rows = max(1, min(LINE_ELEMENTS // num_labels, BAND_BYTES // (4 * num_labels * logits_width), height))
    row_taps = _chain_taps(logits_height, [size[0] for size in chain])
    column_taps = _chain_taps(logits_width, [size[1] for size in chain])
    labels = torch.empty(height, width, dtype=torch.int64)
    band = torch.empty(num_labels, logits_width, rows)
    # Torch's own threads would meet after each of these small operations; whole runs of them are shared out instead.
    workers = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()
    with ThreadPoolExecutor(workers) as pool:

        def share_out(work: Callable[[int, int], None], count: int) -> None:
            def in_the_callers_mode(begin: int, end: int) -> None:  # it belongs to a thread
                with torch.inference_mode(inference):
                    work(begin, end)

            bounds = [count * worker // workers for worker in range(workers + 1)]
            list((pool.map if workers > 1 else map)(in_the_callers_mode, bounds[:-1], bounds[1:]))

        for start in range(0, height, rows):
            band = band[:, :, : height - start]
            share_out(partial(_resize_rows, logits, row_taps, start, band), num_labels)
            share_out(partial(_label_columns, band, column_taps, labels[start : start + rows]), width)
    return labels


def _linear_taps(length: int, new_length: int) -> Taps:
    """For each of the new pixels: the two old ones it lies between and the share of the second.

    Pixel borders are aligned (align_corners=False), and the arithmetic is torch's own in single precision, so that
    weights agree to the last bit.
    """
    scale = torch.tensor(length / new_length, dtype=torch.float32)
    place = ((torch.arange(new_length, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    first = place.long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), (place - first).clamp(max=1)


def _chain_taps(length: int, new_lengths: Sequence[int]) -> list[Taps]:
    taps = []
    for new_length in new_lengths:
        taps.append(_linear_taps(length, new_length))
        length = new_length
    return taps


@torch.no_grad()
def _resize_rows(logits: Tensor, taps: list[Taps], start: int, band: Tensor, begin: int, end: int) -> None:
    """Resize labels `begin` to `end` along the height; the rows from `start` on go to band (num_labels, w, rows)."""
    width, rows = band.shape[1:]
    block = max(1, LINE_ELEMENTS // width)
    blocks = [(at, _block_steps(taps, start + at, min(block, rows - at))) for at in range(0, rows, block)]
    scratch = torch.empty(rows, width)
    for label in range(begin, end):
        source = logits[label].float()
        for at, steps in blocks:
            part = source
            for first, second, share in steps[:-1]:
                part = torch.lerp(part.index_select(0, first), part.index_select(0, second), share[:, None])
            first, second, share = steps[-1]
            to = scratch[at : at + len(share)]
            torch.lerp(part.index_select(0, first), part.index_select(0, second), share[:, None], out=to)
        band[label] = scratch.T


def _block_steps(taps: list[Taps], start: int, count: int) -> list[Taps]:
    """The taps for `count` rows of the last size, over just the rows of earlier sizes that they need."""
    steps: list[Taps] = []
    low, high = start, start + count
    for first, second, share in reversed(taps):
        first, second, share = first[low:high], second[low:high], share[low:high]
        low, high = int(first.min()), int(second.max()) + 1
        steps.insert(0, (first - low, second - low, share))
    first, second, share = steps[0]
    steps[0] = (first + low, second + low, share)  # the rows of the logits themselves are all there
    return steps


@torch.no_grad()
def _label_columns(band: Tensor, taps: list[Taps], labels: Tensor, begin: int, end: int) -> None:
    """Resize band (num_labels, w, rows) along the width and write the winners into columns of labels (rows, width)."""
    num_labels, _, rows = band.shape
    read: Callable[[int], Tensor] = lambda column: band[:, column]  # noqa: E731
    *earlier, (first, second, share) = [(a.tolist(), b.tolist(), s.tolist()) for a, b, s in taps]
    for step in earlier:
        read = _column_reader(read, step, torch.empty(2, num_labels, rows))
    # Written as num_labels minus label, the largest code among equal logits is that of the first label, as in argmax.
    codes_per_label = torch.arange(num_labels, 0, -1, dtype=torch.float32)[:, None]
    logits, wins, winner = torch.empty(num_labels, rows), torch.empty(num_labels, rows), torch.empty(rows)
    codes = torch.empty(COLUMN_BLOCK, rows)
    for at in range(begin, end, COLUMN_BLOCK):
        columns = range(at, min(at + COLUMN_BLOCK, end))
        for column, code in zip(columns, codes):
            torch.lerp(read(first[column]), read(second[column]), share[column], out=logits)
            torch.amax(logits, dim=0, out=winner)
            torch.eq(logits, winner, out=wins)  # as 0.0 and 1.0, several times faster than as booleans
            wins.mul_(codes_per_label)
            torch.amax(wins, dim=0, out=code)
        labels[:, at : columns.stop] = (num_labels - codes[: len(columns)]).T


def _column_reader(
    read: Callable[[int], Tensor], step: tuple[list[int], list[int], list[float]], buffer: Tensor
) -> Callable[[int], Tensor]:
    """Columns of an intermediate size, made when asked for; `buffer` keeps the last even and the last odd one."""
    first, second, share = step
    held = [-1, -1]

    def column(index: int) -> Tensor:
        slot = index % 2
        if held[slot] != index:
            torch.lerp(read(first[index]), read(second[index]), share[index], out=buffer[slot])
            held[slot] = index
        return buffer[slot]

    return column

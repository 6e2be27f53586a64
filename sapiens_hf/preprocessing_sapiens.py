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
"""From images (and annotations) to model inputs (and training targets): what both image processors share.

Whole images are stretched to the network's size without keeping their aspect; with `boxes`, every person becomes one
crop. Both are bilinear without antialias and rounded to whole grey levels before normalisation, as the original's
`cv2.resize` and `cv2.warpAffine` on 8-bit images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .heatmaps_sapiens import boxes_to_crops, encode_heatmaps, image_to_crop, sample_crops, validate_boxes
from .image_loading_sapiens import flatten_images, read_image, read_maps
from .resampling_sapiens import LevelTransform, nearest_index, sample_grid, stretch_taps

# Label of pixels without a person, as the losses read it (original `GenerateDepthTarget`, `GenerateNormalTarget`).
DEPTH_BACKGROUND, NORMAL_BACKGROUND = -1.0, -1000.0
# Labels are classes 0..254 or "ignore", 255.
MAX_CLASS_LABEL = 255


class SapiensImageProcessorKwargs(ImagesKwargs, total=False):
    r"""Arguments beyond those of every image processor.

    keypoint_heatmap_sigma (`float`, *optional*, defaults to `6.0`):
        Width of the target bumps, in heatmap pixels.
    keypoint_heatmap_downscale_factor (`int`, *optional*, defaults to `4`):
        Size of the network input over the size of its heatmaps.
    """

    keypoint_heatmap_sigma: float | None
    keypoint_heatmap_downscale_factor: int | None


class SapiensPreprocessor(BaseImageProcessor):
    """Preprocessing of both backends. Source: original mmpose and mmseg test pipelines (`TopdownAffine`, `Resize`)."""

    valid_kwargs = SapiensImageProcessorKwargs

    # `mean * 255` are the original's 123.675, 116.28, 103.53 and `std * 255` its 58.395, 57.12, 57.375.
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    resample = PILImageResampling.BILINEAR
    size = {"height": 1024, "width": 768}  # noqa: RUF012  (copied for each instance by transformers)
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    keypoint_heatmap_sigma = 6.0
    keypoint_heatmap_downscale_factor = 4
    model_input_names = ["pixel_values"]  # noqa: RUF012

    def preprocess(
        self,
        images: ImageInput,
        boxes: Any = None,
        segmentation_maps: Any = None,
        keypoints: Any = None,
        depth_maps: Any = None,
        normal_maps: Any = None,
        masks: Any = None,
        **kwargs: Unpack[SapiensImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images for a Sapiens model, and annotations for its loss.

        Args:
            images: one image or a list: PIL images, arrays, tensors, paths, URLs or bytes; grey, RGB, RGBA (alpha is
                dropped), palette, CMYK, 8 or 16 bit, bool, or floats: grey levels 0..255, or 0..1 with
                `do_rescale=False`. The EXIF orientation is applied. Sizes may differ.
            boxes: people per image as COCO (x, y, width, height) in image pixels, `[]` for an image without people.
                Each box becomes one crop; without this argument each whole image becomes one input.
            segmentation_maps: per image, class indices (height, width) of the image's size; the loss ignores 255.
            keypoints: per image and per person (as `boxes`), rows (x, y, visibility) in image pixels; visibility above
                0 counts.
            depth_maps: per image, depth (height, width) in any unit.
            normal_maps: per image, unit vectors (height, width, 3) or (3, height, width); floats.
            masks: per image (height, width), above 0 where the person is. Goes with `depth_maps` (default: where the
                depth is finite and above 0) or `normal_maps` (default: where the vector is not zero).
            **kwargs: any argument of the constructor, for this call; `return_tensors`; `device` (torchvision backend).

        Returns:
            `pixel_values`: float32 (num_images or num_boxes, 3, height, width), in the order of the boxes.
            `labels`: for segmentation int64 (num_images, height, width); for depth float32 (num_images, height,
            width), 0 nearest to 1 farthest over the person and -1 elsewhere; for normals float32 (num_images, 3,
            height, width), -1000 where there is no person; for keypoints heatmaps (num_boxes, num_keypoints,
            height / 4, width / 4).
            `keypoint_weights`: float32 (num_boxes, num_keypoints), 1 for visible keypoints whose bump is on the map.

        Raises:
            ValueError: naming the input by its index and what was found in it.
        """
        return super().preprocess(
            images, boxes, segmentation_maps, keypoints, depth_maps, normal_maps, masks, **kwargs
        )

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        boxes: Any,
        segmentation_maps: Any,
        keypoints: Any,
        depth_maps: Any,
        normal_maps: Any,
        masks: Any,
        *,
        do_convert_rgb: bool | None,
        do_resize: bool | None,
        size: SizeDict,
        do_rescale: bool | None,
        return_tensors: Any,
        keypoint_heatmap_sigma: float,
        keypoint_heatmap_downscale_factor: int,
        device: Any = None,
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        _check_targets(boxes, segmentation_maps, keypoints, depth_maps, normal_maps, masks)
        _check_supported(kwargs)
        tensors = [
            read_image(
                image,
                f"images[{index}]",
                convert_rgb=bool(do_convert_rgb),
                channel_order=input_data_format,
                expects_levels=bool(do_rescale),
            )
            for index, image in enumerate(flatten_images(images))
        ]
        target_device = self._device_for(tensors[0], device)
        tensors = [tensor.to(target_device) for tensor in tensors]
        sizes = [(int(tensor.shape[1]), int(tensor.shape[2])) for tensor in tensors]
        network_size = _network_size(size)
        num_channels = _common_channels(tensors)
        transforms = [
            LevelTransform(
                # Floats that are not grey levels (do_rescale=False) have no whole levels to be rounded to.
                not tensor.is_floating_point() or bool(do_rescale),
                *_normalisation(num_channels, do_rescale, **kwargs),
            )
            for tensor in tensors
        ]

        data: dict[str, Tensor] = {}
        if boxes is not None:
            people = validate_boxes(boxes, len(tensors), sizes)
            data["pixel_values"], centers, scales = _crops(tensors, people, network_size, transforms)
            if keypoints is not None:
                heatmap_size = _heatmap_size(network_size, keypoint_heatmap_downscale_factor)
                rows = _read_keypoints(keypoints, [len(image_boxes) for image_boxes in people])
                points = image_to_crop(rows[..., :2], centers, scales, network_size)
                data["labels"], data["keypoint_weights"] = encode_heatmaps(
                    points.to(torch.float32),
                    (rows[..., 2] > 0).to(torch.float32),
                    network_size,
                    heatmap_size,
                    keypoint_heatmap_sigma,
                )
        elif do_resize:
            data["pixel_values"] = _stretched(tensors, network_size, transforms)
        else:
            data["pixel_values"] = _unresized(tensors, sizes, transforms)

        map_size = network_size if do_resize else sizes[0]
        if segmentation_maps is not None:
            data["labels"] = _segmentation_labels(segmentation_maps, sizes, map_size)
        elif depth_maps is not None:
            data["labels"] = _depth_labels(depth_maps, masks, sizes, map_size)
        elif normal_maps is not None:
            data["labels"] = _normal_labels(normal_maps, masks, sizes, map_size)
        data = {name: values.to(target_device) for name, values in data.items()}
        return BatchFeature(data=self._as_returned(data, return_tensors), tensor_type=return_tensors)

    def _device_for(self, first_image: Tensor, device: Any) -> torch.device:
        """Where images are processed: the device asked for, else that of the first image."""
        return first_image.device if device is None else torch.device(device)

    def _as_returned(self, data: dict[str, Tensor], return_tensors: Any) -> dict[str, Any]:
        """Tensors, arrays, or (`return_tensors=None`) lists of tensors as every torchvision processor returns them."""
        if return_tensors is None:
            return {name: list(values) for name, values in data.items()}
        if str(getattr(return_tensors, "value", return_tensors)) == "pt":
            return data
        return {name: values.cpu().numpy() for name, values in data.items()}


def _check_targets(
    boxes: Any, segmentation_maps: Any, keypoints: Any, depth_maps: Any, normal_maps: Any, masks: Any
) -> None:
    """One kind of target per call, with what it needs."""
    targets = {
        "segmentation_maps": segmentation_maps,
        "keypoints": keypoints,
        "depth_maps": depth_maps,
        "normal_maps": normal_maps,
    }
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given; they would all become `labels`. Make one call for each.")
    if keypoints is not None and boxes is None:
        raise ValueError(
            "keypoints were given without boxes; pass the people's boxes=[[[x, y, width, height], ...], ...] too."
        )
    if boxes is not None and given and keypoints is None:
        raise ValueError(
            f"{given[0]} were given with boxes; maps belong to whole images. Crop image and map first, or leave boxes "
            "out."
        )
    if masks is not None and depth_maps is None and normal_maps is None:
        raise ValueError("masks were given without depth_maps or normal_maps; they say where those are valid.")


def _check_supported(options: dict[str, Any]) -> None:
    """Refuse what would otherwise be ignored in silence."""
    for name in ("do_center_crop", "do_pad"):
        if options.get(name):
            raise ValueError(
                f"{name}=True: Sapiens stretches images to `size` and neither pads nor centre-crops them."
            )
    resample = options.get("resample")
    name = str(getattr(resample, "value", resample)).lower()  # PIL's number, or torchvision's name
    if name not in (str(int(PILImageResampling.BILINEAR)), "bilinear"):
        raise ValueError(f"resample={resample!r}: Sapiens resizes bilinearly; use PIL.Image.Resampling.BILINEAR (2).")


def _network_size(size: SizeDict) -> tuple[int, int]:
    if not size or not size.height or not size.width:
        raise ValueError(f'size is {size}; expected {{"height": ..., "width": ...}}, e.g. 1024 and 768.')
    return int(size.height), int(size.width)


def _common_channels(images: Sequence[Tensor]) -> int:
    counts = [image.shape[0] for image in images]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise ValueError(
                f"images[{index}] has {count} channels and images[0] has {counts[0]}; use do_convert_rgb=True to mix "
                "them."
            )
    return counts[0]


def _normalisation(
    num_channels: int,
    do_rescale: bool | None,
    *,
    rescale_factor: float,
    do_normalize: bool | None,
    image_mean: Any,
    image_std: Any,
    **_: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Offset and divisor that rescale and normalise in one step: (x * f - mean) / std = (x - mean / f) / (std / f)."""
    factor = rescale_factor if do_rescale else 1.0
    if not do_normalize:
        if not do_rescale:
            return None, None
        image_mean, image_std = 0.0, 1.0
    values = []
    for name, given in (("image_mean", image_mean), ("image_std", image_std)):
        numbers = list(given) if isinstance(given, list | tuple | np.ndarray) else [given] * num_channels
        if len(numbers) != num_channels:
            raise ValueError(
                f"{name} has {len(numbers)} values for images of {num_channels} channels; expected one per channel."
            )
        values.append((torch.tensor(numbers, dtype=torch.float64) / factor).to(torch.float32))
    return values[0], values[1]


def _crops(
    images: Sequence[Tensor], people: Sequence[Tensor], size: tuple[int, int], transforms: Sequence[LevelTransform]
) -> tuple[Tensor, Tensor, Tensor]:
    """All people of all images, in order, with the centres and scales of their regions."""
    centers, scales = boxes_to_crops(torch.cat(list(people)), size)
    out = torch.empty((len(centers), images[0].shape[0], *size), dtype=torch.float32, device=images[0].device)
    start = 0
    for image, image_boxes, transform in zip(images, people, transforms, strict=True):
        part = slice(start, start + len(image_boxes))
        sample_crops(image, centers[part], scales[part], size, transform, out[part])
        start = part.stop
    return out, centers, scales


def _stretched(images: Sequence[Tensor], size: tuple[int, int], transforms: Sequence[LevelTransform]) -> Tensor:
    out = torch.empty((len(images), images[0].shape[0], *size), dtype=torch.float32, device=images[0].device)
    for image, transform, target in zip(images, transforms, out, strict=True):
        rows, columns = stretch_taps(size[0], image.shape[1]), stretch_taps(size[1], image.shape[2])
        sample_grid(image, rows, columns, transform, target)
    return out


def _unresized(
    images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], transforms: Sequence[LevelTransform]
) -> Tensor:
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"images[{index}] is {size[0]} x {size[1]} pixels (height x width) and images[0] is {sizes[0][0]} x "
                f"{sizes[0][1]}; without resizing (do_resize=False) a batch needs images of one size."
            )
    return _stretched(images, sizes[0], transforms)  # onto its own grid: every position is a pixel


def _heatmap_size(size: tuple[int, int], downscale_factor: int) -> tuple[int, int]:
    if downscale_factor < 1 or size[0] % downscale_factor or size[1] % downscale_factor:
        raise ValueError(
            f"keypoint_heatmap_downscale_factor is {downscale_factor}, which does not divide the input size "
            f"{size[0]} x {size[1]}."
        )
    return size[0] // downscale_factor, size[1] // downscale_factor


def _read_keypoints(keypoints: Any, num_people: Sequence[int]) -> Tensor:
    """Keypoints of all people (num_people, num_keypoints, 3), float64; positions of invisible ones may be anything."""
    if not hasattr(keypoints, "__len__") or len(keypoints) != len(num_people):
        count = len(keypoints) if hasattr(keypoints, "__len__") else repr(keypoints)
        raise ValueError(
            f"keypoints has {count} entries for {len(num_people)} images; nest them per image, per person."
        )
    images = [_read_image_keypoints(item, index, num_people[index]) for index, item in enumerate(keypoints)]
    filled = {index: rows for index, rows in enumerate(images) if len(rows)}
    if not filled:
        return torch.zeros(0, 0, 3, dtype=torch.float64)
    _check_counts({f"keypoints[{index}][0]": rows.shape[1] for index, rows in filled.items()})
    rows = torch.cat(list(filled.values()))
    visible = rows[..., 2:] > 0
    wrong = ~((rows.isfinite() | ~visible).all(dim=-1) & rows[..., 2].isfinite())
    if bool(wrong.any()):
        person, keypoint = wrong.nonzero()[0].tolist()
        image, number = [(i, n) for i, count in enumerate(num_people) for n in range(count)][person]
        raise ValueError(
            f"keypoints[{image}][{number}][{keypoint}] = {rows[person, keypoint].tolist()} has NaN or infinite "
            "values; expected (x, y, visibility), with visibility 0 where the position is not known."
        )
    return torch.where(visible, rows, 0.0)


def _check_counts(counts: dict[str, int]) -> None:
    first = next(iter(counts), "")
    for name, count in counts.items():
        if count != counts[first]:
            raise ValueError(
                f"{name} has {count} keypoints and {first} has {counts[first]}; all people need the same number."
            )


def _read_image_keypoints(item: Any, index: int, num_people: int) -> Tensor:
    name, rows = f"keypoints[{index}]", "rows (x, y, visibility)"
    if isinstance(item, Tensor):
        values = item.detach().to("cpu", torch.float64)
    else:
        try:
            people = [np.asarray(person, dtype=np.float64) for person in item]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} cannot be read as (num_people, num_keypoints, 3) with {rows} ({error})."
            ) from error
        for number, person in enumerate(people):
            if person.ndim != 2 or person.shape[1] != 3:
                shape = person.shape
                raise ValueError(f"{name}[{number}] has shape {shape}, expected (num_keypoints, 3) with {rows}.")
        _check_counts({f"{name}[{number}]": len(person) for number, person in enumerate(people)})
        values = torch.from_numpy(np.array(people))
    if values.ndim and len(values) != num_people:
        raise ValueError(f"{name} has {len(values)} people, but boxes[{index}] has {num_people}.")
    if values.shape[:1] != (0,) and (values.ndim != 3 or values.shape[2] != 3):
        shape = tuple(values.shape)
        raise ValueError(f"{name} has shape {shape}, expected (num_people, num_keypoints, 3) with {rows}.")
    return values


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the last two dimensions by nearest neighbour."""
    rows, columns = (nearest_index(size[axis], values.shape[axis - 2]).to(values.device) for axis in (0, 1))
    return values.index_select(-2, rows).index_select(-1, columns)


def _segmentation_labels(maps: Any, sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    labels = []
    for index, values in enumerate(read_maps(maps, "segmentation_maps", sizes)):
        name = f"segmentation_maps[{index}]"
        if values.is_floating_point() and not torch.equal(values, values.round()):  # NaN is not equal to itself either
            raise ValueError(f"{name} has floats that are not whole; expected class indices 0..{MAX_CLASS_LABEL}.")
        low, high = values.min().item(), values.max().item()
        if low < 0 or high > MAX_CLASS_LABEL:
            raise ValueError(
                f"{name} has label {low if low < 0 else high}; expected class indices 0..254, or 255 to ignore a "
                "pixel."
            )
        labels.append(_nearest(values.to(torch.int64), size))
    return torch.stack(labels)


def _masks_or_none(masks: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor | None]:
    return [None] * len(sizes) if masks is None else [mask > 0 for mask in read_maps(masks, "masks", sizes)]


def _depth_labels(maps: Any, masks: Any, sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Min-max over the person on the view that the network sees, as the original's `GenerateDepthTarget`."""
    labels = []
    depths = read_maps(maps, "depth_maps", sizes)
    for index, (values, mask) in enumerate(zip(depths, _masks_or_none(masks, sizes), strict=True)):
        depth = _nearest(values.to(torch.float32), size)
        person = depth.isfinite() & (depth > 0) if mask is None else _nearest(mask.to(depth.device), size)
        inside = depth[person]
        _check_finite(inside, f"depth_maps[{index}]")
        if inside.numel() and bool(inside.max() > inside.min()):
            depth = (depth - inside.min()) / (inside.max() - inside.min())
        labels.append(torch.where(person, depth, DEPTH_BACKGROUND))
    return torch.stack(labels)


def _normal_labels(maps: Any, masks: Any, sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    labels = []
    normals = read_maps(maps, "normal_maps", sizes, num_channels=3)
    for index, (values, mask) in enumerate(zip(normals, _masks_or_none(masks, sizes), strict=True)):
        if not values.is_floating_point():
            raise ValueError(
                f"normal_maps[{index}] holds {values.dtype}; expected floats, unit vectors with components -1..1."
            )
        normal = _nearest(values.to(torch.float32), size)
        person = (normal != 0).any(dim=0) if mask is None else _nearest(mask.to(normal.device), size)
        _check_finite(normal[:, person], f"normal_maps[{index}]")
        labels.append(torch.where(person, normal, NORMAL_BACKGROUND))
    return torch.stack(labels)


def _check_finite(values: Tensor, name: str) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values on the person; leave those pixels out of `masks`.")

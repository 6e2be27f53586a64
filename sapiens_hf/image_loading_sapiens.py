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
"""Reading images and per-pixel maps the way a person sees them, or saying which input is wrong.

What counts as seen: EXIF orientation is applied; grey becomes RGB; palettes are looked up; CMYK and the like are
converted; alpha is dropped (as `cv2.IMREAD_COLOR` does: pixels keep their stored colour); 16-bit becomes 8-bit; the
current frame of an animation is read, which is the first one unless the caller moved on.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_utils import load_image
from transformers.utils import logging

logger = logging.get_logger(__name__)

EXIF_ORIENTATION = 0x0112
KINDS = "a PIL image, a numpy array, a torch tensor, a path, a URL or the bytes of an image file"
# Modes whose pixels are numbers rather than 8-bit colours; PIL's own conversion to RGB would clip them at 255.
NUMBER_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Formats whose compression may change values: around the 255 of a mask lie pixels of 1 to 10.
LOSSY_FORMATS = frozenset(("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP"))


def flatten_images(images: Any) -> list[Any]:
    """One image, a batch array, a list or a list of lists -> a flat list of single images.

    Raises:
        ValueError: if there is no image at all.
    """
    if isinstance(images, list | tuple):
        flat = [single for item in images for single in flatten_images(item)] if images else []
    elif isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        flat = list(images)
    else:
        flat = [images]
    if not flat:
        raise ValueError("images is empty; expected at least one image.")
    return flat


def read_image(
    image: Any, name: str, *, convert_rgb: bool = True, channel_order: str | None = None, expects_levels: bool = True
) -> Tensor:
    """One image as grey levels or floats.

    Args:
        image: a PIL image, array, tensor, path, URL or the bytes of an image file. Arrays are (height, width),
            (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels; bool, uint8, other integers
            within 0..255, uint16 (scaled to 8 bit) or floating.
        name: how errors call it, e.g. "images[2]".
        convert_rgb: make it 3 channels; otherwise the channels stay as they are.
        channel_order: "channels_first" or "channels_last" for arrays; read from the shape if absent.
        expects_levels: floats are grey levels 0..255 (and not 0..1).

    Returns:
        uint8, or float32 for floating input, (num_channels, height, width), on the device of the tensor.

    Raises:
        ValueError: naming the image and what was found.
    """
    if isinstance(image, str | Path | bytes | bytearray):
        image = _open(image, name)
    if isinstance(image, Image.Image):
        values, channel_order = _from_pil(image, name, convert_rgb), "channels_last"
    elif isinstance(image, np.ndarray | Tensor):
        values = _as_tensor(image, name)
    else:
        raise ValueError(f"{name} is {type(image).__name__}; expected {KINDS}.")
    values = _channels_first(values, name, channel_order)
    values = _as_levels(values, name)
    if values.is_floating_point() and expects_levels and float(values.max()) <= 1.0:
        logger.warning_once(
            "An image holds floats of at most 1.0 while `do_rescale=True` expects grey levels 0..255; pass "
            "`do_rescale=False` for images that are already scaled to 0..1."
        )
    if convert_rgb:
        values = values.expand(3, -1, -1) if values.shape[0] == 1 else values[:3]
    return values


def read_map(values: Any, name: str, num_channels: int = 1) -> Tensor:
    """One per-pixel map: labels, depth, a mask (height, width) or normals (3, height, width). Values are not changed.

    Args:
        values: an array, tensor, PIL image (palette images give their indices), path or the bytes of an image file.
            One channel may also come as (1, height, width) or (height, width, 1), three as (height, width, 3).
        name: how errors call it, e.g. "segmentation_maps[0]".
        num_channels: 1 or 3.

    Raises:
        ValueError: naming the map and what was found.
    """
    if isinstance(values, str | Path | bytes | bytearray):
        values = _open(values, name)
    if isinstance(values, Image.Image):
        values = np.array(_loaded(values, name))
    if not isinstance(values, np.ndarray | Tensor):
        raise ValueError(f"{name} is {type(values).__name__}; expected an array, a tensor, a PIL image or a path.")
    tensor = _as_tensor(values, name)
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # types that torch can hardly compute with
        tensor = tensor.to(torch.int64)
    shape = tuple(tensor.shape)
    if num_channels == 1:
        if tensor.ndim == 3 and 1 in (shape[0], shape[-1]):
            tensor = tensor[0] if shape[0] == 1 else tensor[..., 0]
        expected, fits = "(height, width)", tensor.ndim == 2
    else:
        if tensor.ndim == 3 and shape[-1] == num_channels:
            tensor = tensor.permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        expected, fits = "(height, width, 3)", tensor.ndim == 3 and tensor.shape[0] == num_channels
    if not fits:
        raise ValueError(f"{name} has shape {shape}; expected {expected}.")
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {shape}: no pixels.")
    return tensor


def read_maps(maps: Any, kind: str, sizes: Sequence[tuple[int, int]], num_channels: int = 1) -> list[Tensor]:
    """One map per image, each of its image's size.

    Args:
        maps: a list with one map per image, a batch array, or a single map for a single image.
        kind: the argument's name, for errors.
        sizes: (height, width) of each image.
        num_channels: 1 or 3.

    Raises:
        ValueError: naming both counts, or the map and both sizes.
    """
    single_ndim = 2 if num_channels == 1 else 3
    if isinstance(maps, np.ndarray | Tensor) and maps.ndim > single_ndim:
        maps = list(maps)
    elif not isinstance(maps, list | tuple):
        maps = [maps]
    if len(maps) != len(sizes):
        raise ValueError(f"{kind} has {len(maps)} entries for {len(sizes)} images; pass one per image.")
    tensors = [read_map(item, f"{kind}[{index}]", num_channels) for index, item in enumerate(maps)]
    for index, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
        if tuple(tensor.shape[-2:]) != tuple(size):
            raise ValueError(
                f"{kind}[{index}] is {tensor.shape[-2]} x {tensor.shape[-1]} pixels (height x width), but "
                f"images[{index}] is {size[0]} x {size[1]} (after its EXIF orientation, if it has one)."
            )
    return tensors


def _open(source: str | Path | bytes | bytearray, name: str) -> Image.Image:
    what = f"{len(source)} bytes" if isinstance(source, bytes | bytearray) else repr(str(source))
    try:
        if isinstance(source, bytes | bytearray):
            return Image.open(BytesIO(source))
        if isinstance(source, str) and source.startswith(("http://", "https://", "data:image/")):
            return load_image(source)
        return Image.open(source)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: there is no file {what}.") from error
    except Exception as error:  # network, permission, unknown format, broken data: all mean that there is no image
        raise ValueError(f"{name}: {what} cannot be read as an image ({type(error).__name__}: {error}).") from error


def _loaded(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels (width x height); expected at least 1 x 1."
        )
    try:
        image.load()  # files are read here, so a truncated one fails here
    except Exception as error:  # the decoders of PIL raise OSError, SyntaxError, ValueError, struct.error, EOFError
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error}); is the file complete?") from error
    return image


def _from_pil(image: Image.Image, name: str, convert_rgb: bool) -> Tensor:
    image = _loaded(image, name)
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I":  # 32 bit, and how PIL opens some 16-bit files
        numbers = np.array(image)
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{name} (PIL mode I) has values {low}..{high}; expected 8 or 16 bit, 0..65535.")
        return torch.from_numpy(numbers if high <= 255 else numbers.astype(np.uint16))
    if convert_rgb and image.mode not in NUMBER_MODES and image.mode != "RGB":
        if image.mode in ("P", "PA", "RGBa", "La"):  # to colours and alpha first: PIL knows no direct way, or warns
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGB")
    values = np.array(image)
    return torch.from_numpy(values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("=")))


def _as_tensor(values: np.ndarray | Tensor, name: str) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        try:
            native = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
            # torch shares memory with plain writable arrays only
            tensor = torch.from_numpy(np.require(native, requirements=["C", "W"]))
        except TypeError as error:
            raise ValueError(f"{name} is an array of {values.dtype}; expected bool, integers or floats.") from error
    if tensor.is_complex():
        raise ValueError(f"{name} is an array of {tensor.dtype}; expected bool, integers or floats.")
    return tensor


def _channels_first(values: Tensor, name: str, order: str | None) -> Tensor:
    shape = tuple(values.shape)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"{name} has shape {shape}; expected (height, width), (height, width, channels) or "
            "(channels, height, width)."
        )
    if values.numel() == 0:
        raise ValueError(f"{name} has shape {shape}: no pixels.")
    if values.ndim == 2:
        return values[None]
    guessed = order is None
    if guessed:
        order = "channels_first" if shape[0] in (1, 3, 4) else "channels_last"
    is_first = getattr(order, "value", order) == "channels_first"  # transformers' enum, or its text
    channels = shape[0] if is_first else shape[-1]
    if channels not in (1, 3, 4):
        if guessed:
            raise ValueError(
                f"{name} has shape {shape}: neither its first nor its last dimension is 1 (grey), 3 (RGB) or 4 "
                "(RGBA); expected (height, width, channels) or (channels, height, width)."
            )
        raise ValueError(
            f"{name} has shape {shape}, that is {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA)."
        )
    return values if is_first else values.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)


def _as_levels(values: Tensor, name: str) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    if values.is_floating_point():
        values = values.to(torch.float32)
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            raise ValueError(f"{name} has {bad} NaN or infinite values; expected finite floats.")
        return values
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    values = (
        values.to(torch.int64) if values.dtype != torch.uint16 else (values.to(torch.int64) + 128) // 257
    )  # 65535 -> 255
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise ValueError(f"{name} has integer values {low}..{high}; expected 0..255, or uint16 for a 16-bit image.")
    return values.to(torch.uint8)


def read_values(source: Any, name: str) -> tuple[np.ndarray, str | None]:
    """The stored values of a `.npy` file, an image file, a PIL image or an array; a palette's indices stay indices.

    Returns:
        (height, width) or (height, width, num_channels), and the format of the image file as PIL names it.

    Raises:
        ValueError: if it cannot be read; names it.
    """
    try:
        if not isinstance(source, str | Path):
            return np.array(source), getattr(source, "format", None)
        if str(source).lower().endswith(".npy"):
            return np.load(source, allow_pickle=False), None
        with Image.open(source) as file:
            return np.array(file), file.format
    except Exception as error:  # the decoders of PIL and numpy raise OSError, SyntaxError, ValueError, EOFError ...
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error}).") from error


def as_mask(values: np.ndarray, image_format: str | None = None) -> np.ndarray:
    """A stored mask as booleans: what is not 0; of a colour image the first channel, as the original.

    Args:
        values: (height, width) or (height, width, num_channels).
        image_format: of the image file, as PIL names it; None for arrays. Of 8-bit values that compression may have
            changed, those above 127 count, unless none is.

    Returns:
        (height, width) bool.
    """
    values = values if values.ndim == 2 else values[..., 0]
    is_rounded = image_format in LOSSY_FORMATS and values.dtype == np.uint8 and values.max(initial=0) > 127
    return values > (127 if is_rounded else 0)

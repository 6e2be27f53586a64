"""From encoded images to batches for pretraining: crop, flip, mask, and a count of everything that could not be used.

    ImagePlan --lists of Ask--> ImageSet (workers) --> image uint8, noise --> ImageLoader --> MaskedInputs --> model

What an image becomes follows from (seed, epoch, position) alone, position being its place in the epoch's order: crop,
flip and mask are the same in every worker, after a restart, and for any number of workers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils import logging

from sapiens_hf.image_loading_sapiens import EXIF_ORIENTATION

from .data import BatchLoader, StepPlan, sample_generator
from .formats import BadSampleError, read_rgb
from .loop import TrainingStoppedError
from .pretrain_sources import Ask, ImagePlan, Mixture

logger = logging.get_logger(__name__)

# Why an image is not used; each is a count of its own.
REASONS = ("unreadable", "too_small", "too_large", "cmyk", "animated")
COUNTS = ("images", *REASONS, "replaced", "repeated")
# The share of bad images is judged as if at least so many had been seen, or the first bad one would stop a run.
MIN_JUDGED = 1000
# So many images that follow are tried in the place of a batch of which nothing can be used, nor its spare ones.
MAX_FOLLOWING = 1000


class BadImageError(BadSampleError):
    """An image that cannot be used, and why: `reason` is one of `REASONS`."""

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(f"{name}: {reason} ({detail})")
        self.reason = reason


class TooManyBadImagesError(TrainingStoppedError):
    """More images cannot be used than the run allows."""


@dataclass(frozen=True)
class CropOptions:
    """What the network sees of an image. Source: the original's pretraining configs (3.5 of the paper's appendix).

    Attributes:
        size: (height, width) of the network's input in pixels.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest width to height, relative to that of `size`.
        flip_prob: chance to be mirrored.
        min_side_px: images with a shorter side are not used.
        max_pixels: nor are images with more pixels.
        fast_decode: let libjpeg shrink large JPEGs by 2, 4 or 8 while it decodes them; several times faster, and not
            the same pixels.
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    min_side_px: int = 1
    max_pixels: int = 80_000_000
    fast_decode: bool = False


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever touches an image happens in here: Pillow opens lazily, and its readers raise errors of many kinds.

    Raises:
        BadImageError: in place of any other error.
    """
    try:
        yield
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(name, "too_large", str(error)) from error
    except UnidentifiedImageError as error:  # whose text is an address in memory
        raise BadImageError(name, "unreadable", "it is no image of a known kind") from error
    except Exception as error:  # OSError, SyntaxError, IndexError, TypeError, struct.error, EOFError, ...
        raise BadImageError(name, "unreadable", f"{type(error).__name__}: {error}") from error


def open_image(raw: Any, name: str, options: CropOptions) -> Image.Image:
    """An image of which only the header is read, if it can be used.

    Files of several frames are animations, but for MPO: photographs of phones and cameras with a second view, a depth
    or a gain map behind the first frame, which is the photograph.

    Raises:
        BadImageError: says why it cannot be.
    """
    with reading(name):
        if raw is None:
            raise BadImageError(name, "unreadable", "its row holds no image")
        if isinstance(raw, np.ndarray):
            image = Image.fromarray(raw)
        else:
            image = (
                raw if isinstance(raw, Image.Image) else Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw)
            )
        size = f"{image.width} x {image.height} pixels"
        if min(image.size) < options.min_side_px:
            raise BadImageError(name, "too_small", f"{size}; the shorter side must have {options.min_side_px}")
        if image.width * image.height > options.max_pixels:
            raise BadImageError(name, "too_large", f"{size}; at most {options.max_pixels} are allowed")
        if image.mode == "CMYK":
            raise BadImageError(name, "cmyk", "its colours mean nothing without a printer's profile")
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # reads a GIF to its end
        if num_frames > 1:
            raise BadImageError(name, "animated", f"{num_frames} frames")
    return image


def random_box(height: int, width: int, options: CropOptions, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop: area and aspect are drawn up to ten times until they fit.

    The last resort is the largest crop in the middle within the range of aspects.
    """
    relative = options.size[1] / options.size[0]
    lowest, highest = (aspect * relative for aspect in options.aspect)
    for _ in range(10):
        area = height * width * rng.uniform(*options.area)
        aspect = math.exp(rng.uniform(math.log(lowest), math.log(highest)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = rng.integers(width - box_width + 1), rng.integers(height - box_height + 1)
            return int(left), int(top), box_width, box_height
    box_width = min(width, max(round(height * highest), 1))
    box_height = min(height, max(round(width / lowest), 1))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def crop_image(image: Image.Image, name: str, options: CropOptions, rng: np.random.Generator) -> np.ndarray:
    """A random crop at the network's size, bicubic as Pillow does it, perhaps mirrored: (height, width, 3) uint8.

    Raises:
        BadImageError: if the file is broken behind its header.
    """
    with reading(name):  # truncated data, broken EXIF
        turned = image.getexif().get(EXIF_ORIENTATION, 1)
        width, height = image.size[::-1] if turned in (5, 6, 7, 8) else image.size
        left, top, box_width, box_height = random_box(height, width, options, rng)
        is_flipped = rng.random() < options.flip_prob
        out_height, out_width = options.size
        if options.fast_decode:
            shrink = max(min(box_width / out_width, box_height / out_height), 1.0)
            image.draft(None, (int(image.width / shrink), int(image.height / shrink)))  # JPEG only; never smaller
        image.load()
        image = ImageOps.exif_transpose(image) if turned != 1 else image
        if image.mode != "RGB":
            image = Image.fromarray(read_rgb(image, name))
        scale_x, scale_y = image.width / width, image.height / height  # below 1 after a fast decode
        right, bottom = round((left + box_width) * scale_x), round((top + box_height) * scale_y)
        # Cropped first: `resize(box=...)` would blend in pixels from outside the box at its border.
        crop = image.crop((round(left * scale_x), round(top * scale_y), right, bottom))
        pixels = np.asarray(crop.resize((out_width, out_height), Image.Resampling.BICUBIC))
    return pixels[:, ::-1] if is_flipped else pixels


class ImageSet(Dataset):
    """Answers lists of `Ask` with a batch; an image that cannot be used is replaced by another one of its batch.

    Where nothing can be used, neither of the batch nor of the spare images, the answer is one without an `image`.

    Args:
        mixture: the sources.
        options: of the crop.
        patch_size: of the network, in pixels.
        num_asked: images of a batch; those after them are spare.
        seed: of crops and masks.
    """

    def __init__(self, mixture: Mixture, options: CropOptions, patch_size: int, num_asked: int, seed: int):
        self.mixture, self.options, self.num_asked, self.seed = mixture, options, num_asked, seed
        height, width = options.size
        self.num_patches = (height // patch_size) * (width // patch_size)

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitems__(self, asks: Sequence[Ask]) -> list[dict[str, Any]]:
        made: list[dict[str, Any] | None] = []
        bad: list[tuple[str, str]] = []
        bad_spares: list[tuple[str, str]] = []
        for ask in asks[: self.num_asked]:
            try:
                made.append(self._make(ask, ask))
            except BadImageError as error:
                bad.append((error.reason, str(error)))
                made.append(None)
        donors = [ask for ask, image in zip(asks, made) if image is not None] or list(asks[self.num_asked :])
        for place, image in enumerate(made):
            tries = donors[place % max(len(donors), 1) :] + donors[: place % max(len(donors), 1)]
            while image is None and tries:
                try:
                    image = self._make(asks[place], tries.pop(0)) | {"is_replaced": True}
                except BadImageError as error:
                    bad_spares.append((error.reason, str(error)))
            if image is None:
                return [{"bad": bad, "bad_spares": bad_spares}]
            made[place] = image
        result = [image for image in made if image is not None]
        result[0]["bad"] = bad
        return result

    def _make(self, ask: Ask, donor: Ask) -> dict[str, Any]:
        """The crop and mask that belong to `ask`, of the image of `donor`."""
        name, raw = donor.name, donor.raw
        if donor.index >= 0:  # of a source at hand; a stream's row may hold None as well
            name, raw = self.mixture.sources[donor.source].raw(donor.index)  # type: ignore[union-attr]
        rng = sample_generator(self.seed, ask.epoch, ask.position)
        # A permutation, not random numbers: no two patches are equal, so no device sorts them otherwise.
        noise = rng.permutation(self.num_patches).astype(np.float32) / self.num_patches
        pixels = crop_image(open_image(raw, name, self.options), name, self.options, rng)
        return {"name": name, "image": pixels, "noise": noise, "is_repeat": ask.is_repeat, "is_replaced": False}


def collate_images(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: image (batch_size, 3, height, width) uint8, noise (batch_size, num_patches) and what was counted."""
    if "image" not in images[0]:  # nothing can be used
        return images[0]
    pixels = torch.from_numpy(np.stack([image["image"] for image in images]))
    return {
        "name": [image["name"] for image in images],
        "image": pixels.permute(0, 3, 1, 2),  # (B, H, W, 3) -> (B, 3, H, W)
        "noise": torch.from_numpy(np.stack([image["noise"] for image in images])),
        "bad": images[0]["bad"],
        "counts": {
            "images": len(images),
            "replaced": sum(image["is_replaced"] for image in images),
            "repeated": sum(image["is_repeat"] for image in images),
        },
    }


class ImageLoader:
    """Batches in the order of the plan, with what they cost: seconds waited, and counts of images.

    Args:
        mixture: the sources.
        options: of the crop.
        patch_size: of the network, in pixels.
        plan: of the run.
        num_workers: processes that decode.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        mixture: Mixture,
        options: CropOptions,
        patch_size: int,
        plan: StepPlan,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.plan = plan
        self.loader = BatchLoader(
            ImageSet(mixture, options, patch_size, plan.batch_size, plan.seed),
            batch_sampler=ImagePlan(mixture, plan),
            num_workers=num_workers,
            collate_fn=collate_images,
            pin_memory=pin_memory,
        )
        self.waited_s = 0.0
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches with `name`, `image` and `noise`.

        Raises:
            TooManyBadImagesError: if nothing in a batch nor in the many images after it can be used.
            StreamDroppedError: if a stream breaks off at the same place again and again, or too much is damaged.
        """
        batches = iter(self.loader)
        for number in count():
            since = time.perf_counter()
            batch = next(batches, None)
            if batch is not None and "image" not in batch:
                batch = self._with_following(number)
            self.waited_s += time.perf_counter() - since
            if batch is None:
                return
            self.counts.update(batch.pop("counts"))
            self._note(batch.pop("bad"))
            yield batch

    def _note(self, bad: Iterable[tuple[str, str]]) -> None:
        """Count and name images that are not used."""
        for reason, message in bad:
            self.counts[reason] += 1
            logger.warning(f"Not used: {message}")

    def _with_following(self, number: int) -> dict[str, Any]:
        """A batch of the run in which images that follow it stand in for all of its own.

        They are asked for in this process, by a plan that begins at the batch's step: what comes follows from the seed
        and the step, as everywhere, and streams give it too. Bad ones among them are counted when their turn comes.

        Args:
            number: of the batch in this process, from where the run was started.
        """
        plan, images = copy(self.plan), self.loader.dataset
        steps, batches_before = divmod(number, plan.num_accumulated)
        plan.start_step += steps
        plan.num_steps = plan.start_step + 1 + -(-MAX_FOLLOWING // plan.batch_size)
        lists = islice(ImagePlan(images.mixture, plan), batches_before, None)
        asks = next(lists)[: plan.batch_size]
        bad: dict[tuple[str, str], None] = {}  # a small source gives an image again: each is counted once
        for following in islice(lists, -(-MAX_FOLLOWING // plan.batch_size)):
            made = images.__getitems__(asks + following[: plan.batch_size])
            if "image" in made[0]:
                return collate_images(made)
            bad.update(dict.fromkeys(made[0]["bad"] + made[0]["bad_spares"]))
        self._note(bad)
        reasons = Counter(reason for reason, _ in bad)
        raise TooManyBadImagesError(
            f"No image of a whole batch nor the spare ones can be used, nor the {MAX_FOLLOWING} that follow "
            f"({len(bad)} different ones: {_listed(reasons)}; the last: {list(bad)[-1][1]}). The log names them, "
            "whatever --max_bad_share allows. Look at the source they are from, clean it with `python -m "
            "training.curate_humans`, or lower --min_side_px if they are too small."
        )

    def take_counts(self) -> list[int]:
        """Counts since the last call, in the order of `COUNTS`."""
        taken = [self.counts[name] for name in COUNTS]
        self.counts.clear()
        return taken


def check_share(counts: Mapping[str, int], max_share: float) -> None:
    """Stop where more images are bad than a run allows.

    Args:
        counts: of the whole run, over all processes.
        max_share: allowed share of bad images; judged as if at least `MIN_JUDGED` had been seen.

    Raises:
        TooManyBadImagesError: lists the counts per reason.
    """
    num_bad = sum(counts.get(reason, 0) for reason in REASONS)
    seen = counts.get("images", 0)
    if num_bad > max_share * max(seen, MIN_JUDGED):
        raise TooManyBadImagesError(
            f"{num_bad} of {seen} images could not be used ({_listed(counts)}), more than the share of {max_share:g} "
            "that --max_bad_share allows. The log names them. Clean the data with `python -m training.curate_humans`, "
            "lower --min_side_px if they are too small, or allow more."
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {counts[reason]}" for reason in REASONS if counts.get(reason))


class MaskedInputs:
    """A batch as inputs of `SapiensForPreTraining`; the last one is kept for pictures."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1) * 255
        self.last: dict[str, Tensor] = {}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        self.last = {"pixel_values": (image.float() - mean).div_(std).contiguous(), "noise": batch["noise"]}
        return self.last

    def grey_levels(self, pixel_values: Tensor) -> np.ndarray:
        """Inverse of the normalisation: (batch_size, 3, height, width) -> (batch_size, height, width, 3) uint8."""
        levels = pixel_values.float().cpu() * self.std + self.mean
        return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()  # (B, 3, H, W) -> (B, H, W, 3)

"""From samples to batches: augmentation, order, collation, and the model's inputs and labels.

    sample list --TrainingSet--> augmented sample --collate--> batch of uint8 images and small labels
                                                  --ModelInputs--> pixel_values, labels (, keypoint_weights)

Workers send whole grey levels and keypoints; the float images and the heatmaps (60 MB per image for 308 keypoints at
1024 x 768) are made on the device of the model. What a sample becomes follows from (seed, epoch, index) alone.
"""

from __future__ import annotations

import atexit
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.utils import logging

from sapiens_hf.heatmaps_sapiens import encode_heatmaps, is_on_heatmap
from sapiens_hf.preprocessing_sapiens import DEPTH_BACKGROUND, NORMAL_BACKGROUND

from .formats import BadSampleError, Sample, SampleList, check_holes

logger = logging.get_logger(__name__)

Augment = Callable[[Sample, np.random.Generator], Sample]
Batch = dict[str, Any]
Place = tuple[int, str, Mapping[str, Any], int]  # position in the epoch; name and content of the row; person in it
# A data set in which this many samples in a row cannot be used is no data set.
MAX_ATTEMPTS = 50


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The one source of chance of a sample: equal in every worker, process and run."""
    return np.random.default_rng([seed, epoch, index])


class TrainingSet(Dataset):
    """A sample list with augmentation.

    Items are asked for as `(epoch, index)`; a plain index takes the epoch of `set_epoch`, as `Trainer` sets it.

    Args:
        samples: the data set.
        augment: (sample, generator) -> sample at the size of the network.
        seed: of all chance.
        min_visible: pose: a crop with targets for fewer keypoints is replaced by another person (original: 4 for 17
            keypoints, 8 else).
        skip_bad: replace samples that cannot be used, with a warning that names them, instead of raising.
        heatmap_sigma: pose: width of the targets in heatmap pixels; they reach the map from 3 sigma outside.
        heatmap_downscale: pose: pixels of the crop per pixel of the heatmaps.
    """

    def __init__(
        self,
        samples: SampleList,
        augment: Augment,
        seed: int = 0,
        min_visible: int = 0,
        skip_bad: bool = False,
        heatmap_sigma: float = 6.0,
        heatmap_downscale: int = 4,
    ):
        if len(samples) == 0:
            raise ValueError("The data set is empty.")
        self.samples, self.augment, self.seed = samples, augment, seed
        self.min_visible, self.skip_bad = min_visible, skip_bad
        self.targets = heatmap_sigma, heatmap_downscale
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that live on see it change

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of plain indices."""
        self._epoch.fill_(epoch)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (int(self._epoch), key)
        rng = sample_generator(self.seed, epoch, index)
        error: BadSampleError | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                sample = self.augment(check_holes(self.samples[index]), rng)
            except BadSampleError as caught:
                if not self.skip_bad:
                    raise
                error = caught
                logger.warning_once(f"Skipped: {caught}")
            else:
                if shows_enough(sample, self.min_visible, *self.targets):
                    return sample
            index = int(rng.integers(len(self.samples)))
        raise BadSampleError(_none_usable(self.min_visible, error))


def _none_usable(min_visible: int, last: Any, count: int = MAX_ATTEMPTS) -> str:
    """The message for a data set that is no data set."""
    fewer = f"fewer than {min_visible} labelled keypoints in the crop (--min_visible), or broken"
    why = fewer if min_visible else "broken"
    return (
        f"{count} samples in a row could not be used ({why}).{f' The last one: {last}' if last else ''} Look at the "
        "data with `python -m training.check_data`."
    )


def num_targets(sample: Sample, heatmap_sigma: float = 6.0, heatmap_downscale: int = 4) -> int:
    """Number of labelled keypoints that count in the loss (original: the sum of the target's weights)."""
    size = sample["image"].shape[:2]
    keypoints = torch.from_numpy(sample["keypoints"])
    heatmap_size = (size[0] // heatmap_downscale, size[1] // heatmap_downscale)
    on_map = is_on_heatmap(keypoints[None, :, :2], size, heatmap_size, heatmap_sigma)
    return int((on_map[0] & (keypoints[:, 2] > 0)).sum())


def shows_enough(sample: Sample, min_visible: int, heatmap_sigma: float, heatmap_downscale: int) -> bool:
    """Whether a crop has the targets it needs; samples of other tasks need none."""
    return min_visible == 0 or num_targets(sample, heatmap_sigma, heatmap_downscale) >= min_visible


class StreamingSet(IterableDataset):
    """A streamed table with augmentation: yields the samples of this process's batches, in a fixed order.

    Every process reads the whole stream and keeps its own batches; rows of the others are not decoded. One worker
    reads it (`make_loader` sees to that), so the order cannot depend on the number of workers. A stream that ends
    before its epoch does starts over.

    Args:
        stream: a `StreamSamples`.
        augment: (sample, generator) -> sample at the size of the network.
        plan: which samples belong to this process and this run.
        min_visible: pose: a crop with targets for fewer keypoints is replaced.
        skip_bad: replace samples that cannot be used, with a warning that names them, instead of raising.
        heatmap_sigma: pose: width of the targets in heatmap pixels.
        heatmap_downscale: pose: pixels of the crop per pixel of the heatmaps.

    What replaces a sample is the next one of the epoch that can be used, whichever process it belongs to, so any
    number of processes, and a run that goes on in the middle of an epoch, find the same. A row of which not even the
    people can be read takes no place.
    """

    def __init__(
        self,
        stream: Any,
        augment: Augment,
        plan: StepPlan,
        min_visible: int = 0,
        skip_bad: bool = False,
        heatmap_sigma: float = 6.0,
        heatmap_downscale: int = 4,
    ):
        self.stream, self.augment, self.plan = stream, augment, plan
        self.min_visible, self.skip_bad = min_visible, skip_bad
        self.targets = heatmap_sigma, heatmap_downscale
        self._read: tuple[str, Sequence[Sample]] = "", ()  # the last row's samples: its people follow each other

    def __iter__(self) -> Iterator[Sample]:
        plan = self.plan
        first_epoch = plan.start_step // plan.steps_per_epoch
        for epoch in range(first_epoch, plan.num_epochs):
            start = plan.start_step % plan.steps_per_epoch * plan.samples_per_step if epoch == first_epoch else 0
            waiting: list[int] = []  # places whose samples cannot be used
            before: deque[Place] = deque(maxlen=MAX_ATTEMPTS)  # the last place known to be usable, and those since
            for place in self._places(epoch):
                position, name, row, person = place
                is_mine = plan.is_mine(position) and position >= start
                if not is_mine and not waiting:
                    before.append(place)
                    continue
                found = self._usable(row, name, person, sample_generator(plan.seed, epoch, position))
                if found is not None:
                    before.clear()
                    before.append(place)
                    yield from self._at(waiting, found[0], epoch)
                    waiting.clear()
                    if is_mine:
                        yield found[1]
                elif is_mine:
                    waiting.append(position)
                    if len(waiting) == MAX_ATTEMPTS:
                        raise BadSampleError(_none_usable(self.min_visible, name))
            while waiting:  # nothing usable came after them: the last one before
                if not before:
                    raise BadSampleError(_none_usable(self.min_visible, self.stream.name, len(waiting)))
                position, name, row, person = before.pop()
                found = self._usable(row, name, person, sample_generator(plan.seed, epoch, position))
                if found is not None:
                    yield from self._at(waiting, found[0], epoch)
                    waiting.clear()

    def _at(self, positions: Sequence[int], sample: Sample, epoch: int) -> Iterator[Sample]:
        for position in positions:
            yield self.augment(sample, sample_generator(self.plan.seed, epoch, position))

    def _usable(
        self, row: Mapping[str, Any], name: str, person: int, rng: np.random.Generator
    ) -> tuple[Sample, Sample] | None:
        """A sample and what augmentation makes of it, or None."""
        try:
            if self._read[0] != name:
                self._read = name, self.stream.reader.samples(row, name)
            sample = self._read[1][person]
            augmented = self.augment(check_holes(sample), rng)
        except BadSampleError as error:
            self._skip(error)
            return None
        return (sample, augmented) if shows_enough(augmented, self.min_visible, *self.targets) else None

    def _skip(self, error: BadSampleError) -> None:
        if not self.skip_bad:
            raise error
        logger.warning_once(f"Skipped: {error}")

    def _places(self, epoch: int) -> Iterator[Place]:
        """What each position in the epoch is, in order."""
        reader, position = self.stream.reader, 0
        while position < self.plan.samples_per_epoch:
            before = position
            for name, row in self.stream.rows(epoch):
                try:
                    people = len(reader.people(row, name)[0]) if reader.task == "pose" else 1
                except BadSampleError as error:
                    self._skip(error)
                    continue
                for person in range(people):
                    if position < self.plan.samples_per_epoch:
                        yield position, name, row, person
                        position += 1
                if position == self.plan.samples_per_epoch:
                    return
            if position == before:
                raise ValueError(f"{self.stream.name} holds nothing to train on.")


class StepPlan:
    """Which samples belong to which step, for every process: the same global batches whatever their number.

    A step (one update of the weights) takes `num_accumulated * num_processes * batch_size` samples that follow each
    other in the epoch's random order; the last step of an epoch is filled up from the front of that order.

    Args:
        num_samples: in the data set.
        batch_size: samples per process and batch.
        num_processes: processes.
        process: this one.
        num_accumulated: batches per step.
        seed: of the order.
        num_epochs: how often the data set is seen.
        start_step: first step to give, after a restart.
        max_steps: stop early.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_processes: int = 1,
        process: int = 0,
        num_accumulated: int = 1,
        seed: int = 0,
        num_epochs: int = 1,
        start_step: int = 0,
        max_steps: int | None = None,
    ):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.num_processes, self.process, self.num_accumulated = num_processes, process, num_accumulated
        self.samples_per_step = batch_size * num_processes * num_accumulated
        self.steps_per_epoch = -(-num_samples // self.samples_per_step)
        self.num_steps = self.steps_per_epoch * num_epochs if max_steps is None else max_steps
        self.num_epochs = -(-self.num_steps // self.steps_per_epoch)
        self.start_step = start_step

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch with those that fill up its last step."""
        return self.steps_per_epoch * self.samples_per_step

    def order(self, epoch: int) -> np.ndarray:
        """Indices (samples_per_epoch,) of an epoch, the same in every process."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return np.resize(order, self.samples_per_epoch)

    def is_mine(self, position: Any) -> Any:
        """Whether a place in an epoch's order is one of this process's."""
        return position // self.batch_size % self.num_processes == self.process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (epoch, index) for this process."""
        for step in range(self.start_step, self.num_steps):
            epoch, in_epoch = divmod(step, self.steps_per_epoch)
            if step == self.start_step or in_epoch == 0:
                order = self.order(epoch)
            batches = order[in_epoch * self.samples_per_step :][: self.samples_per_step]
            batches = batches.reshape(self.num_accumulated, self.num_processes, self.batch_size)
            for batch in batches[:, self.process]:
                yield [(epoch, int(index)) for index in batch]

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.num_accumulated


def collate(samples: Sequence[Sample]) -> Batch:
    """Augmented samples of one size as tensors; `name` stays a list.

    Returns:
        image (batch_size, 3, height, width) uint8; keypoints (batch_size, num_keypoints, 3); segmentation_map
        (batch_size, height, width) uint8; depth and normals float32 (normals channels first) with mask bool.
    """
    batch: Batch = {"name": [sample["name"] for sample in samples]}
    for key in samples[0]:
        if key != "name":
            batch[key] = torch.from_numpy(np.stack([sample[key] for sample in samples]))
    for key in ("image", "normals"):
        if key in batch:
            batch[key] = batch[key].permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
    return batch


class ModelInputs:
    """A collated batch as the model's inputs, on the batch's device, equal to what the image processor makes.

    Args:
        processor: a Sapiens image processor; gives mean, deviation, and the width and scale of the heatmaps.
    """

    def __init__(self, processor: Any):
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (
            (torch.tensor(v, dtype=torch.float64) / factor).float()
            for v in (processor.image_mean, processor.image_std)
        )
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.sigma, self.downscale = processor.keypoint_heatmap_sigma, processor.keypoint_heatmap_downscale_factor

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        inputs = {"pixel_values": image.float().sub_(mean).div_(std).contiguous()}
        if "keypoints" in batch:
            size = tuple(image.shape[-2:])
            heatmap_size = tuple(length // self.downscale for length in size)
            keypoints = batch["keypoints"]
            inputs["labels"], inputs["keypoint_weights"] = encode_heatmaps(
                keypoints[..., :2], (keypoints[..., 2] > 0).float(), size, heatmap_size, self.sigma
            )
        elif "segmentation_map" in batch:
            inputs["labels"] = batch["segmentation_map"].long()
        elif "depth" in batch:
            inputs["labels"] = depth_labels(batch["depth"], batch["mask"])
        elif "normals" in batch:
            inputs["labels"] = torch.where(batch["mask"][:, None], batch["normals"], NORMAL_BACKGROUND)
        return inputs


def depth_labels(depth: Tensor, mask: Tensor) -> Tensor:
    """Depth (batch_size, height, width) scaled to [0, 1] over each image's mask, -1 elsewhere.

    The range is that of the view the network sees, not of the whole photograph (original `GenerateDepthTarget`); a
    single value stays as it is.
    """
    flat, inside = depth.flatten(1), mask.flatten(1)
    low = torch.where(inside, flat, torch.inf).amin(dim=1).view(-1, 1, 1)
    high = torch.where(inside, flat, -torch.inf).amax(dim=1).view(-1, 1, 1)
    has_range = high > low
    scaled = torch.where(has_range, (depth - low) / torch.where(has_range, high - low, 1), depth)
    return torch.where(mask, scaled, DEPTH_BACKGROUND)


class TrainerCollator:
    """`data_collator` for `transformers.Trainer`: samples of a `TrainingSet` as the model's inputs."""

    def __init__(self, processor: Any):
        self.inputs = ModelInputs(processor)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return self.inputs(collate(samples))


class BatchLoader(DataLoader):
    """A loader whose processes leave Ctrl-C and SIGTERM to the main one, and end with it.

    Signals reach the whole group, and the main process still needs batches to end its step. But Python ends its
    children with SIGTERM and waits for them, for ever if an error has kept them alive: they are ended before.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, worker_init_fn=_leave_signals, **options)

    def __iter__(self) -> Any:
        batches = super().__iter__()
        if self.num_workers:
            _alive.add(batches)
        return batches


_alive: WeakSet[Any] = WeakSet()


@atexit.register
def _end_workers() -> None:
    for batches in list(_alive):
        batches._shutdown_workers()


def _leave_signals(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def make_loader(
    dataset: TrainingSet | StreamingSet, plan: StepPlan, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of the plan in their order. Workers live through all epochs; each holds two batches ahead."""
    options: dict[str, Any] = {"collate_fn": collate, "pin_memory": pin_memory}
    if isinstance(dataset, StreamingSet):
        return BatchLoader(dataset, batch_size=plan.batch_size, num_workers=min(num_workers, 1), **options)
    return BatchLoader(dataset, batch_sampler=plan, num_workers=num_workers, **options)

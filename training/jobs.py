"""What differs between the tasks: layout, augmentation, evaluator. Each script calls `train` with its options."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from sapiens_hf.labels import missing_pairs

from .augment import (
    DEPTH_AUGMENTATION,
    NO_POSE_AUGMENTATION,
    NORMAL_AUGMENTATION,
    SEGMENTATION_AUGMENTATION,
    DenseAugmentation,
    PoseAugmentation,
    augment_dense,
    augment_pose,
    fit_to_network,
)
from .build import build_model, build_processor, check_size
from .check_data import check_boxes, check_geometry, check_labels
from .data import Augment
from .evaluators import DepthEvaluator, Evaluator, NormalEvaluator, PoseEvaluator, SegmentationEvaluator
from .layouts import ClassLayout, KeypointLayout, class_layout, keypoint_layout
from .loop import Job, fit, start
from .options import RunOptions, parse_values
from .sources import image_files, open_samples
from .tables import COLUMNS, StreamSamples

logger = logging.get_logger(__name__)

DENSE = {"segmentation": SEGMENTATION_AUGMENTATION, "depth": DEPTH_AUGMENTATION, "normal": NORMAL_AUGMENTATION}


def train(options: RunOptions) -> dict[str, float]:
    """Build everything a run needs and fit."""
    check_size(options)
    accelerator = start(options)
    return fit(options, make_job(options), accelerator)


def make_job(options: RunOptions) -> Job:
    """Data, model, processor, augmentation and evaluator of a run.

    Raises:
        FileNotFoundError, ValueError: if an option names what is not there or does not fit; the message says which.
    """
    layout = layout_of(options)
    columns = parse_values(options.columns, list(COLUMNS), "--columns")
    shared: dict[str, Any] = dict(columns=columns, seed=options.seed)
    samples = open_samples(
        options.train_data,
        options.task,
        layout,
        options.train_split,
        image_folder=getattr(options, "image_folder", None),
        streaming=options.streaming,
        limit=options.max_train_samples,
        **shared,
    )
    wrong = None
    if not isinstance(samples, StreamSamples):
        if options.task in ("depth", "normal"):
            wrong = check_geometry(samples, options.task)
        elif isinstance(layout, ClassLayout):
            wrong = check_labels(samples, layout)
        else:
            wrong = check_boxes(samples)
    if wrong:
        wrong = (
            f"{options.train_data}: {wrong} `python -m training.check_data {options.train_data} --task "
            f"{options.task}` looks at all samples"
        )
        if not options.skip_bad_samples:
            raise ValueError(f"{wrong}; --skip_bad_samples trains all the same.")
        logger.warning(f"{wrong}.")
    eval_samples: Any = None
    if options.val_data:
        eval_samples = open_samples(
            options.val_data,
            options.task,
            layout,
            options.val_split,
            image_folder=getattr(options, "val_image_folder", None),
            limit=options.max_eval_samples,
            **shared,
        )
        if isinstance(eval_samples, StreamSamples):
            raise ValueError("--val_data cannot be a stream: evaluation needs to know how many samples there are.")
    model = build_model(options, layout)
    processor = build_processor(options, model)
    config = model.get_base_model().config if options.lora_r else model.config
    evaluator = make_evaluator(options, processor, layout, config) if eval_samples is not None else None
    augment = make_augment(options, tuple(config.image_size), layout)
    min_visible = min_visible_of(options, layout) if isinstance(layout, KeypointLayout) else 0
    loss_size = num_person_pixels if options.task == "normal" else None
    return Job(model, processor, samples, augment, evaluator, eval_samples, min_visible, loss_size=loss_size)


def end_processes() -> None:
    """The last thing that a program does."""
    PartialState().destroy_process_group()


def num_person_pixels(batch: Any) -> Any:
    """What the loss of normals divides by; that of the other tasks is a mean over images or all pixels."""
    return batch["mask"].sum()


def min_visible_of(options: RunOptions, layout: KeypointLayout) -> int:
    """How many keypoints a crop needs: the original's 4 of 17, 8 of 133 and of 308, and in proportion of others."""
    count, asked = len(layout.names), options.min_visible  # type: ignore[attr-defined]
    if asked is not None and asked > count:
        raise ValueError(f"--min_visible is {asked}, but the model has {count} keypoints: no crop could have so many.")
    if not options.augment:
        return 0
    return asked if asked is not None else min(8, max(1, count // 4))


def layout_of(options: RunOptions) -> KeypointLayout | ClassLayout | None:
    """Keypoints or classes of a run; None for depth and normals."""
    if options.task == "pose":
        return keypoint_layout(options.keypoint_set)  # type: ignore[attr-defined]
    return class_layout(options.class_set) if options.task == "segmentation" else None  # type: ignore[attr-defined]


def make_augment(options: RunOptions, size: tuple[int, int], layout: KeypointLayout | ClassLayout | None) -> Augment:
    """The task's augmentation with the run's changes, as (sample, generator) -> sample."""
    usual: PoseAugmentation | DenseAugmentation = PoseAugmentation() if options.task == "pose" else DENSE[options.task]
    known = [field.name for field in dataclasses.fields(usual)]
    changes = parse_values(options.augmentation, known, "--augmentation")
    for name, value in changes.items():
        expected = getattr(usual, name)
        if not _is_like(value, expected) and not (name == "max_class_share" and value is None):  # no limit
            raise ValueError(f"--augmentation {name} is {value!r}; expected something like {json.dumps(expected)}.")
    changed = dataclasses.replace(usual, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
    if layout is not None and options.augment and changed.flip_prob:
        pairs = layout.flip_pairs if isinstance(layout, KeypointLayout) else layout.swap_pairs
        alone = missing_pairs(layout.names, pairs)
        if alone:
            raise ValueError(
                f"{', '.join(map(repr, alone[:5]))} of {layout.name} have a side but no partner that a mirrored image "
                "would exchange them with. Name both sides, add flip_pairs (keypoints) or swap_pairs (classes) to the "
                "file, or train without mirroring: --augmentation flip_prob=0."
            )
    if isinstance(changed, PoseAugmentation):
        chosen = changed if options.augment else NO_POSE_AUGMENTATION
        return partial(augment_pose, size=size, layout=layout, options=chosen)
    if not options.augment:
        return partial(fit_to_network, size=size)
    settings: dict[str, Any] = {"backgrounds": image_files(getattr(options, "background_folder", None))}
    if isinstance(layout, ClassLayout):
        settings |= {"swap_pairs": layout.swap_pairs, "rotate_fill_label": layout.rotate_fill_label}
        settings |= {"ignore_index": layout.ignore_index}
    return partial(augment_dense, size=size, options=changed, **settings)


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a value is of the kind of another: a list of as many numbers, a truth value, or a number."""
    if isinstance(usual, tuple):
        return isinstance(value, list) and len(value) == len(usual) and all(_is_like(each, 0.0) for each in value)
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    return isinstance(value, int | float)


def make_evaluator(options: RunOptions, processor: Any, layout: Any, config: Any) -> Evaluator:
    """The task's evaluator."""
    if options.task == "pose":
        return PoseEvaluator(processor, config.flip_pairs if options.flip_test else None)  # type: ignore[attr-defined]
    if options.task == "segmentation":
        return SegmentationEvaluator(processor, len(layout.names), layout.ignore_index)
    return DepthEvaluator(processor) if options.task == "depth" else NormalEvaluator(processor)

"""Options of a run: one frozen dataclass per script, filled from the command line, a JSON file and a recipe.

Later ones win: the dataclass's defaults, the recipe, the JSON file (first argument, `run.json`), the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import HfArgumentParser

from .optim import OPTIMIZERS, SCHEDULES
from .recipes import recipe

OptionsType = TypeVar("OptionsType", bound="RunOptions")


def _option(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunOptions:
    """What the four scripts have in common."""

    # Data
    train_data: str = _option("", "annotation file, folder, `datasets` id or folder, or synthetic:SEED:COUNT:HxW")
    val_data: str | None = _option(None, "data set for evaluation; none: no evaluation")
    train_split: str = _option("train", "split of train_data, where it has splits")
    val_split: str = _option("val", "split of val_data, where it has splits")
    streaming: bool = _option(False, "stream a `datasets` source instead of copying it")
    samples_per_epoch: int | None = _option(None, "length of an epoch of a stream")
    columns: list[str] = _option([], "columns of a `datasets` source, as role=NAME, e.g. image=photo")
    max_train_samples: int | None = _option(None, "use only the first ones")
    max_eval_samples: int | None = _option(None, "use only the first ones")
    skip_bad_samples: bool = _option(False, "replace samples that cannot be used, with a warning, instead of stopping")
    augment: bool = _option(True, "augment the training samples")
    augmentation: list[str] = _option([], "changes of the augmentation, as name=VALUE, e.g. zoom=[0.5,1.5]")
    num_workers: int = _option(2, "processes per device that load data")

    # Model
    model_name_or_path: str | None = _option(None, "checkpoint to start from: folder, Hub id, or Meta's own file")
    model_size: str = _option("0.3b", "0.3b, 0.6b, 1b, 2b or tiny, where there is no checkpoint")
    image_size: list[int] = _option([], "height and width of the network's input; default: the checkpoint's")
    config_overrides: list[str] = _option([], "fields of SapiensConfig, as name=VALUE, e.g. hidden_size=192")
    attn_implementation: str | None = _option(None, "sdpa, eager, flash_attention_2, ...")
    gradient_checkpointing: bool = _option(False, "keep less for the backward pass and compute it again")
    torch_compile: str | None = _option(None, "backend of torch.compile, e.g. inductor")
    freeze_layers: int = _option(0, "embeddings and this many first blocks do not train; -1: the whole backbone")
    lora_r: int = _option(0, "rank of LoRA adapters in the backbone; 0: train all weights")
    lora_alpha: int | None = _option(None, "scale of LoRA; default: twice the rank")

    # Optimisation
    recipe: str | None = _option(None, "a recipe of the paper, e.g. pose-coco-1b: sets what you leave open")
    learning_rate: float = _option(5e-4, "of the head, at its highest")
    lr_base_batch: int = _option(0, "if not 0: global batch for which learning_rate is meant, else it is scaled")
    optimizer: str = _option("adamw", "adamw, the original's, or muon, for networks trained from random weights")
    weight_decay: float = _option(0.1, "of the optimizer")
    adam_betas: list[float] = _option([0.9, 0.999], "the two betas of AdamW")
    layer_decay_rate: float | None = _option(0.85, "factor on the learning rate per layer, from the head down")
    schedule: str = _option("poly", f"{', '.join(SCHEDULES)}")
    milestones: list[int] = _option([], "epochs at which multistep falls")
    warmup_steps: int = _option(400, "steps of linear warm-up")
    warmup_start_factor: float = _option(1e-3, "factor on the learning rate in the first step of the warm-up")
    num_epochs: int = _option(200, "how often the data set is seen")
    max_steps: int | None = _option(None, "stop after so many steps; the schedule then spans them")
    batch_size: int = _option(2, "samples per process and batch")
    gradient_accumulation_steps: int = _option(1, "batches per step")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm; 0: not at all")
    mixed_precision: str | None = _option(None, "no, fp16 or bf16; default: as accelerate is configured")
    seed: int = _option(0, "of weights, order and augmentation")
    loss_jump_factor: float = _option(25.0, "a loss so much larger than the one before is not used; 0: always used")
    max_bad_steps: int = _option(10, "stop after so many unusable losses in a row")

    # Run
    output_dir: str = _option("", "folder of the run")
    resume_from_checkpoint: str | None = _option(None, "latest, or the folder of a checkpoint")
    save_every: int = _option(1000, "steps between checkpoints; one more at the end")
    keep_checkpoints: int = _option(2, "older checkpoints are deleted")
    eval_every: int = _option(1000, "steps between evaluations; one more at the end")
    eval_batch_size: int = _option(4, "samples per process and batch in evaluation")
    log_every: int = _option(10, "steps between lines of metrics.jsonl")
    report_to: list[str] = _option([], "trackers: tensorboard, trackio, wandb, ...")
    push_to_hub: bool = _option(False, "upload the final model")
    hub_model_id: str | None = _option(None, "repository to upload to; default: the run folder's name")
    hub_private: bool = _option(False, "make the repository private")

    @property
    def task(self) -> str:
        """The task of the script, from the name of its options class."""
        return type(self).__name__.removesuffix("Options").lower()


@dataclass(frozen=True)
class PoseOptions(RunOptions):
    """Options of finetune_pose.py."""

    keypoint_set: str = _option("coco", "coco, coco_wholebody, goliath, their count, or a JSON file with names")
    image_folder: str | None = _option(None, "where the images of train_data are; default: looked for beside the file")
    val_image_folder: str | None = _option(None, "likewise for val_data")
    keypoint_loss_top_k: int | None = _option(None, "the loss takes each sample's hardest keypoints only")
    min_visible: int | None = _option(
        None, "a crop with targets for fewer keypoints is replaced by another; default: 4 of 17, 8 of 133 and of 308"
    )
    heatmap_sigma: float | None = _option(
        None, "width of the target bumps in heatmap pixels; 6 suits 1024 x 768, 2 256 x 192"
    )
    flip_test: bool = _option(False, "evaluate with the mirrored image too, as the published numbers")


@dataclass(frozen=True)
class SegmentationOptions(RunOptions):
    """Options of finetune_segmentation.py."""

    class_set: str = _option("goliath28", "goliath28, lip20, cihp20, face_synthetics19, or a JSON file with names")
    class_weights: bool = _option(True, "weigh the classes as the set says")
    background_folder: str | None = _option(None, "images to put behind people while training")


@dataclass(frozen=True)
class DepthOptions(RunOptions):
    """Options of finetune_depth.py."""

    background_folder: str | None = _option(None, "images to put behind people while training")


@dataclass(frozen=True)
class NormalOptions(RunOptions):
    """Options of finetune_normal.py."""

    background_folder: str | None = _option(None, "images to put behind people while training")


def parse_options(options_class: type[OptionsType], arguments: Sequence[str] | None = None) -> OptionsType:
    """Options from command-line arguments; the first may be a JSON file.

    Raises:
        ValueError: for an unknown key in the file or recipe, or a value that cannot work; names the nearest ones.
    """
    import sys

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(options_class, description=options_class.__doc__)
    stored: dict[str, Any] = {}
    if arguments and arguments[0].lower().endswith(".json"):
        path = Path(arguments.pop(0))
        if not path.is_file():
            raise ValueError(f"There is no options file {path}.")
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = stored.get("options", stored)  # a run.json holds more than the options
        check_names("option", stored, [f.name for f in dataclasses.fields(options_class)], str(path))
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=stored.get("recipe"))
    chosen = first.parse_known_args(arguments)[0].recipe
    task = options_class.__name__.removesuffix("Options").lower()
    from_recipe = recipe(chosen, task).options() if chosen else {}
    parser.set_defaults(**from_recipe | stored)
    options, unknown = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    if unknown:
        check_names(
            "option", unknown[:1], [f"--{field.name}" for field in dataclasses.fields(options_class)], "arguments"
        )
        raise ValueError(f"{unknown} belong to no option.")
    return check_options(options)


def check_options(options: OptionsType) -> OptionsType:
    """Refuse options that cannot work, before anything is loaded."""
    if not options.train_data or not options.output_dir:
        raise ValueError("--train_data and --output_dir are needed: what to train on, and where the run is written.")
    if options.image_size and len(options.image_size) != 2:
        raise ValueError(f"--image_size takes height and width, e.g. 1024 768; got {options.image_size}.")
    check_names("schedule", [options.schedule], SCHEDULES, "--schedule")
    check_names("optimizer", [options.optimizer], OPTIMIZERS, "--optimizer")
    for name in (
        "batch_size",
        "gradient_accumulation_steps",
        "log_every",
        "save_every",
        "eval_every",
        "eval_batch_size",
        "num_epochs",
    ):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected at least 1.")
    for name in ("max_steps", "max_train_samples", "max_eval_samples", "samples_per_epoch"):
        if getattr(options, name, None) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected at least 1, or leave it out.")
    if not 0 <= options.learning_rate < float("inf"):
        raise ValueError(f"--learning_rate is {options.learning_rate}; expected a number, not below 0.")
    for name in ("weight_decay", "max_grad_norm", "warmup_steps", "loss_jump_factor"):
        if getattr(options, name) is not None and not getattr(options, name) >= 0:
            raise ValueError(f"--{name} is {getattr(options, name)}; expected 0 or more.")
    source = getattr(options, "model_name_or_path", None)
    if source and Path(source).is_dir() and Path(source).resolve() == Path(options.output_dir).resolve():
        raise ValueError(f"--output_dir is {source}, the model to start from, which the run would overwrite.")
    if getattr(options, "lora_r", 0) and getattr(options, "freeze_layers", 0) == -1:
        raise ValueError("--freeze_layers -1 leaves no block for the adapters of --lora_r; give one of the two.")
    if options.mixed_precision not in (None, "no", "fp16", "bf16"):
        raise ValueError(f"--mixed_precision is {options.mixed_precision!r}; expected no, fp16 or bf16.")
    return options


def parse_values(pairs: Sequence[str], known: Sequence[str], option: str) -> dict[str, Any]:
    """`name=VALUE` pairs; values are JSON where they can be read as JSON, else text.

    Raises:
        ValueError: for a pair without "=" or an unknown name.
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} takes name=VALUE, got {pair!r}.")
        check_names("name", [name], known, option)
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return values


def check_names(kind: str, names: Any, known: Sequence[str], where: str) -> None:
    """Refuse unknown names with the nearest known one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ValueError(f"{where}: unknown {kind} {name!r}. {hint}")

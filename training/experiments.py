"""Small experiments that run here: pretrain on pictures, fine-tune with few labels, read the result.

Each run is a folder made by the ordinary training programs; one that has ended is not run again, one that was killed
goes on.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sapiens_hf import SapiensConfig
from sapiens_hf.synthetic.writers import Recipe, make

from .finetune_depth import main as finetune_depth
from .finetune_normal import main as finetune_normal
from .finetune_pose import main as finetune_pose
from .finetune_segmentation import main as finetune_segmentation
from .generic_images import write_generic
from .loop import RESULTS_FILE
from .mae_cost import mae_flops
from .pretrain_mae import main as pretrain

Item, Result = TypeVar("Item"), TypeVar("Result")
TRAIN_SEED, VAL_SEED, LABEL_SEED = 101, 202, 303
FINETUNE: dict[str, Callable[[Sequence[str]], dict[str, float]]] = {
    "pose": finetune_pose,
    "segmentation": finetune_segmentation,
    "depth": finetune_depth,
    "normal": finetune_normal,
}


class Metric(NamedTuple):
    """What a task is judged by, as its evaluator calls it."""

    name: str
    is_higher_better: bool


# The scripts choose their best depth model by delta1, which is 0.99 for everybody here; the paper ranks by RMSE.
METRICS = {
    "pose": Metric("pck", True),
    "segmentation": Metric("mean_iou", True),
    "depth": Metric("rmse", False),
    "normal": Metric("mean", False),
}
HEAD_CHANNELS = 64
# The original's augmentation is for long runs of large networks: these see too little of each view to learn from it.
_DENSE = ("background_prob=0", "zoom=[0.75,1.35]", "rotate_prob=0")
MILD_AUGMENTATION = {
    "pose": ("half_body_prob=0.1", "scale_spread=0.2", "rotate_deg=20", "hole_prob=0", "shift_share=0.05"),
    "segmentation": (*_DENSE, "max_class_share=null"),
    "depth": _DENSE,
    "normal": _DENSE,
}
# Input pixels per pixel of the maps: as the paper's heads, but full resolution for depth is not worth its price.
MAP_STRIDE = {"pose": 4, "segmentation": 2, "depth": 2, "normal": 2}


@dataclass(frozen=True)
class Network:
    """The dimensions of a small encoder."""

    hidden_size: int
    num_hidden_layers: int
    patch_size: int = 16
    decoder_hidden_size: int = 64
    decoder_num_hidden_layers: int = 2

    @property
    def name(self) -> str:
        """For folders and figures."""
        return f"{self.hidden_size}x{self.num_hidden_layers}"

    def fields(self) -> dict[str, int]:
        """Fields of the configuration."""
        heads = self.hidden_size // 16
        return dict(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=heads,
            intermediate_size=4 * self.hidden_size,
            patch_size=self.patch_size,
        )

    def decoder_fields(self) -> dict[str, int]:
        """Those of the part that rebuilds images."""
        width = self.decoder_hidden_size
        return dict(
            decoder_hidden_size=width,
            decoder_num_hidden_layers=self.decoder_num_hidden_layers,
            decoder_num_attention_heads=width // 16,
            decoder_intermediate_size=4 * width,
        )

    def config(self, size: tuple[int, int]) -> SapiensConfig:
        """Of the masked autoencoder."""
        return SapiensConfig(image_size=list(size), use_cls_token=True, **self.fields(), **self.decoder_fields())

    def flops(self, size: tuple[int, int]) -> int:
        """Operations of a training step per image."""
        return mae_flops(self.config(size))


@dataclass(frozen=True)
class Scale:
    """How large an experiment is."""

    size: tuple[int, int] = (96, 72)
    """Height and width of pictures and network input in pixels."""
    pretrain_steps: int = 1200
    pretrain_batch: int = 32
    pretrain_lr: float = 1.5e-3
    finetune_steps: int = 200
    finetune_batch: int = 8
    finetune_lr: float = 4e-3
    """Of the head: a narrow last layer grows too slowly at the paper's rate."""
    finetune_layer_decay: float = 0.8
    num_labels: int = 64
    """Labelled pictures to fine-tune with."""
    num_val: int = 128
    norm_pix_loss: bool = False
    """Plain pixels: few steps do not get to the details that are left when each patch is normalised."""


@dataclass(frozen=True)
class Run:
    """One run of one of the programs."""

    task: str
    """"pretraining" or one of the four tasks."""
    folder: Path
    arguments: tuple[str, ...]


def pretrain_run(folder: Path, images: Path, network: Network, scale: Scale, seed: int, steps: int) -> Run:
    """Pretrain on a folder of pictures.

    Args:
        folder: of the run.
        images: pictures to learn from.
        network: the encoder.
        scale: of the experiment.
        seed: of weights, order and masks.
        steps: updates of the weights.
    """
    fields = {**network.fields(), **network.decoder_fields(), "norm_pix_loss": scale.norm_pix_loss}
    arguments = [
        *("--train_data", str(images), "--output_dir", str(folder), "--model_size", "tiny"),
        *("--image_size", *map(str, scale.size), "--config_overrides", *override(fields)),
        *("--batch_size", str(scale.pretrain_batch), "--learning_rate", str(scale.pretrain_lr)),
        *("--lr_base_batch", str(scale.pretrain_batch), "--max_steps", str(steps), "--seed", str(seed)),
        *("--num_workers", "0", "--log_every", "50", "--save_every", "500", "--keep_checkpoints", "1"),
        *("--pictures_every", str(max(steps // 2, 1)), "--min_side_px", "16"),
    ]
    return Run("pretraining", folder, tuple(arguments))


def finetune_run(
    folder: Path, task: str, data: Path, val: Path, start: Path | None, network: Network, scale: Scale, seed: int
) -> Run:
    """Fine-tune for a task, from a pretrained folder or from random weights; all else is equal.

    Args:
        folder: of the run.
        task: one of the four.
        data: labelled pictures to train on.
        val: and to evaluate on.
        start: folder of the pretrained model; None for random weights.
        network: its encoder.
        scale: of the experiment.
        seed: of new weights, order and augmentation.
    """
    num_deconvs = int(math.log2(network.patch_size // MAP_STRIDE[task]))  # each doubles the resolution of the tokens
    fields = head_fields([HEAD_CHANNELS] * num_deconvs, [HEAD_CHANNELS]) | {"patch_embeddings_padding": 0}
    if start is None:
        fields |= network.fields()
    arguments = [
        *("--train_data", labels_of(task, data), "--val_data", labels_of(task, val), "--output_dir", str(folder)),
        *("--max_train_samples", str(scale.num_labels), "--max_eval_samples", str(scale.num_val)),
        *(("--model_size", "tiny") if start is None else ("--model_name_or_path", str(start))),
        *("--image_size", *map(str, scale.size), "--config_overrides", *override(fields)),
        *("--batch_size", str(scale.finetune_batch), "--learning_rate", str(scale.finetune_lr)),
        *("--max_steps", str(scale.finetune_steps), "--schedule", "cosine_by_step"),
        *("--layer_decay_rate", str(scale.finetune_layer_decay), "--augmentation", *MILD_AUGMENTATION[task]),
        *("--warmup_steps", str(scale.finetune_steps // 10), "--seed", str(seed), "--num_workers", "0"),
        *("--save_every", "1000000", "--eval_every", "1000000", "--keep_checkpoints", "1", "--eval_batch_size", "16"),
    ]
    arguments += ["--heatmap_sigma", "2", "--min_visible", "1"] if task == "pose" else []
    arguments += ["--class_weights", "false"] if task == "segmentation" else []
    return Run(task, folder, tuple(arguments))


def head_fields(deconv_out_channels: Sequence[int], conv_out_channels: Sequence[int]) -> dict[str, Any]:
    """Fields of the configuration for a head of deconvolutions and 1 x 1 convolutions of so many channels."""
    return dict(
        head_dropout2d_prob=0,
        deconv_out_channels=list(deconv_out_channels),
        deconv_kernel_sizes=[4] * len(deconv_out_channels),
        conv_out_channels=list(conv_out_channels),
        conv_kernel_sizes=[1] * len(conv_out_channels),
    )


def override(fields: dict[str, Any]) -> list[str]:
    """Fields of the configuration as the scripts' `--config_overrides` takes them."""
    return [f"{name}={json.dumps(value)}" for name, value in fields.items()]


def labels_of(task: str, folder: Path) -> str:
    """What a script reads of a folder of `labelled_people`, for `--train_data` and `--val_data`."""
    return str(folder / "annotations" / "person_keypoints.json" if task == "pose" else folder)


def execute(run: Run) -> dict[str, float]:
    """Do a run, or go on with it, or read what it gave."""
    results = run.folder / RESULTS_FILE
    if not results.is_file():
        program = pretrain if run.task == "pretraining" else FINETUNE[run.task]
        more = ["--resume_from_checkpoint", "latest"] if (run.folder / "checkpoints").is_dir() else []
        program([*run.arguments, *more])
    return json.loads(results.read_text(encoding="utf-8"))


def execute_all(runs: Sequence[Run], num_processes: int) -> list[dict[str, float]]:
    """Runs in several processes; results in the order of the runs."""
    return in_processes(execute, runs, num_processes)


def in_processes(work: Callable[[Item], Result], items: Sequence[Item], num_processes: int) -> list[Result]:
    """`work` of each item, in processes of one thread each (or in this one, if there is to be one)."""
    if num_processes == 1:
        return [work(item) for item in items]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=single_thread) as pool:
        return list(pool.map(work, items))


def single_thread() -> None:
    """Keep a process to one core."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def labelled_people(
    folder: Path, seed: int, count: int, size: tuple[int, int], workers: int = 1, people: tuple[int, int] = (1, 1)
) -> Path:
    """Synthetic people with the labels of all four tasks: one in the middle of each picture, perhaps others beside."""
    make(folder, Recipe(seed, *size, people, ("coco", "trees"), True), count, workers)
    return folder


def pictures_of_people(folder: Path, seed: int, count: int, size: tuple[int, int], workers: int = 1) -> Path:
    """Synthetic people without labels, to pretrain on; returns the folder of pictures."""
    make(folder, Recipe(seed, *size, (1, 1), ("coco",), True), count, workers)
    return folder / "images"


def pictures_of_anything_else(folder: Path, seed: int, count: int, size: tuple[int, int], workers: int = 1) -> Path:
    """As many pictures without people."""
    work = partial(write_generic, folder=folder, seed=seed, size=size)
    in_processes(work, [range(first, count, workers) for first in range(workers)], workers)
    return folder


def first_pictures(folder: Path, source: Path, count: int) -> Path:
    """A folder of links to the first pictures of another."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.png"))[:count]:
        place = folder / path.name
        if not place.exists():
            place.symlink_to(path.resolve())
    return folder

"""The small checkpoints of `checkpoints/`: how they were made, and how to make them again.

    python -m training.tiny --output_dir runs/tiny --workers 2                   # everything, some hours on two cores
    python -m training.tiny --output_dir runs/tiny --evaluate_only checkpoints   # score what is there

Four networks of 1.9 million parameters for 128 x 96 pixels learn from synthetic people. A first run
on body parts starts from random weights; body parts then go on from it, keypoints and depth start from its encoder.
Normals start from random weights. Every run ends in a folder that is not made again, so the command goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from .build import MODEL_CLASSES
from .checkpoints import read_metrics, write_json
from .evaluators import (
    DepthEvaluator,
    EvaluationSet,
    Evaluator,
    NormalEvaluator,
    PoseEvaluator,
    SegmentationEvaluator,
    evaluate,
)
from .experiments import MILD_AUGMENTATION, Run, execute_all, single_thread
from .layouts import class_layout, keypoint_layout
from .loop import METRICS_FILE, RUN_FILE
from .sources import open_samples

SIZE = (256, 192)  # of the pictures
INPUT_SIZE = (128, 96)  # of the networks: a quarter of the work
PEOPLE = (1, 2)
TRAIN_SEED, NUM_TRAIN = 1, 10_000
VAL_SEED, NUM_VAL = 900_001, 500
SEED = 0
FIRST_FOLDER, ENCODER_FOLDER = "first", "encoder"


@dataclass(frozen=True)
class Part:
    """How one task is trained.

    Attributes:
        max_steps: updates of the weights, of `batch_size` pictures each.
        deconv_out_channels: of the head; each layer doubles the resolution of the tokens.
        conv_out_channels: 1 x 1 convolutions after them.
        options: further ones of the script.
        start: what it starts from: random weights, the first run's encoder, or all of that network.
    """

    max_steps: int
    deconv_out_channels: tuple[int, ...]
    conv_out_channels: tuple[int, ...] = ()
    options: tuple[str, ...] = ()
    start: str = "random weights"
    batch_size: int = 16
    learning_rate: float = 1.5e-3


ENCODER, NETWORK = "the encoder of a run on body parts", "a run on body parts"
FIRST_RUN = Part(6000, (64, 64, 64), (), ("--class_weights", "false"))
PARTS = {
    "segmentation": Part(3500, (64, 64, 64), (), ("--class_weights", "false"), NETWORK),
    "normal": Part(5000, (64, 64, 64)),
    "pose": Part(3500, (64, 64), (64,), ("--keypoint_set", "coco", "--heatmap_sigma", "1.5"), ENCODER),
    "depth": Part(1500, (64, 64, 32), start=ENCODER),
}


@dataclass(frozen=True)
class Goal:
    """What a checkpoint should reach on the pictures it has not seen."""

    metric: str
    title: str
    value: float
    higher_is_better: bool = True

    def is_met(self, reached: float) -> bool:
        """Whether a score is at least as good."""
        return reached >= self.value if self.higher_is_better else reached <= self.value


GOALS = {
    "pose": Goal("pck_visible", "PCK@0.05 of the box diagonal, visible keypoints", 0.93),
    "segmentation": Goal("mean_iou", "mIoU", 0.70),
    "depth": Goal("delta1", "delta1 after scale and shift", 0.95),
    "normal": Goal("mean", "mean angle in degrees", 15.0, higher_is_better=False),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Run from command-line arguments; returns each task's scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="data, runs and, in checkpoints/, the result")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw people, and runs at a time")
    parser.add_argument("--steps", type=int, help="of each task, to see that it works")
    parser.add_argument("--num_train", type=int, default=NUM_TRAIN)
    parser.add_argument("--num_val", type=int, default=NUM_VAL)
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16"))
    parser.add_argument("--evaluate_only", type=Path, metavar="FOLDER", help="score the checkpoints of this folder")
    options = parser.parse_args(arguments)
    folder = options.output_dir
    single_thread()  # what is shipped does not depend on the number of cores
    val = people(folder / "humans_val", VAL_SEED, options.num_val, options.workers)
    if options.evaluate_only:
        scores = {task: evaluate_folder(options.evaluate_only / f"tiny-{task}", task, val) for task in PARTS}
    else:
        train = people(folder / "humans", TRAIN_SEED, options.num_train, options.workers)
        runs = planned(train, val, folder, options.steps, options.mixed_precision)
        execute_all([run for run in runs if "--model_name_or_path" not in run.arguments], options.workers)
        encoder_of(folder / FIRST_FOLDER, folder / ENCODER_FOLDER)
        execute_all(runs, options.workers)
        scores = {}
        for task in PARTS:
            place = folder / "checkpoints" / f"tiny-{task}"
            export(folder / task, task, place)
            scores[task] = evaluate_folder(place, task, val)
            finish_card(folder / task, task, place, scores[task], options)
    print(table(scores))
    return scores


def people(folder: Path, seed: int, count: int, workers: int) -> Path:
    """Synthetic people with all labels: one person in the middle of each picture, sometimes another beside."""
    from sapiens_hf.synthetic.writers import Recipe, make

    make(folder, Recipe(seed, *SIZE, PEOPLE, ("coco", "trees"), True), count, workers)
    return folder


def planned(train: Path, val: Path, folder: Path, steps: int | None, mixed_precision: str) -> list[Run]:
    """The five runs: the first one, then one per task."""
    starts = {NETWORK: folder / FIRST_FOLDER, ENCODER: folder / ENCODER_FOLDER}
    runs = [program("segmentation", FIRST_RUN, train, val, folder / FIRST_FOLDER, None, steps, mixed_precision)]
    for task, part in PARTS.items():
        runs.append(program(task, part, train, val, folder / task, starts.get(part.start), steps, mixed_precision))
    return runs


def program(
    task: str,
    part: Part,
    train: Path,
    val: Path,
    folder: Path,
    start: Path | None,
    steps: int | None,
    mixed_precision: str,
) -> Run:
    """One of the fine-tuning scripts with all its arguments."""
    max_steps = steps or part.max_steps
    fields = {
        "deconv_out_channels": list(part.deconv_out_channels),
        "deconv_kernel_sizes": [4] * len(part.deconv_out_channels),
        "conv_out_channels": list(part.conv_out_channels),
        "conv_kernel_sizes": [1] * len(part.conv_out_channels),
    }
    if start is not None:
        fields |= {"head_dropout2d_prob": 0.0, "patch_embeddings_padding": 0}  # the encoder's, not the task's
    arguments = [
        *("--train_data", labels_of(task, train), "--val_data", labels_of(task, val), "--output_dir", str(folder)),
        *(("--model_size", "tiny") if start is None else ("--model_name_or_path", str(start))),
        *("--image_size", *map(str, INPUT_SIZE)),
        *("--config_overrides", *(f"{name}={json.dumps(value)}" for name, value in fields.items())),
        *("--augmentation", *MILD_AUGMENTATION[task], *part.options),
        *("--max_steps", str(max_steps), "--batch_size", str(part.batch_size)),
        *("--learning_rate", str(part.learning_rate), "--schedule", "cosine_by_step", "--layer_decay_rate", "0.85"),
        *("--warmup_steps", str(min(200, max_steps // 10)), "--weight_decay", "0.05"),
        *("--mixed_precision", mixed_precision, "--seed", str(SEED), "--num_workers", "0", "--log_every", "20"),
        *("--save_every", "500", "--keep_checkpoints", "1", "--eval_every", "1000", "--eval_batch_size", "20"),
    ]
    return Run(task, folder, tuple(arguments))


def labels_of(task: str, folder: Path) -> str:
    """What the script of a task reads of such a folder."""
    return str(folder / "annotations" / "person_keypoints.json" if task == "pose" else folder)


def encoder_of(run: Path, folder: Path) -> Path:
    """The encoder of a finished run as a folder of its own, for the other tasks to start from."""
    from sapiens_hf import SapiensModel

    if not (folder / "model.safetensors").is_file():  # which is written after the configuration
        SapiensModel.from_pretrained(run, dtype=torch.float32).save_pretrained(folder)
    return folder


def export(run: Path, task: str, folder: Path) -> None:
    """The final model of a run as a complete repository, its weights in float16.

    They are half as large as in float32; `dtype` in config.json stays float32, in which a CPU computes.
    """
    import sapiens_hf
    from sapiens_hf.hub import build_repository

    model = getattr(sapiens_hf, MODEL_CLASSES[task]).from_pretrained(run, dtype=torch.float32)
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(run)
    model.config._name_or_path = ""
    repo_id = f"checkpoints/{folder.name}"  # for the card's snippets, which then run in a checkout
    options = dict(dtype=torch.float16, license="apache-2.0", repo_id=repo_id, overwrite=True)
    build_repository(model, processor, folder, **options)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"dtype": "float32"})


def evaluate_folder(folder: Path, task: str, data: Path) -> dict[str, float]:
    """Scores of a checkpoint on labelled pictures, as the scripts compute them."""
    from accelerate import Accelerator

    import sapiens_hf

    model = getattr(sapiens_hf, MODEL_CLASSES[task]).from_pretrained(folder)
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(folder)
    layout = (
        keypoint_layout("coco") if task == "pose" else class_layout("goliath28") if task == "segmentation" else None
    )
    evaluator: Evaluator
    if task == "pose":
        evaluator = PoseEvaluator(processor)
    elif task == "segmentation":
        evaluator = SegmentationEvaluator(processor, model.config.num_labels)
    else:
        evaluator = DepthEvaluator(processor) if task == "depth" else NormalEvaluator(processor)
    samples = EvaluationSet(open_samples(labels_of(task, data), task, layout), evaluator)
    return evaluate(model, samples, samples.loader(20, 1, 0, 0), Accelerator(cpu=True))


def finish_card(run: Path, task: str, folder: Path, scores: dict[str, float], options: argparse.Namespace) -> None:
    """Put scores, data and recipe into the card, and the recipe itself beside it."""
    card = ModelCard.load(folder / "README.md")
    goal = GOALS[task]
    text = TRAINING_NOTE.format(
        num_train=options.num_train,
        train_seed=TRAIN_SEED,
        num_val=options.num_val,
        val_seed=VAL_SEED,
        steps=options.steps or PARTS[task].max_steps,
        batch=PARTS[task].batch_size,
        start=PARTS[task].start + (FIRST_NOTE if PARTS[task].start in (NETWORK, ENCODER) else ""),
        seed=SEED,
        hardware=describe_run(run),
        goal=f"{goal.value:g}",
        title=goal.title,
        rows="\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items()),
    )
    head, licence, tail = card.content.partition("## Licence")
    (folder / "README.md").write_text(
        f"---\n{card.data.to_yaml()}\n---\n{head}{text}{licence}{tail}", encoding="utf-8"
    )
    recipe = json.loads((run / RUN_FILE).read_text())["options"]
    for name in ("train_data", "val_data", "output_dir", "model_name_or_path", "resume_from_checkpoint"):
        recipe[name] = Path(recipe[name]).name if recipe[name] else recipe[name]
    write_json(folder / "training.json", {"options": recipe, "results": scores})


FIRST_NOTE = f" ({FIRST_RUN.max_steps} steps of {FIRST_RUN.batch_size} from random weights)"
TRAINING_NOTE = """## Training and evaluation

Trained with `python -m training.tiny`: {num_train} synthetic people (`sapiens_hf.synthetic`, seed {train_seed}),
{steps} steps of {batch} from {start}, seed {seed}. {hardware} The options of the run are in training.json.

Scores of these weights on {num_val} other synthetic pictures (seed {val_seed}). The aim was {title}: {goal}.

| metric | value |
|---|---|
{rows}

It has seen drawn people only, one or two in a picture of 256 x 192 pixels, and is meant for tests and for trying out
programs: on photographs it is far from Meta's checkpoints.

"""


def describe_run(run: Path) -> str:
    """How long a run took, from its log."""
    rows = [row for row in read_metrics(run / METRICS_FILE) if "images_per_s" in row]
    steps = [row["step"] for row in rows]
    batch = json.loads((run / RUN_FILE).read_text())["options"]["batch_size"]
    seconds = sum((now - last) * batch / row["images_per_s"] for last, now, row in zip([0, *steps], steps, rows))
    return f"That took {seconds / 60:.0f} minutes on one core of a CPU."


def table(scores: dict[str, dict[str, float]]) -> str:
    """Scores beside the goals."""
    lines = [f"{'task':14}{'metric':52}{'reached':>9}{'goal':>8}"]
    for task, values in scores.items():
        goal = GOALS[task]
        reached = values[goal.metric]
        verdict = "met" if goal.is_met(reached) else "NOT met"
        lines.append(f"{task:14}{goal.title:52}{reached:9.3f}{goal.value:8g}  {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The small checkpoints of `checkpoints/`: how they were made, and how to make them again.

    python -m training.tiny --output_dir runs/tiny --workers 2                   # everything, some hours on two cores
    python -m training.tiny --output_dir runs/tiny --evaluate_only checkpoints   # score what is there

Four networks of 1.9 million parameters, for 128 x 96 pixels (body parts: 256 x 192), learn from synthetic people, in
the runs of `RUNS`. Each ends in a folder that is not made again, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from .balance import balance
from .build import MODEL_CLASSES
from .checkpoints import read_metrics, write_json
from .evaluators import EvaluationSet, evaluate
from .experiments import (
    MILD_AUGMENTATION,
    Run,
    execute_all,
    head_fields,
    labelled_people,
    labels_of,
    override,
    single_thread,
)
from .jobs import layout_of, make_evaluator
from .layouts import class_layout
from .loop import METRICS_FILE, RUN_FILE
from .options import DepthOptions, NormalOptions, PoseOptions, RunOptions, SegmentationOptions, parse_options
from .sources import open_samples

SIZE = (256, 192)  # of the pictures
INPUT_SIZE = (128, 96)  # of the networks but one: a quarter of the work
PATCH_SIZE = 16  # that of every Sapiens of the paper
PEOPLE = (1, 2)
TRAIN_SEED, NUM_TRAIN = 1, 20_000
BALANCE_SEED, NUM_BALANCE = 800_001, 500  # neither to train on nor to score on
VAL_SEED, NUM_VAL = 900_001, 500
SEED = 0
ENCODER_FOLDER = "encoder"  # in the folder of a run; after it the size of patches that were stretched


@dataclass(frozen=True)
class Task:
    """What the runs of a task share.

    Attributes:
        options: the class that reads the script's options.
        deconv_out_channels: of the head for patches of `PATCH_SIZE`; each layer doubles the resolution of the tokens.
        conv_out_channels: 1 x 1 convolutions after them.
        arguments: further ones of the script.
    """

    options: type[RunOptions]
    deconv_out_channels: tuple[int, ...]
    conv_out_channels: tuple[int, ...] = ()
    arguments: tuple[str, ...] = ()


TASKS = {
    "pose": Task(PoseOptions, (64, 64), (64,), ("--keypoint_set", "coco", "--heatmap_sigma", "1.5", "--flip_test")),
    "segmentation": Task(SegmentationOptions, (64, 64, 64)),
    "depth": Task(DepthOptions, (64, 64, 32)),
    "normal": Task(NormalOptions, (64, 64, 64)),
}


@dataclass(frozen=True)
class Leg:
    """A run of one of the scripts.

    Attributes:
        task: one of the four.
        max_steps: updates of the weights, of `batch_size` pictures each.
        start: the run that it starts from, of which another task takes the encoder only; None for random weights.
        learning_rate: at its highest.
        attn_implementation: "eager" is the fastest one on a CPU for few tokens in bfloat16 (docs/training.md).
        optimizer: one of the scripts'.
        layer_decay_rate: factor on the learning rate per layer, from the head down.
        input_size: height and width of the network in pixels.
        patch_size: in pixels; its start's, or a multiple for an encoder whose patches are then stretched. Smaller ones
            need fewer deconvolutions.
        deconv_out_channels: instead of the task's.
        max_train_samples: the first ones only (pictures, of pose people), as for the runs that were made with fewer.
        arguments: further ones of the script.
    """

    task: str
    max_steps: int
    start: str | None = None
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    attn_implementation: str | None = None
    optimizer: str = "adamw"
    layer_decay_rate: float = 0.85
    input_size: tuple[int, int] = INPUT_SIZE
    patch_size: int = PATCH_SIZE
    deconv_out_channels: tuple[int, ...] = ()
    max_train_samples: int | None = None
    arguments: tuple[str, ...] = ()

    @property
    def keeps_head(self) -> bool:
        """Whether it starts from a whole network."""
        return self.start is not None and RUNS[self.start].task == self.task and not self.is_stretched

    @property
    def is_stretched(self) -> bool:
        """Whether its patches are larger than those that it starts from."""
        return self.start is not None and RUNS[self.start].patch_size != self.patch_size

    @property
    def start_encoder(self) -> str:
        """The place of the encoder that it starts from, in the folder of all runs."""
        return f"{self.start}/{ENCODER_FOLDER}" + (f"_{self.patch_size}" if self.is_stretched else "")


_FineLeg = partial(
    Leg, learning_rate=6e-3, attn_implementation="eager", optimizer="muon", layer_decay_rate=1.0, patch_size=8
)
_UNWEIGHTED = ("--class_weights", "false")
_EARLIER = 10_000  # pictures that the first runs had, and the people in them
_EARLIER_PEOPLE = 13_127
RUNS = {
    "segmentation-1": Leg("segmentation", 6000, arguments=_UNWEIGHTED, max_train_samples=_EARLIER),
    "depth-1": Leg("depth", 1500, "segmentation-1", max_train_samples=_EARLIER),
    "depth-2": Leg("depth", 4000, "depth-1", attn_implementation="eager", max_train_samples=_EARLIER),
    "depth-3": Leg("depth", 10_000, "depth-2", attn_implementation="eager", max_train_samples=_EARLIER),
    "segmentation": _FineLeg("segmentation", 10_000, arguments=_UNWEIGHTED, max_train_samples=_EARLIER),
    "pose": _FineLeg("pose", 12_000, "segmentation", max_train_samples=_EARLIER_PEOPLE),
    "normal": _FineLeg("normal", 10_000, max_train_samples=_EARLIER),
    "normal-2": _FineLeg("normal", 11_000, "normal", learning_rate=3e-3, max_train_samples=_EARLIER),
    "segmentation-2": _FineLeg("segmentation", 17_000, "pose"),
    "pose-2": _FineLeg("pose", 11_000, "pose", learning_rate=4e-3),
    "segmentation-3": _FineLeg(
        "segmentation",
        18_000,
        "segmentation-2",
        batch_size=24,
        learning_rate=5e-3,
        input_size=SIZE,
        patch_size=16,
        deconv_out_channels=(64, 64, 32),
        arguments=("--eval_every", "2000"),
    ),
    "normal-3": _FineLeg("normal", 8000, "normal-2", learning_rate=2.5e-3),
}
SHIPPED = {leg.task: name for name, leg in RUNS.items()}  # the last run of each task


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
    "pose": Goal("pck_visible", "PCK@0.05 of the box diagonal, visible, flip test", 0.93),
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
    folder, workers = options.output_dir, options.workers
    single_thread()  # what is shipped does not depend on the number of cores
    val = labelled_people(folder / "humans_val", VAL_SEED, options.num_val, SIZE, workers, PEOPLE)
    if options.evaluate_only:
        places = {task: options.evaluate_only / f"tiny-{task}" for task in TASKS}
        scores = {
            task: evaluate_folder(place, run_of(SHIPPED[task], val, val, folder)) for task, place in places.items()
        }
    else:
        train = labelled_people(folder / "humans", TRAIN_SEED, options.num_train, SIZE, workers, PEOPLE)
        runs = {name: run_of(name, train, val, folder, options.steps, options.mixed_precision) for name in RUNS}
        for names in rounds():
            execute_all([runs[name] for name in names], workers)
            for name in names:
                encoder_of(runs[name].folder)
                for leg in RUNS.values():
                    if leg.start == name and leg.is_stretched:
                        stretch(runs[name].folder / ENCODER_FOLDER, leg.patch_size, folder / leg.start_encoder)
        count = min(NUM_BALANCE, options.num_train)
        held_out = labelled_people(folder / "humans_balance", BALANCE_SEED, count, SIZE, workers, PEOPLE)
        scores = {}
        for task, name in SHIPPED.items():
            place = folder / "checkpoints" / f"tiny-{task}"
            export(runs[name].folder, task, place, held_out)
            scores[task] = evaluate_folder(place, runs[name])
            describe(place, name, runs, scores[task], options)
    print(table(scores))
    return scores


def chain(name: str) -> list[str]:
    """A run after those that it starts from, the first one first."""
    start = RUNS[name].start
    return [*(chain(start) if start else ()), name]


def rounds() -> list[list[str]]:
    """Runs that do not wait for each other, the first ones first."""
    lengths = {name: len(chain(name)) for name in RUNS}
    return [[name for name in RUNS if lengths[name] == length] for length in sorted(set(lengths.values()))]


def run_of(
    name: str, train: Path, val: Path, folder: Path, steps: int | None = None, mixed_precision: str = "bf16"
) -> Run:
    """One of `RUNS` as a script and all its arguments."""
    leg = RUNS[name]
    task, max_steps = TASKS[leg.task], steps or leg.max_steps
    if leg.keeps_head:
        start = ["--model_name_or_path", str(folder / str(leg.start))]
    else:
        channels = leg.deconv_out_channels or task.deconv_out_channels
        layers = len(channels) - int(math.log2(PATCH_SIZE / leg.patch_size))
        fields = head_fields(channels[:layers], task.conv_out_channels)
        start = ["--model_size", "tiny"]
        if leg.start is not None:
            start = ["--model_name_or_path", str(folder / leg.start_encoder)]
            fields["patch_embeddings_padding"] = 0  # the encoder's, not the task's
        else:
            fields["patch_size"] = leg.patch_size
        start += ["--config_overrides", *override(fields)]
    arguments = [
        *("--train_data", labels_of(leg.task, train), "--val_data", labels_of(leg.task, val)),
        *("--output_dir", str(folder / name), *start),
        *("--image_size", *map(str, leg.input_size), *task.arguments),
        *("--augmentation", *MILD_AUGMENTATION[leg.task], "--max_steps", str(max_steps)),
        *("--batch_size", str(leg.batch_size), "--learning_rate", str(leg.learning_rate)),
        *("--schedule", "cosine_by_step", "--warmup_steps", str(min(200, max_steps // 10))),
        *("--layer_decay_rate", str(leg.layer_decay_rate), "--weight_decay", "0.05"),
        *("--optimizer", leg.optimizer, "--mixed_precision", mixed_precision),
        *("--seed", str(SEED), "--num_workers", "0", "--log_every", "20", "--save_every", "500"),
        *("--keep_checkpoints", "1", "--eval_every", "1000", "--eval_batch_size", "20"),
        *leg.arguments,
    ]
    if leg.max_train_samples is not None:
        arguments += ["--max_train_samples", str(leg.max_train_samples)]
    if leg.attn_implementation is not None:
        arguments += ["--attn_implementation", leg.attn_implementation]
    return Run(leg.task, folder / name, tuple(arguments))


def encoder_of(run: Path) -> None:
    """Put the encoder of a finished run beside it, for other tasks to start from."""
    from sapiens_hf import SapiensModel

    if not (run / ENCODER_FOLDER / "model.safetensors").is_file():  # which is written after the configuration
        SapiensModel.from_pretrained(run, dtype=torch.float32).save_pretrained(run / ENCODER_FOLDER)


def stretch(encoder: Path, patch_size: int, folder: Path) -> None:
    """Make an encoder of larger patches, for pictures that are larger by as much.

    On a picture whose pixels were repeated it computes what the other does on the picture itself; what lies between is
    left to training. Position embeddings stay, as there are as many patches.

    Args:
        encoder: folder of the encoder.
        patch_size: a multiple of its own.
        folder: of the result.
    """
    from sapiens_hf import SapiensConfig, SapiensModel

    if (folder / "model.safetensors").is_file():
        return
    small = SapiensModel.from_pretrained(encoder, dtype=torch.float32)
    times = patch_size // small.config.patch_size
    fields = small.config.to_dict() | {"patch_size": patch_size}
    fields["image_size"] = [side * times for side in small.config.image_size]
    large = SapiensModel(SapiensConfig(**fields))
    weights = small.state_dict()
    name = "embeddings.patch_embeddings.projection.weight"
    weights[name] = weights[name].repeat_interleave(times, 2).repeat_interleave(times, 3) / times**2
    large.load_state_dict(weights)
    large.save_pretrained(folder)


def export(run: Path, task: str, folder: Path, held_out: Path) -> None:
    """The final model of a run as a complete repository, its weights in float16.

    They are half as large as in float32; `dtype` in config.json stays float32, in which a CPU computes. Class scores
    are balanced on pictures that are `held_out` of training.
    """
    import sapiens_hf
    from sapiens_hf.hub import build_repository

    model = getattr(sapiens_hf, MODEL_CLASSES[task]).from_pretrained(run, dtype=torch.float32)
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(run)
    if task == "segmentation":
        layout = class_layout("goliath28")
        balance(model, processor, open_samples(str(held_out), task, layout), layout)
    model.config._name_or_path = ""
    repo_id = f"checkpoints/{folder.name}"  # for the card's snippets, which then run in a checkout
    options = dict(dtype=torch.float16, license="apache-2.0", repo_id=repo_id, overwrite=True)
    build_repository(model, processor, folder, **options)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"dtype": "float32"})


def evaluate_folder(folder: Path, run: Run) -> dict[str, float]:
    """Scores of a checkpoint on the labelled pictures of a run, as its script computes them."""
    from accelerate import Accelerator

    import sapiens_hf

    options = parse_options(TASKS[run.task].options, run.arguments)
    model = getattr(sapiens_hf, MODEL_CLASSES[run.task]).from_pretrained(folder)
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(folder)
    layout = layout_of(options)
    evaluator = make_evaluator(options, processor, layout, model.config)
    samples = EvaluationSet(open_samples(str(options.val_data), run.task, layout), evaluator)
    return evaluate(model, samples, samples.loader(options.eval_batch_size, 1, 0, 0), Accelerator(cpu=True))


def describe(
    folder: Path, name: str, runs: dict[str, Run], scores: dict[str, float], options: argparse.Namespace
) -> None:
    """Put scores, data and recipe into the card; scores, goal and the options of each run into `training.json`."""
    card = ModelCard.load(folder / "README.md")
    goal = GOALS[RUNS[name].task]
    stored = {each: json.loads((runs[each].folder / RUN_FILE).read_text()) for each in chain(name)}
    recipes = {each: {**run["options"], "num_processes": run["num_processes"]} for each, run in stored.items()}
    text = TRAINING_NOTE.format(
        num_train=options.num_train,
        train_seed=TRAIN_SEED,
        num_val=options.num_val,
        val_seed=VAL_SEED,
        seed=SEED,
        runs="\n".join(describe_run(each, runs[each].folder, recipe) for each, recipe in recipes.items())
        + (BALANCE_NOTE if RUNS[name].task == "segmentation" else ""),
        goal=f"{goal.value:g}",
        title=goal.title,
        rows="\n".join(f"| {metric} | {value:.4f} |" for metric, value in scores.items()),
    )
    head, licence, tail = card.text.partition("## Licence")
    (folder / "README.md").write_text(
        f"---\n{card.data.to_yaml()}\n---\n{head}{text}{licence}{tail}", encoding="utf-8"
    )
    root = options.output_dir
    for recipe in recipes.values():
        for key, value in recipe.items():
            if isinstance(value, str) and Path(value).is_relative_to(root):
                recipe[key] = Path(value).relative_to(root).as_posix()
    write_json(folder / "training.json", {"runs": recipes, "results": scores, "goal": asdict(goal)})


TRAINING_NOTE = """## Training and evaluation

Trained with `python -m training.tiny` on {num_train} pictures of synthetic people (`sapiens_hf.synthetic`,
seed {train_seed}) with seed {seed}, on a CPU with one core for each process. The runs, whose options are in
training.json:

{runs}

Scores of these weights on {num_val} other synthetic pictures (seed {val_seed}). The aim was {title}: {goal}.

| metric | value |
|---|---|
{rows}

It has seen drawn people only, one or two in a picture of 256 x 192 pixels, and is meant for tests and for trying out
programs: on photographs it is far from Meta's checkpoints.

"""


BALANCE_NOTE = f"""

Then the scores of the classes were shifted for mean IoU on {NUM_BALANCE} further pictures (seed {BALANCE_SEED}) with
`training/balance.py`."""


def describe_run(name: str, folder: Path, recipe: dict) -> str:
    """A line of the card: steps, start and, from the log, minutes."""
    leg = RUNS[name]
    origin = leg.start if leg.keeps_head else f"the encoder of {leg.start}" if leg.start else "random weights"
    origin = f"{origin}, its patches stretched to {leg.patch_size} pixels" if leg.is_stretched else origin
    rows = [row for row in read_metrics(folder / METRICS_FILE) if "images_per_s" in row]
    steps = [row["step"] for row in rows]
    processes = recipe["num_processes"]
    batch = recipe["batch_size"] * processes
    seconds = sum((now - last) * batch / row["images_per_s"] for last, now, row in zip([0, *steps], steps, rows))
    few = f" (of the first {leg.max_train_samples})" if leg.max_train_samples else ""
    cores = f" on {processes} cores" if processes > 1 else ""
    steps_text = f"{recipe['max_steps']} steps of {batch} pictures{few}"
    return f"- {name}: {steps_text} from {origin}, {seconds / 60:.0f} minutes{cores}"


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

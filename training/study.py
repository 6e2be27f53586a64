r"""The paper's three claims about pretraining, small enough for two CPU cores and two hours.

    python -m training.study --output_dir runs/study --num_processes 2
    python -m training.study --output_dir runs/study --figure data     # one of data, images, parameters
    python -m training.study --output_dir runs/smoke --smoke           # a minute; its numbers mean nothing

(a) data: pretraining on people beats pretraining on other pictures beats random weights, on all four tasks. (b)
images: more different pictures help. (c) parameters: larger networks do better. Within a figure every arm gets the
same number of operations for pretraining, the same labels, the same fine-tuning and the same seeds. The people are
synthetic.

Every run is a folder that is not run again, so the study can be killed and called again. It writes results.json, a
figure per claim and study.md, which says for each comparison whether it shows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .checkpoints import write_json
from .experiments import (
    LABEL_SEED,
    METRICS,
    TRAIN_SEED,
    VAL_SEED,
    Network,
    Run,
    Scale,
    execute_all,
    finetune_run,
    first_pictures,
    labelled_people,
    pictures_of_anything_else,
    pictures_of_people,
    pretrain_run,
)

FIGURES = ("data", "images", "parameters")
# A difference shows if it is this many standard errors; with three seeds anything less is noise.
NUM_ERRORS = 2.0


@dataclass(frozen=True)
class Study:
    """What is run.

    Attributes:
        scale: of each run.
        tasks: of figure (a).
        curve_tasks: of figures (b) and (c); the paper's figure 10 takes normals.
        seeds: each of them is one run of everything.
        network: of figures (a) and (b).
        networks: of figure (c), by size.
        image_counts: of figure (b); the largest is what figures (a) and (c) pretrain on.
        equal_images: figure (c) gives each network the same images, as the paper, and not the same operations.
    """

    scale: Scale = Scale()
    tasks: tuple[str, ...] = tuple(METRICS)
    curve_tasks: tuple[str, ...] = ("normal", "pose")
    seeds: tuple[int, ...] = (0, 1, 2)
    network: Network = Network(128, 4, patch_size=8)
    networks: tuple[Network, ...] = tuple(
        Network(width, layers, patch_size=8) for width, layers in ((48, 3), (80, 4), (128, 4), (192, 6))
    )
    image_counts: tuple[int, ...] = (4, 60, 250, 1000, 4000)
    equal_images: bool = False


SMOKE = Study(
    scale=Scale(
        (64, 48), pretrain_steps=3, pretrain_batch=4, finetune_steps=2, finetune_batch=2, num_labels=4, num_val=4
    ),
    tasks=("pose", "normal"),
    seeds=(0,),
    network=Network(32, 1),
    networks=(Network(16, 1), Network(16, 2), Network(32, 1), Network(32, 2)),
    image_counts=(4, 8),
)


@dataclass(frozen=True)
class Arm:
    """One point of a figure for one seed: a pretraining (or none) and a fine-tuning after it."""

    figure: str
    label: str
    task: str
    seed: int
    pretraining: Run | None
    finetuning: Run


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict]]:
    """Run from command-line arguments; returns the rows of each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--figure", choices=FIGURES, action="append", help="default: all")
    parser.add_argument("--num_processes", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--parameters_at", choices=("equal_compute", "equal_images"), default="equal_compute")
    parser.add_argument("--smoke", action="store_true", help="seconds per run: only to see that it works")
    options = parser.parse_args(arguments)
    study = SMOKE if options.smoke else Study(equal_images=options.parameters_at == "equal_images")
    figures = tuple(options.figure or FIGURES)
    return run_study(study, options.output_dir, figures, options.num_processes)


def run_study(study: Study, folder: Path, figures: Sequence[str], num_processes: int) -> dict[str, list[dict]]:
    """Make the data, do the runs, write results, figures and text."""
    arms = make_arms(study, folder, figures, num_processes)
    pretrainings = list({arm.pretraining.folder: arm.pretraining for arm in arms if arm.pretraining}.values())
    execute_all(pretrainings, num_processes)
    finetunings = list({arm.finetuning.folder: arm.finetuning for arm in arms}.values())
    results = dict(zip([run.folder for run in finetunings], execute_all(finetunings, num_processes), strict=True))
    rows = {figure: summarise([arm for arm in arms if arm.figure == figure], results) for figure in figures}
    write_json(folder / "results.json", rows)
    for figure in figures:
        draw(rows[figure], figure, folder / f"{figure}.png")
    (folder / "study.md").write_text(describe(rows, study), encoding="utf-8")
    return rows


def make_arms(study: Study, folder: Path, figures: Sequence[str], num_processes: int) -> list[Arm]:
    """All runs, with the data that they need."""
    scale, count = study.scale, study.image_counts[-1]
    data = folder / "data"
    people = pictures_of_people(data / "people", TRAIN_SEED, count, scale.size, num_processes)
    labelled = labelled_people(data / "labelled", LABEL_SEED, scale.num_labels, scale.size, num_processes)
    val = labelled_people(data / "val", VAL_SEED, scale.num_val, scale.size, num_processes)
    arms: list[Arm] = []

    def add(figure: str, label: str, task: str, seed: int, images: Path | None, network: Network, steps: int) -> None:
        name = f"{images.name if images is not people else 'people'}_{network.name}_{steps}" if images else None
        start = None
        if images is not None:
            start = pretrain_run(folder / "pretrained" / f"{name}_{seed}", images, network, scale, seed, steps)
        place = folder / "finetuned" / f"{task}_{name or f'random_{network.name}'}_{seed}"
        run = finetune_run(place, task, labelled, val, start.folder if start else None, network, scale, seed)
        arms.append(Arm(figure, label, task, seed, start, run))

    steps = scale.pretrain_steps
    if "data" in figures:
        generic = pictures_of_anything_else(data / "generic", TRAIN_SEED, count, scale.size, num_processes)
    for seed in study.seeds:
        if "data" in figures:
            for task in study.tasks:
                add("data", "random", task, seed, None, study.network, 0)
                add("data", "generic", task, seed, generic, study.network, steps)
                add("data", "people", task, seed, people, study.network, steps)
        for task in study.curve_tasks:
            for number in study.image_counts if "images" in figures else ():
                some = people if number == count else first_pictures(data / f"people{number}", people, number)
                add("images", str(number), task, seed, some, study.network, steps)
            for network in study.networks if "parameters" in figures else ():
                share = 1.0 if study.equal_images else study.network.flops(scale.size) / network.flops(scale.size)
                add("parameters", network.name, task, seed, people, network, max(round(steps * share), 1))
    return arms


def summarise(arms: Sequence[Arm], results: dict[Path, dict[str, float]]) -> list[dict]:
    """Mean and spread over seeds for each task and label, in the order of the arms."""
    rows = []
    for task, label in dict.fromkeys((arm.task, arm.label) for arm in arms):
        scores = [
            results[arm.finetuning.folder][METRICS[task].name]
            for arm in arms
            if (arm.task, arm.label) == (task, label)
        ]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
        row = {"task": task, "metric": METRICS[task].name, "label": label, "mean": float(np.mean(scores))}
        rows.append({**row, "spread": spread, "scores": scores})
    return rows


def compare(task: str, worse: dict, better: dict) -> tuple[str, float]:
    """Whether one row beats another, beyond the spread of the seeds: the verdict and the gain (positive is better)."""
    sign = 1 if METRICS[task].is_higher_better else -1
    gain = sign * (better["mean"] - worse["mean"])
    error = math.sqrt((worse["spread"] ** 2 + better["spread"] ** 2) / len(better["scores"]))
    if not math.isfinite(error):
        return "one seed says nothing", gain
    if abs(gain) <= NUM_ERRORS * error:
        return "does not show: within the spread", gain
    return ("shows" if gain > 0 else "the opposite shows"), gain


def describe(rows: dict[str, list[dict]], study: Study) -> str:
    """The text of the study: a table per figure and a verdict per comparison."""
    equal = "images" if study.equal_images else "operations"
    titles = {
        "data": "(a) people, other pictures, random weights",
        "images": "(b) number of different pictures, equal operations",
        "parameters": f"(c) size of the network, equal {equal} of pretraining",
    }
    lines = [
        "# The claims in miniature\n",
        f"{len(study.seeds)} seeds; mean and standard deviation. Synthetic people of {study.scale.size[0]} x "
        f"{study.scale.size[1]} pixels, {study.scale.num_labels} labelled pictures, {study.scale.finetune_steps} "
        f"steps of fine-tuning. A difference shows if it is more than {NUM_ERRORS:g} standard errors.\n",
    ]
    for figure, entries in rows.items():
        lines += [f"## {titles[figure]}\n", f"`python -m training.study --figure {figure}` -> {figure}.png\n"]
        lines += ["| task | metric | arm | mean | spread |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['task']} | {row['metric']} | {row['label']} | {row['mean']:.4f} | {row['spread']:.4f} |"
            for row in entries
        ]
        lines.append("")
        for task in dict.fromkeys(row["task"] for row in entries):
            own = [row for row in entries if row["task"] == task]
            pairs = list(zip(own[:-1], own[1:])) + ([(own[0], own[-1])] if len(own) > 2 else [])
            for worse, better in pairs:
                verdict, gain = compare(task, worse, better)
                lines.append(f"- {task}: {better['label']} over {worse['label']}: gain {gain:+.4f}, {verdict}.")
        lines.append("")
    return "\n".join(lines)


def draw(rows: list[dict], figure: str, path: Path) -> None:
    """Bars per task for figure (a), a curve for the others, with the spread over seeds.

    Raises:
        ImportError: if `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The figures need the `matplotlib` package: pip install matplotlib.") from error
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    canvas = Figure(figsize=(3.2 * len(tasks) + 0.8, 3.2), layout="constrained")
    for axes, task in zip(np.atleast_1d(canvas.subplots(1, len(tasks))), tasks, strict=True):
        own = [row for row in rows if row["task"] == task]
        labels, means = [row["label"] for row in own], [row["mean"] for row in own]
        spreads = [0.0 if math.isnan(row["spread"]) else row["spread"] for row in own]
        if figure == "data":
            axes.bar(labels, means, yerr=spreads, capsize=4, color=["#999999", "#6699cc", "#cc6677"][: len(own)])
        else:
            axes.errorbar(labels, means, yerr=spreads, capsize=4, marker="o", color="#cc6677")
            axes.set_xlabel({"images": "different pictures", "parameters": "width x layers"}[figure])
        arrow = "higher" if METRICS[task].is_higher_better else "lower"
        axes.set_title(f"{task}: {own[0]['metric']} ({arrow} is better)", fontsize=9)
    canvas.savefig(path, dpi=120)


if __name__ == "__main__":
    print(json.dumps({name: len(rows) for name, rows in main().items()}))

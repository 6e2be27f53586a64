"""`python -m training.pretrain_mae --demo`: pretrain small on synthetic people, look, fine-tune, compare.

Writes `pretrained/pictures/step-*.png` (original, masked, reconstructed) and prints what pretraining gains for a task
over random weights after the same fine-tuning. The network predicts plain pixels here, not pixels normalised per
patch, so that every colour in a reconstruction is its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .experiments import (
    LABEL_SEED,
    METRICS,
    TRAIN_SEED,
    VAL_SEED,
    Network,
    Scale,
    execute,
    finetune_run,
    labelled_people,
    pictures_of_people,
    pretrain_run,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run from command-line arguments; returns the scores from pretrained and from random weights."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain_mae --demo", description=__doc__)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of pictures and runs")
    parser.add_argument("--task", default="segmentation", choices=sorted(METRICS), help="to fine-tune for")
    parser.add_argument("--num_images", type=int, default=2000, help="synthetic people to pretrain on")
    parser.add_argument("--steps", type=int, default=1500, help="of pretraining")
    parser.add_argument("--finetune_steps", type=int, default=200)
    parser.add_argument("--num_labels", type=int, default=64, help="labelled pictures to fine-tune with")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 96), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--width", type=int, default=128, help="of the network")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--patch_size", type=int, default=8, help="small ones leave more of a small picture to see")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the people")
    options = parser.parse_args(arguments)
    height, width = options.size
    scale = Scale(
        size=(height, width),
        finetune_steps=options.finetune_steps,
        num_labels=options.num_labels,
        num_val=max(options.num_labels, 16),
    )
    network, folder = Network(options.width, options.layers, options.patch_size, 128, 2), options.output_dir
    images = pictures_of_people(folder / "people", TRAIN_SEED, options.num_images, scale.size, options.workers)
    labelled = labelled_people(folder / "labelled", LABEL_SEED, scale.num_labels, scale.size, options.workers)
    val = labelled_people(folder / "val", VAL_SEED, scale.num_val, scale.size, options.workers)
    pretrained = pretrain_run(folder / "pretrained", images, network, scale, options.seed, options.steps)
    execute(pretrained)
    scores = {}
    for name, start in (("pretrained", pretrained.folder), ("random", None)):
        place = folder / f"{options.task}_{name}"
        run = finetune_run(place, options.task, labelled, val, start, network, scale, options.seed)
        scores[name] = execute(run)[METRICS[options.task].name]
    print(summary(options.task, scores, folder))
    return scores


def summary(task: str, scores: dict[str, float], folder: Path) -> str:
    """What the demonstration says at its end."""
    gain = scores["pretrained"] - scores["random"]
    metric = METRICS[task]
    is_better = gain > 0 if metric.is_higher_better else gain < 0
    verdict = "Pretraining is ahead" if is_better else "Pretraining is behind"
    direction = "higher" if metric.is_higher_better else "lower"
    return (
        f"{task}, {metric.name} ({direction} is better): pretrained {scores['pretrained']:.4f}, "
        f"random {scores['random']:.4f}, difference {gain:+.4f}.\n"
        f"{verdict}; this is one seed, training.study has several.\n"
        f"Reconstructions: {folder / 'pretrained' / 'pictures'}"
    )

"""Shift the class scores of a segmentation model so that its mean IoU is highest on labelled pictures.

    python -m training.balance runs/parts --data my_parts_val --output_dir runs/parts_balanced

A network that learned from cross-entropy gives each pixel its most probable class, as the loss weighted the classes.
Mean IoU asks for something else: it counts small classes as much as large ones, and with a weight of 0.1 for the
background people grow beyond their outline. One number per class, added to the bias of the last convolution, makes up
for it; nothing else changes. Take pictures that the network was not trained on, and score it on others still.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sapiens_hf

from .augment import fit_to_network
from .data import TrainerCollator, TrainingSet
from .formats import SampleList
from .layouts import ClassLayout, class_layout
from .sources import open_samples

SHIFTS = torch.linspace(-4.0, 4.0, 81)  # in logits: factors on a class's odds from 1/55 to 55
NUM_ROUNDS = 3
MAX_PIXELS = 8_000_000  # that are kept, with 28 classes 450 MB: of large inputs a part of each picture


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run from command-line arguments; returns the mean IoU before and after, on the pictures used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a segmentation model: folder or Hub id")
    parser.add_argument("--data", required=True, help="labelled pictures, as --train_data of the scripts")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the model and its processor are written")
    parser.add_argument("--split", default="val", help="split, where there are several")
    parser.add_argument("--class_set", default="goliath28", help="as in finetune_segmentation")
    parser.add_argument("--max_samples", type=int, default=500, help="of the pictures: the first ones")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures at a time")
    options = parser.parse_args(arguments)
    output = options.output_dir
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already: give another --output_dir.")
    if options.max_samples < 1 or options.batch_size < 1:
        raise ValueError("--max_samples and --batch_size must be at least 1.")
    layout = class_layout(options.class_set)
    samples = open_samples(options.data, "segmentation", layout, options.split, limit=options.max_samples)
    model = sapiens_hf.SapiensForSemanticSegmentation.from_pretrained(options.model)
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(options.model)
    scores = balance(model, processor, samples, layout, options.batch_size)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    print(f"mean IoU on {len(samples)} pictures: {scores['before']:.4f}, balanced {scores['after']:.4f}. In {output}.")
    return scores


def balance(
    model: Any, processor: Any, samples: SampleList, layout: ClassLayout, batch_size: int = 8
) -> dict[str, float]:
    """Add to the model's last bias what makes mean IoU on the samples highest, at the size of its input.

    Args:
        model: a `SapiensForSemanticSegmentation`; changed in place.
        processor: its own.
        samples: pictures and label maps.
        layout: of their classes.
        batch_size: pictures at a time.

    Returns:
        Mean IoU `before` and `after`.

    Raises:
        ValueError: if the model has another number of classes, or no pixel is labelled.
    """
    num_labels = model.config.num_labels
    if num_labels != len(layout.names):
        raise ValueError(
            f"The model has {num_labels} classes and {layout.name} {len(layout.names)}: give its own set."
        )
    scores, labels = collect_scores(model, processor, samples, layout, batch_size)
    if not len(labels):
        raise ValueError(f"Not one pixel of the {len(samples)} label maps counts.")
    shifts = best_shifts(scores, labels)
    with torch.no_grad():
        model.head.final_conv.bias += shifts.to(model.head.final_conv.bias)
    before, after = (
        mean_iou(confusion((scores.float() + shift).argmax(dim=1), labels, num_labels)) for shift in (0.0, shifts)
    )
    return {"before": float(before), "after": float(after)}


@torch.no_grad()
def collect_scores(
    model: Any, processor: Any, samples: SampleList, layout: ClassLayout, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Logits (num_pixels, num_labels) float16 and classes (num_pixels,), of `MAX_PIXELS` that count at the most."""
    height, width = model.config.image_size
    share = MAX_PIXELS / (height * width * len(samples))
    generator = torch.Generator().manual_seed(0)
    fitted = TrainingSet(samples, partial(fit_to_network, size=tuple(model.config.image_size)))  # type: ignore[arg-type]
    loader = DataLoader(fitted, batch_size=batch_size, collate_fn=TrainerCollator(processor))
    scores, labels = [], []
    model.eval()
    for batch in loader:
        truth = batch["labels"]
        logits = model(pixel_values=batch["pixel_values"].to(model.device)).logits.float()
        logits = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear", align_corners=False).cpu()
        kept = truth != layout.ignore_index
        if share < 1:
            kept &= torch.rand(truth.shape, generator=generator) < share
        scores.append(logits.permute(0, 2, 3, 1)[kept].half())  # (B, C, H, W) -> (N, C)
        labels.append(truth[kept])
    return torch.cat(scores), torch.cat(labels)


def best_shifts(scores: Tensor, labels: Tensor, shifts: Tensor = SHIFTS, num_rounds: int = NUM_ROUNDS) -> Tensor:
    """One class after the other gets the shift that is best while the others stay; several rounds.

    A pixel turns to a class as soon as the shift exceeds the lead of the best other class, so one sorting of the
    pixels by their lead gives the confusion of every shift at once.

    Args:
        scores: logits (num_pixels, num_labels).
        labels: classes (num_pixels,).
        shifts: to choose from, rising.
        num_rounds: over all classes.

    Returns:
        (num_labels,) float32; 0 for classes that the labels lack, and where nothing is better than 0.
    """
    num_labels = scores.shape[1]
    chosen = torch.zeros(num_labels)
    found = labels.unique().tolist()
    reached = mean_iou(confusion(scores.argmax(dim=1), labels, num_labels))
    for _ in range(num_rounds):
        for label in found:
            shifted = scores.float() + chosen
            shifted[:, label] = -torch.inf
            best, other = shifted.max(dim=1)
            needed = torch.searchsorted(shifts, best - scores[:, label].float(), right=True)  # first that turns it
            pairs = labels * num_labels + other
            turned = torch.bincount(needed * num_labels**2 + pairs, minlength=(len(shifts) + 1) * num_labels**2)
            turned = turned.view(-1, num_labels, num_labels).cumsum(dim=0)[:-1]  # by shift: truth x class it leaves
            tables = confusion(other, labels, num_labels) - turned
            tables[:, :, label] += turned.sum(dim=2)
            scored = mean_iou(tables)
            if scored.max() > reached:
                chosen[label], reached = shifts[scored.argmax()], scored.max()
    return chosen


def confusion(predicted: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Number of pixels (num_labels, num_labels), truth by prediction."""
    return torch.bincount(labels * num_labels + predicted, minlength=num_labels**2).view(num_labels, num_labels)


def mean_iou(tables: Tensor) -> Tensor:
    """Mean over the classes that are there or predicted, of confusions (..., num_labels, num_labels)."""
    hits = tables.diagonal(dim1=-2, dim2=-1).double()
    union = tables.sum(dim=-1) + tables.sum(dim=-2) - hits
    return (hits / union.clamp(min=1)).sum(dim=-1) / (union > 0).sum(dim=-1)


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(f"balance: {error}")

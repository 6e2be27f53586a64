"""Writes the tables of docs/models.md from the list of released files: `python -m docs.models_page`."""

from collections.abc import Iterator
from pathlib import Path

import torch

from conversion.recipes import RECIPES, Recipe
from sapiens_hf import SapiensConfig
from sapiens_hf.original import TASK_CLASSES

PAGE = Path(__file__).resolve().parent / "models.md"
START, END = "<!-- tables: written by docs/models_page.py -->\n", "<!-- end of tables -->"
SECTIONS = {
    "Pose, 308 Goliath keypoints": ("pose", "goliath"),
    "Pose, 133 COCO-WholeBody keypoints": ("pose", "coco_wholebody"),
    "Pose, 17 COCO keypoints": ("pose", "coco"),
    "Body parts, 28 classes": ("segmentation", "goliath28"),
    "Foreground": ("segmentation", None),
    "Depth": ("depth", None),
    "Normals": ("normal", None),
    "Pretraining: encoder alone": ("encoder", None),
    "Pretraining: encoder and decoder": ("pretraining", None),
    "Person detector": ("detector", None),
}
FORMATS = {"pth": "`.pth`", "torchscript": "TorchScript", "bfloat16": "torch.export, bfloat16"}
SIZES = ("0.3b", "0.6b", "1b", "2b")


def needs(recipe: Recipe) -> str:
    """What somebody has to know or pass to load a file."""
    if recipe.task == "detector":
        return "another network (RTMDet), not loaded here"
    parts = []
    if recipe.repo_type == "space":
        parts.append("download it from the Space, pass its path")
    elif sum(other.repo == recipe.repo for other in RECIPES) > 1:
        parts.append("`filename=`")
    if recipe.patch_embeddings_padding is None:
        parts.append("padding and number of classes are read from the file")
    if recipe.task == "encoder":
        parts.append("`task=` for a new head")
    if recipe.evidence == "name by pattern":
        parts.append("name by analogy, not seen")
    return "; ".join(parts) or "nothing"


def file_table(recipes: list[Recipe]) -> Iterator[str]:
    """Lines of a table: one row per file."""
    yield "| size | file | repository | format | GB | needs | published score |"
    yield "|---|---|---|---|---|---|---|"
    for recipe in recipes:
        kind = "spaces/" if recipe.repo_type == "space" else ""
        size = "" if recipe.gigabytes is None else f"{recipe.gigabytes:g}"
        score = "none" if recipe.score is None else f"{recipe.score['value']:g} {recipe.score['metric']}"
        yield (
            f"| {recipe.size} | `{Path(recipe.file).name}` | [{recipe.repo}](https://huggingface.co/{kind}{recipe.repo})"
            f" | {FORMATS[recipe.format]} | {size} | {needs(recipe)} | {score} |"
        )


def parameter_table() -> Iterator[str]:
    """Lines of a table: millions of parameters of each size and task, counted on models without memory."""
    heads = ("encoder", "pose", "segmentation", "depth", "normal", "pretraining")
    labels = {"pose": 308, "segmentation": 28}
    yield f"| size | blocks | width | heads | {' | '.join(heads)} |"
    yield "|" + "---|" * (len(heads) + 4)
    for size in SIZES:
        counts = []
        for task in heads:
            options = {"num_labels": labels[task]} if task in labels else {}
            config = SapiensConfig.from_size(size, task=task, **options)
            with torch.device("meta"):
                model = TASK_CLASSES[task](config)
            counts.append(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f}")
        shape = f"{config.num_hidden_layers} | {config.hidden_size} | {config.num_attention_heads}"
        yield f"| {size} | {shape} | {' | '.join(counts)} |"


def tables() -> str:
    """Everything between the two marks of the page."""
    lines = ["", *parameter_table(), ""]
    for title, (task, labels) in SECTIONS.items():
        recipes = [recipe for recipe in RECIPES if (recipe.task, recipe.labels) == (task, labels)]
        lines += [f"### {title}", "", *file_table(recipes), ""]
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """The page with the tables of today."""
    before, rest = page.split(START)
    return before + START + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))

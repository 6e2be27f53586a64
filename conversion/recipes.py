"""One row per released checkpoint: which network a file holds, and where it is.

The rows are data, `sapiens_hf/assets/released_checkpoints.json`, because the installed `load_original` needs them too
and cannot import this folder. This module gives them types and a printed table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapiens_hf.original import released_checkpoints


@dataclass(frozen=True)
class Recipe:
    """A released file.

    Attributes:
        repo: Hub repository id.
        file: Path of the file inside it.
        format: `"pth"`, `"torchscript"` or `"bfloat16"` (torch.export).
        task: As everywhere in sapiens_hf, or `"detector"` for the one file that is another network.
        size: `"0.3b"`, `"0.6b"`, `"1b"` or `"2b"`.
        labels: Name of the keypoint or class set, if there is one.
        num_labels: Channels of the head, if known.
        patch_embeddings_padding: Padding of the patch convolution in pixels; `None` if only the file tells.
        image_size: Height and width of the training images in pixels.
        gigabytes: Size in 10^9 bytes, if known.
        score: `{"metric", "value"}` as the authors published it; not measured here.
        licence: SPDX id in lower case, as on the Hub.
        evidence: Whether the file name was seen or follows from its siblings.
        former_files: Names that the authors replaced.
        repo_type: `"space"` for the one file that only a demo keeps.
        note: What else one should know.
    """

    repo: str
    file: str
    format: str
    task: str
    size: str
    labels: str | None
    num_labels: int | None
    patch_embeddings_padding: int | None
    image_size: list[int]
    gigabytes: float | None
    score: dict[str, Any] | None
    licence: str
    evidence: str
    former_files: tuple[str, ...] = ()
    repo_type: str = "model"
    note: str = ""


RECIPES: tuple[Recipe, ...] = tuple(
    Recipe(**row | {"former_files": tuple(row.get("former_files", ()))}) for row in released_checkpoints()
)


def list_recipes(task: str | None = None, size: str | None = None) -> list[Recipe]:
    """The released files of a task and a size; all of them by default.

    Raises:
        ValueError: No released file has that task or size.
    """
    for name, value in (("task", task), ("size", size)):
        known = sorted({getattr(recipe, name) for recipe in RECIPES})
        if value is not None and value not in known:
            raise ValueError(f"No released checkpoint has {name} {value!r}: expected one of {known}.")
    return [recipe for recipe in RECIPES if task in (None, recipe.task) and size in (None, recipe.size)]


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def recipe_table(recipes: list[Recipe]) -> str:
    """Repository, file, task, size, labels, padding, bytes and published score of each recipe, as text."""
    rows = [("repository", "file", "task", "size", "labels", "padding (px)", "GB", "published score")]
    for recipe in recipes:
        score = f"{recipe.score['value']} {recipe.score['metric']}" if recipe.score else "-"
        padding, size = recipe.patch_embeddings_padding, recipe.gigabytes
        rows.append(
            (
                recipe.repo,
                Path(recipe.file).name,
                recipe.task,
                recipe.size,
                recipe.labels or "-",
                "in the file" if padding is None else str(padding),
                "-" if size is None else f"{size:.2f}",
                score,
            )
        )
    return format_table(rows)

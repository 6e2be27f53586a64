"""The paper's fine-tuning recipes as data: size x task x label set. Source: the configs of the original repository.

A recipe fills in the options of a run that its user leaves open (`--recipe pose-coco-1b`). Everything that all recipes
share is a default here: AdamW (0.9, 0.999), weight decay 0.1, clip 1.0, layer decay 0.85, 1024 x 768, float32.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

SIZES = ("0.3b", "0.6b", "1b", "2b")


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning run of the original."""

    task: str
    label_set: str
    size: str
    learning_rate: float = 5e-4
    layer_decay_rate: float = 0.85
    weight_decay: float = 0.1
    num_epochs: int = 200
    schedule: str = "poly"
    """By epoch, see `training.optim.learning_rate_factor`."""
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 400
    batch_size: int = 2
    """Per GPU, of the fine-tuning scripts (the configs themselves say 64 for pose and 1 for the dense tasks)."""
    num_gpus: int = 8
    lr_base_batch: int = 0
    """If not 0, the learning rate is in proportion to the global batch, this being where it is as written."""
    keypoint_loss_top_k: int | None = None
    min_visible: int = 0
    """A crop with fewer labelled keypoints is replaced by another."""
    augmentation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What differs from the task's usual augmentation (`training.augment`)."""

    @property
    def name(self) -> str:
        """How `--recipe` calls it."""
        return f"{self.task}-{self.label_set}-{self.size}"

    @property
    def pretrained(self) -> str:
        """The encoder that the original starts from."""
        return f"facebook/sapiens-pretrain-{self.size}"

    def options(self) -> dict[str, Any]:
        """Options of a run (`training.options`) that this recipe sets."""
        options = {
            name: getattr(self, name)
            for name in (
                *("learning_rate", "layer_decay_rate", "weight_decay", "num_epochs", "schedule", "warmup_steps"),
                *("batch_size", "lr_base_batch"),
            )
        }
        options |= {"model_size": self.size, "milestones": list(self.milestones)}
        options["augmentation"] = [f"{key}={value}" for key, value in self.augmentation.items()]
        if self.task == "pose":
            options |= {
                "keypoint_set": self.label_set,
                "keypoint_loss_top_k": self.keypoint_loss_top_k,
                "min_visible": self.min_visible,
            }
        elif self.task == "segmentation":
            options["class_set"] = self.label_set
        return options


def _all_recipes() -> dict[str, Recipe]:
    pose = dict(task="pose", num_epochs=210, schedule="multistep", milestones=(170, 200), warmup_steps=500)
    pose |= dict(batch_size=4, num_gpus=16)
    # 0.3b and 0.6b of WholeBody decay faster; 1b of WholeBody alone scales its rate; Goliath starts ten times lower.
    wholebody = {
        "0.3b": dict(layer_decay_rate=0.75),
        "0.6b": dict(layer_decay_rate=0.75),
        "1b": dict(lr_base_batch=512),
    }
    goliath = {
        "0.3b": dict(keypoint_loss_top_k=128),
        "1b": dict(keypoint_loss_top_k=128, layer_decay_rate=0.95),
    }
    # LIP and CIHP zoom less and have no backgrounds, faces have no backgrounds.
    lip = dict(num_epochs=400, augmentation=dict(background_prob=0.0, zoom=[0.75, 1.25]))
    general = dict(augmentation=dict(background_prob=0.0))
    recipes = []
    for size in SIZES:
        recipes += [
            Recipe(label_set="coco", size=size, min_visible=4, **pose),
            Recipe(label_set="coco_wholebody", size=size, min_visible=8, **pose, **wholebody.get(size, {})),
            Recipe(label_set="goliath", size=size, min_visible=8, learning_rate=5e-5, **pose, **goliath.get(size, {})),
            Recipe("segmentation", "goliath28", size),
            Recipe("segmentation", "lip20", size, schedule="cosine", **lip),
            Recipe("segmentation", "cihp20", size, **lip),
            Recipe("segmentation", "face_synthetics19", size, **general),
            Recipe("depth", "render_people", size),
            Recipe("normal", "render_people", size),
            Recipe("normal", "general", size, **general),
        ]
    recipes.append(Recipe("depth", "general", "1b", **general))
    return {recipe.name: recipe for recipe in recipes}


RECIPES = _all_recipes()


def recipe(name: str, task: str | None = None) -> Recipe:
    """A recipe by name, such as "segmentation-goliath28-0.3b".

    Raises:
        ValueError: if there is none of that name, or it is of another task.
    """
    names = [key for key, value in RECIPES.items() if task in (None, value.task)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(names)}."
        raise ValueError(f"There is no {task or ''} recipe {name!r}. {hint}".replace("  ", " "))
    return RECIPES[name]

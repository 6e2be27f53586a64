"""Optimiser, parameter groups and learning-rate schedules of the original recipes.

Steps are counted in updates of the weights: with gradient accumulation many batches are one step. Call
`scheduler.step()` once after each `optimizer.step()`. Do not give the scheduler to `accelerator.prepare`, which would
step it once per process; `accelerator.register_for_checkpointing(scheduler)` saves it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .muon import HIDDEN_MATRIX, MuonWithAdamW

# Wrappers (DDP, torch.compile, PEFT) and task classes put prefixes in front, hence (^|.) and search.
EMBEDDINGS = re.compile(r"(^|\.)embeddings\.")
ENCODER_LAYER = re.compile(r"(^|\.)encoder\.layers\.(\d+)\.")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "multistep", "poly", "cosine", "cosine_by_step")
# Parts of names without weight decay in pre-training: backbone_pretrain.md 3.6, `ln` and `pos_embed` in our words.
PRETRAINING_NO_DECAY = ("layernorm", "bias", "position_embeddings", "mask_token", "cls_token")


def layer_id(name: str, num_layers: int) -> int:
    """Place of a parameter in the layer decay: 0 embeddings, i + 1 encoder layer i, num_layers + 1 everything else.

    The final norm of the backbone belongs to "everything else", with the head.
    """
    layer = ENCODER_LAYER.search(name)
    if layer:
        return int(layer.group(2)) + 1
    return 0 if EMBEDDINGS.search(name) else num_layers + 1


def layer_decay_groups(model: nn.Module, lr: float, weight_decay: float, decay_rate: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls from the head to the embeddings.

    The rate of a parameter is `lr * decay_rate ** (num_layers + 1 - layer_id)`. One-dimensional parameters, biases and
    position embeddings have no weight decay. Frozen parameters are left out. Source: the original's
    layer_decay_optim_wrapper.py (its configs' `custom_keys` are never read there, so they are not here either).

    Args:
        model: a Sapiens model of any task, wrapped or not.
        lr: learning rate of the head.
        weight_decay: weight decay of the parameters that have one.
        decay_rate: factor per layer, in (0, 1]; 1 gives every layer the same rate.

    Returns:
        Groups for a torch optimiser with `params`, `lr`, `weight_decay`, and also `names` (of the parameters) and
        `group_name`, e.g. "layer_3_no_decay"; sorted from the embeddings to the head.

    Raises:
        ValueError: if decay_rate is out of range, nothing is trainable, or the model has no encoder layers.
    """
    if not 0 < decay_rate <= 1:
        raise ValueError(f"decay_rate is {decay_rate}, expected 0 < decay_rate <= 1.")
    layers = [match for name, _ in model.named_parameters() if (match := ENCODER_LAYER.search(name))]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no parameters named encoder.layers.N: is it a Sapiens model?")
    num_layers = 1 + max(int(match.group(2)) for match in layers)

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in _trainable(model):
        number = layer_id(name, num_layers)
        decays = not (parameter.ndim == 1 or name.endswith(".bias") or "position_embeddings" in name)
        new_group = {
            "params": [],
            "names": [],
            "lr": lr * decay_rate ** (num_layers + 1 - number),
            "weight_decay": weight_decay if decays else 0.0,
            "group_name": f"layer_{number}_{'decay' if decays else 'no_decay'}",
        }
        group = groups.setdefault((number, decays), new_group)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def pretraining_groups(model: nn.Module, lr: float, weight_decay: float = 0.05) -> list[dict[str, Any]]:
    """Two parameter groups of masked pre-training: with weight decay and without (`PRETRAINING_NO_DECAY`).

    Returns:
        Groups with `params`, `lr`, `weight_decay`, `names` and `group_name` ("decay", "no_decay"), without empty ones.

    Raises:
        ValueError: if nothing is trainable.
    """

    def decays(name: str) -> bool:
        return not any(part in name for part in PRETRAINING_NO_DECAY)

    names, params = zip(*_trainable(model))
    return [
        {**part, "lr": lr, "weight_decay": weight_decay * chosen, "group_name": "decay" if chosen else "no_decay"}
        for chosen, part in _parts(names, params, decays)
    ]


def split_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups of `layer_decay_groups` or `pretraining_groups`, each in one for Muon and one for AdamW.

    Returns:
        The groups with `muon`, a bool, and "_muon" behind the `group_name` of those where it is True.

    Raises:
        ValueError: if no trainable parameter is a matrix between hidden features.
    """
    split = [
        {**group, **part, "muon": muon, "group_name": group["group_name"] + ("_muon" if muon else "")}
        for group in groups
        for muon, part in _parts(group["names"], group["params"], HIDDEN_MATRIX.search)
    ]
    if not any(group["muon"] for group in split):
        raise ValueError(
            "No trainable parameter is a matrix that Muon could train: LoRA's own matrices and the head's last layer "
            "are AdamW's. Use --optimizer adamw, or train the whole network."
        )
    return split


def _parts(
    names: Sequence[str], params: Sequence[nn.Parameter], chooses: Callable[[str], Any]
) -> Iterator[tuple[bool, dict[str, Any]]]:
    """`names` and `params` of what is chosen (True) and of the rest (False), without empty parts."""
    for chosen in (True, False):
        pairs = [pair for pair in zip(names, params, strict=True) if bool(chooses(pair[0])) == chosen]
        if pairs:
            yield chosen, {"names": [name for name, _ in pairs], "params": [parameter for _, parameter in pairs]}


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: everything is frozen.")
    return trainable


def scaled_lr(lr: float, batch_size: int, base_batch_size: int) -> float:
    """Learning rate in proportion to the global batch size, the original's `auto_scale_lr`.

    Only two of its recipes use it: pre-training (2.4e-3 at 4096) and COCO-WholeBody with 1b (5e-4 at 512).
    """
    return lr * batch_size / base_batch_size


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    decay_rate: float | None,
    betas: tuple[float, float] = (0.9, 0.999),
    optimizer: str = "adamw",
) -> torch.optim.AdamW:
    """The optimiser over the groups of a recipe.

    Args:
        model: a Sapiens model.
        lr: learning rate of the head.
        weight_decay: weight decay.
        decay_rate: layer decay; None for the pre-training recipe, which has none (its betas are 0.9, 0.95).
        betas: of AdamW.
        optimizer: "adamw", the original's, or "muon" for the matrices of layers and head and AdamW for the rest.

    Raises:
        ValueError: for another optimiser, or Muon where it has nothing to train.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"There is no optimizer {optimizer!r}. Choose one of {', '.join(OPTIMIZERS)}.")
    if decay_rate is None:
        groups = pretraining_groups(model, lr, weight_decay)
    else:
        groups = layer_decay_groups(model, lr, weight_decay, decay_rate)
    if optimizer == "muon":
        return MuonWithAdamW(split_groups(groups), lr=lr, betas=betas, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay)


def clip_gradients(model: nn.Module, max_norm: float = 1.0, raise_if_nonfinite: bool = True) -> torch.Tensor:
    """Scale all gradients so that their common L2 norm is at most `max_norm`.

    Args:
        model: after `backward`; with a gradient scaler, after it has unscaled.
        max_norm: largest norm.
        raise_if_nonfinite: False for fp16 with a gradient scaler, which skips such steps by itself.

    Returns:
        The norm before clipping, a scalar tensor.

    Raises:
        FloatingPointError: if a gradient is NaN or infinite; the message names the parameters.
    """
    gradients = [(name, parameter) for name, parameter in model.named_parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for _, parameter in gradients])
    if raise_if_nonfinite and not torch.isfinite(norm):
        wrong = [name for name, parameter in gradients if not torch.isfinite(parameter.grad).all()]
        raise FloatingPointError(
            f"The gradients of {len(wrong)} of {len(gradients)} parameters are NaN or infinite: {', '.join(wrong[:5])}"
            f"{', ...' if len(wrong) > 5 else ''}. The weights are unchanged. Try a smaller learning rate, bf16 "
            "instead of fp16, or look for bad labels with `python -m training.check_data`."
        )
    nn.utils.clip_grads_with_norm_([parameter for _, parameter in gradients], max_norm, norm)
    return norm


def learning_rate_factor(
    schedule: str,
    *,
    steps_per_epoch: int,
    num_epochs: int,
    warmup_steps: int = 0,
    warmup_start_factor: float = 1e-3,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    power: float = 1.0,
) -> Callable[[int], float]:
    """The factor on every group's learning rate as a function of the step: warm-up times schedule.

    Args:
        schedule: by epoch e of N, starting together with the warm-up: "constant"; "multistep", `gamma` at each
            milestone; "poly", (1 - e / (N - 1)) ** power, which is 0 in the last epoch; "cosine" to 0 at epoch N. By
            step and only after the warm-up: "cosine_by_step" (pre-training).
        steps_per_epoch: updates of the weights per epoch.
        num_epochs: N. Later steps keep the last epoch's factor.
        warmup_steps: the factor rises linearly and is 1 from step `warmup_steps - 1` on.
        warmup_start_factor: factor at step 0.
        milestones: epochs of "multistep".
        gamma: of "multistep".
        power: of "poly".

    Raises:
        ValueError: if the schedule is unknown or a count is out of range.
    """
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(SCHEDULES)}."
        raise ValueError(f"There is no schedule {schedule!r}. {hint}")
    if steps_per_epoch < 1 or num_epochs < 1 or warmup_steps < 0:
        counts = f"steps_per_epoch={steps_per_epoch}, num_epochs={num_epochs}, warmup_steps={warmup_steps}"
        raise ValueError(f"Got {counts}; expected at least 1, 1 and 0. Is the data set smaller than one batch?")
    if schedule == "multistep" and not milestones:
        raise ValueError("The multistep schedule needs milestones, e.g. milestones=(170, 200) for 210 epochs.")
    num_steps = steps_per_epoch * num_epochs

    def by_epoch(step: int) -> float:
        epoch = min(step // steps_per_epoch, num_epochs - 1)
        if schedule == "multistep":
            return gamma ** sum(epoch >= milestone for milestone in milestones)
        if schedule == "poly":
            return (1 - epoch / max(num_epochs - 1, 1)) ** power
        if schedule == "cosine":
            return (1 + math.cos(math.pi * epoch / num_epochs)) / 2
        return 1.0

    def factor(step: int) -> float:
        if step < warmup_steps - 1:
            warmup = warmup_start_factor + (1 - warmup_start_factor) * step / (warmup_steps - 1)
        else:
            warmup = 1.0
        if schedule == "cosine_by_step":
            done = max(min(step, num_steps) - warmup_steps, 0) / max(num_steps - warmup_steps, 1)
            return warmup * (1 + math.cos(math.pi * done)) / 2
        return warmup * by_epoch(step)

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: str, **options: Any) -> LambdaLR:
    """A `LambdaLR` with `learning_rate_factor(schedule, **options)` on all groups; the module says when to step."""
    return LambdaLR(optimizer, learning_rate_factor(schedule, **options))

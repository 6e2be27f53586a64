"""Meta's own checkpoints: their names, where they are, and `load_original`, which turns one into a Sapiens model.

The network is read from the tensors themselves (task, width, depth, head, number of labels). What tensors cannot tell
comes from the file's configuration text or traced graph, then from the table of released networks, then from the
caller; else the error asks for it.

Only this module and its three parts know the original's vocabulary: `original_keys.py` (what becomes of every tensor
name), `original_readers.py` (containers) and `original_sources.py` (places). One file would be 1,600 lines.

Sources: facebookresearch/sapiens at commit 3e829ac; `assets/released_checkpoints.json` has one row per released file.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import initialization
from transformers.utils import logging

from .configuration_sapiens import SIZES, TASKS, SapiensConfig
from .modeling_mae_sapiens import SapiensForPreTraining
from .modeling_sapiens import (
    SapiensBackbone,
    SapiensForDepthEstimation,
    SapiensForNormalEstimation,
    SapiensForPoseEstimation,
    SapiensForSemanticSegmentation,
    SapiensModel,
    SapiensPreTrainedModel,
)
from .original_keys import KEY_TABLE, fill_key, original_key, translate_key
from .original_readers import OriginalFile, StoredTensor, read_original
from .original_sources import (
    ASSETS,
    HUB_OPTIONS,
    find_original,
    is_original_source,
    released_checkpoints,
    released_file,
)

logger = logging.get_logger(__name__)

__all__ = [
    "CLASS_TASKS",
    "KEY_TABLE",
    "TASK_CLASSES",
    "find_original",
    "is_original_source",
    "load_original",
    "read_original",
    "released_checkpoints",
    "released_file",
    "to_original_state_dict",
]

TASK_CLASSES: dict[str, type[SapiensPreTrainedModel]] = {
    "pretraining": SapiensForPreTraining,
    "encoder": SapiensModel,
    "pose": SapiensForPoseEstimation,
    "segmentation": SapiensForSemanticSegmentation,
    "depth": SapiensForDepthEstimation,
    "normal": SapiensForNormalEstimation,
}
CLASS_TASKS = {cls.__name__: task for task, cls in TASK_CLASSES.items()} | {SapiensBackbone.__name__: "encoder"}


def to_original_state_dict(model: SapiensPreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model under the original's names: the inverse of what `load_original` does to them.

    Args:
        model: One of the Sapiens models. A `SapiensModel` gives the flat names of a `_clean.pth`.

    Returns:
        Tensors by original name; query, key and value are fused again.

    Raises:
        ValueError: The class has no counterpart in the original.
    """
    task = CLASS_TASKS.get(type(model).__name__)
    if task is None:
        raise ValueError(f"{type(model).__name__} has no counterpart among the original's checkpoints.")
    prefix = "model." if task == "encoder" else ""
    ours = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    original: dict[str, torch.Tensor] = {}
    for name in ours:
        source, parts = original_key(name, task) or (name, (name,))
        if source not in original:
            original[source] = torch.cat([ours[p] for p in parts]) if len(parts) > 1 else ours[name]
    return {name.removeprefix("backbone."): t for name, t in original.items()} if task == "encoder" else original


# ---------------------------------------------------------------------------------------------- what a file describes
@dataclass(frozen=True)
class _Network:
    """The network that a file's tensors describe; lengths in channels, sizes in pixels."""

    task: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    patch_size: int
    num_positions: int
    use_cls_token: bool
    head: dict[str, Any]
    num_outputs: int | None
    decoder: dict[str, int]

    @property
    def size(self) -> str | None:
        """Name of the released size with these dimensions, or `None`."""
        mine = (self.hidden_size, self.num_hidden_layers)
        return next(
            (name for name, row in SIZES.items() if (row["hidden_size"], row["num_hidden_layers"]) == mine), None
        )

    def __str__(self) -> str:
        outputs = {"pose": "keypoints", "segmentation": "classes"}.get(self.task)
        return (
            f"Sapiens {self.task} checkpoint ({f'size {self.size}, ' if self.size else ''}width {self.hidden_size}, "
            f"{self.num_hidden_layers} layers{f', {self.num_outputs} {outputs}' if outputs else ''})"
        )


def _plain_names(file: OriginalFile) -> dict[str, StoredTensor]:
    """Tensors with the names of the key table: no `module.` in front, `backbone.` in front of a flat encoder.

    Raises:
        ValueError: These are not the tensors of a Sapiens v1 network; says what they are.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in file.tensors.items()}
    if "pos_embed" in tensors or "patch_embed.projection.weight" in tensors:
        tensors = {
            name if name.startswith("data_preprocessor.") else f"backbone.{name}": t for name, t in tensors.items()
        }
    if any(name.startswith("backbone.patch_embed.") for name in tensors):
        return tensors
    if any(name.startswith(("bbox_head.", "backbone.stem.")) for name in tensors):
        raise ValueError(
            f"{file.path} is a person detector (RTMDet), not a Sapiens network. Boxes come from any object-detection "
            'model of transformers: pass its id as detector= to pipeline("keypoint-detection"), or boxes= of your own.'
        )
    if any("patch_embeddings.projection" in name for name in tensors):
        raise ValueError(
            f"{file.path} has the names of a transformers model, not the original's: use from_pretrained on its "
            "folder."
        )
    raise ValueError(
        f"{file.path} is not a checkpoint of Sapiens v1: expected tensors like backbone.patch_embed.projection.weight,"
        f" got {sorted(tensors)[:5]}."
    )


def _describe(file: OriginalFile, tensors: Mapping[str, StoredTensor]) -> _Network:
    """Reads the dimensions of the network from the shapes of its tensors."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            got = list(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(
                f"{file.path}: {name} must have {rank} dimensions to tell what network this is, got {got}."
            )
        return tensors[name].shape

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
        return max(found) + 1 if found else 0

    prefix = next((p for p in ("head.", "decode_head.") if any(name.startswith(p) for name in tensors)), "")
    has_decoder = any(name.startswith("neck.decoder_") for name in tensors)
    head, num_outputs, decoder, task = {}, None, {}, "pretraining" if has_decoder else "encoder"
    if prefix:
        last = f"{prefix}{'final_layer' if prefix == 'head.' else 'conv_seg'}.weight"
        num_outputs = shape(last, 4)[0]
        task = "pose" if prefix == "head." else _dense_task(file, num_outputs)
        for kind, out_axis in (("deconv", 1), ("conv", 0)):
            shapes = [
                shape(f"{prefix}{kind}_layers.{3 * i}.weight", 4)
                for i in range((count(rf"{prefix}{kind}_layers\.(\d+)\.") + 2) // 3)
            ]
            head[f"{kind}_out_channels"] = [s[out_axis] for s in shapes]
            head[f"{kind}_kernel_sizes"] = [s[2] for s in shapes]
    if has_decoder:
        decoder = {
            "decoder_hidden_size": shape("neck.mask_token", 3)[2],
            "decoder_num_hidden_layers": count(r"neck\.decoder_blocks\.(\d+)\."),
            "decoder_intermediate_size": shape("neck.decoder_blocks.0.ffn.layers.0.0.weight", 2)[0],
        }
    _, num_positions, hidden_size = shape("backbone.pos_embed", 3)
    return _Network(
        task=task,
        hidden_size=hidden_size,
        num_hidden_layers=count(r"backbone\.layers\.(\d+)\."),
        intermediate_size=shape("backbone.layers.0.ffn.layers.0.0.weight", 2)[0],
        patch_size=shape("backbone.patch_embed.projection.weight", 4)[2],
        num_positions=num_positions,
        use_cls_token="backbone.cls_token" in tensors,
        head=head,
        num_outputs=num_outputs,
        decoder=decoder,
    )


def _dense_task(file: OriginalFile, num_outputs: int) -> str:
    """The dense tasks share their names: the head's class decides if the file tells it, else the channel count."""
    head_class = _from_text(file, "decode_head", "type")
    by_class = {"VitHead": "segmentation", "VitDepthHead": "depth", "VitNormalHead": "normal"}
    return by_class.get(head_class) or {1: "depth", 3: "normal"}.get(num_outputs, "segmentation")


def _from_text(file: OriginalFile, *keys: str) -> Any:
    """An entry of `model` in the file's configuration text, or `None`."""
    node: Any = file.config.get("model")
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


# ------------------------------------------------------------------------------------------------------ configuration
@functools.lru_cache(None)
def _label_tables() -> dict[str, dict[int, dict[str, Any]]]:
    """Config fields that follow from the number of labels of a task."""
    keypoints = json.loads((ASSETS / "keypoints.json").read_text())
    classes = json.loads((ASSETS / "segmentation_classes.json").read_text())
    pose, segmentation = {}, {}
    for name in ("coco", "coco_wholebody", "goliath"):
        points = keypoints[name]["keypoints"]
        pose[len(points)] = {
            "id2label": {i: point["name"] for i, point in enumerate(points)},
            "flip_pairs": keypoints[name]["flip_pairs"],
        }
    for name in ("goliath28", "lip20", "face_synthetics19"):  # CIHP has LIP's names and weights
        rows = classes[name]["classes"]
        weights = [row["ce_weight"] for row in rows]
        segmentation[len(rows)] = {
            "id2label": {i: row["name"] for i, row in enumerate(rows)},
            "semantic_loss_class_weights": weights if len(set(weights)) > 1 else None,
        }
    return {"pose": pose, "segmentation": segmentation}


def _label_fields(task: str, num_labels: int) -> dict[str, Any]:
    known = _label_tables().get(task, {}).get(num_labels)
    if known is None:
        return {"num_labels": num_labels}
    return known | {"label2id": {name: i for i, name in known["id2label"].items()}}


def _num_heads(file: OriginalFile, network: _Network, asked: int | None) -> int:
    """Attention heads: the file's configuration text, the width of a released size, or the caller.

    Raises:
        ValueError: Nobody knows, or the caller contradicts what is known.
    """
    arch = _from_text(file, "backbone", "arch")
    if isinstance(arch, str):
        arch = {"num_heads": SIZES.get(arch.removeprefix("sapiens_"), {}).get("num_attention_heads")}
    known = arch.get("num_heads") if isinstance(arch, dict) else None
    source = "its configuration text"
    if known is None:
        widths = {row["hidden_size"]: row["num_attention_heads"] for row in SIZES.values()}
        known, source = widths.get(network.hidden_size), f"the released network of width {network.hidden_size}"
    if known is None and asked is None:
        raise ValueError(
            f"{file.path}: the number of attention heads is not in the file, and no released network has width "
            f"{network.hidden_size}. Pass num_attention_heads= (a divisor of {network.hidden_size})."
        )
    if known is None or asked in (None, known):
        return int(asked or known)
    raise ValueError(
        f"{file.path} is a {network} with {known} attention heads according to {source}, not {asked}: leave "
        "num_attention_heads= out."
    )


def _padding(file: OriginalFile, network: _Network, task: str) -> int:
    """Padding of the patch convolution in pixels: what the file says about its own task, else that task's recipe."""
    if task not in (network.task, "encoder"):
        return TASKS[task].get("patch_embeddings_padding", 0)  # a new task on a pretrained encoder
    if file.patch_padding is not None:
        return file.patch_padding
    if isinstance(_from_text(file, "backbone"), dict):
        padding = _from_text(file, "backbone", "patch_cfg", "padding")
        return padding if isinstance(padding, int) else 0  # the default, 'corner', pads nothing at multiples of 16
    released = (released_file(file.path.name)[0] or {}).get("patch_embeddings_padding")
    if released is not None:
        return released
    if network.task == "segmentation" and network.num_outputs == 20:
        return 2  # LIP and CIHP, unlike Goliath and FaceSynthetics
    return TASKS[network.task].get("patch_embeddings_padding", 0)


def _stored_image_size(file: OriginalFile, network: _Network, asked: Any) -> list[int]:
    """Height and width in pixels that the stored position table is made for.

    Raises:
        ValueError: The number of rows fits no size that is known.
    """
    rows, patch = network.num_positions - network.use_cls_token, network.patch_size
    root, twelfth = math.isqrt(rows), math.isqrt(rows // 12)
    released = (released_file(file.path.name)[0] or {}).get("image_size")
    candidates = [_from_text(file, "backbone", "img_size"), file.image_size, released, asked]
    if not network.use_cls_token and 12 * twelfth**2 == rows:
        candidates.append([4 * twelfth * patch, 3 * twelfth * patch])  # 3:4 portrait, as 1024 x 768
    if root**2 == rows:
        candidates.append([root * patch, root * patch])
    for size in candidates:
        size = [size, size] if isinstance(size, int) else size
        if size and None not in size and (size[0] // patch) * (size[1] // patch) == rows:
            return list(size)
    raise ValueError(
        f"{file.path}: its position table has {rows} patches, which tells no height and width"
        + (f", and image_size={asked} would need another number" if asked else "")
        + ". Pass image_size=[height, width] of the training, in pixels."
    )


def _target_image_size(file: OriginalFile, network: _Network, task: str, stored: list[int], asked: Any) -> list[int]:
    """Height and width in pixels to make the model for; a pretrained square becomes the 3:4 of the tasks."""
    if asked:
        return [asked, asked] if isinstance(asked, int) else list(asked)
    if not network.use_cls_token or task in ("encoder", "pretraining"):
        return stored
    size = [stored[0], stored[1] * 3 // 4]
    if size[1] % network.patch_size:
        raise ValueError(
            f"{file.path}: no 3:4 size follows from its {stored}. Pass image_size=[height, width] in pixels."
        )
    return size


def _training_fields(file: OriginalFile, network: _Network, task: str, num_labels: int | None) -> dict[str, Any]:
    """Settings of the losses that travel with the checkpoint: from the configuration text, else as released."""
    fields: dict[str, Any] = {}
    if task == "pretraining":
        heads = _from_text(file, "neck", "decoder_num_heads")
        ratio, norm_pix = _from_text(file, "backbone", "mask_ratio"), _from_text(file, "head", "norm_pix")
        fields |= {} if heads is None else {"decoder_num_attention_heads": heads}
        fields |= {"mask_ratio": ratio} if isinstance(ratio, float) else {}
        fields |= {"norm_pix_loss": norm_pix} if isinstance(norm_pix, bool) else {}
    if task == "pose" and network.task == "pose":
        loss = _from_text(file, "head", "loss")
        if isinstance(loss, dict):
            fields["keypoint_loss_top_k"] = loss.get("topk") if loss.get("type") == "KeypointOHKMMSELoss" else None
        elif num_labels == 308 and network.size in ("0.3b", "1b"):
            fields["keypoint_loss_top_k"] = 128  # the Goliath configurations of 0.3b and 1b only
    if task == "segmentation" and network.task == "segmentation":
        weights = _from_text(file, "decode_head", "loss_decode", "class_weight")
        if isinstance(weights, list) and len(weights) == num_labels:
            fields["semantic_loss_class_weights"] = weights
    return fields


def _configure(file: OriginalFile, network: _Network, task: str, overrides: dict[str, Any]) -> SapiensConfig:
    """The configuration of the model that will be made, still with the image size of the stored position table."""
    fields = {name: value for name, value in TASKS[task].items() if name != "num_labels"}
    fields |= {
        name: getattr(network, name)
        for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size")
    }
    fields |= network.head if task == network.task else {}
    fields |= network.decoder if task == "pretraining" else {}
    fields |= {
        "num_attention_heads": _num_heads(file, network, overrides.get("num_attention_heads")),
        "patch_embeddings_padding": _padding(file, network, task),
        "use_cls_token": network.use_cls_token and task in ("encoder", "pretraining"),
    }
    if "patch_embeddings_padding" in overrides and task == network.task:
        given, found = overrides["patch_embeddings_padding"], fields["patch_embeddings_padding"]
        if given != found:
            logger.warning(
                f"{file.path}: patch_embeddings_padding={given} is used; the file or its recipe says {found}."
            )
    if task in ("pose", "segmentation"):
        asked = len(overrides["id2label"]) if overrides.get("id2label") else overrides.get("num_labels")
        num_labels = asked or (network.num_outputs if task == network.task else TASKS[task]["num_labels"])
        is_stored_head = task == network.task and num_labels == network.num_outputs
        if is_stored_head or not overrides.get("id2label"):  # the caller's labels are in the caller's order
            fields |= _label_fields(task, num_labels)
        if overrides.get("id2label"):
            fields = {name: value for name, value in fields.items() if name not in ("label2id", "num_labels")}
        fields |= _training_fields(file, network, task, num_labels) if is_stored_head else {}
    else:
        fields |= _training_fields(file, network, task, None)
    own = {name for name in overrides if name != "image_size" and not (name == "num_labels" and "id2label" in fields)}
    fields |= {name: overrides[name] for name in own}
    if (
        task == "pretraining"
        and fields.get("decoder_hidden_size", 512) != 512
        and "decoder_num_attention_heads" not in fields
    ):
        raise ValueError(
            f"{file.path}: the number of attention heads of its decoder (width {fields['decoder_hidden_size']}) is "
            "not in the file. Pass decoder_num_attention_heads=."
        )
    stored = _stored_image_size(file, network, overrides.get("image_size"))
    try:
        return SapiensConfig(**fields | {"image_size": stored})
    except StrictDataclassError as error:
        raise ValueError(f"{file.path} is a {network}, but {error.__cause__ or error}") from error


def _check_overrides(overrides: Iterable[str]) -> None:
    known = {name for name in SapiensConfig.__annotations__ if not name.startswith("_")} | {
        "id2label",
        "label2id",
        "num_labels",
    }
    known |= {"out_indices", "out_features"}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(
                f"load_original got an unknown argument {name!r}: expected task, filename, revision, dtype or a field "
                f"of SapiensConfig.{f' Did you mean {near[0]!r}?' if near else ''}"
            )


# ------------------------------------------------------------------------------------------------------------ loading
def _choose_task(file: OriginalFile, network: _Network, task: str | None, expected_class: str | None) -> str:
    """The task of the model to make: the one asked for if the file can give it.

    Raises:
        ValueError: An unknown task, or a file of another one.
    """
    if expected_class is not None and expected_class not in CLASS_TASKS:
        raise ValueError(
            f"{expected_class} cannot be made from a checkpoint of the original: use one of {sorted(CLASS_TASKS)}."
        )
    wanted = task or CLASS_TASKS.get(expected_class or "") or network.task
    if wanted not in TASK_CLASSES:
        near = difflib.get_close_matches(str(wanted), TASK_CLASSES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown task {wanted!r}: expected one of {', '.join(map(repr, TASK_CLASSES))}.{hint}")
    dense = {1: "depth", 3: "normal"}.get(network.num_outputs or 0)
    if wanted == "segmentation" and network.task == dense and not file.config:
        return wanted  # one or three classes look like depth or normals; the caller knows
    is_pretrained = network.task in ("encoder", "pretraining")
    fits = wanted in (network.task, "encoder") or (
        is_pretrained and (wanted != "pretraining" or network.use_cls_token)
    )
    if not fits:
        right = TASK_CLASSES[network.task].__name__
        asked = expected_class or TASK_CLASSES[wanted].__name__
        raise ValueError(
            f"{file.path} is a {network}, which does not fit {asked}. Use {right}, or task={network.task!r}; to train "
            f"{wanted} on its backbone, start from a pretraining checkpoint."
        )
    return wanted


def _plan(
    file: OriginalFile, network: _Network, model: SapiensPreTrainedModel, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], set[str]]:
    """Which stored tensor fills which of the model's; checks every name and shape before anything is read.

    Returns:
        Original tensors to read, by original name, and the names of the model's tensors that start anew.

    Raises:
        ValueError: Unknown, missing or mis-shaped tensors, with a table of all of them.
    """
    task = CLASS_TASKS[type(model).__name__]
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if task == "encoder":
        expected = {f"model.{name}": shape for name, shape in expected.items()}
    new_labels = task == network.task and network.num_outputs not in (None, _num_outputs(model))
    keep, filled, problems = {}, set(), []
    for name, stored in tensors.items():
        targets = translate_key(name)
        if targets is None:
            near = difflib.get_close_matches(name, [fill_key(s, 0, "weight") for s in KEY_TABLE], n=1)
            problems.append((name, str(list(stored.shape)), f"no such tensor{f' (near {near[0]})' if near else ''}"))
            continue
        if new_labels and targets and targets[0].startswith("head.final_conv."):
            continue
        if not targets or (task != network.task and _is_dropped(targets[0], task)):
            continue
        if any(target not in expected for target in targets):
            problems.append((name, str(list(stored.shape)), "no such tensor in this network"))
            continue
        filled |= set(targets)
        rows, *rest = expected[targets[0]] or (1,)
        want = (rows * len(targets), *rest)
        if name == "backbone.pos_embed":
            want = (want[0], want[1] + network.use_cls_token - model.config.use_cls_token, want[2])
        if stored.shape != want:
            problems.append((name, str(list(stored.shape)), str(list(want))))
            continue
        keep[name] = stored
    new = set(expected) - filled
    # A whole head or a whole decoder may be missing, and a last convolution that is replaced; nothing else.
    groups = {"head.": task != network.task, "decoder.": not network.decoder, "head.final_conv.": new_labels}
    problems += [
        ((original_key(name, task) or (name,))[0], "missing", str(list(expected[name])))
        for name in sorted(new)
        if not any(allowed and name.startswith(group) for group, allowed in groups.items())
    ]
    if problems:
        rows = [("tensor", "in the file", "expected"), *dict.fromkeys(problems)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows]
        more = f"\n  ... and {len(lines) - 21} more" if len(lines) > 21 else ""
        raise ValueError(
            f"{file.path} is a {network} that does not fit {type(model).__name__}; nothing was loaded:\n"
            + "\n".join(lines[:21])
            + more
        )
    return keep, new


def _is_dropped(target: str, task: str) -> bool:
    """Whether a tensor of another task's checkpoint has no place in this one, on purpose."""
    if task == "encoder":
        return target.startswith(("decoder.", "head."))
    return task != "pretraining" and (target.startswith("decoder.") or target == "model.embeddings.cls_token")


def _num_outputs(model: SapiensPreTrainedModel) -> int | None:
    head = getattr(model, "head", None)
    return None if head is None else head.final_conv.out_channels


def _read_weights(
    keep: Mapping[str, StoredTensor], network: _Network, model: SapiensPreTrainedModel, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Reads the planned tensors one by one, so that no more than one of them is in memory twice."""
    is_encoder = CLASS_TASKS[type(model).__name__] == "encoder"
    weights: dict[str, torch.Tensor] = {}
    for name, stored in keep.items():
        tensor = stored.read().to(dtype)
        if name == "backbone.pos_embed" and network.use_cls_token and not model.config.use_cls_token:
            tensor = tensor[:, 1:].clone()
        targets = translate_key(name) or ()
        parts = [part.clone() for part in tensor.chunk(len(targets))] if len(targets) > 1 else [tensor]
        weights |= {
            t.removeprefix("model.") if is_encoder else t: part for t, part in zip(targets, parts, strict=True)
        }
    return weights


def _start_anew(model: SapiensPreTrainedModel, new: set[str]) -> dict[str, torch.Tensor]:
    """Initial weights for the parts that the file does not have."""
    for part in {name.split(".")[0] for name in new}:
        module = getattr(model, part).to_empty(device="cpu")
        module.apply(model._init_weights)
    state = model.state_dict()
    return {name: state[name] for name in new}


def _float_type(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of the weights; `"auto"` is float32 as well, because the network was trained in it."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) and dtype != "auto" else dtype
    found = torch.float32 if dtype in (None, "auto") else found
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type such as 'float32' or torch.bfloat16, got {dtype!r}.")
    return found


def _place(model: SapiensPreTrainedModel, device_map: Any) -> SapiensPreTrainedModel:
    """Moves the model to one device; spreading it over several needs a converted folder."""
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential") or isinstance(device_map, Mapping):
        raise ValueError(
            f"device_map={device_map!r} needs a converted checkpoint: load_original(...).save_pretrained(folder), "
            "then from_pretrained(folder, device_map=...). A single device works here."
        )
    return model if device_map is None else model.to(device_map)


def load_original(
    source: str | Path,
    *,
    task: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    config: SapiensConfig | None = None,
    expected_class: str | None = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    output_loading_info: bool = False,
    **config_overrides: Any,
) -> Any:
    """Makes a Sapiens model of a checkpoint in the original's format.

    Task, size and head are read from the tensors. Only a whole head (an encoder with `task=`) or a whole decoder (an
    encoder with `task="pretraining"`) may be missing; it starts anew, which is logged. A position table of the square
    pretraining grid is resized to `image_size` (bicubic), by default to the 3:4 format of the tasks.

    Args:
        source: A `.pth`, `_clean.pth`, original-named `.safetensors`, TorchScript or torch.export `.pt2`; a folder
            with one of them; or a repository id such as `"facebook/sapiens-pose-1b"`.
        task: `"pretraining"`, `"encoder"`, `"pose"`, `"segmentation"`, `"depth"` or `"normal"`; by default the file's.
        filename: File of the folder or repository, where there are several.
        revision: Branch, tag or commit of the repository.
        dtype: Type of the weights; float32 by default, whatever the file has.
        config: A complete configuration instead of the one read from the file; shapes must agree with it.
        expected_class: Name of the model class wanted; `from_pretrained` passes its own.
        attn_implementation: As in `from_pretrained`.
        device_map: One device to put the model on; the CPU by default.
        output_loading_info: Whether to return `(model, info)` with transformers' lists of keys.
        **config_overrides: Fields of `SapiensConfig`, such as `num_attention_heads`, `image_size`,
            `patch_embeddings_padding` or `num_labels`; and the download options `cache_dir`, `force_download`,
            `local_files_only` and `token`.

    Returns:
        The model of the task, in evaluation mode.

    Raises:
        FileNotFoundError: No such file, folder content or repository; names what was expected where.
        ValueError: A damaged or unsafe file, a file of another task or network, or something that only the caller
            knows (attention heads of an unknown width, the image size of an unknown grid).
        TypeError: An argument that is no field of `SapiensConfig`.
        OSError: The Hub cannot be reached.

    Example:
        >>> from sapiens_hf import load_original
        >>> model = load_original("facebook/sapiens-pose-1b")  # doctest: +SKIP
        >>> model.save_pretrained("sapiens-pose-1b")  # doctest: +SKIP
    """
    options = {name: config_overrides.pop(name) for name in HUB_OPTIONS if name in config_overrides}
    dtype = _float_type(config_overrides.pop("torch_dtype", None) if dtype is None else dtype)
    _check_overrides(config_overrides)
    file = read_original(find_original(source, filename, revision, options))
    tensors = _plain_names(file)
    network = _describe(file, tensors)
    task = _choose_task(file, network, task, expected_class)
    if task == "segmentation" and network.task in ("depth", "normal"):
        network = replace(network, task=task)

    asked_size = config.image_size if config is not None else config_overrides.get("image_size")
    if config is None:
        config = _configure(file, network, task, config_overrides)
    else:
        config = copy.deepcopy(config)
        config.image_size = _stored_image_size(file, network, asked_size)
    target_size = _target_image_size(file, network, task, config.image_size, asked_size)

    model_class = SapiensBackbone if expected_class == SapiensBackbone.__name__ else TASK_CLASSES[task]
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"), initialization.no_init_weights():
        model = model_class._from_config(config, dtype=dtype, **attention)
    keep, new = _plan(file, network, model, tensors)
    weights = _start_anew(model, new)
    weights |= _read_weights(keep, network, model, dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    model.resize_position_embeddings(target_size)
    model.config._name_or_path = str(source)
    if new:
        part = "last convolution" if task == network.task else "head" if _num_outputs(model) else "decoder"
        size = f" ({_num_outputs(model)} output channels)" if _num_outputs(model) else ""
        logger.warning(
            f"{file.path.name} is a {network}: the {part} of {type(model).__name__}{size} is new and must be trained."
        )
    model = _place(model.eval(), device_map)
    info = {"missing_keys": sorted(new), "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model, info) if output_loading_info else model

"""What network a file of the original holds: read from its tensors, its texts, the released table, or the caller.

Part of `original.py`. Tensors tell width, depth, head and number of labels. Attention heads, patch padding and image
size they do not tell: those come from the configuration text or the traced graph of the file, then from the table of
released networks, then from the caller; else the error asks for them.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from .configuration_sapiens import SIZES, TASKS, SapiensConfig, patch_padding
from .original_readers import OriginalFile, StoredTensor
from .original_sources import ASSETS, released_file

logger = logging.get_logger(__name__)


# ---------------------------------------------------------------------------------------------- what a file describes
@dataclass(frozen=True)
class Network:
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


def plain_names(file: OriginalFile) -> dict[str, StoredTensor]:
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


def describe(file: OriginalFile, tensors: Mapping[str, StoredTensor]) -> Network:
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
    return Network(
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


def _known_heads(file: OriginalFile, network: Network) -> tuple[int | None, str]:
    """Attention heads by the file's configuration text, else by the width of a released size; and which of the two."""
    arch = _from_text(file, "backbone", "arch")
    if isinstance(arch, str):
        arch = {"num_heads": SIZES.get(arch.removeprefix("sapiens_"), {}).get("num_attention_heads")}
    known = arch.get("num_heads") if isinstance(arch, dict) else None
    if known is not None:
        return known, "its configuration text"
    widths = {row["hidden_size"]: row["num_attention_heads"] for row in SIZES.values()}
    return widths.get(network.hidden_size), f"the released network of width {network.hidden_size}"


def _num_heads(file: OriginalFile, network: Network, asked: int | None) -> int:
    """Attention heads: the file's configuration text, the width of a released size, or the caller.

    Raises:
        ValueError: Nobody knows, or the caller contradicts what is known.
    """
    known, source = _known_heads(file, network)
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


def _told_padding(file: OriginalFile, network: Network, task: str) -> int | None:
    """Padding in pixels that the file itself says, in its trace or its text, where `task` is its own."""
    if task not in (network.task, "encoder"):
        return None
    if file.patch_padding is not None:
        return file.patch_padding
    if isinstance(_from_text(file, "backbone"), dict):
        padding = _from_text(file, "backbone", "patch_cfg", "padding")
        return padding if isinstance(padding, int) else 0  # the default, 'corner', pads nothing at multiples of 16
    return None


def _padding(file: OriginalFile, network: Network, task: str, num_labels: int | None = None) -> int:
    """Padding of the patch convolution in pixels: what the file says about its own task, else that task's recipe."""
    told = _told_padding(file, network, task)
    if told is not None:
        return told
    if task not in (network.task, "encoder"):
        return patch_padding(task, num_labels)  # a new task on a pretrained encoder
    released = (released_file(file.path.name)[0] or {}).get("patch_embeddings_padding")
    if released is not None:
        return released
    return patch_padding(network.task, network.num_outputs)


def check_config(file: OriginalFile, network: Network, task: str, config: SapiensConfig) -> None:
    """Compares a caller's configuration with what is known of the file and has no shape.

    Another number of labels or another image size is no contradiction: the last convolution starts anew, and the
    position table is resized.

    Raises:
        ValueError: Attention heads or patch padding differ from what the file says; names both.
    """
    facts = [
        ("num_attention_heads", *_known_heads(file, network)),
        ("patch_embeddings_padding", _told_padding(file, network, task), "the file"),
    ]
    if task == "pretraining":
        decoder_heads = _from_text(file, "neck", "decoder_num_heads")
        facts.append(("decoder_num_attention_heads", decoder_heads, "its configuration text"))
    for name, known, source in facts:
        given = getattr(config, name)
        if known not in (None, given):
            raise ValueError(
                f"{file.path} is a {network} with {name}={known} according to {source}, but config= has {given}: "
                f"set config.{name} = {known}, or start from sapiens_hf.original.original_config(file)."
            )
    recipe = _padding(file, network, task)
    if task in (network.task, "encoder") and config.patch_embeddings_padding != recipe:
        _warn_padding(file, config.patch_embeddings_padding, recipe)


def _warn_padding(file: OriginalFile, given: int, found: int) -> None:
    """Says that the caller's padding is used, and what else there is."""
    logger.warning(f"{file.path}: patch_embeddings_padding={given} is used; the file or its recipe says {found}.")


def stored_image_size(file: OriginalFile, network: Network, asked: Any) -> list[int]:
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


def target_image_size(file: OriginalFile, network: Network, task: str, stored: list[int], asked: Any) -> list[int]:
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


def _training_fields(
    file: OriginalFile, network: Network, task: str, num_labels: int | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of the losses that travel with the checkpoint: from the configuration text, else as released."""
    fields: dict[str, Any] = {}
    if task == "pretraining":
        heads, asked = _from_text(file, "neck", "decoder_num_heads"), overrides.get("decoder_num_attention_heads")
        if asked not in (None, heads or asked):
            raise ValueError(
                f"{file.path} is a {network} with {heads} attention heads in its decoder according to its "
                f"configuration text, not {asked}: leave decoder_num_attention_heads= out."
            )
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


def configure(file: OriginalFile, network: Network, task: str, overrides: dict[str, Any]) -> SapiensConfig:
    """The configuration of the model that will be made, still with the image size of the stored position table."""
    fields = {name: value for name, value in TASKS[task].items() if name != "num_labels"}
    fields |= {
        name: getattr(network, name)
        for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size")
    }
    fields |= network.head if task == network.task else {}
    fields |= network.decoder if task == "pretraining" else {}
    asked = len(overrides["id2label"]) if overrides.get("id2label") else overrides.get("num_labels")
    fields |= {
        "num_attention_heads": _num_heads(file, network, overrides.get("num_attention_heads")),
        "patch_embeddings_padding": _padding(file, network, task, asked),
        "use_cls_token": network.use_cls_token and task in ("encoder", "pretraining"),
    }
    if "patch_embeddings_padding" in overrides and task == network.task:
        given, found = overrides["patch_embeddings_padding"], fields["patch_embeddings_padding"]
        if given != found:
            _warn_padding(file, given, found)
    if task in ("pose", "segmentation"):
        num_labels = asked or (network.num_outputs if task == network.task else TASKS[task]["num_labels"])
        is_stored_head = task == network.task and num_labels == network.num_outputs
        if is_stored_head or not overrides.get("id2label"):  # the caller's labels are in the caller's order
            fields |= _label_fields(task, num_labels)
        if overrides.get("id2label"):
            fields = {name: value for name, value in fields.items() if name not in ("label2id", "num_labels")}
        fields |= _training_fields(file, network, task, num_labels, overrides) if is_stored_head else {}
    else:
        fields |= _training_fields(file, network, task, None, overrides)
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
    stored = stored_image_size(file, network, overrides.get("image_size"))
    try:
        return SapiensConfig(**fields | {"image_size": stored})
    except StrictDataclassError as error:
        raise ValueError(f"{file.path} is a {network}, but {error.__cause__ or error}") from error


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises a `TypeError` for a name that is no field of the configuration."""
    known = {name for name in SapiensConfig.__annotations__ if not name.startswith("_")}
    known |= {"id2label", "label2id", "num_labels", "out_indices", "out_features"}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(
                f"load_original got an unknown argument {name!r}: expected task, filename, revision, dtype or a field "
                f"of SapiensConfig.{f' Did you mean {near[0]!r}?' if near else ''}"
            )

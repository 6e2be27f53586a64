"""The model and the processor of a run."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file, logging

import sapiens_hf
from sapiens_hf import SapiensConfig
from sapiens_hf.configuration_sapiens import SIZES, patch_padding
from sapiens_hf.original import build_whole

from .layouts import ClassLayout, KeypointLayout
from .options import RunOptions, check_names, parse_values

logger = logging.get_logger(__name__)

MODEL_CLASSES = {
    "pose": "SapiensForPoseEstimation",
    "segmentation": "SapiensForSemanticSegmentation",
    "depth": "SapiensForDepthEstimation",
    "normal": "SapiensForNormalEstimation",
}
# A size for CPUs and for tests of a whole run: 2 million parameters, 256 x 192.
TINY = dict(hidden_size=160, num_hidden_layers=6, num_attention_heads=5, intermediate_size=480, image_size=[256, 192])
# Narrower where the maps are larger: at full width the head would cost more than the backbone.
TINY_HEADS = {
    "pose": dict(deconv_out_channels=[64, 64], conv_out_channels=[64, 64]),
    "segmentation": dict(deconv_out_channels=[64, 48, 32], conv_out_channels=[32, 32]),
    "depth": dict(deconv_out_channels=[64, 48, 32, 16], conv_out_channels=[16, 16]),
    "normal": dict(deconv_out_channels=[64, 48, 32], conv_out_channels=[32, 32]),
}
# Fields that no module reads when it is made: they can be set on a loaded model.
LOSS_FIELDS = ("flip_pairs", "keypoint_loss_top_k", "semantic_loss_class_weights", "semantic_loss_ignore_index")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


def build_model(options: RunOptions, layout: KeypointLayout | ClassLayout | None = None) -> Any:
    """The task's model in float32: from a checkpoint, or with new weights of a size.

    Args:
        options: of the run.
        layout: keypoints or classes; their names, flip pairs and weights go into the configuration.

    Raises:
        ValueError: if a size or a field is unknown, or a checkpoint does not fit.
    """
    torch.manual_seed(options.seed)  # whatever part of the weights is new
    model_class = getattr(sapiens_hf, MODEL_CLASSES[options.task])
    fields = label_fields(options, layout)
    fields |= parse_values(options.config_overrides, _config_fields(), "--config_overrides")
    if options.image_size:
        fields["image_size"] = list(options.image_size)
    kwargs: dict[str, Any] = {}
    if options.attn_implementation:
        kwargs["attn_implementation"] = options.attn_implementation
    if options.model_name_or_path:
        config_only = {name: fields.pop(name) for name in LOSS_FIELDS if name in fields}
        model = _load(model_class, options, fields, kwargs)
        for name, value in config_only.items():
            setattr(model.config, name, value)
    else:
        config = _new_config(options, fields)
        model = build_whole(model_class, config, torch.float32, options.attn_implementation)
    model.train()
    freeze(model, options.freeze_layers)
    if options.gradient_checkpointing:
        recompute_activations(model)
    if options.lora_r:
        model = add_lora(model, options.lora_r, options.lora_alpha, options.freeze_layers)
    return model


def label_fields(options: RunOptions, layout: KeypointLayout | ClassLayout | None) -> dict[str, Any]:
    """Fields of the configuration that follow from keypoints or classes."""
    if layout is None:
        return {}
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(layout.names)),
        "label2id": {name: index for index, name in enumerate(layout.names)},
    }
    if isinstance(layout, KeypointLayout):
        fields["flip_pairs"] = [list(pair) for pair in layout.flip_pairs]
        fields["keypoint_loss_top_k"] = getattr(options, "keypoint_loss_top_k", None)
    else:
        weights = layout.class_weights if getattr(options, "class_weights", True) else None
        fields["semantic_loss_class_weights"] = None if weights is None else list(weights)
        fields["semantic_loss_ignore_index"] = layout.ignore_index
    return fields


def build_processor(options: RunOptions, model: Any) -> Any:
    """The checkpoint's processor, or the default one, at the size of the model."""
    height, width = model.config.image_size
    size = {"height": height, "width": width}
    settings: dict[str, Any] = {"size": size}
    if options.task == "pose":  # the targets have the size of the head's maps
        scale = model.config.patch_size / 2 ** len(model.config.deconv_out_channels)
        if scale < 1:
            raise ValueError(
                f"{len(model.config.deconv_out_channels)} deconvolutions of patches of {model.config.patch_size} "
                "pixels make heatmaps larger than the input; give fewer in --config_overrides."
            )
        settings["keypoint_heatmap_downscale_factor"] = int(scale)
    if getattr(options, "heatmap_sigma", None) is not None:
        settings["keypoint_heatmap_sigma"] = options.heatmap_sigma  # type: ignore[attr-defined]
    source = options.model_name_or_path
    if source and _has_processor(source):
        return sapiens_hf.SapiensImageProcessor.from_pretrained(source, **settings)
    return sapiens_hf.SapiensImageProcessor(**settings)


def _has_processor(source: str) -> bool:
    """Whether a folder or a repository of the Hub holds a processor; Meta's own have none."""
    if Path(source).exists():
        return (Path(source) / IMAGE_PROCESSOR_NAME).is_file()
    if _is_original(source):
        return False
    return cached_file(source, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None


def recompute_activations(model: Any) -> None:
    """Keep the inputs of blocks only, and compute the rest again on the way back."""
    newer = hasattr(model, "activation_checkpointing_enable")  # its name since transformers 5.24
    enable = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def freeze(model: Any, num_layers: int) -> None:
    """Stop the embeddings and the first blocks from training; -1 is the whole backbone.

    Raises:
        ValueError: if the model has fewer blocks.
    """
    blocks = model.base_model.encoder.layers
    if not -1 <= num_layers <= len(blocks):
        raise ValueError(f"--freeze_layers is {num_layers}; expected -1 to {len(blocks)}, the model's blocks.")
    if num_layers == -1:
        model.base_model.requires_grad_(False)
    elif num_layers:
        model.base_model.embeddings.requires_grad_(False)
        for block in blocks[:num_layers]:
            block.requires_grad_(False)


def add_lora(model: Any, rank: int, alpha: int | None, first_layer: int = 0) -> Any:
    """LoRA adapters on all linear layers of the backbone's blocks from the first that trains; the head trains whole.

    Raises:
        ImportError: if `peft` is not installed.
        ValueError: if no block trains.
    """
    num_layers = model.config.num_hidden_layers
    if first_layer >= num_layers:  # PEFT takes an empty list of blocks for all of them
        raise ValueError(
            f"--freeze_layers {first_layer} leaves none of {num_layers} blocks for the adapters of --lora_r; give one "
            "of the two, or freeze fewer."
        )
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("--lora_r needs the `peft` package: pip install sapiens_hf[train].") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        target_modules=list(LORA_TARGETS),
        modules_to_save=["head"],
        layers_to_transform=list(range(first_layer, num_layers)) if first_layer else None,
    )
    return get_peft_model(model, config)


def merge_lora(model: Any, state: dict[str, torch.Tensor]) -> Any:
    """A plain model with adapters merged in, made on the CPU, so that the one in training stays as it is."""
    from peft import get_peft_model

    base = model.get_base_model()
    with torch.device("cpu"):
        plain = build_whole(type(base), copy.deepcopy(base.config), torch.float32)
        adapted = get_peft_model(plain, copy.deepcopy(model.peft_config["default"]))
    adapted.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
    return adapted.merge_and_unload()


def _new_config(options: RunOptions, fields: dict[str, Any]) -> SapiensConfig:
    fields = {"patch_embeddings_padding": _paper_padding(options, fields), **fields}
    if options.model_size != "tiny":
        return SapiensConfig.from_size(options.model_size, task=options.task, **fields)
    extra: dict[str, Any] = {"head_dropout2d_prob": 0.0}
    return SapiensConfig(**{**TINY, **TINY_HEADS[options.task], **extra, **fields})


def _load(model_class: Any, options: RunOptions, fields: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    logger.info(f"Loading {options.model_name_or_path} into {model_class.__name__}.")
    if not _is_original(options.model_name_or_path):
        fields = {"use_cls_token": False, **fields}  # Meta's own files lose it and find their padding on their own
        encoder = _encoder_fields(options.model_name_or_path)
        if encoder:
            fields = {"patch_embeddings_padding": _paper_padding(options, encoder | fields), **fields}
    return model_class.from_pretrained(options.model_name_or_path, dtype=torch.float32, **fields, **kwargs)


def _is_original(source: Any) -> bool:
    is_original = sapiens_hf.SapiensModel._is_original_source
    return is_original is not None and is_original(source)


def _encoder_fields(source: str) -> dict[str, Any]:
    """The configuration of a checkpoint before any task, empty for others; a missing one is left to the loader."""
    from sapiens_hf.hub import CLASS_TASKS

    try:
        stored, _ = SapiensConfig.get_config_dict(source)
    except OSError:
        return {}
    return stored if CLASS_TASKS.get((stored.get("architectures") or [""])[0]) in ("encoder", "pretraining") else {}


def _paper_padding(options: RunOptions, fields: dict[str, Any]) -> int:
    """What the original's configuration of this task has; the encoder before it has none."""
    padding = patch_padding(options.task, len(fields.get("id2label") or ()))
    return padding if 2 * padding < fields.get("patch_size", 16) else 0  # of patches of 4 px it would be too much


def _config_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(SapiensConfig)]


def check_size(options: RunOptions) -> None:
    """Refuse an unknown model size before data is read."""
    if not options.model_name_or_path:
        check_names("model size", [options.model_size], [*SIZES, "tiny"], "--model_size")

"""Meta's own checkpoints: their names, where they are, and `load_original`, which turns one into a Sapiens model.

Only this module and its four parts know the original's vocabulary: `original_sources.py` (where a checkpoint is),
`original_readers.py` (containers: which tensors a file holds), `original_network.py` (which network they make) and
`original_keys.py` (what becomes of every tensor name). One file would be 1,600 lines.

Sources: facebookresearch/sapiens at commit 3e829ac; `assets/released_checkpoints.json` has one row per released file.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import initialization
from transformers.utils import logging

from .configuration_sapiens import SapiensConfig
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
from .original_network import (
    Network,
    check_config,
    check_overrides,
    configure,
    describe,
    plain_names,
    stored_image_size,
    target_image_size,
)
from .original_readers import OriginalFile, StoredTensor, read_original
from .original_sources import (
    HUB_OPTIONS,
    find_original,
    is_original_source,
    released_checkpoints,
    released_file,
    suggest_source,
)

logger = logging.get_logger(__name__)

__all__ = [
    "CLASS_TASKS",
    "KEY_TABLE",
    "TASK_CLASSES",
    "find_original",
    "is_original_source",
    "load_original",
    "original_class",
    "original_config",
    "original_tensors",
    "read_original",
    "released_checkpoints",
    "released_file",
    "suggest_source",
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
# Arguments of `from_pretrained` that change nothing here, whatever their value: reading is always lean and safe.
WITHOUT_MEANING = (
    "_fast_init",
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "code_revision",
    "low_cpu_mem_usage",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "resume_download",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
)
# Those that work on a converted folder only; absent, off or empty, they are as if they were not there.
FOR_FOLDERS = (
    "device_mesh",
    "gguf_file",
    "key_mapping",
    "max_memory",
    "quantization_config",
    "subfolder",
    "tp_plan",
    "tp_size",
    "variant",
)
CLASS_TASKS = {cls.__name__: task for task, cls in TASK_CLASSES.items()} | {SapiensBackbone.__name__: "encoder"}


def original_tensors(model: SapiensPreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model under the original's names, one by one: the inverse of what `load_original` does to them.

    Args:
        model: One of the Sapiens models. A `SapiensModel` gives the flat names of a `_clean.pth`.

    Yields:
        Original name and tensor. Query, key and value are fused again, which is the only copy.

    Raises:
        ValueError: The class has no counterpart in the original.
    """
    task = CLASS_TASKS.get(type(model).__name__)
    if task is None:
        raise ValueError(f"{type(model).__name__} has no counterpart among the original's checkpoints.")
    prefix = "model." if task == "encoder" else ""
    ours = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    for name, tensor in ours.items():
        source, parts = original_key(name, task) or (name, (name,))
        if name == parts[0]:
            fused = torch.cat([ours[part] for part in parts]) if len(parts) > 1 else tensor
            yield source.removeprefix("backbone.") if task == "encoder" else source, fused


def to_original_state_dict(model: SapiensPreTrainedModel) -> dict[str, torch.Tensor]:
    """All of `original_tensors` as a dict, ready for `torch.save`."""
    return dict(original_tensors(model))


# ------------------------------------------------------------------------------------------------------------ loading
def _choose_task(file: OriginalFile, network: Network, task: str | None, expected_class: str | None) -> str:
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
    file: OriginalFile, network: Network, model: SapiensPreTrainedModel, tensors: Mapping[str, StoredTensor]
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
    keep: Mapping[str, StoredTensor], network: Network, model: SapiensPreTrainedModel, dtype: torch.dtype
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


def _fields_only(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the arguments that speak of folders of transformers out of those of `from_pretrained`.

    Raises:
        ValueError: One of them was to do something, which it cannot for a file of the original.
    """
    if arguments.get("ignore_mismatched_sizes"):
        raise ValueError(
            "ignore_mismatched_sizes=True does nothing for a file of the original, whose own shapes make the network. "
            "For another number of labels pass num_labels= (or id2label=): only the last convolution is new then. For "
            "another task, start from a pretraining checkpoint."
        )
    used = [name for name in FOR_FOLDERS if arguments.get(name)]
    if used:
        name = used[0]
        instead = " Or name the file: filename=." if name in ("subfolder", "variant", "gguf_file") else ""
        raise ValueError(
            f"{name}={arguments[name]!r} needs a converted checkpoint: load_original(...).save_pretrained(folder), "
            f"then from_pretrained(folder, {name}=...).{instead}"
        )
    ignored = {*WITHOUT_MEANING, *FOR_FOLDERS, "ignore_mismatched_sizes"}
    return {name: value for name, value in arguments.items() if name not in ignored}


def _check_alone(config: Any, overrides: Mapping[str, Any]) -> None:
    """A given configuration is a whole one, and the only one."""
    if getattr(config, "model_type", None) != SapiensConfig.model_type:
        raise TypeError(
            f"config must be a SapiensConfig, got {config!r}: make one with sapiens_hf.original.original_config(file)."
        )
    if overrides:
        fields = ", ".join(f"config.{name}" for name in overrides)
        raise TypeError(
            f"config= is a complete configuration, so {', '.join(f'{name}=' for name in overrides)} cannot be passed "
            f"beside it: set {fields} before loading, or leave config= out."
        )


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


def _recognise(
    file: OriginalFile, task: str | None, expected_class: str | None
) -> tuple[dict[str, StoredTensor], Network, str]:
    """Tensors by plain original name, the network they make, and the task of the model to make of them."""
    tensors = plain_names(file)
    network = describe(file, tensors)
    task = _choose_task(file, network, task, expected_class)
    if task == "segmentation" and network.task in ("depth", "normal"):
        network = replace(network, task=task)
    return tensors, network, task


def original_config(path: str | Path, *, task: str | None = None, **config_overrides: Any) -> SapiensConfig:
    """The configuration that `load_original` reads from a file. No weight is read.

    Args:
        path: A local file.
        task: As for `load_original`.
        **config_overrides: Fields of `SapiensConfig`.

    Returns:
        The configuration; its `image_size` is that of the stored position table.

    Raises:
        ValueError: As `load_original`.
    """
    check_overrides(config_overrides)
    file = read_original(path)
    _, network, task = _recognise(file, task, None)
    return configure(file, network, task, config_overrides)


def original_class(path: str | Path) -> type[SapiensPreTrainedModel]:
    """The model class that `load_original` makes of a local file. No weight is read.

    Raises:
        ValueError: As `load_original`.
    """
    return TASK_CLASSES[_recognise(read_original(path), None, None)[2]]


def build_whole(model_class: Any, config: SapiensConfig, dtype: torch.dtype, attn_implementation: Any = None) -> Any:
    """A model of a configuration with new weights, whole on every process.

    Under DeepSpeed's ZeRO-3 `_from_config` shares the weights out before they have values.

    Args:
        model_class: of the model.
        config: kept in it; `dtype` and attention are noted there.
        dtype: of the weights.
        attn_implementation: None for transformers' choice.
    """
    config.dtype = dtype
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return model_class(config)
    finally:
        torch.set_default_dtype(before)


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
        config: A complete configuration instead of the one read from the file. Shapes, attention heads and patch
            padding must agree with it; other labels replace the last convolution, another `image_size` resizes.
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
        ValueError: No source, a damaged or unsafe file, a file of another task or network, or something that only the
            caller knows (attention heads of an unknown width, the image size of an unknown grid).
        TypeError: An argument that is no field of `SapiensConfig`, or a field beside `config`.
        OSError: The Hub cannot be reached.

    Example:
        >>> from sapiens_hf import load_original
        >>> model = load_original("facebook/sapiens-pose-1b")  # doctest: +SKIP
        >>> model.save_pretrained("sapiens-pose-1b")  # doctest: +SKIP
    """
    options = {name: config_overrides.pop(name) for name in HUB_OPTIONS if name in config_overrides}
    config_overrides = _fields_only(config_overrides)
    dtype = _float_type(config_overrides.pop("torch_dtype", None) if dtype is None else dtype)
    check_overrides(config_overrides)
    if config is not None:
        _check_alone(config, config_overrides)
    file = read_original(find_original(source, filename, revision, options))
    tensors, network, task = _recognise(file, task, expected_class)

    asked_size = config.image_size if config is not None else config_overrides.get("image_size")
    if config is None:
        config = configure(file, network, task, config_overrides)
    else:
        check_config(file, network, task, config)
        config = copy.deepcopy(config)
        config.image_size = stored_image_size(file, network, asked_size)
    target_size = target_image_size(file, network, task, config.image_size, asked_size)

    model_class = SapiensBackbone if expected_class == SapiensBackbone.__name__ else TASK_CLASSES[task]
    with torch.device("meta"), initialization.no_init_weights():
        model = build_whole(model_class, config, dtype, attn_implementation)
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

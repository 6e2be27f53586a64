"""Models for tests: narrow ones of every task whose sizes all differ, and those of the golden numbers."""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from reference import GOLDEN, State, golden_state, normalise, to_ours

import sapiens_hf
from sapiens_hf import SapiensConfig

GOLDEN_FOLDER = Path(__file__).parent / "golden"

IMAGE_SIZE = (64, 48)

CLASS_NAMES = {
    "encoder": "SapiensModel",
    "backbone": "SapiensBackbone",
    "pretraining": "SapiensForPreTraining",
    "pose": "SapiensForPoseEstimation",
    "segmentation": "SapiensForSemanticSegmentation",
    "depth": "SapiensForDepthEstimation",
    "normal": "SapiensForNormalEstimation",
}
DENSE_TASKS = ("pose", "segmentation", "depth", "normal")
MAIN_OUTPUT = {
    "encoder": "last_hidden_state",
    "backbone": "feature_maps",
    "pretraining": "logits",
    "pose": "heatmaps",
    "segmentation": "logits",
    "depth": "predicted_depth",
    "normal": "predicted_normal",
}
_HEADS = {
    "pose": dict(deconv_out_channels=[20, 18], conv_out_channels=[14, 10], patch_embeddings_padding=2, num_labels=5),
    "segmentation": dict(deconv_out_channels=[20, 18, 14], conv_out_channels=[10, 8, 6], num_labels=5),
    "depth": dict(deconv_out_channels=[20, 18, 14, 10], conv_out_channels=[8, 6]),
    "normal": dict(deconv_out_channels=[20, 18, 14], conv_out_channels=[10, 8], patch_embeddings_padding=2),
    "pretraining": dict(use_cls_token=True),
}


def tiny_config(task: str = "segmentation", **overrides) -> SapiensConfig:
    """Image 64 x 48 (grid 4 x 3), width 32, 3 layers, 4 heads, 5 labels; the decoder is narrower still."""
    fields = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=72,
        image_size=list(IMAGE_SIZE),
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=40,
        head_dropout2d_prob=0.0,
    )
    return SapiensConfig(**{**fields, **_HEADS.get(task, {}), **overrides})


def enliven(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill all parameters but fixed tables with random numbers that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                fan_in = math.prod(parameter.shape[1:]) if parameter.ndim in (2, 4) else 8
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def tiny_model(task: str = "segmentation", seed: int = 0, **overrides):
    """A model in evaluation mode."""
    return enliven(getattr(sapiens_hf, CLASS_NAMES[task])(tiny_config(task, **overrides)), seed).eval()


def tiny_pixels(batch_size: int = 2, size: tuple[int, int] = IMAGE_SIZE, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(seed))


def main_output(task: str, outputs) -> torch.Tensor:
    value = outputs[MAIN_OUTPUT[task]]
    return value[-1] if isinstance(value, tuple) else value


def tiny_inputs(task: str, batch_size: int = 2, seed: int = 2) -> dict[str, torch.Tensor]:
    """Pixels and targets of a task (noise for pretraining), so that the outputs hold a loss where there is one."""
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    inputs = {"pixel_values": tiny_pixels(batch_size)}
    if task == "pretraining":
        inputs["noise"] = torch.rand(batch_size, 12, generator=generator)
    elif task == "pose":
        inputs["labels"] = torch.rand(batch_size, 5, height // 4, width // 4, generator=generator)
        inputs["keypoint_weights"] = (torch.rand(batch_size, 5, generator=generator) > 0.3).float()
    elif task == "segmentation":
        labels = torch.randint(0, 5, (batch_size, height, width), generator=generator)
        inputs["labels"] = torch.where(torch.rand(labels.shape, generator=generator) < 0.2, 255, labels)
    elif task == "depth":
        labels = torch.rand(batch_size, height, width, generator=generator)
        inputs["labels"] = torch.where(torch.rand(labels.shape, generator=generator) < 0.3, -1.0, labels)
    elif task == "normal":
        labels = torch.randn(batch_size, 3, height, width, generator=generator)
        labels = labels / labels.norm(dim=1, keepdim=True)
        outside = torch.rand(batch_size, 1, height, width, generator=generator) < 0.3
        inputs["labels"] = torch.where(outside, -1000.0, labels)
    return inputs


# ---------------------------------------------------------------------------------------------------- golden networks
@functools.cache
def golden(part: str) -> dict[str, np.ndarray]:
    """Arrays of tests/golden/model_{part}.npz, computed by the original code."""
    with np.load(GOLDEN_FOLDER / f"model_{part}.npz") as arrays:
        return dict(arrays)


@functools.cache
def original_state(name: str) -> State:
    return golden_state(GOLDEN[name])


def golden_model(name: str, **overrides):
    """One of the networks in `reference.GOLDEN` as a model of ours, in evaluation mode."""
    net = GOLDEN[name]
    fields = dict(
        hidden_size=net.width,
        num_hidden_layers=net.layers,
        num_attention_heads=net.heads,
        intermediate_size=net.hidden,
        image_size=list(net.image_size),
        patch_embeddings_padding=net.padding,
        use_cls_token=net.has_token,
        deconv_out_channels=list(net.deconv),
        conv_out_channels=list(net.conv),
        num_labels=net.outputs or 2,
    )
    if net.decoder:
        fields |= {
            "decoder_hidden_size": net.decoder["width"],
            "decoder_num_hidden_layers": net.decoder["layers"],
            "decoder_num_attention_heads": net.decoder["heads"],
            "decoder_intermediate_size": net.decoder["hidden"],
        }
    model = getattr(sapiens_hf, CLASS_NAMES[net.task])(SapiensConfig(**{**fields, **overrides}))
    model.load_state_dict(to_ours(original_state(name), net))
    return model.eval()


def golden_pixels(name: str) -> torch.Tensor:
    """Network inputs of the golden forward passes: crops of people for pose, a stretched photo for dense tasks."""
    folder = {True: ("preprocess_crops", "crops_u8_rgb"), False: ("preprocess_resize", "resized_u8_rgb")}
    file, key = folder[GOLDEN[name].task == "pose"]
    with np.load(GOLDEN_FOLDER / f"{file}.npz") as arrays:
        levels = arrays[key]
    return normalise(levels[: 2 if name == "pose17" else 1] if levels.ndim == 4 else levels[None])

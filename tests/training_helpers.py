"""Small data sets on disk and small runs, for the tests of the training code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

# Runs are compared bit for bit, in this process and others: all of them on the CPU, wherever the tests run.
os.environ["ACCELERATE_USE_CPU"] = "true"

NAMES = ("nose", "left_hand", "right_hand", "left_foot", "right_foot")
CLASSES = ("Background", "Left_Arm", "Right_Arm", "Torso", "Head", "Leg", "Hat")
SIZE = (96, 80)  # height, width of the pictures; the network takes 64 x 48
TINY = [
    *("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=64"),
    *("deconv_out_channels=%s", "conv_out_channels=[16]", "head_dropout2d_prob=0"),
]
DECONVS = {"pose": "[16,16]", "segmentation": "[16,16,16]", "depth": "[16,16,16,16]", "normal": "[16,16,16]"}
LABELS = {"pose": ["--keypoint_set"], "segmentation": ["--class_set"], "depth": [], "normal": []}


def person(index: int, size: tuple[int, int] = SIZE) -> dict:
    """An ellipsoid "person" with every label, and a background; all from the index."""
    rng = np.random.default_rng(index)
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    center = np.array([width, height]) / 2 + rng.uniform(-6, 6, 2)
    radius = np.array([width, height]) * rng.uniform(0.25, 0.35, 2)
    u, v = (x - center[0]) / radius[0], (y - center[1]) / radius[1]
    mask = u**2 + v**2 < 0.98
    z = np.sqrt(np.clip(1 - u**2 - v**2, 0, None))
    normals = np.stack([u, -v, z], axis=-1)  # x right, y up, z to the camera
    normals = np.where(mask[..., None], normals / np.linalg.norm(normals, axis=-1, keepdims=True), 0)
    label = np.where(u < -0.4, 1, np.where(u > 0.4, 2, np.where(v < -0.4, 4, np.where(v > 0.4, 5, 3))))
    shade = np.stack([0.5 + 0.5 * normals[..., 0], 0.5 + 0.5 * normals[..., 1], z], axis=-1) * 255
    noise = rng.integers(0, 60, (height, width, 3))
    image = np.where(mask[..., None], shade, noise).astype(np.uint8)
    points = center + radius * np.array([[0, 0], [-0.8, 0], [0.8, 0], [-0.3, 0.8], [0.3, 0.8]])
    keypoints = np.concatenate([points, [[2], [2], [2], [2], [1]]], axis=1)
    return {
        "image": image,
        "segmentation_map": np.where(mask, label, 0).astype(np.uint8),
        "depth": np.where(mask, 3 - z, 0).astype(np.float32),
        "normals": normals.astype(np.float32),
        "mask": mask,
        "box": np.array([*(center - radius), *(2 * radius)]),
        "keypoints": keypoints,
    }


def write_tree(root: Path, count: int = 8, suffix: str = ".png", first: int = 0) -> Path:
    """images/, masks/, segmentations/, depths/, normals/ and annotations.json."""
    for name in ("images", "masks", "segmentations", "depths", "normals"):
        (root / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(first, first + count):
        made, stem = person(index), f"p{index:03d}"
        Image.fromarray(made["image"]).save(root / "images" / f"{stem}{suffix}", quality=95)
        Image.fromarray(made["mask"].astype(np.uint8) * 255).save(root / "masks" / f"{stem}.png")
        Image.fromarray(made["segmentation_map"]).save(root / "segmentations" / f"{stem}.png")
        np.save(root / "depths" / f"{stem}.npy", made["depth"])
        np.save(root / "normals" / f"{stem}.npy", made["normals"])
        images.append({"id": index, "file_name": f"{stem}{suffix}", "width": SIZE[1], "height": SIZE[0]})
        annotations.append(
            {
                "id": 100 + index,
                "image_id": index,
                "category_id": 1,
                "bbox": made["box"].tolist(),
                "area": float(made["box"][2] * made["box"][3]),
                "iscrowd": 0,
                "num_keypoints": len(NAMES),
                "keypoints": made["keypoints"].ravel().tolist(),
            }
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    (root / "keypoints.layout.json").write_text(
        json.dumps({"names": NAMES, "upper_body_ids": [0, 1, 2], "lower_body_ids": [3, 4]})
    )
    (root / "classes.layout.json").write_text(json.dumps({"names": CLASSES}))
    return root


def arguments(task: str, data: Path, output: Path, *more: str, steps: int = 4, augment: bool = True) -> list[str]:
    """Command line of a run of a few steps of a tiny model."""
    layout = {"pose": "keypoints.layout.json", "segmentation": "classes.layout.json"}.get(task)
    overrides = [text % DECONVS[task] if "%s" in text else text for text in TINY]
    values = [
        *("--train_data", str(data), "--output_dir", str(output), "--image_size", "64", "48"),
        *("--config_overrides", *overrides, "--batch_size", "4", "--num_workers", "0", "--warmup_steps", "2"),
        *("--max_steps", str(steps), "--log_every", "1", "--schedule", "constant", "--learning_rate", "2e-3"),
        *("--layer_decay_rate", "1.0"),
    ]
    values += [*LABELS[task], str(data / layout)] if layout else []
    values += ["--min_visible", "2"] if task == "pose" else []
    values += [] if augment else ["--no_augment"]
    return values + list(more)

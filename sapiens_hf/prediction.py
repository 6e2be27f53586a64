# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Any Sapiens model on any number of image files: load, predict in batches, draw and write. The work of the CLI.

One image that cannot be read never stops the others; nothing that exists is overwritten unless asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from . import labels
from .configuration_sapiens import SIZES
from .image_loading_sapiens import read_image
from .original import find_original, is_original_source, load_original, original_class, original_config
from .visualization import draw_depth, draw_keypoints, draw_normals, draw_segmentation

logger = logging.get_logger(__name__)

TASK_CLASSES = {
    "pose": "SapiensForPoseEstimation",
    "segmentation": "SapiensForSemanticSegmentation",
    "depth": "SapiensForDepthEstimation",
    "normal": "SapiensForNormalEstimation",
}
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))
# What `write` makes of one image, per task.
OUTPUTS = {
    "pose": (".pose.png", ".pose.json"),
    "segmentation": (".segmentation.png", ".labels.png", ".segmentation.json"),
    "depth": (".depth.png", ".depth.npy", ".depth16.png", ".depth.json"),
    "normal": (".normal.png", ".normal.npy"),
}


@dataclass
class Result:
    """One image and what a model says of it.

    `data` is, per task: the list of people of the keypoint-detection pipeline; labels (height, width); relative depth
    (height, width); unit normals (3, height, width).
    """

    path: Path
    task: str
    image: np.ndarray
    data: Any
    person_mask: np.ndarray | None = None


@dataclass
class Report:
    """What a run did: files written and images that could not be read, with the reason."""

    num_images: int = 0
    written: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds_loading: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def default_device() -> str:
    """The best device at hand: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(
    source: str, task: str | None = None, dtype: str | torch.dtype = "float32", backend: str = "torch"
) -> tuple[Any, Any]:
    """A task model and its image processor from a folder, a Hub id or a file in Meta's format.

    Args:
        source: folder of `save_pretrained`, Hub id, or original file.
        task: "pose", "segmentation", "depth" or "normal"; read from the checkpoint if absent.
        dtype: as in `from_pretrained`.
        backend: "torch", or "onnxruntime" for a folder that `python -m conversion onnx` wrote.

    Raises:
        ValueError: if the checkpoint is of another task, naming it.
    """
    from transformers import AutoConfig, AutoImageProcessor

    import sapiens_hf

    if task is not None and task not in TASK_CLASSES:
        raise ValueError(f"Unknown task {task!r}: expected one of {', '.join(TASK_CLASSES)}.")
    if backend != "torch" and is_original_source(source):
        raise ValueError(
            f"{source} is a file of Meta's: export it first, python -m conversion onnx {source} --output DIR."
        )
    if is_original_source(source):
        class_name = TASK_CLASSES[task] if task else None
        model = load_original(source, dtype=dtype, expected_class=class_name)
        if type(model).__name__ not in TASK_CLASSES.values():
            raise ValueError(
                f"{source} holds {type(model).__name__}, a pretrained encoder without a task head. Fine-tune it "
                "first, or use it with sapiens_hf.SapiensModel for features."
            )
        size = dict(zip(("height", "width"), model.config.image_size))
        return model, sapiens_hf.SapiensImageProcessor(size=size)
    config = AutoConfig.from_pretrained(source)
    if config.model_type != "sapiens":
        raise ValueError(f"{source} is a {config.model_type!r} model, not Sapiens.")
    stored = (config.architectures or ["unknown"])[0]
    by_class = {name: task_name for task_name, name in TASK_CLASSES.items()}
    task = task or by_class.get(stored)
    if task is None or stored not in (TASK_CLASSES[task], "unknown"):
        fits = f"--task {by_class[stored]}" if stored in by_class else f"sapiens_hf.{stored}.from_pretrained"
        raise ValueError(f"{source} holds {stored}, which does not fit the task {task!r}. Use {fits}.")
    processor = AutoImageProcessor.from_pretrained(source)
    if backend == "onnxruntime":
        from .onnxruntime_backend import SapiensOnnxModel

        number_format = {"float32": None, "float16": "fp16", "int8": "int8"}
        if dtype not in number_format:
            raise ValueError(f"The onnxruntime backend has no {dtype}: expected one of {', '.join(number_format)}.")
        return SapiensOnnxModel.from_pretrained(source, number_format[dtype]), processor
    return getattr(sapiens_hf, TASK_CLASSES[task]).from_pretrained(source, dtype=dtype).eval(), processor


def describe_model(source: str) -> dict[str, Any]:
    """What a checkpoint is, as names and values to print: task, size, parameters, labels, input, conventions."""
    import sapiens_hf

    if is_original_source(source):
        path = find_original(source, None, None, {})
        config, model_class, file_format = original_config(path), original_class(path), "Meta's original format"
    else:
        from transformers import AutoConfig

        config, file_format = AutoConfig.from_pretrained(source), "transformers"
        model_class = getattr(sapiens_hf, (config.architectures or ["SapiensModel"])[0])
    with torch.device("meta"):  # shapes only
        model = model_class(config)
    config = model.config
    widths = {name: size["hidden_size"] for name, size in SIZES.items()}
    names = list(_names(config))
    has_labels = type(model).__name__ in (TASK_CLASSES["pose"], TASK_CLASSES["segmentation"])
    return {
        "source": source,
        "format": file_format,
        "class": type(model).__name__,
        "size": next((name for name, width in widths.items() if width == config.hidden_size), "custom"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "input (height x width)": " x ".join(map(str, config.image_size)),
        "patch padding": config.patch_embeddings_padding,
        "labels": f"{len(names)}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if has_labels else "none",
        "flip pairs": len(config.flip_pairs or []),
    }


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, Path]]:
    """Image files among `inputs`, folders searched recursively, each with the relative path of its outputs.

    Raises:
        FileNotFoundError: if an input does not exist.
        ValueError: if there is no image.
    """
    found: dict[Path, Path] = {}
    for entry in map(Path, inputs):
        if entry.is_dir():
            files = sorted(p for p in entry.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            found.update((path, path.relative_to(entry)) for path in files)
        elif entry.exists():
            found.setdefault(entry, Path(entry.name))
        else:
            raise FileNotFoundError(f"There is no file or folder {entry}.")
    if not found:
        raise ValueError(
            f"No image in {', '.join(map(str, inputs))} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    # a.jpg and a.png would write the same files: such names keep their suffix
    stems = [relative.with_suffix("") for relative in found.values()]
    return [
        (path, stem if stems.count(stem) == 1 else relative) for (path, relative), stem in zip(found.items(), stems)
    ]


def read_boxes(path: str | Path) -> dict[str, list[list[float]]]:
    """COCO boxes by file name, from `{"name.jpg": [[x, y, width, height], ...]}` or a COCO annotation file.

    Raises:
        ValueError: if the file is neither.
    """
    content = json.loads(Path(path).read_text())
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
        for annotation in content["annotations"]:
            boxes[names[annotation["image_id"]]].append(annotation["bbox"])
        return boxes
    if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        return content
    raise ValueError(
        f'{path} holds neither {{"name.jpg": [[x, y, width, height], ...]}} nor COCO\'s images and annotations.'
    )


class Predictor:
    """One model on batches of images.

    Args:
        model: a task model of this package.
        processor: its image processor.
        device: torch device; the best one by default.
        batch_size: images, or person crops, per forward pass.
        resize: "two_step" (as the original) or "direct", for the three dense tasks.
        **pose_options: arguments of the keypoint-detection pipeline (`detector`, `threshold`, `flip_test`, ...).
    """

    def __init__(
        self,
        model,
        processor,
        device: str | None = None,
        batch_size: int = 1,
        resize: str = "two_step",
        **pose_options,
    ):
        architecture = getattr(model, "architecture", type(model).__name__)  # an ONNX model says which class it was
        self.task = {name: task for task, name in TASK_CLASSES.items()}[architecture]
        self.model = model.to(device or default_device()) if isinstance(model, torch.nn.Module) else model
        self.processor = processor
        self.batch_size = batch_size
        self.resize = resize
        if self.task == "pose":
            from .pipeline_sapiens import SapiensKeypointDetectionPipeline

            self.pose = SapiensKeypointDetectionPipeline(
                model=self.model,
                image_processor=processor,
                device=self.model.device,
                dtype=model.dtype,
                **pose_options,
            )

    def __call__(self, images: Sequence[torch.Tensor], boxes: Sequence[list] | None = None) -> list[Any]:
        """Results for images (3, height, width), see `Result.data`; maps are numpy arrays."""
        if self.task == "pose":
            return self.pose(list(images), boxes=boxes, batch_size=self.batch_size)
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
            sizes = [tuple(image.shape[-2:]) for image in images]
            post_process = {
                "segmentation": self.processor.post_process_semantic_segmentation,
                "depth": self.processor.post_process_depth_estimation,
                "normal": self.processor.post_process_normal_estimation,
            }[self.task]
            maps = post_process(outputs, target_sizes=sizes, resize=self.resize)
        key = {"segmentation": None, "depth": "predicted_depth", "normal": "normals"}[self.task]
        return [(item if key is None else item[key]).cpu().numpy() for item in maps]


def predict_files(
    predictor: Predictor,
    files: Iterable[tuple[Path, Path]],
    boxes: dict[str, list] | None = None,
    mask_predictor: Predictor | None = None,
    on_error: Callable[[Path, str], None] | None = None,
) -> Iterator[tuple[Path, Result]]:
    """Read, batch and predict; yields the relative output path and the result of each readable image, in order.

    Args:
        predictor: the model.
        files: (image path, relative output path) pairs, as of `find_images`.
        boxes: COCO boxes by file name; images without an entry have no people.
        mask_predictor: a segmentation model whose background is masked in depth and normals.
        on_error: called with path and reason for each image that cannot be used; without it the error is raised.
    """

    def finish(batch):
        images = [levels for _, _, levels in batch]
        batch_boxes = None if boxes is None else [boxes.get(path.name, []) for path, _, _ in batch]
        results = predictor(images, batch_boxes) if batch_boxes is not None else predictor(images)
        masks = [None] * len(batch) if mask_predictor is None else [m > 0 for m in mask_predictor(images)]
        for (path, relative, levels), data, mask in zip(batch, results, masks):
            yield relative, Result(path, predictor.task, levels.permute(1, 2, 0).numpy(), data, mask)

    batch: list[tuple[Path, Path, torch.Tensor]] = []
    for path, relative in files:
        try:
            levels = read_image(path, str(path), expects_levels=False)
            if boxes is not None and path.name in boxes:
                from .heatmaps_sapiens import validate_boxes

                height, width = levels.shape[-2:]
                validate_boxes([boxes[path.name]], 1, [(height, width)])
        except ValueError as error:
            if on_error is None:
                raise
            on_error(path, str(error))
            continue
        batch.append((path, relative, levels))
        if len(batch) == predictor.batch_size:
            yield from finish(batch)
            batch = []
    if batch:
        yield from finish(batch)


def check_free(output: Path, task: str, relatives: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace results of an earlier run.

    Raises:
        FileExistsError: naming the first file in the way, before anything is computed.
    """
    if overwrite:
        return
    taken = [p for r in relatives for s in OUTPUTS[task] if (p := output / f"{r}{s}").exists()]
    if taken:
        raise FileExistsError(
            f"{taken[0]} exists{f' and {len(taken) - 1} more files' if len(taken) > 1 else ''}. "
            "Choose another --output, or pass --overwrite to replace them."
        )


def write_result(result: Result, output: Path, relative: Path, config) -> list[str]:
    """Write the picture and the data of one image; returns the file names.

    Pose: people as JSON. Segmentation: 8-bit label PNG (16-bit above 256 classes) and the names of the labels. Depth:
    float32 NPY, and a 16-bit PNG with the two values that undo its scaling. Normals: float32 NPY (height, width, 3).
    """
    paths = [output / f"{relative}{suffix}" for suffix in OUTPUTS[result.task]]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    draw(result, config).save(paths[0])
    if result.task == "pose":
        height, width = result.image.shape[:2]
        content = {"image": result.path.name, "height": height, "width": width, "people": result.data}
        paths[1].write_text(json.dumps(content, indent=1))
    elif result.task == "segmentation":
        depth_type = np.uint8 if len(config.id2label) <= 256 else np.uint16
        Image.fromarray(result.data.astype(depth_type)).save(paths[1])
        present, counts = np.unique(result.data, return_counts=True)
        shares = {config.id2label[int(k)]: int(n) for k, n in zip(present, counts)}
        content = {"image": result.path.name, "id2label": config.id2label, "pixels": shares}
        paths[2].write_text(json.dumps(content, indent=1))
    elif result.task == "depth":
        depth = result.data.astype(np.float32)
        np.save(paths[1], depth)
        low, high = float(depth.min()), float(depth.max())
        step = (high - low) / 65535 or 1.0
        Image.fromarray(((depth - low) / step).round().astype(np.uint16)).save(paths[2])
        content = {"image": result.path.name, "depth": "depth16 * step + offset", "step": step, "offset": low}
        paths[3].write_text(json.dumps(content, indent=1))
    else:
        np.save(paths[1], np.ascontiguousarray(result.data.transpose(1, 2, 0), dtype=np.float32))
    return [str(path) for path in paths]


def draw(result: Result, config) -> Image.Image:
    """The picture of a result: skeletons, part overlay with legend, depth (near bright), or normals."""
    if result.task == "pose":
        return draw_keypoints(result.image, result.data, _keypoint_set_of(config))
    if result.task == "segmentation":
        return draw_segmentation(result.image, result.data, _class_set_of(config))
    if result.task == "depth":
        return draw_depth(result.image, result.data, result.person_mask)
    return draw_normals(result.data, result.person_mask)


def _names(config) -> tuple[str, ...]:
    return tuple(config.id2label[index] for index in range(len(config.id2label)))


def _keypoint_set_of(config) -> labels.KeypointSet:
    """The known set with the config's names, else one of the config's own names and pairs, without links."""
    names = _names(config)
    known = next((s for s in map(labels.keypoint_set, labels.KEYPOINT_SETS) if s.names == names), None)
    return known or labels.make_keypoint_set(names, flip_pairs=config.flip_pairs or ())


def _class_set_of(config) -> labels.ClassSet:
    """The known set with the config's names, else one of the config's own names."""
    names = _names(config)
    known = next((s for s in map(labels.class_set, labels.CLASS_SETS) if s.names == names), None)
    return known or labels.make_class_set(names, swap_pairs=(), ignore_index=config.semantic_loss_ignore_index)


def predict_folder(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: str | Path,
    boxes: dict[str, list] | None = None,
    mask_predictor: Predictor | None = None,
    overwrite: bool = False,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Report:
    """Predict for every image of `inputs` and write pictures and data to `output`.

    Args:
        predictor: the model.
        inputs: files and folders.
        output: folder to write to; the folders of the inputs are kept below it.
        boxes: COCO boxes by file name, for pose.
        mask_predictor: segmentation model that masks the background of depth and normals.
        overwrite: replace files that exist.
        progress: wraps the iterable of results, given their number, e.g. a progress bar.

    Raises:
        FileExistsError: if a file would be replaced.
        ValueError: if there is no image.
    """
    start, output, report = time.perf_counter(), Path(output), Report()
    files = find_images(inputs)
    check_free(output, predictor.task, (relative for _, relative in files), overwrite)
    report.num_images = len(files)

    def note(path: Path, reason: str) -> None:
        report.failed[str(path)] = reason
        logger.error(f"{path} is left out: {reason}")

    results = predict_files(predictor, files, boxes, mask_predictor, note)
    for relative, result in results if progress is None else progress(results, len(files)):
        report.written += write_result(result, output, relative, predictor.model.config)
    report.seconds = time.perf_counter() - start
    return report

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

import difflib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from . import labels
from .coco import check_coco, is_person, person_categories, read_json, require
from .configuration_sapiens import SIZES
from .heatmaps_sapiens import validate_image_boxes
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
CLASS_TASKS = {name: task for task, name in TASK_CLASSES.items()}
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))
# What `write` makes of one image, per task.
OUTPUTS = {
    "pose": (".pose.png", ".pose.json"),
    "segmentation": (".segmentation.png", ".labels.png", ".segmentation.json"),
    "depth": (".depth.png", ".depth.npy", ".depth16.png", ".depth.json"),
    "normal": (".normal.png", ".normal.npy"),
}
# Options of the dense tasks; all others, boxes and the arguments of its pipeline, are for pose.
OPTION_TASKS = {"mask_model": ("depth", "normal"), "resize": ("segmentation", "depth", "normal")}


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


def find_device(name: str | None = None) -> torch.device:
    """The torch device of that name, or the best one at hand.

    Raises:
        ValueError: if there is no such device here.
    """
    name = name or default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # "meta" is a device without numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # torch has no one error for it
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"The device {name!r} cannot be used here ({reason}). Expected cpu, cuda, cuda:1 or mps; the best one at "
            f"hand is {default_device()}."
        ) from error
    return device


def check_task_options(task: str, **options: Any) -> None:
    """Refuse options that the task does not have: they would silently do nothing.

    Args:
        task: task of the model.
        **options: their names and values; None and False count as not given.

    Raises:
        ValueError: naming the options and their tasks.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    tasks = {name: OPTION_TASKS.get(name, ("pose",)) for name in given}
    wrong = [f"{name} is for {' and '.join(fitting)}" for name, fitting in tasks.items() if task not in fitting]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}, but the task of the model is {task}. Leave it out, or choose another model."
        )


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
    from transformers import AutoImageProcessor

    import sapiens_hf

    if task is not None and task not in TASK_CLASSES:
        raise ValueError(f"Unknown task {task!r}: expected one of {', '.join(TASK_CLASSES)}.")
    if is_original_source(source):
        if backend != "torch":
            raise ValueError(
                f"{source} is a file of Meta's: export it first, python -m conversion onnx {source} --output DIR."
            )
        class_name = TASK_CLASSES[task] if task else None
        model = load_original(source, dtype=dtype, expected_class=class_name)
        if type(model).__name__ not in CLASS_TASKS:
            raise ValueError(
                f"{source} holds {type(model).__name__}, a pretrained encoder without a task head. Fine-tune it "
                "first, or use it with sapiens_hf.SapiensModel for features."
            )
        size = dict(zip(("height", "width"), model.config.image_size))
        return model, sapiens_hf.SapiensImageProcessor(size=size)
    if backend == "torch" and dtype == "int8":
        raise ValueError("dtype int8 is for the onnxruntime backend: --backend onnxruntime, with an exported folder.")
    task = _find_task(source, _read_config(source).architectures, task)
    processor = AutoImageProcessor.from_pretrained(source)
    if backend == "onnxruntime":
        from .onnxruntime_backend import SapiensOnnxModel

        number_format = {"float32": None, "float16": "fp16", "int8": "int8"}
        if dtype not in number_format:
            raise ValueError(f"The onnxruntime backend has no {dtype}: expected one of {', '.join(number_format)}.")
        return SapiensOnnxModel.from_pretrained(source, number_format[dtype]), processor
    return getattr(sapiens_hf, TASK_CLASSES[task]).from_pretrained(source, dtype=dtype).eval(), processor


def _find_task(source: str, architectures: list[str] | None, asked: str | None) -> str:
    """The task of a folder by the class that its config.json names; where it names none, the task that was asked."""
    if not architectures:
        if asked is None:
            raise ValueError(f"config.json of {source} names no architecture: say which task it is, --task TASK.")
        return asked
    stored = architectures[0]
    task = CLASS_TASKS.get(stored)
    if task is None:
        raise ValueError(
            f"{source} holds {stored}, which has no task to predict (expected a model for "
            f"{', '.join(TASK_CLASSES)}). Load it with sapiens_hf.{stored}.from_pretrained."
        )
    if asked not in (None, task):
        raise ValueError(
            f"{source} holds {stored}, which does not fit the task {asked!r}: take another model, or --task {task}."
        )
    return task


def _read_config(source: str) -> Any:
    from transformers import AutoConfig

    path = Path(source)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2):  # a Hub id is owner/name
        raise FileNotFoundError(f"There is no model at {source}: expected a folder, a file or a Hub id.")
    if path.is_file() and path.suffix != ".json":
        hint = " Pass the folder that it lies in." if path.suffix == ".safetensors" else ""
        raise ValueError(
            f"{source} is no model: expected a folder with config.json, a Hub id, or a file of Meta's (.pth, .pt, "
            f".pt2, .safetensors).{hint}"
        )
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:
        if path.exists() or not path.parent.is_dir():
            raise
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise OSError(f"There is no folder {source}, and as a Hub id: {error}{hint}") from error
    if config.model_type != "sapiens":
        raise ValueError(f"{source} is a {config.model_type!r} model, not Sapiens.")
    return config


def describe_model(source: str) -> dict[str, Any]:
    """What a checkpoint is, as names and values to print: task, size, parameters, labels, input, conventions."""
    import sapiens_hf

    if is_original_source(source):
        path = find_original(source, None, None, {})
        config, model_class, file_format = original_config(path), original_class(path), "Meta's original format"
    else:
        config, file_format = _read_config(source), "transformers"
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


def find_images(inputs: Sequence[str | Path], exclude: str | Path | None = None) -> list[tuple[Path, Path]]:
    """Image files among `inputs`, folders searched recursively, each with the relative path of its outputs.

    The outputs of a folder keep its inner folders. Where two inputs hold files of the same name, the names of these
    inputs' folders come first: `A/x.jpg` and `B/x.jpg` give `A/x` and `B/x`.

    Args:
        inputs: files and folders.
        exclude: folder of results: not searched when it lies inside an input. When it is an input itself, only files
            named like results of an image there (`a.depth.png` beside `a.jpg`) are left out.

    Raises:
        FileNotFoundError: if an input does not exist.
        ValueError: if there is no image, or two images would still write the same files.
    """
    found: dict[Path, tuple[Path, Path, Path]] = {}  # real path -> path, relative path, folder it was found by
    for entry in map(Path, inputs):
        if entry.is_dir():
            folder = entry.resolve()
            for path in _images_below(entry, exclude):
                found[path.parent.resolve() / path.name] = path, path.relative_to(entry), folder
        elif entry.exists():
            folder = entry.parent.resolve()
            found.setdefault(folder / entry.name, (entry, Path(entry.name), folder))
        else:
            raise FileNotFoundError(f"There is no file or folder {entry}.")
    if not found:
        raise ValueError(
            f"No image in {', '.join(map(str, inputs))} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return _name_outputs(list(found.values()))


def _images_below(folder: Path, results: str | Path | None) -> list[Path]:
    """Images in a folder and below it, without those that a run which writes to `results` has made."""
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if results is None:
        return images
    root, target = folder.resolve(), Path(results).resolve()
    if target == root:
        endings = tuple(suffix for suffixes in OUTPUTS.values() for suffix in suffixes)
        stems = {*images, *(p.with_suffix("") for p in images)}  # a.jpg beside a.png: its results keep the suffix
        return [p for p in images if not (p.name.endswith(endings) and p.with_suffix("").with_suffix("") in stems)]
    if target.is_relative_to(root):
        inner = folder / target.relative_to(root)
        return [p for p in images if not p.is_relative_to(inner)]
    return images


def _name_outputs(files: list[tuple[Path, Path, Path]]) -> list[tuple[Path, Path]]:
    """(image, relative path of its outputs) from (image, path below the input, the input's folder)."""
    uses = Counter(relative for _, relative, _ in files)
    doubtful = {folder for _, relative, folder in files if uses[relative] > 1}
    named = [(path, folder.name / relative if folder in doubtful else relative) for path, relative, folder in files]
    # a.jpg and a.png would write the same files: such names keep their suffix
    stems = Counter(relative.with_suffix("") for _, relative in named)
    images: dict[Path, Path] = {}  # by the relative path of the outputs
    for path, relative in named:
        stem = relative.with_suffix("")
        output = stem if stems[stem] == 1 else relative
        if output in images:
            raise ValueError(
                f"{images[output]} and {path} would write the same files, {output}.*. Rename one of them or its "
                "folder, or predict them apart with another --output."
            )
        images[output] = path
    return [(path, output) for output, path in images.items()]


class CocoBoxes(dict[str, list]):
    """Boxes by file name of a whole data set: unlike in boxes made for a run, images that are no inputs are fine."""


def read_boxes(path: str | Path) -> dict[str, list]:
    """COCO boxes by file name, from `{"name.jpg": [[x, y, width, height], ...]}` or a COCO annotation file.

    Of a COCO file with a category "person", only that counts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is neither, or an entry is wrong; names file and entry.
    """
    content = read_json(path)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _read_coco_boxes(content, path)
    if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        return content
    raise ValueError(
        f'{path} holds neither {{"name.jpg": [[x, y, width, height], ...]}} nor COCO\'s images and annotations.'
    )


def _read_coco_boxes(content: dict[str, Any], path: str | Path) -> CocoBoxes:
    check_coco(content, str(path), image=("id", "file_name"))
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    people = person_categories(content.get("categories"), str(path))
    boxes = CocoBoxes({name: [] for name in names.values()})
    for index, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        require(annotation, ("image_id",), where)
        if not is_person(annotation, people):
            continue
        require(annotation, ("bbox",), where)
        if annotation["image_id"] not in names:
            raise ValueError(f"{where} is of image_id {annotation['image_id']!r}, which is not among the images.")
        boxes[names[annotation["image_id"]]].append(annotation["bbox"])
    return boxes


def match_boxes(boxes: Mapping[str, list], files: Sequence[tuple[Path, Path]]) -> dict[Path, list]:
    """The boxes of each image that has an entry.

    An entry names an image by its path, by its path below the input folder, by the end of its path or, if that is
    none, by its base name. In a data set (`CocoBoxes`) where paths with folders fit, entries of other folders are of
    other images.

    Args:
        boxes: COCO boxes by name.
        files: (image path, relative output path) pairs, as of `find_images`.

    Raises:
        ValueError: if an entry names no image (for `CocoBoxes`: if none does) or several, or two entries name one
            image.
    """
    by_path = {path.as_posix(): path for path, _ in files}
    by_path |= {(relative.parent / path.name).as_posix(): path for path, relative in files}
    by_end: dict[str, list[Path]] = {}
    for path, _ in files:
        parts = path.resolve().parent.parts + (path.name,)
        for start in range(1, len(parts)):
            by_end.setdefault("/".join(parts[start:]), []).append(path)
    places = {key: Path(key).as_posix() for key in boxes}
    has_folders = isinstance(boxes, CocoBoxes) and any("/" in name and name in by_end for name in places.values())
    matched: dict[Path, str] = {}
    unknown = []
    for key, name in places.items():
        fits = [by_path[name]] if name in by_path else by_end.get(name, [])
        if not fits and not (has_folders and "/" in name):
            fits = by_end.get(Path(name).name, [])
        if len(fits) > 1:
            raise ValueError(
                f"boxes: the entry {key!r} fits {len(fits)} images, {', '.join(map(str, fits[:3]))}. Name them by "
                "their path below the input folder."
            )
        if not fits:
            unknown.append(key)
        elif fits[0] in matched:
            raise ValueError(f"boxes: the entries {matched[fits[0]]!r} and {key!r} both name {fits[0]}.")
        else:
            matched[fits[0]] = key
    if unknown and not (isinstance(boxes, CocoBoxes) and matched):
        names = list(dict.fromkeys(path.name for path, _ in files))
        near = difflib.get_close_matches(unknown[0], {*by_path, *names}, n=3)
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"they are {', '.join(names[:3])}."
        raise ValueError(f"boxes: the entry {unknown[0]!r}{more} names none of the {len(files)} input images; {hint}")
    return {path: boxes[key] for path, key in matched.items()}


class Predictor:
    """One model on batches of images.

    Args:
        model: a task model of this package.
        processor: its image processor.
        device: torch device; the best one by default.
        batch_size: images, or person crops, per forward pass.
        resize: "two_step" (as the original, the default) or "direct", for the three dense tasks.
        **pose_options: arguments of the keypoint-detection pipeline (`detector`, `threshold`, `flip_test`, ...).

    Raises:
        ValueError: if the device cannot be used, the batch size is below 1, or the task or model has no such option.
    """

    def __init__(
        self,
        model,
        processor,
        device: str | None = None,
        batch_size: int = 1,
        resize: str | None = None,
        **pose_options,
    ):
        architecture = getattr(model, "architecture", type(model).__name__)  # an ONNX model says which class it was
        self.task = CLASS_TASKS[architecture]
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        check_task_options(self.task, resize=resize, **pose_options)
        if not isinstance(model, torch.nn.Module) and device not in (None, "cpu"):
            raise ValueError(
                f"device is {device!r}, but an ONNX model was loaded for the CPU: leave device out, or use the torch "
                "backend."
            )
        self.model = model.to(find_device(device)) if isinstance(model, torch.nn.Module) else model
        self.processor = processor
        self.batch_size = batch_size
        self.resize = resize or "two_step"
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
    boxes: Mapping[str, list] | None = None,
    mask_predictor: Predictor | None = None,
    on_error: Callable[[Path, str], None] | None = None,
) -> Iterator[tuple[Path, Result]]:
    """Read, batch and predict; yields the relative output path and the result of each readable image, in order.

    Args:
        predictor: the model.
        files: (image path, relative output path) pairs, as of `find_images`.
        boxes: COCO boxes by file name, see `match_boxes`; images without an entry have no people.
        mask_predictor: a segmentation model whose background is masked in depth and normals.
        on_error: called with path and reason for each image that cannot be used; without it the error is raised.

    Raises:
        ValueError: if the task takes no boxes or masks, or an entry of `boxes` names no image.
    """
    check_task_options(predictor.task, boxes=boxes is not None, mask_model=mask_predictor is not None)
    files = list(files)
    boxes_of = {} if boxes is None else match_boxes(boxes, files)

    def finish(batch):
        images = [levels for _, _, levels in batch]
        batch_boxes = None if boxes is None else [boxes_of.get(path, []) for path, _, _ in batch]
        results = predictor(images, batch_boxes)
        masks = [None] * len(batch) if mask_predictor is None else [m > 0 for m in mask_predictor(images)]
        for (path, relative, levels), data, mask in zip(batch, results, masks):
            yield relative, Result(path, predictor.task, levels.permute(1, 2, 0).numpy(), data, mask)

    def stream():
        batch: list[tuple[Path, Path, torch.Tensor]] = []
        for path, relative in files:
            try:
                levels = read_image(path, str(path), expects_levels=False)
                if path in boxes_of:
                    validate_image_boxes(boxes_of[path], tuple(levels.shape[-2:]), f"{path}: boxes")
            except ValueError as error:
                if on_error is None:
                    raise
                on_error(path, _without_path(str(error), path))
                continue
            batch.append((path, relative, levels))
            if len(batch) == predictor.batch_size:
                yield from finish(batch)
                batch = []
        if batch:
            yield from finish(batch)

    return stream()  # so that wrong options and boxes are told by the call, before the first image


def _without_path(reason: str, path: Path) -> str:
    """A reason to print after the path: where it names the image, by read_image or PIL, the path goes."""
    quoted = repr(str(path))
    reason = reason.removeprefix(str(path)).lstrip(": ").removeprefix(quoted).lstrip()
    return reason.replace(f" {quoted}", "")


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
    files: Sequence[tuple[Path, Path]],
    output: str | Path,
    boxes: Mapping[str, list] | None = None,
    mask_predictor: Predictor | None = None,
    overwrite: bool = False,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Report:
    """Predict for every image of `files` and write pictures and data to `output`.

    Args:
        predictor: the model.
        files: (image path, relative output path) pairs, as of `find_images`.
        output: folder to write to.
        boxes: COCO boxes by file name, for pose; see `match_boxes`.
        mask_predictor: segmentation model that masks the background of depth and normals.
        overwrite: replace files that exist.
        progress: wraps the iterable of results, given their number, e.g. a progress bar.

    Raises:
        FileExistsError: if a file would be replaced.
        ValueError: if an option or an entry of `boxes` does not fit.
    """
    start, output, report = time.perf_counter(), Path(output), Report()
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

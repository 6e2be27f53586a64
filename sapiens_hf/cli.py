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
"""`sapiens-hf`: parse, call the library, print."""

import argparse
import sys
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 all well, 1 some images failed, 2 wrong usage or input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"sapiens-hf {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What was written so far is complete.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from .version import __version__

    parser = argparse.ArgumentParser(
        prog="sapiens-hf", description="Sapiens: pose, parts, depth and normals of people."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_predict(verbs)
    _add_info(verbs)
    _add_evaluate(verbs)
    return parser


def _add_predict(verbs) -> None:
    verb = verbs.add_parser("predict", help="predict for images and folders, write pictures and data")
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="image files and folders (searched recursively)")
    verb.add_argument("--model", required=True, help="folder, Hub id, or a file in Meta's original format")
    verb.add_argument(
        "--task", choices=("pose", "segmentation", "depth", "normal"), help="read from the model if absent"
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and data")
    verb.add_argument("--overwrite", action="store_true", help="replace results of an earlier run")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best one by default")
    verb.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "int8"))
    verb.add_argument(
        "--backend", default="torch", choices=("torch", "onnxruntime"), help="onnxruntime: an exported folder"
    )
    verb.add_argument("--batch-size", type=_at_least_one, default=1, help="images, or person crops, per forward pass")
    verb.add_argument(
        "--resize",
        choices=("two_step", "direct"),
        help="of maps to the image (default: two_step, the original's)",
    )
    verb.add_argument(
        "--boxes",
        metavar="FILE",
        help='person boxes: {"name.jpg": [[x, y, width, height], ...]} or COCO; names may be paths below an input',
    )
    verb.add_argument("--detector", help='transformers object-detection model that finds people, or "default"')
    verb.add_argument("--threshold", type=float, help="leave out keypoints whose score is not above it")
    verb.add_argument("--flip-test", action="store_true", help="average the pose with that of the mirrored crop")
    verb.add_argument("--mask-model", help="segmentation model: mask the background of depth and normals")
    verb.set_defaults(run=_predict)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _predict(options: argparse.Namespace) -> int:
    import torch
    from tqdm.auto import tqdm

    from . import prediction

    start = time.perf_counter()
    prediction.find_device(options.device)  # before a model is loaded
    files = prediction.find_images(options.inputs, exclude=options.output)
    boxes = prediction.read_boxes(options.boxes) if options.boxes else None
    if boxes is not None:
        prediction.match_boxes(boxes, files)
    pose = {name: getattr(options, name) for name in ("detector", "threshold", "flip_test")}
    predictor = _make_predictor(options.model, options.task, options, **pose)
    prediction.check_task_options(predictor.task, boxes=options.boxes, mask_model=options.mask_model)
    mask_predictor = _make_predictor(options.mask_model, "segmentation", options) if options.mask_model else None
    loading = time.perf_counter() - start
    try:
        report = prediction.predict_folder(
            predictor,
            files,
            options.output,
            boxes,
            mask_predictor,
            options.overwrite,
            lambda results, total: tqdm(results, total=total, unit="image", desc=predictor.task),
        )
    except torch.OutOfMemoryError as error:
        smaller = f"--batch-size below {options.batch_size} or " if options.batch_size > 1 else ""
        raise ValueError(f"the device's memory is full: try {smaller}--dtype bfloat16. ({error})") from error
    done = report.num_images - len(report.failed)
    print(
        f"{done} of {report.num_images} images, {len(report.written)} files in {options.output}; "
        f"model loaded in {loading:.1f} s, prediction {report.seconds:.1f} s, peak memory {_peak_memory_gb():.1f} GB"
    )
    for path, reason in report.failed.items():
        print(f"failed: {path}: {reason}", file=sys.stderr)
    return 1 if report.failed else 0


def _make_predictor(model_source: str, task: str | None, options: argparse.Namespace, **pose):
    from . import prediction

    model, processor = prediction.load_model(model_source, task, options.dtype, options.backend)
    return prediction.Predictor(model, processor, options.device, options.batch_size, options.resize, **pose)


def _add_info(verbs) -> None:
    verb = verbs.add_parser("info", help="say what a model is")
    verb.add_argument("model", metavar="MODEL", help="folder, Hub id, or a file in Meta's original format")
    verb.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    from .prediction import describe_model

    for name, value in describe_model(options.model).items():
        print(f"{name + ':':32}{value}")
    return 0


def _add_evaluate(verbs) -> None:
    verb = verbs.add_parser("evaluate", help="score predictions against the truth")
    verb.add_argument("--task", required=True, choices=("pose", "segmentation", "depth", "normal"))
    verb.add_argument("--predictions", required=True, help="folder that predict wrote; COCO results JSON for pose")
    verb.add_argument("--truth", required=True, help="folder of files of the same names; COCO JSON for pose")
    verb.add_argument("--masks", help="folder of person masks, for depth and normals")
    verb.add_argument("--keypoint-set", default="coco", help="coco, coco_wholebody, goliath or your JSON")
    verb.add_argument(
        "--class-set", default="goliath28", help="goliath28, lip20, cihp20, face_synthetics19 or your JSON"
    )
    verb.add_argument(
        "--nms-threshold",
        type=_threshold,
        default=0.9,
        help="similarity of two people above which one is dropped, or none",
    )
    verb.add_argument(
        "--align", default="none", choices=("none", "scale_shift"), help="per image, before depth errors"
    )
    verb.set_defaults(run=_evaluate)


def _threshold(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _evaluate(options: argparse.Namespace) -> int:
    from . import evaluation

    for name, tasks in (("masks", ("depth", "normal")), ("align", ("depth",))):
        if getattr(options, name) not in (None, "none") and options.task not in tasks:
            raise ValueError(f"--{name} is for --task {' or '.join(tasks)}, not for {options.task}.")
    folders = options.predictions, options.truth
    scores = {
        "pose": lambda: evaluation.evaluate_pose(
            options.truth, options.predictions, options.keypoint_set, nms_threshold=options.nms_threshold
        ),
        "segmentation": lambda: evaluation.evaluate_segmentation(*folders, options.class_set),
        "depth": lambda: evaluation.evaluate_depth(*folders, options.masks, options.align),
        "normal": lambda: evaluation.evaluate_normals(*folders, options.masks),
    }[options.task]()
    for name, value in scores.items():
        print(f"{name:32}{value:.4f}" if isinstance(value, float) else f"{name:32}{value}")
    return 0


def _peak_memory_gb() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(main())

"""Score predictions that lie in files: COCO JSON for pose, folders of maps for the three dense tasks.

One file is open at a time, and the metrics keep a few numbers per image, so the size of a data set does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .coco import (
    GOLIATH_KEY,
    WHOLEBODY_KEYS,
    check_coco,
    is_person,
    numbers,
    person_categories,
    read_box,
    read_json,
    read_own_labels,
    require,
)
from .image_loading_sapiens import as_mask, read_values
from .labels import KeypointSet, class_set, convert_keypoints, keypoint_set, make_keypoint_set
from .metrics import load_metric

LABEL_SUFFIXES = (".png", ".npy", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy",)
MASK_SUFFIXES = (*LABEL_SUFFIXES, ".jpg", ".jpeg")
# How `sapiens-hf predict` ends its files; a folder that has such files may hold the other tasks' files too.
PREDICTED = {"segmentation": ".labels.png", "depth": ".depth.npy", "normal": ".normal.npy"}
SAME_BOX_PX = 0.01  # a box that was given to the prediction and came back

Folder = str | Path


def evaluate_pose(
    ground_truth: str | Path | Mapping[str, Any],
    predictions: str | Path | Sequence[Mapping[str, Any]],
    keypoint_set: str | int,
    *,
    nms_threshold: float | None = 0.9,
    keypoint_score_threshold: float = 0.2,
    pck_threshold: float = 0.05,
) -> dict[str, float]:
    """COCO AP and AR of predicted people, by part, and PCK where each labelled person has one prediction.

    Args:
        ground_truth: COCO, COCO-WholeBody or Goliath JSON: a file or its content. People are the category "person".
        predictions: list of COCO results, or the JSON file that holds it. Each has `image_id`, `keypoints` (x, y in
            pixels and score, flat; COCO-WholeBody's five keys work too), and `bbox` (x, y, width, height), which
            OKS-NMS needs. `bbox_score` (default 1) is multiplied with the keypoint scores; `score` is taken as final.
            With one prediction for each labelled annotation, by `annotation_id` or by equal boxes, PCK is scored too.
        keypoint_set: "coco", "coco_wholebody", "goliath", or 17, 133, 308, or the JSON file of your own with its
            `names`, as training takes it, and perhaps OKS `sigmas` (default: the mean of COCO's for all). Predictions
            of a larger set are converted by name: 308 Goliath points give the 53 that COCO-WholeBody shares, the
            others score 0.
        nms_threshold: similarity above which the worse of two people is dropped; None keeps all.
        keypoint_score_threshold: keypoints with a larger score enter the score of the person.
        pck_threshold: share of the diagonal of the person's box within which a keypoint is correct.

    Returns:
        What `keypoint_ap` returns, `num_images`, and `pck`, `mean_keypoint_pck`.

    Raises:
        ValueError: if a file has another form, a field is missing, an image is unknown or a number of keypoints does
            not fit; the message names file, entry or image.
    """
    truth, place = _read(ground_truth, "ground_truth")
    check_coco(truth, place)
    points = _read_keypoint_set(keypoint_set)
    images = {image["id"]: Path(image.get("file_name", str(image["id"]))).name for image in truth["images"]}
    people = person_categories(truth.get("categories"), place)

    def by_image(persons: Sequence[Mapping[str, Any]], kind: str) -> dict[Any, list[dict[str, Any]]]:
        grouped: dict[Any, list[dict[str, Any]]] = {image: [] for image in images}
        for index, person in enumerate(persons):
            require(person, ("image_id",), f"The {kind} {index}")
            if not is_person(person, people):
                continue
            person = {name: value for name, value in person.items() if value is not None}
            if kind == "annotation":  # a person whose points nobody has labelled
                person = {"keypoints": [0] * 3 * len(points), **person}
            require(person, ("keypoints",), f"The {kind} {index}")
            if not isinstance(person["image_id"], Hashable) or person["image_id"] not in grouped:
                raise ValueError(f"A {kind} is of image_id {person['image_id']!r}, which the ground truth lacks.")
            where = f"A {kind} in image {images[person['image_id']]} (image_id {person['image_id']})"
            if "bbox" in person:
                person["bbox"] = read_box(person, where)
            for name in {"area", "score", "bbox_score"} & person.keys():
                value = numbers({name: [person[name]]}, name, where)
                if len(value) != 1 or not np.isfinite(value[0]):
                    raise ValueError(f"{where}: {name} is {person[name]}; expected a finite number.")
            grouped[person["image_id"]].append({**person, "keypoints": _person_keypoints(person, points, where)})
        return grouped

    if isinstance(predictions, str | Path) and Path(predictions).is_dir():
        predictions = read_predicted_people(predictions, truth, points)
    true, predicted = by_image(truth["annotations"], "annotation"), by_image(_read_results(predictions), "prediction")
    metric = load_metric("keypoint_ap")
    for image, name in images.items():
        with _naming(name):
            metric.add(prediction=predicted[image], reference=true[image])
    is_own = str(keypoint_set).endswith(".json")
    results = metric.compute(
        **({"sigmas": points.sigmas} if is_own else {"keypoint_set": points.name}),
        nms_threshold=nms_threshold,
        keypoint_score_threshold=keypoint_score_threshold,
    )
    results["num_images"] = len(images)
    return results | _pck([*chain(*predicted.values())], [*chain(*true.values())], pck_threshold)


def read_predicted_people(folder: Folder, truth: Mapping[str, Any], points: KeypointSet) -> list[dict[str, Any]]:
    """What `sapiens-hf predict --task pose` wrote, as COCO results; keypoints are matched by name.

    Args:
        folder: searched for `*.pose.json`, also below.
        truth: content of the COCO ground truth; image file names say which result belongs where.
        points: the keypoint set to evaluate in; points that were not predicted get score 0.

    Raises:
        FileNotFoundError: if there is no such file, or none for an image of the ground truth.
        ValueError: if two results are of images of the same name.
    """
    for index, image in enumerate(truth["images"]):
        require(image, ("id", "file_name"), f"The image {index} of the ground truth")
    images = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(Path(folder).rglob("*.pose.json")):
        content = read_json(path)
        require(content, ("image", "people"), str(path))
        for number, person in enumerate(content["people"]):
            where = f"{path}: people[{number}]"
            require(person, ("keypoints", "box", "score"), where)
            require(person["box"], ("xmin", "ymin", "xmax", "ymax"), where)
            for point in person["keypoints"]:
                require(point, ("label", "x", "y", "score"), where)
        if content["image"] in found:
            raise ValueError(f"{folder} holds several results for {content['image']}; evaluate one folder at a time.")
        found[content["image"]] = content["people"]
    missing = sorted(set(images) - set(found))
    if missing:
        raise FileNotFoundError(
            f"{folder} has no .pose.json for {len(missing)} of {len(images)} images: {missing[:5]}."
        )
    results = []
    for name, image_id in images.items():
        for person in found[name]:
            keypoints = np.zeros((len(points), 3))
            for point in person["keypoints"]:
                if point["label"] in points.names:
                    keypoints[points.index(point["label"])] = point["x"], point["y"], point["score"]
            box = person["box"]
            corner = [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]]
            row = {"image_id": image_id, "bbox": corner, "bbox_score": person["score"]}
            results.append({**row, "keypoints": keypoints.reshape(-1).tolist()})
    return results


def _read_keypoint_set(source: str | int) -> KeypointSet:
    """A keypoint set of the package, or that of a JSON file."""
    if not str(source).endswith(".json"):
        return keypoint_set(source)
    own = read_own_labels(str(source), "keypoints")
    return make_keypoint_set(own["names"], name=Path(str(source)).stem, flip_pairs=(), sigmas=own.get("sigmas"))


def _pck(
    predicted: Sequence[Mapping[str, Any]], true: Sequence[Mapping[str, Any]], threshold: float
) -> dict[str, float]:
    """PCK if each annotation with labelled keypoints has exactly one prediction, as with ground-truth boxes."""
    labelled = [person for person in true if (person["keypoints"][:, 2] > 0).any() and not person.get("iscrowd", 0)]
    answers = _answers(predicted, labelled)
    if not labelled or answers is None:
        return {}
    result = load_metric("pck").compute(
        predictions=[person["keypoints"] for person in answers],
        references=[person["keypoints"] for person in labelled],
        bboxes=[person["bbox"] for person in labelled],
        threshold=threshold,
    )
    return {name: result[name] for name in ("pck", "mean_keypoint_pck")}


def _answers(
    predicted: Sequence[Mapping[str, Any]], labelled: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]] | None:
    """The prediction of each labelled person, by annotation or else by its box; None if one has none or several."""
    named = {person["annotation_id"]: person for person in predicted if "annotation_id" in person}
    if named:
        whole = len(named) == len(predicted) and all(person.get("id") in named for person in labelled)
        return [named[person["id"]] for person in labelled] if whole else None
    candidates = defaultdict(list)
    for person in predicted:
        if "bbox" in person:
            candidates[person["image_id"]].append(person)
    asked = defaultdict(list)
    for place, person in enumerate(labelled):
        asked[person["image_id"]].append(place)
    answers: list[Any] = [None] * len(labelled)
    for image, places in asked.items():
        given = np.array([person["bbox"] for person in candidates[image]], dtype=np.float64).reshape(-1, 4)
        true = np.array([labelled[place]["bbox"] for place in places], dtype=np.float64).reshape(-1, 4)
        same = (np.abs(true[:, None] - given) <= SAME_BOX_PX).all(axis=-1)  # (num_labelled, num_predicted)
        if (same.sum(axis=1) != 1).any() or (same.sum(axis=0) > 1).any():
            return None
        for place, match in zip(places, same.argmax(axis=1).tolist(), strict=True):
            answers[place] = candidates[image][match]
    return answers


def evaluate_segmentation(
    pred_dir: Folder, gt_dir: Folder, class_set: str | int = "goliath28", *, ignore_index: int | None = None
) -> dict[str, float]:
    """IoU and accuracy of label maps.

    Args:
        pred_dir: folder of predicted label maps: one-channel images, or .npy of integers (height, width).
        gt_dir: folder of true label maps of the same names (stems) and sizes.
        class_set: name of the class set, its number of classes, or the JSON file of your own with its `names`, as
            training takes it.
        ignore_index: true label that does not count; default: the class set's, 255.

    Returns:
        mean_iou, mean_accuracy, overall_accuracy, num_images; `iou_<class>` and `accuracy_<class>`, NaN where the
        class is absent.

    Raises:
        FileNotFoundError: if a folder or a prediction is missing.
        ValueError: if sizes differ or a label is unknown; the message names the file.
    """
    names, ignored = _class_names(class_set)
    ignored = ignored if ignore_index is None else ignore_index
    metric = load_metric("mean_iou")
    num_images = 0
    for stem, truth, prediction in _same_stems(gt_dir, pred_dir, suffixes=(LABEL_SUFFIXES,) * 2, kind="segmentation"):
        with _naming(stem):
            reference = _read_labels(truth)
            _check_labels(reference[reference != ignored], len(names), truth)
            labels = _read_labels(prediction)
            _check_labels(labels, len(names), prediction)
            metric.add(prediction=labels, reference=reference)
        num_images += 1
    result = metric.compute(num_labels=len(names), ignore_index=ignored)
    per_class: dict[str, float] = {}
    for key in ("iou", "accuracy"):
        per_class |= {
            f"{key}_{name}": value for name, value in zip(names, result.pop(f"per_category_{key}"), strict=True)
        }
    return {**result, "num_images": num_images, **per_class}


def _class_names(source: str | int) -> tuple[Sequence[str], int]:
    """Names and ignored label of a class set, or of a JSON file with the list `names` and perhaps `ignore_index`."""
    if str(source).endswith(".json"):
        own = read_own_labels(str(source), "classes")
        return own["names"], own.get("ignore_index", 255)
    classes = class_set(source)
    return classes.names, classes.ignore_index


def _check_labels(labels: np.ndarray, num_labels: int, path: Path) -> None:
    """Raise a ValueError if a label is none of the classes; what is no label at all the metric says."""
    wrong = labels[(labels < 0) | (labels >= num_labels)] if labels.dtype.kind in "iu" else labels[:0]
    if wrong.size:
        raise ValueError(
            f"{path} holds the labels {np.unique(wrong)[:5].tolist()}, expected 0 to {num_labels - 1}. Take the class "
            "set that it was made with."
        )


def evaluate_depth(
    pred_dir: Folder, gt_dir: Folder, mask_dir: Folder | None = None, align: str = "none"
) -> dict[str, float]:
    """Depth errors over the pixels of the person.

    Args:
        pred_dir: folder of .npy depth maps (height, width).
        gt_dir: folder of true depths of the same names and sizes; only values above 0 count.
        mask_dir: folder of masks of the same names, images or .npy, not 0 on the person; None: all pixels count.
        align: "none", or "scale_shift" for the least-squares scale and shift of each image first.

    Returns:
        What `depth_metrics` returns.

    Raises:
        FileNotFoundError: if a folder, a prediction or a mask is missing.
        ValueError: if sizes differ or a value that counts is NaN; the message names the file.
    """
    return _evaluate_maps("depth", _read_array, pred_dir, gt_dir, mask_dir, align=align)


def evaluate_normals(pred_dir: Folder, gt_dir: Folder, mask_dir: Folder | None = None) -> dict[str, float]:
    """Angular errors of surface normals over the pixels of the person.

    Args:
        pred_dir: folder of .npy normal maps (height, width, 3) or (3, height, width).
        gt_dir: folder of true normals of the same names and sizes; zero vectors do not count.
        mask_dir: as in `evaluate_depth`.

    Returns:
        What `normal_metrics` returns, in degrees and percent.

    Raises:
        FileNotFoundError: if a folder, a prediction or a mask is missing.
        ValueError: if sizes differ or a value that counts is NaN; the message names the file.
    """
    return _evaluate_maps("normal", _read_normals, pred_dir, gt_dir, mask_dir)


def _evaluate_maps(
    kind: str, read: Any, pred_dir: Folder, gt_dir: Folder, mask_dir: Folder | None, **options: Any
) -> dict[str, float]:
    metric = load_metric(f"{kind}_metrics")
    folders = (gt_dir, pred_dir) if mask_dir is None else (gt_dir, pred_dir, mask_dir)
    suffixes = (ARRAY_SUFFIXES, ARRAY_SUFFIXES, MASK_SUFFIXES)[: len(folders)]
    for stem, truth, prediction, *mask in _same_stems(*folders, suffixes=suffixes, kind=kind):
        with _naming(stem):
            metric.add(prediction=read(prediction), reference=read(truth), mask=_read_mask(mask[0]) if mask else None)
    return metric.compute(**options)


class _naming:  # noqa: N801 - reads as a verb in `with`
    """Put the name of the sample in front of a ValueError or TypeError that is raised inside."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind in (ValueError, TypeError):
            raise ValueError(f"{self.name}: {error}") from error


def _same_stems(*folders: Folder, suffixes: Sequence[tuple[str, ...]], kind: str) -> Iterator[tuple[Any, ...]]:
    """Yield (stem, path in each folder) for each file of the first folder, in the order of names.

    Raises:
        FileNotFoundError: if a folder is missing or empty, or another folder lacks a file of the first one.
        ValueError: if two files of a folder have the same stem.
    """
    listings = [
        _files_by_stem(Path(folder), allowed, PREDICTED[kind])
        for folder, allowed in zip(folders, suffixes, strict=True)
    ]
    for folder, listing, allowed in zip(folders[1:], listings[1:], suffixes[1:], strict=True):
        missing = sorted(set(listings[0]) - set(listing))
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {len(listings[0])} files of {folders[0]}: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} (with one of {', '.join(allowed)})."
            )
    for stem in sorted(listings[0]):
        yield stem, *(listing[stem] for listing in listings)


def _files_by_stem(folder: Path, suffixes: tuple[str, ...], predicted: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = {file: file.stem for file in folder.iterdir() if file.suffix.lower() in suffixes}
    if not files:
        raise FileNotFoundError(f"{folder} holds no file with one of {', '.join(suffixes)}.")
    files = {file: file.name.removesuffix(predicted) for file in files if file.name.endswith(predicted)} or files
    repeated = [stem for stem, count in Counter(files.values()).items() if count > 1]
    if repeated:
        raise ValueError(f"{folder} holds several files named {min(repeated)}; keep one of each name.")
    return {stem: file for file, stem in files.items()}


def _read(source: Any, name: str) -> tuple[Any, str]:
    """What a file holds, and its path; or content as it was given, and the name of that argument."""
    return (read_json(source), str(source)) if isinstance(source, str | Path) else (source, name)


def _read_results(source: Any) -> Sequence[Mapping[str, Any]]:
    """COCO results, a file or its content."""
    results, where = _read(source, "predictions")
    if not isinstance(results, list | tuple):
        raise ValueError(
            f'{where} holds a {type(results).__name__}; expected COCO results [{{"image_id": ..., "keypoints": ...}}].'
        )
    return results


def _person_keypoints(person: Mapping[str, Any], points: KeypointSet, where: str) -> np.ndarray:
    """Keypoints (num_keypoints, 3) of a COCO, COCO-WholeBody or Goliath person, in the given set."""
    flat = person["keypoints"]
    if GOLIATH_KEY in person and points.name == "goliath":
        flat = person[GOLIATH_KEY]
    elif all(key in person for key in WHOLEBODY_KEYS) and points.name == "coco_wholebody":
        flat = [*chain(*(person[key] for key in WHOLEBODY_KEYS))]
    keypoints = numbers({"keypoints": flat}, "keypoints", where).astype(np.float64)
    if keypoints.size % 3:
        raise ValueError(f"{where} has {keypoints.size} numbers in keypoints, expected 3 per keypoint.")
    keypoints = keypoints.reshape(-1, 3)
    if len(keypoints) > len(points) and len(keypoints) in (133, 308):
        converted = convert_keypoints(keypoints[:, :2], keypoints[:, 2], to=points)
        keypoints = np.concatenate([converted.keypoints, converted.scores[:, None]], axis=1)
    if len(keypoints) != len(points):
        raise ValueError(f"{where} has {len(keypoints)} keypoints, expected {len(points)} of {points.name}.")
    return keypoints


def _read_labels(path: Path) -> np.ndarray:
    labels, _ = read_values(path, str(path))
    if labels.ndim != 2:
        raise ValueError(f"{path} is {labels.shape}, expected one channel of labels (height, width).")
    return labels


def _read_array(path: Path) -> np.ndarray:
    return read_values(path, str(path))[0]


def _read_normals(path: Path) -> np.ndarray:
    """Normals (3, height, width) from either order of axes; (height, width, 3) if both ends are 3."""
    normals = _read_array(path)
    if normals.ndim != 3 or 3 not in (normals.shape[0], normals.shape[-1]):
        raise ValueError(f"{path} is {normals.shape}, expected (height, width, 3) or (3, height, width).")
    return np.moveaxis(normals, -1, 0) if normals.shape[-1] == 3 else normals


def _read_mask(path: Path) -> np.ndarray:
    return as_mask(*read_values(path, str(path)))

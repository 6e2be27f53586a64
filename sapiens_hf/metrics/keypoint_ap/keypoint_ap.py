"""COCO average precision and recall of keypoints, for the whole set and for each part of it, on pycocotools.

What happens to a prediction (spec "Evaluation"; mmpose `CocoMetric` and `CocoWholeBodyMetric` in the original):
instance score = box score * mean of the keypoint scores above 0.2; OKS-NMS at 0.9 with the area of the padded crop;
then one COCO evaluation per part. A part's evaluation differs from the whole one in its keypoints and sigmas only: the
person's area and box stay, a truth without labelled keypoints in the part is ignored, a prediction without a positive
score in the part is dropped, and the area of a prediction is the extent of its body keypoints (as COCO-WholeBody's own
evaluation and xtcocotools do).
"""

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from pycocotools.cocoeval import COCOeval

STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
CROP_PADDING = 1.25
CROP_ASPECT = 0.75  # width / height of the network input, 768 / 1024

_DESCRIPTION = "COCO AP and AR by object keypoint similarity, for a keypoint set and each of its parts."

_INPUTS = """
Args:
    predictions: per image, a list of persons. A person is a dict with
        keypoints: (num_keypoints, 3) of x, y in pixels and score, flat or not; or (num_keypoints, 2) with
        scores: (num_keypoints,);
        bbox: COCO box x, y, width, height in pixels, from which the area for OKS-NMS follows; or that area as `area`;
        bbox_score: score of the box, default 1; or `score`, the final score of the person, which is used as it is.
    references: per image, a list of COCO annotations: keypoints (num_keypoints, 3) of x, y, visibility, flat or not;
        bbox; area; iscrowd (default 0).
    keypoint_set (str, in `compute`): "coco", "coco_wholebody" or "goliath"; gives sigmas and parts. Or both by hand:
    sigmas: (num_keypoints,) and groups: {part: indices} (optional).
    nms_threshold (float, in `compute`, default 0.9): a person more similar than this to a better one is dropped;
        None keeps everybody.
    keypoint_score_threshold (float, in `compute`, default 0.2): see above.

Returns:
    AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL in [0, 1] over all keypoints; -1 where no truth has that size.
    With more than one part, also "<part>_AP" and so on: body, foot, face, lefthand, righthand, extra (Goliath) and
    wholebody, which repeats the numbers over all keypoints.
"""


def crop_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas in pixels of the crops around COCO boxes (num_boxes, 4): padded by 1.25 and grown to 3:4."""
    width, height = CROP_PADDING * boxes[:, 2], CROP_PADDING * boxes[:, 3]
    return np.maximum(width, height * CROP_ASPECT) * np.maximum(height, width / CROP_ASPECT)


def instance_scores(keypoint_scores: np.ndarray, box_scores: np.ndarray, threshold: float) -> np.ndarray:
    """Box score times the mean of the keypoint scores above the threshold, 0 if there is none.

    Args:
        keypoint_scores: (num_persons, num_keypoints).
        box_scores: (num_persons,).
        threshold: keypoints with this score or less do not count.
    """
    counts = keypoint_scores > threshold
    return box_scores * (keypoint_scores * counts).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)


def oks_with_one(keypoints: np.ndarray, areas: np.ndarray, one: int, sigmas: np.ndarray) -> np.ndarray:
    """Similarity (num_persons,) of every predicted person with person `one`; all keypoints count.

    Args:
        keypoints: (num_persons, num_keypoints, 2) in pixels.
        areas: (num_persons,) in square pixels; a pair uses the mean of both.
        one: index of the person.
        sigmas: (num_keypoints,) label noise per keypoint, as a fraction of the root of the area.
    """
    square = ((keypoints - keypoints[one]) ** 2).sum(axis=2)
    area = (areas + areas[one]) / 2 + np.spacing(1)
    return np.exp(-square / ((2 * sigmas) ** 2 * 2 * area[:, None])).mean(axis=1)


def oks_nms(
    keypoints: np.ndarray, areas: np.ndarray, scores: np.ndarray, sigmas: np.ndarray, threshold: float
) -> np.ndarray:
    """Indices of the persons that stay, best first: none is more similar than `threshold` to a better one."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):  # greedy: who is dropped depends on who was kept before
        best = order[0]
        kept.append(best)
        similar = oks_with_one(keypoints, areas, best, sigmas)
        order = order[1:][similar[order[1:]] <= threshold]
    return np.array(kept, dtype=np.int64)


def read_keypoint_set(name: str) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Sigmas and parts of a keypoint set, from the table of the installed sapiens_hf package.

    Raises:
        ImportError: if sapiens_hf is not installed next to this metric.
        ValueError: if there is no set of that name.
    """
    package = importlib.util.find_spec("sapiens_hf")  # finds the folder without importing it
    if package is None or not package.submodule_search_locations:
        raise ImportError("keypoint_set= needs the sapiens_hf package; without it pass sigmas= and groups=.")
    sets = json.loads((Path(package.submodule_search_locations[0]) / "assets" / "keypoints.json").read_text())
    names = [key for key in sets if not key.startswith("_")]
    if name not in names:
        raise ValueError(f"There is no keypoint set {name!r}, expected one of {', '.join(names)}.")
    sigmas = np.array([keypoint["sigma"] for keypoint in sets[name]["keypoints"]])
    return sigmas, {group.replace("_", ""): ids for group, ids in sets[name]["groups"].items()}


class PartEvaluation(COCOeval):
    """A COCO keypoint evaluation of persons that are already sorted by image, with any sigmas.

    Args:
        truths: per image, dicts with id (from 1), keypoints (3 * num_keypoints,), bbox, area, iscrowd.
        predictions: per image, dicts with id (from 1), keypoints, area, score.
        sigmas: (num_keypoints,).
    """

    def __init__(self, truths: list[list[dict]], predictions: list[list[dict]], sigmas: np.ndarray):
        super().__init__(iouType="keypoints")
        self.params.kpt_oks_sigmas = sigmas
        self.params.imgIds = list(range(len(truths)))
        self.params.catIds = [1]
        self._persons = truths, predictions

    def _prepare(self) -> None:
        truths, predictions = self._persons
        self._gts = {(image, 1): persons for image, persons in enumerate(truths)}
        self._dts = {(image, 1): persons for image, persons in enumerate(predictions)}

    def statistics(self) -> dict[str, float]:
        """Run the evaluation; pycocotools reports by print only, which is caught."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
            self.summarize()
        return dict(zip(STATISTICS, map(float, self.stats), strict=True))


def part_of(person: dict, ids: np.ndarray, is_truth: bool) -> dict | None:
    """The person with the part's keypoints only; None for a prediction that has no positive score there."""
    triples = person["keypoints"].reshape(-1, 3)[ids]
    empty = not (triples[:, 2] > 0).any()
    if is_truth:
        return {**person, "keypoints": triples.ravel(), "ignore": bool(person["iscrowd"]) or empty}
    return None if empty else {**person, "keypoints": triples.ravel()}


def _floats(value: Any) -> np.ndarray:
    return value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)


def _triples(person: dict, kind: str) -> np.ndarray:
    """(num_keypoints, 3) from the forms that a person may have."""
    keypoints = _floats(person["keypoints"])
    if keypoints.ndim == 2 and keypoints.shape[1] == 2 and "scores" in person:
        keypoints = np.concatenate([keypoints, _floats(person["scores"]).reshape(-1, 1)], axis=1)
    if keypoints.size % 3 or (keypoints.ndim == 2 and keypoints.shape[1] != 3):
        raise ValueError(
            f"The keypoints of a {kind} are {keypoints.shape}, expected (num_keypoints, 3), flat or not; for "
            "(num_keypoints, 2) also `scores`."
        )
    if not np.isfinite(keypoints).all():
        raise ValueError(f"The keypoints of a {kind} hold NaN or infinity: {keypoints.ravel()[:6].tolist()} ...")
    return keypoints.reshape(-1, 3)


def _row(person: dict, kind: str, tail: list) -> np.ndarray:
    """Keypoint triples, then the numbers of `tail`."""
    try:
        more = np.array(tail, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A {kind} has {tail} where box, area and scores are expected as numbers ({error})."
        ) from error
    return np.concatenate([_triples(person, kind).ravel(), more])


def _prediction_row(person: dict) -> np.ndarray:
    """Keypoint triples, then NMS area, box score and final score, NaN where not given."""
    _require(person, ("keypoints",), "prediction")
    for key in ("bbox_score", "score"):
        if person.get(key) is not None and person[key] != person[key]:
            raise ValueError(f"A prediction has NaN as its {key}.")
    if "area" in person:
        area = person["area"]
    elif "bbox" in person:
        _require(person, ("bbox",), "prediction")
        area = crop_areas(_floats(person["bbox"]).reshape(1, 4))[0]
    else:
        area = np.nan
    tail = [area, person.get("bbox_score", 1.0), person.get("score", np.nan)]
    return _row(person, "prediction", tail)


def _reference_row(person: dict) -> np.ndarray:
    """Keypoint triples, then bbox, area, iscrowd."""
    _require(person, ("keypoints", "bbox", "area"), "reference")
    tail = [*person["bbox"], person["area"], person.get("iscrowd", 0)]
    return _row(person, "reference", tail)


def _require(person: dict, keys: tuple[str, ...], kind: str) -> None:
    if not hasattr(person, "keys"):
        raise ValueError(f"A {kind} is a {type(person).__name__}; expected per image a list of persons, each a dict.")
    missing = [key for key in keys if person.get(key) is None]
    if missing:
        raise ValueError(f"A {kind} lacks {', '.join(missing)}; expected a COCO annotation.")


def _table(rows: list[np.ndarray]) -> bytes:
    """Pack the persons of one image. Bytes, because nested lists of COCO's size would take gigabytes when read."""
    if len({len(row) for row in rows}) > 1:
        raise ValueError("Persons of one image have different numbers of keypoints.")
    header = np.array([len(rows)], dtype=np.float64)
    return np.concatenate([header, *rows]).tobytes()


def _unpack(packed: bytes, num_keypoints: int, num_more: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return keypoints (num_persons, num_keypoints, 3) and the further columns (num_persons, num_more)."""
    table = np.frombuffer(packed)
    num_persons, table = int(table[0]), table[1:]
    if num_persons * (3 * num_keypoints + num_more) != len(table):
        got = (len(table) // num_persons - num_more) // 3
        raise ValueError(f"A {kind} has {got} keypoints, but the keypoint set has {num_keypoints}.")
    table = table.reshape(num_persons, 3 * num_keypoints + num_more)
    return table[:, : 3 * num_keypoints].reshape(num_persons, num_keypoints, 3), table[:, 3 * num_keypoints :]


def detections(
    packed: bytes, sigmas: np.ndarray, body: np.ndarray, nms_threshold: float | None, score_threshold: float
) -> list[dict]:
    """Persons of one image as COCO detections, scored and after NMS, without ids."""
    keypoints, more = _unpack(packed, len(sigmas), 3, "prediction")
    areas, box_scores, given_scores = more.T
    computed = instance_scores(keypoints[:, :, 2], box_scores, score_threshold)
    scores = np.where(np.isnan(given_scores), computed, given_scores)
    kept = np.arange(len(scores))
    if nms_threshold is not None:
        if np.isnan(areas).any():
            raise ValueError(
                "A prediction has neither bbox nor area, which OKS-NMS needs. Or pass nms_threshold=None, on the "
                "command line --nms-threshold none."
            )
        kept = oks_nms(keypoints[:, :, :2], areas, scores, sigmas, nms_threshold)
    extents = np.ptp(keypoints[:, body, :2], axis=1).prod(axis=1)
    return [{"keypoints": keypoints[i].ravel(), "area": extents[i], "score": scores[i]} for i in kept]


def annotations(packed: bytes, num_keypoints: int) -> list[dict]:
    """Persons of one image as COCO annotations, without ids."""
    keypoints, more = _unpack(packed, num_keypoints, 6, "reference")
    persons = zip(keypoints, more, strict=True)
    return [{"keypoints": k.ravel(), "bbox": m[:4], "area": m[4], "iscrowd": int(m[5])} for k, m in persons]


def numbered(images: list[list[dict]]) -> list[list[dict]]:
    """Give every person an id, from 1 on: pycocotools reads a match with id 0 as no match."""
    start = np.cumsum([1, *map(len, images)])
    return [
        [{**person, "id": int(first) + k} for k, person in enumerate(persons)]
        for first, persons in zip(start, images, strict=False)
    ]


class KeypointAP(evaluate.Metric):
    """Keypoint AP. `add_batch` stores 3 numbers per keypoint and person."""

    def _info(self) -> evaluate.MetricInfo:
        table = datasets.Value("binary")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predicted": table, "true": table}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Add the persons of some images; an image without predictions or references is an empty list."""
        if len(predictions) != len(references):
            raise ValueError(f"Got predictions of {len(predictions)} images but references of {len(references)}.")
        super().add_batch(
            predicted=[_table([_prediction_row(person) for person in image]) for image in predictions],
            true=[_table([_reference_row(person) for person in image]) for image in references],
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Add the persons of one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        keypoint_set: str | None = None,
        sigmas: Any = None,
        groups: dict[str, Any] | None = None,
        nms_threshold: float | None = 0.9,
        keypoint_score_threshold: float = 0.2,
    ) -> dict[str, Any]:
        """Score what was added, and these images too."""
        if (keypoint_set is None) == (sigmas is None):
            raise ValueError("Pass either keypoint_set= or sigmas= (with groups=, if there are parts).")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if keypoint_set is not None:
            sigmas, groups = read_keypoint_set(keypoint_set)
        return super().compute(
            sigmas=_floats(sigmas),
            groups=groups or {},
            nms_threshold=nms_threshold,
            keypoint_score_threshold=keypoint_score_threshold,
        )

    def _compute(self, predicted, true, sigmas, groups, nms_threshold, keypoint_score_threshold) -> dict[str, Any]:
        everything = np.arange(len(sigmas))
        body = np.asarray(groups.get("body", everything))
        found = [detections(image, sigmas, body, nms_threshold, keypoint_score_threshold) for image in predicted]
        found, truths = numbered(found), numbered([annotations(image, len(sigmas)) for image in true])
        parts = {"": everything}
        if len(groups) > 1:
            parts |= {f"{part}_": np.asarray(ids) for part, ids in groups.items()}
        results: dict[str, float] = {}
        for prefix, ids in parts.items():
            part_truths = [[part_of(person, ids, True) for person in image] for image in truths]
            part_found = [[part_of(person, ids, False) for person in image] for image in found]
            part_found = [[person for person in image if person is not None] for image in part_found]
            statistics = PartEvaluation(part_truths, part_found, sigmas[ids]).statistics()
            results |= {prefix + key: value for key, value in statistics.items()}
        if len(groups) > 1:
            results |= {f"wholebody_{key}": results[key] for key in STATISTICS}
        return results

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
"""The pipelines that transformers lacks: `keypoint-detection` (alias `pose-estimation`) and `normal-estimation`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, pipeline
from transformers.utils import is_torchvision_available, logging

from .heatmaps_sapiens import validate_image_boxes
from .image_loading_sapiens import read_image

logger = logging.get_logger(__name__)

# RT-DETR trained on COCO and Objects365, Apache-2.0, in transformers itself. Only fetched when `detector="default"`.
DEFAULT_DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"
# The original's person filter: score above 0.3, and of two boxes overlapping by more than 0.3 the better one.
DETECTOR_THRESHOLD = 0.3
DETECTOR_MAX_OVERLAP = 0.3

SINGLE_IMAGE = (str, bytes, Path, Image.Image)


def _is_single_image(inputs: Any) -> bool:
    return isinstance(inputs, SINGLE_IMAGE) or (hasattr(inputs, "ndim") and inputs.ndim <= 3)


def _read_levels(image: Any, name: str) -> torch.Tensor:
    """Any image as grey levels 0..255, (3, height, width); floats up to 1, as transformers has them, are scaled."""
    levels = read_image(image, name, expects_levels=False)
    return levels * 255 if levels.is_floating_point() and float(levels.max()) <= 1.0 else levels


def _to_pil(image: torch.Tensor) -> Image.Image:
    """(3, height, width), grey levels -> PIL."""
    return Image.fromarray(image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


class _SapiensPipeline(Pipeline):
    """What both pipelines share: an image processor, found beside the model or made for its image size."""

    image_processor: Any  # transformers types it without its post-processing
    _load_processor = False
    _load_image_processor = None  # loaded if there is one
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.image_processor is None:  # a model in memory, such as load_original gives
            height, width = self.model.config.image_size
            logger.warning(
                f"There is no image processor beside the model: images are prepared as Sapiens was trained, at "
                f"{height} x {width} (height x width). Pass image_processor= for another preparation."
            )
            self.image_processor = _default_image_processor(height, width)


def _default_image_processor(height: int, width: int) -> Any:
    # Imported here: needs torchvision, or is not needed at all.
    if is_torchvision_available():
        from .image_processing_sapiens import SapiensImageProcessor as ImageProcessor
    else:
        from .image_processing_pil_sapiens import SapiensImageProcessorPil as ImageProcessor  # type: ignore[assignment]
    return ImageProcessor(size={"height": height, "width": width})


class SapiensKeypointDetectionPipeline(_SapiensPipeline):
    """2D pose of every person in an image.

    People come from `boxes=` (COCO boxes (x, y, width, height) per image), from `detector=` (the id of a transformers
    object-detection model, such a pipeline, or `"default"`), or, with a warning, from the whole image as one box.
    Crops of all people and images share forward passes of `batch_size` crops; memory does not grow with the number of
    images, and an iterator gives an iterator.

    Example:
        >>> from transformers import pipeline
        >>> import sapiens_hf
        >>> pose = pipeline("keypoint-detection", model="path/to/model", detector="default")  # doctest: +SKIP
        >>> people = pose("photo.jpg")  # doctest: +SKIP
    """

    def _sanitize_parameters(
        self,
        detector: str | Pipeline | None = None,
        detector_threshold: float | None = None,
        threshold: float | None = None,
        keypoint_indices: list[int] | None = None,
        flip_test: bool | None = None,
        flip_pairs: Any = None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(f"Unknown arguments for keypoint-detection: {', '.join(sorted(kwargs))}.")
        given = {
            "preprocess": {"detector": detector, "detector_threshold": detector_threshold},
            "forward": {"keypoint_indices": keypoint_indices, "flip_test": flip_test, "flip_pairs": flip_pairs},
            "postprocess": {"threshold": threshold},
        }
        return tuple({k: v for k, v in part.items() if v is not None} for part in given.values())

    def __call__(self, inputs: Any, boxes: Any = None, batch_size: int | None = None, **kwargs):
        """Estimate poses.

        Args:
            inputs: an image (path, URL, PIL image, array, tensor), a list of images, or an iterable of images.
            boxes: COCO boxes `[[x, y, width, height], ...]` for one image, or a list of such lists for several. An
                image with no boxes gives `[]`.
            batch_size: crops per forward pass; 1 by default.
            **kwargs: `detector`, `detector_threshold` (0.3), `threshold` (drop keypoints whose score is not above it),
                `keypoint_indices` (decode only these), `flip_test` (average with the mirrored crop), `flip_pairs`
                (left/right pairs of keypoint indices for it; those of the config by default).

        Returns:
            For one image a list of people `{"score", "box": {"xmin", "ymin", "xmax", "ymax"}, "keypoints": [{"label",
            "score", "x", "y"}]}` in source pixels; a list of such lists for a list of images. A person's score is the
            detector's, or 1 for a box that was given.

        Raises:
            ValueError: if an image or box cannot be used, naming it.
        """
        if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 4:
            inputs = list(inputs)
        params = [
            {**stored, **new}
            for stored, new in zip(
                (self._preprocess_params, self._forward_params, self._postprocess_params),
                self._sanitize_parameters(**kwargs),
            )
        ]
        batch_size = batch_size or self._batch_size or 1
        if _is_single_image(inputs):
            return next(self._stream([inputs], None if boxes is None else [boxes], batch_size, *params))
        if isinstance(inputs, (list, tuple)):
            if boxes is not None and len(boxes) != len(inputs):
                raise ValueError(f"boxes has {len(boxes)} entries for {len(inputs)} images: give one list per image.")
            return list(self._stream(inputs, boxes, batch_size, *params))
        if isinstance(inputs, Iterable):
            return self._stream(inputs, boxes, batch_size, *params)
        raise ValueError(f"inputs is {type(inputs).__name__}; expected an image, a list of images or an iterable.")

    def _stream(self, images: Iterable, boxes: Iterable | None, batch_size: int, pre, forward, post) -> Iterator[list]:
        waiting: list[dict] = []
        pairs = zip(images, repeat(None) if boxes is None else boxes)
        for index, (image, image_boxes) in enumerate(pairs):
            waiting.append(self.preprocess(image, boxes=image_boxes, index=index, **pre))
            if sum(len(item["scores"]) for item in waiting) >= batch_size:
                yield from self._run(waiting, batch_size, forward, post)
                waiting = []
        yield from self._run(waiting, batch_size, forward, post)

    def _run(self, items: list[dict], batch_size: int, forward: dict, post: dict) -> Iterator[list]:
        pixel_values = torch.cat([item["pixel_values"] for item in items]) if items else torch.empty(0)
        boxes = torch.cat([item["boxes"] for item in items]) if items else torch.empty(0, 4)
        chunks = zip(pixel_values.split(batch_size), boxes.split(batch_size)) if len(boxes) else ()
        outputs = [self.forward({"pixel_values": pixels, "boxes": box}, **forward) for pixels, box in chunks]
        people = chain.from_iterable(output["people"] for output in outputs)
        for item in items:
            yield self.postprocess([(score, next(people)) for score in item["scores"]], **post)

    def preprocess(
        self,
        image: Any,
        boxes: Any = None,
        index: int = 0,
        detector: str | Pipeline | None = None,
        detector_threshold: float = DETECTOR_THRESHOLD,
    ) -> dict[str, Any]:
        """Crops of the people of one image."""
        levels = _read_levels(image, f"inputs[{index}]")
        height, width = levels.shape[-2:]
        scores = None
        if boxes is None and detector is not None:
            boxes, scores = self._detect_people(_to_pil(levels), detector, detector_threshold)
        elif boxes is None:
            logger.warning_once(
                "keypoint-detection got neither boxes= nor detector=: the whole image is taken as one person. "
                f'Pass boxes=[[x, y, width, height], ...] or detector="default" ({DEFAULT_DETECTOR}).'
            )
            boxes = [[0.0, 0.0, float(width), float(height)]]
        boxes = validate_image_boxes(boxes, (height, width), f"boxes[{index}]")
        inputs = self.image_processor(images=[levels], boxes=[boxes.tolist()], return_tensors="pt").to(self.dtype)
        scores = [1.0] * len(boxes) if scores is None else scores
        return {"pixel_values": inputs["pixel_values"], "boxes": boxes, "scores": scores}

    def _detect_people(self, image: Image.Image, detector: str | Pipeline, threshold: float):
        """COCO boxes and scores of the people that a transformers object detector finds."""
        if isinstance(detector, str):
            name = DEFAULT_DETECTOR if detector == "default" else detector
            if getattr(self, "_detector_name", None) != name:
                self._detector = pipeline("object-detection", model=name, device=self.device)
                self._detector_name = name
            detector = self._detector
        found = detector(image, threshold=threshold)
        config = getattr(getattr(detector, "model", None), "config", None)
        names = set() if config is None else set(config.id2label.values())
        if len(names) > 1 and not any(name.lower() == "person" for name in names):
            known = ", ".join(sorted(names)[:8])
            raise ValueError(f"detector knows no class 'person' among {known}: pass a detector of people, or boxes=.")
        # a detector with one class finds people alone, whatever it calls them
        people = [item for item in found if len(names) == 1 or item["label"].lower() == "person"]
        corners = np.array(
            [[item["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")] for item in people], np.float32
        ).reshape(-1, 4)
        corners[:, 0::2] = corners[:, 0::2].clip(0, image.width)
        corners[:, 1::2] = corners[:, 1::2].clip(0, image.height)
        scores = np.array([item["score"] for item in people], np.float32)
        keep = _non_maximum_suppression(corners, scores, DETECTOR_MAX_OVERLAP)
        corners, scores = corners[keep], scores[keep]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # xyxy -> xywh
        visible = (boxes[:, 2:] > 0).all(axis=1)
        return boxes[visible].tolist(), scores[visible].tolist()

    def _forward(
        self,
        model_inputs: dict,
        keypoint_indices: list[int] | None = None,
        flip_test: bool = False,
        flip_pairs: Any = None,
    ) -> dict[str, list]:
        pixel_values, boxes = model_inputs["pixel_values"], model_inputs["boxes"]
        flipped = None
        if flip_test:
            pairs = self.model.config.flip_pairs if flip_pairs is None else flip_pairs
            if pairs is None:
                raise ValueError(
                    "flip_test=True needs config.flip_pairs, or flip_pairs=: the left/right pairs of keypoint indices."
                )
            flipped = self.model(pixel_values=pixel_values.flip(-1), flip_pairs=pairs)
        outputs = self.model(pixel_values=pixel_values)
        # Decoded here, on the model's device: a person's heatmaps are 60 MB, the keypoints a few kB.
        people = self.image_processor.post_process_pose_estimation(
            outputs, [boxes.tolist()], outputs_flipped=flipped, keypoint_indices=keypoint_indices
        )
        return {"people": people[0]}

    def postprocess(self, people: list[tuple[float, dict]], threshold: float | None = None) -> list[dict[str, Any]]:
        """People of one image as plain Python numbers."""
        return [self._describe(score, person, threshold) for score, person in people]

    def _describe(self, box_score: float, person: dict, threshold: float | None) -> dict[str, Any]:
        names = dict(self.model.config.id2label)
        rows = zip(person["labels"].tolist(), person["scores"].tolist(), person["keypoints"].tolist())
        return {
            "score": float(box_score),
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), person["bbox"].tolist())),
            "keypoints": [
                {"label": names[label], "score": score, "x": x, "y": y}
                for label, score, (x, y) in rows
                if threshold is None or score > threshold
            ],
        }


def _non_maximum_suppression(corners: np.ndarray, scores: np.ndarray, max_overlap: float) -> np.ndarray:
    """Boxes `(N, 4)` xyxy to keep, best first: none overlaps a better kept one by more than `max_overlap`.

    Widths count one pixel more than the difference of the corners, as in the original's mmpose nms; torchvision, which
    has the operation, is optional here.
    """
    order = np.argsort(-scores, kind="stable")
    corners = corners[order]
    size = corners[:, 2:] - corners[:, :2] + 1
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low + 1).clip(0).prod(axis=-1)  # (N, N)
    area = size.prod(axis=-1)
    overlaps = shared / (area[:, None] + area[None] - shared) > max_overlap
    kept = np.ones(len(order), bool)
    for i in range(len(order)):  # each decision depends on the better boxes' decisions
        if kept[i]:
            kept[i + 1 :] &= ~overlaps[i, i + 1 :]
    return order[kept]


@dataclass
class _Named:
    """An image and what error messages call it."""

    image: Any
    name: str = "inputs"


class SapiensNormalEstimationPipeline(_SapiensPipeline):
    """Surface normals of people: `{"normals": tensor (3, height, width), "normal_map": PIL image}` in source pixels.

    The picture shows x, y, z as red, green, blue: (n + 1) / 2 * 255. `resize` is "two_step" (as the original, default)
    or "direct", see `post_process_normal_estimation`.
    """

    def _sanitize_parameters(self, resize: str | None = None, **kwargs):
        if kwargs:
            raise TypeError(f"Unknown arguments for normal-estimation: {', '.join(sorted(kwargs))}.")
        return {}, {}, {} if resize is None else {"resize": resize}

    def __call__(self, inputs: Any, **kwargs):
        """Estimate normals.

        Args:
            inputs: an image (path, URL, PIL image, array, tensor), a list of images, or an iterable of images.
            **kwargs: `resize`, and `batch_size` and `num_workers` as in every pipeline.

        Returns:
            The result of one image, a list of results for a list, an iterator for an iterator.

        Raises:
            ValueError: if an image cannot be used, naming it, or `resize` is unknown.
        """
        if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 4:
            inputs = list(inputs)
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                return []
            inputs = [_Named(image, f"inputs[{index}]") for index, image in enumerate(inputs)]
        elif isinstance(inputs, GeneratorType):
            inputs = (_Named(image, f"inputs[{index}]") for index, image in enumerate(inputs))
        return super().__call__(inputs, **kwargs)

    def preprocess(self, image: Any) -> dict[str, Any]:
        named = image if isinstance(image, _Named) else _Named(image)
        levels = _read_levels(named.image, named.name)
        inputs = self.image_processor(images=[levels], return_tensors="pt").to(self.dtype)
        return {**inputs, "target_size": tuple(levels.shape[-2:])}

    def _forward(self, model_inputs: dict) -> dict[str, Any]:
        target_size = model_inputs.pop("target_size")
        outputs = self.model(**model_inputs)
        outputs["target_size"] = target_size  # inside the output, where transformers takes batches apart again
        return outputs

    def postprocess(self, model_outputs: dict, resize: str = "two_step") -> dict[str, Any]:
        size = tuple(int(s) for s in model_outputs["target_size"])
        results = self.image_processor.post_process_normal_estimation(model_outputs, [size], resize=resize)
        normals = results[0]["normals"]
        picture = ((normals + 1) / 2 * 255).to(torch.uint8).permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
        return {"normals": normals, "normal_map": Image.fromarray(picture)}


__all__ = ["SapiensKeypointDetectionPipeline", "SapiensNormalEstimationPipeline"]

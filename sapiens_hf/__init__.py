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
"""Sapiens (arXiv 2408.12569) for Hugging Face: pose, body parts, depth and surface normals of people.

Importing this package registers Sapiens with transformers' auto classes and pipelines (see `registration`) and loads
nothing else: torch, transformers and the modules below come when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING

from . import registration as _registration
from .version import __version__

_MODULE_OF = {
    "SapiensConfig": "configuration_sapiens",
    "SapiensModel": "modeling_sapiens",
    "SapiensBackbone": "modeling_sapiens",
    "SapiensPreTrainedModel": "modeling_sapiens",
    "SapiensForPreTraining": "modeling_mae_sapiens",
    "SapiensForPoseEstimation": "modeling_sapiens",
    "SapiensForSemanticSegmentation": "modeling_sapiens",
    "SapiensForDepthEstimation": "modeling_sapiens",
    "SapiensForNormalEstimation": "modeling_sapiens",
    "SapiensImageProcessor": "image_processing_sapiens",
    "SapiensImageProcessorPil": "image_processing_pil_sapiens",
    "SapiensKeypointDetectionPipeline": "pipeline_sapiens",
    "SapiensNormalEstimationPipeline": "pipeline_sapiens",
    "load_original": "original",
    "keypoint_set": "labels",
    "class_set": "labels",
    "convert_keypoints": "labels",
    "part_mask": "labels",
    "remap_labels": "labels",
    "make_keypoint_set": "labels",
    "make_class_set": "labels",
    "draw_keypoints": "visualization",
    "draw_segmentation": "visualization",
    "draw_depth": "visualization",
    "draw_normals": "visualization",
    "side_by_side": "visualization",
}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from .configuration_sapiens import SapiensConfig
    from .image_processing_pil_sapiens import SapiensImageProcessorPil
    from .image_processing_sapiens import SapiensImageProcessor
    from .labels import (
        class_set,
        convert_keypoints,
        keypoint_set,
        make_class_set,
        make_keypoint_set,
        part_mask,
        remap_labels,
    )
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
    from .original import load_original
    from .pipeline_sapiens import SapiensKeypointDetectionPipeline, SapiensNormalEstimationPipeline
    from .visualization import draw_depth, draw_keypoints, draw_normals, draw_segmentation, side_by_side


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF[name]
    if name == "SapiensImageProcessor" and not _registration.has_torchvision():
        name, module = "SapiensImageProcessorPil", "image_processing_pil_sapiens"
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


_registration.register()

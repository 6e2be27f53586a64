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
"""Registers Sapiens with transformers, each part at the moment transformers loads the module that holds the registry.

Registering everything at once would import transformers' auto classes, torchvision and the pipelines, which takes
longer than `import transformers` and torch together. A registry that is loaded already is filled at once.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

# Auto class and the name table that belongs to it -> our class. The tables matter beside `register`: the image
# segmentation pipeline and `Trainer`'s label lookup read names only.
_MODELS = [
    ("AutoModel", "MODEL_MAPPING_NAMES", "SapiensModel"),
    ("AutoBackbone", "MODEL_FOR_BACKBONE_MAPPING_NAMES", "SapiensBackbone"),
    ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES", "SapiensForPreTraining"),
    ("AutoModelForPoseEstimation", "MODEL_FOR_POSE_ESTIMATION_MAPPING_NAMES", "SapiensForPoseEstimation"),
    (
        "AutoModelForSemanticSegmentation",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
        "SapiensForSemanticSegmentation",
    ),
    ("AutoModelForDepthEstimation", "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES", "SapiensForDepthEstimation"),
    ("AutoModelForNormalEstimation", "MODEL_FOR_NORMAL_ESTIMATION_MAPPING_NAMES", "SapiensForNormalEstimation"),
]


def has_torchvision() -> bool:
    """Whether the torchvision image processor can be used here."""
    from transformers.utils import is_torchvision_available

    return is_torchvision_available()


def _register_config(auto: ModuleType) -> None:
    from .configuration_sapiens import SapiensConfig

    auto.AutoConfig.register("sapiens", SapiensConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from . import modeling_mae_sapiens, modeling_sapiens
    from .configuration_sapiens import SapiensConfig

    for auto_name, table_name, class_name in _MODELS:
        module = modeling_sapiens if hasattr(modeling_sapiens, class_name) else modeling_mae_sapiens
        getattr(auto, auto_name).register(SapiensConfig, getattr(module, class_name), exist_ok=True)
        getattr(auto, table_name).setdefault("sapiens", class_name)


def _register_image_processors(auto: ModuleType) -> None:
    from .configuration_sapiens import SapiensConfig
    from .image_processing_pil_sapiens import SapiensImageProcessorPil

    classes = {"pil": SapiensImageProcessorPil}
    if has_torchvision():
        from .image_processing_sapiens import SapiensImageProcessor

        classes["torchvision"] = SapiensImageProcessor
    auto.AutoImageProcessor.register(SapiensConfig, image_processor_classes=classes, exist_ok=True)


def _register_pipelines(pipelines: ModuleType) -> None:
    from transformers import AutoModelForNormalEstimation, AutoModelForPoseEstimation

    from .pipeline_sapiens import SapiensKeypointDetectionPipeline, SapiensNormalEstimationPipeline

    registry = pipelines.PIPELINE_REGISTRY
    for task, pipeline_class, auto_class in (
        ("keypoint-detection", SapiensKeypointDetectionPipeline, AutoModelForPoseEstimation),
        ("normal-estimation", SapiensNormalEstimationPipeline, AutoModelForNormalEstimation),
    ):
        if task not in registry.get_supported_tasks():
            registry.register_pipeline(task, pipeline_class, pt_model=auto_class, type="image")
            # With this mark a saved pipeline would name a copy of our code, which `pipeline()` then refuses to run
            # without trust_remote_code although the package is here.
            delattr(pipeline_class, "_registered_impl")
    registry.task_aliases.setdefault("pose-estimation", "keypoint-detection")


def _connect_original_reader(loading: ModuleType) -> None:
    """Let `from_pretrained` read Meta's files: the models themselves know only our format."""

    def is_original_source(source) -> bool:
        from .original import is_original_source

        return is_original_source(source)

    def load_original(source, **kwargs):
        from .original import load_original

        return load_original(source, **kwargs)

    loading.SapiensLoadingMixin._is_original_source = staticmethod(is_original_source)
    loading.SapiensLoadingMixin._load_original = staticmethod(load_original)


# Registry module -> how to fill it, and which of our modules that takes.
_REGISTRIES: dict[str, tuple[Callable[[ModuleType], None], set[str]]] = {
    "transformers.models.auto.configuration_auto": (_register_config, {"configuration_sapiens"}),
    "transformers.models.auto.modeling_auto": (
        _register_models,
        {"configuration_sapiens", "modeling_sapiens", "modeling_mae_sapiens"},
    ),
    "transformers.models.auto.image_processing_auto": (
        _register_image_processors,
        {"configuration_sapiens", "image_processing_sapiens", "image_processing_pil_sapiens"},
    ),
    "transformers.pipelines": (_register_pipelines, {"pipeline_sapiens", "modeling_sapiens", "modeling_mae_sapiens"}),
    f"{__package__}.loading_sapiens": (_connect_original_reader, set()),
}


class _Registrar(importlib.abc.MetaPathFinder):
    """Finds no module itself; it notes when a watched one has finished loading and fills the registries that can be.

    A registry waits while one of the modules it needs is half loaded: our modeling file imports transformers' layers,
    and these import the auto classes.
    """

    def __init__(self):
        self.pending = dict(_REGISTRIES)
        self.watched = {*_REGISTRIES, *(f"{__package__}.{m}" for _, needs in _REGISTRIES.values() for m in needs)}
        self.searching: set[str] = set()
        self.loading: set[str] = set()

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.watched or fullname in self.searching:
            return None
        self.searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.loading.add(fullname)
                try:
                    execute(module)
                finally:
                    self.loading.discard(fullname)
                self.fill_registries()

            spec.loader.exec_module = exec_module
        return spec

    def fill_registries(self) -> None:
        for name, (fill, needs) in list(self.pending.items()):
            needed = {name, *(f"{__package__}.{module}" for module in needs)}
            if name in self.pending and name in sys.modules and not needed & self.loading:
                del self.pending[name]
                fill(sys.modules[name])


def register() -> None:
    """Fill the registries that transformers has loaded, and watch for the rest. Calling it again changes nothing."""
    if not any(isinstance(finder, _Registrar) for finder in sys.meta_path):
        registrar = _Registrar()
        sys.meta_path.insert(0, registrar)
        registrar.fill_registries()

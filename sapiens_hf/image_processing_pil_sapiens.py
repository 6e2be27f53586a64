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
# See the License for the specific language governing permissions and limitations under the License.
"""Image processor without torchvision: the same numbers as the torchvision one, on the CPU."""

from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend

from .post_processing_sapiens import SapiensPostProcessingMixin
from .preprocessing_sapiens import SapiensImageProcessorKwargs, SapiensPreprocessor


class SapiensImageProcessorPil(SapiensPreprocessor, SapiensPostProcessingMixin, PilBackend):
    """Images -> inputs and targets, outputs -> keypoints, labels, depth and normals; torch, numpy and PIL suffice."""

    valid_kwargs = SapiensImageProcessorKwargs

    def _device_for(self, first_image: Tensor, device: Any) -> torch.device:
        """The CPU, as every PIL processor."""
        return torch.device("cpu")

    def _as_returned(self, data: dict[str, Tensor], return_tensors: Any) -> dict[str, Any]:
        """As the other backend, but arrays where that one lists tensors."""
        returned = super()._as_returned(data, return_tensors)
        if return_tensors is None:
            return {name: [value.numpy() for value in values] for name, values in returned.items()}
        return returned


__all__ = ["SapiensImageProcessorPil"]

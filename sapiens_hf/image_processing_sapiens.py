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
"""Image processor of the torchvision backend: tensors stay on their device, or go to `device=`."""

from transformers.image_processing_backends import TorchvisionBackend

from .post_processing_sapiens import SapiensPostProcessingMixin
from .preprocessing_sapiens import SapiensImageProcessorKwargs, SapiensPreprocessor


class SapiensImageProcessor(SapiensPreprocessor, SapiensPostProcessingMixin, TorchvisionBackend):
    """Images -> inputs and targets, outputs -> keypoints, labels, depth and normals; on any device.

    Example:
        >>> processor = SapiensImageProcessor()
        >>> processor(image, boxes=[[[x, y, width, height]]], return_tensors="pt")["pixel_values"].shape
        torch.Size([1, 3, 1024, 768])
    """

    valid_kwargs = SapiensImageProcessorKwargs


__all__ = ["SapiensImageProcessor"]

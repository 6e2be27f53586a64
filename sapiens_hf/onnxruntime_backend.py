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
"""A model folder with an `onnx` subfolder, run by onnxruntime behind the call signature of the models.

folder/config.json, folder/onnx/model.onnx (or model_fp16.onnx, model_int8.onnx) --> SapiensOnnxModel --> outputs
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    DepthEstimatorOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput

from .configuration_sapiens import SapiensConfig
from .heatmaps_sapiens import flip_heatmaps
from .modeling_sapiens import SapiensNormalEstimationOutput, SapiensPoseEstimationOutput

__all__ = ["ONNX_FILES", "OUTPUT_NAMES", "SapiensOnnxModel", "output_names"]

# Number format -> file name, as transformers.js looks for them.
ONNX_FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
OUTPUT_NAMES = {
    "SapiensForPoseEstimation": ("heatmaps",),
    "SapiensForSemanticSegmentation": ("logits",),
    "SapiensForDepthEstimation": ("predicted_depth",),
    "SapiensForNormalEstimation": ("predicted_normal",),
    "SapiensModel": ("last_hidden_state", "pooler_output"),
}


def output_names(architecture: str) -> tuple[str, ...]:
    """Names of the outputs that the ONNX model of a class has.

    Raises:
        ValueError: The class has no ONNX form.
    """
    if architecture not in OUTPUT_NAMES:
        raise ValueError(
            f"{architecture} has no ONNX form: expected one of {', '.join(OUTPUT_NAMES)}. Pretraining hides patches "
            "at random, which no ONNX runtime does here; its encoder gives features: task 'encoder'."
        )
    return OUTPUT_NAMES[architecture]


class SapiensOnnxModel:
    """A Sapiens model in onnxruntime, on the CPU unless other providers are asked for.

    Attributes:
        config: As of the torch model. The image size is fixed in the file; the batch size is free.
        dtype: Of inputs and outputs: always float32, whatever the weights are stored as.
        device: Where outputs are: the CPU.

    Example:
        >>> model = SapiensOnnxModel.from_pretrained("folder")  # doctest: +SKIP
        >>> model(pixel_values=torch.zeros(1, 3, 1024, 768)).heatmaps.shape  # doctest: +SKIP
        torch.Size([1, 308, 256, 192])
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, config: SapiensConfig, path: str | Path, providers: list[str] | None = None):
        """Opens one file.

        Args:
            config: Configuration of the exported model; `architectures` says which class it was.
            path: The `.onnx` file.
            providers: Execution providers of onnxruntime, best first; `["CPUExecutionProvider"]` by default.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: The model is not one of those that can be exported, or the file has other outputs.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                'The onnxruntime backend needs onnxruntime: pip install "sapiens_hf[onnx]", or use the torch backend.'
            ) from error
        self.config = config
        self.architecture = (config.architectures or ["?"])[0]
        if self.architecture == "SapiensForPreTraining":  # beside a pretraining model lies its encoder
            self.architecture = "SapiensModel"
        self.output_names = output_names(self.architecture)
        self._session = onnxruntime.InferenceSession(str(path), providers=providers or ["CPUExecutionProvider"])
        found = tuple(output.name for output in self._session.get_outputs())
        if found != self.output_names:
            raise ValueError(
                f"{path} has the outputs {found}; {self.architecture} in config.json means {self.output_names}. "
                "Export it again: python -m conversion onnx MODEL --output FOLDER."
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | None = None,
        *,
        providers: list[str] | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> "SapiensOnnxModel":
        """Opens a folder that `python -m conversion onnx` wrote, or a repository with such content.

        Args:
            source: Folder, or repository id.
            dtype: `"fp32"`, `"fp16"` or `"int8"`; by default the first of them that is there.
            providers: As for the constructor.
            revision: Branch, tag or commit of a repository.
            token: To read a private repository.

        Raises:
            FileNotFoundError: There is no such file; names those that are there.
            ValueError: An unknown number format.
        """
        if dtype is not None and dtype not in ONNX_FILES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(ONNX_FILES)}.")
        folder = Path(source)
        if not folder.is_dir():
            if str(source).count("/") != 1:
                raise FileNotFoundError(f"{source} is neither a folder nor a repository id (owner/name).")
            wanted = ["config.json", *(f"onnx/{ONNX_FILES[dtype]}*" for dtype in ([dtype] if dtype else ONNX_FILES))]
            folder = Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=wanted))
        there = {name: folder / "onnx" / file for name, file in ONNX_FILES.items()}
        there = {name: path for name, path in there.items() if path.is_file()}
        if not there or (dtype is not None and dtype not in there):
            raise FileNotFoundError(
                f"{source} has no onnx/{ONNX_FILES[dtype or 'fp32']}"
                f"{f', but {sorted(there)}' if there else ''}. Make it: python -m conversion onnx MODEL --output "
                f"FOLDER{f' --dtype {dtype}' if dtype not in (None, 'fp32') else ''}."
            )
        config = SapiensConfig.from_dict(json.loads((folder / "config.json").read_text()))
        return cls(config, there[dtype or next(iter(there))], providers)

    def eval(self) -> "SapiensOnnxModel":
        """Itself, as a torch model would: it has no other mode."""
        return self

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, flip_pairs: Any = None) -> ModelOutput:
        """Runs the model.

        Args:
            pixel_values: `(batch_size, 3, height, width)` of the exported size.
            flip_pairs: For a flip test of pose, as in `SapiensForPoseEstimation.forward`.

        Returns:
            The output class of the torch model; depth as `(batch_size, height, width)`.

        Raises:
            ValueError: Another image size than the exported one, or `flip_pairs` for another task than pose.
        """
        height, width = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.num_channels, height, width):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this export takes (batch_size, "
                f"{self.config.num_channels}, {height}, {width}). Export again for another image size."
            )
        if flip_pairs is not None and self.architecture != "SapiensForPoseEstimation":
            raise ValueError(f"flip_pairs is for pose; this model is {self.architecture}.")
        inputs = {"pixel_values": pixel_values.to("cpu", torch.float32).contiguous().numpy()}
        arrays = self._session.run(list(self.output_names), inputs)
        values = {name: torch.from_numpy(array) for name, array in zip(self.output_names, arrays)}
        if self.architecture == "SapiensForPoseEstimation":
            heatmaps = values["heatmaps"]
            return SapiensPoseEstimationOutput(
                heatmaps=heatmaps if flip_pairs is None else flip_heatmaps(heatmaps, flip_pairs)
            )
        if self.architecture == "SapiensForSemanticSegmentation":
            return SemanticSegmenterOutput(**values)
        if self.architecture == "SapiensForDepthEstimation":
            return DepthEstimatorOutput(predicted_depth=values["predicted_depth"].squeeze(1))  # (B, 1, H, W) -> ...
        if self.architecture == "SapiensForNormalEstimation":
            return SapiensNormalEstimationOutput(**values)
        return BaseModelOutputWithPooling(**values)

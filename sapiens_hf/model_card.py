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
"""The README of a model repository: what the Hub reads at its top, and what people read below."""

import difflib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

ASSETS = Path(__file__).parent / "assets"
META_LICENSE = "cc-by-nc-4.0"
# Licences under which an adaptation of non-commercial weights may stand: none that grants commercial use.
META_COMPATIBLE_LICENSES = (META_LICENSE, "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0")


@dataclass(frozen=True)
class TaskCard:
    """What the card of one task says.

    Attributes:
        title: The task in a few words.
        pipeline: Task name for `transformers.pipeline`.
        pipeline_tag: The Hub's tag. It has none for surface normals; other normal estimators there use image-to-image.
        auto_class: Auto class of transformers that loads the model with its head.
        tags: Further tags.
        outputs: Convention of the outputs.
        use: Lines that run the pipeline `{name}` on `image` and show the result.
        shape: The attribute of the model's output to look at.
    """

    title: str
    pipeline: str
    pipeline_tag: str
    auto_class: str
    tags: tuple[str, ...]
    outputs: str
    use: str
    shape: str


TASK_CARDS: dict[str, TaskCard] = {
    "pose": TaskCard(
        "2D human pose",
        "keypoint-detection",
        "keypoint-detection",
        "AutoModelForPoseEstimation",
        ("pose-estimation",),
        "`heatmaps` (batch, {num_labels}, {map_size}), one per keypoint, not probabilities. "
        "`post_process_pose_estimation` turns them into (x, y) in pixels of the source image, the centre of the first "
        "pixel being (0, 0), and a score per keypoint. Left and right are the person's own.",
        '# One box (x, y, width, height) in pixels for each person; or detector="default" instead of boxes.\n'
        "people = run(image, boxes=[[0, 0, image.width, image.height]])\n"
        'for point in people[0]["keypoints"][:3]:\n'
        '    print(point["label"], point["x"], point["y"], point["score"])',
        "heatmaps",
    ),
    "segmentation": TaskCard(
        "body-part segmentation",
        "image-segmentation",
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        ("semantic-segmentation", "human-parsing"),
        "`logits` (batch, {num_labels}, {map_size}). `post_process_semantic_segmentation` resizes them to "
        "the source image and takes the largest: one class index per pixel. Left and right are the person's own.",
        'for part in run(image):\n    print(part["label"], part["mask"].size)',
        "logits",
    ),
    "depth": TaskCard(
        "relative depth of people",
        "depth-estimation",
        "depth-estimation",
        "AutoModelForDepthEstimation",
        (),
        "`predicted_depth` (batch, {map_size}). It is relative, not metres: **larger is farther**, 0 at the "
        "nearest and 1 at the farthest point of the person. Off the person it means nothing.",
        'result = run(image)\nresult["depth"].save("depth.png")\nprint(result["predicted_depth"].shape)',
        "predicted_depth",
    ),
    "normal": TaskCard(
        "surface normals of people",
        "normal-estimation",
        "image-to-image",
        "AutoModelForNormalEstimation",
        ("normal-estimation",),
        "`predicted_normal` (batch, 3, {map_size}). Channels are x, y, z in the axes of the camera, each "
        "from -1 to 1; mirroring the image negates x. `post_process_normal_estimation` resizes to the source image "
        "and makes every vector unit length. The authors do not state the signs of y and z. Off the person it means "
        "nothing.",
        'result = run(image)\nresult["normal_map"].save("normals.png")\nprint(result["normals"].shape)',
        "predicted_normal",
    ),
    "encoder": TaskCard(
        "features of people",
        "image-feature-extraction",
        "image-feature-extraction",
        "AutoModel",
        ("vision-transformer",),
        "`last_hidden_state` (batch, tokens, {hidden_size}): {tokens}one token per {patch_size} x {patch_size} "
        "pixels, row by row, after the final norm. `pooler_output` is {pooled}.",
        "features = run(image, pool=True)\nprint(len(features[0]))",
        "last_hidden_state",
    ),
    "pretraining": TaskCard(
        "masked autoencoder for people",
        "image-feature-extraction",
        "image-feature-extraction",
        "AutoModelForPreTraining",
        ("vision-transformer", "masked-autoencoder"),
        "`logits` (batch, patches, {patch_size} * {patch_size} * 3): the predicted patches, of which `mask` says with "
        "1 which were hidden. `AutoModel` loads the encoder alone and gives features.",
        "features = run(image, pool=True)\nprint(len(features[0]))",
        "logits",
    ),
}


@dataclass(frozen=True)
class WeightSource:
    """The file that weights were converted from.

    Attributes:
        repo: Hub repository, or `None` for a file that was not released.
        file: Path in it, or the file's name.
        revision: Commit, if known.
        sha256: Hash of the file.
        repo_type: "model", or "space".
    """

    repo: str | None
    file: str
    revision: str | None
    sha256: str
    repo_type: str = "model"


@functools.lru_cache(None)
def accepted_fields() -> dict[str, list[str]]:
    """Values that the Hub accepts: `pipeline_tags` and `licenses`."""
    return json.loads((ASSETS / "hub_card_fields.json").read_text())


def validate_card(data: Mapping[str, Any]) -> None:
    """Refuse a card that the Hub would refuse, before anything is uploaded.

    Args:
        data: The YAML at the top of a README, as a mapping.

    Raises:
        ValueError: a field is missing or holds a value that the Hub does not know; names the nearest that it does.
    """
    for name, known in (("pipeline_tag", "pipeline_tags"), ("license", "licenses")):
        value = data.get(name)
        accepted = accepted_fields()[known]
        if value not in accepted:
            near = difflib.get_close_matches(str(value), accepted, n=1)
            other = (
                " A licence of your own is 'other' with license_name and license_link." if name == "license" else ""
            )
            raise ValueError(
                f"Card field {name} is {value!r}, which the Hub does not know."
                f"{f' Did you mean {near[0]!r}?' if near else ''}{other}"
            )
    if data["license"] == "other" and not (data.get("license_name") and data.get("license_link")):
        raise ValueError("Card field license is 'other': the Hub then wants license_name and license_link as well.")
    if data.get("library_name") != "transformers":
        raise ValueError(
            f"Card field library_name is {data.get('library_name')!r}; expected 'transformers', without which "
            "pipeline(model=id) does not find the task."
        )
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if str(base).count("/") != 1 or str(base).strip("./~") != str(base):
            raise ValueError(
                f"Card field base_model is {base!r}; expected the id of a repository, owner/name. Leave it out for a "
                "local folder."
            )


def write_card(
    model: Any,
    task: str,
    *,
    name: str,
    repo_id: str,
    license_id: str,
    license_name: str | None = None,
    license_link: str | None = None,
    with_code: bool = False,
    base_model: str | list[str] | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    language: str | None = None,
    eval_results: Sequence[EvalResult] = (),
    source: WeightSource | None = None,
    onnx_dtypes: Sequence[str] = (),
) -> ModelCard:
    """The card of a model.

    Args:
        model: A Sapiens model; only its configuration is read.
        task: Its task.
        name: Heading, and the model's name beside its evaluation results.
        repo_id: What the snippets load: a repository id, or a folder.
        license_id: A licence that the Hub knows, or "other".
        license_name: With "other": its name.
        license_link: With "other": where to read it.
        with_code: Whether the repository holds its own code, so that sapiens_hf is not needed.
        base_model: Repositories that the weights come from.
        datasets: Ids of the data that it was trained on.
        tags: Further tags.
        language: Language of the card, if it matters.
        eval_results: Scores; `source_name` says who measured.
        source: The converted file.
        onnx_dtypes: Number formats of the ONNX models in the repository.

    Raises:
        ValueError: as `validate_card`.
    """
    facts = TASK_CARDS[task]
    data = ModelCardData(
        language=language,
        license=license_id,
        license_name=license_name,
        license_link=license_link,
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        tags=["sapiens", "human", *facts.tags, *tags],
        base_model=base_model,
        datasets=list(datasets) or None,
        metrics=sorted({result.metric_type for result in eval_results}) or None,
        model_name=name if eval_results else None,
        eval_results=list(eval_results) or None,
    )
    validate_card(data.to_dict())
    sections = [
        f"# {name}",
        _introduction(model.config, facts),
        f"## Use\n\n{_snippets(task, repo_id, with_code)}",
        f"## Inputs and outputs\n\n{_conventions(model.config, task)}",
        _labels(model.config, task),
        _evaluation(eval_results),
        _onnx(onnx_dtypes),
        _provenance(source),
        f"## Licence\n\n{_license(data)}",
        '## Citation\n\nRawal Khirodkar et al., "Sapiens: Foundation for Human Vision Models", ECCV 2024, '
        "[arXiv 2408.12569](https://arxiv.org/abs/2408.12569)",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in sections if part) + "\n")


def _introduction(config: Any, facts: TaskCard) -> str:
    height, width = config.image_size
    return (
        f"Sapiens, a vision transformer for people: {facts.title}. {config.num_hidden_layers} blocks of width "
        f"{config.hidden_size}, {config.num_attention_heads} heads; {height} x {width} pixels (height x width)."
    )


def _snippets(task: str, repo_id: str, with_code: bool) -> str:
    facts = TASK_CARDS[task]
    option = ", trust_remote_code=True" if with_code else ""
    register = "" if with_code else "\nimport sapiens_hf  # noqa: F401  (tells transformers about Sapiens)\n"
    install = (
        "The code travels with the weights: nothing but transformers, torch and pillow is needed. "
        "`trust_remote_code=True` runs it; read it first."
        if with_code
        else "Needs the Python package `sapiens_hf` beside transformers."
    )
    boxes = ", boxes=[[[0, 0, image.width, image.height]]]" if task == "pose" else ""
    return f"""{install}

```python
from PIL import Image
from transformers import pipeline
{register}
image = Image.open("photo.jpg")
run = pipeline("{facts.pipeline}", model="{repo_id}"{option})
{facts.use}
```

The model and its image processor by themselves:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, {facts.auto_class}
{register}
image = Image.open("photo.jpg")
processor = AutoImageProcessor.from_pretrained("{repo_id}"{option})
model = {facts.auto_class}.from_pretrained("{repo_id}"{option}).eval()
inputs = processor(image{boxes}, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
print(outputs.{facts.shape}.shape)
```"""


def _conventions(config: Any, task: str) -> str:
    height, width = config.image_size
    unit = math.gcd(height, width)
    entry = (
        f"Each person's box (x, y, width, height) is grown by a quarter and to the shape {width // unit} : "
        f"{height // unit}, cut out and resized to {height} x {width}"
        if task == "pose"
        else f"The whole image is stretched to {height} x {width} without keeping its aspect"
    )
    stride = config.patch_size / 2 ** len(config.deconv_out_channels)
    outputs = TASK_CARDS[task].outputs.format(
        num_labels=config.num_labels,
        hidden_size=config.hidden_size,
        patch_size=config.patch_size,
        map_size="height, width" if stride == 1 else f"height / {stride:g}, width / {stride:g}",
        tokens="a class token, then " if config.use_cls_token else "",
        pooled="the class token" if config.use_cls_token else "the mean over the tokens",
    )
    return (
        f"- **In**: `pixel_values` (batch, 3, height, width), RGB. {entry}, then normalised with ImageNet's mean and "
        "standard deviation. Other sizes work if they are multiples of "
        f"{config.patch_size}.\n- **Out**: {outputs}"
    )


def _labels(config: Any, task: str) -> str:
    if task not in ("pose", "segmentation"):
        return ""
    what = "keypoints" if task == "pose" else "classes"
    names = ", ".join(f"{index} {name}" for index, name in sorted(config.id2label.items()))
    return f"## Labels\n\n<details>\n<summary>{len(config.id2label)} {what}</summary>\n\n{names}\n\n</details>"


def _evaluation(results: Sequence[EvalResult]) -> str:
    if not results:
        return ""
    rows = ["| dataset | metric | value | measured by |", "|---|---|---|---|"]
    rows += [
        f"| {r.dataset_name} | {r.metric_name or r.metric_type} | {r.metric_value} | "
        f"{r.source_name or 'the publisher'} |"
        for r in results
    ]
    return "## Evaluation\n\n" + "\n".join(rows)


def _onnx(dtypes: Sequence[str]) -> str:
    if not dtypes:
        return ""
    return (
        f"## ONNX\n\nThe folder `onnx` holds the model for onnxruntime and transformers.js, as {', '.join(dtypes)}. "
        "The batch size is free, the image size is the one above. Depth has four dimensions there, (batch, 1, height, "
        "width)."
    )


def _provenance(source: WeightSource | None) -> str:
    if source is None:
        return ""
    kind = "spaces/" if source.repo_type == "space" else ""
    origin = f"[{source.repo}](https://huggingface.co/{kind}{source.repo})" if source.repo else f"`{source.file}`"
    rows = {"file": source.file, "revision": source.revision, "SHA-256": source.sha256}
    table = "\n".join(f"| {name} | `{value}` |" for name, value in rows.items() if value)
    return (
        f"## Where the weights come from\n\nConverted from {origin}; LICENSE.md says what was changed.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def _license(data: ModelCardData) -> str:
    if data.license == "other":
        return f"[{data.license_name}]({data.license_link}). See LICENSE.md."
    return f"`{data.license}`. See LICENSE.md."


META_LICENSE_TEXT = """# Licence of these weights

The Sapiens weights were trained and released by Meta Platforms, Inc.
(https://github.com/facebookresearch/sapiens) under the licence

Creative Commons Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)
https://creativecommons.org/licenses/by-nc/4.0/legalcode

which is the text that counts. In short: you may copy, share and adapt the weights, also as part of something else, for
purposes that are not primarily commercial, if you give credit, link the licence and say what you changed. You may not
use them commercially, nor add terms that take these rights from others. They come without any warranty.

Credit: Rawal Khirodkar et al., "Sapiens: Foundation for Human Vision Models", ECCV 2024, arXiv 2408.12569.
"""
CONVERTED_NOTE = """
Changed here: tensors were renamed, fused query-key-value matrices were split into three, and the file format is
safetensors. The values that {file} of {repo} holds were kept{rounded}. Only a position table
that was resized to another image size holds interpolated values.
"""
ADAPTED_NOTE = """
Changed here: these weights were trained further, starting from {base}.
"""
CODE_NOTE = """
The Python files beside the weights are sapiens_hf, under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0), not under the licence of the weights.
"""

"""One checkpoint of the original -> one folder that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import sapiens_hf
from sapiens_hf.original import CLASS_TASKS, find_original, load_original, released_file

from .verify import compare_weights

PIPELINE_TAGS = {
    "pretraining": "image-feature-extraction",
    "encoder": "image-feature-extraction",
    "pose": "keypoint-detection",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "normal": "image-to-image",
}
LICENSE_TEXT = """# Licence of these weights

The weights of Sapiens were trained and released by Meta Platforms, Inc. (https://github.com/facebookresearch/sapiens)
under Creative Commons Attribution-NonCommercial 4.0 International (CC BY-NC 4.0):

https://creativecommons.org/licenses/by-nc/4.0/legalcode

In short, and without replacing the licence: you may share and adapt them for purposes that are not commercial, if you
give credit, link the licence and say what you changed. There is no warranty.

Credit: Rawal Khirodkar et al., "Sapiens: Foundation for Human Vision Models", ECCV 2024, arXiv 2408.12569.

Changed here: tensors were renamed, fused query-key-value matrices were split, and the file format is safetensors.
Converted from `{source}`.
"""
README_TEXT = """---
license: cc-by-nc-4.0
library_name: transformers
pipeline_tag: {tag}
{base_model}---

# {title}

Converted from `{source}` with sapiens_hf. See LICENSE.md: not for commercial use.

```python
import sapiens_hf

model = sapiens_hf.{architecture}.from_pretrained("{folder}")
processor = sapiens_hf.SapiensImageProcessor.from_pretrained("{folder}")
```
"""


def convert(
    source: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    dtype: torch.dtype | str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    **config_overrides: Any,
) -> Path:
    """Writes weights (safetensors), configuration, image processor, README and licence notice.

    Nothing is written before every tensor of the model was compared with the file, bit for bit.

    Args:
        source: File, folder or repository id, as for `load_original`.
        output: Folder to write.
        task: As for `load_original`.
        dtype: Type of the saved weights; float32 by default.
        filename: As for `load_original`.
        revision: As for `load_original`.
        overwrite: Whether to write into a folder that is not empty.
        **config_overrides: Fields of `SapiensConfig`.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder is not empty and `overwrite` is not set.
        ValueError: As `load_original`; or a tensor of the model differs from the file's.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise FileExistsError(f"{output} exists and is not an empty folder: pass overwrite=True, or another output.")
    path = find_original(source, filename, revision, {})
    model = load_original(path, task=task, dtype=dtype, **config_overrides)
    (weights,) = compare_weights(model, path)
    if not weights.passed:
        raise ValueError(
            f"{path}: the loaded weights differ from the file by up to {weights.difference}; nothing was saved."
        )
    model.save_pretrained(output)
    height, width = model.config.image_size
    sapiens_hf.SapiensImageProcessor(size={"height": height, "width": width}).save_pretrained(output)
    _write_texts(output, model, path)
    return output


def _write_texts(output: Path, model: Any, path: Path) -> None:
    row, _ = released_file(path.name)
    name = f"{row['repo']}/{row['file']}" if row else path.name
    architecture = type(model).__name__
    title = f"Sapiens {row['size']}, {row['task']}" if row else f"Sapiens, {CLASS_TASKS[architecture]}"
    base_model = f"base_model: {row['repo']}\n" if row and row.get("repo_type") != "space" else ""
    (output / "LICENSE.md").write_text(LICENSE_TEXT.format(source=name))
    readme = README_TEXT.format(
        tag=PIPELINE_TAGS[CLASS_TASKS[architecture]],
        base_model=base_model,
        title=title,
        source=name,
        architecture=architecture,
        folder=output.name,
    )
    (output / "README.md").write_text(readme)

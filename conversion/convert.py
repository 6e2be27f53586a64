"""One checkpoint of the original -> one folder that `from_pretrained` opens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sapiens_hf.hub import WeightSource, build_repository, file_sha256
from sapiens_hf.model_card import META_LICENSE, META_LICENSE_TEXT, TASK_CARDS
from sapiens_hf.original import CLASS_TASKS, find_original, load_original, released_file

from .verify import compare_weights

# What LICENSE.md says where only the format speaks for the origin.
UNKNOWN_ORIGIN_NOTE = """
`{file}` is in Meta's format, but not under a name that Meta released: whether these are their weights, or weights
trained further from them, was not found out. Weights of your own are converted with a licence of your own.

Changed here: tensors were renamed, fused query-key-value matrices were split into three, and the file format is
safetensors.
"""
UNTRAINED_NOTE = """
## Not trained

These tensors were not in the file. They start from random values and must be trained before the outputs mean anything:
{tensors}.
"""


def convert(
    source: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    dtype: torch.dtype | str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
    **config_overrides: Any,
) -> Path:
    """Writes a complete model repository: weights (safetensors), configuration, image processor, card and licence.

    Nothing is written before every tensor of the model was compared with the file, bit for bit.

    Args:
        source: File, folder or repository id, as for `load_original`.
        output: Folder to write.
        task: As for `load_original`.
        dtype: Type of the saved weights; float32 by default.
        filename: As for `load_original`.
        revision: As for `load_original`.
        license: Licence of weights of your own, as the Hub writes it, such as `"apache-2.0"`; Meta's by default.
        overwrite: Whether to write into a folder that is not empty.
        **config_overrides: Fields of `SapiensConfig`.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder is not empty and `overwrite` is not set.
        ValueError: As `load_original`; a tensor of the model differs from the file's; or `license` grants what
            Meta's does not.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise FileExistsError(f"{output} exists and is not an empty folder: pass overwrite=True, or another output.")
    path = find_original(source, filename, revision, {})
    model, loading = load_original(path, task=task, dtype=dtype, output_loading_info=True, **config_overrides)
    (weights,) = compare_weights(model, path)
    if not weights.passed:
        raise ValueError(
            f"{path}: the loaded weights differ from the file by up to {weights.difference}; nothing was saved."
        )
    row = released_file(path.name)[0] or {}
    origin = WeightSource(
        repo=row.get("repo"),
        file=row.get("file", path.name),
        revision=_commit(path),
        sha256=file_sha256(path),
        repo_type=row.get("repo_type", "model"),
    )
    title = TASK_CARDS[CLASS_TASKS[type(model).__name__]].title
    unknown = not row and license is None
    build_repository(
        model,
        None,
        output,
        name=f"Sapiens {row['size']}: {title}" if row else f"Sapiens: {title}",
        dtype=model.dtype,
        license=META_LICENSE if unknown else license,
        license_text=META_LICENSE_TEXT + UNKNOWN_ORIGIN_NOTE.format(file=path.name) if unknown else None,
        source=origin,
        overwrite=overwrite,
    )
    if loading["missing_keys"]:
        with (output / "README.md").open("a") as card:
            card.write(UNTRAINED_NOTE.format(tensors=", ".join(f"`{name}`" for name in loading["missing_keys"])))
    return output


def _commit(path: Path) -> str | None:
    """Commit of a file in the cache of huggingface_hub, which keeps each under `snapshots/COMMIT/`."""
    found = re.search(r"/snapshots/([0-9a-f]{40})/", path.absolute().as_posix())
    return found[1] if found else None

"""The upload of a run's final model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .options import RunOptions

PIPELINES = {
    "pose": "keypoint-detection",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "normal": "normal-estimation",
}
CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [sapiens, human]
---
# {name}

A [Sapiens](https://arxiv.org/abs/2408.12569) model for {task}, fine-tuned with sapiens_hf.

```python
import sapiens_hf
from transformers import pipeline

predict = pipeline("{pipeline}", model="{name}")
```

Started from: {source}. Trained on: {data}. Results on {val}:

| metric | value |
|---|---|
{rows}

`run.json` holds the options and the commit, `metrics.jsonl` the losses.
"""
# What of a run's folder is for the run alone.
PRIVATE = ["checkpoints/*", "trackers/*", "best/*", "*.partial", "*.old"]


def write_card(folder: Path, options: RunOptions, results: dict[str, float], name: str) -> Path:
    """Write the model card, README.md, of a run."""
    rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in sorted(results.items()))
    card = CARD.format(
        name=name,
        task=options.task,
        pipeline=PIPELINES[options.task],
        source=options.model_name_or_path or f"new weights ({options.model_size})",
        data=Path(options.train_data).name or options.train_data,
        val=Path(options.val_data).name if options.val_data else "no evaluation set",
        rows=rows,
    )
    path = folder / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def push_run(folder: Path, options: RunOptions, results: dict[str, float], api: Any = None) -> str:
    """Upload the final model, its processor, card, options and metrics.

    Returns:
        The repository's id.
    """
    from huggingface_hub import HfApi

    api = HfApi() if api is None else api
    name = api.create_repo(options.hub_model_id or folder.name, private=options.hub_private, exist_ok=True).repo_id
    write_card(folder, options, results, name)
    length = f"{options.num_epochs} epochs" if options.max_steps is None else f"{options.max_steps} steps"
    message = f"Sapiens {options.task} after {length}"
    api.upload_folder(repo_id=name, folder_path=str(folder), ignore_patterns=PRIVATE, commit_message=message)
    return name

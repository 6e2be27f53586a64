"""Pictures, folders, tars and tables to pretrain on, and a listener for warnings."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NARROW = [
    *("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=72"),
    *("decoder_hidden_size=24", "decoder_num_hidden_layers=1", "decoder_num_attention_heads=3"),
    "decoder_intermediate_size=40",
]


def picture(index: int, height: int = 90, width: int = 76, blocks: tuple[int, int] = (6, 5)) -> Image.Image:
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 256, (*blocks, 3), dtype=np.uint8)).resize((width, height), 3)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def write_folder(folder: Path, count: int = 9) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        picture(index, 90 + index).save(folder / f"{index:02d}.jpg")
    return folder


def write_tar(path: Path, first: int, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index in range(first, first + count):
            content = jpeg(picture(1000 + index))
            entry = tarfile.TarInfo(f"s{index:03d}.jpg")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_parquet(folder: Path, count: int = 6) -> Path:
    import datasets

    folder.mkdir(parents=True)
    table = datasets.Dataset.from_dict({"photo": [picture(2000 + i, 80) for i in range(count)]})
    half = count // 2
    table.select(range(half)).to_parquet(folder / "a.parquet")
    table.select(range(half, count)).to_parquet(folder / "b.parquet")
    return folder


def write_data(root: Path) -> Path:
    """A folder of 9 photographs, 3 tars with 12 and 2 parquet files with 6."""
    write_folder(root / "photos")
    for number, count in enumerate((5, 3, 4)):
        write_tar(root / "shards" / f"{number}.tar", 10 * number, count)
    write_parquet(root / "table")
    return root


def line(output: Path, *sources: Path | str, steps: int = 6, more: tuple[str, ...] = ()) -> list[str]:
    return [
        *("--train_data", *map(str, sources), "--output_dir", str(output), "--image_size", "64", "48"),
        *("--model_size", "tiny", "--config_overrides", *NARROW, "--batch_size", "4", "--num_workers", "0"),
        *("--max_steps", str(steps), "--log_every", "1", "--save_every", "3", "--warmup_steps", "2"),
        *("--learning_rate", "1e-3", "--lr_base_batch", "4", "--pictures_every", "4", *more),
    ]


class Listener(logging.Handler):
    """Collects what a logger says; transformers' loggers do not propagate."""

    def __init__(self, logger):
        super().__init__()
        self.logger, self.messages = logger, []

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        self.logger.addHandler(self)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)


class Listed:
    """A source at hand of given contents."""

    name = "list"

    def __init__(self, contents: list[bytes]):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def raw(self, index):
        return f"list[{index}]", self.contents[index]

"""Pretraining's images: damaged files, photographs of phones, rows without an image, bad ones in a row, signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pretraining_files import Listed, Listener, picture

from training import pretrain_data
from training.checkpoints import read_metrics
from training.curate_humans import upright
from training.data import StepPlan
from training.pretrain_data import (
    BadImageError,
    CropOptions,
    ImageLoader,
    TooManyBadImagesError,
    crop_image,
    open_image,
)
from training.pretrain_sources import Mixture, StreamSource

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = CropOptions((64, 48))


def encoded(kind: str, frames: int = 1, **options) -> bytes:
    file = io.BytesIO()
    first, *others = [picture(index) for index in range(frames)]
    first.save(file, kind, **options, **({"save_all": True, "append_images": others} if others else {}))
    return file.getvalue()


def used(content: bytes) -> np.ndarray:
    return crop_image(open_image(content, "x", OPTIONS), "x", OPTIONS, np.random.default_rng(0))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_files_cut_anywhere_are_bad_images(kind, frames):
    """What Pillow makes of them is a BadImageError, whatever it raises itself, in training and in curation."""
    content = encoded(kind, frames)
    reasons = set()
    for cut in np.linspace(1, len(content) - 1, 60).astype(int).tolist():
        for use in (used, lambda cut_off: upright(cut_off, "x", OPTIONS)):
            try:
                use(content[:cut])
            except BadImageError as error:
                reasons.add(error.reason)
    assert "unreadable" in reasons and reasons <= {"unreadable", "animated"}


@pytest.mark.parametrize("error", [IndexError, TypeError, SyntaxError, OSError, EOFError])
def test_errors_of_the_count_of_frames(error, monkeypatch):
    """Of a damaged GIF the frames cannot be counted: the file is opened, and the error comes later."""
    from PIL.GifImagePlugin import GifImageFile

    def broken(self):
        raise error("at byte 7")

    monkeypatch.setattr(GifImageFile, "n_frames", property(broken))
    with pytest.raises(BadImageError, match=rf"x: unreadable \({error.__name__}: at byte 7"):
        used(encoded("GIF"))


def test_the_first_frame_of_a_phones_photograph_is_used():
    """MPO: a JPEG with further JPEGs behind it, as phones write for depth, gain maps and bursts."""
    content, plain = encoded("MPO", 2, quality=90), encoded("JPEG", quality=90)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert np.array_equal(used(content), used(plain))
    assert np.array_equal(used(content[:-200]), used(plain))  # what is behind the photograph does not matter
    fast = CropOptions((64, 48), fast_decode=True)
    image = open_image(content, "x", fast)
    assert crop_image(image, "x", fast, np.random.default_rng(0)).shape == (64, 48, 3)
    assert np.array_equal(upright(content, "x", OPTIONS), upright(plain, "x", OPTIONS))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        with pytest.raises(BadImageError, match="x: animated .3 frames"):
            open_image(encoded(kind, 3), "x", OPTIONS)
        assert used(encoded(kind)).shape == (64, 48, 3)


# -------------------------------------------------------------------------------------------------------------- loader
def streamed(contents: list[bytes | None]) -> StreamSource:
    """A stream of given contents in four shards."""

    def rows(shards):
        for shard in shards:
            for place in range(shard, len(contents), 4):
                yield {"image": contents[place], "name": str(place)}

    return StreamSource(datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2, 3]}), "stream")


@pytest.fixture
def heard():
    with Listener(pretrain_data.logger) as listener:
        yield listener.messages


def loader_of(source, batch_size: int, workers: int = 0, num_samples: int | None = None, **plan) -> ImageLoader:
    mixture = Mixture([source], samples_per_epoch=num_samples)
    return ImageLoader(mixture, OPTIONS, 16, StepPlan(len(mixture), batch_size, **plan), workers)


@pytest.mark.parametrize("source", [Listed, streamed])
def test_rows_without_an_image_are_counted_and_named(source, heard):
    contents = [encoded("JPEG")] * 8
    contents[3] = None
    loader = loader_of(source(contents), 4, num_samples=8)
    assert len(list(loader)) == 2 and loader.counts["unreadable"] == loader.counts["replaced"] == 1
    (message,) = heard
    assert "[3]: unreadable (its row holds no image)" in message


@pytest.mark.parametrize("source", [Listed, streamed])
def test_what_comes_again_is_counted(source):
    loader = loader_of(source([encoded("JPEG")] * 3), 2, num_samples=20)
    assert len(list(loader)) == 10 and loader.counts["repeated"] == 17


@pytest.mark.parametrize("source", [Listed, streamed])
def test_images_that_follow_stand_in_for_bad_ones_in_a_row(source, heard):
    """Two good images of 64: batches are made of those that come next, the same in workers and after a restart."""
    contents = [b"broken"] * 64
    contents[20], contents[41] = encoded("JPEG"), encoded("PNG")
    good = [f"{source(contents).name}[{index}]" for index in (20, 41)]
    plan = dict(num_samples=64, num_accumulated=2, seed=2, num_epochs=2)
    loader = loader_of(source(contents), 2, **plan)
    plain = list(loader)
    assert len(plain) == 64 and {name for batch in plain for name in batch["name"]} == set(good)
    assert loader.counts["unreadable"] == loader.counts["replaced"] == len(heard) == 124
    workers = list(loader_of(source(contents), 2, 2, **plan))
    later = list(loader_of(source(contents), 2, **plan, start_step=5))
    for one, two in [*zip(plain, workers, strict=True), *zip(plain[10:], later, strict=True)]:
        assert one["name"] == two["name"]
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["noise"], two["noise"])
    assert len({batch["image"].numpy().tobytes() for batch in plain}) == 64  # other crops of the same images


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_alone_end_the_run_counted_and_named(workers, heard, monkeypatch):
    monkeypatch.setattr(pretrain_data, "MAX_FOLLOWING", 20)
    contents = [encoded("GIF", 2), *[b"broken"] * 6]
    loader = loader_of(Listed(contents), 2, workers)
    message = r"nor the 20 that follow \(7 different ones: unreadable 6, animated 1; the last: list\[\d\]: "
    with pytest.raises(TooManyBadImagesError, match=message):
        list(loader)
    assert loader.counts == {"unreadable": 6, "animated": 1}
    assert {text.split(": ")[1] for text in heard} == {f"list[{index}]" for index in range(7)} and len(heard) == 7


def test_an_error_ends_the_process_while_workers_live():
    """An error that nobody catches holds on to the loader, whose workers do not listen to SIGTERM."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from test_pretraining_images import Listed, encoded, loader_of

loader = loader_of(Listed([encoded("JPEG")] * 40), 2, 1)
batches = iter(loader)
next(batches)
raise KeyError("an error of the training step")
"""
    command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.strip().endswith("KeyError: 'an error of the training step'")


def test_workers_leave_signals_to_the_main_process(tmp_path):
    """SIGTERM to the whole process group, as launchers send it: the run ends after its step, with a checkpoint."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        picture(index).save(folder / f"{index}.jpg")
    run = tmp_path / "run"
    widths = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=72"]
    widths += ["decoder_hidden_size=24", "decoder_num_hidden_layers=1", "decoder_num_attention_heads=3"]
    command = [sys.executable, str(ROOT / "training" / "pretrain_mae.py"), "--train_data", str(folder)]
    command += ["--output_dir", str(run), "--image_size", "64", "48", "--model_size", "tiny", "--config_overrides"]
    command += [*widths, "--batch_size", "4", "--num_workers", "2", "--max_steps", "100000", "--log_every", "1"]
    command += ["--save_every", "100000", "--pictures_every", "0", "--warmup_steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    (saved,) = (run / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) == read_metrics(metrics)[-1]["step"] >= 3, errors.decode()
    assert "Traceback" not in errors.decode()

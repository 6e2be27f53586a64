"""Masked pretraining as a program: order, crops and masks, restarts, bad images, pictures, loading and saving."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import original_files
import pytest
import torch
from PIL import Image
from pretraining_files import NARROW, Listed, Listener, jpeg, line, picture, write_data, write_folder
from safetensors.torch import load_file

import sapiens_hf
from sapiens_hf import SapiensConfig, SapiensForPreTraining
from training import loop, pretrain_data
from training.build import MODEL_CLASSES
from training.checkpoints import read_metrics
from training.data import StepPlan
from training.loop import TrainingStoppedError
from training.mae_cost import PAPER_BATCHES, block_macs, cost_rows, mae_flops, mae_parameters, measured_peak_tflops
from training.mae_cost import main as print_costs
from training.mae_pictures import picture_grid, reconstruct, send_picture
from training.pretrain_data import (
    BadImageError,
    CropOptions,
    ImageLoader,
    MaskedInputs,
    TooManyBadImagesError,
    check_share,
    crop_image,
    open_image,
    random_box,
)
from training.pretrain_mae import main as pretrain
from training.pretrain_sources import (
    Mixture,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def losses(run: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_metrics(run / "metrics.jsonl")]


# ------------------------------------------------------------------------------------------------------- the whole run
def test_killed_and_resumed_with_other_workers_equals_a_run_left_alone(data, tmp_path, threads):
    """A mixture of photographs, a table and a stream of shards, killed with SIGKILL: the same losses and weights."""
    steps = 60
    sources = (data / "photos", data / "table", data / "shards")
    more = ("--weights", "0.3", "0.2", "0.5", "--samples_per_epoch", "25")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "training" / "pretrain_mae.py"), *line(killed, *sources, steps=steps, more=more)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 8) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 8 <= len(metrics.read_text().splitlines()) < steps

    resumed = line(killed, *sources, steps=steps, more=(*more, "--resume_from_checkpoint", "latest"))
    resumed[resumed.index("--num_workers") + 1] = "2"
    pretrain(resumed)
    pretrain(line(whole, *sources, steps=steps, more=more))
    assert losses(killed) == losses(whole) and [step for step, _ in losses(whole)] == list(range(1, steps + 1))
    first, second = (load_file(run / "model.safetensors") for run in (killed, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)
    ends = [read_metrics(run / "metrics.jsonl")[-1] for run in (killed, whole)]
    assert ends[0]["images"] == ends[1]["images"] == 4 * steps and ends[0]["repeated"] == ends[1]["repeated"] > 0
    assert losses(whole)[-1][1] < losses(whole)[0][1]
    for name in (4, 60):
        with Image.open(whole / "pictures" / f"step-{name:08d}.png") as grid:
            assert grid.size == (3 * 48 + 2 * 4, 4 * 64 + 3 * 4)


def test_the_result_loads_into_every_task(data, tmp_path):
    pretrain(line(tmp_path, data / "photos", steps=2))
    trained = load_file(tmp_path / "model.safetensors")
    for task, name in MODEL_CLASSES.items():
        deconv, conv = ([12, 8, 8, 8], [6]) if task == "depth" else ([12], [10])
        heads = dict(deconv_out_channels=deconv, deconv_kernel_sizes=[4] * len(deconv))
        heads |= dict(conv_out_channels=conv, conv_kernel_sizes=[1])
        model = getattr(sapiens_hf, name).from_pretrained(tmp_path, use_cls_token=False, image_size=[96, 80], **heads)
        assert model.config.image_size == [96, 80] and model.model.embeddings.position_embeddings.shape == (1, 30, 32)
        key = "model.encoder.layers.1.mlp.fc1.weight"
        assert torch.equal(model.state_dict()[key], trained[key])
        assert torch.isfinite(model(torch.zeros(1, 3, 96, 80))[0]).all()


def test_pictures_reach_the_trackers(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    pretrain(line(run, data / "photos", steps=4, more=("--report_to", "tensorboard")))
    files = [EventAccumulator(str(path)).Reload() for path in run.rglob("events.out.tfevents.*")]
    (shown,) = [image for file in files for tag in file.Tags()["images"] for image in file.Images(tag)]
    with Image.open(run / "pictures" / "step-00000004.png") as saved:
        assert shown.step == 4 and np.array_equal(
            np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), saved
        )

    sent = []
    for name in ("wandb", "another"):
        tracker = type(
            "Tracker", (), {"name": name, "log_images": lambda _, values, step: sent.append((values, step))}
        )
        send_picture(tracker(), Image.new("RGB", (5, 7)), 3)
    ((values, step),) = sent
    assert values["reconstructions"].shape == (1, 7, 5, 3) and step == 3


@pytest.mark.parametrize("kind", ["encoder", "pretraining"])
def test_goes_on_from_original_files(kind, data, tmp_path):
    """An encoder gets a new decoder; a full file keeps its own. All else is as in the file when nothing is learned."""
    spec = original_files.NARROW[kind]
    writer = original_files.write_clean_pth if kind == "encoder" else original_files.write_torchscript
    path = writer(tmp_path / ("a_clean.pth" if kind == "encoder" else "a_torchscript.pt2"), spec)
    given = line(tmp_path / "run", data / "photos", steps=1, more=("--model_name_or_path", str(path)))
    del given[given.index("--image_size") : given.index("--image_size") + 3]
    place = given.index("--config_overrides") + 1
    decoder = ["decoder_hidden_size=16", "decoder_num_hidden_layers=1", "decoder_intermediate_size=20"]
    heads = ["num_attention_heads=3", "decoder_num_attention_heads=2"]
    given[place : place + len(NARROW)] = heads + (decoder if kind == "encoder" else [])
    given[given.index("--learning_rate") + 1] = "0"
    pretrain(given)
    model = SapiensForPreTraining.from_pretrained(tmp_path / "run")
    assert model.config.image_size == [64, 64] and len(model.decoder.layers) == (1 if kind == "encoder" else 2)
    state = original_files.random_state(spec)
    prefix = "" if any(name.startswith("layers.") for name in state) else "backbone."
    fc1 = model.model.encoder.layers[1].mlp.fc1.weight
    torch.testing.assert_close(fc1, state[f"{prefix}layers.1.ffn.layers.0.0.weight"], rtol=0, atol=0)
    again = line(tmp_path / "again", data / "photos", steps=1, more=("--model_name_or_path", str(tmp_path / "run")))
    again[again.index("--config_overrides") : again.index("--batch_size")] = []
    pretrain([*again, "--gradient_checkpointing", "--attn_implementation", "eager", "--peak_tflops", "0.1"])
    assert read_metrics(tmp_path / "again" / "metrics.jsonl")[-1]["share_of_peak"] > 0
    config = SapiensConfig.from_pretrained(tmp_path / "again")
    assert config.image_size == [64, 48]  # both tables were made anew for the other grid


def test_gradients_that_are_not_finite_are_skipped_and_counted(data, tmp_path, monkeypatch):
    real, calls = MaskedInputs.__call__, []

    def poisoned(self, batch):
        inputs = real(self, batch)
        calls.append(0)
        if len(calls) in (3, 4):
            inputs["pixel_values"][0, 0, 0, 0] = float("nan")
        return inputs

    monkeypatch.setattr(MaskedInputs, "__call__", poisoned)
    with Listener(loop.logger) as heard:
        pretrain(line(tmp_path / "run", data / "photos", more=("--save_every", "2", "--pictures_every", "0")))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [entry["loss"] is not None for entry in lines] == [True, True, False, False, True, True]
    assert lines[-1]["skipped_steps"] == 2 and "skipped_steps" not in lines[1]
    assert sum("The step is skipped" in message and ".jpg" in message for message in heard.messages) == 2
    saved = [load_file(tmp_path / "run" / "checkpoints" / f"step-{s:08d}" / "model.safetensors") for s in (5, 6)]
    assert all(tensor.isfinite().all() for state in saved for tensor in state.values())
    assert not (tmp_path / "run" / "pictures").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--crop_area", "0.5"), "two shares"),
        (("--crop_area", "0.9", "0.5"), "two shares"),
        (("--max_bad_share", "1"), "share below 1"),
        (("--lora_r", "4"), "--lora_r is for fine-tuning"),
        (("--no_augment",), "--augment is for fine-tuning"),
        (("--model_size", "0.3B"), "Did you mean '0.3b'"),
        (("--weights", "1", "2"), "expected 1 positive"),
    ],
)
def test_options_that_cannot_work(change, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(line(tmp_path / "run", data / "photos", more=change))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------ crops and masks
OPTIONS = CropOptions((64, 48))


def test_crop_is_pillows_bicubic_of_a_box():
    image = picture(3, 150, 110)
    for seed in range(5):
        left, top, width, height = random_box(150, 110, OPTIONS, np.random.default_rng(seed))
        want = np.asarray(image.crop((left, top, left + width, top + height)).resize((48, 64), Image.BICUBIC))
        rng = np.random.default_rng(seed)
        got = crop_image(image, "a", OPTIONS, rng)
        probe = np.random.default_rng(seed)
        random_box(150, 110, OPTIONS, probe)
        is_flipped = probe.random() < 0.5
        assert np.array_equal(got, want[:, ::-1] if is_flipped else want)


def test_boxes_have_the_originals_distribution():
    square = CropOptions((64, 64))
    boxes = np.array([random_box(300, 400, square, np.random.default_rng(seed)) for seed in range(2000)])
    left, top, width, height = boxes.T
    area, aspect = width * height / (300 * 400), width / height
    assert area.min() > 0.19 and area.max() <= 1.0 and 0.74 < aspect.min() and aspect.max() < 1.35
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 400).all() and (top + height <= 300).all()
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    blank = Image.new("RGB", (400, 300))
    rows, columns = np.array(
        [RandomResizedCrop.get_params(blank, (0.2, 1), (3 / 4, 4 / 3))[2:] for _ in range(2000)]
    ).T
    for ours, theirs in ((area, rows * columns / 120_000), (np.log(aspect), np.log(columns / rows))):
        assert abs(ours.mean() - theirs.mean()) < 4 * ours.std() / np.sqrt(1000)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
    tall = np.array([random_box(400, 300, OPTIONS, np.random.default_rng(seed)) for seed in range(200)])
    assert abs(np.log(tall[:, 2] / tall[:, 3] / 0.75).mean()) < 0.06  # relative to the network's 3:4
    assert random_box(10, 1000, square, np.random.default_rng(0))[2:] == (13, 10)
    assert random_box(1000, 10, square, np.random.default_rng(0))[2:] == (10, 13)
    assert random_box(1000, 10, square, np.random.default_rng(0))[:2] == (0, 493)


def test_exif_other_modes_and_fast_decode(tmp_path):
    whole = CropOptions((64, 48), area=(1.0, 1.0), aspect=(1.0, 1.0), flip_prob=0.0)
    upright = picture(4, 128, 96)
    turned = Image.Exif()
    turned[0x0112] = 6
    content = jpeg(upright.transpose(Image.ROTATE_90), exif=turned, quality=100, subsampling=0)
    rng = np.random.default_rng
    got = crop_image(Image.open(io.BytesIO(content)), "a", whole, rng(0)).astype(int)
    want = crop_image(upright, "a", whole, rng(0)).astype(int)
    assert np.abs(got - want).max() < 12
    grey = crop_image(upright.convert("L"), "a", whole, rng(0))
    assert (grey == grey[..., :1]).all() and grey.shape == (64, 48, 3)

    large = picture(5, 1024, 768)
    content = jpeg(large, quality=95)
    fast = CropOptions((64, 48), fast_decode=True)
    for seed in range(4):
        shrunk = Image.open(io.BytesIO(content))
        quick = crop_image(shrunk, "a", fast, rng(seed)).astype(int)
        slow = crop_image(Image.open(io.BytesIO(content)), "a", OPTIONS, rng(seed)).astype(int)
        assert shrunk.width < 768 and np.abs(quick - slow).mean() < 2 and np.abs(quick - slow).max() < 25


def bad_images() -> dict[str, bytes]:
    frames = [picture(i) for i in range(3)]
    animated, tiff = io.BytesIO(), io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(tiff, "PNG")
    good = jpeg(picture(1))
    return {
        "unreadable": good[: len(good) // 2],
        "too_small": tiff.getvalue(),
        "too_large": jpeg(Image.new("RGB", (400, 300))),
        "cmyk": jpeg(picture(2).convert("CMYK")),
        "animated": animated.getvalue(),
    }


def test_bad_images_are_told_apart(monkeypatch):
    options = CropOptions((64, 48), min_side_px=48, max_pixels=100_000)
    for reason, content in bad_images().items():
        with pytest.raises(BadImageError, match=f"x.jpg: {reason} ") as caught:
            crop_image(open_image(content, "x.jpg", options), "x.jpg", options, np.random.default_rng(0))
        assert caught.value.reason == reason
    with pytest.raises(BadImageError, match="no.jpg: unreadable"):
        open_image(Path("no.jpg"), "no.jpg", options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImageError, match="too_large.*[Bb]omb"):
        open_image(jpeg(picture(1)), "bomb.jpg", options)


def test_bad_images_are_replaced_counted_and_named(data, tmp_path):
    """Two bad images of eleven: named, replaced by others of their batch, in every epoch, whatever reads them."""
    folder = write_folder(tmp_path / "photos")
    bad = bad_images()
    (folder / "cut.jpg").write_bytes(bad["unreadable"])
    (folder / "paper.jpg").write_bytes(bad["cmyk"])
    run = tmp_path / "run"
    with Listener(pretrain_data.logger) as heard:
        pretrain(line(run, folder, steps=6))
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["bad_images"] == last["replaced"] and 4 <= last["bad_images"] <= 5 and last["images"] == 24
    assert sum("cut.jpg: unreadable" in m for m in heard.messages) >= 2
    assert sum("paper.jpg: cmyk" in m for m in heard.messages) >= 2
    state = json.loads((run / "checkpoints" / "step-00000006" / "trainer_state.json").read_text())["counts"]
    assert state["unreadable"] + state["cmyk"] == last["bad_images"]

    with pytest.raises(TooManyBadImagesError, match=r"of \d+ images could not be used .*--max_bad_share"):
        pretrain(line(tmp_path / "strict", folder, steps=60, more=("--max_bad_share", "0.002")))
    assert issubclass(TooManyBadImagesError, TrainingStoppedError)
    check_share({"images": 10, "cmyk": 10}, 0.01)  # a handful at the start says nothing yet
    with pytest.raises(TooManyBadImagesError, match="21 of 2000 images.*cmyk 20, animated 1"):
        check_share({"images": 2000, "cmyk": 20, "animated": 1}, 0.01)


def batches(contents: list[bytes], batch_size: int, workers: int = 0, **plan) -> tuple[ImageLoader, list[dict]]:
    plan = StepPlan(len(contents), batch_size, **plan)
    loader = ImageLoader(Mixture([Listed(contents)]), OPTIONS, 16, plan, workers)
    return loader, list(loader)


def test_batches_follow_from_seed_and_place_alone():
    contents = [jpeg(picture(i)) for i in range(6)]
    contents[2] = b"broken"
    _, plain = batches(contents, 4, num_epochs=3, seed=3)
    _, workers = batches(contents, 4, 2, num_epochs=3, seed=3)
    _, later = batches(contents, 4, num_epochs=3, seed=3, start_step=2)
    for one, two in [*zip(plain, workers, strict=True), *zip(plain[2:], later, strict=True)]:
        assert one["name"] == two["name"]
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["noise"], two["noise"])
    assert plain[0]["image"].shape == (4, 3, 64, 48) and plain[0]["image"].dtype == torch.uint8
    assert (plain[0]["noise"].sort(dim=1).values == torch.arange(12) / 12).all()
    noises = torch.cat([batch["noise"] for batch in plain])
    assert len(noises.unique(dim=0)) == len(noises)
    assert "list[2]" not in sum([batch["name"] for batch in plain], [])


def test_a_batch_of_bad_images_takes_spare_ones_or_stops():
    good, bad = jpeg(picture(1)), b"broken"
    loader, made = batches([bad, good, bad, bad, good], 1)
    assert len(made) == 5 and dict(loader.counts) == {"images": 5, "replaced": 3, "repeated": 0, "unreadable": 3}
    taken = loader.take_counts()
    assert taken[:2] == [5, 3] and sum(loader.take_counts()) == 0 and loader.waited_s > 0
    with pytest.raises(TooManyBadImagesError, match="a whole batch nor the spare"):
        batches([bad, bad, bad], 2)


# ------------------------------------------------------------------------------------------------ pictures and costs
def tiny_model(norm_pix_loss: bool) -> SapiensForPreTraining:
    torch.manual_seed(0)
    sizes = {key: int(value) for key, value in (text.split("=") for text in NARROW)}
    config = SapiensConfig(use_cls_token=True, image_size=[64, 48], norm_pix_loss=norm_pix_loss, **sizes)
    return SapiensForPreTraining(config)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_rebuilds_the_image(norm_pix_loss, monkeypatch):
    model = tiny_model(norm_pix_loss).train()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 48), "noise": torch.rand(2, 12)}
    rebuilt, mask = reconstruct(model, inputs)
    assert model.training and mask.shape == (2, 1, 64, 48) and mask.mean().item() == pytest.approx(0.75)
    seen = (mask == 0).expand_as(rebuilt)
    assert torch.equal(rebuilt[seen], inputs["pixel_values"][seen])
    assert not torch.allclose(rebuilt, inputs["pixel_values"])

    patches = model.patchify(inputs["pixel_values"])
    truth = patches
    if norm_pix_loss:
        truth = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(model.decoder, "forward", lambda *_, **__: truth)

    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    perfect, _ = reconstruct(Wrapped(model), inputs)
    torch.testing.assert_close(perfect, inputs["pixel_values"], rtol=1e-4, atol=1e-4)


def test_grid_of_pictures():
    images = [np.full((2, 6, 5, 3), level, np.uint8) for level in (10, 200)]
    mask = np.zeros((2, 6, 5))
    mask[:, :3] = 1
    grid = np.asarray(picture_grid(images[0], mask, images[1], gap_px=2))
    assert grid.shape == (6 * 2 + 2, 5 * 3 + 4, 3)
    assert (grid[:6, :5] == 10).all() and (grid[:3, 7:12] == 100).all() and (grid[3:6, 7:12] == 10).all()
    assert (grid[:6, 14:] == 200).all() and (grid[6:8] == 255).all()


def test_inputs_are_the_processors(data):
    processor = sapiens_hf.SapiensImageProcessor(size={"height": 64, "width": 48})
    image = torch.from_numpy(np.asarray(picture(1, 64, 48)).copy()).permute(2, 0, 1)
    inputs = MaskedInputs(processor.image_mean, processor.image_std)
    made = inputs({"image": image[None], "noise": torch.rand(1, 12)})
    want = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made["pixel_values"], want, rtol=1e-5, atol=1e-5)
    assert np.array_equal(inputs.grey_levels(made["pixel_values"])[0], image.permute(1, 2, 0).numpy())


def test_costs_are_the_papers(capsys):
    """Parameters of table 2; multiply-adds of the encoder on all tokens, counted independently of this formula."""
    published = {"0.3b": (335_532_288, 2.066), "0.6b": (664_278_528, 3.957)}
    published |= {"1b": (1_169_238_784, 6.707), "2b": (2_162_608_768, 11.799)}
    for size, (parameters, tera_macs) in published.items():
        config = SapiensConfig.from_size(size, task="pretraining")
        assert mae_parameters(config) == parameters
        width, depth = config.hidden_size, config.num_hidden_layers
        macs = depth * block_macs(4097, width, config.intermediate_size) + 4096 * 768 * width
        assert macs / 1e12 == pytest.approx(tera_macs, abs=1e-3)
        assert mae_flops(config) == 3 * mae_flops(config, training=False) < 6 * macs
    small = tiny_model(True)
    assert mae_parameters(small.config) == sum(parameter.numel() for parameter in small.parameters())

    from torch.utils.flop_counter import FlopCounterMode

    small.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        small(torch.randn(1, 3, 64, 48))
    assert counter.get_total_flops() == mae_flops(small.config, training=False)

    (row,) = [row for row in cost_rows(1000, 0.5) if row["size"] == "1b"]
    assert row["gpu_hours"] == pytest.approx(
        300e6 * mae_flops(SapiensConfig.from_size("1b", "pretraining")) / 5e14 / 3600
    )
    assert row["steps"] == pytest.approx(300e6 / PAPER_BATCHES["1b"])
    print_costs(["--share", "0.4"])
    assert "| 2b |" in capsys.readouterr().out
    assert 0 < measured_peak_tflops(torch.device("cpu"), torch.float32, size=64, seconds=0.01) < 100

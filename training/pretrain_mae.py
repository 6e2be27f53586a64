r"""Pretrain Sapiens as a masked autoencoder on pictures alone.

    accelerate launch training/pretrain_mae.py --train_data photos/ --model_size 0.3b --mixed_precision bf16 \
        --batch_size 64 --num_epochs 1600 --output_dir runs/mae

    python -m training.pretrain_mae --demo --output_dir runs/demo     # on a CPU, nothing to download

docs/pretraining.md goes from a folder of photographs to many nodes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the checkout's root comes in the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training  # noqa: F401  # before accelerate: it says how to install what is missing

import torch  # noqa: E402
from accelerate import Accelerator, PartialState  # noqa: E402

from sapiens_hf import SapiensConfig, SapiensForPreTraining, SapiensImageProcessor, load_original  # noqa: E402
from sapiens_hf.configuration_sapiens import SIZES  # noqa: E402
from sapiens_hf.original import build_whole  # noqa: E402
from training.build import TINY, recompute_activations  # noqa: E402
from training.checkpoints import TrainerState  # noqa: E402
from training.data import StepPlan  # noqa: E402
from training.loop import Job, Monitor, Run, fit, start  # noqa: E402
from training.mae_cost import mae_flops, measured_peak_tflops  # noqa: E402
from training.mae_pictures import picture_grid, reconstruct, save_picture, send_picture  # noqa: E402
from training.options import RunOptions, _option, check_names, parse_options, parse_values  # noqa: E402
from training.pretrain_data import COUNTS, REASONS, CropOptions, ImageLoader, MaskedInputs, check_share  # noqa: E402
from training.pretrain_sources import ImagePlan, Mixture, open_source  # noqa: E402
from training.pretrain_streams import STREAM_COUNTS  # noqa: E402

PICTURES_FOLDER = "pictures"
# The decoder of the smallest models, in the proportion of the real one to a 0.3b encoder.
TINY_DECODER = dict(decoder_hidden_size=96, decoder_num_hidden_layers=3, decoder_num_attention_heads=3)
TINY_DECODER |= dict(decoder_intermediate_size=384)
# Options of the fine-tuning scripts that would be ignored here, and so are refused.
NOT_OURS = ("val_data", "max_train_samples", "max_eval_samples", "columns", "skip_bad_samples", "augment")
NOT_OURS += ("augmentation", "freeze_layers", "lora_r", "lora_alpha")
WARMUP_SHARE = 40 / 1600  # epochs of warm-up of the original's schedule


@dataclass(frozen=True)
class PretrainingOptions(RunOptions):
    """Options of pretrain_mae.py. Where nothing is said the original's recipe holds."""

    train_data: list[str] = _option(
        [], "folders of images, .tar or .parquet shards, `datasets` ids, synthetic:SEED:COUNT:HxW"
    )
    weights: list[float] = _option([], "shares of the sources in an epoch; default: by their sizes")
    image_column: str | None = _option(
        None, "column of the images in a table, ending of their names in a tar; default: found"
    )
    max_bad_share: float = _option(0.01, "share of images, and of a stream's shards, that may be unusable")
    min_side_px: int | None = _option(None, "shorter images are not used; default: the shorter side of the input")
    max_pixels: int = _option(80_000_000, "larger images are not used")
    crop_area: list[float] = _option([0.2, 1.0], "smallest and largest share of an image in a crop")
    fast_decode: bool = _option(False, "shrink large JPEGs while decoding: faster, not the same pixels")
    pictures_every: int = _option(1000, "steps between grids of reconstructions; 0: none")
    num_pictures: int = _option(8, "images in a grid")
    peak_tflops: float | None = _option(None, "of one device, for the share of peak; default: measured on GPUs")

    learning_rate: float = _option(2.4e-3, "at lr_base_batch, at its highest")
    lr_base_batch: int = _option(4096, "global batch for which learning_rate is meant; it is scaled to the real one")
    weight_decay: float = _option(0.05, "of AdamW, without biases, norms, tokens and position tables")
    adam_betas: list[float] = _option([0.9, 0.95], "the two betas of AdamW")
    layer_decay_rate: float | None = _option(None, "pretraining has none")
    schedule: str = _option("cosine_by_step", "see training.optim")
    warmup_steps: int | None = _option(None, "steps of linear warm-up; default: 1/40 of the run")  # type: ignore[assignment]
    warmup_start_factor: float = _option(1e-4, "factor on the learning rate in the first step")
    num_epochs: int = _option(1600, "how often the data set is seen")
    loss_jump_factor: float = _option(0.0, "a loss so much larger than the one before is not used; 0: always used")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run from command-line arguments; returns the last loss."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--demo" in arguments:
        from training.pretrain_demo import main as demo

        return demo([argument for argument in arguments if argument != "--demo"])
    return pretrain(parse_options(PretrainingOptions, arguments))


def pretrain(options: PretrainingOptions) -> dict[str, float]:
    """Build everything a run needs and fit."""
    check(options)
    mixture = Mixture(
        [
            open_source(
                source,
                options.train_split,
                options.streaming,
                options.seed,
                options.image_column,
                options.max_bad_share,
            )
            for source in options.train_data
        ],
        options.weights,
        options.samples_per_epoch,
    )
    accelerator = start(options)
    if options.warmup_steps is None:
        plan = StepPlan(
            len(mixture),
            options.batch_size,
            accelerator.num_processes,
            num_accumulated=options.gradient_accumulation_steps,
            num_epochs=options.num_epochs,
            max_steps=options.max_steps,
        )
        options = replace(options, warmup_steps=round(WARMUP_SHARE * plan.num_steps))
    return fit(options, make_job(options, mixture, accelerator), accelerator)


def check(options: PretrainingOptions) -> None:
    """Refuse options that cannot work, before data is read.

    Raises:
        ValueError: names the option.
    """
    usual = PretrainingOptions()
    for name in NOT_OURS:
        if getattr(options, name) != getattr(usual, name):
            raise ValueError(f"--{name} is for fine-tuning; pretraining does not read it.")
    if not options.model_name_or_path:
        check_names("model size", [options.model_size], [*SIZES, "tiny"], "--model_size")
    if len(options.crop_area) != 2 or not 0 < options.crop_area[0] <= options.crop_area[1] <= 1:
        raise ValueError(f"--crop_area takes two shares, e.g. 0.2 1.0; got {options.crop_area}.")
    if not 0 <= options.max_bad_share < 1:
        raise ValueError(f"--max_bad_share is {options.max_bad_share}; expected a share below 1.")


def build_model(options: PretrainingOptions) -> SapiensForPreTraining:
    """The model in float32: a new one of a size, one of Meta's files (with or without decoder), or a folder of ours.

    Raises:
        ValueError: if a size or a field is unknown, or a checkpoint does not fit.
    """
    known = [field.name for field in fields(SapiensConfig)]
    overrides = parse_values(options.config_overrides, known, "--config_overrides")
    if options.image_size:
        overrides["image_size"] = list(options.image_size)
    kwargs: dict[str, Any] = {}
    if options.attn_implementation:
        kwargs["attn_implementation"] = options.attn_implementation
    torch.manual_seed(options.seed)  # of the weights that are new, which may be a decoder
    source = options.model_name_or_path
    if source and SapiensForPreTraining._is_original_source(source):
        model = load_original(source, task="pretraining", dtype=torch.float32, **overrides, **kwargs)
    elif source:
        model = SapiensForPreTraining.from_pretrained(source, dtype=torch.float32, **overrides, **kwargs)
    else:
        if options.model_size == "tiny":
            config = SapiensConfig(**{**TINY, **TINY_DECODER, "use_cls_token": True, **overrides})
        else:
            config = SapiensConfig.from_size(options.model_size, task="pretraining", **overrides)
        model = build_whole(SapiensForPreTraining, config, torch.float32, options.attn_implementation)
    model.train()
    if options.gradient_checkpointing:
        recompute_activations(model)
    return model


def make_job(options: PretrainingOptions, mixture: Mixture, accelerator: Accelerator) -> Job:
    """Model, loader, inputs and what is counted, of a run."""
    model = build_model(options)
    height, width = model.config.image_size
    processor = SapiensImageProcessor(size={"height": height, "width": width})
    crop = CropOptions(
        (height, width),
        area=(options.crop_area[0], options.crop_area[1]),
        min_side_px=min(height, width) if options.min_side_px is None else options.min_side_px,
        max_pixels=options.max_pixels,
        fast_decode=options.fast_decode,
    )
    inputs = MaskedInputs(processor.image_mean, processor.image_std)
    monitor = PretrainingMonitor(options, model.config, inputs, accelerator)

    def make_loader(plan: StepPlan) -> ImageLoader:
        is_cuda = accelerator.device.type == "cuda"
        monitor.loader = ImageLoader(mixture, crop, model.config.patch_size, plan, options.num_workers, is_cuda)
        return monitor.loader

    # The loop asks `samples` for its length only, since the job brings its own loader.
    return Job(model, processor, mixture, None, make_loader=make_loader, to_inputs=inputs, monitor=monitor)  # type: ignore[arg-type]


class PretrainingMonitor(Monitor):
    """Counts images, stops at too many bad ones, measures speed and draws reconstructions."""

    loader: ImageLoader

    def __init__(self, options: PretrainingOptions, config: SapiensConfig, inputs: MaskedInputs, accelerator: Any):
        self.options, self.inputs = options, inputs
        self.num_patches = config.grid_size[0] * config.grid_size[1]
        self.flops, self.num_processes = mae_flops(config), accelerator.num_processes
        self.peak_tflops = options.peak_tflops
        if self.peak_tflops is None and accelerator.device.type == "cuda":
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
            self.peak_tflops = measured_peak_tflops(accelerator.device, dtype)
        self.counts: dict[str, int] = {}
        self.since = time.perf_counter()

    def before_log(self, accelerator: Accelerator, state: TrainerState) -> None:
        """Add up the counts of all processes."""
        plan = self.loader.loader.batch_sampler
        assert isinstance(plan, ImagePlan)
        counts = self.loader.take_counts() + plan.take_counts(state.step)
        taken = torch.tensor(counts, dtype=torch.float32, device=accelerator.device)
        for name, count in zip(
            (*COUNTS, *STREAM_COUNTS), accelerator.reduce(taken, reduction="sum").tolist(), strict=True
        ):
            state.counts[name] = state.counts.get(name, 0) + int(count)
        self.counts = state.counts
        check_share(state.counts, self.options.max_bad_share)

    def log_values(self, images_per_s: float) -> dict[str, float]:
        """Tokens per second, share of the peak and of the time spent waiting for images, and the counts."""
        now = time.perf_counter()
        values = {
            "tokens_per_s": round(images_per_s * self.num_patches, 1),
            "waiting_share": round(self.loader.waited_s / max(now - self.since, 1e-9), 4),
        }
        self.since, self.loader.waited_s = now, 0.0
        if self.peak_tflops:
            peak = self.peak_tflops * 1e12 * self.num_processes
            values["share_of_peak"] = round(images_per_s * self.flops / peak, 4)
        num_bad = sum(self.counts.get(reason, 0) for reason in REASONS)
        return (
            values
            | {"images": self.counts.get("images", 0), "bad_images": num_bad}
            | {
                name: self.counts[name]
                for name in ("replaced", "repeated", *STREAM_COUNTS, "skipped_steps")
                if self.counts.get(name)
            }
        )

    def after_step(self, run: Run) -> None:
        """A grid of original, masked and reconstructed images where it is time for one."""
        every, step = self.options.pictures_every, run.state.step
        if not every or step % every:
            return
        inputs = {name: tensor[: self.options.num_pictures] for name, tensor in self.inputs.last.items()}
        with run.accelerator.autocast():
            rebuilt, mask = reconstruct(run.model, inputs)  # all processes: shared-out weights need everyone
        if run.accelerator.is_main_process:
            grey_levels = self.inputs.grey_levels
            seen, hidden = grey_levels(inputs["pixel_values"]), mask[:, 0].cpu().numpy()
            picture = picture_grid(seen, hidden, grey_levels(rebuilt))
            save_picture(picture, run.folder / PICTURES_FOLDER, step)
            for tracker in run.accelerator.trackers:
                send_picture(tracker, picture, step)
        run.log.restart_clock(step)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()

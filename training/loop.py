"""The training loop of all four tasks, on Accelerate: build, prepare, and one `for` over the steps.

Randomness is a function of (seed, step) and (seed, epoch, index), never of what ran before: a run that was killed and
resumed goes through the same losses as one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, TorchDynamoPlugin, send_to_device
from tqdm.auto import tqdm
from transformers.utils import logging

from .build import merge_lora
from .checkpoints import (
    TrainerState,
    clean_up,
    damaged_checkpoint,
    describe_code,
    find_checkpoint,
    naming_what_fails,
    read_state,
    replace_folder,
    save_checkpoint,
    set_aside_later,
    truncate_metrics,
    write_json,
    write_state,
)
from .data import Augment, ModelInputs, StepPlan, StreamingSet, TrainingSet, make_loader
from .evaluators import EvaluationSet, Evaluator, evaluate
from .formats import SampleList
from .hub import push_run
from .optim import build_optimizer, learning_rate_factor, scaled_lr
from .options import RunOptions
from .tables import StreamSamples

logger = logging.get_logger(__name__)

# What torch says of weights and optimiser states that are whole but another model's.
MISFIT = re.compile(
    "size mismatch|(missing|unexpected) key|parameter group|parameters that doesn't match", re.IGNORECASE
)
METRICS_FILE, RUN_FILE, RESULTS_FILE, BEST_FOLDER = "metrics.jsonl", "run.json", "results.json", "best"


class TrainingStoppedError(RuntimeError):
    """The loss cannot be used any more; the last checkpoint is from before."""


class Monitor:
    """What a job adds to the steps of a run; every process calls all three. This one adds nothing."""

    def before_log(self, accelerator: Accelerator, state: TrainerState) -> None:
        """After each step, before its log line: the place to add to `state.counts`."""

    def log_values(self, images_per_s: float) -> dict[str, float]:
        """More numbers for a log line."""
        return {}

    def after_step(self, run: Run) -> None:
        """After each step and its log line, before evaluation and checkpoint."""


@dataclass
class Job:
    """What a script hands to `fit`.

    Attributes:
        samples: to train on.
        augment: (sample, generator) -> sample at the size of the network.
        evaluator: None for no evaluation.
        eval_samples: to evaluate on.
        min_visible: pose only, see `TrainingSet`.
        make_loader: batches of a plan, in the place of `samples` through `augment`; a batch has `name`.
        to_inputs: batch on the device -> the model's inputs, in the place of `ModelInputs`.
        loss_size: batch -> number of pixels that its loss is the mean of, where batches differ in it.
        monitor: what the job adds to the steps.
    """

    model: Any
    processor: Any
    samples: SampleList | StreamSamples
    augment: Augment
    evaluator: Evaluator | None = None
    eval_samples: SampleList | None = None
    min_visible: int = 0
    make_loader: Callable[[StepPlan], Any] | None = None
    to_inputs: Callable[[Any], dict[str, Any]] | None = None
    loss_size: Callable[[Any], torch.Tensor] | None = None
    monitor: Monitor = field(default_factory=Monitor)


def start(options: RunOptions) -> Accelerator:
    """The Accelerator of a run, and its folder, which holds no other run or one that goes on.

    Raises:
        ValueError: for float16 on a CPU.
        FileExistsError: if the folder holds a run and none is to go on.
    """
    folder = Path(options.output_dir)
    compiled = TorchDynamoPlugin(backend=options.torch_compile) if options.torch_compile else None  # type: ignore[arg-type]
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        dynamo_plugin=compiled,
        log_with=list(options.report_to) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
        step_scheduler_with_optimizer=False,
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "--mixed_precision is fp16 and the run is on a CPU, where Accelerate would train in float32 without a "
            "word: give bf16, or no."
        )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        clean_up(folder)
        if options.resume_from_checkpoint is None and (folder / "checkpoints").is_dir():
            raise FileExistsError(
                f"{folder} already holds a run. Go on with --resume_from_checkpoint latest, or give another "
                "--output_dir."
            )
    accelerator.wait_for_everyone()
    if options.report_to:
        plain = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in dataclasses.asdict(options).items()
        }
        accelerator.init_trackers("sapiens_hf", config=plain)
    return accelerator


def write_run(folder: Path, options: RunOptions, accelerator: Accelerator) -> None:
    """Options, processes, versions and commit of a run as its `run.json`."""
    processes = {"num_processes": accelerator.num_processes, "distributed_type": str(accelerator.distributed_type)}
    write_json(folder / RUN_FILE, {"options": dataclasses.asdict(options), **processes, **describe_code()})


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, options: RunOptions) -> None:
    """Read weights and optimiser.

    Raises:
        ValueError: if they do not fit; names the options that differ from those of the run. Or if they are damaged.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # pickle, zip and safetensors raise their own kinds for a damaged file
        if not MISFIT.search(str(error)):
            raise damaged_checkpoint(checkpoint, error) from error
        own = checkpoint.parent.parent / RUN_FILE
        before = json.loads(own.read_text(encoding="utf-8"))["options"] if own.is_file() else {}
        now = json.loads(json.dumps(dataclasses.asdict(options), default=str))
        changed = [
            f"--{name} was {before[name]}, is {value}"
            for name, value in now.items()
            if name in before and before[name] != value and name not in ("resume_from_checkpoint", "output_dir")
        ]
        said = f"{'; '.join(changed)}. A run goes on with the options of {own}" if changed else "The options are equal"
        raise ValueError(
            f"{checkpoint} does not fit this model and optimiser ({str(error).splitlines()[0]:.200}). {said}; to "
            "start anew from its weights give its model as --model_name_or_path and another --output_dir."
        ) from error
    # Accelerate restores its count of batches too, which need not be a multiple of another accumulation: gradients
    # would then be waited for that never come. A checkpoint lies between two steps.
    accelerator.step = 0
    logger.info(f"Going on from {checkpoint}.")


def fit(options: RunOptions, job: Job, accelerator: Accelerator) -> dict[str, float]:
    """Train, evaluate, save; returns the last evaluation's metrics and the last loss.

    Raises:
        TrainingStoppedError: after `max_bad_steps` unusable losses in a row.
        SavingError: if the disk is full; what was saved before is untouched.
    """
    folder = Path(options.output_dir)
    checkpoint = find_checkpoint(options.resume_from_checkpoint, folder)
    state = read_state(checkpoint) if checkpoint else TrainerState()
    plan = make_plan(options, job, accelerator, state)
    if job.make_loader is not None:
        loader = job.make_loader(plan)
    else:
        loader = make_loader(
            make_training_set(options, job, plan), plan, options.num_workers, accelerator.device.type == "cuda"
        )
    to_inputs = job.to_inputs or ModelInputs(job.processor)

    base_lr = options.learning_rate
    if options.lr_base_batch:
        base_lr = scaled_lr(base_lr, plan.samples_per_step, options.lr_base_batch)
    first_beta, second_beta = options.adam_betas
    check_optimizer(options.optimizer, accelerator.distributed_type)
    optimizer = build_optimizer(
        job.model,
        base_lr,
        options.weight_decay,
        options.layer_decay_rate,
        (first_beta, second_beta),
        options.optimizer,
    )
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    # A checkpoint holds these too, but the options given now count, as for the learning rate.
    settings = [{"weight_decay": group["weight_decay"], "betas": group["betas"]} for group in optimizer.param_groups]
    by_step = options.schedule == "cosine_by_step"  # spans the run's steps, though they may be no whole epochs
    lr_factor = learning_rate_factor(
        options.schedule,
        steps_per_epoch=plan.num_steps if by_step else plan.steps_per_epoch,
        num_epochs=1 if by_step else plan.num_epochs,
        warmup_steps=options.warmup_steps,
        warmup_start_factor=options.warmup_start_factor,
        milestones=options.milestones,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which reads the batch size from a loader otherwise
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = options.batch_size
    model, optimizer = accelerator.prepare(job.model, optimizer)
    if checkpoint:
        load_checkpoint(accelerator, checkpoint, options)
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
    if accelerator.is_main_process:  # nothing of an earlier run is touched before its checkpoint has been read
        set_aside_later(folder, state.step)
        write_run(folder, options, accelerator)
    accelerator.wait_for_everyone()
    if state.step >= plan.num_steps:
        logger.warning(f"Nothing to train: the checkpoint is of step {state.step}, the run of {plan.num_steps} steps.")
    elif options.warmup_steps > plan.num_steps:
        logger.warning(
            f"The warm-up of {options.warmup_steps} steps is longer than the run of {plan.num_steps}: the learning "
            "rate never reaches --learning_rate. Give fewer --warmup_steps, or train longer."
        )

    log = Log(folder / METRICS_FILE, accelerator, plan, state, job.monitor)
    # DeepSpeed updates the weights within `backward`: what it has used cannot be skipped any more.
    applies_at_once = accelerator.distributed_type == DistributedType.DEEPSPEED
    guard = LossGuard(options.loss_jump_factor, 1 if applies_at_once else options.max_bad_steps, state)
    run = Run(options, job, accelerator, model, state, log, folder)
    if state.must_evaluate and run.dataset is not None:
        run.evaluate()
    with StopOnSignal() as stop:
        batches = iter(loader)
        for step in range(state.step, plan.num_steps):
            factor = lr_factor(step)
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = lr * factor
            torch.manual_seed(step_seed(options.seed, step, accelerator.process_index))  # dropout
            total, names = torch.zeros((), device=accelerator.device), []
            step_batches: Iterable[Any] = islice(batches, plan.num_accumulated)
            weights: Iterable[Any] = repeat(1.0)
            if job.loss_size is not None:
                step_batches = list(step_batches)
                weights = loss_weights([job.loss_size(batch) for batch in step_batches], accelerator)
            for batch, weight in zip(step_batches, weights):
                names += batch["name"]
                with accelerator.accumulate(model):
                    outputs = model(**to_inputs(send_to_device(batch, accelerator.device, non_blocking=True)))
                    loss = outputs.loss * weight
                    accelerator.backward(loss)
                total += loss.detach().float() / plan.num_accumulated
            norm = accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm or math.inf)
            # One small exchange per step: the mean loss, and whether any process was asked to stop.
            shared = accelerator.reduce(torch.stack([total, total.new_tensor(float(stop.asked))]), reduction="mean")
            value, must_stop = shared[0].item(), shared[1].item() > 0
            norm_value = float(norm) if norm is not None else float("nan")
            if guard.accepts(value, norm_value, names, scaled=accelerator.scaler is not None):
                optimizer.step()
            elif accelerator.scaler is not None:
                accelerator.scaler.update()  # as after a step: it has unscaled these gradients
            optimizer.zero_grad()
            state.step = step + 1
            job.monitor.before_log(accelerator, state)
            log.step(state.step, value, norm_value, base_lr * factor, options.log_every)
            job.monitor.after_step(run)
            run.after_step(last=state.step == plan.num_steps, must_stop=must_stop)
            if must_stop:
                logger.warning(f"Stopped at step {state.step}; go on with --resume_from_checkpoint latest.")
                break
    if state.step == plan.num_steps and state.last_loss is None:
        raise TrainingStoppedError(
            f"Not one of {plan.num_steps} steps had a loss that could be used, so nothing was trained: see the "
            "messages above, and `python -m training.check_data`."
        )
    results = run.finish(state.step == plan.num_steps)
    log.close()
    for tracker in accelerator.trackers:
        tracker.finish()
    if state.step == plan.num_steps:
        said = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
        accelerator.print(
            f"Finished at step {state.step}: {said}. Model, processor and {RESULTS_FILE} are in {folder}."
        )
    return results


def check_optimizer(optimizer: str, distributed_type: str) -> None:
    """Refuse Muon where a process holds parts of matrices only.

    Args:
        optimizer: of the options.
        distributed_type: of the Accelerator.

    Raises:
        ValueError: for Muon with FSDP or DeepSpeed.
    """
    if optimizer == "muon" and distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"--optimizer muon does not work with {distributed_type}, which cuts matrices up: use "
            "training/configs/ddp.yaml, or --optimizer adamw."
        )


def loss_weights(sizes: Sequence[torch.Tensor], accelerator: Accelerator) -> torch.Tensor:
    """Factors on the losses of a process's batches that make their mean over all processes that of one large batch.

    Args:
        sizes: number of pixels that each batch of this process and step is averaged over.
        accelerator: of the run.
    """
    own = torch.stack([size.float() for size in sizes]).to(accelerator.device)
    mean = accelerator.reduce(own.mean(), reduction="mean")
    return own / mean.clamp(min=1e-6)


def make_training_set(options: RunOptions, job: Job, plan: StepPlan) -> TrainingSet | StreamingSet:
    """The job's samples through its augmentation."""
    targets = {
        "heatmap_sigma": getattr(job.processor, "keypoint_heatmap_sigma", 6.0),
        "heatmap_downscale": getattr(job.processor, "keypoint_heatmap_downscale_factor", 4),
    }
    if isinstance(job.samples, StreamSamples):
        return StreamingSet(job.samples, job.augment, plan, job.min_visible, options.skip_bad_samples, **targets)
    return TrainingSet(job.samples, job.augment, options.seed, job.min_visible, options.skip_bad_samples, **targets)


def make_plan(options: RunOptions, job: Job, accelerator: Any, state: TrainerState) -> StepPlan:
    """The order of samples; says so where a restart cannot follow the order it had."""
    if isinstance(job.samples, StreamSamples):
        if not options.samples_per_epoch:
            raise ValueError("A stream has no length: say how many samples an epoch has with --samples_per_epoch.")
        num_samples = options.samples_per_epoch
    else:
        num_samples = len(job.samples)
    plan = StepPlan(
        num_samples,
        options.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        options.gradient_accumulation_steps,
        options.seed,
        options.num_epochs,
        state.step,
        options.max_steps,
    )
    now = (plan.samples_per_step, num_samples, options.seed)
    before = (state.samples_per_step, state.num_samples, state.seed)
    if state.step and now != before:
        logger.warning(
            f"The checkpoint was made with {before[0]} samples per step, {before[1]} samples and seed {before[2]}; "
            f"now it is {now[0]}, {now[1]} and {now[2]}. The run goes on, but not as it would have gone."
        )
    state.samples_per_step, state.num_samples, state.seed = now
    return plan


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of the model's own randomness (dropout) in one step of one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> 1)


WHEN_UNUSABLE = (
    "Checkpoints from before are kept; if the last holds the step that spoiled the weights, name the one before it. "
    "Try a lower --learning_rate or bf16 in place of fp16, and `python -m training.check_data`."
)


class LossGuard:
    """Decides whether a step's gradients may be used.

    A loss or gradient that is not finite, or a loss so many times the one before, is skipped and its samples are named
    (original `TopdownPoseEstimator.parse_losses`, which does so for a factor of 25).
    """

    def __init__(self, jump_factor: float, max_bad_steps: int, state: TrainerState):
        self.jump_factor, self.max_bad_steps, self.state = jump_factor, max_bad_steps, state

    def accepts(self, loss: float, grad_norm: float, names: list[str], scaled: bool = False) -> bool:
        """Judge one step.

        Args:
            loss: mean over processes.
            grad_norm: before clipping.
            names: samples of this process in this step, for the message.
            scaled: a gradient scaler (fp16) skips steps with infinite gradients by itself, and expects some.

        Raises:
            TrainingStoppedError: after too many in a row.
        """
        last = self.state.last_loss
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not scaled and not math.isfinite(grad_norm):
            reason = f"the gradient norm is {grad_norm}"
        elif self.jump_factor and last and loss > self.jump_factor * last:
            reason = f"the loss jumps from {last:.4g} to {loss:.4g}"
        else:
            self.state.last_loss, self.state.num_bad_steps = loss, 0
            return True
        self.state.num_bad_steps += 1
        self.state.counts["skipped_steps"] = self.state.counts.get("skipped_steps", 0) + 1
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        message = f"Step {self.state.step + 1}: {reason}. Samples: {shown}."
        if self.state.num_bad_steps >= self.max_bad_steps:
            raise TrainingStoppedError(
                f"{message} That was {self.state.num_bad_steps} times in a row; training stops. {WHEN_UNUSABLE}"
            )
        logger.warning(f"{message} The step is skipped.")
        return False


class StopOnSignal:
    """Ctrl-C or SIGTERM ends the run after the step in hand, with a checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


class Log:
    """Lines of `metrics.jsonl`, trackers and the progress bar, from the main process."""

    def __init__(self, path: Path, accelerator: Any, plan: StepPlan, state: TrainerState, monitor: Monitor):
        self.accelerator, self.plan, self.monitor = accelerator, plan, monitor
        self.file = None
        first_step = state.step
        if accelerator.is_main_process:
            truncate_metrics(path, first_step, with_evaluation=not state.must_evaluate)
            self.file = path.open("a", encoding="utf-8")
        self.bar = tqdm(
            total=plan.num_steps, initial=first_step, unit="step", disable=not accelerator.is_local_main_process
        )
        self.restart_clock(first_step)

    def restart_clock(self, step: int) -> None:
        """Speed is of training alone, without evaluation and saving."""
        self.since, self.since_step = time.perf_counter(), step

    def step(self, step: int, loss: float, grad_norm: float, lr: float, every: int) -> None:
        """After each step; a line every few."""
        self.bar.update()
        if step % every and step != self.plan.num_steps:
            return
        seconds = max(time.perf_counter() - self.since, 1e-9)
        rate = (step - self.since_step) * self.plan.samples_per_step / seconds
        self.restart_clock(step)
        values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": lr, "images_per_s": round(rate, 3)}
        values |= self.monitor.log_values(rate)
        if torch.cuda.is_available():
            values["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self.bar.set_postfix(loss=f"{loss:.4g}", images_per_s=f"{rate:.1f}")
        self.write(step, values)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, at once on disk."""
        epoch = step / self.plan.steps_per_epoch
        if self.file is not None:
            with naming_what_fails(Path(self.file.name)):
                finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
                self.file.write(json.dumps({"step": step, "epoch": round(epoch, 6), **finite}) + "\n")
                self.file.flush()
        self.accelerator.log(values, step=step)

    def progress(self, loader: Any) -> Iterator[Any]:
        """A bar for an evaluation."""
        disable = not self.accelerator.is_local_main_process
        return iter(tqdm(loader, desc="evaluate", leave=False, disable=disable))

    def close(self) -> None:
        """End the bar and the file."""
        self.bar.close()
        if self.file is not None:
            self.file.close()
            self.file = None


@dataclass
class Run:
    """What happens between steps: evaluation, checkpoints, the best and the final model."""

    options: RunOptions
    job: Job
    accelerator: Accelerator
    model: Any
    state: TrainerState
    log: Log
    folder: Path

    def __post_init__(self) -> None:
        self.results: dict[str, float] = {}
        self.must_save = False
        self.dataset, self.loader = None, None
        if self.job.evaluator is not None and self.job.eval_samples is not None:
            options, accelerator = self.options, self.accelerator
            self.dataset = EvaluationSet(self.job.eval_samples, self.job.evaluator, options.skip_bad_samples)
            self.loader = self.dataset.loader(
                options.eval_batch_size, accelerator.num_processes, accelerator.process_index, options.num_workers
            )

    def after_step(self, last: bool, must_stop: bool) -> None:
        """Save and evaluate where it is time to, in this order: a failed evaluation must not cost the steps before it.

        Raises:
            TrainingStoppedError: if the run ends with losses that cannot be used.
        """
        options, state, step = self.options, self.state, self.state.step
        is_doubtful = state.num_bad_steps > 0  # the weights may be what is wrong: keep what was saved before
        if last and state.num_bad_steps > 1:
            raise TrainingStoppedError(
                f"The losses of the last {state.num_bad_steps} of {step} steps could not be used; see the messages "
                f"above. No final model is written. {WHEN_UNUSABLE}"
            )
        self.must_save |= step % options.save_every == 0
        state.must_evaluate = self.dataset is not None and (last or step % options.eval_every == 0)
        if last or must_stop or (self.must_save and not is_doubtful):
            save_checkpoint(self.accelerator, self.folder, state, None if is_doubtful else options.keep_checkpoints)
            self.must_save = False
            self.log.restart_clock(step)
        if state.must_evaluate:
            self.evaluate()

    def evaluate(self) -> None:
        """Metrics; the model is saved where it is the best so far."""
        assert self.dataset is not None
        self.results = evaluate(self.model, self.dataset, self.loader, self.accelerator, self.log.progress)
        self.log.write(self.state.step, {f"eval_{name}": value for name, value in self.results.items()})
        evaluator = self.dataset.evaluator
        value = self.results[evaluator.best]
        if evaluator.is_better(value, self.state.best_value):
            self.state.best_value, self.state.best_step = value, self.state.step
            replace_folder(self.accelerator, self.folder / BEST_FOLDER, self.save_model)
        self.state.must_evaluate = False
        if self.accelerator.is_main_process:
            write_state(self.folder, self.state)
        self.log.restart_clock(self.state.step)

    def save_model(self, folder: Path) -> None:
        """Model and processor as `save_pretrained` writes them; LoRA is merged in. All processes call it."""
        state_dict = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:  # where DeepSpeed has shared the weights out it gives the others None
            return
        state_dict = {name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()}  # torch.compile's
        model = self.accelerator.unwrap_model(self.model)
        if self.options.lora_r:
            model.save_pretrained(folder / "adapter", state_dict=state_dict)
            model = merge_lora(model, state_dict)
            state_dict = model.state_dict()
        model.save_pretrained(folder, state_dict=state_dict)
        self.job.processor.save_pretrained(folder)

    def finish(self, is_complete: bool) -> dict[str, float]:
        """The final model in the run's folder, results.json, and the upload."""
        state, accelerator = self.state, self.accelerator
        if is_complete and self.dataset is not None and not self.results:
            self.evaluate()  # a finished run that was started again has no numbers of its own
        results = dict(self.results)
        if state.last_loss is not None:
            results["loss"] = state.last_loss
        if not is_complete:
            return results
        final = self.folder / "final"
        replace_folder(accelerator, final, self.save_model)
        if accelerator.is_main_process:
            for path in list(final.iterdir()):
                place = self.folder / path.name
                if place.is_dir():  # an adapter, of an earlier end of the same run
                    shutil.rmtree(place)
                path.replace(place)
            final.rmdir()
            best = {"best_value": state.best_value, "best_step": state.best_step}
            write_json(self.folder / RESULTS_FILE, {"step": state.step, **results, **best})
            if self.options.push_to_hub:
                push_run(self.folder, self.options, results)
        accelerator.wait_for_everyone()
        return results

"""The loop: restarts, several processes, unusable losses, full disks, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from training_helpers import arguments, write_tree

import sapiens_hf
from training import checkpoints, loop
from training.build import MODEL_CLASSES
from training.checkpoints import SavingError, TrainerState, checkpoint_folder, find_checkpoint, read_metrics
from training.data import StepPlan
from training.finetune_depth import main as train_depth
from training.finetune_normal import main as train_normal
from training.finetune_pose import main as train_pose
from training.finetune_segmentation import main as train_segmentation
from training.loop import LossGuard, StopOnSignal, TrainingStoppedError, step_seed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def environment(num_threads: int = 1) -> dict[str, str]:
    device = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **device, "OMP_NUM_THREADS": str(num_threads)}


def test_float16_on_a_cpu_is_refused(data, tmp_path):
    """Accelerate knows none there and trains in float32."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="mixed_precision is fp16 .* CPU.*give bf16"):
        train_depth(arguments("depth", data, tmp_path / "run", "--mixed_precision", "fp16", steps=1))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kill_and_resume_give_the_same_curve(data, tmp_path, threads, optimizer):
    """A run killed with SIGKILL while it trains and resumed equals one left alone, in every loss and weight."""
    steps = 40
    options = ["--save_every", "3", "--gradient_accumulation_steps", "2", "--optimizer", optimizer]
    dropout = ["hidden_dropout_prob=0.1"]  # chance inside the model must follow too

    def line(output):
        given = arguments("pose", data, output, *options, steps=steps)
        place = given.index("--config_overrides") + 1
        return given[:place] + dropout + given[place:]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = ROOT / "training" / "finetune_pose.py"
    process = subprocess.Popen(
        [sys.executable, str(script), *line(killed)], env=environment(threads), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(metrics.read_text().splitlines())
    assert 5 <= done < steps
    # What a kill in the middle of saving leaves behind, which must not be picked, and a cut line.
    half = checkpoint_folder(killed, 39)
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    with metrics.open("a") as file:
        file.write('{"step": 7, "lo')
    assert find_checkpoint("latest", killed).name < half.name

    train_pose([*line(killed), "--resume_from_checkpoint", "latest"])
    train_pose(line(whole))
    assert losses(killed) == losses(whole)
    assert [step for step, _ in losses(whole)] == list(range(1, steps + 1))
    first, second = (load_file(run / "model.safetensors") for run in (killed, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)


def assert_agree(first: Path, second: Path, task: str) -> None:
    """Two runs, but for the order of float32 sums: steps, losses, metrics and what the final models compute."""
    one, two = losses(first), losses(second)
    assert [step for step, _ in two] == [step for step, _ in one] == list(range(1, len(one) + 1))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[1] == pytest.approx(results[0], rel=1e-3, abs=1e-3)
    # Outputs, not weights: biases before an instance norm have no gradient but rounding, which Adam makes large.
    maps = [outputs(folder, task) for folder in (first, second)]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-3, atol=1e-3)


def test_two_processes_equal_one(data, tmp_path):
    """The same global batches and the same chance per sample: losses, weights and metrics agree.

    Only the order of float32 sums differs. The loss of normals is a mean over person pixels, of which processes have
    different numbers: each is weighed by its own.
    """
    # New depth models predict around 0, where the logarithm is cut off: large steps would amplify rounding there.
    shared = ["--val_data", str(data), "--learning_rate", "2e-4"]
    mains = {"pose": train_pose, "segmentation": train_segmentation, "depth": train_depth, "normal": train_normal}
    runs = {task: (task, shared) for task in mains} | {"muon": ("pose", [*shared, "--optimizer", "muon"])}
    jobs = []
    for name, (task, options) in runs.items():
        jobs.append((task, arguments(task, data, tmp_path / f"{name}2", *options, steps=4)))
        jobs[-1][1][jobs[-1][1].index("--batch_size") + 1] = "2"
    listing = tmp_path / "jobs.json"
    listing.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "training_two_processes.py"), str(listing)],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (task, options) in runs.items():
        mains[task](arguments(task, data, tmp_path / f"{name}1", *options, steps=4))
        assert json.loads((tmp_path / f"{name}2" / "run.json").read_text())["num_processes"] == 2
        assert_agree(tmp_path / f"{name}1", tmp_path / f"{name}2", task)


def test_weights_shared_out_over_two_processes(data, tmp_path):
    """`training/configs/fsdp2.yaml`, as `accelerate launch` reads it: what one process with whole weights gives."""
    shared = ["--val_data", str(data), "--learning_rate", "2e-4", "--save_every", "2"]
    runs = {
        "plain": ("depth", shared),
        "lora": ("pose", [*shared, "--lora_r", "2"]),
        "saving memory": ("normal", [*shared, "--gradient_checkpointing", "--freeze_layers", "1"]),
    }
    mains = {"depth": train_depth, "pose": train_pose, "normal": train_normal}
    jobs = []
    for name, (task, options) in runs.items():
        jobs.append((task, arguments(task, data, tmp_path / f"{name}2", *options, steps=4)))
        jobs[-1][1][jobs[-1][1].index("--batch_size") + 1] = "2"
    checkpoint = tmp_path / "plain2" / "checkpoints" / "step-00000002"
    jobs.append(("depth", [*jobs[0][1], "--resume_from_checkpoint", str(checkpoint)]))
    listing = tmp_path / "jobs.json"
    listing.write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"]
    command += ["--config_file", str(ROOT / "training" / "configs" / "fsdp2.yaml"), "--main_process_port", str(port)]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "training_two_processes.py"), str(listing), "--shared_out"],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (task, options) in runs.items():
        mains[task](arguments(task, data, tmp_path / f"{name}1", *options, steps=4))
        stored = json.loads((tmp_path / f"{name}2" / "run.json").read_text())
        assert (stored["num_processes"], stored["distributed_type"]) == (2, "DistributedType.FSDP")
        assert_agree(tmp_path / f"{name}1", tmp_path / f"{name}2", task)  # the resumed one too
    assert checkpoint.with_name("step-00000004.aside").is_dir()


def test_processes_that_get_no_weights_write_no_model(tmp_path):
    """DeepSpeed gives a model that it has shared out to the first process only."""
    accelerator = SimpleNamespace(get_state_dict=lambda model: None, is_main_process=False)
    job = loop.Job(None, None, [], None)
    loop.Run(None, job, accelerator, None, TrainerState(), None, tmp_path).save_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_accumulated_batches_of_normals_equal_one_batch(data, tmp_path):
    whole = arguments("normal", data, tmp_path / "whole", "--learning_rate", "2e-4", steps=4)
    shared = [*whole, "--gradient_accumulation_steps", "4", "--output_dir", str(tmp_path / "shared")]
    shared[shared.index("--batch_size") + 1] = "1"
    for line in (whole, shared):
        train_normal(line)
    expected = [loss for _, loss in losses(tmp_path / "whole")]
    assert [loss for _, loss in losses(tmp_path / "shared")] == pytest.approx(expected, rel=1e-4)


def outputs(folder: Path, task: str) -> torch.Tensor:
    model = getattr(sapiens_hf, MODEL_CLASSES[task]).from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(pixels)[0]


def test_steps_take_the_same_samples_however_they_are_shared():
    whole = [sorted(batch) for batch in StepPlan(10, 6, num_epochs=3)]
    for shape in (dict(batch_size=3, num_processes=2), dict(batch_size=2, num_accumulated=3)):
        plans = [StepPlan(10, **shape, process=p, num_epochs=3) for p in range(shape.get("num_processes", 1))]
        accumulated = shape.get("num_accumulated", 1)
        steps = []
        for batches in zip(*plans):
            steps.append(sum(batches, []))
        joined = [sum(steps[i : i + accumulated], []) for i in range(0, len(steps), accumulated)]
        assert [sorted(step) for step in joined] == whole
    assert {index for batch in whole[:2] for epoch, index in batch if epoch == 0} == set(range(10))
    assert whole[:2] != whole[2:4] and len(whole) == 6  # another order in every epoch
    assert [sorted(batch) for batch in StepPlan(10, 6, num_epochs=3, start_step=4)] == whole[4:]
    assert len(StepPlan(10, 6, num_epochs=3, start_step=4)) == 2
    assert StepPlan(10, 6, max_steps=5).num_epochs == 3


def test_step_seeds_differ():
    assert len({step_seed(seed, step, process) for seed in (0, 1) for step in range(5) for process in (0, 1)}) == 20


def test_guard_skips_names_and_stops():
    state = TrainerState(step=7)
    guard = LossGuard(jump_factor=25.0, max_bad_steps=3, state=state)
    assert guard.accepts(1.0, 2.0, ["a.png"]) and state.last_loss == 1.0
    assert guard.accepts(20.0, 2.0, ["a.png"]) and guard.accepts(1.0, 2.0, ["a.png"])
    assert not guard.accepts(25.1, 1.0, ["a.png"]) and state.last_loss == 1.0 and state.num_bad_steps == 1
    assert guard.accepts(2.0, 1.0, ["a.png"]) and state.num_bad_steps == 0
    assert not guard.accepts(1.0, float("inf"), ["a.png"])
    assert guard.accepts(1.0, float("inf"), ["a.png"], scaled=True)  # the scaler of fp16 deals with it
    assert not guard.accepts(float("nan"), 1.0, ["a.png"]) and not guard.accepts(float("inf"), 1.0, ["a.png"])
    with pytest.raises(
        TrainingStoppedError, match=r"Step 8: the loss is nan. Samples: a, b, c, d and 1 more.*3 times"
    ):
        guard.accepts(float("nan"), 1.0, list("abcde"))
    assert LossGuard(0.0, 3, TrainerState(last_loss=1.0)).accepts(1e9, 1.0, [])


def test_a_loss_that_is_not_a_number_leaves_the_weights_alone(data, tmp_path, monkeypatch, caplog):
    """One poisoned step is skipped, and named; a run of them stops, with the checkpoint before them intact."""
    run, calls = tmp_path / "run", []
    real = loop.ModelInputs.__call__

    def poisoned(self, batch):
        inputs = real(self, batch)
        calls.append(0)
        if len(calls) == 3 or len(calls) > 6:
            inputs["labels"] = inputs["labels"] * float("nan")
        return inputs

    monkeypatch.setattr(loop.ModelInputs, "__call__", poisoned)
    monkeypatch.setattr(loop.logger, "propagate", True, raising=False)
    line = arguments("pose", data, run, "--save_every", "1", "--max_bad_steps", "3", steps=20)
    with pytest.raises(TrainingStoppedError, match="annotation 10"):
        train_pose(line)
    logged = losses(run)
    assert logged[2][1] is None and logged[3][1] > 0 and len(logged) == 8
    saved = checkpoints.checkpoints(run)
    assert [path.name for path in saved] == ["step-00000005", "step-00000006"]  # nothing doubtful
    weights = load_file(saved[-1] / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(data, tmp_path, monkeypatch):
    from accelerate import Accelerator

    run, real, calls = tmp_path / "run", Accelerator.save_state, []

    def full(self, output_dir, **kwargs):
        calls.append(output_dir)
        if len(calls) == 2:
            (Path(output_dir) / "model.safetensors").write_bytes(b"cut")
            raise OSError(28, "No space left on device")
        return real(self, output_dir, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", full)
    line = arguments("depth", data, run, "--save_every", "2", "--keep_checkpoints", "1", steps=6)
    with pytest.raises(SavingError, match="step-00000004 could not be written.*No space left.*make room"):
        train_depth(line)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    train_depth([*line, "--resume_from_checkpoint", "latest"])
    assert [path.name for path in checkpoints.checkpoints(run)] == ["step-00000006"]
    assert [step for step, _ in losses(run)] == list(range(1, 7))


def test_ctrl_c_saves_and_the_run_goes_on(data, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    real, steps = loop.Log.step, []

    def interrupt(self, step, *rest):
        real(self, step, *rest)
        steps.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Log, "step", interrupt)
    line = arguments("normal", data, run, steps=6)
    train_normal(line)
    # The signal came after the third step had been shared, so the fourth is the last.
    assert steps == [1, 2, 3, 4] and [path.name for path in checkpoints.checkpoints(run)] == ["step-00000004"]
    assert not (run / "model.safetensors").exists()
    monkeypatch.undo()
    train_normal([*line, "--resume_from_checkpoint", str(checkpoint_folder(run, 4))])
    train_normal(arguments("normal", data, whole, steps=6))
    assert losses(run) == losses(whole)


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell starts background jobs with it ignored
    with pytest.raises(KeyboardInterrupt), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_are_left_alone_in_other_threads():
    import threading

    entered = []
    thread = threading.Thread(target=lambda: entered.append(StopOnSignal().__enter__().before))
    thread.start()
    thread.join()
    assert entered == [{}]


def test_a_run_folder_is_not_overwritten(data, tmp_path):
    line = arguments("depth", data, tmp_path, steps=1)
    train_depth(line)
    with pytest.raises(FileExistsError, match="resume_from_checkpoint latest"):
        train_depth(line)


def test_checkpoints_are_found_by_what_is_complete(tmp_path):
    for step, complete in ((3, True), (12, True), (20, False)):
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir(parents=True)
        if complete:
            (folder / checkpoints.STATE_FILE).write_text(json.dumps({"step": step}))
    partial = checkpoint_folder(tmp_path, 30).with_name("step-00000030.partial")
    partial.mkdir()
    (partial / checkpoints.STATE_FILE).write_text("{}")
    assert find_checkpoint("latest", tmp_path) == checkpoint_folder(tmp_path, 12)
    assert find_checkpoint(None, tmp_path) is None and find_checkpoint("latest", tmp_path / "new") is None
    assert checkpoints.read_state(checkpoint_folder(tmp_path, 3)).step == 3
    with pytest.raises(FileNotFoundError, match="no complete checkpoint.*step-00000012"):
        find_checkpoint(str(checkpoint_folder(tmp_path, 20)), tmp_path)


def test_a_killed_replacement_is_put_right(tmp_path):
    """Killed between the two renames, the folder is under its old name; killed after, both are there."""
    (tmp_path / "best.old").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.old").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    (tmp_path / "best.partial").mkdir()
    (tmp_path / "run.json.partial").write_text("{")
    checkpoints.clean_up(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["best", "checkpoints", "step-00000001"]


def test_a_changed_batch_is_said(data, tmp_path, caplog):
    import logging

    line = arguments("pose", data, tmp_path, steps=2)
    train_pose(line)
    line[line.index("--batch_size") + 1] = "2"
    line[line.index("--max_steps") + 1] = "3"
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loop.logger.addHandler(handler)
    train_pose([*line, "--resume_from_checkpoint", "latest"])
    loop.logger.removeHandler(handler)
    assert any("4 samples per step, 8 samples and seed 0; now it is 2, 8 and 0" in message for message in messages)


def test_fp16_goes_on_after_a_skipped_step(data, tmp_path, monkeypatch):
    """The gradient scaler, here on the CPU, must not be left between unscaling and its update."""
    from training import jobs

    real_start, real_accepts, scalers = jobs.start, LossGuard.accepts, []

    def start(options):
        accelerator = real_start(options)
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=8.0)
        accelerator.state._mixed_precision = "fp16"
        scalers.append(accelerator.scaler)
        return accelerator

    def accepts(self, *given, **more):
        assert more["scaled"]
        return real_accepts(self, *given, **more) and self.state.step != 1

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(LossGuard, "accepts", accepts)
    train_pose(arguments("pose", data, tmp_path / "run", steps=4))
    AcceleratorState._reset_state()
    assert len(losses(tmp_path / "run")) == 4 and scalers[0].get_scale() == 8.0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in weights.values())


def test_going_back_sets_later_checkpoints_aside(data, tmp_path, caplog):
    run = tmp_path / "run"
    train_depth(arguments("depth", data, run, "--save_every", "2", "--keep_checkpoints", "3", steps=6))
    back = ["--resume_from_checkpoint", str(checkpoint_folder(run, 2)), "--save_every", "1", "--keep_checkpoints", "2"]
    train_depth(arguments("depth", data, run, *back, steps=3))
    assert checkpoints.checkpoints(run) == [checkpoint_folder(run, 2), checkpoint_folder(run, 3)]
    assert (run / "checkpoints" / "step-00000006.aside" / "model.safetensors").is_file()
    assert "The run goes back to step 2" in caplog.text
    train_depth(arguments("depth", data, run, *back[:2], steps=3))  # once more: what was set aside stays
    aside = sorted(path.name for path in (run / "checkpoints").glob("*.aside*"))
    assert aside == ["step-00000003.aside", "step-00000004.aside", "step-00000006.aside"]
    train_depth(arguments("depth", data, run, *back[:2], steps=3))
    assert (run / "checkpoints" / "step-00000003.aside-2").is_dir()
    train_depth(arguments("depth", data, run, "--resume_from_checkpoint", "latest", steps=5))
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5]
    caplog.clear()
    train_depth(arguments("depth", data, run, "--resume_from_checkpoint", "latest", steps=4))
    assert "Nothing to train: the checkpoint is of step 5, the run of 4 steps" in caplog.text


def test_files_of_others_stay(data, tmp_path):
    run = tmp_path / "run"
    for name in ("notes", "notes.old", "scans.partial"):
        (run / name).mkdir(parents=True)
        (run / name / "thesis.txt").write_text("mine")
    (run / "film.partial").write_text("mine")
    checkpoints.clean_up(run)
    assert sorted(path.name for path in run.iterdir()) == ["film.partial", "notes", "notes.old", "scans.partial"]
    assert (run / "notes.old" / "thesis.txt").read_text() == "mine"


def test_options_that_do_not_fit_a_checkpoint_are_named(data, tmp_path):
    run = tmp_path / "run"
    train_depth(arguments("depth", data, run, steps=2))
    before = (run / "run.json").read_text()
    resume = ["--resume_from_checkpoint", "latest"]
    for change, said in (
        (["--freeze_layers", "1"], "--freeze_layers was 0, is 1"),
        (["--optimizer", "muon"], "--optimizer was adamw, is muon"),
        (["--lora_r", "2"], "--lora_r was 0, is 2"),
    ):
        with pytest.raises(ValueError, match=f"does not fit this model and optimiser.*{said}"):
            train_depth(arguments("depth", data, run, *resume, *change, steps=4))
    with pytest.raises(FileNotFoundError):
        train_depth(arguments("depth", data / "peple", run, *resume, steps=4))
    assert (run / "run.json").read_text() == before
    train_depth(arguments("depth", data, run, *resume, "--seed", "3", steps=4))
    assert json.loads((run / "run.json").read_text())["options"]["seed"] == 3


def test_a_run_without_one_usable_step_has_no_result(data, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.depth_labels", lambda depth, mask: torch.full_like(depth, torch.nan))
    monkeypatch.setattr("training.loop.LossGuard.accepts", lambda *given, **more: False)
    with pytest.raises(TrainingStoppedError, match="Not one of 2 steps"):
        train_depth(arguments("depth", data, tmp_path / "run", steps=2))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_explodes_keeps_its_good_checkpoints(data, tmp_path):
    run = tmp_path / "run"
    train_depth(arguments("depth", data, run, "--save_every", "1", steps=3))
    final = load_file(run / "model.safetensors")
    more = ["--resume_from_checkpoint", "latest", "--learning_rate", "1e30"]
    for steps, said in ((20, "10 times in a row; training stops"), (8, "of the last 4 of 8 steps could not be used")):
        with pytest.raises(TrainingStoppedError, match=said):
            train_depth(arguments("depth", data, run, *more, "--save_every", "5", steps=steps))
        assert [path.name for path in checkpoints.checkpoints(run)] == ["step-00000002", "step-00000003"]
    now = load_file(run / "model.safetensors")
    assert all(torch.equal(final[name], now[name]) for name in final)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1], parse_constant=pytest.fail)["grad_norm"] is None  # NaN is no JSON


def test_a_failed_evaluation_comes_again(data, tmp_path, monkeypatch):
    run, real = tmp_path / "run", loop.evaluate
    options = ["--val_data", str(data), "--eval_every", "2", "--eval_batch_size", "4"]

    def fails(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loop, "evaluate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_depth(arguments("depth", data, run, *options, "--save_every", "2", steps=4))
    assert [path.name for path in checkpoints.checkpoints(run)] == ["step-00000002"]
    monkeypatch.setattr(loop, "evaluate", real)
    resume = ["--save_every", "2", "--resume_from_checkpoint", "latest"]
    results = train_depth(arguments("depth", data, run, *options, *resume, steps=4))
    whole = tmp_path / "whole"
    assert results == train_depth(arguments("depth", data, whole, *options, steps=4))
    scores = [[line for line in read_metrics(each / "metrics.jsonl") if "eval_rmse" in line] for each in (run, whole)]
    assert scores[0] == scores[1] and [line["step"] for line in scores[0]] == [2, 4]
    states = [json.loads((checkpoint_folder(each, 4) / checkpoints.STATE_FILE).read_text()) for each in (run, whole)]
    assert states[0] == states[1] and states[0]["best_step"] and not states[0]["must_evaluate"]


def test_an_accumulation_may_change(data, tmp_path):
    """The same global batches in other parts, from a step that is no multiple of them."""
    first, whole = tmp_path / "first", tmp_path / "whole"
    train_depth(arguments("depth", data, first, "--save_every", "3", steps=3))
    more = ["--resume_from_checkpoint", "latest", "--batch_size", "2", "--gradient_accumulation_steps", "2"]
    train_depth(arguments("depth", data, first, *more, steps=6))
    train_depth(arguments("depth", data, whole, steps=6))
    assert [loss for _, loss in losses(first)] == pytest.approx([loss for _, loss in losses(whole)], rel=1e-4)


def test_options_of_the_optimiser_count_when_a_run_goes_on(data, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    train_depth(arguments("depth", data, run, "--weight_decay", "0.1", steps=2))
    real = torch.optim.AdamW.step

    def step(self, *given, **more):
        seen.append({(group["weight_decay"], group["betas"]) for group in self.param_groups})
        return real(self, *given, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    more = ["--weight_decay", "0.7", "--adam_betas", "0.8", "0.9", "--resume_from_checkpoint", "latest"]
    train_depth(arguments("depth", data, run, *more, steps=3))
    assert seen[0] == {(0.0, (0.8, 0.9)), (0.7, (0.8, 0.9))}


def test_a_norm_of_0_clips_nothing(data, tmp_path):
    for name, norm in (("off", "0"), ("huge", "1e9")):
        train_depth(arguments("depth", data, tmp_path / name, "--max_grad_norm", norm, steps=2))
    off, huge = (load_file(tmp_path / name / "model.safetensors") for name in ("off", "huge"))
    assert all(torch.equal(off[name], huge[name]) for name in off)
    assert losses(tmp_path / "off")[0] != losses(tmp_path / "off")[1]


@pytest.mark.parametrize(
    "name, content", [("model.safetensors", b"cut"), ("optimizer.bin", b"cut"), ("trainer_state.json", b"{")]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before(data, tmp_path, name, content):
    run = tmp_path / "run"
    train_depth(arguments("depth", data, run, "--save_every", "1", steps=2))
    (checkpoint_folder(run, 2) / name).write_bytes(content)
    with pytest.raises(ValueError, match="step-00000002 is damaged.*step-00000001; name one as --resume"):
        train_depth(arguments("depth", data, run, "--resume_from_checkpoint", "latest", steps=3))


def test_a_start_that_failed_leaves_no_record(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        train_depth(arguments("depth", data / "peple", tmp_path / "run", steps=2))
    train_depth(arguments("depth", data, tmp_path / "run", "--seed", "7", steps=2))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["seed"] == 7


def test_a_warm_up_longer_than_the_run_is_said(data, tmp_path, caplog):
    train_depth(arguments("depth", data, tmp_path / "run", "--warmup_steps", "400", steps=2))
    assert "The warm-up of 400 steps is longer than the run of 2" in caplog.text

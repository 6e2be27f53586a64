"""The folder of a run: options and commit, metrics, checkpoints, the best and the final model.

    run.json                        options, versions, commit
    metrics.jsonl                   one JSON object per line, each with its step
    checkpoints/step-00001000/      weights, optimiser, state; complete or not there
    checkpoints/step-00002000.aside/    later than a step that the run went back to; nobody reads or removes it
    best/                           model and processor of the best evaluation
    config.json, model.safetensors, preprocessor_config.json, results.json: the final model, ready for pipeline()

Everything is written under another name and renamed when it is complete, so a process killed at any moment leaves
only whole files behind; what it left half-written is never read and removed by the next run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

STATE_FILE = "trainer_state.json"
STEP_FOLDER = re.compile(r"step-(\d{8})")
PARTIAL, OLD, ASIDE = ".partial", ".old", ".aside"
# What a killed run leaves: folders of `replace_folder` and files of `whole_file`. Nothing else is anybody's to remove.
LEFTOVER = re.compile(r"(best|final|step-\d{8})\.(partial|old)|(run|results|metrics)\.jsonl?(\..+)?\.partial")


class SavingError(RuntimeError):
    """Something could not be written; what was there before is untouched."""


@dataclass
class TrainerState:
    """What a restart must know beside weights and optimiser.

    Attributes:
        step: updates of the weights so far.
        samples_per_step, num_samples, seed: what the order of samples follows from.
        last_loss: of the last step that was used.
        num_bad_steps: unusable losses in a row.
        best_value, best_step: of the best evaluation so far.
        counts: what the run counts over all processes, such as `skipped_steps`.
        must_evaluate: whether the evaluation of this step is still to come.
    """

    step: int = 0
    samples_per_step: int = 0
    num_samples: int = 0
    seed: int = 0
    last_loss: float | None = None
    num_bad_steps: int = 0
    best_value: float | None = None
    best_step: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    must_evaluate: bool = False


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is; the only place that knows."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run_folder / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if STEP_FOLDER.fullmatch(path.name) and (path / STATE_FILE).is_file())


def find_checkpoint(choice: str | None, run_folder: Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; "latest" in a run without one starts from the beginning.

    Raises:
        FileNotFoundError: if the folder is no complete checkpoint.
    """
    if choice is None:
        return None
    if choice == "latest":
        found = checkpoints(run_folder)
        return found[-1] if found else None
    path = Path(choice)
    if not (path / STATE_FILE).is_file():
        have = ", ".join(str(p) for p in checkpoints(run_folder)) or "none"
        raise FileNotFoundError(f"{path} is no complete checkpoint: it has no {STATE_FILE}. Checkpoints here: {have}.")
    return path


def read_state(checkpoint: Path) -> TrainerState:
    """The state of a checkpoint.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return TrainerState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # no JSON, or other fields
        raise damaged_checkpoint(checkpoint, error) from error


def write_state(run_folder: Path, state: TrainerState) -> None:
    """Bring the state in the checkpoint of its step, if there is one, up to date."""
    path = checkpoint_folder(run_folder, state.step) / STATE_FILE
    if path.is_file():
        write_json(path, asdict(state))


def damaged_checkpoint(checkpoint: Path, error: Exception) -> ValueError:
    """What to say of a checkpoint that cannot be read."""
    others = [str(path) for path in checkpoints(checkpoint.parent.parent) if path.name != checkpoint.name]
    have = f"Others of this run: {', '.join(others)}" if others else "There is no other of this run"
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{checkpoint} is damaged ({said:.200}). {have}; name one as --resume_from_checkpoint.")


def set_aside_later(run_folder: Path, step: int) -> None:
    """Give checkpoints later than a step another name: a run that goes back there makes others of these steps."""
    for path in checkpoints(run_folder):
        if path > checkpoint_folder(run_folder, step):
            place, number = path.with_name(path.name + ASIDE), 1
            while place.exists():  # the run went back before
                number += 1
                place = path.with_name(f"{path.name}{ASIDE}-{number}")
            path.rename(place)
            logger.warning(f"The run goes back to step {step}: {path} is now {place.name}. Remove it if you like.")


def save_checkpoint(accelerator: Any, run_folder: Path, state: TrainerState, keep: int | None) -> Path:
    """Save everything a restart needs, then delete checkpoints older than the newest `keep`. All processes call it.

    With `keep` None none is deleted.

    Raises:
        SavingError: if something cannot be written (a full disk); older checkpoints are still there.
    """
    folder = checkpoint_folder(run_folder, state.step)

    def write(partial: Path) -> None:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")

    replace_folder(accelerator, folder, write)
    if accelerator.is_main_process and keep is not None:
        for old in checkpoints(run_folder)[: -max(keep, 1)]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def replace_folder(accelerator: Any, folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside, then put it in the place of `folder`. All processes call it.

    Raises:
        SavingError: if writing fails; `folder` is as it was.
    """
    partial, old = folder.with_name(folder.name + PARTIAL), folder.with_name(folder.name + OLD)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # torch and safetensors raise their own kinds for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise _saving_error(folder, error) from error
    accelerator.wait_for_everyone()


def clean_up(run_folder: Path) -> None:
    """Remove what a killed run left half-written, and put back what it had moved aside."""
    for folder in (run_folder, run_folder / "checkpoints"):
        found = list(folder.iterdir()) if folder.is_dir() else []
        for path in (path for path in found if LEFTOVER.fullmatch(path.name)):
            if path.name.endswith(PARTIAL):
                logger.warning(f"Removing {path}: it was not complete when its run ended.")
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            elif path.name.endswith(OLD) and path.is_dir():
                place = path.with_name(path.name.removesuffix(OLD))
                shutil.rmtree(path) if place.exists() else path.rename(place)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one go.

    Raises:
        SavingError: if that fails; a file that was there is as it was.
    """
    with naming_what_fails(path), whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name to write a file under: it gets its own when the block ends, so it is whole or not there.

    The other name is this process's own, as several, on several machines, may write the same file. A block that
    raises, or removes what it wrote, leaves what was there.
    """
    partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        if partial.exists():
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming_what_fails(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, which names no file, into a `SavingError` that does."""
    try:
        yield
    except OSError as error:
        raise _saving_error(path, error) from error


def _saving_error(path: Path, error: Exception) -> SavingError:
    return SavingError(
        f"{path} could not be written ({type(error).__name__}: {error}). What was complete is still there: make room "
        "and start again; a training run goes on with --resume_from_checkpoint latest."
    )


def truncate_metrics(path: Path, step: int, with_evaluation: bool = True) -> None:
    """Keep the lines of `metrics.jsonl` up to a step: a restart from there writes the later ones again.

    Without the evaluation of the step itself where that comes again too.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            is_evaluation = any(name.startswith("eval_") for name in values)
            if values["step"] < step or (values["step"] == step and (with_evaluation or not is_evaluation)):
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break  # the last line of a killed run may be cut
    with naming_what_fails(path), whole_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` as dictionaries."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe_code() -> dict[str, Any]:
    """Versions, and the commit of the checkout with whether it was changed."""
    import accelerate
    import torch
    import transformers

    import sapiens_hf

    def git(*arguments: str) -> str | None:
        place = Path(__file__).resolve().parent
        try:
            done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": (git("status", "--porcelain", "--untracked-files=no") or "").splitlines(),
        "versions": {module.__name__: module.__version__ for module in (sapiens_hf, torch, transformers, accelerate)},
    }

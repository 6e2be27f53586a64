"""DeepSpeed's two configurations on two CPU processes, against one process without it.

    pip install deepspeed     # which compiles; it is not among the tests' packages
    python tests/deepspeed_rehearsal.py

Segmentation from random weights, pose with LoRA, and normals from an encoder, each for four steps with evaluation,
then the first once more from its checkpoint of step 2. Prints the largest difference of losses and weights. Accelerate
knows DeepSpeed on accelerators only and is told of the processes here; the rest runs as on GPUs.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
STEPS = 4


def jobs(folder: Path, name: str, batch_size: int) -> dict[str, list[str]]:
    """Arguments of the scripts, by the run's name, which starts with its task."""
    from training_helpers import arguments

    data = folder / "data"
    more = {
        "segmentation": ["--save_every", "2"],
        "pose-lora": ["--lora_r", "2"],
        "normal-encoder": ["--model_name_or_path", str(folder / "encoder")],
    }
    listing = {}
    for run, options in more.items():
        output = folder / f"{run}-{name}"
        line = arguments(run.split("-")[0], data, output, "--val_data", str(data), *options, steps=STEPS)
        line[line.index("--batch_size") + 1] = str(batch_size)
        listing[run] = line
    return listing


def work(listing: Path) -> None:
    """One of the two processes."""
    import training_helpers  # noqa: F401  # which asks for the CPU in the way that leaves DeepSpeed out
    from accelerate.state import PartialState

    os.environ.pop("ACCELERATE_USE_CPU")
    PartialState()
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    processes = dict(num_processes=count, process_index=rank, local_process_index=rank, backend="gloo")
    PartialState._shared_state.update(processes)
    for run, line in json.loads(listing.read_text()):
        importlib.import_module(f"training.finetune_{run.split('-')[0]}").main(line)


def main() -> None:
    """Run all and compare."""
    from safetensors.torch import load_file
    from training_helpers import write_tree

    import sapiens_hf
    from training.checkpoints import read_metrics

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tree(folder / "data")
        config = sapiens_hf.SapiensConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 48],
            use_cls_token=False, deconv_out_channels=[16] * 3, conv_out_channels=[16],
        )  # fmt: skip
        sapiens_hf.SapiensModel(config).save_pretrained(folder / "encoder")
        alone = jobs(folder, "alone", 4)
        for run, line in alone.items():
            importlib.import_module(f"training.finetune_{run.split('-')[0]}").main(line)
        for stage in (2, 3):
            name = f"zero{stage}"
            shared = list(jobs(folder, name, 2).items())
            checkpoint = folder / f"segmentation-{name}" / "checkpoints" / "step-00000002"
            shared.append(("segmentation", [*shared[0][1], "--resume_from_checkpoint", str(checkpoint)]))
            listing = folder / "jobs.json"
            listing.write_text(json.dumps(shared))
            command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
            command += ["--mixed_precision", "no", "--config_file", f"{ROOT}/training/configs/deepspeed_{name}.yaml"]
            environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, __file__, str(listing)], env=environment, check=True)
            for run in alone:
                pairs = [folder / f"{run}-{kind}" for kind in ("alone", name)]
                losses = [[row["loss"] for row in read_metrics(p / "metrics.jsonl") if "loss" in row] for p in pairs]
                weights = [load_file(p / "model.safetensors") for p in pairs]
                assert weights[0].keys() == weights[1].keys() and [len(each) for each in losses] == [STEPS, STEPS]
                loss = max(abs(a - b) for a, b in zip(*losses, strict=True))
                weight = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
                print(f"{name} {run}: losses differ by {loss:.1e}, weights by {weight:.1e}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]))
    else:
        main()

"""An update of `--optimizer muon` against torch's own Muon with its AdamW, and against AdamW alone.

    python tests/benchmarks/bench_muon.py [--threads 1] [--repeats 7] [--device cuda]

Printed for a small and a wide network: the smallest time of each in milliseconds, and ours over the others. torch's
Muon takes matrices only; it gets convolutions as views that are matrices.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import sapiens_hf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # training/ is not installed
from training.build import TINY, TINY_HEADS  # noqa: E402
from training.optim import build_optimizer  # noqa: E402

WIDE = dict(hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, intermediate_size=4096)
NETWORKS: dict[str, dict[str, int]] = {"tiny": {}, "four layers of 0.3b": WIDE}


def seconds(optimizers: list[torch.optim.Optimizer], repeats: int, device: str) -> float:
    """Of the fastest update."""
    times = []
    for _ in range(repeats + 1):  # the first one is not counted
        start = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def torchs_own(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """torch's Muon for the matrices that ours takes, and AdamW for the rest."""
    groups = build_optimizer(model, 1e-3, 0.05, 1.0, optimizer="muon").param_groups
    matrices, rest = [], []
    for group in groups:
        for parameter in group["params"]:
            if group["muon"]:
                matrix = torch.nn.Parameter(parameter.detach().flatten(1))
                matrix.grad = parameter.grad.flatten(1)
                matrices.append(matrix)
            else:
                rest.append(parameter)
    return [torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(rest, lr=1e-3)]


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, changes in NETWORKS.items():
        torch.manual_seed(0)
        config = sapiens_hf.SapiensConfig(**{**TINY, **TINY_HEADS["segmentation"], **changes})
        model = sapiens_hf.SapiensForSemanticSegmentation(config).to(options.device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        times = {
            "ours": [build_optimizer(model, 1e-3, 0.05, 1.0, optimizer="muon")],
            "torch's Muon": torchs_own(model),
            "AdamW": [build_optimizer(model, 1e-3, 0.05, 1.0)],
        }
        found = {key: 1e3 * seconds(optimizers, options.repeats, options.device) for key, optimizers in times.items()}
        said = "   ".join(f"{key} {value:.1f} ms" for key, value in found.items())
        ratios = "   ".join(f"ours / {key} {found['ours'] / found[key]:.2f}" for key in found if key != "ours")
        print(f"{name}: {said}   {ratios}")


if __name__ == "__main__":
    main()

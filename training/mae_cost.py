"""What masked pretraining costs on paper: operations from the architecture, hours, bytes read and exchanged.

`python -m training.mae_cost --peak_tflops 989 --share 0.35` prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from sapiens_hf import SapiensConfig
from sapiens_hf.configuration_sapiens import SIZES

PAPER_IMAGES = 300_000_000
# Global batch of each size (paper, Table 2, as secondary sources give it).
PAPER_BATCHES = {"0.3b": 98_304, "0.6b": 65_536, "1b": 40_960, "2b": 20_480}
IMAGE_BYTES = 350_000  # of a JPEG with a shorter side of about 1100 pixels at quality 90: an assumption
ADAM_BYTES = 16  # per parameter: float32 weight, gradient and two moments


def block_macs(num_tokens: int, width: int, mlp_width: int) -> int:
    """Multiply-adds of one transformer block: four projections, two attention products, two layers of the MLP."""
    return num_tokens * (4 * width**2 + 2 * width * mlp_width) + 2 * num_tokens**2 * width


def mae_flops(config: SapiensConfig, training: bool = True) -> int:
    """Floating point operations of one image, two per multiply-add; a backward pass counts as two forward passes.

    Activations computed twice (checkpointing) are not counted twice.

    Args:
        config: of a `SapiensForPreTraining`.
        training: with the backward pass.
    """
    num_patches = config.grid_size[0] * config.grid_size[1]
    patch_values = config.patch_size**2 * config.num_channels
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    seen = int(num_patches * (1 - config.mask_ratio)) + 1
    macs = (seen - 1) * patch_values * width
    macs += config.num_hidden_layers * block_macs(seen, width, config.intermediate_size)
    macs += seen * width * decoder_width
    macs += config.decoder_num_hidden_layers * block_macs(
        num_patches + 1, decoder_width, config.decoder_intermediate_size
    )
    macs += num_patches * decoder_width * patch_values
    return 2 * macs * (3 if training else 1)


def mae_parameters(config: SapiensConfig) -> int:
    """Parameters with both position tables, as the paper counts them."""

    def block(width: int, mlp_width: int) -> int:
        return 4 * (width**2 + width) + 2 * width * mlp_width + mlp_width + width + 4 * width

    num_patches = config.grid_size[0] * config.grid_size[1]
    patch_values = config.patch_size**2 * config.num_channels
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    encoder = (patch_values + 1) * width + config.num_hidden_layers * block(width, config.intermediate_size)
    encoder += 2 * width + width + (num_patches + 1) * width
    decoder = (width + 1) * decoder_width + decoder_width + (num_patches + 1) * decoder_width
    decoder += config.decoder_num_hidden_layers * block(decoder_width, config.decoder_intermediate_size)
    return encoder + decoder + 2 * decoder_width + (decoder_width + 1) * patch_values


def measured_peak_tflops(device: torch.device, dtype: torch.dtype, size: int = 8192, seconds: float = 0.5) -> float:
    """Fastest of several square matrix products: what the device can do at most, in 10^12 operations per second."""
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        since = time.perf_counter()
        first @ second
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - since)
    return 2 * size**3 / best / 1e12


def cost_rows(peak_tflops: float, share: float, num_images: int = PAPER_IMAGES) -> list[dict[str, float | str]]:
    """For each size: what `num_images` images seen once cost.

    Args:
        peak_tflops: of a GPU, 10^12 operations per second in bf16.
        share: of the peak that training reaches.
        num_images: images to see.
    """
    rows: list[dict[str, float | str]] = []
    for size in SIZES:
        config = SapiensConfig.from_size(size, task="pretraining")
        flops, parameters = mae_flops(config), mae_parameters(config)
        images_per_s = peak_tflops * 1e12 * share / flops
        rows.append(
            {
                "size": size,
                "parameters_1e9": parameters / 1e9,
                "tflop_per_image": flops / 1e12,
                "images_per_s_per_gpu": images_per_s,
                "gpu_hours": num_images / images_per_s / 3600,
                "days_on_256_gpus": num_images / images_per_s / 256 / 86_400,
                "steps": num_images / PAPER_BATCHES[size],
                "read_mb_per_s_per_gpu": images_per_s * IMAGE_BYTES / 1e6,
                "optimizer_gb": parameters * ADAM_BYTES / 1e9,
                "gradient_gb_per_step": 2 * parameters * 4 / 1e9,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of docs/pretraining.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of a GPU in bf16, without sparsity")
    parser.add_argument("--share", type=float, default=0.35, help="share of the peak that training reaches")
    parser.add_argument("--num_images", type=int, default=PAPER_IMAGES)
    options = parser.parse_args(arguments)
    rows = cost_rows(options.peak_tflops, options.share, options.num_images)
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        texts = [v if isinstance(v, str) else f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in row.values()]
        print("| " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()

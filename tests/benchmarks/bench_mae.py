"""Masked pretraining, forward and backward, against transformers' ViTMAEForPreTraining of the same dimensions.

    python tests/benchmarks/bench_mae.py [--size 0.3b] [--image_px 512] [--batch 1] [--dtype float32] [--threads 2]
        [--repeats 3] [--device cpu] [--checkpointing] [--find_batch] [--tiny]

Both models run in this process on the same pixels and the same masks, with sdpa; rounds alternate and the order
changes every round. Printed: images per second (median of the rounds), the ratio ours / theirs (goal at least 1.1),
and memory: on a GPU the peak of allocated memory in a step, on a CPU the bytes that autograd keeps for the backward
pass, weights not counted (goal no more than theirs); on a CPU also where the time of a step goes. Images are square:
ViTMAE takes no others. `--find_batch`, on a GPU, first finds the largest batch of our model that fits. `--tiny` is a
quick check that the script works: its numbers say nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from sapiens_hf import SapiensConfig, SapiensForPreTraining

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # training/ is not installed
from training.mae_cost import mae_flops, measured_peak_tflops  # noqa: E402

SHARED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps", "patch_size"),
    *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size"),
    *("mask_ratio", "norm_pix_loss", "qkv_bias", "hidden_act", "num_channels"),
)


def build(options: argparse.Namespace) -> tuple[SapiensConfig, dict[str, torch.nn.Module]]:
    """Our model and theirs, with equal numbers of trainable parameters."""
    narrow = (
        dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192) if options.tiny else {}
    )
    narrow |= (
        dict(decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=4) if narrow else {}
    )
    narrow |= dict(decoder_intermediate_size=128) if narrow else {}
    config = SapiensConfig.from_size(options.size, task="pretraining", image_size=options.image_px, **narrow)
    theirs = ViTMAEConfig(image_size=options.image_px, **{name: getattr(config, name) for name in SHARED})
    theirs._attn_implementation = "sdpa"
    with torch.device(options.device):
        models = {
            "sapiens_hf": SapiensForPreTraining._from_config(config, attn_implementation="sdpa"),
            "transformers": ViTMAEForPreTraining._from_config(theirs, attn_implementation="sdpa"),
        }
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models.values()]
    if counts[0] != counts[1]:
        raise SystemExit(f"The two models differ: {counts[0]} and {counts[1]} trainable parameters.")
    print(f"{counts[0]:,} trainable parameters in each, {options.image_px} px, batch {options.batch}, {options.dtype}")
    for model in models.values():
        model.train()
        if options.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return config, models


def step(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    device = inputs["pixel_values"].device.type
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        loss = model(**inputs).loss
    loss.backward()
    return loss


def seconds(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Of one step."""
    is_cuda = inputs["pixel_values"].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model, inputs, dtype)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory_mib(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Peak of a step on a GPU; on a CPU what autograd keeps, each storage once, without the weights."""
    if inputs["pixel_values"].is_cuda:
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs, dtype)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    del loss
    return sum(kept.values()) / 2**20


def shares(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """Of matrix products and of attention in a step's time on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(model, inputs, dtype)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    products = sum(times.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm"))
    attention = sum(time for name, time in times.items() if "scaled_dot_product" in name)
    return products / sum(times.values()), attention / sum(times.values())


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, 0 if 1 does not: doubled until it does not, then halved between."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batch(model: torch.nn.Module, config: SapiensConfig, options: argparse.Namespace) -> int:
    """Images of a step that the GPU's memory holds, without an optimiser's states."""
    num_patches = (options.image_px // config.patch_size) ** 2

    def fits(batch: int) -> bool:
        try:
            pixels = torch.zeros(batch, 3, options.image_px, options.image_px, device=options.device)
            noise = torch.rand(batch, num_patches, device=options.device)
            step(model, {"pixel_values": pixels, "noise": noise}, getattr(torch, options.dtype))
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    return largest(fits)


def main() -> None:
    """Print images per second, memory and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.3b")
    parser.add_argument("--image_px", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--find_batch", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.find_batch and "cuda" not in options.device:
        parser.error(f"--find_batch is for a GPU's memory: take --device cuda, not {options.device}")
    if options.tiny:
        options.image_px = min(options.image_px, 128)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, models = build(options)
    if options.find_batch:
        print(f"largest batch of sapiens_hf that fits: {largest_batch(models['sapiens_hf'], config, options)}")
    num_patches = (options.image_px // config.patch_size) ** 2
    inputs = {
        "pixel_values": torch.randn(options.batch, 3, options.image_px, options.image_px, device=options.device),
        "noise": torch.rand(options.batch, num_patches, device=options.device),
    }
    dtype = getattr(torch, options.dtype)
    memory = {name: memory_mib(model, inputs, dtype) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        seconds(model, inputs, dtype)
    for turn in range(options.repeats):
        names = list(models) if turn % 2 == 0 else list(models)[::-1]
        for name in names:
            times[name].append(seconds(models[name], inputs, dtype))
    rates = {name: options.batch / statistics.median(values) for name, values in times.items()}
    for name in models:
        print(f"{name:14s} {rates[name]:10.3f} images/s   {memory[name]:10.1f} MiB")
    pairs = [theirs / ours for ours, theirs in zip(times["sapiens_hf"], times["transformers"], strict=True)]
    print(f"speed ours / theirs: {rates['sapiens_hf'] / rates['transformers']:.3f} (goal at least 1.1)")
    print(f"  by round: {', '.join(f'{ratio:.3f}' for ratio in pairs)}")
    print(f"memory ours / theirs: {memory['sapiens_hf'] / memory['transformers']:.3f} (goal at most 1)")
    if options.device == "cpu":
        for name, model in models.items():
            products, attention = shares(model, inputs, dtype)
            print(f"{name:14s} matrix products {products:.1%}, attention {attention:.1%} of a step")
    peak = measured_peak_tflops(torch.device(options.device), dtype, size=8192 if "cuda" in options.device else 1024)
    share = rates["sapiens_hf"] * mae_flops(config) / (peak * 1e12)
    print(f"measured matmul peak {peak:.3f} TFLOP/s; share of it, ours: {share:.3f}")


if __name__ == "__main__":
    main()

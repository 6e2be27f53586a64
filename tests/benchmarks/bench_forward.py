"""Forward pass of the 0.3b backbone against transformers' ViTModel of the same width, depth and number of tokens.

    python tests/benchmarks/bench_forward.py [--size 0.3b] [--dtypes float32 bfloat16] [--threads 1 2] [--repeats 3]
        [--device cpu] [--tiny]

Both models run in this process on the same pixels (1024 x 768, 3072 patches) with the same attention. Rounds alternate
between the two and the order changes every round, so that whatever else the machine does hits both. Times are medians
in milliseconds; the goal is a ratio of at most 1. The ViT has one token more, its class token (0.03 % of the work),
and no pooler. The outputs differ because the weights are random; parameters of the blocks are counted and must agree.
`--tiny` is a quick check that the script works: its numbers say nothing.
"""

import argparse
import os
import statistics
import time

import torch
from transformers import ViTConfig, ViTModel

from sapiens_hf import SapiensConfig, SapiensModel


def build(size: str, tiny: bool, device: str) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """Our model, the peer and pixels."""
    narrow = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96) if tiny else {}
    config = SapiensConfig.from_size(size, **narrow, **({"image_size": [96, 64]} if tiny else {}))
    peer_config = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_act="gelu",
        layer_norm_eps=config.layer_norm_eps,
        image_size=config.image_size,
        patch_size=config.patch_size,
        qkv_bias=True,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        ours = SapiensModel._from_config(config, attn_implementation="sdpa").eval()
        peer = ViTModel(peer_config, add_pooling_layer=False).eval()
        pixels = torch.randn(1, 3, *config.image_size, generator=torch.Generator(device).manual_seed(1))
    blocks = [sum(p.numel() for name, p in m.named_parameters() if "layers." in name) for m in (ours, peer)]
    if blocks[0] != blocks[1]:
        raise SystemExit(f"The two encoders differ: {blocks[0]} and {blocks[1]} parameters.")
    print(f"{blocks[0]:,} parameters in {config.num_hidden_layers} blocks, pixels {tuple(pixels.shape)}")
    return ours, peer, pixels


def run_ms(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    if pixels.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


@torch.inference_mode()
def compare(ours: torch.nn.Module, peer: torch.nn.Module, pixels: torch.Tensor, repeats: int, name: str) -> None:
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for model in (ours, peer):
        run_ms(model, pixels)
    for turn in range(repeats):
        pair = [("ours", ours), ("peer", peer)]
        for who, model in pair if turn % 2 == 0 else reversed(pair):
            times[who].append(run_ms(model, pixels))
    mine, theirs = (statistics.median(times[who]) for who in ("ours", "peer"))
    spread = max(max(t) / min(t) for t in times.values())
    print(
        f"  {name:20s} ours {mine:9.1f} ms, ViTModel {theirs:9.1f} ms, ratio {mine / theirs:.3f} (goal 1 or less), "
        f"best against best {min(times['ours']) / min(times['peer']):.3f}, spread of runs {spread:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="0.3b")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    ours, peer, pixels = build(args.size, args.tiny, args.device)
    for dtype in args.dtypes:
        for model in (ours, peer):
            model.to(getattr(torch, dtype))
        for threads in args.threads if args.device == "cpu" else [torch.get_num_threads()]:
            torch.set_num_threads(threads)
            where = f"{threads} thread(s)" if args.device == "cpu" else args.device
            compare(ours, peer, pixels.to(getattr(torch, dtype)), args.repeats, f"{dtype}, {where}")


if __name__ == "__main__":
    main()

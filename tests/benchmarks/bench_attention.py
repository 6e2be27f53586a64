"""torch's fused attention against the plain one on a CPU, forward and backward: which `attn_implementation` to take.

    python tests/benchmarks/bench_attention.py [--threads 1] [--repeats 7]

Printed for each shape and number format: the smallest time of either in milliseconds, and fused / plain.
"""

import argparse
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# batch, heads, tokens, width: the small checkpoints (patches of 16 px, of 8), a pretraining decoder of 384 px,
# its encoder, a 0.3b at 512 px
SHAPES = ((16, 5, 49, 32), (16, 5, 192, 32), (8, 16, 577, 32), (8, 16, 145, 64), (1, 16, 1025, 64))
BACKENDS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def seconds(backend: SDPBackend, inputs: list[torch.Tensor], repeats: int) -> float:
    """Of the fastest forward and backward pass."""
    times = []
    with sdpa_kernel(backend):
        for _ in range(repeats + 1):  # the first one is not counted
            start = time.perf_counter()
            scaled_dot_product_attention(*inputs).sum().backward()
            times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Print a line for each shape and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for batch, heads, tokens, width in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            # As a linear layer leaves them: heads side by side.
            packed = torch.randn(3, batch, tokens, heads, width, dtype=dtype).transpose(2, 3)
            inputs = [part.detach().requires_grad_() for part in packed]
            times = {name: 1e3 * seconds(backend, inputs, options.repeats) for name, backend in BACKENDS.items()}
            print(
                f"{batch} x {heads} x {tokens} x {width} {str(dtype).removeprefix('torch.'):9s}"
                f"fused {times['fused']:8.1f} ms   plain {times['plain']:8.1f} ms   "
                f"fused / plain {times['fused'] / times['plain']:.2f}"
            )


if __name__ == "__main__":
    main()

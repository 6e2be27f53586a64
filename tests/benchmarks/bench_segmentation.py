"""Logits 28 x 512 x 384 -> label maps at the size of a photo: ours against `F.interpolate` + `argmax`, same resize
mode.

    python tests/benchmarks/bench_segmentation.py [--threads 1 2] [--repeats 5] [--memory]

Both sides run in this process on the same logits and their labels are compared. Times are medians in milliseconds; the
goal is 3 times faster. `smooth` logits look like a segmented person, `noise` is white noise. Ours does the same work
for both. `--memory` prints how
much one 3840 x 2160 label map adds to the peak memory of this process (goal: at most 200 MB).
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from sapiens_hf.post_processing_sapiens import SapiensPostProcessingMixin

NUM_LABELS, HEIGHT, WIDTH = 28, 512, 384
NETWORK = (1024, 768)


class Processor(SapiensPostProcessingMixin):
    size = {"height": NETWORK[0], "width": NETWORK[1]}


def make_logits(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "noise":
        return torch.randn(1, NUM_LABELS, HEIGHT, WIDTH, generator=generator)
    coarse = torch.randn(1, NUM_LABELS, HEIGHT // 32, WIDTH // 32, generator=generator) * 6
    return F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic")


def plain(logits: torch.Tensor, target: tuple[int, int], resize: str) -> torch.Tensor:
    if resize == "two_step":
        logits = F.interpolate(logits, size=NETWORK, mode="bilinear", align_corners=False)
    return F.interpolate(logits, size=target, mode="bilinear", align_corners=False).argmax(dim=1)[0]


def median_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def compare(kind: str, target: tuple[int, int], resize: str, repeats: int) -> None:
    logits = make_logits(kind)
    outputs, processor = SimpleNamespace(logits=logits), Processor()

    def ours() -> torch.Tensor:
        return processor.post_process_semantic_segmentation(outputs, [target], resize=resize)[0]

    def peer() -> torch.Tensor:
        return plain(logits, target, resize)

    different = int((ours() != peer()).sum())
    peer_ms, ours_ms = median_ms(peer, repeats), median_ms(ours, repeats)
    print(
        f"  {kind:6s} {resize:8s} -> {target[1]} x {target[0]}: ours {ours_ms:7.1f} ms, interpolate + argmax "
        f"{peer_ms:7.1f} ms, {peer_ms / ours_ms:4.1f}x (goal 3), {different} of {target[0] * target[1]} labels differ"
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show_memory() -> None:
    for resize in ("direct", "two_step"):
        outputs = SimpleNamespace(logits=make_logits("noise"))
        processor = Processor()
        processor.post_process_semantic_segmentation(outputs, [(64, 48)], resize=resize)
        before = peak_mb()
        processor.post_process_semantic_segmentation(outputs, [(2160, 3840)], resize=resize)
        print(f"  labels at 3840 x 2160, {resize}: at most {peak_mb() - before:.0f} MB beyond the logits (goal 200)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="only measure memory")
    args = parser.parse_args()
    if args.memory:
        show_memory()
        return
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread(s), torch {torch.__version__}")
        for resize in ("two_step", "direct"):
            for target in ((1080, 1920), (1920, 1080)):
                for kind in ("smooth", "noise"):
                    compare(kind, target, resize, args.repeats)


if __name__ == "__main__":
    main()

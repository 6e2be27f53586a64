"""Decoding 308 heatmaps of 256 x 192: ours against OpenCV + numpy and against transformers' Sapiens2 post-processing.

    python tests/benchmarks/bench_decode.py [--people 1 8] [--threads 1 2] [--repeats 5]

All three run in this process, one after the other, on the same maps, and their keypoints are compared. Times are
medians in milliseconds. Goals: 8 times faster than OpenCV + numpy, 20 times faster than transformers, for one person
and for eight.

Maps, from easy to hard for us (the blur can be confined to a window unless the clip of the logarithm takes part):
  bumps: a bump of sigma 6 per keypoint, heights 0.02 to 1, plus noise of 0.002: what a trained model gives;
  faint: as bumps, but every third keypoint is not found: a ripple of height 0.004;
  noise: white noise around zero, no structure at all.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from transformers import Sapiens2ImageProcessor

from sapiens_hf import SapiensImageProcessor
from sapiens_hf.heatmaps_sapiens import boxes_to_crops

NUM_KEYPOINTS, HEIGHT, WIDTH = 308, 256, 192
SIZE = (1024, 768)


def make_maps(kind: str, people: int) -> torch.Tensor:
    """(people, 308, 256, 192) float32 heatmaps."""
    generator = torch.Generator().manual_seed(people)
    shape = (people, NUM_KEYPOINTS, HEIGHT, WIDTH)
    if kind == "noise":
        return torch.randn(shape, generator=generator)
    x = torch.rand(shape[:2], generator=generator) * (WIDTH - 1)
    y = torch.rand(shape[:2], generator=generator) * (HEIGHT - 1)
    peak = 0.02 + 0.98 * torch.rand(shape[:2], generator=generator)
    if kind == "faint":
        peak[:, ::3] = 0.004
    bump_x = torch.exp(-((torch.arange(WIDTH) - x[..., None]) ** 2) / 72)
    bump_y = torch.exp(-((torch.arange(HEIGHT) - y[..., None]) ** 2) / 72)
    maps = bump_y[..., :, None] * bump_x[..., None, :] * peak[..., None, None]
    return maps + 0.002 * torch.randn(shape, generator=generator)


def decode_opencv(heatmaps: np.ndarray, centers: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One map at a time with OpenCV's blur, then the step with `np.linalg.inv`, as the original is described."""
    people, count, height, width = heatmaps.shape
    keypoints = np.empty((people, count, 2))
    scores = np.empty((people, count), np.float32)
    for person in range(people):
        maps = heatmaps[person].copy()
        flat = maps.reshape(count, -1)
        best = flat.argmax(axis=1)
        scores[person] = flat.max(axis=1)
        place = np.stack([best % width, best // width], axis=1).astype(np.float32)
        place[scores[person] <= 0] = -1
        for k in range(count):
            padded = np.zeros((height + 10, width + 10), np.float32)
            padded[5:-5, 5:-5] = maps[k]
            blurred = cv2.GaussianBlur(padded, (11, 11), 0)[5:-5, 5:-5]
            maps[k] = blurred * (maps[k].max() / blurred.max())
        maps = np.log(np.clip(maps, 1e-3, 50.0))
        maps = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge").reshape(-1)
        start = np.arange(count) * (height + 2) * (width + 2)
        at = (start + (place[:, 1].astype(np.int64) + 1) * (width + 2) + place[:, 0].astype(np.int64) + 1)[:, None]
        line = width + 2
        center, right, left, down, up, right_down, left_up = (
            maps[at + shift] for shift in (0, 1, -1, line, -line, line + 1, -line - 1)
        )
        gradient = np.stack([(right - left) / 2, (down - up) / 2], axis=1)
        xx, yy = right - 2 * center + left, down - 2 * center + up
        xy = (right_down - right - down + 2 * center - left - up + left_up) / 2
        hessian = np.concatenate([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2)
        inverse = np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2))
        place -= np.einsum("nij,njk->nik", inverse, gradient)[..., 0]
        keypoints[person] = place / [width - 1, height - 1] * scales[person] + centers[person] - 0.5 * scales[person]
    return keypoints, scores


def median_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def compare(kind: str, people: int, repeats: int) -> None:
    heatmaps = make_maps(kind, people)
    boxes = [[30.0 + 40 * person, 20.0 + 10 * person, 240.0 + person, 510.0] for person in range(people)]
    centers, scales = boxes_to_crops(torch.tensor(boxes, dtype=torch.float64), SIZE)
    processor, peer = SapiensImageProcessor(), Sapiens2ImageProcessor()
    outputs = SimpleNamespace(heatmaps=heatmaps)

    def ours() -> list[dict[str, torch.Tensor]]:
        return processor.post_process_pose_estimation(outputs, [boxes])[0]

    def opencv() -> tuple[np.ndarray, np.ndarray]:
        return decode_opencv(heatmaps.numpy(), centers.numpy(), scales.numpy())

    def sapiens2() -> object:
        return peer.post_process_pose_estimation(outputs, [boxes])

    got, want = np.stack([person["keypoints"].numpy() for person in ours()]), opencv()[0]
    difference = np.abs(got - want).max(-1)
    rows = {work.__name__: median_ms(work, repeats) for work in (opencv, sapiens2, ours)}
    print(
        f"  {kind:6s} {people} people  ours {rows['ours']:8.2f} ms   opencv+numpy {rows['opencv']:8.1f} ms = "
        f"{rows['opencv'] / rows['ours']:5.1f}x (goal 8)   transformers sapiens2 {rows['sapiens2']:8.1f} ms = "
        f"{rows['sapiens2'] / rows['ours']:5.1f}x (goal 20)   {(difference < 0.01).mean():.2%} within 0.01 px"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        print(f"{threads} thread(s), torch {torch.__version__}, OpenCV {cv2.__version__}")
        for kind in ("bumps", "faint", "noise"):
            for people in args.people:
                compare(kind, people, args.repeats)


if __name__ == "__main__":
    main()

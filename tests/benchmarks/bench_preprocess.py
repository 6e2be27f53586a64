# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and limitations under the License.
"""A 1920 x 1080 photo, and one person crop of it, to a normalised 1024 x 768 tensor.

    python tests/benchmarks/bench_preprocess.py [--threads 1 2] [--repeats 30]

Ours is the whole processor call: reading the array, checking boxes, sampling, rounding, normalising. Peers, in the
same run: OpenCV (`cv2.resize`, `cv2.warpAffine`) followed by one of three ways to normalise,
  numpy: `(image - mean) / std` on float32, then channels first;
  torch: channels first, `.float()`, `(x - mean) / std`;
  tuned: one conversion into planes of floats, then in place (the least memory that PyTorch can touch);
and transformers' Sapiens2ImageProcessor on the same array and box. Runs alternate, so that a busy moment hits all; a
ratio above 1 means that ours is faster.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from transformers import Sapiens2ImageProcessor

from sapiens_hf import SapiensImageProcessor, SapiensImageProcessorPil
from sapiens_hf.heatmaps_sapiens import boxes_to_crops, crop_matrix

HEIGHT, WIDTH = 1024, 768
BOX = [600.0, 100.0, 400.0, 850.0]
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def make_photo() -> np.ndarray:
    """(1080, 1920, 3) uint8 with structure at every scale."""
    noise = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


def normalise_numpy(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(((image.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)))


def normalise_torch(image: np.ndarray) -> torch.Tensor:
    planes = torch.from_numpy(image).permute(2, 0, 1).float()
    return (planes - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]


def normalise_tuned(image: np.ndarray) -> torch.Tensor:
    planes = torch.empty(3, *image.shape[:2]).copy_(torch.from_numpy(image).permute(2, 0, 1))
    return planes.sub_(torch.from_numpy(MEAN)[:, None, None]).div_(torch.from_numpy(STD)[:, None, None])


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and minimum in ms of each; the rounds alternate so that a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + 2):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (statistics.median(values), min(values)) for name, values in times.items()}


def report(title: str, works: dict[str, Callable[[], object]], repeats: int) -> None:
    rows = interleaved(works, repeats)
    print(f"  {title}")
    for name, (median, least) in rows.items():
        ratios = ""
        if name != "ours":
            ratios = f"   ours is {median / rows['ours'][0]:5.2f}x as fast (minimum {least / rows['ours'][1]:5.2f}x)"
        print(f"    {name:28s} median {median:7.2f} ms   minimum {least:7.2f} ms{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    photo = make_photo()
    centers, scales = boxes_to_crops(torch.tensor([BOX]), (HEIGHT, WIDTH))
    matrix = crop_matrix(centers, scales, (HEIGHT, WIDTH))[0].numpy()
    ours, pil, peer = SapiensImageProcessor(), SapiensImageProcessorPil(), Sapiens2ImageProcessor()

    def resized() -> np.ndarray:
        return cv2.resize(photo, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)

    def warped() -> np.ndarray:
        return cv2.warpAffine(photo, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)

    for title, opencv, boxes in (("photo", resized, None), ("person crop", warped, [[BOX]])):
        got = ours(photo, boxes=boxes, return_tensors="pt")["pixel_values"][0]
        levels = ((got - normalise_tuned(opencv())) * torch.from_numpy(STD)[:, None, None]).abs()
        print(f"{title}: at most {levels.max():.2f} grey levels from OpenCV, {levels.mean():.4f} on average")
    for threads in args.threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        print(f"{threads} thread(s), torch {torch.__version__}, OpenCV {cv2.__version__}")
        for title, opencv, boxes in (("photo", resized, None), ("person crop", warped, [[BOX]])):
            works: dict[str, Callable[[], object]] = {
                "ours": lambda boxes=boxes: ours(photo, boxes=boxes, return_tensors="pt"),
                "ours without torchvision": lambda boxes=boxes: pil(photo, boxes=boxes, return_tensors="pt"),
                "opencv + numpy": lambda opencv=opencv: normalise_numpy(opencv()),
                "opencv + torch": lambda opencv=opencv: normalise_torch(opencv()),
                "opencv + tuned": lambda opencv=opencv: normalise_tuned(opencv()),
                "transformers sapiens2": lambda boxes=boxes: peer(photo, boxes=boxes, return_tensors="pt"),
            }
            report(title, works, args.repeats)


if __name__ == "__main__":
    main()

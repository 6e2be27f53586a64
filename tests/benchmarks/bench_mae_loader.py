"""The loader of pretraining: images decoded and cropped per second and core, and how long a training step waits.

    python tests/benchmarks/bench_mae_loader.py [--photo_px 1600 1200] [--crop_px 1024] [--num_photos 4] [--repeats 3]
        [--wait_steps 0] [--workers 1]

Baselines in the same process on the same JPEGs: Pillow alone (open, convert, random crop, bicubic, flip), and
torchvision (RandomResizedCrop on PIL images, and decode_jpeg with antialiased bicubic on tensors). With
`--wait_steps` a tiny model trains on the photos as well, and the share of the time it waits for the loader is printed.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # training/ is not installed
from training.pretrain_data import CropOptions, crop_image, open_image  # noqa: E402
from training.pretrain_mae import main as pretrain  # noqa: E402


def photos(count: int, height: int, width: int) -> list[bytes]:
    """JPEGs with detail at all scales, so that decoding costs what it costs for photographs."""
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height), 3), float
            )
            for n in (4, 16, 64, 256)
        ]
        image = np.average(layers, axis=0, weights=(8, 4, 2, 1)) + rng.normal(0, 4, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def ways(crop_px: int) -> dict[str, Callable[[bytes, int], object]]:
    """Name and function of (JPEG, seed) for each way to make a crop."""
    exact, fast = CropOptions((crop_px, crop_px)), CropOptions((crop_px, crop_px), fast_decode=True)
    crop, flip = RandomResizedCrop(crop_px, interpolation=InterpolationMode.BICUBIC), RandomHorizontalFlip()

    def ours(options: CropOptions) -> Callable[[bytes, int], object]:
        return lambda content, seed: crop_image(
            open_image(content, "a", options), "a", options, np.random.default_rng(seed)
        )

    def pillow(content: bytes, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        image = Image.open(io.BytesIO(content)).convert("RGB")
        top, left, height, width = crop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
        image = image.crop((left, top, left + width, top + height)).resize(
            (crop_px, crop_px), Image.Resampling.BICUBIC
        )
        return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if seed % 2 else image)

    def torchvision_pil(content: bytes, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return np.asarray(flip(crop(Image.open(io.BytesIO(content)).convert("RGB"))))

    def torchvision_tensor(content: bytes, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return flip(crop(decode_jpeg(data, mode=ImageReadMode.RGB)))

    return {
        "sapiens_hf": ours(exact),
        "sapiens_hf fast_decode": ours(fast),
        "Pillow": pillow,
        "torchvision on PIL": torchvision_pil,
        "torchvision on tensors": torchvision_tensor,
    }


def main() -> None:
    """Print images per second of each way and, if asked, the share of waiting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo_px", type=int, nargs=2, default=(1600, 1200), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crop_px", type=int, default=1024)
    parser.add_argument("--num_photos", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait_steps", type=int, default=0, help="steps of training to measure waiting in; 0: none")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contents = photos(options.num_photos, *options.photo_px)
    print(
        f"{len(contents)} JPEGs of {options.photo_px} pixels, {np.mean([len(c) for c in contents]) / 1e3:.0f} kB each"
    )
    times: dict[str, list[float]] = {name: [] for name in ways(options.crop_px)}
    for turn in range(options.repeats):
        entries = list(ways(options.crop_px).items())
        for name, make in entries if turn % 2 == 0 else entries[::-1]:
            since = time.perf_counter()
            for seed, content in enumerate(contents):
                make(content, seed + turn * len(contents))
            times[name].append((time.perf_counter() - since) / len(contents))
    ours = statistics.median(times["sapiens_hf"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:24s} {1 / median:8.2f} images/s per core   {median / ours:.3f} of ours in time")
    if not options.wait_steps:
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "photos").mkdir()
        for index, content in enumerate(contents):
            (place / "photos" / f"{index}.jpg").write_bytes(content)
        side = str(options.crop_px)
        pretrain(
            [
                *("--train_data", str(place / "photos"), "--output_dir", str(place / "run"), "--model_size", "tiny"),
                *("--image_size", side, side, "--batch_size", "2", "--num_workers", str(options.workers)),
                *(
                    "--max_steps",
                    str(options.wait_steps),
                    "--log_every",
                    str(options.wait_steps),
                    "--min_side_px",
                    "1",
                ),
                *("--pictures_every", "0"),
            ]
        )
        (line,) = (json.loads(text) for text in (place / "run" / "metrics.jsonl").read_text().splitlines())
        print(f"training: {line['images_per_s']} images/s, share of waiting {line['waiting_share']}")


if __name__ == "__main__":
    main()

"""All four tasks on a photograph, through the command line, with full-size 0.3b files in Meta's format.

Run with `make demo`, or `python docs/demo_full_size.py --output demo_output`. Nothing is downloaded. The weights are
random: the pictures show that every step runs at full size, not what Sapiens sees. For that, give Meta's own file to
`--model`. About 3 GB of memory, 1.4 GB of disk at a time, and a few minutes on two CPU cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from original_files import full_size, write_large_pth  # noqa: E402

from sapiens_hf import side_by_side  # noqa: E402

PERSON = [62.0, 0.0, 390.0, 511.0]  # COCO box of the astronaut
PICTURES = {"pose": ".pose.png", "segmentation": ".segmentation.png", "depth": ".depth.png", "normal": ".normal.png"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    from skimage import data

    photo = output / "astronaut.png"
    Image.fromarray(data.astronaut()).save(photo)
    boxes = output / "boxes.json"
    boxes.write_text(json.dumps({photo.name: [PERSON]}))

    print("The weights are RANDOM (no trained checkpoint is at hand): pictures show the path, not predictions.")
    for task in PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            model = write_large_pth(Path(folder) / f"sapiens_0.3b_random_{task}.pth", full_size("0.3b", task))
            print(f"\n{task}: {model.name}, {model.stat().st_size / 1e9:.2f} GB", flush=True)
            command = ["-m", "sapiens_hf.cli", "predict", str(photo), "--task", task, "--model", str(model)]
            command += ["--output", str(output), "--overwrite", *(["--boxes", str(boxes)] if task == "pose" else [])]
            subprocess.run([sys.executable, *command], check=True)

    pictures = [Image.open(photo), *(Image.open(output / f"astronaut{suffix}") for suffix in PICTURES.values())]
    side_by_side(pictures, ["photograph", *(f"{task} (random weights)" for task in PICTURES)]).save(
        output / "demo.png"
    )
    print(f"\nAll four tasks ran. Pictures and data are in {output}; overview: {output / 'demo.png'}")


if __name__ == "__main__":
    main()

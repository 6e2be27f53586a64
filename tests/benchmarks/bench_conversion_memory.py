"""Peak memory and time of converting a full-width checkpoint, and of loading the result back, as a share of the file.

    python tests/benchmarks/bench_conversion_memory.py 0.3b --task pose
    python tests/benchmarks/bench_conversion_memory.py 1b --task segmentation

Makes a file in the original's format with random weights (its own process), converts it (second process:
load_original, comparison with the file, save_pretrained), loads the folder with from_pretrained and compares every
tensor with the original file bit by bit (third process), and removes everything. Needs free disk for twice the file.

Two peaks are printed: VmHWM, all memory the process ever had resident, mapped pages of files included; and anonymous
memory (RssAnon, sampled every 5 ms), which is what the process itself asked for. Both also less what the process had
before the work began (Python, torch, transformers). Exit status 1 if VmHWM is above 2.2 times the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 2.2


def memory_bytes(key: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {key} in /proc/self/status: this script needs Linux")


class Meter:
    """Time, VmHWM and the highest RssAnon between entry and exit."""

    def __enter__(self):
        self.before = {"rss": memory_bytes("VmRSS"), "anonymous": memory_bytes("RssAnon")}
        self.anonymous, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        self.start = time.perf_counter()
        return self

    def sample(self):
        while not self.done.wait(0.005):
            self.anonymous = max(self.anonymous, memory_bytes("RssAnon"))

    def __exit__(self, *details):
        self.seconds = time.perf_counter() - self.start
        self.done.set()
        self.thread.join()
        self.peak = memory_bytes("VmHWM")

    def report(self, **more) -> str:
        values = dict(seconds=self.seconds, peak=self.peak, anonymous=self.anonymous, before=self.before, **more)
        return json.dumps(values)


def make(path: Path, size: str, task: str) -> str:
    import original_files

    start = time.perf_counter()
    original_files.write_large_pth(path, original_files.full_size(size, task))
    return json.dumps({"seconds": time.perf_counter() - start})


def convert(path: Path, folder: Path) -> str:
    import sapiens_hf
    from conversion.convert import convert

    sapiens_hf.load_original, sapiens_hf.SapiensImageProcessor  # noqa: B018  (imported before the measurement begins)
    with Meter() as meter:
        convert(path, folder)
    return meter.report()


def load_back(path: Path, folder: Path) -> str:
    import sapiens_hf
    from conversion.verify import compare_weights

    model_class = getattr(sapiens_hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    with Meter() as meter:
        model = model_class.from_pretrained(folder)  # maps the file: its pages arrive when they are compared
        (row,) = compare_weights(model, path)
    return meter.report(compared=row.name, difference=row.difference)


STEPS = {"make": make, "convert": convert, "load_back": load_back}


def run_step(step: str, *arguments: object) -> dict:
    """Runs one step in a process of its own and returns what it measured."""
    command = [sys.executable, __file__, "--step", step, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=("0.3b", "0.6b", "1b", "2b"))
    parser.add_argument("--task", default="pose", choices=("pose", "segmentation", "depth", "normal", "pretraining"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path, folder = Path(temporary) / "checkpoint.pth", Path(temporary) / "converted"
        made = run_step("make", path, arguments.size, arguments.task)
        file_bytes = path.stat().st_size
        print(f"{arguments.size} {arguments.task}: file {file_bytes / 1e9:.3f} GB, made in {made['seconds']:.0f} s")
        steps = {step: run_step(step, path, folder) for step in ("convert", "load_back")}
    print(f"{'step':10} {'seconds':>8} {'VmHWM GB':>9} {'/ file':>7} {'less start':>11} {'anonymous / file':>17}")
    for step, got in steps.items():
        less_start = (got["peak"] - got["before"]["rss"]) / file_bytes
        print(
            f"{step:10} {got['seconds']:8.1f} {got['peak'] / 1e9:9.2f} {got['peak'] / file_bytes:7.2f} "
            f"{less_start:11.2f} {got['anonymous'] / file_bytes:17.2f}"
        )
    back = steps["load_back"]
    print(f"loaded back: {back['compared']} compared, largest difference {back['difference']}")
    fits = all(got["peak"] <= LIMIT * file_bytes for got in steps.values())
    print(f"at most {LIMIT} x the file: {'yes' if fits else 'NO'}")
    return 0 if fits and back["difference"] == 0 else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step, *values = sys.argv[2:]
        print(STEPS[step](*[Path(v) if os.sep in v else v for v in values]))
        sys.exit(0)
    sys.exit(main())

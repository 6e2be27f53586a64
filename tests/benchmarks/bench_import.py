"""Seconds to import: `import sapiens_hf` beside `import transformers` plus torch, and the first use of each.

    python tests/benchmarks/bench_import.py [--repeats 9]

Every reading is a fresh interpreter, less the median of an empty one; programs take turns, so that whatever else the
machine does hits all. Goals: the import costs at most 15 % over transformers plus torch. `import sapiens_hf` itself
loads neither, so the second comparison is the honest one: all three together. The third is what a user waits for
until a model class is at hand.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "empty": "pass",
    "sapiens_hf": "import sapiens_hf",
    "transformers, torch": "import transformers, torch",
    "transformers, torch, sapiens_hf": "import transformers, torch, sapiens_hf",
    "ViTModel": "from transformers import ViTModel",
    "SapiensModel": "from sapiens_hf import SapiensModel",
    "pipeline": "from transformers import pipeline",
    "pipeline with sapiens_hf": "import sapiens_hf; from transformers import pipeline",
}
COMPARISONS = (
    ("import sapiens_hf alone", "sapiens_hf", "transformers, torch", 1.15),
    ("import transformers, torch, sapiens_hf", "transformers, torch, sapiens_hf", "transformers, torch", 1.15),
    ("from sapiens_hf import SapiensModel (peer: ViTModel)", "SapiensModel", "ViTModel", None),
    ("import sapiens_hf; from transformers import pipeline", "pipeline with sapiens_hf", "pipeline", None),
)


def seconds(program: str) -> tuple[float, float]:
    """Wall and processor seconds of a fresh interpreter."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    readings: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():  # the first run reads the files from disk
        seconds(program)
    for _ in range(args.repeats):
        for name, program in PROGRAMS.items():
            readings[name].append(seconds(program))
    for kind, column in (("wall clock", 0), ("processor time", 1)):
        medians = {name: statistics.median(r[column] for r in values) for name, values in readings.items()}
        print(f"{kind}, median of {args.repeats}, empty interpreter {medians['empty']:.3f} s taken off")
        for title, ours, peer, goal in COMPARISONS:
            mine, theirs = medians[ours] - medians["empty"], medians[peer] - medians["empty"]
            wanted = "" if goal is None else f" (goal {goal:.2f} or less)"
            print(f"  {title:54s} {mine:6.3f} s, peer {theirs:6.3f} s, ratio {mine / theirs:.3f}{wanted}")


if __name__ == "__main__":
    main()

"""`python -m sapiens_hf.synthetic make --out DIR --count N --size 1024x768 --seed S`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

from .writers import FORMATS, Recipe, make


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 1024x768, got {text!r}")
    return int(match[1]), int(match[2])


def _people(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d)(?:-(\d))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number or FEWEST-MOST such as 1-4, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _formats(text: str) -> tuple[str, ...]:
    if text == "all":
        return FORMATS
    asked = text.split(",")
    known = tuple(name for name in FORMATS if name in asked)  # in one order: a data set can be continued in any
    return known + tuple(name for name in asked if name not in FORMATS)  # which `make` refuses


def _progress_bar(steps: Iterator[int], total: int, done: int) -> Iterator[int]:
    from tqdm import tqdm

    return iter(tqdm(steps, total=total, initial=done, unit="image", desc="making"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sapiens_hf.synthetic", description="Pictures of synthetic people with exact labels."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make", help="write a data set to a folder; a second call continues it")
    command.add_argument("--out", required=True, metavar="DIR", help="folder to create or continue")
    command.add_argument("--count", required=True, type=int, help="number of samples")
    command.add_argument("--size", type=_size, default=(1024, 768), metavar="HxW", help="default 1024x768")
    command.add_argument("--seed", type=int, default=0, help="the data set; take another one for testing (default 0)")
    command.add_argument("--people", type=_people, default=(1, 4), metavar="N-M", help="per picture (default 1-4)")
    command.add_argument("--workers", type=int, default=1, help="processes (default 1); the files do not depend on it")
    command.add_argument(
        "--formats", type=_formats, default=FORMATS, metavar="LIST", help=f"all, or some of {','.join(FORMATS)}"
    )
    command.add_argument("--crop", action="store_true", help="one person in the middle of each picture, filling it")
    options = parser.parse_args(arguments)
    height, width = options.size
    recipe = Recipe(options.seed, height, width, options.people, tuple(options.formats), options.crop)
    try:
        written = make(options.out, recipe, options.count, options.workers, _progress_bar)
    except (FileExistsError, ImportError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print(f"{options.out}: {options.count} samples ({written} new), seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

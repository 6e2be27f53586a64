r"""Fine-tune relative depth.

    accelerate launch training/finetune_depth.py --train_data my_depth --val_data my_depth \
        --recipe depth-render_people-0.3b --model_name_or_path facebook/sapiens-pretrain-0.3b --output_dir runs/depth

`my_depth` holds images/, masks/ and depths/. docs/training.md has the other ways to run it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the checkout's root comes in the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.jobs import end_processes, train  # noqa: E402
from training.options import DepthOptions, parse_options  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run from command-line arguments; returns the last evaluation's metrics and the last loss."""
    return train(parse_options(DepthOptions, arguments))


if __name__ == "__main__":
    main()
    end_processes()

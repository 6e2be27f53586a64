r"""Fine-tune 2D pose.

    accelerate launch training/finetune_pose.py --train_data coco/annotations/person_keypoints_train2017.json \
        --val_data coco/annotations/person_keypoints_val2017.json --recipe pose-coco-0.3b \
        --model_name_or_path facebook/sapiens-pretrain-0.3b --output_dir runs/pose

docs/training.md has the other ways to run it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the checkout's root comes in the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.jobs import end_processes, train  # noqa: E402
from training.options import PoseOptions, parse_options  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run from command-line arguments; returns the last evaluation's metrics and the last loss."""
    return train(parse_options(PoseOptions, arguments))


if __name__ == "__main__":
    main()
    end_processes()

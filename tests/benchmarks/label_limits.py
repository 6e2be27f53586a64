"""What a perfect network scores if its maps have a given size: exact labels, averaged to that size, as predictions.

python tests/benchmarks/label_limits.py --data runs/tiny/humans_val [--size 64 48]
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn.functional import interpolate, one_hot
from transformers.modeling_outputs import SemanticSegmenterOutput

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sapiens_hf import SapiensImageProcessor
from sapiens_hf.modeling_sapiens import SapiensNormalEstimationOutput
from training.evaluators import NormalEvaluator, SegmentationEvaluator
from training.layouts import class_layout
from training.sources import open_samples

LAYOUT = class_layout("goliath28")


def main() -> None:
    """Print mIoU and the mean angle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sapiens_hf.synthetic")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 48), help="height and width of a head's maps")
    options = parser.parse_args()
    processor = SapiensImageProcessor()
    parts, normals = (
        SegmentationEvaluator(processor, len(LAYOUT.names), LAYOUT.ignore_index),
        NormalEvaluator(processor),
    )
    for sample in open_samples(str(options.data), "segmentation", LAYOUT):
        truth = torch.as_tensor(sample["segmentation_map"]).long()
        maps = one_hot(truth.where(truth != LAYOUT.ignore_index, 0), len(LAYOUT.names)).permute(2, 0, 1)[None].float()
        parts.add(SemanticSegmenterOutput(logits=interpolate(maps, options.size, mode="area")), [sample])
    for sample in open_samples(str(options.data), "normal"):
        maps = torch.as_tensor(sample["normals"]).permute(2, 0, 1)[None].float()
        maps = interpolate(maps.nan_to_num(), options.size, mode="area")
        normals.add(SapiensNormalEstimationOutput(predicted_normal=maps), [sample])
    print(f"mIoU {parts.compute(parts.totals)['mean_iou']:.3f}")
    print(f"mean angle {normals.compute(normals.totals)['mean']:.2f} degrees")


if __name__ == "__main__":
    main()

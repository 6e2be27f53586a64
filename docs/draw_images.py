"""Draws the pictures of the README: `python docs/draw_images.py`. Needs the extra `synthetic`.

What they show are the labels of a synthetic human, not predictions.
"""

from pathlib import Path

from PIL import Image

from sapiens_hf import draw_depth, draw_keypoints, draw_normals, draw_segmentation, side_by_side
from sapiens_hf.synthetic import SyntheticHumans

IMAGES = Path(__file__).resolve().parent / "images"
CAPTIONS = ("image", "keypoints", "body parts", "relative depth", "surface normals")


def synthetic_labels(seed: int = 7, index: int = 7) -> Image.Image:
    """One sample of the synthetic humans: the image and the labels of the four tasks."""
    sample = SyntheticHumans(seed=seed, size=(512, 384))[index]
    people = [{"keypoints": points[:, :2], "scores": points[:, 2] > 0} for points in sample["keypoints"]]
    pictures = [
        Image.fromarray(sample["image"]),
        draw_keypoints(sample["image"], people, "coco_wholebody"),
        draw_segmentation(sample["image"], sample["segmentation"], legend=False),
        draw_depth(None, sample["depth"], sample["mask"]),
        draw_normals(sample["normals"].transpose(2, 0, 1), sample["mask"]),
    ]
    return side_by_side(pictures, CAPTIONS)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    picture = synthetic_labels()
    small = picture.resize((picture.width * 5 // 8, picture.height * 5 // 8), Image.Resampling.LANCZOS)
    small.save(IMAGES / "synthetic_labels.png", optimize=True)

"""All four tasks with the small checkpoints of this repository, on pictures whose exact labels are known and a photo.

Run with `make demo`, or `python docs/demo.py --output demo_output` (extra `demo`). Nothing is downloaded. Each picture
gets a contact sheet: what the networks say above what is true. The scores are of these few pictures; those of 500 are
in the cards in `checkpoints/`, beside what the checkpoints were trained on: drawn people, so the photograph is foreign
to them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from transformers import pipeline

from sapiens_hf import draw_depth, draw_keypoints, draw_normals, draw_segmentation, side_by_side
from sapiens_hf.metrics import load_metric

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS, PEOPLE = ROOT / "checkpoints", ROOT / "examples" / "people"
PERSON = [62.0, 0.0, 390.0, 511.0]  # COCO box of the astronaut
ENLARGE = 2  # of the drawings: the pictures are 256 x 192
PIPELINES = {
    "pose": "keypoint-detection",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "normal": "normal-estimation",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    run = {task: pipeline(name, model=str(CHECKPOINTS / f"tiny-{task}")) for task, name in PIPELINES.items()}

    truths = [*read_people()]
    predictions = [predict(run, truth["image"], truth["boxes"]) for truth in truths]
    for truth, prediction in zip(truths, predictions, strict=True):
        sheet = stack([draw(truth["image"], prediction, "predicted"), draw(truth["image"], truth, "exact")])
        sheet.save(output / f"people_{truth['name']}.png")

    photo = Image.fromarray(data.astronaut())
    prediction = predict(run, photo, [PERSON])
    draw(photo, prediction, "predicted", enlarge=1).save(output / "photograph.png")

    print(f"\n{'task':14}{'metric':50}{'here':>8}{'goal':>8}{'of 500':>8}")
    for task, value in scores(truths, predictions, run["segmentation"].model.config.num_labels).items():
        training = json.loads((CHECKPOINTS / f"tiny-{task}" / "training.json").read_text())
        goal, known = training["goal"], training["results"][training["goal"]["metric"]]
        verdict = "met" if (known - goal["value"]) * (1 if goal["higher_is_better"] else -1) >= 0 else "not met"
        print(f"{task:14}{goal['title']:50}{value:8.3f}{goal['value']:8g}{known:8.3f}  {verdict}")
    print(f"\n'here': these {len(truths)} pictures; 'of 500': the unseen pictures for which the goal was set.")
    print(f"A contact sheet for each picture is in {output}.")


def read_people() -> list[dict]:
    """The pictures of examples/people with their exact labels."""
    annotations = json.loads((PEOPLE / "annotations" / "person_keypoints.json").read_text())
    truths = []
    for entry in sorted(annotations["images"], key=lambda entry: entry["file_name"]):
        name = Path(entry["file_name"]).stem
        people = [person for person in annotations["annotations"] if person["image_id"] == entry["id"]]
        truths.append(
            {
                "name": name,
                "image": Image.open(PEOPLE / "images" / f"{name}.png").convert("RGB"),
                "boxes": [person["bbox"] for person in people],
                "people": np.array([person["keypoints"] for person in people], dtype=np.float32).reshape(-1, 17, 3),
                "label_map": np.array(Image.open(PEOPLE / "segmentations" / f"{name}.png")),
                "depth": np.load(PEOPLE / "depths" / f"{name}.npy"),
                "normals": np.load(PEOPLE / "normals" / f"{name}.npy").transpose(2, 0, 1),  # (H, W, 3) -> (3, H, W)
                "mask": np.array(Image.open(PEOPLE / "masks" / f"{name}.png")) > 0,
            }
        )
    return truths


def predict(run: dict, image: Image.Image, boxes: list[list[float]]) -> dict:
    """What the four pipelines say of a picture, in the form of `read_people`."""
    people = run["pose"](image, boxes=boxes, flip_test=True)  # as the original evaluates
    points = [[[point["x"], point["y"], point["score"]] for point in person["keypoints"]] for person in people]
    label_map = np.zeros((image.height, image.width), dtype=np.uint8)
    label2id = run["segmentation"].model.config.label2id
    for part in run["segmentation"](image, subtask="semantic"):
        label_map[np.array(part["mask"]) > 0] = label2id[part["label"]]
    return {
        "people": np.array(points, dtype=np.float32),
        "label_map": label_map,
        "depth": run["depth"](image)["predicted_depth"].numpy(),
        "normals": run["normal"](image)["normals"].numpy(),
        "mask": label_map > 0,
    }


def draw(image: Image.Image, found: dict, whose: str, enlarge: int = ENLARGE) -> Image.Image:
    """A row: picture, keypoints, parts, depth, normals."""
    large = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.BICUBIC)
    people = found["people"].copy()
    people[..., :2] = (people[..., :2] + 0.5) * enlarge - 0.5  # integers are centres of pixels
    label_map, mask, depth = (grow(found[name], enlarge) for name in ("label_map", "mask", "depth"))
    pictures = [
        large,
        draw_keypoints(large, people, keypoint_set="coco"),
        draw_segmentation(large, label_map, legend=False),
        draw_depth(None, depth, mask),
        draw_normals(grow(found["normals"], enlarge), mask),
    ]
    tasks = ("keypoints", "segmentation", "depth", "normal")
    return side_by_side(pictures, ["picture", *(f"{task}, {whose}" for task in tasks)])


def grow(values: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel `factor` times in both directions."""
    return values.repeat(factor, axis=-1).repeat(factor, axis=-2)


def stack(rows: list[Image.Image]) -> Image.Image:
    """Rows below each other."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def scores(truths: list[dict], predictions: list[dict], num_labels: int) -> dict[str, float]:
    """The metric of each task over all pictures, as sapiens_hf.metrics computes it."""
    metrics = {name: load_metric(name) for name in ("pck", "mean_iou", "depth_metrics", "normal_metrics")}
    for truth, found in zip(truths, predictions, strict=True):
        for box, person, points in zip(truth["boxes"], truth["people"], found["people"], strict=True):
            seen = np.where(person[:, 2:] == 2, person, 0)  # hidden ones do not count
            metrics["pck"].add(prediction=points, reference=seen, bbox=box)
        metrics["mean_iou"].add(prediction=found["label_map"], reference=truth["label_map"])
        metrics["depth_metrics"].add(prediction=found["depth"], reference=truth["depth"], mask=truth["mask"])
        metrics["normal_metrics"].add(prediction=found["normals"], reference=truth["normals"], mask=truth["mask"])
    return {
        "pose": metrics["pck"].compute(threshold=0.05)["pck"],
        "segmentation": metrics["mean_iou"].compute(num_labels=num_labels, ignore_index=255)["mean_iou"],
        "depth": metrics["depth_metrics"].compute(align="scale_shift")["delta1"],
        "normal": metrics["normal_metrics"].compute()["mean"],
    }


if __name__ == "__main__":
    main()

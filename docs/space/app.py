"""A Gradio Space for Sapiens: pose, body parts, depth and surface normals of the people in a picture.

    python docs/space/app.py --pose FOLDER_OR_ID --segmentation FOLDER_OR_ID --depth ... --normal ...

As a Space, put this file and a requirements.txt with `sapiens_hf[space]` into the repository and name the models in
the variables SAPIENS_POSE, SAPIENS_SEGMENTATION, SAPIENS_DEPTH and SAPIENS_NORMAL. Any folder, repository id or file
in Meta's format will do; visitors may type another one. Needs gradio.
"""

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw

from sapiens_hf.prediction import Predictor, Result, default_device, draw, load_model

TASKS = {"pose": "2D pose", "segmentation": "Body parts", "depth": "Depth", "normal": "Surface normals"}
WHOLE_IMAGE, DETECTOR, BOX = "the whole picture is one person", "find people (downloads a detector)", "the boxes below"


@functools.lru_cache(maxsize=4)
def get_predictor(task: str, source: str, detector: str | None = None) -> Predictor:
    """The model of a task, loaded once."""
    model, processor = load_model(source, task)
    options = {"detector": detector} if detector else {}
    return Predictor(model, processor, default_device(), batch_size=4, **options)


def read_boxes(text: str) -> list[list[float]]:
    """Boxes typed as lines of `x y width height` in pixels.

    Raises:
        gr.Error: a line is something else.
    """
    boxes = []
    for line in text.strip().splitlines():
        try:
            numbers = [float(part) for part in line.replace(",", " ").split()]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or min(numbers[2:]) <= 0:
            raise gr.Error(f"{line!r} is not a box: write x y width height in pixels, one box on each line.")
        boxes.append(numbers)
    return boxes


def predict(task: str, source: str, picture: Image.Image | None, people: str = WHOLE_IMAGE, boxes: str = ""):
    """Picture of the result, a summary of it, and a file with all of it.

    Raises:
        gr.Error: no picture, no model, or one that does not fit; the visitor sees the reason.
    """
    if picture is None:
        raise gr.Error("Choose a picture first.")
    if not source.strip():
        raise gr.Error("Name a model: a repository id, a folder or a file in Meta's format.")
    picture = picture.convert("RGB")
    levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    given = {WHOLE_IMAGE: [[[0.0, 0.0, *map(float, picture.size)]]], DETECTOR: None}.get(people)
    if task == "pose" and people == BOX:
        given = [read_boxes(boxes)]
    try:
        predictor = get_predictor(task, source.strip(), "default" if task == "pose" and people == DETECTOR else None)
        data = predictor([levels], given)[0] if task == "pose" else predictor([levels])[0]
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from error
    shown = draw(Result(Path("picture"), task, np.array(picture), data), predictor.model.config)
    summary, file = describe(task, data, predictor.model.config)
    return shown, summary, str(file)


def describe(task: str, data, config) -> tuple[dict, Path]:
    """What the numbers say, in short, and a file that holds them all."""
    folder = Path(tempfile.mkdtemp())
    if task == "pose":
        file = folder / "pose.json"
        file.write_text(json.dumps(data))
        people = [
            {point["label"]: [round(point[name], 2) for name in ("x", "y", "score")] for point in person["keypoints"]}
            for person in data
        ]
        return {"convention": "x and y in pixels, score", "people": people}, file
    file = folder / f"{task}.npy"
    np.save(file, data)
    if task == "segmentation":
        labels, counts = np.unique(data, return_counts=True)
        shares = {config.id2label[int(label)]: round(float(n) / data.size, 4) for label, n in zip(labels, counts)}
        return {"share of the picture": shares, "shape": list(data.shape)}, file
    if task == "depth":
        return {
            "convention": "relative; larger is farther",
            "nearest": round(float(data.min()), 4),
            "farthest": round(float(data.max()), 4),
            "shape": list(data.shape),
        }, file
    mean = [round(float(value), 4) for value in data.mean((1, 2))]
    return {"convention": "x, y, z in camera axes, unit length", "mean": mean, "shape": list(data.shape)}, file


def make_examples(folder: Path) -> list[str]:
    """Two pictures to start from: the astronaut of scikit-image if it is there, and a drawn figure."""
    paths = [folder / "figure.png"]
    figure = Image.new("RGB", (360, 480), (196, 208, 214))
    pen = ImageDraw.Draw(figure)
    pen.rectangle((0, 400, 360, 480), fill=(150, 140, 120))
    for line in ((180, 150, 180, 280), (180, 165, 110, 240), (180, 165, 250, 240), (180, 280, 145, 420)):
        pen.line(line, fill=(60, 70, 120), width=34)
    pen.line((180, 280, 215, 420), fill=(60, 70, 120), width=34)
    pen.ellipse((145, 55, 215, 140), fill=(214, 168, 140))
    figure.save(paths[0])
    try:
        from skimage import data
    except ImportError:
        return [str(path) for path in paths]
    paths.insert(0, folder / "astronaut.png")
    Image.fromarray(data.astronaut()).save(paths[0])
    return [str(path) for path in paths]


def build(sources: dict[str, str]) -> gr.Blocks:
    """The page: one tab for each task.

    Args:
        sources: model of each task; an empty string leaves the field open.
    """
    examples = make_examples(Path(tempfile.mkdtemp()))
    with gr.Blocks(title="Sapiens") as page:
        gr.Markdown(
            "# Sapiens\nPose, body parts, depth and surface normals of people. "
            "[Paper](https://arxiv.org/abs/2408.12569). Meta's weights are for non-commercial use (CC BY-NC 4.0)."
        )
        for task, title in TASKS.items():
            with gr.Tab(title, id=task):
                with gr.Row():
                    with gr.Column():
                        picture = gr.Image(type="pil", label="Picture", elem_id=f"{task}-picture")
                        source = gr.Textbox(sources.get(task, ""), label="Model: repository id or folder")
                        inputs = [gr.State(task), source, picture]
                        if task == "pose":
                            inputs.append(gr.Radio([WHOLE_IMAGE, BOX, DETECTOR], value=WHOLE_IMAGE, label="People"))
                            inputs.append(gr.Textbox("", lines=2, label="Boxes: x y width height, one on each line"))
                        button = gr.Button("Run", variant="primary", elem_id=f"{task}-run")
                        gr.Examples(examples, inputs=picture)
                    with gr.Column():
                        shown = gr.Image(label="Result", format="png", elem_id=f"{task}-result")
                        summary = gr.JSON(label="Numbers", elem_id=f"{task}-numbers", max_height=320, open=True)
                        file = gr.File(label="All of it", elem_id=f"{task}-file")
                button.click(predict, inputs, [shown, summary, file], api_name=task)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in TASKS:
        parser.add_argument(f"--{task}", default=os.environ.get(f"SAPIENS_{task.upper()}", ""), help="its model")
    parser.add_argument("--port", type=int, help="of the web server; Gradio's choice by default")
    arguments = parser.parse_args()
    build({task: getattr(arguments, task) for task in TASKS}).launch(server_port=arguments.port)


if __name__ == "__main__":
    main()

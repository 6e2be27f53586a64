"""The Gradio app: its functions, and the page over HTTP as a visitor's browser would use it."""

import importlib.util
import json
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from test_hub import tiny

from sapiens_hf.hub import build_repository

APP = Path(__file__).resolve().parent.parent / "docs" / "space" / "app.py"
SIZE = (50, 70)  # width, height in pixels


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_app", APP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    names = ("pose", "segmentation", "depth", "normal")
    return {name: str(build_repository(tiny(name), None, root / name, license="mit")) for name in names}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8))


def test_pose_gives_people_and_a_file(app, models, picture):
    shown, summary, file = app.predict("pose", models["pose"], picture)
    assert shown.size == SIZE and len(summary["people"]) == 1 and len(summary["people"][0]) == 5
    boxes = "3 4 30 50\n10, 10, 20, 40"
    _, two, file = app.predict("pose", models["pose"], picture, app.BOX, boxes)
    people = json.loads(Path(file).read_text())
    assert len(two["people"]) == len(people) == 2 and people[1]["box"]["xmin"] == 10
    first = people[0]["keypoints"][0]
    assert two["people"][0][first["label"]] == [round(first[name], 2) for name in ("x", "y", "score")]


@pytest.mark.parametrize(
    ("task", "shape", "key"),
    [
        ("segmentation", (70, 50), "share of the picture"),
        ("depth", (70, 50), "nearest"),
        ("normal", (3, 70, 50), "mean"),
    ],
)
def test_maps_have_the_size_of_the_picture(app, models, picture, task, shape, key):
    shown, summary, file = app.predict(task, models[task], picture)
    data = np.load(file)
    assert data.shape == shape == tuple(summary["shape"]) and key in summary
    assert shown.width >= SIZE[0] and shown.height >= SIZE[1]
    if task == "segmentation":
        assert sum(summary[key].values()) == pytest.approx(1, abs=1e-3)
    if task == "depth":
        assert summary["nearest"] == pytest.approx(float(data.min()), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("depth", "somewhere", None), "Choose a picture"),
        (("depth", " ", "picture"), "Name a model"),
        (("depth", "pose", "picture"), "does not fit"),
        (("pose", "pose", "picture", "the boxes below", "1 2 3"), "is not a box"),
        (("pose", "pose", "picture", "the boxes below", "a b c d"), "is not a box"),
        (("pose", "pose", "picture", "the boxes below", "900 900 10 10"), "box"),
    ],
)
def test_visitors_are_told_what_is_wrong(app, models, picture, arguments, message):
    known = {**models, "picture": picture}
    with pytest.raises(gr.Error, match=message):
        app.predict(arguments[0], *(known.get(value, value) for value in arguments[1:3]), *arguments[3:])


def test_examples_are_there_without_scikit_image(app, tmp_path, monkeypatch):
    assert [Path(path).name for path in app.make_examples(tmp_path)] == ["astronaut.png", "figure.png"]
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    (path,) = app.make_examples(tmp_path)
    assert Image.open(path).size == (360, 480)


def test_page_answers_over_http(app, models, picture, tmp_path):
    from gradio_client import Client, handle_file

    picture.save(tmp_path / "photo.png")
    page = app.build({**models, "normal": ""})
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(url, verbose=False, analytics_enabled=False)
        photo = handle_file(tmp_path / "photo.png")
        shown, summary, file = client.predict(models["depth"], photo, api_name="/depth")
        assert np.load(file).shape == (70, 50) and Image.open(shown).size == SIZE
        assert summary["convention"] == "relative; larger is farther"
        _, summary, _ = client.predict(models["pose"], photo, app.WHOLE_IMAGE, "", api_name="/pose")
        assert len(summary["people"]) == 1
    finally:
        page.close()

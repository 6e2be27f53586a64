"""The snippets of docs/publishing.md, docs/onnx.md and docs/licences.md, run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from PIL import Image
from test_hub import tiny

import sapiens_hf
from conversion.__main__ import main

DOCS = Path(__file__).resolve().parent.parent / "docs"


def snippets(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(), re.S)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the snippets speak of."""
    monkeypatch.chdir(tmp_path)
    tiny("pose").save_pretrained("my-run")
    sapiens_hf.SapiensImageProcessor(size={"height": 64, "width": 48}).save_pretrained("my-run")
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (70, 50, 3), dtype=np.uint8)).save("photo.jpg")
    return tmp_path


def run(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


def test_publishing(desk, monkeypatch):
    build, use = snippets("publishing.md", "python")
    with LoopbackHub() as hub:
        hub.patch(monkeypatch, desk / "home")
        run(build)
        assert "modeling_sapiens.py" in hub.files("me/my-pose")
        assert "cc-by-nc-4.0" in hub.files("me/my-pose")["README.md"].decode()
        assert len(run(use)["people"][0]["keypoints"]) == 5


def test_publish_commands_use_options_that_exist(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["publish", "--help"])
    shown = capsys.readouterr().out
    lines = "".join(snippets("publishing.md", "bash")).splitlines()
    options = {word for line in lines for word in shlex.split(line) if word.startswith("--")}
    assert len(lines) == 2 and len(options) >= 4
    assert all(re.search(rf"{option}\b", shown) for option in options), options


def test_licences(desk):
    (code,) = snippets("licences.md", "python")
    run(code)
    assert "cc-by-4.0" in (desk / "my-own-pose" / "LICENSE.md").read_text()


def test_onnx(desk, capsys):
    (command,), (code,) = snippets("onnx.md", "bash"), snippets("onnx.md", "python")
    (desk / "my-run").rename(desk / "my-pose")
    assert main(shlex.split(command)[3:]) == 0
    assert "model_int8.onnx" in capsys.readouterr().out
    assert run(code)["heatmaps"].shape == (1, 5, 16, 12)


@pytest.mark.parametrize("name", ["publishing.md", "onnx.md", "licences.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / name).read_text()):
        assert target.startswith("https://") or (DOCS / target).exists(), target

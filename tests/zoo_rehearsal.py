"""The publication of the whole model zoo, rehearsed against a Hub on this machine.

    python tests/zoo_rehearsal.py [--sources NAME ...] [--no-node] [--work FOLDER]

For every released checkpoint: a narrow stand-in for Meta's file, in its exact format and under its name, is put on
the loopback Hub; `conversion.publish` downloads, converts, verifies and uploads it with code and ONNX; a Python
without sapiens_hf loads it by id through `pipeline(model=id)` and must get the outputs of the original file; Node runs
its ONNX file with transformers.js. Ends with one table, one row per checkpoint.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from loopback_hub import LoopbackHub  # noqa: E402
from original_files import (  # noqa: E402
    NARROW,
    random_state,
    write_clean_pth,
    write_export,
    write_old_export,
    write_pth,
    write_torchscript,
)

from conversion.publish import find_recipes, target_name  # noqa: E402
from conversion.recipes import Recipe, format_table  # noqa: E402

WIDTHS = {"0.3b": 24, "0.6b": 36, "1b": 48, "2b": 60}
HEADS = {"num_attention_heads": 3, "decoder_num_attention_heads": 2}
PHOTO_SIZE = (50, 70)  # width, height in pixels
NAMESPACE = "tester"


def stand_in(recipe: Recipe, folder: Path, seed: int) -> bytes:
    """A file of the recipe's format and task, narrow, with random weights."""
    square = recipe.task in ("encoder", "pretraining")
    spec = replace(
        NARROW[recipe.task],
        width=WIDTHS[recipe.size],
        heads=HEADS["num_attention_heads"],
        image_size=(64, 64) if square else (64, 48),
        padding=recipe.patch_embeddings_padding or 0,
        outputs=recipe.num_labels or NARROW[recipe.task].outputs,
    )
    path, state = folder / Path(recipe.file).name, random_state(spec, seed)
    if recipe.format == "torchscript":
        write_torchscript(path, spec, state)
    elif recipe.format == "bfloat16":
        write_export(folder / "new_layout.pt2", spec, state)
        write_old_export(path, folder / "new_layout.pt2", spec, state)
    elif recipe.task == "encoder":
        write_clean_pth(path, spec, state)
    else:
        write_pth(path, spec, state=state)
    return path.read_bytes()


# Runs where the package is: publishes, and writes down what the original files give.
PUBLISH = """
import json, sys
import numpy as np
import torch
from PIL import Image
from transformers import pipeline

import sapiens_hf
from conversion.publish import _download, find_recipes, publish
from sapiens_hf.model_card import TASK_CARDS
from sapiens_hf.onnxruntime_backend import output_names
from zoo_rehearsal import HEADS, NAMESPACE, answer_numbers

root = sys.argv[1]
recipes = find_recipes(json.loads(sys.argv[2]))
options = dict(with_code=True, onnx=["fp32"], keep_folders=True, config_overrides=HEADS)
results = publish(recipes, NAMESPACE, f"{root}/work", **options)
photo = Image.open(f"{root}/photo.png")
rows = []
for recipe, result in zip(recipes, results):
    row = {"target": result.target, "status": result.status, "note": result.note, "task": recipe.task,
           "sha256": result.sha256, "difference": result.difference}
    rows.append(row)
    if result.status != "published":
        continue
    name = result.target.split("/")[1]
    model = sapiens_hf.load_original(_download(recipe)[1], **HEADS)
    model = model.to(torch.bfloat16).float() if recipe.format == "bfloat16" else model
    height, width = model.config.image_size
    processor = sapiens_hf.SapiensImageProcessor(size={"height": height, "width": width})
    encoder = model.base_model if recipe.task == "pretraining" else model
    run = pipeline(TASK_CARDS[recipe.task].pipeline, model=encoder, image_processor=processor)
    np.save(f"{root}/{name}.expected.npy", answer_numbers(recipe.task, run, photo))
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    pixels.numpy().tofile(f"{root}/{name}.pixels")
    with torch.no_grad():
        output = encoder(pixel_values=pixels)[output_names(type(encoder).__name__)[0]]
    output.numpy().astype(np.float32).tofile(f"{root}/{name}.output")
    row |= {"shape": list(pixels.shape), "folder": result.folder, "found_task": run.task}
json.dump(rows, open(f"{root}/published.json", "w"))
"""

# Runs where the package is not.
LOAD = """
import importlib.abc, importlib.util, json, sys

class NoPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sapiens_hf", "conversion"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NoPackage())
import numpy as np
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

logging.set_verbosity_error()
root = sys.argv[1]
exec(open(f"{root}/answer_numbers.py").read())
photo = Image.open(f"{root}/photo.png")
answers = {}
for row in json.load(open(f"{root}/published.json")):
    if row["status"] != "published":
        continue
    name = row["target"].split("/")[1]
    # bfloat16 repositories are compared in float32: the weights are rounded, the arithmetic is not.
    run = pipeline(model=row["target"], trust_remote_code=True, dtype="float32")
    expected = np.load(f"{root}/{name}.expected.npy")
    ours = answer_numbers(row["task"], run, photo)
    answers[row["target"]] = {
        "task": run.task,
        "code": type(run.model).__module__.split(".")[0],
        "difference": float(np.abs(ours - expected).max()),
    }
json.dump(answers, open(f"{root}/loaded.json", "w"))
"""

# Shared by both processes as text, because one of them must not import anything of ours.
NUMBERS = '''
def answer_numbers(task, run, photo):
    """What a pipeline answers, as one array."""
    if task == "pose":
        people = run(photo, boxes=[[4, 3, 40, 60]])
        return np.array([[point["x"], point["y"], point["score"]] for point in people[0]["keypoints"]])
    if task == "segmentation":
        masks = [np.asarray(part["mask"], dtype=float) / 255 for part in run(photo)]
        return np.tensordot(np.arange(1, len(masks) + 1), np.stack(masks), axes=1)
    if task == "depth":
        return run(photo)["predicted_depth"].numpy()
    if task == "normal":
        return run(photo)["normals"].numpy()
    return np.array(run(photo))
'''
exec(NUMBERS)  # noqa: S102


def rehearse(root: Path, sources: list[str], with_node: bool = True, say=print) -> list[dict]:
    """Publishes, loads back and runs in Node; one row per checkpoint.

    Args:
        root: Empty folder to work in.
        sources: Released checkpoints, as for `conversion publish`; all of them if empty.
        with_node: Whether to run the ONNX files with transformers.js (tests/node must be installed).
        say: Called with the lines of progress.
    """
    from PIL import Image

    recipes = find_recipes(sources, everything=not sources)
    values = np.random.default_rng(3).integers(0, 255, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(root / "photo.png")
    for name, text in (("publish_all.py", PUBLISH), ("load_all.py", LOAD), ("answer_numbers.py", NUMBERS)):
        (root / name).write_text(text)
    with LoopbackHub() as hub:
        for seed, recipe in enumerate(recipes):
            is_network = recipe.task in NARROW
            content = stand_in(recipe, root, seed) if is_network else b"another network"
            hub.add(recipe.repo, {recipe.file: content}, recipe.repo_type)
        say(f"{len(recipes)} stand-ins are on the loopback Hub.")
        environment = {**os.environ, **hub.environment(root / "home"), "OMP_NUM_THREADS": "1"}
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        names = json.dumps([target_name(recipe) for recipe in recipes])
        _python(["publish_all.py", str(root), names], root, environment | {"PYTHONPATH": paths}, say)
        _python(["-I", "load_all.py", str(root)], root, environment | {"HF_HOME": str(root / "other_home")}, say)
        rows = json.loads((root / "published.json").read_text())
        loaded = json.loads((root / "loaded.json").read_text())
        for row in rows:
            row["loaded"] = loaded.get(row["target"], {})
    if with_node:
        _run_in_node(root, rows)
    return rows


def _python(arguments: list[str], folder: Path, environment: dict[str, str], say) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.stdout:
        say(done.stdout.rstrip())
    assert done.returncode == 0, done.stderr[-4000:]


def _run_in_node(root: Path, rows: list[dict]) -> None:
    jobs = [
        {
            "model": row["target"].split("/")[1],
            "task": "encoder" if row["task"] == "pretraining" else row["task"],
            "dtype": "fp32",
            "pixels": str(root / f"{row['target'].split('/')[1]}.pixels"),
            "shape": row["shape"],
            "output": str(root / f"{row['target'].split('/')[1]}.node"),
        }
        for row in rows
        if row["status"] == "published"
    ]
    (root / "jobs.json").write_text(json.dumps({"root": str(root / "work" / "folders"), "jobs": jobs}))
    command = ["node", str(TESTS / "node" / "run_exported.mjs"), str(root / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for row, job in zip([row for row in rows if row["status"] == "published"], jobs):
        ours = np.fromfile(job["output"], np.float32)
        expected = np.fromfile(root / f"{job['model']}.output", np.float32)
        row["node_difference"] = float(np.abs(ours - expected).max())


def rehearsal_table(rows: list[dict]) -> str:
    """One row per checkpoint."""
    lines = [("repository", "task", "status", "against original", "pipeline without package", "difference", "Node")]
    for row in rows:
        loaded = row.get("loaded", {})
        shown = [row.get("difference"), loaded.get("difference"), row.get("node_difference")]
        original, pipeline, node = ("-" if value is None else f"{value:.1g}" for value in shown)
        lines.append(
            (row["target"], row["task"], row["status"], original, loaded.get("task", row["note"][:40]), pipeline, node)
        )
    return format_table(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="*", default=[], help="released checkpoints; all by default")
    parser.add_argument("--no-node", action="store_true", help="leave out transformers.js")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    arguments = parser.parse_args()
    root = Path(arguments.work or tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    rows = rehearse(root.resolve(), arguments.sources, not arguments.no_node)
    print(rehearsal_table(rows))
    if arguments.work is None:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

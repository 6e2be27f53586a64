"""Repository folders, their cards and licences, and everything that works by id, against a Hub on 127.0.0.1."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard
from loopback_hub import LoopbackHub
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForPoseEstimation, pipeline

import sapiens_hf
from sapiens_hf.hub import (
    CLASS_TASKS,
    WeightSource,
    build_repository,
    check_repository,
    export_remote_code,
    file_sha256,
    push_repository,
    task_of,
)
from sapiens_hf.model_card import TASK_CARDS, accepted_fields, validate_card

SIZE = {"height": 64, "width": 48}
DIMENSIONS = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=[64, 48],
    deconv_out_channels=[12, 10],
    conv_out_channels=[9, 8],
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=28,
)
CLASSES = {
    "pose": (sapiens_hf.SapiensForPoseEstimation, dict(num_labels=5, flip_pairs=[[1, 2]], patch_embeddings_padding=2)),
    "segmentation": (sapiens_hf.SapiensForSemanticSegmentation, dict(num_labels=7)),
    "depth": (sapiens_hf.SapiensForDepthEstimation, {}),
    "normal": (sapiens_hf.SapiensForNormalEstimation, {}),
    "encoder": (sapiens_hf.SapiensModel, {}),
    "pretraining": (sapiens_hf.SapiensForPreTraining, dict(use_cls_token=True)),
}
TASKS = list(CLASSES)
OUTPUTS = {
    "pose": "heatmaps",
    "segmentation": "logits",
    "depth": "predicted_depth",
    "normal": "predicted_normal",
    "encoder": "last_hidden_state",
    "pretraining": "logits",
}


def tiny(task: str, seed: int = 0):
    model_class, options = CLASSES[task]
    torch.manual_seed(seed)
    model = model_class(sapiens_hf.SapiensConfig(**DIMENSIONS, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 255, (70, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A loopback Hub that this process uses, with a repository for each task: plain ones, and ones with code."""
    home = tmp_path_factory.mktemp("home")
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.patch(patch, home)
        hub.home, hub.folders = home, {}
        for task in TASKS:
            for kind in ("plain", "code"):
                folder = home.parent / "built" / f"{task}-{kind}"
                build_repository(
                    tiny(task),
                    None,
                    folder,
                    repo_id=f"tester/{task}-{kind}",
                    license="mit",
                    with_code=kind == "code",
                )
                push_repository(folder, f"tester/{task}-{kind}")
                hub.folders[task, kind] = folder
        yield hub


@pytest.fixture
def quick(monkeypatch):
    """No waiting between retries; notes how long was asked for."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def build(tmp_path, task="depth", **options):
    options = {"license": "mit", **options}
    return build_repository(tiny(task), None, tmp_path / task, **options)


def read_json(path: Path):
    return json.loads(path.read_text())


# ---------------------------------------------------------------------------------------------------------- the folder
@pytest.mark.parametrize("task", TASKS)
def test_plain_folder_is_complete_and_opens(online, task):
    folder = online.folders[task, "plain"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["LICENSE.md", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert not {"auto_map", "custom_pipelines"} & read_json(folder / "config.json").keys()
    reloaded = CLASSES[task][0].from_pretrained(folder)
    for name, value in tiny(task).state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        assert (processor.size.height, processor.size.width) == (64, 48)
        assert type(processor).__name__.endswith("Pil") == (backend == "pil")


@pytest.mark.parametrize("task", TASKS)
def test_code_folder_has_every_entry(online, task):
    folder = online.folders[task, "code"]
    config = read_json(folder / "config.json")
    for key, target in config["auto_map"].items():
        module, name = target.split(".")
        assert re.search(rf"^class {name}\b", (folder / f"{module}.py").read_text(), re.M), target
        assert hasattr(transformers, key)
    expected = {"AutoConfig", "AutoModel", "AutoBackbone", "AutoModelForPreTraining"} | {
        f"AutoModelFor{name}" for name in ("PoseEstimation", "SemanticSegmentation", "DepthEstimation")
    }
    assert set(config["auto_map"]) == expected | {"AutoModelForNormalEstimation"}
    backends = read_json(folder / "preprocessor_config.json")["auto_map"]["AutoImageProcessor"]
    assert set(backends) == {"torchvision", "pil"}
    pipelines = {"pose": ["keypoint-detection"], "normal": ["normal-estimation"]}.get(task)
    assert list(config.get("custom_pipelines", {})) == (pipelines or [])
    assert "Apache" in (folder / "LICENSE.md").read_text()


def test_code_needs_nothing_but_its_own_folder_and_dependencies(online):
    folder = online.folders["pose", "code"]
    files = {path.stem for path in folder.glob("*.py")}
    assert files == {path.stem for path in Path(sapiens_hf.__file__).parent.glob("*_sapiens.py")}
    allowed = {"torch", "torchvision", "transformers", "numpy", "PIL", "huggingface_hub"} | sys.stdlib_module_names
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in files, f"{path.name}: {ast.unparse(node)}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.partition(".")[0] for name in names} <= allowed, f"{path.name}: {ast.unparse(node)}"


def test_weights_are_stored_in_bfloat16_and_the_model_stays(tmp_path):
    model = tiny("depth")
    build_repository(model, None, tmp_path / "bf16", license="mit", dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    assert read_json(tmp_path / "bf16" / "config.json")["dtype"] == "bfloat16"
    stored = sapiens_hf.SapiensForDepthEstimation.from_pretrained(tmp_path / "bf16", dtype="auto")
    assert stored.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value.to(torch.bfloat16)), name


def test_shards_and_own_processor(tmp_path):
    processor = sapiens_hf.SapiensImageProcessor(size={"height": 96, "width": 64}, image_mean=[0.4, 0.5, 0.6])
    folder = build_repository(tiny("normal"), processor, tmp_path / "n", license="mit", max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    stored = read_json(folder / "preprocessor_config.json")
    assert stored["size"] == {"height": 96, "width": 64} and stored["image_mean"] == [0.4, 0.5, 0.6]
    check_repository(folder)


def test_folder_from_code_becomes_plain_again(tmp_path):
    folder = build(tmp_path, "pose", with_code=True)
    model = sapiens_hf.SapiensForPoseEstimation.from_pretrained(folder)
    again = build_repository(model, None, tmp_path / "again", license="mit")
    assert not {"auto_map", "custom_pipelines"} & read_json(again / "config.json").keys()


def test_folder_in_use_and_unfit_processor_and_foreign_model_are_refused(tmp_path):
    folder = build(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build(tmp_path)
    assert build(tmp_path, overwrite=True) == folder
    processor = sapiens_hf.SapiensImageProcessor(size={"height": 60, "width": 48})
    with pytest.raises(ValueError, match="60 x 48 pixels.*patch size 16"):
        build_repository(tiny("depth"), processor, tmp_path / "other", license="mit")
    with pytest.raises(ValueError, match="Linear is not a Sapiens model"):
        task_of(torch.nn.Linear(2, 3))
    assert not (tmp_path / "other").exists()


def test_export_remote_code_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="save the model"):
        export_remote_code(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="BertModel"):
        export_remote_code(tmp_path)
    tiny("normal").save_pretrained(tmp_path)
    copied = export_remote_code(tmp_path)
    assert {path.name for path in copied} == {path.name for path in tmp_path.glob("*.py")}
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_class_table_names_every_model():
    names = [name for name in sapiens_hf.__all__ if name.startswith("SapiensFor")] + [
        "SapiensModel",
        "SapiensBackbone",
    ]
    assert set(CLASS_TASKS) == set(names)


# ------------------------------------------------------------------------------------------------------------ the card
@pytest.mark.parametrize("task", TASKS)
def test_card_says_what_matters(online, task):
    card = ModelCard.load(online.folders[task, "plain"] / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag in accepted_fields()["pipeline_tags"]
    assert "sapiens" in card.data.tags
    said = {
        "pose": ["keypoint", "grown by a quarter", "3 : 4", "0 LABEL_0", "source image"],
        "segmentation": ["7 classes", "6 LABEL_6"],
        "depth": ["**larger is farther**", "not metres"],
        "normal": ["x, y, z in the axes of the camera", "mirroring the image negates x", "unit length"],
        "encoder": ["mean over the tokens"],
        "pretraining": ["`mask` says with 1 which were hidden"],
    }[task]
    for text in [*said, "64 x 48", "LICENSE.md", "2408.12569"]:
        assert text in card.text, text


@pytest.mark.parametrize("task", TASKS)
def test_plain_snippets_run_by_id(online, task, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg")
    snippets = re.findall(r"```python\n(.*?)```", (online.folders[task, "plain"] / "README.md").read_text(), re.S)
    assert len(snippets) == 2 and all("trust_remote_code" not in snippet for snippet in snippets)
    for snippet in snippets:
        exec(compile(snippet, f"README of {task}", "exec"), {})


def test_card_holds_scores_source_and_onnx(tmp_path):
    score = EvalResult(
        "keypoint-detection",
        "coco",
        "COCO val2017",
        "ap",
        79.6,
        metric_name="AP",
        source_name="us",
        source_url="https://example.org",
    )
    source = WeightSource("facebook/sapiens-pose-0.3b", "a/file.pth", "0123abc", "ff" * 32)
    folder = build_repository(
        tiny("pose"),
        None,
        tmp_path / "scored",
        eval_results=[score],
        source=source,
        datasets=["me/data"],
        tags=["extra"],
        language="en",
        onnx_dtypes=["fp32", "int8"],
        name="My pose",
        dtype=torch.bfloat16,
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "My pose" and card.data.metrics == ["ap"] and card.data.datasets == ["me/data"]
    assert card.data.eval_results[0].metric_value == 79.6
    assert card.data.base_model == "facebook/sapiens-pose-0.3b" and card.data.license == "cc-by-nc-4.0"
    for text in ("| COCO val2017 | AP | 79.6 | us |", "0123abc", "ff" * 32, "as fp32, int8", "a/file.pth"):
        assert text in card.text
    licence = (folder / "LICENSE.md").read_text()
    assert "CC BY-NC 4.0" in licence and "rounded to bfloat16" in licence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline_tag": "depth-estimate"}, "Did you mean 'depth-estimation'"),
        ({"pipeline_tag": None}, "pipeline_tag is None"),
        ({"license": "apache2.0"}, "Did you mean 'apache-2.0'"),
        ({"license": "other"}, "license_name"),
        ({"library_name": "sapiens"}, "expected 'transformers'"),
        ({"base_model": "/data/run"}, "expected the id of a repository"),
        ({"base_model": ["me/fine", "plain"]}, "'plain'"),
    ],
)
def test_refused_card_fields_are_named(change, message):
    good = {"pipeline_tag": "depth-estimation", "license": "mit", "library_name": "transformers"}
    validate_card(good)
    with pytest.raises(ValueError, match=message):
        validate_card({**good, **change})


def test_wrong_card_field_stops_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'apache-2.0'"):
        build(tmp_path, license="apache 2.0")
    with pytest.raises(ValueError, match="base_model"):
        build(tmp_path, base_model="./run/checkpoint-3")
    assert not (tmp_path / "depth").exists()


# ------------------------------------------------------------------------------------------------------------- licence
def test_own_weights_need_a_licence_and_get_its_text(tmp_path):
    with pytest.raises(ValueError, match="need license="):
        build(tmp_path, license=None)
    with pytest.raises(ValueError, match="license_text="):
        build(tmp_path, license="other")
    folder = build(tmp_path, license="other", license_name="mine", license_link="https://example.org/mine")
    assert "https://example.org/mine" in (folder / "LICENSE.md").read_text()
    assert "[mine](https://example.org/mine)" in (folder / "README.md").read_text()
    own = build_repository(tiny("depth"), None, tmp_path / "own", license="mit", license_text="Do as you like.")
    assert (own / "LICENSE.md").read_text() == "Do as you like."
    assert "`mit`" in (build(tmp_path, "normal") / "LICENSE.md").read_text()


@pytest.mark.parametrize("how", ["base_model", "repository id", "file name", "built folder"])
def test_metas_licence_follows_the_weights(tmp_path, how):
    model, options = tiny("segmentation"), {}
    if how == "base_model":
        options["base_model"] = "facebook/sapiens-pretrain-1b"
    elif how == "repository id":
        model.config._name_or_path = "facebook/sapiens-pretrain-1b"
    elif how == "file name":
        model.config._name_or_path = "/data/sapiens_1b_epoch_173_clean.pth"
    else:
        build_repository(tiny("segmentation"), None, tmp_path / "a", base_model="facebook/sapiens-pretrain-1b")
        model = sapiens_hf.SapiensForSemanticSegmentation.from_pretrained(tmp_path / "a")
    folder = build_repository(model, None, tmp_path / "tuned", **options)
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "cc-by-nc-4.0" and data.base_model == "facebook/sapiens-pretrain-1b"
    assert "trained further, starting from facebook/sapiens-pretrain-1b" in (folder / "LICENSE.md").read_text()
    with pytest.raises(ValueError, match="cc-by-nc-4.0.*commercial"):
        build_repository(model, None, tmp_path / "sold", license="apache-2.0", **options)
    assert not (tmp_path / "sold").exists()


def test_detector_of_the_release_is_not_under_metas_licence(tmp_path):
    model = tiny("depth")
    model.config._name_or_path = "rtmdet_m_8xb32-100e_coco-obj365-person-235e8209.pth"
    assert build_repository(model, None, tmp_path / "d", license="mit").is_dir()


# ------------------------------------------------------------------------------------------------------------ checking
def test_check_names_missing_files_and_contradictions(tmp_path):
    folder = build(tmp_path)
    assert check_repository(folder)["pipeline_tag"] == "depth-estimation"
    card, licence = folder / "README.md", folder / "LICENSE.md"
    right, own = card.read_text(), licence.read_text()
    card.write_text(right.replace("pipeline_tag: depth-estimation", "pipeline_tag: image-segmentation"))
    with pytest.raises(ValueError, match="the model is SapiensForDepthEstimation; expected 'depth-estimation'"):
        check_repository(folder)
    card.write_text(right)
    metas = (
        build_repository(tiny("depth"), None, tmp_path / "m", base_model="facebook/sapiens-depth-1b") / "LICENSE.md"
    )
    licence.write_text(metas.read_text())
    with pytest.raises(ValueError, match="the card says license 'mit'.*cc-by-nc-4.0"):
        check_repository(folder)
    licence.write_text(own)
    (folder / "model.safetensors").unlink()
    card.unlink()
    with pytest.raises(FileNotFoundError, match="lacks README.md, .*safetensors"):
        check_repository(folder)


def test_hash_of_a_file_of_several_blocks(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"sapiens" * 900_000)
    import hashlib

    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- uploading
def test_second_upload_changes_nothing(online, tmp_path):
    folder, before = build(tmp_path), len(online.requests)
    first = push_repository(folder, "tester/twice")
    assert online.files("tester/twice")["config.json"] == (folder / "config.json").read_bytes()
    middle = len(online.requests)
    assert push_repository(folder, "tester/twice") == first
    assert any("/commit/" in line for line in online.requests[before:middle])
    assert not any("/commit/" in line or line.startswith("PUT") for line in online.requests[middle:])


def test_other_content_is_not_overwritten_unless_asked(online, tmp_path):
    online.add("tester/taken", {"README.md": b"# mine", "data.bin": b"123"})
    folder = build(tmp_path)
    with pytest.raises(FileExistsError, match="exists on the Hub with other content .*--replace"):
        push_repository(folder, "tester/taken")
    assert set(online.files("tester/taken")) == {"README.md", "data.bin"}
    commit = push_repository(folder, "tester/taken", replace=True)
    assert online.files("tester/taken", commit)["README.md"] == (folder / "README.md").read_bytes()
    one_changed = build_repository(tiny("depth", seed=1), None, tmp_path / "depth2", license="mit", repo_id="depth")
    with pytest.raises(FileExistsError, match="model.safetensors"):
        push_repository(one_changed, "tester/taken")


def test_empty_repository_of_an_interrupted_run_is_filled(online, tmp_path):
    online.add("tester/begun", {".gitattributes": b"x"})
    commit = push_repository(build(tmp_path), "tester/begun")
    assert "model.safetensors" in online.files("tester/begun", commit)


def test_dry_run_sends_nothing(online, tmp_path):
    before = len(online.requests)
    assert push_repository(build(tmp_path), "tester/only-thought-of", dry_run=True) == ""
    sent = [line for line in online.requests[before:] if line.startswith(("POST", "PUT"))]
    assert set(sent) == {"POST /api/validate-yaml"}
    assert ("model", "tester/only-thought-of") not in online.repositories


def test_wrong_missing_or_weak_token(online, tmp_path, monkeypatch):
    folder = build(tmp_path)
    before = len(online.repositories)
    with pytest.raises(PermissionError, match="does not accept the token.*hf auth login"):
        push_repository(folder, "tester/no", token="hf_wrong")
    online.fail("POST /api/repos/create", 403)
    with pytest.raises(PermissionError, match="write access to somebody"):
        push_repository(folder, "somebody/no")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="hf auth login"):
        push_repository(folder, "tester/no")
    with pytest.raises(ValueError, match="owner/name"):
        push_repository(folder, "no-owner")
    assert len(online.repositories) == before


def test_card_that_only_the_hub_refuses_stops_the_upload(online, tmp_path):
    folder = build(tmp_path)
    online.fail("POST /api/validate-yaml", 400)
    with pytest.raises(ValueError, match="refuses the card of .*Nothing was uploaded"):
        push_repository(folder, "tester/refused")
    assert ("model", "tester/refused") not in online.repositories
    online.fail("POST /api/repos/create", 400)
    with pytest.raises(ValueError, match="The Hub refused tester/refused"):
        push_repository(folder, "tester/refused")


@pytest.mark.parametrize(
    "step", ["GET /api/whoami", "POST /api/validate", "POST /api/repos", "preupload", "PUT", "commit"]
)
def test_server_errors_are_retried(online, tmp_path, quick, step):
    online.fail(step, 503, times=2)
    name = re.sub(r"\W+", "-", step).strip("-")
    commit = push_repository(build(tmp_path), f"tester/retried-{name}")
    assert "model.safetensors" in online.files(f"tester/retried-{name}", commit)
    assert len(quick) >= 2 and not online.failures


def test_lasting_failure_is_explained(online, tmp_path, quick):
    folder = build(tmp_path)
    online.fail("GET /api/whoami", 502, times=4)
    with pytest.raises(ConnectionError, match="status 502 .* in spite of retries"):
        push_repository(folder, "tester/never")
    online.fail("GET /api/whoami", 0, times=4)
    with pytest.raises(ConnectionError, match="does not answer"):
        push_repository(folder, "tester/never")
    online.failures.clear()
    assert ("model", "tester/never") not in online.repositories


def test_interrupted_upload_goes_on_where_it_stopped(online, tmp_path, quick):
    folder = build_repository(tiny("normal", seed=7), None, tmp_path / "n", license="mit", max_shard_size="20KB")
    weights = [file_sha256(path) for path in folder.glob("*.safetensors")]
    online.fail(f"PUT /upload/{weights[-1]}", 500, times=100)
    with pytest.raises((ConnectionError, RuntimeError)):
        push_repository(folder, "tester/interrupted")
    online.failures.clear()
    arrived = [digest for digest in weights if digest in online.objects]
    assert 0 < len(arrived) < len(weights)
    before = len(online.requests)
    commit = push_repository(folder, "tester/interrupted")
    sent_again = [line for line in online.requests[before:] if line.startswith("PUT")]
    assert sorted(sent_again) == sorted(f"PUT /upload/{digest}" for digest in weights if digest not in arrived)
    assert {path.name for path in folder.iterdir()} <= set(online.files("tester/interrupted", commit))


# --------------------------------------------------------------------------------------------------------------- by id
def test_push_to_hub_of_models_processors_and_pipelines(online, photo):
    model = tiny("pose", seed=3)
    model.push_to_hub("tester/by-hand")
    sapiens_hf.SapiensImageProcessor(size=SIZE).push_to_hub("tester/by-hand")
    again = AutoModelForPoseEstimation.from_pretrained("tester/by-hand")
    processor = AutoImageProcessor.from_pretrained("tester/by-hand")
    inputs = processor(photo, boxes=[[[4, 3, 40, 60]]], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).heatmaps, model(**inputs).heatmaps)
    run = pipeline("depth-estimation", model=tiny("depth", seed=4), image_processor=processor)
    run.push_to_hub("tester/whole-pipeline")
    reloaded = pipeline("depth-estimation", model="tester/whole-pipeline")
    assert torch.equal(run(photo)["predicted_depth"], reloaded(photo)["predicted_depth"])


@pytest.mark.parametrize(("task", "options"), [("pose", {"boxes": [[4, 3, 40, 60]]}), ("normal", {})])
def test_push_to_hub_of_our_own_pipelines(online, photo, task, options):
    """They are saved like transformers' own: no copy of the code, so nobody is asked to trust one."""
    processor = sapiens_hf.SapiensImageProcessor(size=SIZE)
    run = pipeline(TASK_CARDS[task].pipeline, model=tiny(task, seed=5), image_processor=processor)
    run.push_to_hub(f"tester/{task}-pipeline")
    assert not [path for path in online.files(f"tester/{task}-pipeline") if path.endswith(".py")]
    again = pipeline(TASK_CARDS[task].pipeline, model=f"tester/{task}-pipeline")
    ours, theirs = again(photo, **options), run(photo, **options)
    assert ours == theirs if task == "pose" else torch.equal(ours["normals"], theirs["normals"])


@pytest.mark.parametrize("task", [task for task in TASKS if task != "normal"])
def test_pipeline_finds_its_task_by_id(online, photo, task):
    run = pipeline(model=f"tester/{task}-plain")
    assert run.task == TASK_CARDS[task].pipeline
    options = {"boxes": [[4, 3, 40, 60]]} if task == "pose" else {}
    assert run(photo, **options)


def test_normals_need_their_task_named_without_code(online, photo):
    with pytest.raises(KeyError, match="image-to-image"):
        pipeline(model="tester/normal-plain")
    assert pipeline("normal-estimation", model="tester/normal-plain")(photo)["normals"].shape == (3, 70, 50)


def test_auto_backbone_by_id(online):
    backbone = AutoBackbone.from_pretrained("tester/segmentation-plain", out_indices=[1, 3])
    maps = backbone(torch.zeros(2, 3, 64, 48)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 3)] * 2


def test_revisions(online, tmp_path):
    first = push_repository(build(tmp_path, "encoder"), "tester/dated")
    newer = build_repository(tiny("encoder", seed=9), None, tmp_path / "newer", license="mit", repo_id="encoder")
    second = push_repository(newer, "tester/dated", replace=True)
    online.repositories["model", "tester/dated"].refs["v1"] = first
    load = sapiens_hf.SapiensModel.from_pretrained
    weight = "layernorm.weight"
    name = "embeddings.patch_embeddings.projection.weight"
    old, new = tiny("encoder").state_dict()[name], tiny("encoder", seed=9).state_dict()[name]
    assert not torch.equal(old, new) and weight in tiny("encoder").state_dict()
    for revision, expected in ((None, new), ("main", new), ("v1", old), (first, old), (second, new)):
        assert torch.equal(load("tester/dated", revision=revision).state_dict()[name], expected)
    with pytest.raises(OSError, match="v2"):
        load("tester/dated", revision="v2")


# ------------------------------------------------------------------------------------------------- without the package
WITHOUT_PACKAGE = """
import importlib.abc, json, re, sys

class NoPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sapiens_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NoPackage())
try:
    import sapiens_hf
    sys.exit("sapiens_hf can still be imported")
except ModuleNotFoundError:
    pass
import numpy as np
import torch
import transformers
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, pipeline

classes, outputs = json.loads(sys.argv[1]), json.loads(sys.argv[2])
pixels, found, photo = np.load("pixels.npy"), {}, Image.open("photo.png")
for task, auto_class in classes.items():
    repo = f"tester/{task}-code"
    assert AutoConfig.from_pretrained(repo, trust_remote_code=True).model_type == "sapiens"
    model = getattr(transformers, auto_class).from_pretrained(repo, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    options = {"noise": torch.linspace(0, 1, 12)[None].repeat(2, 1)} if task == "pretraining" else {}
    with torch.no_grad():
        found[task] = model(torch.from_numpy(pixels), **options)[outputs[task]].numpy()
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True, backend=backend)
        assert type(processor).__name__.endswith("Pil") == (backend == "pil"), type(processor)
        boxes = {"boxes": [[[4, 3, 40, 60]]]} if task == "pose" else {}
        found[f"{task} {backend}"] = processor(photo, return_tensors="np", **boxes)["pixel_values"]
backbone = AutoBackbone.from_pretrained("tester/depth-code", trust_remote_code=True, out_indices=[2])
found["backbone"] = backbone(torch.from_numpy(pixels)).feature_maps[0].detach().numpy()
for task in ("pose", "normal", "depth", "segmentation", "encoder"):
    run = pipeline(model=f"tester/{task}-code", trust_remote_code=True)
    found[f"{task} task"] = np.array(run.task)
    if task == "pose":
        people = run(photo, boxes=[[4, 3, 40, 60]])
        found["people"] = np.array([[p["x"], p["y"], p["score"]] for p in people[0]["keypoints"]])
    if task == "normal":
        found["normals"] = run(photo)["normals"].numpy()
for task in classes:
    readme = open(hf_hub_download(f"tester/{task}-code", "README.md")).read()
    for snippet in re.findall(r"```python\\n(.*?)```", readme, re.S):
        assert "sapiens_hf" not in snippet
        exec(compile(snippet, f"README of {task}", "exec"), {})
np.savez("found.npz", **found)
"""

OFFLINE = """
import sys
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline
from PIL import Image
import sapiens_hf

model = AutoModelForDepthEstimation.from_pretrained("tester/depth-plain")
assert type(model).__module__ == "sapiens_hf.modeling_sapiens"
run = pipeline("depth-estimation", model="tester/depth-plain")
print(tuple(run(Image.open("photo.png"))["predicted_depth"].shape))
"""


def run_python(code: str, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    (folder / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-I", "script.py", *arguments],
        cwd=folder,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_everything_loads_by_id_without_the_package(online, photo, tmp_path):
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    photo.save(tmp_path / "photo.png")
    photo.save(tmp_path / "photo.jpg")
    autos = {task: TASK_CARDS[task].auto_class for task in TASKS}
    environment = online.environment(tmp_path / "home")
    run_python(WITHOUT_PACKAGE, tmp_path, environment, json.dumps(autos), json.dumps(OUTPUTS))
    found = np.load(tmp_path / "found.npz")
    for task in TASKS:
        options = {"noise": torch.linspace(0, 1, 12)[None].repeat(2, 1)} if task == "pretraining" else {}
        with torch.no_grad():
            expected = tiny(task)(pixels, **options)[OUTPUTS[task]].numpy()
        np.testing.assert_array_equal(found[task], expected, err_msg=task)
        for backend in ("torchvision", "pil"):
            processor = AutoImageProcessor.from_pretrained(online.folders[task, "plain"], backend=backend)
            boxes = {"boxes": [[[4, 3, 40, 60]]]} if task == "pose" else {}
            inputs = processor(photo, return_tensors="np", **boxes)["pixel_values"]
            np.testing.assert_array_equal(found[f"{task} {backend}"], inputs)
        if task != "pretraining":
            assert str(found[f"{task} task"]) == TASK_CARDS[task].pipeline
    backbone = sapiens_hf.SapiensBackbone.from_pretrained(online.folders["depth", "plain"], out_indices=[2])
    np.testing.assert_array_equal(found["backbone"], backbone(pixels).feature_maps[0].detach().numpy())
    processor = sapiens_hf.SapiensImageProcessor(size=SIZE)
    people = pipeline("keypoint-detection", model=tiny("pose"), image_processor=processor)(
        photo, boxes=[[4, 3, 40, 60]]
    )
    expected = [[point["x"], point["y"], point["score"]] for point in people[0]["keypoints"]]
    np.testing.assert_array_equal(found["people"], expected)
    normals = pipeline("normal-estimation", model=tiny("normal"), image_processor=processor)(photo)["normals"]
    np.testing.assert_array_equal(found["normals"], normals.numpy())


def test_offline_after_the_first_download(online, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    pipeline("depth-estimation", model="tester/depth-plain")
    before = len(online.requests)
    environment = online.environment(online.home) | {"HF_HUB_OFFLINE": "1"}
    assert run_python(OFFLINE, tmp_path, environment) == "(70, 50)\n"
    assert len(online.requests) == before

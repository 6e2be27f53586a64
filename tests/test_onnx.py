"""ONNX export: onnxruntime against torch, the layout of transformers.js, and transformers.js itself in Node."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_hub import DIMENSIONS, TASKS, tiny

import sapiens_hf
from conversion import onnx as conversion_onnx
from conversion.__main__ import main
from conversion.onnx import OnnxReport, export_onnx, report_table
from sapiens_hf.heatmaps_sapiens import decode_heatmaps
from sapiens_hf.onnxruntime_backend import ONNX_FILES, SapiensOnnxModel

EXPORTED = [task for task in TASKS if task != "pretraining"]
DTYPES = tuple(ONNX_FILES)
NODE = Path(__file__).resolve().parent / "node"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folder and reports of every task: all number formats for pose and segmentation, float32 for the rest."""
    root = tmp_path_factory.mktemp("exports")
    made = {}
    for task in EXPORTED:
        dtypes = DTYPES if task in ("pose", "segmentation") else ("fp32",)
        made[task] = (root / task, export_onnx(tiny(task), root / task, dtypes=dtypes))
    return made


def images(batch_size: int = 3, seed: int = 4) -> torch.Tensor:
    return torch.randn(batch_size, 3, 64, 48, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", EXPORTED)
@pytest.mark.parametrize("batch_size", [1, 5])
@torch.no_grad()
def test_onnxruntime_equals_torch(exports, task, batch_size):
    pixel_values, model = images(batch_size), tiny(task)
    expected, ours = model(pixel_values), SapiensOnnxModel.from_pretrained(exports[task][0])(pixel_values)
    assert type(ours) is type(expected)
    for name in expected.keys():
        assert ours[name].shape == expected[name].shape and ours[name].dtype == torch.float32
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=1e-4)
    if task == "segmentation":
        assert (ours.logits.argmax(1) == expected.logits.argmax(1)).float().mean() >= 0.999


@torch.no_grad()
def test_keypoints_of_clear_heatmaps_agree(exports):
    """Bumps as a trained network makes them, put through both: what random weights cannot show."""
    pixel_values, model = images(4), tiny("pose")
    ours = SapiensOnnxModel.from_pretrained(exports["pose"][0])
    centres = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(8)) * torch.tensor([6.0, 10.0]) + 3
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij"), -1).flip(-1)  # (x, y)
    bumps = torch.exp(-(grid - centres[:, :, None, None]).square().sum(-1) / (2 * 2.0**2)) * 20
    a, _ = decode_heatmaps(model(pixel_values).heatmaps + bumps)
    b, _ = decode_heatmaps(ours(pixel_values).heatmaps + bumps)
    assert float((a - b).norm(dim=-1).max()) * 4 <= 0.05


@torch.no_grad()
def test_flip_test_of_pose(exports):
    pixel_values, pairs = images(2), torch.tensor([[1, 2]])
    expected = tiny("pose")(pixel_values, flip_pairs=pairs).heatmaps
    ours = SapiensOnnxModel.from_pretrained(exports["pose"][0]).eval()(pixel_values, flip_pairs=pairs).heatmaps
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, tiny("pose")(pixel_values).heatmaps, atol=1e-2)
    with pytest.raises(ValueError, match="flip_pairs is for pose"):
        SapiensOnnxModel.from_pretrained(exports["depth"][0])(pixel_values, flip_pairs=pairs)


@pytest.mark.parametrize("task", EXPORTED)
def test_layout_is_that_of_transformers_js(exports, task):
    folder, reports = exports[task]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "sapiens" and "transformers.js_config" not in config
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "SapiensImageProcessor"
    assert processor["size"] == {"height": 64, "width": 48} and not processor.get("do_pad")
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.output
    }
    (given,) = graph.input
    assert given.name == "pixel_values"
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch_size", 3, 64, 48]
    expected = {
        "pose": {"heatmaps": ["batch_size", 5, 16, 12]},
        "segmentation": {"logits": ["batch_size", 7, 16, 12]},
        "depth": {"predicted_depth": ["batch_size", 1, 16, 12]},
        "normal": {"predicted_normal": ["batch_size", 3, 16, 12]},
        "encoder": {"last_hidden_state": ["batch_size", 12, 24], "pooler_output": ["batch_size", 24]},
    }[task]
    assert shapes == expected
    assert {report.path for report in reports} == set((folder / "onnx").iterdir())
    for report in reports:
        assert b".py" not in report.path.read_bytes(), "source lines of the exporting machine"


def test_reports_state_what_was_measured(exports):
    segmentation = {report.dtype: report for report in exports["segmentation"][1]}
    pose = {report.dtype: report for report in exports["pose"][1]}
    assert list(segmentation) == list(DTYPES) and segmentation["fp32"].passed and pose["fp32"].passed
    for dtype, largest in (("fp32", 1e-4), ("fp16", 0.05), ("int8", 0.3)):
        for reports in (segmentation, pose):
            assert 0 < reports[dtype].difference < largest, dtype
    assert segmentation["fp32"].label_agreement >= 0.999 and segmentation["fp16"].label_agreement >= 0.99
    assert pose["fp32"].keypoint_shift_px[1] <= 0.05 and pose["fp32"].steady_keypoints > 0.5
    assert segmentation["fp32"].difference < segmentation["fp16"].difference < segmentation["int8"].difference
    assert segmentation["fp16"].megabytes < 0.8 * segmentation["fp32"].megabytes
    table = report_table(exports["pose"][1])
    assert "model_fp16.onnx" in table and "keypoint shift" in table and len(table.splitlines()) == 4


@torch.no_grad()
def test_number_formats_are_read_by_name(exports):
    folder, reports = exports["segmentation"]
    expected = tiny("segmentation")(images()).logits
    differences = {}
    for report in reports:
        model = SapiensOnnxModel.from_pretrained(folder, report.dtype)
        differences[report.dtype] = float((model(images()).logits - expected).abs().max())
    assert differences["fp32"] < 1e-4 < differences["fp16"] < differences["int8"] < 0.3
    int8 = onnx.load(folder / "onnx" / "model_int8.onnx").graph
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in int8.initializer)
    assert {node.op_type for node in int8.node} & {"ConvInteger"} == set()


def test_model_that_needs_a_file_for_its_weights(tmp_path):
    export_onnx(tiny("depth"), tmp_path / "large", max_inline_bytes=10_000)
    weights = tmp_path / "large" / "onnx" / "model.onnx_data"
    assert weights.stat().st_size > (tmp_path / "large" / "onnx" / "model.onnx").stat().st_size
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": 1}}
    with torch.no_grad():
        ours = SapiensOnnxModel.from_pretrained(tmp_path / "large")(images()).predicted_depth
        np.testing.assert_allclose(ours, tiny("depth")(images()).predicted_depth, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- what stops
def test_pretraining_has_no_onnx_form_but_its_encoder_has(tmp_path, capsys):
    model = tiny("pretraining")
    model.save_pretrained(tmp_path / "mae")
    assert main(["onnx", str(tmp_path / "mae"), "--output", str(tmp_path / "out")]) == 2
    assert "Pretraining hides patches at random" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["onnx", str(tmp_path / "mae"), "--output", str(tmp_path / "mae"), "--task", "encoder"]) == 0
    assert "model.onnx" in capsys.readouterr().out
    with torch.no_grad():
        expected = model.model(images(2)).last_hidden_state
    features = SapiensOnnxModel.from_pretrained(tmp_path / "mae")(images(2)).last_hidden_state
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)


def test_folders_in_use_and_unknown_formats(exports, tmp_path):
    folder, _ = exports["depth"]
    with pytest.raises(FileExistsError, match="model.onnx already"):
        export_onnx(tiny("depth"), folder)
    with pytest.raises(FileExistsError, match="holds SapiensForDepthEstimation, not SapiensForNormalEstimation"):
        export_onnx(tiny("normal"), folder)
    with pytest.raises(ValueError, match="expected one of fp32, fp16, int8"):
        export_onnx(tiny("depth"), tmp_path / "x", dtypes=["q4"])
    with pytest.raises(ValueError, match="'encoder' for features"):
        export_onnx(tiny("depth"), tmp_path / "x", task="pose")


def test_an_export_that_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_onnx, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="(?s)float32 export differs from torch.*Nothing was kept"):
        export_onnx(tiny("normal"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flat_heatmaps_cannot_be_compared():
    flat = torch.ones(2, 5, 16, 12)
    with pytest.raises(ValueError, match="None of the keypoints is steady"):
        conversion_onnx._keypoint_shift(flat, flat, 48)


def test_missing_packages_are_named(tmp_path, monkeypatch, exports):
    import builtins

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] in ("onnxscript", "onnxruntime") and name == missing:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    missing = "onnxscript"
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "sapiens_hf\[onnx\]"'):
        export_onnx(tiny("depth"), tmp_path / "x")
    missing = "onnxruntime"
    with pytest.raises(ImportError, match=r"sapiens_hf\[onnx\]"):
        SapiensOnnxModel.from_pretrained(exports["depth"][0])


def test_wrong_use_of_an_export(exports, tmp_path):
    folder, _ = exports["depth"]
    model = SapiensOnnxModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 96, 48\); this export takes \(batch_size, 3, 64, 48\)"):
        model(torch.zeros(1, 3, 96, 48))
    with pytest.raises(FileNotFoundError, match=r"no onnx/model_int8.onnx, but \['fp32'\].*--dtype int8"):
        SapiensOnnxModel.from_pretrained(folder, "int8")
    with pytest.raises(ValueError, match="dtype is 'q8'"):
        SapiensOnnxModel.from_pretrained(folder, "q8")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a repository id"):
        SapiensOnnxModel.from_pretrained("no/such/folder")
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps(config | {"architectures": ["SapiensForNormalEstimation"]}))
    with pytest.raises(ValueError, match="has the outputs .*predicted_depth.*Export it again"):
        SapiensOnnxModel.from_pretrained(mixed)
    (mixed / "config.json").write_text(json.dumps(config | {"architectures": ["SapiensLayer"]}))
    with pytest.raises(ValueError, match="SapiensLayer has no ONNX form"):
        SapiensOnnxModel.from_pretrained(mixed)


def test_report_of_a_failed_export():
    report = OnnxReport("fp32", Path("m.onnx"), 1.0, 1e-6, 2.0, label_agreement=0.9)
    assert not report.passed
    assert OnnxReport("fp32", Path("m.onnx"), 1.0, 1e-6, 2.0, label_agreement=0.9995).passed
    assert not OnnxReport("fp32", Path("m.onnx"), 1.0, 1e-6, 2.0, keypoint_shift_px=(0.0, 0.06)).passed
    assert not OnnxReport("fp32", Path("m.onnx"), 1.0, 1e-3, 2.0).passed
    assert OnnxReport("fp32", Path("m.onnx"), 1.0, 1e-3, 20.0).passed


# ---------------------------------------------------------------------------------------------------------------- Node
@pytest.fixture(scope="module")
def node():
    """Node with transformers.js; installed once and without install scripts (the CPU binary is in the package)."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    assert not missing, f"the browser test needs {' and '.join(missing)}: install Node.js 20 or newer"
    if not (NODE / "node_modules" / "@huggingface" / "transformers").is_dir():
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return NODE


def test_transformers_js_gives_the_same_numbers(exports, node, tmp_path):
    pixel_values = images(2, seed=6)
    pixel_values.numpy().tofile(tmp_path / "pixels")
    photo = Image.fromarray(np.random.default_rng(5).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    jobs = [
        {
            "model": task,
            "task": task,
            "dtype": report.dtype,
            "pixels": str(tmp_path / "pixels"),
            "shape": list(pixel_values.shape),
            "output": str(tmp_path / f"{task}.{report.dtype}"),
            "image": str(tmp_path / "photo.png"),
        }
        for task in EXPORTED
        for report in exports[task][1]
    ]
    root = exports["pose"][0].parent
    (tmp_path / "jobs.json").write_text(json.dumps({"root": str(root), "jobs": jobs}))
    command = ["node", str(node / "run_exported.mjs"), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(jobs)
    for job, answer in zip(jobs, answers):
        model = SapiensOnnxModel.from_pretrained(root / job["task"], job["dtype"])
        with torch.no_grad():
            expected = tiny(job["task"])(pixel_values)[model.output_names[0]]
        ours = torch.from_numpy(np.fromfile(job["output"], np.float32)).view(expected.shape)
        tolerance = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.3}[job["dtype"]]
        assert float((ours - expected).abs().max()) < tolerance, job
        assert answer["outputs"] == list(model.output_names)
        assert answer["processor"]["dims"] == [1, 3, 64, 48]
        if job["task"] == "segmentation":
            assert {part["label"] for part in answer["pipeline"]} <= set(model.config.id2label.values())
            assert all(part["size"] == [50, 70] for part in answer["pipeline"])
        if job["task"] == "depth":
            assert answer["dims"] == [2, 1, 16, 12] and answer["pipeline"]["size"] == [50, 70]
    classes = {answer["model"]: answer["class"] for answer in answers}
    assert classes["depth"] == "SapiensForDepthEstimation" and classes["normal"] == "SapiensForNormalEstimation"


def test_export_of_a_checkpoint_of_the_original(tmp_path):
    from original_files import NARROW, write_pth

    path = write_pth(tmp_path / "normal.pth", NARROW["normal"])
    reports = export_onnx(path, tmp_path / "out")
    assert reports[0].passed
    model = sapiens_hf.load_original(path)
    pixel_values = torch.randn(1, 3, *model.config.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(pixel_values).predicted_normal
    ours = SapiensOnnxModel.from_pretrained(tmp_path / "out")(pixel_values).predicted_normal
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    assert DIMENSIONS["image_size"] != model.config.image_size

"""What importing sapiens_hf does: register with transformers, whatever is imported first, and nothing else."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sapiens_hf
from sapiens_hf import registration

ROOT = Path(sapiens_hf.__file__).parents[1]

# Answers about a fresh interpreter, printed as JSON by the programs below.
REPORT = """
import json
import transformers
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto import image_processing_auto, modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

config = AutoConfig.for_model("sapiens")
found = {}
for name in ("AutoModel", "AutoBackbone", "AutoModelForPreTraining", "AutoModelForPoseEstimation",
             "AutoModelForSemanticSegmentation", "AutoModelForDepthEstimation", "AutoModelForNormalEstimation"):
    found[name] = getattr(transformers, name)._model_mapping[type(config)].__name__
tables = {name: table["sapiens"] for name, table in vars(modeling_auto).items()
          if name.endswith("_MAPPING_NAMES") and "sapiens" in table}
tasks = {}
for task in ("keypoint-detection", "pose-estimation", "normal-estimation"):
    normalised, definition, _ = PIPELINE_REGISTRY.check_task(task)
    tasks[task] = [normalised, definition["impl"].__name__, [cls.__name__ for cls in definition["pt"]]]
processors = {backend: cls.__name__ for backend, cls in
              image_processing_auto.IMAGE_PROCESSOR_MAPPING[type(config)].items()}
print(json.dumps({"found": found, "tables": tables, "tasks": tasks, "processors": processors,
                  "forbidden": "sapiens" in image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES}))
"""


def run(program: str) -> dict:
    """Run a program in a fresh interpreter and return the JSON of its last line; anything else printed is an error."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 and not done.stderr.strip(), done.stdout + done.stderr
    return json.loads(lines[0])


MODELS = {
    "AutoModel": "SapiensModel",
    "AutoBackbone": "SapiensBackbone",
    "AutoModelForPreTraining": "SapiensForPreTraining",
    "AutoModelForPoseEstimation": "SapiensForPoseEstimation",
    "AutoModelForSemanticSegmentation": "SapiensForSemanticSegmentation",
    "AutoModelForDepthEstimation": "SapiensForDepthEstimation",
    "AutoModelForNormalEstimation": "SapiensForNormalEstimation",
}
EVERYTHING = {
    "found": MODELS,
    "tables": {
        "MODEL_MAPPING_NAMES": "SapiensModel",
        "MODEL_FOR_BACKBONE_MAPPING_NAMES": "SapiensBackbone",
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES": "SapiensForPreTraining",
        "MODEL_FOR_POSE_ESTIMATION_MAPPING_NAMES": "SapiensForPoseEstimation",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": "SapiensForSemanticSegmentation",
        "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES": "SapiensForDepthEstimation",
        "MODEL_FOR_NORMAL_ESTIMATION_MAPPING_NAMES": "SapiensForNormalEstimation",
    },
    "tasks": {
        "keypoint-detection": [
            "keypoint-detection",
            "SapiensKeypointDetectionPipeline",
            ["AutoModelForPoseEstimation"],
        ],
        "pose-estimation": ["keypoint-detection", "SapiensKeypointDetectionPipeline", ["AutoModelForPoseEstimation"]],
        "normal-estimation": [
            "normal-estimation",
            "SapiensNormalEstimationPipeline",
            ["AutoModelForNormalEstimation"],
        ],
    },
    "processors": {"pil": "SapiensImageProcessorPil", "torchvision": "SapiensImageProcessor"},
    "forbidden": False,
}


def test_importing_loads_neither_torch_nor_transformers():
    loaded = run(
        """
        import sys
        before = set(sys.modules)
        import sapiens_hf
        heavy = ("torch", "transformers", "torchvision", "numpy", "PIL", "safetensors", "huggingface_hub")
        names = sorted({name.split(".")[0] for name in set(sys.modules) - before})
        import json
        print(json.dumps({"heavy": [n for n in heavy if n in sys.modules], "own": "sapiens_hf" in names,
                          "listed": set(sapiens_hf.__all__) <= set(dir(sapiens_hf))}))
        """
    )
    assert loaded == {"heavy": [], "own": True, "listed": True}


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel; import sapiens_hf",
        "import torch, transformers.models.auto.modeling_auto, transformers.pipelines; import sapiens_hf",
        "import sapiens_hf.modeling_sapiens",
        "import sapiens_hf.pipeline_sapiens",
    ],
)
def test_registered_whatever_is_imported_first(first):
    assert run(first + "\n" + REPORT) == EVERYTHING


def test_registered_before_transformers_is_imported_once_and_again():
    """In this process, and in a new one after a reload, nothing is added and nothing raises."""
    finders = list(sys.meta_path)
    registration.register()
    assert sys.meta_path == finders
    program = """
    import importlib, sys
    import sapiens_hf, transformers
    transformers.AutoModel, transformers.pipeline
    importlib.reload(sapiens_hf)
    sapiens_hf.registration.register()
    assert sum("sapiens_hf" in type(f).__module__ for f in sys.meta_path) == 1
    """
    assert run(textwrap.dedent(program) + REPORT) == EVERYTHING


def test_without_torchvision_the_pil_processor_takes_its_place(tmp_path):
    answers = run(
        f"""
        import importlib.util, sys
        sys.modules["torchvision"] = None
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: (
            None if name.split(".")[0] == "torchvision" else find_spec(name, package))
        import json, numpy
        import sapiens_hf
        from sapiens_hf import SapiensConfig, SapiensImageProcessor
        from transformers import AutoImageProcessor
        folder = {str(tmp_path)!r}
        SapiensConfig(image_size=[64, 48]).save_pretrained(folder)
        SapiensImageProcessor(size={{"height": 64, "width": 48}}).save_pretrained(folder)
        auto = AutoImageProcessor.from_pretrained(folder)
        pixels = auto(numpy.zeros((30, 20, 3), numpy.uint8), return_tensors="pt")["pixel_values"]
        print(json.dumps([SapiensImageProcessor.__name__, type(auto).__name__, list(pixels.shape)]))
        """
    )
    assert answers == ["SapiensImageProcessorPil", "SapiensImageProcessorPil", [1, 3, 64, 48]]
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "SapiensImageProcessor"  # either backend reads it


def test_every_public_name_can_be_imported():
    for name in sapiens_hf.__all__:
        assert getattr(sapiens_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SapiensForMatting'"):
        sapiens_hf.SapiensForMatting
    with pytest.raises(ImportError):
        from sapiens_hf import SapiensForMatting  # noqa: F401


def test_a_registry_waits_for_modules_that_are_half_loaded(monkeypatch):
    """Filling it while one of our modules is being executed would import that module a second time, half made."""
    filled = []
    registrar = registration._Registrar()
    registry = "json.decoder"  # any loaded module may play the registry
    registrar.pending = {registry: (filled.append, {"modeling_sapiens"})}
    registrar.loading = {"sapiens_hf.modeling_sapiens"}
    registrar.fill_registries()
    assert filled == [] and registry in registrar.pending
    registrar.loading = set()
    registrar.fill_registries()
    registrar.fill_registries()
    assert filled == [sys.modules[registry]] and not registrar.pending

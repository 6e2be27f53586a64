"""A model -> `onnx/model*.onnx` beside its config.json: for onnxruntime, and laid out as transformers.js expects.

    python -m conversion onnx sapiens-seg-0.3b --output sapiens-seg-0.3b-onnx --dtype fp32 fp16

Every file is run against the torch model before it is kept. float32 has to agree; of float16 and int8 the difference
is reported.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import sapiens_hf
import sapiens_hf.original
from sapiens_hf.heatmaps_sapiens import decode_heatmaps
from sapiens_hf.onnxruntime_backend import ONNX_FILES, SapiensOnnxModel, output_names

from .recipes import format_table

logger = logging.get_logger(__name__)

# Largest allowed difference of a float32 export; two runtimes that sum in another order differ by some 5e-6.
TOLERANCE = 1e-4
MIN_LABEL_AGREEMENT = 0.999
MAX_KEYPOINT_SHIFT_PX = 0.05
# Two equal peaks, or a flat one, put a keypoint anywhere: keypoints that torch itself moves when this is added to its
# heatmaps say nothing about the export and are not compared. Trained networks have hardly any.
STEADY_NOISE = 1e-5
# A protobuf message ends at 2 GiB; larger models keep their weights beside the graph, in the file that transformers.js
# looks for.
MAX_INLINE_BYTES = 1_900_000_000


@dataclass(frozen=True)
class OnnxReport:
    """How far an exported file is from torch.

    Attributes:
        dtype: Number format of the weights.
        path: The file.
        megabytes: Its size and that of its weights file, in 10^6 bytes.
        difference: Largest absolute difference of an output.
        magnitude: Largest absolute output of torch.
        label_agreement: Share of equal classes per pixel, for segmentation.
        keypoint_shift_px: Median and largest shift of a steady keypoint in pixels of the network's input, for pose.
        steady_keypoints: Share of the keypoints that could be compared.
    """

    dtype: str
    path: Path
    megabytes: float
    difference: float
    magnitude: float
    label_agreement: float | None = None
    keypoint_shift_px: tuple[float, float] | None = None
    steady_keypoints: float | None = None

    @property
    def passed(self) -> bool:
        """Whether a float32 export is as near as it has to be."""
        return (
            self.difference <= TOLERANCE * max(1.0, self.magnitude)
            and (self.label_agreement is None or self.label_agreement >= MIN_LABEL_AGREEMENT)
            and (self.keypoint_shift_px is None or self.keypoint_shift_px[1] <= MAX_KEYPOINT_SHIFT_PX)
        )


class _ForExport(torch.nn.Module):
    """The model with plain tensors as outputs, float32 in and out."""

    def __init__(self, model: Any, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values=pixel_values.to(self.model.dtype))
        tensors = (outputs[name].float() for name in self.names)
        return tuple(t[:, None] if name == "predicted_depth" else t for name, t in zip(self.names, tensors))


def export_onnx(
    source: Any,
    output: str | Path,
    *,
    dtypes: Sequence[str] = ("fp32",),
    task: str | None = None,
    processor: Any = None,
    overwrite: bool = False,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> list[OnnxReport]:
    """Exports a model with a free batch size and its own image size.

    Args:
        source: A model, or what `from_pretrained` opens: a folder, a repository id, a checkpoint of the original.
        output: Folder to write `config.json`, `preprocessor_config.json` and `onnx/` into. A folder that holds this
            very model keeps its other files.
        dtypes: `"fp32"`, `"fp16"` (weights and arithmetic) and `"int8"` (weights of the linear layers; dynamic).
        task: `"encoder"` for the features of any model; the model's own task by default.
        processor: Image processor of a model that is given as an object.
        overwrite: Whether to write over existing ONNX files or another model's folder.
        max_inline_bytes: From this size on, weights are kept beside the graph.

    Returns:
        One report per file.

    Raises:
        ValueError: A task without ONNX form, an unknown number format, or a float32 export that differs from torch.
        FileExistsError: The folder holds another model, or these files already.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    for dtype in dtypes:
        if dtype not in ONNX_FILES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(ONNX_FILES)}.")
    _require_packages()
    model, processor = _load(source, task, processor)
    architecture = type(model).__name__
    names = output_names(architecture)
    output = Path(output)
    _check_folder(output, architecture, dtypes, overwrite)
    pixel_values = _test_images(model)
    with torch.no_grad():
        expected = model(pixel_values=pixel_values)
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        made: dict[str, Path] = {}
        for dtype in sorted(dtypes, key=["fp32", "int8", "fp16"].index):  # int8 is made from float32; fp16 is last,
            made[dtype] = path = Path(scratch) / ONNX_FILES[dtype]  # because it changes the model
            if dtype == "int8":
                _quantise(made.get("fp32") or _write(model, names, Path(scratch) / "float32.onnx", None), path)
            else:
                _write(model.half() if dtype == "fp16" else model, names, path, max_inline_bytes)
            config = _config_for(model, made)
            reports.append(_measure(config, dtype, path, pixel_values, expected))
            if dtype == "fp32" and not reports[-1].passed:
                raise ValueError(
                    f"The float32 export differs from torch: {report_table(reports)}\nNothing was kept. Please report "
                    "it with the versions of torch, onnx and onnxruntime."
                )
        (output / "onnx").mkdir(parents=True, exist_ok=True)
        for path in [file for made_file in made.values() for file in _files_of(made_file)]:
            shutil.move(path, output / "onnx" / path.name)
    _write_json_files(output, model, processor, dtypes, max_inline_bytes)
    order = list(dtypes)
    reports = [OnnxReport(**{**vars(r), "path": output / "onnx" / r.path.name}) for r in reports]
    return sorted(reports, key=lambda report: order.index(report.dtype))


def report_table(reports: Sequence[OnnxReport]) -> str:
    """The reports as text, one line each."""
    rows = [
        ("file", "MB", "max difference", "max value", "equal labels", "keypoint shift (px): median, max", "steady")
    ]
    for r in reports:
        labels = "-" if r.label_agreement is None else f"{100 * r.label_agreement:.3f} %"
        shift = "-" if r.keypoint_shift_px is None else "{:.4f}, {:.4f}".format(*r.keypoint_shift_px)
        steady = "-" if r.steady_keypoints is None else f"{100 * r.steady_keypoints:.0f} %"
        rows.append(
            (r.path.name, f"{r.megabytes:.1f}", f"{r.difference:.2g}", f"{r.magnitude:.3g}", labels, shift, steady)
        )
    return format_table(rows)


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'ONNX export needs {error.name}: pip install "sapiens_hf[onnx]".') from error


def _load(source: Any, task: str | None, processor: Any) -> tuple[Any, Any]:
    """The model in float32 on the CPU, a copy of it if it was given as an object, and its processor."""
    if task not in (None, "encoder"):
        raise ValueError(f"task is {task!r}; leave it out for the model's own, or pass 'encoder' for features.")
    if isinstance(source, torch.nn.Module):
        model = copy.deepcopy(source.base_model if task == "encoder" else source)
    elif sapiens_hf.original.is_original_source(source):
        model = sapiens_hf.load_original(source, task=task)
    else:
        config = sapiens_hf.SapiensConfig.from_pretrained(source)
        architecture = "SapiensModel" if task == "encoder" else (config.architectures or ["SapiensModel"])[0]
        output_names(architecture)
        model = getattr(sapiens_hf, architecture).from_pretrained(source, dtype=torch.float32)
        with contextlib.suppress(OSError):  # weights without a processor: one for their size is written
            processor = processor or sapiens_hf.SapiensImageProcessorPil.from_pretrained(source)
    return model.float().eval(), processor


def _check_folder(output: Path, architecture: str, dtypes: Sequence[str], overwrite: bool) -> None:
    if overwrite or not output.exists():
        return
    config = output / "config.json"
    there = json.loads(config.read_text()).get("architectures", ["?"])[0] if config.is_file() else None
    fits = there == architecture or (there, architecture) == ("SapiensForPreTraining", "SapiensModel")
    if not fits and any(output.iterdir()):
        raise FileExistsError(
            f"{output} holds {there or 'other files'}, not {architecture}: choose another folder, or pass overwrite."
        )
    existing = [ONNX_FILES[dtype] for dtype in dtypes if (output / "onnx" / ONNX_FILES[dtype]).exists()]
    if existing:
        raise FileExistsError(f"{output / 'onnx'} has {', '.join(existing)} already: pass overwrite to replace it.")


def _test_images(model: Any, batch_size: int = 2) -> torch.Tensor:
    """Normalised images with shapes in them: noise of three sizes of grain, always the same."""
    generator = torch.Generator().manual_seed(0)
    height, width = model.config.image_size
    images = torch.zeros(batch_size, model.config.num_channels, height, width)
    for parts in (3, 8, 24):
        coarse = torch.randn(batch_size, model.config.num_channels, parts, parts, generator=generator)
        images += torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return images.clamp(-2, 2)


def _write(model: Any, names: tuple[str, ...], path: Path, max_inline_bytes: int | None) -> Path:
    """Traces the model; weights beside the graph if it is larger than `max_inline_bytes` (`None`: the real limit)."""
    import onnx_ir

    # Two images, because a batch of one would be taken for a constant.
    example = torch.zeros(2, model.config.num_channels, *model.config.image_size)
    program = torch.onnx.export(
        _ForExport(model, names).eval(),
        (example,),
        dynamo=True,
        input_names=["pixel_values"],
        output_names=list(names),
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size")}},
        verbose=False,
    )
    _forget_origin(program.model)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    is_large = num_bytes > (MAX_INLINE_BYTES if max_inline_bytes is None else max_inline_bytes)
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if is_large else None)
    return path


def _forget_origin(model: Any) -> None:
    """Removes what the exporter notes about every node: source lines, with the paths of this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.metadata_props.clear()


def _quantise(float32: Path, path: Path) -> None:
    """Weights of linear layers as int8, one scale per column; activations are quantised on the fly.

    Convolutions stay in float32: onnxruntime's integer convolution is slower on most processors, and the head, whose
    output is read to a fraction of a pixel, would suffer most.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    is_large = sum(file.stat().st_size for file in _files_of(float32)) > MAX_INLINE_BYTES
    quantize_dynamic(
        float32,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=is_large,
    )


def _files_of(path: Path) -> list[Path]:
    return [path, *path.parent.glob(f"{path.name}_data*")]


def _measure(config: Any, dtype: str, path: Path, pixel_values: torch.Tensor, expected: Any) -> OnnxReport:
    model = SapiensOnnxModel(config, path)
    ours = model(pixel_values)
    pairs = [(ours[name], expected[name]) for name in model.output_names]
    labels = shift = steady_share = None
    if "logits" in model.output_names:
        labels = float((ours.logits.argmax(1) == expected.logits.argmax(1)).float().mean())
    if "heatmaps" in model.output_names:
        shift, steady_share = _keypoint_shift(ours.heatmaps, expected.heatmaps, pixel_values.shape[-1])
    return OnnxReport(
        dtype=dtype,
        path=path,
        megabytes=sum(file.stat().st_size for file in _files_of(path)) / 1e6,
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        magnitude=max(float(b.abs().max()) for _, b in pairs),
        label_agreement=labels,
        keypoint_shift_px=shift,
        steady_keypoints=steady_share,
    )


def _keypoint_shift(
    heatmaps: torch.Tensor, expected: torch.Tensor, input_width: int
) -> tuple[tuple[float, float], float]:
    """Median and largest shift of a steady keypoint in input pixels, and the share of steady keypoints."""
    factor = input_width / expected.shape[-1]
    noise = (
        torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)) * STEADY_NOISE * expected.abs().max()
    )
    theirs, moved, ours = (decode_heatmaps(maps)[0] * factor for maps in (expected, expected + noise, heatmaps))
    steady = (moved - theirs).norm(dim=-1) <= MAX_KEYPOINT_SHIFT_PX / 5
    shifts = (ours - theirs).norm(dim=-1)[steady]
    if not len(shifts):
        raise ValueError(
            "None of the keypoints is steady: the heatmaps of this model are flat, so it cannot be told whether the "
            "export finds the same keypoints. Export a trained model."
        )
    return (float(shifts.median()), float(shifts.max())), float(steady.float().mean())


def _config_for(model: Any, made: dict[str, Path]) -> Any:
    config = sapiens_hf.SapiensConfig.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    return config


def _write_json_files(output: Path, model: Any, processor: Any, dtypes: Sequence[str], max_inline_bytes: int) -> None:
    config_file = output / "config.json"
    config = json.loads(config_file.read_text()) if config_file.is_file() else _config_for(model, {}).to_dict()
    external = {ONNX_FILES[d]: 1 for d in dtypes if (output / "onnx" / f"{ONNX_FILES[d]}_data").exists()}
    if external:
        config["transformers.js_config"] = {"use_external_data_format": external}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if not (output / "preprocessor_config.json").is_file():
        height, width = model.config.image_size
        processor = processor or sapiens_hf.SapiensImageProcessorPil(size={"height": height, "width": width})
        processor.save_pretrained(output)

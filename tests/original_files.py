"""Makes checkpoint files in the formats of the original, with random weights, for tests and benchmarks.

A `Spec` describes a network; `state_shapes` gives its tensors under the original's names, `random_state` fills them,
and the `write_*` functions put them into the containers that Meta used. `write_large_pth` does so without having the
weights in memory. `OriginalNet` is the same network as modules, for tracing and exporting.
"""

import io
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sapiens_hf.configuration_sapiens import SIZES, TASKS
from sapiens_hf.original import to_original_state_dict


@dataclass(frozen=True)
class Spec:
    """Dimensions of a network; the defaults are narrow and no two of them are equal."""

    task: str = "pose"
    width: int = 24
    layers: int = 2
    heads: int = 3
    hidden: int = 40
    image_size: tuple[int, int] = (96, 64)
    padding: int = 2
    outputs: int = 17
    deconv: tuple[int, ...] = (12, 10)
    conv: tuple[int, ...] = (9, 8)
    decoder: dict[str, int] = field(default_factory=lambda: dict(width=16, layers=2, heads=2, hidden=28))

    @property
    def head_prefix(self) -> str | None:
        return {"pose": "head", "pretraining": None, "encoder": None}.get(self.task, "decode_head")

    @property
    def last(self) -> str:
        return "final_layer" if self.task == "pose" else "conv_seg"

    @property
    def has_token(self) -> bool:
        return self.task in ("pretraining", "encoder")

    @property
    def num_positions(self) -> int:
        return self.image_size[0] // 16 * (self.image_size[1] // 16) + self.has_token


NARROW = {
    "pose": Spec(),
    "segmentation": Spec("segmentation", padding=0, outputs=28, deconv=(12, 10, 6), conv=(9, 8, 7)),
    "depth": Spec("depth", width=32, heads=4, padding=0, outputs=1, deconv=(12, 10, 6, 5), conv=(9, 8)),
    "normal": Spec("normal", width=40, heads=5, outputs=3, deconv=(12, 10, 6), conv=(9, 8, 7)),
    "encoder": Spec("encoder", image_size=(64, 64), padding=0),
    "pretraining": Spec("pretraining", image_size=(64, 64), padding=0),
}


def full_size(size: str, task: str, outputs: int | None = None) -> Spec:
    """One of the released networks, for example `full_size("0.3b", "pose")`."""
    dims, head = SIZES[size], TASKS[task]
    return Spec(
        task,
        dims["hidden_size"],
        dims["num_hidden_layers"],
        dims["num_attention_heads"],
        dims["intermediate_size"],
        (1024, 1024) if task in ("encoder", "pretraining") else (1024, 768),
        head.get("patch_embeddings_padding", 0),
        outputs or head.get("num_labels") or {"depth": 1, "normal": 3}.get(task, 0),
        tuple(head.get("deconv_out_channels", ())),
        tuple(head.get("conv_out_channels", ())),
        dict(width=512, layers=8, heads=16, hidden=2048),
    )


# ------------------------------------------------------------------------------------------------------------- tensors
def _block_shapes(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.ln1.weight": (width,),
        f"{prefix}.ln1.bias": (width,),
        f"{prefix}.attn.qkv.weight": (3 * width, width),
        f"{prefix}.attn.qkv.bias": (3 * width,),
        f"{prefix}.attn.proj.weight": (width, width),
        f"{prefix}.attn.proj.bias": (width,),
        f"{prefix}.ln2.weight": (width,),
        f"{prefix}.ln2.bias": (width,),
        f"{prefix}.ffn.layers.0.0.weight": (hidden, width),
        f"{prefix}.ffn.layers.0.0.bias": (hidden,),
        f"{prefix}.ffn.layers.1.weight": (width, hidden),
        f"{prefix}.ffn.layers.1.bias": (width,),
    }


def state_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the network, in the order of the original."""
    shapes: dict[str, tuple[int, ...]] = {}
    if spec.has_token:
        shapes["backbone.cls_token"] = (1, 1, spec.width)
    shapes["backbone.pos_embed"] = (1, spec.num_positions, spec.width)
    shapes["backbone.patch_embed.projection.weight"] = (spec.width, 3, 16, 16)
    shapes["backbone.patch_embed.projection.bias"] = (spec.width,)
    for i in range(spec.layers):
        shapes |= _block_shapes(f"backbone.layers.{i}", spec.width, spec.hidden)
    shapes |= {"backbone.ln1.weight": (spec.width,), "backbone.ln1.bias": (spec.width,)}
    if spec.task == "pretraining":
        width = spec.decoder["width"]
        shapes |= {"neck.mask_token": (1, 1, width), "neck.decoder_pos_embed": (1, spec.num_positions, width)}
        shapes |= {"neck.decoder_embed.weight": (width, spec.width), "neck.decoder_embed.bias": (width,)}
        for i in range(spec.decoder["layers"]):
            shapes |= _block_shapes(f"neck.decoder_blocks.{i}", width, spec.decoder["hidden"])
        shapes |= {"neck.ln1.weight": (width,), "neck.ln1.bias": (width,)}
        shapes |= {"neck.decoder_pred.weight": (768, width), "neck.decoder_pred.bias": (768,)}
    if spec.head_prefix:
        channels = spec.width
        for i, out in enumerate(spec.deconv):
            shapes[f"{spec.head_prefix}.deconv_layers.{3 * i}.weight"] = (channels, out, 4, 4)
            channels = out
        for i, out in enumerate(spec.conv):
            shapes[f"{spec.head_prefix}.conv_layers.{3 * i}.weight"] = (out, channels, 1, 1)
            shapes[f"{spec.head_prefix}.conv_layers.{3 * i}.bias"] = (out,)
            channels = out
        shapes[f"{spec.head_prefix}.{spec.last}.weight"] = (spec.outputs, channels, 1, 1)
        shapes[f"{spec.head_prefix}.{spec.last}.bias"] = (spec.outputs,)
    return shapes


def random_state(spec: Spec, seed: int = 0) -> "OrderedDict[str, torch.Tensor]":
    """Random float32 tensors; norms stay near 1 so that outputs have a magnitude of about 1."""
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for name, shape in state_shapes(spec).items():
        values = torch.randn(shape, generator=generator) * 0.2
        is_norm = name.rsplit(".", 2)[-2] in ("ln1", "ln2") and name.endswith("weight")
        state[name] = values + 1 if is_norm else values
    return state


# ------------------------------------------------------------------------------------------------------------ metadata
def config_text(spec: Spec) -> str:
    """The configuration text that the original's runner stores, shortened to what describes the network."""
    height, width = spec.image_size
    size = f"{height}" if spec.has_token else f"(\n            {height},\n            {width},\n        )"
    kind = "mask_ratio=0.75" if spec.task == "pretraining" else "out_type='featmap'"
    patch = f"        patch_cfg=dict(padding={spec.padding}),\n" if spec.padding else ""
    heads = {
        "pose": "head=dict(\n        loss=dict(type='KeypointMSELoss'),\n        type='HeatmapHead'),",
        "segmentation": "decode_head=dict(\n        align_corners=False,\n        type='VitHead'),",
        "depth": "decode_head=dict(\n        align_corners=False,\n        type='VitDepthHead'),",
        "normal": "decode_head=dict(\n        align_corners=False,\n        type='VitNormalHead'),",
        "pretraining": f"head=dict(norm_pix=True),\n    neck=dict(decoder_num_heads={spec.decoder['heads']}),",
        "encoder": "",
    }
    return f"""embed_dim = 1024
lr = -1e-4
scales = {{'a': [1, 2]}}
unknown = embed_dim * 2
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims={spec.width}, feedforward_channels={spec.hidden}, num_heads={spec.heads},
            num_layers={spec.layers}),
        img_size={size},
        {kind},
{patch}        patch_size=16,
        with_cls_token={spec.has_token}),
    {heads[spec.task]}
    type='Net')
"""


class _MmengineModule:
    """Makes a dict and a list class of mmengine importable while something is pickled."""

    def __enter__(self):
        module = types.ModuleType("mmengine.config.config")
        module.ConfigDict = type("ConfigDict", (dict,), {"__module__": module.__name__})
        self.names = ["mmengine", "mmengine.config", "mmengine.config.config"]
        for name in self.names:
            sys.modules[name] = module if name == self.names[-1] else types.ModuleType(name)
        module.HistoryBuffer = type("HistoryBuffer", (list,), {"__module__": module.__name__})
        return module.ConfigDict, module.HistoryBuffer

    def __exit__(self, *details):
        for name in self.names:
            del sys.modules[name]


def write_pth(path: Path, spec: Spec, *, state=None, config=True, mmengine=True, prefix="", **save) -> Path:
    """A `.pth` of the original runner: `meta` (configuration text, numpy arrays, mmengine dicts) and `state_dict`."""
    state = random_state(spec) if state is None else state
    meta = {"epoch": 3, "iter": 7, "time": "20240101_000000", "mmengine_version": "1.0.0"}
    if config:
        meta["cfg"] = config_text(spec)
    meta["dataset_meta"] = {
        "sigmas": np.linspace(0.02, 0.1, 5, dtype=np.float32),
        "num_keypoints": np.int64(spec.outputs),
        "keypoint_ids": {3, 1, 2},
        "dtype": torch.bfloat16,
    }
    with _MmengineModule() as (ConfigDict, HistoryBuffer):
        if mmengine:
            meta["dataset_meta"]["mapping"] = ConfigDict({"4": ConfigDict({"5": 6})})
            meta["dataset_meta"]["buffers"] = [HistoryBuffer([1]), HistoryBuffer([1, 2, 3])]
        content = {
            "meta": meta,
            "state_dict": OrderedDict((prefix + k, v) for k, v in state.items()),
            "message_hub": {},
        }
        torch.save(content, path, **save)
    return path


def write_clean_pth(path: Path, spec: Spec, state=None) -> Path:
    """A `_clean.pth`: the encoder alone, flat, without `backbone.`."""
    state = random_state(spec) if state is None else state
    torch.save(
        OrderedDict((k.removeprefix("backbone."), v) for k, v in state.items() if k.startswith("backbone.")), path
    )
    return path


def write_large_pth(path: Path, spec: Spec, seed: int = 0) -> Path:
    """A `.pth` of any size, its weights made block by block: memory stays at some 100 MB.

    torch writes the file with empty storages; the values are filled in afterwards. The checksums of the zip members
    are then wrong, which neither torch nor we look at.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sapiens_hf.original_readers import read_original

    with FakeTensorMode():
        state = OrderedDict((name, torch.empty(shape)) for name, shape in state_shapes(spec).items())
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"meta": {"cfg": config_text(spec)}, "state_dict": state}, path)
    generator = np.random.default_rng(seed)
    tensors = read_original(path).tensors
    with path.open("r+b") as file:
        for name, stored in tensors.items():
            is_norm = name.rsplit(".", 2)[-2] in ("ln1", "ln2") and name.endswith("weight")
            file.seek(stored.storage.offset)
            left = stored.storage.num_bytes // 4
            while left:
                block = generator.standard_normal(min(left, 1 << 22), dtype=np.float32) * np.float32(0.02)
                file.write((block + np.float32(is_norm)).tobytes())
                left -= len(block)
    return path


# ------------------------------------------------------------------------------------------------- network, as modules
class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class _Ffn(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), nn.GELU()), nn.Linear(hidden, width))

    def forward(self, x):
        return self.layers(x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width, eps=1e-6), _Attention(width, heads)
        self.ln2, self.ffn = nn.LayerNorm(width, eps=1e-6), _Ffn(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, padding: int):
        super().__init__()
        self.projection = nn.Conv2d(3, width, 16, 16, padding)

    def forward(self, x):
        return self.projection(x).flatten(2).transpose(1, 2)


class _Backbone(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.rows = spec.image_size[0] // 16
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width)) if spec.has_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.num_positions, spec.width))
        self.patch_embed = _PatchEmbed(spec.width, spec.padding)
        self.layers = nn.ModuleList(_Layer(spec.width, spec.heads, spec.hidden) for _ in range(spec.layers))
        self.ln1 = nn.LayerNorm(spec.width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        x = self.ln1(x)[:, int(self.cls_token is not None) :]
        return x.transpose(1, 2).unflatten(2, (self.rows, -1))


class _Neck(nn.Module):
    """The masked decoder; feature extraction, which is what was traced, does not run it."""

    def __init__(self, spec: Spec):
        super().__init__()
        width = spec.decoder["width"]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, spec.num_positions, width))
        self.decoder_embed = nn.Linear(spec.width, width)
        self.decoder_blocks = nn.ModuleList(
            _Layer(width, spec.decoder["heads"], spec.decoder["hidden"]) for _ in range(spec.decoder["layers"])
        )
        self.ln1, self.decoder_pred = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 768)


class _Head(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        modules, channels, self.last = {"deconv": [], "conv": []}, spec.width, spec.last
        for kind, widths in (("deconv", spec.deconv), ("conv", spec.conv)):
            for out in widths:
                layer = (
                    nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False)
                    if kind == "deconv"
                    else nn.Conv2d(channels, out, 1)
                )
                modules[kind] += [layer, nn.InstanceNorm2d(out), nn.SiLU()]
                channels = out
        self.deconv_layers, self.conv_layers = nn.Sequential(*modules["deconv"]), nn.Sequential(*modules["conv"])
        setattr(self, spec.last, nn.Conv2d(channels, spec.outputs, 1))

    def forward(self, x):
        return getattr(self, self.last)(self.conv_layers(self.deconv_layers(x)))


class _Preprocessor(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 116.28))
        self.register_buffer("std", torch.full((3, 1, 1), 57.12))


class OriginalNet(nn.Module):
    """The original network with its module names, so that files traced from it look like Meta's."""

    def __init__(self, spec: Spec, state=None):
        super().__init__()
        self.data_preprocessor, self.backbone, self.prefix = _Preprocessor(), _Backbone(spec), spec.head_prefix
        if spec.task == "pretraining":
            self.neck = _Neck(spec)
        if spec.head_prefix:
            setattr(self, spec.head_prefix, _Head(spec))
        result = self.load_state_dict(random_state(spec) if state is None else state, strict=False)
        assert not result.unexpected_keys and all("data_preprocessor" in key for key in result.missing_keys), result
        self.eval()

    def forward(self, x):
        x = self.backbone(x)
        return getattr(self, self.prefix)(x) if self.prefix else x


# ------------------------------------------------------------------------------------------------------ traced formats
def write_torchscript(path: Path, spec: Spec, state=None) -> Path:
    """A `_torchscript.pt2`, traced as the original's deployment script does it."""
    with torch.no_grad():
        torch.jit.trace(OriginalNet(spec, state), torch.rand(1, 3, *spec.image_size), check_trace=False).save(
            str(path)
        )
    return path


def write_export(path: Path, spec: Spec, state=None, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A `_bfloat16.pt2` in the layout that torch writes since 2.8."""
    net = OriginalNet(spec, state).to(dtype)
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        program = torch.export.export(
            net, (torch.rand(2, 3, *spec.image_size).to(dtype),), dynamic_shapes=({0: batch},)
        )
    torch.export.save(program, path)
    return path


def write_old_export(path: Path, exported: Path, spec: Spec, state=None, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The layout before 2.8, which is the one of Meta's files: a pickled state dict inside the zip.

    Args:
        path: File to write.
        exported: What `write_export` made of the same network; the program is taken from it.
        spec: The network.
        state: Its tensors.
        dtype: Their type.
    """
    with zipfile.ZipFile(exported) as archive:
        program = archive.read(next(n for n in archive.namelist() if n.endswith("models/model.json")))
    net = OriginalNet(spec, state).to(dtype)
    weights = io.BytesIO()
    torch.save({**dict(net.named_parameters()), **dict(net.named_buffers())}, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", program)
        archive.writestr("serialized_state_dict.pt", weights.getvalue())
        archive.writestr("serialized_constants.pt", b"")
        archive.writestr("version", "5.1")
    return path


def write_safetensors(path: Path, spec: Spec, state=None, config: bool = True) -> Path:
    """Original names in a `.safetensors`, with the configuration text among its metadata."""
    from safetensors.torch import save_file

    save_file(
        dict(random_state(spec) if state is None else state),
        path,
        metadata={"cfg": config_text(spec)} if config else None,
    )
    return path


# -------------------------------------------------------------------------------------------------------- broken files
class Malicious:
    """Runs a function when it is unpickled by a pickle that does not look."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def rewrite_zip(path: Path, out: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """Copies a zip; `change(name, data)` returns the new data of a member, or `None` to leave it out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


# ------------------------------------------------------------------------------------------------------------- checks
def known(spec):
    """What a file without configuration text leaves open."""
    more = {"decoder_num_attention_heads": spec.decoder["heads"]} if spec.task == "pretraining" else {}
    size = {} if spec.has_token else {"image_size": list(spec.image_size)}
    return {"num_attention_heads": spec.heads, **more, **size}


def assert_same_network(model, spec, state):
    """Weights to the bit, features and head to rounding, on a non-square batch of two."""
    stored = to_original_state_dict(model)
    if spec.task == "encoder":
        stored = {f"backbone.{name}": tensor for name, tensor in stored.items()}
    assert stored.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(stored[name], tensor), name
    net, pixels = OriginalNet(spec, state), torch.randn(2, 3, *spec.image_size)
    with torch.no_grad():
        tokens = model.base_model(pixels).last_hidden_state[:, int(spec.has_token) :]
        torch.testing.assert_close(tokens.mT, net.backbone(pixels).flatten(2), rtol=1e-5, atol=1e-5)
        if spec.head_prefix:
            torch.testing.assert_close(model.predict_maps(pixels)[0], net(pixels), rtol=1e-5, atol=2e-5)

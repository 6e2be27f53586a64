"""Containers of the original checkpoints: what a file holds, read without running anything that the file says.

`read_original(path)` opens a `.pth` (zip or the older stacked pickles), a `.safetensors`, a TorchScript `.pt2` or a
torch.export `.pt2` (both layouts) and returns an `OriginalFile`: the names, shapes and places of its tensors, and the
few facts beside them (configuration text, padding of the traced patch convolution, traced input size). No weight is
read until `StoredTensor.read` asks for it, so the memory needed is that of the tensors that are kept.

Nothing is executed. Pickles go through an `Unpickler` that knows an allow-list: tensors become `StoredTensor`,
metadata objects of numpy and of the mm* packages become inert placeholders, TorchScript modules become plain attribute
holders, and every other name stops the load. `torch.jit.load` and `torch.export.load` are not used: the first runs the
`__setstate__` of the archive, the second unpickles its sample inputs.

Part of `original.py`: this module knows containers and no network.
"""

from __future__ import annotations

import ast
import collections
import io
import itertools
import json
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

# `torch.save` names a storage type per dtype; TorchScript archives use the same names.
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TORCH_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# torch/_export/serde/schema.py, enum ScalarType.
EXPORT_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}

INERT_PACKAGES = {"mmengine", "mmcv", "mmpose", "mmseg", "mmpretrain", "mmdet", "addict"}
INERT_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
    "numpy.dtypes",
    "torch.jit._pickle",
}
INERT_NAMES = {
    *(("_codecs", name) for name in ("encode",)),
    *(("collections", name) for name in ("defaultdict", "deque", "Counter")),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "slice", "range", "complex", "bytearray")
    ),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    ("torch", "device"),
    ("torch", "Size"),
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


# ----------------------------------------------------------------------------------------------------- stored tensors
@dataclass
class _Storage:
    """A run of bytes in a file. The legacy format tells the place only after the tensors that use it."""

    path: Path
    dtype: torch.dtype
    num_bytes: int
    offset: int = -1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        shape: Sizes of the dimensions.
        stride: Steps between neighbours, in elements.
        start: First element, counted from the beginning of the storage.
    """

    storage: _Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Element type in the file."""
        return self.storage.dtype

    def read(self) -> torch.Tensor:
        """Reads the tensor from its file into memory of its own.

        Returns:
            A contiguous CPU tensor of shape `shape`.

        Raises:
            ValueError: The file ends before the tensor does, or the tensor leaves its storage.
        """
        storage, item = self.storage, self.dtype.itemsize
        empty = 0 in self.shape
        span = 0 if empty else 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if min((self.start, *self.shape, *self.stride)) < 0 or (self.start + span) * item > storage.num_bytes:
            raise ValueError(
                f"{storage.path}: a tensor of shape {list(self.shape)} leaves its storage of {storage.num_bytes} "
                "bytes: the file is damaged. Download it again."
            )
        flat = torch.empty(span, dtype=self.dtype)
        with storage.path.open("rb") as file:
            file.seek(storage.offset + self.start * item)
            got = file.readinto(memoryview(flat.view(torch.uint8).numpy())) if span else 0
        if got != span * item:
            raise ValueError(
                f"{storage.path} ends in the middle of a tensor ({got} of {span * item} bytes): it is truncated. "
                "Download it again."
            )
        return flat.as_strided(self.shape, self.stride).contiguous()


@dataclass
class OriginalFile:
    """What one checkpoint file says.

    Attributes:
        path: The file.
        container: `"pth"`, `"safetensors"`, `"torchscript"` or `"export"`.
        tensors: Stored tensors by their names in the file.
        config: The training configuration, if its text is in the file: nested dicts, `{}` otherwise.
        patch_padding: Padding of the patch convolution in pixels if the file was traced, else `None`.
        image_size: Height and width in pixels of the traced input, if the file says so.
    """

    path: Path
    container: str
    tensors: dict[str, StoredTensor]
    config: dict[str, Any] = field(default_factory=dict)
    patch_padding: int | None = None
    image_size: list[int] | None = None


# ------------------------------------------------------------------------------------------------- restricted pickles
class _Inert:
    """Stands for a metadata object. Takes every call that unpickling makes and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value

    def extend(self, values: Any) -> None:
        """Drops list items."""
        del values


class _ScriptModule:
    """A module of a TorchScript archive: its attributes and the name of its class in the archive."""

    qualified_name = ""
    attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _rebuild_tensor(storage: _Storage, start: int, shape: tuple, stride: tuple, *flags: Any) -> StoredTensor:
    """Takes the arguments of torch's own `_rebuild_tensor_v2`; gradients and hooks are dropped."""
    del flags
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor is built on {type(storage).__name__}, not on a storage")
    return StoredTensor(storage, tuple(map(int, shape)), tuple(map(int, stride)), int(start))


def _rebuild_parameter(data: StoredTensor, *flags: Any) -> StoredTensor:
    """Takes the arguments of torch's own `_rebuild_parameter`."""
    del flags
    return data


class _RestrictedUnpickler(pickle.Unpickler):
    """Builds tensors, containers and placeholders; refuses every other name a pickle asks for."""

    def __init__(self, file: BinaryIO, path: Path, find_storage: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.find_storage = path, find_storage
        self.script_classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: D102 (documented by pickle)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        if module.split(".")[0] == "__torch__":
            qualified = f"{module}.{name}"
            kind = type("_ScriptModule", (_ScriptModule,), {"qualified_name": qualified})
            return self.script_classes.setdefault(qualified, kind)
        if module.split(".")[0] in INERT_PACKAGES or module in INERT_MODULES or (module, name) in INERT_NAMES:
            return _Inert
        raise ValueError(
            f"{self.path} was refused: unpickling it would use {module}.{name}, which no checkpoint of the original "
            "needs. Nothing was run. Take the file from its original repository."
        )

    def persistent_load(self, saved_id: Any) -> _Storage:  # noqa: D102 (documented by pickle)
        kind, dtype, key, _, count = saved_id[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self.path}: a tensor without a known storage type (got {kind!r}, {dtype!r})")
        return self.find_storage(str(key), dtype, int(count) * dtype.itemsize)


def _unpickle(file: BinaryIO, path: Path, find_storage: Any) -> Any:
    try:
        return _RestrictedUnpickler(file, path, find_storage).load()
    except ValueError:
        raise
    # A damaged pickle can fail in any way that its opcodes can.
    except Exception as error:
        raise ValueError(f"{path}: the pickle inside is damaged ({error}). Download the file again.") from error


# ------------------------------------------------------------------------------------------------------- zip archives
class _Window(io.RawIOBase):
    """Read-only view of a part of a file; the old torch.export layout keeps a zip inside a zip."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self.file, self.start, self.size, self.position = path.open("rb"), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        self.file.seek(self.start + self.position)
        data = self.file.read(count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


class _Archive:
    """A zip file (or one inside another) whose stored members are addressed by their place in the outer file."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self.path, self.start = path, start
        self.size = path.stat().st_size if size is None else size
        try:
            self.zip = zipfile.ZipFile(io.BufferedReader(_Window(path, start, self.size)))
        except (zipfile.BadZipFile, OSError, struct.error) as error:
            raise ValueError(
                f"{path} is truncated or damaged ({self.size} bytes, {error}): the table of contents, which stands at "
                "the end of the file, is not readable. Download it again."
            ) from error
        self.names = self.zip.namelist()
        order = self.find("byteorder")
        if order and self.read(order).strip() != b"little":
            raise ValueError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *details: object) -> None:
        self.zip.close()

    def find(self, ending: str) -> str | None:
        """The member called `ending`, in the top folder or outside of any."""
        return next((n for n in self.names if n == ending or n.split("/", 1)[-1] == ending), None)

    def read(self, name: str) -> bytes:
        """Contents of a small member."""
        try:
            return self.zip.read(name)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{self.path}: member {name} is damaged ({error}). Download the file again.") from error

    def span(self, name: str) -> tuple[int, int]:
        """First byte in the outer file, and number of bytes, of a member that is stored without compression."""
        try:
            info = self.zip.getinfo(name)
        except KeyError:
            raise ValueError(f"{self.path} has no member {name}: it is incomplete. Download it again.") from None
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{self.path}: member {name} is compressed, which torch never does. The file was re-packed: take the "
                "original one."
            )
        # The local header repeats the name and has an extra field of its own length (torch aligns the data with it).
        with self.path.open("rb") as file:
            file.seek(self.start + info.header_offset)
            header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{self.path}: the header of member {name} is damaged. Download the file again.")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + 30 + name_bytes + extra_bytes
        if offset + info.file_size > self.size:
            raise ValueError(f"{self.path} is truncated: member {name} leaves the file. Download it again.")
        return self.start + offset, info.file_size

    def load_pickle(self, name: str) -> Any:
        """Unpickles a member; its storages are the members `data/<key>` beside it."""
        folder = name.rsplit("/", 1)[0] if "/" in name else ""
        known: dict[str, _Storage] = {}

        def find_storage(key: str, dtype: torch.dtype, num_bytes: int) -> _Storage:
            if key not in known:
                offset, size = self.span(f"{folder}/data/{key}" if folder else f"data/{key}")
                if size < num_bytes:
                    raise ValueError(
                        f"{self.path}: storage {key} has {size} of {num_bytes} bytes: the file is damaged."
                    )
                known[key] = _Storage(self.path, dtype, size, offset)
            return known[key]

        return _unpickle(io.BytesIO(self.read(name)), self.path, find_storage)


# ------------------------------------------------------------------------------------------------- configuration text
def parse_config(text: str) -> dict[str, Any]:
    """Values of a Python-syntax configuration, by reading its syntax tree.

    Nothing is evaluated: `dict(...)` calls, literals and names assigned further up are understood, everything else is
    `None`.

    Args:
        text: What the original's runner stores as `meta["cfg"]`.

    Returns:
        Top-level assignments by name; `{}` for a text that is not Python.
    """
    values: dict[str, Any] = {}

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return values.get(node.id)
            case ast.List() | ast.Tuple():
                return [value(item) for item in node.elts]
            case ast.Dict():
                return {
                    value(k): value(v)
                    for k, v in zip(node.keys, node.values, strict=True)
                    if isinstance(k, ast.Constant)
                }
            case ast.Call(func=ast.Name(id="dict")):
                return {keyword.arg: value(keyword.value) for keyword in node.keywords if keyword.arg}
            case ast.UnaryOp(op=ast.USub()):
                inner = value(node.operand)
                return -inner if isinstance(inner, (int, float)) else None
        return None

    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = value(statement.value)
    return values


# ------------------------------------------------------------------------------------------------------------ readers
def _flatten(path: Path, checkpoint: Any) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors and configuration of a `.pth`: the state dict itself, or a dict with `state_dict` and `meta`."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds one {type(checkpoint).__name__}, expected a dict of tensors.")
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {k: v for k, v in state.items() if isinstance(v, StoredTensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors: its entries are {sorted(map(str, checkpoint))[:8]}. Expected a state dict, or "
            "a dict with 'state_dict'."
        )
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    return tensors, parse_config(text) if isinstance(text, str) else {}


def _read_legacy_pth(path: Path) -> OriginalFile:
    """The format before torch 1.6: five pickles one after the other, then per storage its length and its bytes."""
    storages: dict[str, _Storage] = {}

    def find_storage(key: str, dtype: torch.dtype, num_bytes: int) -> _Storage:
        return storages.setdefault(key, _Storage(path, dtype, num_bytes))

    with path.open("rb") as file:
        if _unpickle(file, path, find_storage) != LEGACY_MAGIC:
            raise ValueError(f"{path} is a pickle, but not one that torch.save wrote; expected a checkpoint.")
        _, _, checkpoint, keys = (_unpickle(file, path, find_storage) for _ in range(4))
        position = file.tell()
    for key in keys:
        storage = storages[key]
        storage.offset = position + 8  # the number of elements, int64, stands before the bytes
        position = storage.offset + storage.num_bytes
    if position > path.stat().st_size:
        raise ValueError(f"{path} is truncated: {path.stat().st_size} of {position} bytes. Download it again.")
    tensors, config = _flatten(path, checkpoint)
    return OriginalFile(path, "pth", tensors, config)


def _read_safetensors(path: Path) -> OriginalFile:
    header, data_start = safetensors_header(path)
    size = path.stat().st_size
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: tensor {name} has dtype {entry['dtype']}, expected one of {sorted(SAFETENSORS_DTYPES)}."
            )
        first, last = (data_start + offset for offset in entry["data_offsets"])
        if last > size:
            raise ValueError(f"{path} is truncated: tensor {name} ends at byte {last} of {size}. Download it again.")
        storage = _Storage(path, SAFETENSORS_DTYPES[entry["dtype"]], last - first, first)
        tensors[name] = StoredTensor(storage, tuple(entry["shape"]), _dense_stride(entry["shape"]))
    text = header.get("__metadata__", {}).get("cfg")
    return OriginalFile(path, "safetensors", tensors, parse_config(text) if text else {})


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a `.safetensors` file and the place of its first data byte.

    Raises:
        ValueError: The file does not begin with such a header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 0 < length < path.stat().st_size else b""
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a .safetensors file, or is truncated: no readable header. Download it again."
        ) from error
    return header, 8 + length


def _dense_stride(shape: Any) -> tuple[int, ...]:
    sizes = itertools.accumulate(reversed(list(shape)[1:]), lambda a, b: a * b, initial=1)
    return tuple(sizes)[::-1] if len(shape) else ()


def _read_torchscript(path: Path, archive: _Archive, pickle_name: str) -> OriginalFile:
    module = archive.load_pickle(pickle_name)
    if not isinstance(module, _ScriptModule):
        raise ValueError(f"{path} is a TorchScript archive that holds no module.")
    tensors: dict[str, StoredTensor] = {}
    patch_class = ""

    def walk(holder: _ScriptModule, prefix: str) -> None:
        nonlocal patch_class
        if prefix.endswith("patch_embed.projection."):
            patch_class = holder.qualified_name
        for name, value in holder.attributes.items():
            if isinstance(value, StoredTensor):
                tensors[prefix + name] = value
            elif isinstance(value, _ScriptModule):
                walk(value, f"{prefix}{name}.")

    try:
        walk(module, "")
    except RecursionError:
        raise ValueError(
            f"{path}: a module of this TorchScript archive contains itself; the file is damaged."
        ) from None
    return OriginalFile(path, "torchscript", tensors, patch_padding=_traced_padding(archive, patch_class))


def _traced_padding(archive: _Archive, qualified_name: str) -> int | None:
    """Padding in pixels in the traced code of the patch convolution, `_convolution(.., [16, 16], [p, p], ..)`."""
    module, _, name = qualified_name.rpartition(".")
    member = archive.find(f"code/{module.replace('.', '/')}.py")
    if not member:
        return None
    code = archive.read(member).decode("utf-8", "replace")
    body = re.search(rf"^class {re.escape(name)}\(.*?(?=^class |\Z)", code, re.M | re.S)
    call = re.search(r"_convolution\([^\[]*\[\d+, \d+\], \[(\d+), (\d+)\]", body[0]) if body else None
    return int(call[1]) if call else None


def _read_export(path: Path, archive: _Archive) -> OriginalFile:
    """Both layouts of torch.export: one member per tensor (2.8 and later), or one pickled state dict (before)."""
    config_name = next((n for n in archive.names if n.endswith("_weights_config.json")), None)
    pickled = archive.find("serialized_state_dict.pt") or next(
        (n for n in archive.names if re.search(r"data/weights/[^/]*\.pt$", n)), None
    )
    if config_name:
        tensors = _exported_weights(archive, config_name)
    elif pickled:
        with _Archive(path, *archive.span(pickled)) as inner:
            state = inner.load_pickle(inner.find("data.pkl") or "data.pkl")
        tensors = _flatten(path, state)[0]
    else:
        raise ValueError(f"{path} is a torch.export archive without weights: its members are {archive.names[:8]}.")
    program_name = archive.find("serialized_exported_program.json") or next(
        (n for n in archive.names if re.search(r"models/[^/]*\.json$", n)), None
    )
    program = json.loads(archive.read(program_name))["graph_module"] if program_name else {}
    return OriginalFile(
        path, "export", tensors, patch_padding=_exported_padding(program), image_size=_exported_input_size(program)
    )


def _exported_weights(archive: _Archive, config_name: str) -> dict[str, StoredTensor]:
    folder = config_name.rsplit("/", 1)[0]
    tensors = {}
    for name, entry in json.loads(archive.read(config_name))["config"].items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta["dtype"] not in EXPORT_DTYPES:
            raise ValueError(f"{archive.path}: tensor {name} is not stored as plain numbers (dtype {meta['dtype']}).")
        offset, size = archive.span(f"{folder}/{entry['path_name']}")
        storage = _Storage(archive.path, EXPORT_DTYPES[meta["dtype"]], size, offset)
        shape, stride = (tuple(item["as_int"] for item in meta[key]) for key in ("sizes", "strides"))
        tensors[name] = StoredTensor(storage, shape, stride, meta["storage_offset"]["as_int"])
    return tensors


def _exported_padding(program: dict[str, Any]) -> int | None:
    """Padding in pixels of the convolution node that uses the patch weight."""
    weights = {
        spec["parameter"]["arg"]["name"]
        for spec in program.get("signature", {}).get("input_specs", [])
        if spec.get("parameter", {}).get("parameter_name", "").endswith("patch_embed.projection.weight")
    }
    for node in program.get("graph", {}).get("nodes", []):
        inputs = {item["name"]: item["arg"] for item in node["inputs"]}
        if inputs.get("weight", {}).get("as_tensor", {}).get("name") in weights:
            return inputs.get("padding", {}).get("as_ints", [0])[0]  # a default argument is left out
    return None


def _exported_input_size(program: dict[str, Any]) -> list[int] | None:
    """Height and width in pixels of the image that the program was exported with."""
    values = program.get("graph", {}).get("tensor_values", {})
    for spec in program.get("signature", {}).get("input_specs", []):
        name = spec.get("user_input", {}).get("arg", {}).get("as_tensor", {}).get("name")
        sizes = [size.get("as_int") for size in values.get(name, {}).get("sizes", [])]
        if len(sizes) == 4 and all(isinstance(size, int) for size in sizes[2:]):
            return sizes[2:]
    return None


def read_original(path: str | Path) -> OriginalFile:
    """Reads the table of contents of a checkpoint file. The first bytes decide about the container, not the suffix.

    Args:
        path: A local file.

    Returns:
        Names and places of the tensors and what the file says about its network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, damaged, not a checkpoint, or asks for a name that is not allowed.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if not head:
        raise ValueError(f"{path} is empty (0 bytes). Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer of {size} bytes, not the checkpoint: run `git lfs pull`, or download the "
            "file itself."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page ({size} bytes), not a checkpoint: use the download link of the file.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        return _read_legacy_pth(path)
    if not head.startswith(b"PK"):
        raise ValueError(
            f"{path} begins with {head[:8]!r}: neither a torch .pth or .pt2 archive nor a .safetensors file. Expected "
            "one of the original's checkpoints."
        )
    with _Archive(path) as archive:
        data = archive.find("data.pkl")
        if archive.find("serialized_exported_program.json") or archive.find("archive_format"):
            return _read_export(path, archive)
        if data and any("/code/" in name or name.startswith("code/") for name in archive.names):
            return _read_torchscript(path, archive, data)
        if not data:
            raise ValueError(
                f"{path} is a zip file, but not one that torch wrote: its members are {archive.names[:6]}."
            )
        tensors, config = _flatten(path, archive.load_pickle(data))
    return OriginalFile(path, "pth", tensors, config)

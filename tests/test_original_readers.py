"""The containers of the original's checkpoints: layouts of torch.export, metadata, damage, and what is refused."""

import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import original_files as files
import pytest
import torch
from original_files import NARROW, assert_same_network, random_state

from sapiens_hf import original_readers
from sapiens_hf.original import load_original, read_original

GOLDEN = Path(__file__).parent / "golden"


# ------------------------------------------------------------------------------------------------------------ layouts
@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A torch.export file in the new layout; exporting takes seconds, so all tests share it."""
    spec = replace(NARROW["normal"], padding=1)
    return files.write_export(tmp_path_factory.mktemp("export") / "a_bfloat16.pt2", spec, random_state(spec, 5)), spec


def rounded(state):
    return {name: tensor.to(torch.bfloat16).float() for name, tensor in state.items()}


def check_export(path, spec):
    file = read_original(path)
    assert file.container == "export"
    assert file.image_size == list(spec.image_size)
    model = load_original(path, num_attention_heads=spec.heads)
    assert model.config.patch_embeddings_padding == spec.padding
    assert_same_network(model, spec, rounded(random_state(spec, 5)))


def test_export_new_layout(exported):
    check_export(*exported)


def test_export_old_layout(exported, tmp_path):
    path, spec = exported
    check_export(files.write_old_export(tmp_path / "old.pt2", path, spec, random_state(spec, 5)), spec)


def test_export_layout_of_2_8(exported, tmp_path):
    """Between the two: the new archive with one pickled state dict in it."""
    path, spec = exported
    state = io.BytesIO()
    torch.save({name: t.to(torch.bfloat16) for name, t in random_state(spec, 5).items()}, state)

    def change(name, data):
        if name.endswith("weights_config.json"):
            return None
        return None if "/weights/weight_" in name else data

    between = files.rewrite_zip(path, tmp_path / "between.pt2", change)
    with zipfile.ZipFile(between, "a") as archive:
        archive.writestr("a/data/weights/model.pt", state.getvalue())
    check_export(between, spec)


def test_export_never_unpickles_its_sample_inputs(exported, tmp_path):
    path, spec = exported
    evil = pickle.dumps(files.Malicious(os.mkdir, str(tmp_path / "made")))
    bad = files.rewrite_zip(path, tmp_path / "a.pt2", lambda n, d: evil if "sample_inputs" in n else d)
    check_export(bad, spec)
    assert not (tmp_path / "made").exists()


def test_export_without_weights_and_with_pickled_weights(exported, tmp_path):
    path, _ = exported
    empty = files.rewrite_zip(path, tmp_path / "a.pt2", lambda n, d: None if "/weights/" in n else d)
    with pytest.raises(ValueError, match="without weights"):
        read_original(empty)
    odd = files.rewrite_zip(
        path, tmp_path / "b.pt2", lambda n, d: d.replace(b'"use_pickle": false', b'"use_pickle": true')
    )
    with pytest.raises(ValueError, match="not stored as plain numbers"):
        read_original(odd)


def test_export_default_padding_and_no_program(exported, tmp_path):
    path, spec = exported

    def change(name, data):
        if not name.endswith("model.json"):
            return data
        program = json.loads(data)
        for node in program["graph_module"]["graph"]["nodes"]:
            node["inputs"] = [item for item in node["inputs"] if item["name"] != "padding"]
        return json.dumps(program).encode()

    assert read_original(files.rewrite_zip(path, tmp_path / "a.pt2", change)).patch_padding == 0
    bare = files.rewrite_zip(path, tmp_path / "b.pt2", lambda n, d: None if n.endswith("model.json") else d)
    file = read_original(bare)
    assert (file.patch_padding, file.image_size) == (None, None)
    model = load_original(bare, num_attention_heads=spec.heads, image_size=list(spec.image_size))
    assert model.config.patch_embeddings_padding == 2  # the recipe of normals


def test_metadata_of_a_real_checkpoint_unpickles_without_mmengine():
    """The pickle of the original code's 308-keypoint file: mmengine dicts, numpy arrays and scalars."""
    data = (GOLDEN / "original_pose308_data.pkl").read_bytes()
    assert b"mmengine.config.config" in data
    storages = {}

    def find_storage(key, dtype, num_bytes):
        return storages.setdefault(key, original_readers._Storage(Path("a.pth"), dtype, num_bytes, 0))

    content = original_readers._unpickle(io.BytesIO(data), Path("a.pth"), find_storage)
    tensors, config = original_readers._flatten(Path("a.pth"), content)
    assert len(tensors) == 37
    assert tensors["head.final_layer.weight"].shape == (308, 28, 1, 1)
    assert config["model"]["head"]["loss"] == {
        "type": "KeypointOHKMMSELoss",
        "topk": 128,
        "use_target_weight": True,
    }


def test_shared_storage_and_strides(tmp_path):
    """Transposed tensors and two views of one storage come back as their values."""
    base = torch.arange(24.0).reshape(4, 6)
    torch.save(
        {"t": base.T, "row": base[2], "scalar": torch.tensor(7), "empty": torch.zeros(0, 3)}, tmp_path / "a.pth"
    )
    tensors = read_original(tmp_path / "a.pth").tensors
    assert torch.equal(tensors["t"].read(), base.T)
    assert tensors["t"].read().is_contiguous()
    assert torch.equal(tensors["row"].read(), base[2])
    assert tensors["scalar"].read() == 7
    assert tensors["empty"].read().shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------- safety
def write_evil(path, content, **save):
    torch.save(content, path, **save)
    return path


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_is_refused_by_name(new_format, tmp_path):
    made = tmp_path / "made"
    content = {"state_dict": random_state(NARROW["pose"]), "meta": files.Malicious(os.mkdir, str(made))}
    path = write_evil(tmp_path / "a.pth", content, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"(posix|nt)\.mkdir"):
        load_original(path)
    assert not made.exists()


@pytest.mark.parametrize("function", [eval, getattr, print])
def test_builtins_are_refused(function, tmp_path):
    path = write_evil(tmp_path / "a.pth", {"state_dict": {"a": torch.ones(1)}, "meta": files.Malicious(function, "1")})
    with pytest.raises(ValueError, match=rf"builtins?__?\.{function.__name__}|builtins\.{function.__name__}"):
        read_original(path)


def test_malicious_torchscript_and_export(exported, tmp_path):
    made = tmp_path / "made"
    evil = pickle.dumps(files.Malicious(os.mkdir, str(made)), protocol=2)
    script = files.write_torchscript(tmp_path / "a.pt2", NARROW["pose"])
    bad = files.rewrite_zip(script, tmp_path / "b.pt2", lambda n, d: evil if n.endswith("/data.pkl") else d)
    with pytest.raises(ValueError, match=r"(posix|nt)\.mkdir"):
        load_original(bad)
    path, spec = exported
    old = files.write_old_export(tmp_path / "old.pt2", path, spec)
    inner = io.BytesIO()
    torch.save({"a": files.Malicious(os.mkdir, str(made))}, inner)
    worse = files.rewrite_zip(old, tmp_path / "c.pt2", lambda n, d: inner.getvalue() if "state_dict.pt" in n else d)
    with pytest.raises(ValueError, match=r"(posix|nt)\.mkdir"):
        load_original(worse)
    assert not made.exists()


def test_torchscript_that_holds_no_module_or_itself(tmp_path):
    script = files.write_torchscript(tmp_path / "a.pt2", NARROW["pose"])
    number = files.rewrite_zip(script, tmp_path / "b.pt2", lambda n, d: b"K\x01." if n.endswith("/data.pkl") else d)
    with pytest.raises(ValueError, match="holds no module"):
        read_original(number)
    # c__torch__ N: an object whose attribute "a" is the object itself.
    loop = b"\x80\x02c__torch__\nN\nq\x00)\x81q\x01}(X\x01\x00\x00\x00ah\x01ub."
    knot = files.rewrite_zip(script, tmp_path / "c.pt2", lambda n, d: loop if n.endswith("/data.pkl") else d)
    with pytest.raises(ValueError, match="contains itself"):
        read_original(knot)


def test_storages_of_unknown_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="known storage type"):
        # (persistent id ("file", 1, "0", "cpu", 3))
        data = b"\x80\x02(X\x04\x00\x00\x00fileK\x01X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ."
        original_readers._unpickle(io.BytesIO(data), tmp_path / "a.pth", None)
    with pytest.raises(ValueError, match="not on a storage"):
        data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR."
        original_readers._unpickle(io.BytesIO(data), tmp_path / "a.pth", None)


# ------------------------------------------------------------------------------------------------------- broken files
def test_truncated_files(tmp_path):
    spec = NARROW["pose"]
    made = {
        "zip": files.write_pth(tmp_path / "a.pth", spec),
        "legacy": files.write_pth(tmp_path / "b.pth", spec, _use_new_zipfile_serialization=False),
        "safetensors": files.write_safetensors(tmp_path / "c.safetensors", spec),
        "script": files.write_torchscript(tmp_path / "d.pt2", spec),
    }
    for name, path in made.items():
        data = path.read_bytes()
        for share in (0.5, 0.99):
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(ValueError, match="truncated|damaged") as error:
                load_original(path)
            assert str(path) in str(error.value), name


def test_tensor_that_leaves_its_file_or_storage(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(20))
    storage = original_readers._Storage(path, torch.float32, 40, 0)
    with pytest.raises(ValueError, match=r"20 of 40 bytes.*truncated"):
        original_readers.StoredTensor(storage, (2, 5), (5, 1)).read()
    with pytest.raises(ValueError, match="leaves its storage"):
        original_readers.StoredTensor(storage, (2, 6), (6, 1)).read()
    with pytest.raises(ValueError, match="leaves its storage"):
        original_readers.StoredTensor(storage, (2, 5), (-5, 1)).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"hello, this is no checkpoint", "neither a torch"),
        (b"\x80\x02K\x05.", "not one that torch.save wrote"),
        (b"\x80\x02}K", "damaged"),
        (b"\x00" * 8 + b"{" + b"\x00" * 60, "no readable header"),
    ],
)
def test_files_that_are_no_checkpoint(content, message, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_original(path)
    assert str(path) in str(error.value)


def test_odd_archives(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    packed = files.rewrite_zip(path, tmp_path / "b.pth", lambda n, d: d, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_original(packed)
    big = files.rewrite_zip(path, tmp_path / "c.pth", lambda n, d: b"big" if n.endswith("byteorder") else d)
    with pytest.raises(ValueError, match="big-endian"):
        load_original(big)
    gap = files.rewrite_zip(path, tmp_path / "d.pth", lambda n, d: None if n.endswith("data/3") else d)
    with pytest.raises(ValueError, match="no member.*incomplete"):
        load_original(gap)
    short = files.rewrite_zip(path, tmp_path / "e.pth", lambda n, d: d[:-4] if n.endswith("data/3") else d)
    with pytest.raises(ValueError, match="bytes: the file is damaged"):
        load_original(short)
    other = files.rewrite_zip(path, tmp_path / "f.pth", lambda n, d: None if n.endswith("data.pkl") else d)
    with pytest.raises(ValueError, match="not one that torch wrote"):
        load_original(other)
    data = bytearray(path.read_bytes())
    data[: data.index(b"data.pkl")] = b"PK" + bytes(data.index(b"data.pkl") - 2)
    (tmp_path / "g.pth").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load_original(tmp_path / "g.pth")
    with zipfile.ZipFile(path) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("data/20"))
    data = bytearray(path.read_bytes())
    data[member.header_offset] = 0
    (tmp_path / "k.pth").write_bytes(data)
    with pytest.raises(ValueError, match="header of member .*data/20 is damaged"):
        load_original(tmp_path / "k.pth")
    data = bytearray(path.read_bytes())
    entry = data.rindex(member.filename.encode()) - 46  # of the table of contents; both sizes at 20 and 24
    data[entry + 20 : entry + 28] = struct.pack("<II", len(data), len(data))
    (tmp_path / "l.pth").write_bytes(data)
    with pytest.raises(ValueError, match="truncated: member .*data/20 leaves the file"):
        load_original(tmp_path / "l.pth")
    torch.save([torch.ones(2)], tmp_path / "h.pth")
    with pytest.raises(ValueError, match="expected a dict"):
        load_original(tmp_path / "h.pth")
    torch.save({"epoch": 3}, tmp_path / "i.pth")
    with pytest.raises(ValueError, match=r"no tensors.*epoch"):
        load_original(tmp_path / "i.pth")
    header = json.dumps({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "j.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00")
    with pytest.raises(ValueError, match="dtype F4"):
        load_original(tmp_path / "j.safetensors")


# ------------------------------------------------------------------------------------------------- configuration text
def test_parse_config():
    text = (
        "a = 3\nb = dict(c=a, d=(1, -2.5), e={'f': None, 'g': [True]})\nh = [x for x in b]\n"
        "i = __import__('os')\nj, k = 1, 2\nl = -a\nm = -'x'\nimport os\n"
    )
    parsed = original_readers.parse_config(text)
    assert parsed["b"] == {"c": 3, "d": [1, -2.5], "e": {"f": None, "g": [True]}}
    assert (parsed["h"], parsed["i"], parsed["l"], parsed["m"]) == (None, None, -3, None)
    assert original_readers.parse_config("no python (") == {}

"""`load_original`: every container, what is read from a file, what is asked for, what stops the load."""

from dataclasses import replace

import original_files as files
import pytest
import torch
import torch.nn.functional as F
from original_files import NARROW, OriginalNet, assert_same_network, known, random_state

import sapiens_hf
from sapiens_hf import original, original_keys, original_network
from sapiens_hf.original import load_original, read_original, to_original_state_dict

HEADS = {"num_attention_heads": NARROW["pose"].heads}


# --------------------------------------------------------------------------------------------------------- containers
@pytest.mark.parametrize("task", NARROW)
def test_pth_with_metadata(task, tmp_path):
    spec = NARROW[task]
    state = random_state(spec, seed=1)
    model = load_original(files.write_pth(tmp_path / "a.pth", spec, state=state))
    assert type(model) is original.TASK_CLASSES[task]
    assert not model.training
    assert model.dtype == torch.float32
    config = model.config
    assert config.hidden_size == spec.width
    assert config.num_hidden_layers == spec.layers
    assert config.num_attention_heads == spec.heads
    assert config.intermediate_size == spec.hidden
    assert config.image_size == list(spec.image_size)
    assert config.patch_embeddings_padding == spec.padding
    assert config.use_cls_token == spec.has_token
    if spec.head_prefix:
        assert (config.deconv_out_channels, config.conv_out_channels) == (list(spec.deconv), list(spec.conv))
    if task == "pretraining":
        found = [getattr(config, f"decoder_{n}") for n in ("hidden_size", "num_hidden_layers", "intermediate_size")]
        assert found == [spec.decoder["width"], spec.decoder["layers"], spec.decoder["hidden"]]
        assert config.decoder_num_attention_heads == spec.decoder["heads"]
    assert_same_network(model, spec, state)


@pytest.mark.parametrize("task", ["pose", "segmentation", "pretraining"])
def test_torchscript(task, tmp_path):
    spec = NARROW[task]
    state = random_state(spec, seed=2)
    model = load_original(files.write_torchscript(tmp_path / "a_torchscript.pt2", spec, state), **known(spec))
    assert model.config.patch_embeddings_padding == spec.padding  # from the traced convolution
    assert_same_network(model, spec, state)


def test_torchscript_padding_is_not_the_recipe(tmp_path):
    spec = replace(NARROW["depth"], padding=3)  # no recipe pads by 3: it can only come from the trace
    model = load_original(files.write_torchscript(tmp_path / "a.pt2", spec), **known(spec))
    assert model.config.patch_embeddings_padding == 3
    bare = files.rewrite_zip(tmp_path / "a.pt2", tmp_path / "b.pt2", lambda n, d: None if "modules/conv" in n else d)
    assert read_original(bare).patch_padding is None
    assert load_original(bare, **known(spec)).config.patch_embeddings_padding == 0  # the recipe of depth


def test_safetensors_and_legacy_pth_and_module_prefix(tmp_path):
    spec = NARROW["normal"]
    state = random_state(spec, seed=3)
    with_text = files.write_safetensors(tmp_path / "a.safetensors", spec, state)
    without = files.write_safetensors(tmp_path / "b.safetensors", spec, state, config=False)
    legacy = files.write_pth(tmp_path / "c.pth", spec, state=state, _use_new_zipfile_serialization=False)
    prefixed = files.write_pth(tmp_path / "d.pth", spec, state=state, prefix="module.")
    for path, given in ((with_text, {}), (without, known(spec)), (legacy, {}), (prefixed, {})):
        assert_same_network(load_original(path, **given), spec, state)


def test_flat_encoder(tmp_path):
    spec = NARROW["encoder"]
    state = random_state(spec, seed=4)
    path = files.write_clean_pth(tmp_path / "a_clean.pth", spec, state)
    model = load_original(path, **HEADS)
    assert type(model) is sapiens_hf.SapiensModel
    assert set(to_original_state_dict(model)) == set(read_original(path).tensors)
    assert_same_network(model, spec, state)


# ---------------------------------------------------------------------------------------------------------- key table
@pytest.mark.parametrize("task", NARROW)
def test_key_table_is_a_bijection(task):
    names = list(files.state_shapes(NARROW[task]))
    ours = [target for name in names for target in original_keys.translate_key(name)]
    assert len(set(ours)) == len(ours)
    for name in names:
        for target in original_keys.translate_key(name):
            assert original_keys.original_key(target, task) == (name, original_keys.translate_key(name))


def test_key_table_edges():
    assert original_keys.translate_key("data_preprocessor.mean") == ()
    assert original_keys.translate_key("head.deconv_layers.2.weight") is None  # a norm has no weights
    assert original_keys.translate_key("backbone.layers.0.attn.gamma") is None
    assert original_keys.original_key("head.gamma", "pose") is None
    with pytest.raises(ValueError, match="SapiensBackbone|no counterpart"):
        to_original_state_dict(torch.nn.Linear(2, 3))


# ------------------------------------------------------------------------------------------------------ wrong tensors
def write_state(path, state):
    torch.save({"state_dict": state, "meta": {"cfg": files.config_text(NARROW["segmentation"])}}, path)
    return path


def test_wrong_tensors_stop_with_a_table(tmp_path):
    state = random_state(NARROW["segmentation"])
    state["backbone.layers.1.attn.gamma"] = torch.zeros(3)
    state["neck.ln1.weight_g"] = torch.zeros(2)
    state["backbone.layers.1.attn.proj.weight"] = state["backbone.layers.1.attn.proj.weight"][:-1].clone()
    del state["backbone.layers.0.attn.qkv.bias"]
    del state["decode_head.conv_layers.3.bias"]
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_original(write_state(tmp_path / "a.pth", state))
    lines = {line.split()[0]: line for line in str(error.value).splitlines()[2:]}
    assert "[3]" in lines["backbone.layers.1.attn.gamma"]
    assert "no such tensor" in lines["backbone.layers.1.attn.gamma"]
    assert "[23, 24]" in lines["backbone.layers.1.attn.proj.weight"]
    assert "[24, 24]" in lines["backbone.layers.1.attn.proj.weight"]
    assert "missing" in lines["backbone.layers.0.attn.qkv.bias"]
    assert "missing" in lines["decode_head.conv_layers.3.bias"]


def test_a_long_table_is_cut(tmp_path):
    state = random_state(NARROW["segmentation"])
    state |= {f"backbone.extra.{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(ValueError, match="and 10 more"):
        load_original(write_state(tmp_path / "a.pth", state))


def test_tensors_of_another_network_inside(tmp_path):
    """Names that the table knows, in a file that should not have them."""
    state = random_state(NARROW["segmentation"])
    state["decode_head.deconv_layers.0.weight"] = state["decode_head.deconv_layers.0.weight"][..., 0].clone()
    with pytest.raises(ValueError, match="must have 4 dimensions"):
        load_original(write_state(tmp_path / "a.pth", state))
    state = random_state(NARROW["encoder"])
    state["backbone.layers.7.ln1.weight"] = torch.ones(24)
    with pytest.raises(ValueError, match="layers.6.ln1.weight|layers.2.ln1"):
        load_original(write_state(tmp_path / "b.pth", state), num_attention_heads=3)
    state = random_state(NARROW["segmentation"])
    state["neck.mask_token"] = torch.zeros(1, 1, 16)
    with pytest.raises(ValueError, match=r"neck.mask_token +\[1, 1, 16\] +no such tensor in this network"):
        load_original(write_state(tmp_path / "d.pth", state))
    state = random_state(NARROW["segmentation"])
    state["backbone.cls_token"] = torch.zeros(1, 1, 24)
    with pytest.raises(ValueError, match=r"backbone.pos_embed|image_size"):
        load_original(write_state(tmp_path / "c.pth", state))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone.stem.0.conv.weight", "bbox_head.rtm_cls.0.weight"], "person detector.*detector="),
        (["model.embeddings.patch_embeddings.projection.weight"], "use from_pretrained"),
        (["layer1.0.conv1.weight", "fc.weight"], "not a checkpoint of Sapiens v1.*fc.weight"),
    ],
)
def test_other_networks_are_named(names, message, tmp_path):
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_original(tmp_path / "a.pth")


# ------------------------------------------------------------------------------------------- what tensors do not tell
def test_heads_are_asked_for(tmp_path):
    spec = NARROW["pose"]
    path = files.write_pth(tmp_path / "a.pth", spec, config=False)
    with pytest.raises(ValueError, match=r"num_attention_heads= \(a divisor of 24\)"):
        load_original(path, image_size=list(spec.image_size))
    assert load_original(path, **known(spec)).config.num_attention_heads == 3
    decoder = NARROW["pretraining"]
    path = files.write_pth(tmp_path / "b.pth", decoder, config=False)
    with pytest.raises(ValueError, match="Pass decoder_num_attention_heads="):
        load_original(path, **HEADS)


def test_wrong_heads_are_refused(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    with pytest.raises(ValueError, match=r"pose checkpoint .*3 attention heads.*not 4"):
        load_original(path, num_attention_heads=4)
    wide = replace(NARROW["pose"], width=1024, heads=16, layers=1, deconv=(4,), conv=(3,))
    path = files.write_pth(tmp_path / "b.pth", wide, config=False)
    assert load_original(path, image_size=[96, 64]).config.num_attention_heads == 16
    with pytest.raises(ValueError, match="released network of width 1024"):
        load_original(path, image_size=[96, 64], num_attention_heads=8)
    masked = files.write_pth(tmp_path / "d.pth", NARROW["pretraining"])
    with pytest.raises(ValueError, match="2 attention heads in its decoder"):
        load_original(masked, decoder_num_attention_heads=4)
    assert load_original(masked, decoder_num_attention_heads=2).config.decoder_num_attention_heads == 2
    flat = files.write_pth(tmp_path / "c.pth", NARROW["pose"], config=False)
    with pytest.raises(ValueError, match=r"pose checkpoint .*multiple of num_attention_heads \(7\)"):
        load_original(flat, num_attention_heads=7, image_size=[96, 64])


def test_named_size_in_the_configuration_text(tmp_path):
    spec = NARROW["pose"]
    text = "model = dict(backbone=dict(arch='sapiens_1b', img_size=(96, 64)))"
    torch.save({"meta": {"cfg": text}, "state_dict": random_state(spec)}, tmp_path / "a.pth")
    assert load_original(tmp_path / "a.pth").config.num_attention_heads == 24


def test_padding_without_evidence_is_the_recipe(tmp_path, caplog):
    for spec in NARROW.values():
        path = files.write_pth(tmp_path / f"{spec.task}.pth", spec, config=False)
        assert load_original(path, **known(spec)).config.patch_embeddings_padding == spec.padding
    lip = replace(NARROW["segmentation"], outputs=20, padding=2)
    path = files.write_pth(tmp_path / "lip.pth", lip, config=False)
    assert load_original(path, **known(lip)).config.patch_embeddings_padding == 2
    named = files.write_pth(tmp_path / "sapiens_1b_goliath_best_goliath_mIoU_7994_epoch_151.pth", lip, config=False)
    with pytest.raises(ValueError, match="tells no height and width"):  # that file is for 1024 x 768
        load_original(named, num_attention_heads=3)
    assert load_original(named, **known(lip)).config.patch_embeddings_padding == 0
    assert not caplog.records
    model = load_original(tmp_path / "pose.pth", **known(NARROW["pose"]), patch_embeddings_padding=0)
    assert model.config.patch_embeddings_padding == 0
    assert "says 2" in caplog.text


@pytest.mark.parametrize(
    ("image_size", "task", "expected"),
    [
        ((64, 48), "pose", [64, 48]),  # 12 patches: portrait 3:4
        ((128, 96), "pose", [128, 96]),
        ((80, 80), "pose", [80, 80]),
        ((80, 80), "encoder", [80, 80]),
        ((96, 64), "pose", None),  # 24 patches: could be 6 x 4, 8 x 3, ...
    ],
)
def test_image_size_from_the_number_of_positions(image_size, task, expected, tmp_path):
    spec = replace(NARROW[task], image_size=image_size)
    path = files.write_pth(tmp_path / "a.pth", spec, config=False)
    if expected is None:
        with pytest.raises(ValueError, match=r"24 patches.*Pass image_size="):
            load_original(path, **HEADS)
        with pytest.raises(ValueError, match=r"image_size=\[64, 48\] would need another number"):
            load_original(path, **HEADS, image_size=[64, 48])
    else:
        assert load_original(path, **HEADS).config.image_size == expected


def resized(state, grid, new_grid, prefix):
    table = state["backbone.pos_embed"][:, prefix:].mT.unflatten(2, grid)
    return F.interpolate(table, size=new_grid, mode="bicubic", align_corners=False).flatten(2).mT


def test_another_image_size_resizes_the_table(tmp_path):
    spec = NARROW["pose"]
    state = random_state(spec)
    path = files.write_pth(tmp_path / "a.pth", spec, state=state)
    for size in ([48, 80], [64, 96]):  # the second has as many patches as the stored [96, 64]
        model = load_original(path, image_size=size)
        assert model.config.image_size == size
        table = resized(state, (6, 4), (size[0] // 16, size[1] // 16), 0)
        torch.testing.assert_close(model.model.embeddings.position_embeddings.detach(), table, rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- tasks
@pytest.mark.parametrize("source", ["encoder", "pretraining"])
@pytest.mark.parametrize("task", ["pose", "segmentation", "depth", "normal"])
def test_new_task_on_a_pretrained_encoder(source, task, tmp_path, caplog):
    spec = NARROW[source]
    state = random_state(spec, seed=6)
    path = files.write_pth(tmp_path / "a.pth", spec, state=state)
    narrow = dict(deconv_out_channels=[6, 5], conv_out_channels=[4])
    model, info = load_original(path, task=task, output_loading_info=True, **narrow)
    assert type(model) is original.TASK_CLASSES[task]
    assert model.config.image_size == [64, 48]  # 3:4 of the square
    assert model.config.patch_embeddings_padding == {"pose": 2, "normal": 2}.get(task, 0)
    assert not model.config.use_cls_token
    if task == "segmentation":  # LIP and CIHP
        twenty = load_original(path, task=task, num_labels=20, **narrow)
        assert twenty.config.patch_embeddings_padding == 2
    torch.testing.assert_close(
        model.model.embeddings.position_embeddings.detach(), resized(state, (4, 4), (4, 3), 1), rtol=0, atol=1e-6
    )
    fused = state["backbone.layers.1.attn.qkv.weight"]
    assert torch.equal(model.model.encoder.layers[1].attention.k_proj.weight, fused[24:48])
    assert f"the head of {type(model).__name__}" in caplog.text
    assert info["missing_keys"]
    assert all(name.startswith("head.") for name in info["missing_keys"])
    assert model.config.num_labels == {"pose": 308, "segmentation": 28}.get(task, model.config.num_labels)
    head = model.head.final_conv.weight
    assert 0 < head.std() < 0.1
    assert not model.head.final_conv.bias.any()
    assert torch.isfinite(model.predict_maps(torch.randn(1, 3, 64, 48))[0]).all()


def test_new_task_labels_and_size(tmp_path):
    spec = NARROW["encoder"]
    path = files.write_pth(tmp_path / "a.pth", spec)
    narrow = dict(deconv_out_channels=[6], conv_out_channels=[4], image_size=[96, 80])
    coco = load_original(path, task="pose", num_labels=17, **narrow)
    assert coco.config.id2label[0] == "nose"
    assert [1, 2] in coco.config.flip_pairs
    own = load_original(path, task="pose", id2label={0: "tip", 1: "base"}, **narrow)
    assert own.config.id2label == {0: "tip", 1: "base"}
    assert own.config.flip_pairs is None
    assert own.head.final_conv.out_channels == 2
    assert own.config.image_size == [96, 80]
    odd = replace(spec, image_size=(80, 80))
    with pytest.raises(ValueError, match="no 3:4 size follows"):
        load_original(files.write_pth(tmp_path / "b.pth", odd), task="pose", num_labels=17)


def test_new_decoder(tmp_path, caplog):
    spec = NARROW["encoder"]
    path = files.write_clean_pth(tmp_path / "a_clean.pth", spec)
    narrow = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_intermediate_size=20)
    with pytest.raises(ValueError, match="decoder_num_attention_heads"):
        load_original(path, task="pretraining", **HEADS, **narrow)
    model = load_original(path, task="pretraining", **HEADS, **narrow, decoder_num_attention_heads=4)
    assert "decoder of SapiensForPreTraining is new" in caplog.text
    table = model.decoder.position_embeddings
    assert not table.requires_grad
    assert not table[:, 0].any()
    assert table[:, 1:].abs().max() == 1
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64)).loss)


def test_pretraining_at_another_size(tmp_path):
    spec = NARROW["pretraining"]
    model = load_original(files.write_pth(tmp_path / "a.pth", spec), image_size=[96, 48])
    assert model.decoder.position_embeddings.shape == (1, 1 + 6 * 3, 16)
    assert torch.isfinite(model(torch.randn(1, 3, 96, 48)).loss)


@pytest.mark.parametrize("task", ["pose", "pretraining"])
def test_backbone_of_any_file(task, tmp_path):
    spec = NARROW[task]
    state = random_state(spec, seed=7)
    path = files.write_pth(tmp_path / "a.pth", spec, state=state)
    model = load_original(path, task="encoder")
    backbone = sapiens_hf.SapiensBackbone.from_pretrained(path, out_indices=[1, 2])
    assert type(backbone) is sapiens_hf.SapiensBackbone
    pixels = torch.randn(1, 3, *spec.image_size)
    features = OriginalNet(spec, state).backbone(pixels)
    tokens = model(pixels).last_hidden_state[:, int(spec.has_token) :]
    torch.testing.assert_close(tokens.mT, features.flatten(2), rtol=1e-5, atol=1e-5)
    maps = backbone(pixels).feature_maps
    assert len(maps) == 2
    torch.testing.assert_close(maps[1], features, rtol=1e-5, atol=1e-5)


def test_another_number_of_labels_replaces_the_last_convolution(tmp_path, caplog):
    spec = NARROW["pose"]
    state = random_state(spec)
    path = files.write_pth(tmp_path / "a.pth", spec, state=state)
    model, info = load_original(path, num_labels=133, output_loading_info=True)
    assert info["missing_keys"] == ["head.final_conv.bias", "head.final_conv.weight"]
    assert "last convolution of SapiensForPoseEstimation (133 output channels)" in caplog.text
    assert torch.equal(model.head.conv_layers[1].convolution.weight, state["head.conv_layers.3.weight"])
    assert model.config.id2label[132]
    assert len(model.config.flip_pairs) == 61
    named = load_original(path, id2label={i: f"p{i}" for i in range(17)})  # same count: nothing is new
    assert torch.equal(named.head.final_conv.weight, state["head.final_layer.weight"])
    assert named.config.id2label[3] == "p3"
    assert named.config.flip_pairs


@pytest.mark.parametrize(
    ("task", "wanted", "right"),
    [
        ("pose", "SapiensForDepthEstimation", "SapiensForPoseEstimation"),
        ("depth", "SapiensForNormalEstimation", "SapiensForDepthEstimation"),
        ("segmentation", "SapiensForPreTraining", "SapiensForSemanticSegmentation"),
        ("normal", "SapiensForSemanticSegmentation", "SapiensForNormalEstimation"),
    ],
)
def test_another_task_is_refused(task, wanted, right, tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW[task])
    with pytest.raises(ValueError, match=rf"{task} checkpoint.*does not fit {wanted}. Use {right}, or task='{task}'"):
        getattr(sapiens_hf, wanted).from_pretrained(path)
    model = getattr(sapiens_hf, right).from_pretrained(str(path))
    assert type(model).__name__ == right


def test_task_names(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    with pytest.raises(ValueError, match="Did you mean 'pose'"):
        load_original(path, task="poses")
    with pytest.raises(ValueError, match="SapiensEncoder cannot be made"):
        load_original(path, expected_class="SapiensEncoder")


def test_three_classes_look_like_normals(tmp_path):
    spec = replace(NARROW["segmentation"], outputs=3)
    with_text = files.write_pth(tmp_path / "a.pth", spec)
    assert type(load_original(with_text)) is sapiens_hf.SapiensForSemanticSegmentation  # its head class says so
    without = files.write_pth(tmp_path / "b.pth", spec, config=False)
    assert type(load_original(without, **known(spec))) is sapiens_hf.SapiensForNormalEstimation
    model = load_original(without, task="segmentation", **known(spec))
    assert type(model) is sapiens_hf.SapiensForSemanticSegmentation
    assert model.config.num_labels == 3
    assert model.config.patch_embeddings_padding == 0


# -------------------------------------------------------------------------------------------------- labels and losses
@pytest.mark.parametrize(
    ("task", "outputs", "first", "last"),
    [
        ("pose", 17, "nose", "right_ankle"),
        ("pose", 133, "nose", "right_pinky_finger4"),
        ("pose", 308, "nose", None),
        ("pose", 5, "LABEL_0", "LABEL_4"),
        ("segmentation", 28, "Background", "Tongue"),
        ("segmentation", 20, "Background", "Right-shoe"),
        ("segmentation", 19, "Background", None),
        ("segmentation", 2, "LABEL_0", "LABEL_1"),
    ],
)
def test_labels_by_count(task, outputs, first, last, tmp_path):
    spec = replace(NARROW[task], outputs=outputs)
    config = load_original(files.write_pth(tmp_path / "a.pth", spec)).config
    names = list(config.id2label.values())
    assert len(names) == len(set(names)) == config.num_labels == outputs
    assert names[0] == first
    assert last is None or names[-1].lower() == last.lower()
    assert all(config.label2id[name] == i for i, name in config.id2label.items())
    has_pairs = task == "pose" and outputs != 5
    assert bool(config.flip_pairs) == has_pairs
    weights = config.semantic_loss_class_weights
    assert weights is None if outputs in (19, 2) or task == "pose" else len(weights) == outputs


def test_losses_from_text_or_release(tmp_path, monkeypatch):
    spec = replace(NARROW["pose"], outputs=308)
    hard = files.config_text(spec).replace("type='KeypointMSELoss'", "type='KeypointOHKMMSELoss', topk=64")
    torch.save({"meta": {"cfg": hard}, "state_dict": random_state(spec)}, tmp_path / "a.pth")
    assert load_original(tmp_path / "a.pth").config.keypoint_loss_top_k == 64
    assert load_original(tmp_path / "a.pth", keypoint_loss_top_k=9).config.keypoint_loss_top_k == 9
    plain = files.write_pth(tmp_path / "b.pth", spec)
    flat = files.write_pth(tmp_path / "c.pth", spec, config=False)
    size = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
    for name, top_k in (("0.3b", 128), ("0.6b", None), ("1b", 128), ("2b", None)):
        monkeypatch.setattr(original_network, "SIZES", {name: size})
        assert load_original(plain).config.keypoint_loss_top_k is None
        assert load_original(flat, **known(spec)).config.keypoint_loss_top_k == top_k
    seg = NARROW["segmentation"]
    weighted = files.config_text(seg).replace(
        "type='VitHead'", f"loss_decode=dict(class_weight={[0.5] * 27 + [2]}), type='VitHead'"
    )
    torch.save({"meta": {"cfg": weighted}, "state_dict": random_state(seg)}, tmp_path / "d.pth")
    assert load_original(tmp_path / "d.pth").config.semantic_loss_class_weights == [0.5] * 27 + [2]
    mae = NARROW["pretraining"]
    raw = (
        files.config_text(mae).replace("norm_pix=True", "norm_pix=False").replace("mask_ratio=0.75", "mask_ratio=0.6")
    )
    torch.save({"meta": {"cfg": raw}, "state_dict": random_state(mae)}, tmp_path / "e.pth")
    config = load_original(tmp_path / "e.pth").config
    assert (config.norm_pix_loss, config.mask_ratio) == (False, 0.6)


# ---------------------------------------------------------------------------------------------------------- arguments
def test_arguments(tmp_path, caplog):
    path = files.write_pth(tmp_path / "a.pth", NARROW["depth"])
    with pytest.raises(TypeError, match="Did you mean 'num_attention_heads'"):
        load_original(path, num_atention_heads=3)
    with pytest.raises(ValueError, match="floating-point"):
        load_original(path, dtype="int8")
    with pytest.raises(ValueError, match="floating-point"):
        load_original(path, dtype="float33")
    assert load_original(path, dtype="auto").dtype == torch.float32
    half = load_original(path, torch_dtype="torch.bfloat16", attn_implementation="eager", low_cpu_mem_usage=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.config._attn_implementation == "eager"
    assert load_original(path, device_map={"": "cpu"}).device.type == "cpu"
    assert load_original(path, device_map="cpu").device.type == "cpu"
    for spread in ("auto", {"model": "cpu", "head": "cpu"}):
        with pytest.raises(ValueError, match="needs a converted checkpoint"):
            load_original(path, device_map=spread)
    model, info = load_original(path, output_loading_info=True, drop_path_rate=0.25)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    assert model.config.drop_path_rate == 0.25
    assert not caplog.records


def test_arguments_about_folders(tmp_path, caplog):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    load = sapiens_hf.SapiensForPoseEstimation.from_pretrained
    with pytest.raises(ValueError, match=r"ignore_mismatched_sizes=True does nothing .*pass num_labels="):
        load(path, ignore_mismatched_sizes=True, num_labels=5)
    safe = dict(use_safetensors=True, weights_only=False, trust_remote_code=True, low_cpu_mem_usage=False)
    off = dict.fromkeys(original.FOR_FOLDERS) | dict(subfolder="", ignore_mismatched_sizes=False)
    config = load(path, **safe, **off).config
    assert not caplog.records
    assert not {*safe, *off} & vars(config).keys()
    assert load(path, **safe, config=config).config.num_labels == 17  # none of them is a field beside config=
    for name, value in (("tp_plan", "auto"), ("quantization_config", {"load_in_4bit": True})):
        with pytest.raises(ValueError, match=rf"{name}=.*needs a converted checkpoint.*folder, {name}=\.\.\.\)\.$"):
            load(path, **{name: value})
    with pytest.raises(ValueError, match=r"subfolder='weights' needs .*Or name the file: filename="):
        load(path, subfolder="weights")


def test_a_given_configuration_must_fit(tmp_path):
    spec = NARROW["pose"]
    path = files.write_pth(tmp_path / "a.pth", spec)
    config = load_original(path).config
    config.drop_path_rate = 0.1
    config.image_size = [48, 64]
    model = sapiens_hf.SapiensForPoseEstimation.from_pretrained(path, config=config)
    assert model.config.drop_path_rate == 0.1
    assert model.config.image_size == [48, 64]
    assert config.image_size == [48, 64]
    config.conv_out_channels = [9, 11]
    with pytest.raises(ValueError, match="conv_layers.3.weight"):
        load_original(path, config=config)


@pytest.mark.parametrize("task", ["pose", "encoder"])
@pytest.mark.parametrize(
    ("field", "right", "wrong"), [("num_attention_heads", 3, 4), ("patch_embeddings_padding", 2, 0)]
)
def test_a_configuration_against_the_text_is_refused(task, field, right, wrong, tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    config = original.original_config(path, task=task)
    setattr(config, field, wrong)
    with pytest.raises(
        ValueError, match=rf"{field}={right} according to .*config= has {wrong}: set config.{field} = "
    ):
        load_original(path, task=task, config=config)
    setattr(config, field, right)
    assert getattr(load_original(path, task=task, config=config).config, field) == right


def test_a_configuration_against_other_evidence(tmp_path, caplog):
    spec = NARROW["normal"]
    traced = files.write_torchscript(tmp_path / "a.pt2", spec)
    config = load_original(traced, **known(spec)).config
    config.patch_embeddings_padding = 0
    with pytest.raises(ValueError, match="patch_embeddings_padding=2 according to the file, but config= has 0"):
        load_original(traced, config=config)
    bare = files.write_pth(tmp_path / "b.pth", spec, config=False)
    config.num_attention_heads = 8  # nobody knows better
    assert not caplog.records
    assert load_original(bare, config=config).config.num_attention_heads == 8
    assert "patch_embeddings_padding=0 is used; the file or its recipe says 2" in caplog.text
    wide = replace(NARROW["pose"], width=1024, heads=16, layers=1, deconv=(4,), conv=(3,))
    path = files.write_pth(tmp_path / "c.pth", wide, config=False)
    config = original.original_config(path, image_size=[96, 64])
    config.num_attention_heads = 8
    with pytest.raises(ValueError, match="num_attention_heads=16 according to the released network of width 1024"):
        load_original(path, config=config)
    masked = files.write_pth(tmp_path / "d.pth", NARROW["pretraining"])
    config = original.original_config(masked)
    config.decoder_num_attention_heads = 4
    with pytest.raises(ValueError, match="decoder_num_attention_heads=2 according to its .*config= has 4"):
        load_original(masked, config=config)


def test_a_configuration_for_a_new_task_is_free(tmp_path, caplog):
    path = files.write_pth(tmp_path / "a.pth", NARROW["encoder"])
    config = original.original_config(path, task="pose", deconv_out_channels=[6], conv_out_channels=[4])
    config.patch_embeddings_padding = 1
    config.image_size = [64, 48]
    assert load_original(path, task="pose", config=config).config.patch_embeddings_padding == 1
    assert [record for record in caplog.records if "padding" in record.message] == []


def test_a_configuration_with_other_labels_starts_the_last_convolution_anew(tmp_path, caplog):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    config = original.original_config(path, num_labels=5)
    assert load_original(path, config=config).head.final_conv.out_channels == 5
    assert "last convolution of SapiensForPoseEstimation (5 output channels) is new" in caplog.text


def test_a_configuration_stands_alone(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    config = original.original_config(path)
    with pytest.raises(TypeError, match=r"num_labels=, image_size= cannot .*set config.num_labels, config.image_size"):
        load_original(path, config=config, num_labels=5, image_size=[48, 64])
    with pytest.raises(TypeError, match="num_labels= cannot be passed"):
        sapiens_hf.SapiensForPoseEstimation.from_pretrained(path, config=config, num_labels=5)
    with pytest.raises(TypeError, match="must be a SapiensConfig, got 'config.json'"):
        load_original(path, config="config.json")


def test_loaded_model_trains_and_saves(tmp_path):
    """Weights are the model's own memory, and query, key and value are tensors of their own."""
    spec = NARROW["normal"]
    path = files.write_pth(tmp_path / "a.pth", spec)
    model = load_original(path)
    attention = model.model.encoder.layers[0].attention
    pointers = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(pointers) == len(list(model.parameters()))
    assert attention.q_proj.weight.untyped_storage().nbytes() == 40 * 40 * 4
    path.unlink()
    model.train()
    model(torch.randn(1, 3, 96, 64), labels=F.normalize(torch.randn(1, 3, 96, 64), dim=1)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = sapiens_hf.SapiensForNormalEstimation.from_pretrained(tmp_path / "saved")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )

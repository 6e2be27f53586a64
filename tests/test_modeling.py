"""Forward passes: against the original's numbers, against a plain rendering of the network, and against themselves."""

import copy
import re

import pytest
import reference
import torch
from reference import GOLDEN, Net
from tiny import (
    CLASS_NAMES,
    DENSE_TASKS,
    enliven,
    golden,
    golden_model,
    golden_pixels,
    main_output,
    original_state,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_pixels,
)
from transformers import AutoBackbone

import sapiens_hf
from sapiens_hf import SapiensBackbone, SapiensConfig, SapiensModel
from sapiens_hf.modeling_sapiens import SapiensDropPath
from sapiens_hf.positions_sapiens import resize_position_table, sincos_position_table

TASKS = ("encoder", "backbone", "pretraining", *DENSE_TASKS)
# Rounding of float32: the original itself, run on one and on two threads, differs by up to 5e-6 in the heads.
CLOSE = dict(rtol=1e-5, atol=1e-5)
HEAD_CLOSE = dict(rtol=1e-5, atol=2e-5)


# Absolute sums of the patch convolution and of the last tensor of the weights with which the original ran.
WEIGHT_SUMS = {
    "pretrain": (1558.829734, 88.000848),
    "pose17": (1353.032909, 4.818545),
    "pose133": (1169.247094, 33.586894),
    "pose308": (1553.754364, 77.571543),
    "seg": (1559.735404, 3.122218),
    "depth": (1165.711206, 1.266221),
    "normal": (1169.059964, 2.777237),
}


def assert_golden(got: torch.Tensor, name: str, **tolerance) -> None:
    want = torch.from_numpy(golden("forward")[name])
    torch.testing.assert_close(got.to(want.dtype), want, **(tolerance or CLOSE), msg=lambda m: f"{name}: {m}")


# ------------------------------------------------------------------------------------------------------------- golden
@pytest.mark.parametrize("name", GOLDEN)
def test_weights_of_the_goldens_are_drawn_as_they_were(name):
    """If this fails, torch's random generator changed and the golden tests below say nothing about the package."""
    state = original_state(name)
    parts = [state["backbone.patch_embed.projection.weight"], list(state.values())[-1]]
    sums = [float(part.double().abs().sum()) for part in parts]
    assert sums == pytest.approx(WEIGHT_SUMS[name], rel=1e-6)


@pytest.mark.parametrize("name", [n for n in GOLDEN if n != "pretrain"])
def test_features_match_the_original(name):
    model = golden_model(name)
    with torch.no_grad():
        tokens = model.model(golden_pixels(name)).last_hidden_state
    features = tokens.transpose(1, 2).unflatten(2, (8, 6))
    assert_golden(features[:, :, ::2], f"{name}.features")


def mirror_pairs(name: str) -> list[list[int]]:
    return [[i, int(j)] for i, j in enumerate(golden("forward")[f"{name}.mirror"]) if i < j]


@pytest.mark.parametrize("name", ["pose17", "pose133", "pose308"])
def test_heatmaps_and_flip_test_match_the_original(name):
    model, pixels = golden_model(name), golden_pixels(name)
    pairs = mirror_pairs(name)
    with torch.no_grad():
        heatmaps = model(pixels).heatmaps
        flipped_back = model(pixels.flip(-1), flip_pairs=torch.tensor(pairs)).heatmaps
        by_list = model(pixels.flip(-1), flip_pairs=pairs).heatmaps
    assert_golden(heatmaps[:, golden("forward")[f"{name}.channels"]], f"{name}.heatmaps", **HEAD_CLOSE)
    merged = (heatmaps + flipped_back)[0] / 2
    assert_golden(merged[golden("forward")[f"{name}.merged_channels"]], f"{name}.merged", **HEAD_CLOSE)
    assert torch.equal(flipped_back, by_list)


def test_heatmaps_of_a_mirrored_image_match_the_original():
    with torch.no_grad():
        heatmaps = golden_model("pose17")(golden_pixels("pose17").flip(-1)).heatmaps
    assert_golden(heatmaps[:, ::8], "pose17.flipped", **HEAD_CLOSE)


def test_dense_outputs_match_the_original():
    with torch.no_grad():
        logits = golden_model("seg")(golden_pixels("seg")).logits
        depth = golden_model("depth")(golden_pixels("depth")).predicted_depth
        normals = golden_model("normal")(golden_pixels("normal"))
    assert logits.shape == (1, 28, 64, 48)
    assert depth.shape == (1, 128, 96)
    assert normals.predicted_normal.shape == (1, 3, 64, 48)
    assert_golden(logits[:, ::2, ::4, ::3], "seg.head", **HEAD_CLOSE)
    assert_golden(depth[:, None, ::4, ::3], "depth.head", **HEAD_CLOSE)
    assert_golden(normals.predicted_normal[:, :, ::2, ::2], "normal.head", **HEAD_CLOSE)
    assert normals.normals is normals.predicted_normal


def test_another_input_size_matches_the_original():
    pixels = torch.from_numpy(golden("forward")["other_size.pixels"])
    with torch.no_grad():
        tokens = golden_model("pose17").model(pixels).last_hidden_state
    assert_golden(tokens.transpose(1, 2).unflatten(2, (10, 5))[:, ::2], "other_size.features")


@pytest.mark.parametrize("grid, width", [((8, 8), 16), ((5, 5), 32)])
def test_fixed_position_table_matches_the_original(grid, width):
    want = torch.from_numpy(golden("tables")[f"sincos_{grid[0]}x{grid[1]}_d{width}"])
    torch.testing.assert_close(sincos_position_table(width, grid, 0), want, rtol=1e-5, atol=1e-6)


def test_fixed_position_table_with_prefix_and_any_grid():
    want = torch.from_numpy(golden("tables")["sincos_int6_d16_cls"])
    torch.testing.assert_close(sincos_position_table(16, (6, 6), 1), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sincos_position_table(24, (4, 7), 1), reference.sincos_table((4, 7), 24, True), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case, grid", [("pose_pad2", (8, 6)), ("seg_corner", (8, 6)), ("bigger", None)])
def test_position_table_is_resized_like_the_original(case, grid):
    tables = golden("tables")
    new_grid = tuple(tables[f"{case}_grid"].tolist())
    assert grid in (None, new_grid)
    source = torch.from_numpy(tables["src_pos_embed"])
    resized = resize_position_table(source, (8, 8), new_grid, 1)
    assert torch.equal(resized[:, :1], source[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.from_numpy(tables[f"{case}_pos_embed"]), **CLOSE)


def test_position_table_of_the_released_size_is_resized_like_the_original():
    tables = golden("tables")
    source = torch.from_numpy(tables["real_src_64x64_cls_d4"])  # 4097 rows of a 1024 x 1024 model
    resized = resize_position_table(source, (64, 64), (64, 48), 1)[:, 1:]
    torch.testing.assert_close(resized, torch.from_numpy(tables["real_dst_64x48_d4"]), **CLOSE)


# ---------------------------------------------------------------------------------------------------------- reference
REFERENCE_NETS = {
    "pose": Net("pose", 24, 3, 3, 40, 7, (14, 12), (10, 8), 2, image_size=(80, 48), seed=3),
    "segmentation": Net("segmentation", 20, 2, 5, 44, 5, (14, 12, 10), (9, 8, 7), image_size=(80, 48), seed=4),
    "depth": Net("depth", 28, 2, 2, 36, 1, (14, 12, 10, 8), (9, 7), image_size=(80, 48), seed=5),
    "normal": Net("normal", 24, 3, 4, 52, 3, (14, 12, 10), (9, 8, 7), 2, image_size=(80, 48), seed=6),
}


@pytest.fixture
def reference_model(monkeypatch):
    def build(task):
        monkeypatch.setitem(GOLDEN, f"reference-{task}", REFERENCE_NETS[task])
        return golden_model(f"reference-{task}"), reference.golden_state(REFERENCE_NETS[task])

    return build


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_network_equals_the_plain_rendering(task, reference_model):
    """In float64, where rounding cannot hide a difference."""
    model, state = reference_model(task)
    pixels = tiny_pixels(2, (80, 48), seed=7).double()
    want = reference.forward(REFERENCE_NETS[task], {k: v.double() for k, v in state.items()}, pixels)
    with torch.no_grad():
        got = main_output(task, model.double()(pixels))
    torch.testing.assert_close(got, want[:, 0] if task == "depth" else want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("task, size", [("pose", (48, 112)), ("segmentation", (96, 80)), ("depth", (16, 32))])
def test_network_equals_the_plain_rendering_at_other_sizes(task, size, reference_model):
    model, state = reference_model(task)
    pixels = tiny_pixels(2, size, seed=8)
    want = reference.forward(REFERENCE_NETS[task], state, pixels)
    with torch.no_grad():
        got = main_output(task, model(pixels))
    torch.testing.assert_close(got, want[:, 0] if task == "depth" else want, rtol=1e-4, atol=1e-4)


def test_every_stage_equals_the_plain_rendering(reference_model):
    model, state = reference_model("pose")
    pixels = tiny_pixels(2, (80, 48), seed=9)
    stages = reference.encode(REFERENCE_NETS["pose"], state, pixels)
    backbone = SapiensBackbone(copy.deepcopy(model.config))
    backbone.load_state_dict(model.model.state_dict())
    backbone.out_features = ["stem", "stage1", "stage3"]
    with torch.no_grad():
        hidden_states = model.model(pixels, output_hidden_states=True).hidden_states
        maps = backbone.eval()(pixels).feature_maps
    assert len(hidden_states) == 4
    for got, want in zip(hidden_states, stages):
        torch.testing.assert_close(got, want, **CLOSE)
    for got, stage in zip(maps, (0, 1, 4)):  # the last one has the final norm
        torch.testing.assert_close(got, stages[stage].transpose(1, 2).unflatten(2, (5, 3)), **CLOSE)


# --------------------------------------------------------------------------------------------------------- dimensions
# Parameters of the released networks: the fine-tuned backbone, and the heads for each number of keypoints.
BACKBONE_PARAMETERS = {"0.3b": 306_244_608, "0.6b": 634_597_120, "1b": 1_139_163_648, "2b": 2_131_943_040}
ENCODER_PARAMETERS = {"0.3b": 307_295_232, "0.6b": 635_910_400, "1b": 1_140_739_584, "2b": 2_133_912_960}
POSE_HEAD_PARAMETERS = {
    "0.3b": {17: 23_214_353, 133: 23_303_557, 308: 23_438_132},
    "0.6b": {17: 26_360_081, 133: 26_449_285, 308: 26_583_860},
    "1b": {17: 29_505_809, 133: 29_595_013, 308: 29_729_588},
    "2b": {17: 34_224_401, 133: 34_313_605, 308: 34_448_180},
}
DENSE_PARAMETERS = {
    "0.3b": {"segmentation": 339_495_196, "depth": 319_910_017, "normal": 339_475_971},
    "0.6b": {"segmentation": 670_993_436, "depth": 649_835_393, "normal": 670_974_211},
    "1b": {"segmentation": 1_178_705_692, "depth": 1_155_974_785, "normal": 1_178_686_467},
    "2b": {"segmentation": 2_176_203_676, "depth": 2_151_113_473, "normal": 2_176_184_451},
}
PRETRAINING_PARAMETERS = {"0.3b": 335_532_288, "0.6b": 664_278_528, "1b": 1_169_238_784, "2b": 2_162_608_768}
LAYERS = {"0.3b": 24, "0.6b": 32, "1b": 40, "2b": 48}


def count(task: str, size: str, **overrides) -> tuple[int, int]:
    """Parameters, and tensors as the original counts them: query, key and value are one there."""
    with torch.device("meta"):
        model = getattr(sapiens_hf, CLASS_NAMES[task])(SapiensConfig.from_size(size, task, **overrides))
    fused = sum(name.endswith(("k_proj.weight", "k_proj.bias")) for name in model.state_dict())
    return sum(p.numel() for p in model.parameters()), len(model.state_dict()) - 2 * fused


@pytest.mark.parametrize("size", LAYERS)
@pytest.mark.parametrize("num_keypoints", [17, 133, 308])
def test_pose_models_have_the_released_dimensions(size, num_keypoints):
    parameters, tensors = count("pose", size, num_labels=num_keypoints)
    assert parameters == BACKBONE_PARAMETERS[size] + POSE_HEAD_PARAMETERS[size][num_keypoints]
    assert tensors == 12 * LAYERS[size] + 13


@pytest.mark.parametrize("size", LAYERS)
@pytest.mark.parametrize("task, more", [("segmentation", 16), ("depth", 15), ("normal", 16)])
def test_dense_models_have_the_released_dimensions(size, task, more):
    assert count(task, size) == (DENSE_PARAMETERS[size][task], 12 * LAYERS[size] + more)


@pytest.mark.parametrize("size", LAYERS)
def test_pretraining_models_have_the_released_dimensions(size):
    layers = LAYERS[size]
    assert count("encoder", size) == (ENCODER_PARAMETERS[size], 12 * layers + 6)
    assert count("pretraining", size) == (PRETRAINING_PARAMETERS[size], 12 * layers + 6 + 104)


def test_native_output_sizes_at_1024_by_768():
    """On the meta device, where nothing is computed."""
    for task, shape in {
        "pose": (1, 308, 256, 192),
        "segmentation": (1, 28, 512, 384),
        "depth": (1, 1024, 768),
        "normal": (1, 3, 512, 384),
    }.items():
        with torch.device("meta"):
            model = getattr(sapiens_hf, CLASS_NAMES[task])(SapiensConfig.from_size("0.3b", task)).eval()
            assert main_output(task, model(torch.empty(1, 3, 1024, 768))).shape == shape


# ---------------------------------------------------------------------------------------------------- initial weights
@torch.no_grad()
def test_initial_weights_follow_the_original():
    pose = sapiens_hf.SapiensForPoseEstimation(tiny_config("pose", num_labels=90, hidden_size=128))
    dense = sapiens_hf.SapiensForSemanticSegmentation(tiny_config(num_labels=90, hidden_size=128))
    for convolution in [layer.convolution for layer in (*pose.head.deconv_layers, *pose.head.conv_layers)]:
        assert float(convolution.weight.std()) == pytest.approx(1e-3, rel=0.15)
    assert float(pose.head.final_conv.weight.std()) == pytest.approx(1e-3, rel=0.15)
    assert float(dense.head.final_conv.weight.std()) == pytest.approx(1e-2, rel=0.15)
    first = dense.head.deconv_layers[0].convolution.weight  # torch's own default: uniform in +- 1 / sqrt(fan in)
    assert float(first.abs().max()) == pytest.approx(first[0].numel() ** -0.5, rel=0.01)
    layer = pose.model.encoder.layers[0]
    assert float(layer.mlp.fc1.weight.abs().max()) == pytest.approx((6 / (128 + 72)) ** 0.5, rel=0.01)
    assert float(layer.mlp.fc2.bias.std()) == pytest.approx(1e-6, rel=0.3)
    assert (
        not layer.mlp.fc1.bias.any() and not layer.attention.q_proj.bias.any() and not pose.head.final_conv.bias.any()
    )
    patch = pose.model.embeddings.patch_embeddings.projection.weight
    assert float(patch.abs().max()) == pytest.approx((6 / (768 + 128)) ** 0.5, rel=0.01)
    positions = pose.model.embeddings.position_embeddings
    assert float(positions.std()) == pytest.approx(0.02, rel=0.15) and positions.requires_grad
    assert torch.equal(pose.model.layernorm.weight, torch.ones(128))


@torch.no_grad()
def test_initializer_range_scales_the_initial_weights():
    for task in ("pose", "segmentation"):
        std = [
            getattr(sapiens_hf, CLASS_NAMES[task])(tiny_config(task, initializer_range=r)).head.final_conv.weight.std()
            for r in (0.02, 0.2)
        ]
        assert float(std[1] / std[0]) == pytest.approx(10, rel=0.5)


# -------------------------------------------------------------------------------------------------- recorded outputs
@pytest.mark.parametrize("task", TASKS)
def test_hidden_states_and_attentions_can_be_recorded(task):
    model, inputs = tiny_model(task), tiny_inputs(task)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    tokens = 12 // 4 + 1 if task == "pretraining" else 12
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(2, tokens, 32)] * 4
    assert [tuple(a.shape) for a in outputs.attentions] == [(2, 4, tokens, tokens)] * 3
    torch.testing.assert_close(outputs.attentions[1].sum(-1), torch.ones(2, 4, tokens))
    with torch.no_grad():
        plain = model(**inputs)
        as_tuple = model(**inputs, return_dict=False)
    assert plain.hidden_states is None and plain.attentions is None
    assert isinstance(as_tuple, tuple)
    assert torch.equal(main_output(task, plain), main_output(task, outputs))


def test_pooled_output_is_the_class_token_or_the_mean():
    pixels = tiny_pixels()
    with torch.no_grad():
        without, with_token = tiny_model("encoder")(pixels), tiny_model("encoder", use_cls_token=True)(pixels)
    assert without.last_hidden_state.shape == (2, 12, 32) and with_token.last_hidden_state.shape == (2, 13, 32)
    torch.testing.assert_close(without.pooler_output, without.last_hidden_state.mean(1))
    assert torch.equal(with_token.pooler_output, with_token.last_hidden_state[:, 0])


@pytest.mark.parametrize("wanted", [dict(out_indices=[0, 2]), dict(out_features=["stem", "stage2"])])
@pytest.mark.parametrize("use_cls_token", [False, True])
def test_backbone_gives_the_stages_asked_for(wanted, use_cls_token):
    config = tiny_config(use_cls_token=use_cls_token, **wanted)
    backbone = enliven(SapiensBackbone(config)).eval()
    everything = enliven(SapiensBackbone(tiny_config(use_cls_token=use_cls_token, out_indices=[0, 1, 2, 3]))).eval()
    with torch.no_grad():
        maps, all_maps = backbone(tiny_pixels()).feature_maps, everything(tiny_pixels()).feature_maps
    assert backbone.out_features == ["stem", "stage2"] and list(backbone.out_indices) == [0, 2]
    assert backbone.channels == [32, 32] and [m.shape for m in maps] == [(2, 32, 4, 3)] * 2
    assert torch.equal(maps[0], all_maps[0]) and torch.equal(maps[1], all_maps[2])


def test_default_backbone_stage_is_the_normalised_last_one():
    backbone = AutoBackbone.from_config(tiny_config())
    assert type(backbone) is SapiensBackbone
    model = SapiensModel(tiny_config())
    model.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        (maps,) = backbone.eval()(tiny_pixels()).feature_maps
        tokens = model.eval()(tiny_pixels()).last_hidden_state
    assert torch.equal(maps.flatten(2).transpose(1, 2), tokens)


# ---------------------------------------------------------------------------------------------- attention and training
@pytest.mark.parametrize("task", TASKS)
def test_attention_implementations_agree(task):
    model, inputs = tiny_model(task), tiny_inputs(task)
    outputs = {}
    for name in ("sdpa", "eager", "flex_attention"):
        model.set_attn_implementation(name)
        # flex attention has no backward pass on the CPU, and compiling it takes a minute
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            outputs[name] = main_output(task, model(**inputs))
    for name in ("eager", "flex_attention"):
        torch.testing.assert_close(outputs[name], outputs["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", ("pretraining", *DENSE_TASKS))
def test_gradient_checkpointing_gives_the_same_gradients(task):
    model, inputs = tiny_model(task).train(), tiny_inputs(task)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert model.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m: f"{name}: {m}")


def test_every_weight_takes_part():
    """A parameter without gradient would never learn; biases before an instance norm cannot matter."""
    for task in ("pretraining", *DENSE_TASKS):
        model = tiny_model(task)
        model(**tiny_inputs(task)).loss.backward()
        idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert [n for n in idle if not n.endswith("convolution.bias")] == []


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = SapiensDropPath(0.25).train()
    branch = layer(torch.ones(4000, 3, 2))
    assert ((branch == 0).all((1, 2)) | (branch == 1 / 0.75).all((1, 2))).all()
    assert float(branch.mean()) == pytest.approx(1.0, abs=0.05)
    assert layer.eval()(branch) is branch and SapiensDropPath(0.0).train()(branch) is branch


def test_drop_path_rises_with_depth_and_acts_only_in_training():
    model = tiny_model("pose", drop_path_rate=0.5)
    assert [layer.drop_path.rate for layer in model.model.encoder.layers] == [0.0, 0.25, 0.5]
    pixels = tiny_pixels(6)
    with torch.no_grad():
        still = model(pixels).heatmaps
        assert torch.equal(still, model(pixels).heatmaps)
        torch.manual_seed(1)
        assert not torch.allclose(still, model.train()(pixels).heatmaps)


@pytest.mark.parametrize("probability", ["hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout2d_prob"])
def test_dropout_acts_only_in_training(probability):
    model = tiny_model("segmentation", **{probability: 0.4})
    pixels = tiny_pixels()
    with torch.no_grad():
        still = model(pixels).logits
        assert torch.equal(still, tiny_model("segmentation")(pixels).logits)
        torch.manual_seed(1)
        assert not torch.allclose(still, model.train()(pixels).logits)


# ---------------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", TASKS)
def test_half_precision(task, dtype):
    inputs = tiny_inputs(task)  # float32 pixels are taken, too
    with torch.no_grad():
        want, got = tiny_model(task)(**inputs), tiny_model(task).to(dtype)(**inputs)
    output = main_output(task, got)
    assert output.dtype == dtype and output.isfinite().all()
    scale = main_output(task, want).abs().max()
    assert ((output.float() - main_output(task, want)).abs().max() / scale) < (0.02 if dtype is torch.float16 else 0.1)
    if "loss" in got and got.loss is not None:
        assert got.loss.dtype == torch.float32
        torch.testing.assert_close(got.loss, want.loss, rtol=0.1, atol=0.05)


# ------------------------------------------------------------------------------------------------- compile and export
@pytest.mark.parametrize("task", TASKS)
def test_compiles_without_graph_breaks(task):
    model, inputs = tiny_model(task), tiny_inputs(task)
    with torch.no_grad():
        want = model(**inputs)
        torch._dynamo.reset()
        got = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    torch.testing.assert_close(main_output(task, got), main_output(task, want), **CLOSE)
    if task in ("pretraining", *DENSE_TASKS):
        torch.testing.assert_close(got.loss, want.loss, **CLOSE)


@pytest.mark.parametrize("task", TASKS)
def test_exports_with_a_dynamic_batch(task):
    model = tiny_model(task)
    traced, other = ({k: v for k, v in tiny_inputs(task, n).items() if k in ("pixel_values", "noise")} for n in (2, 3))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (), traced, dynamic_shapes={name: {0: batch} for name in traced})
    with torch.no_grad():
        torch.testing.assert_close(
            main_output(task, program.module()(**other)), main_output(task, model(**other)), **CLOSE
        )


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("task", TASKS)
def test_an_empty_batch_gives_empty_outputs(task):
    """An image without people makes no crops."""
    model, full = tiny_model(task), tiny_inputs(task)
    empty = {name: value[:0] for name, value in full.items()}
    for module in (model.eval(), model.train()):
        outputs = module(**empty)
        assert main_output(task, outputs).shape == (0, *main_output(task, module(**full)).shape[1:])
        if task in ("pretraining", *DENSE_TASKS):
            assert float(outputs.loss.detach()) == 0.0
            outputs.loss.backward()  # a training step on no people changes nothing
            assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    "size, message",
    [
        ((60, 48), "got 60 x 48. Nearest sizes that work (height x width): 48 or 64 x 48."),
        ((64, 50), "got 64 x 50. Nearest sizes that work (height x width): 64 x 48 or 64."),
        ((7, 33), "got 7 x 33. Nearest sizes that work (height x width): 16 x 32 or 48."),
        ((0, 48), "got 0 x 48. Nearest sizes that work (height x width): 16 x 48."),
    ],
)
@pytest.mark.parametrize("task", ["encoder", "backbone", "pretraining", "depth"])
def test_sizes_between_patches_name_the_nearest_that_work(task, size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model(task)(tiny_pixels(1, size))


@pytest.mark.parametrize("shape", [(1, 4, 64, 48), (1, 1, 64, 48), (3, 64, 48), (1, 1, 3, 64, 48)])
def test_wrong_channels_are_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"(batch_size, 3, height, width), got {shape}")):
        tiny_model("normal")(torch.zeros(shape))

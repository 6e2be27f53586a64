"""Parameter groups and schedules against the original's tables, on real models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sapiens_hf
from training.optim import (
    build_optimizer,
    build_scheduler,
    clip_gradients,
    layer_decay_groups,
    learning_rate_factor,
    pretraining_groups,
    scaled_lr,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "optim_groups.json").read_text())
CURVES = json.loads((Path(__file__).parent / "golden" / "optim_schedules.json").read_text())
CLASSES = {
    "pose_coco17": "SapiensForPoseEstimation",
    "pose_goliath308": "SapiensForPoseEstimation",
    "pose_wholebody133": "SapiensForPoseEstimation",
    "seg": "SapiensForSemanticSegmentation",
    "depth": "SapiensForDepthEstimation",
    "normal": "SapiensForNormalEstimation",
}
# Our names to the original's; the query, key and value projections are one matrix there.
TO_ORIGINAL = [
    ("model.embeddings.position_embeddings", "backbone.pos_embed"),
    ("model.embeddings.cls_token", "backbone.cls_token"),
    ("model.embeddings.patch_embeddings.projection", "backbone.patch_embed.projection"),
    ("model.encoder.layers", "backbone.layers"),
    ("decoder.layers", "neck.decoder_blocks"),
    ("decoder.embed.", "neck.decoder_embed."),
    ("decoder.predictor", "neck.decoder_pred"),
    ("decoder.position_embeddings", "neck.decoder_pos_embed"),
    ("decoder.mask_token", "neck.mask_token"),
    ("decoder.layernorm.", "neck.ln1."),
    ("layernorm_before", "ln1"),
    ("layernorm_after", "ln2"),
    ("model.layernorm", "backbone.ln1"),
    ("attention.q_proj", "attn.qkv"),
    ("attention.k_proj", "attn.qkv"),
    ("attention.v_proj", "attn.qkv"),
    ("attention.o_proj", "attn.proj"),
    ("mlp.fc1", "ffn.layers.0.0"),
    ("mlp.fc2", "ffn.layers.1"),
    (".convolution", ""),
]
SCHEDULE_OPTIONS = {
    "pose": {"schedule": "multistep", "num_epochs": 210, "warmup_steps": 500, "milestones": (170, 200)},
    "seg": {"schedule": "poly", "num_epochs": 200, "warmup_steps": 400},
    "pretrain": {
        "schedule": "cosine_by_step",
        "num_epochs": 1600,
        "warmup_steps": 40 * 13,
        "warmup_start_factor": 1e-4,
    },
}


def tiny_model(class_name, num_layers=3, **more):
    stages = {"SapiensForPoseEstimation": 2, "SapiensForDepthEstimation": 3}.get(class_name, 3)
    config = sapiens_hf.SapiensConfig(
        image_size=[64, 48],
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=40,
        num_labels=5,
        deconv_out_channels=[8] * stages,
        deconv_kernel_sizes=[4] * stages,
        conv_out_channels=[8] * 2,
        conv_kernel_sizes=[1] * 2,
        **more,
    )
    return getattr(sapiens_hf, class_name)(config)


def tiny_pretraining_model():
    return tiny_model(
        "SapiensForPreTraining",
        use_cls_token=True,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=20,
    )


def original_name(name):
    for ours, theirs in TO_ORIGINAL:
        name = name.replace(ours, theirs)
    return name


def by_original_name(groups):
    """(lr, weight_decay, group_name) of each backbone parameter, under the original's name."""
    table = {}
    for group in groups:
        for name in group["names"]:
            row = [group["lr"], group["weight_decay"], group["group_name"]]
            assert table.setdefault(original_name(name), row) == row
    return table


@pytest.mark.parametrize("case", CLASSES)
def test_layer_decay_equals_the_golden_table(case):
    golden = GOLDEN[case]
    model = tiny_model(CLASSES[case], golden["num_layers"])
    ours = by_original_name(layer_decay_groups(model, golden["lr"], golden["weight_decay"], golden["decay_rate"]))
    backbone = {name: row for name, row in golden["params"].items() if name.startswith("backbone")}
    assert {name: row for name, row in ours.items() if name.startswith("backbone")} == backbone
    # The heads have other names: every weight and bias has the golden's rate and decay.
    for kind in ("weight", "bias"):
        theirs = [row for name, row in golden["params"].items() if "head" in name and name.endswith(kind)]
        mine = [row for name, row in ours.items() if name.startswith("head") and name.endswith(kind)]
        assert mine
        assert all(row == theirs[0] for row in [*theirs, *mine])


def test_groups_hold_every_trainable_parameter_once():
    model = tiny_model("SapiensForPoseEstimation")
    model.model.encoder.layers[1].requires_grad_(False)
    groups = layer_decay_groups(model, 1e-3, 0.1, 0.5)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
    assert len(found) == len(trainable)
    assert all(trainable[name] is parameter for name, parameter in found)
    assert not any("layer_2" in group["group_name"] for group in groups)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    assert rates[-1] == 1e-3  # the frozen layer does not change the count of layers
    assert rates[0] == 1e-3 * 0.5**4


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.module = model


def test_wrappers_change_nothing():
    model = tiny_model("SapiensForDepthEstimation")
    plain = layer_decay_groups(model, 1e-3, 0.1, 0.85)
    wrapped = layer_decay_groups(Wrapped(model), 1e-3, 0.1, 0.85)
    for one, other in zip(plain, wrapped, strict=True):
        assert [f"module.{name}" for name in one["names"]] == other["names"]
        assert (one["lr"], one["weight_decay"]) == (other["lr"], other["weight_decay"])
    without_head = layer_decay_groups(model.model, 1e-3, 0.1, 0.85)
    names = [[name for name in group["names"] if name.startswith("model.")] for group in plain]
    assert [[f"model.{name}" for name in group["names"]] for group in without_head] == [row for row in names if row]
    assert [group["lr"] for group in without_head] == [
        group["lr"] for group, row in zip(plain, names, strict=True) if row
    ]


def test_decoder_layers_are_not_encoder_layers():
    groups = layer_decay_groups(tiny_pretraining_model(), 1e-3, 0.1, 0.5)
    head = [name for group in groups if group["group_name"].startswith("layer_4") for name in group["names"]]
    assert any(name.startswith("decoder.layers.0") for name in head)
    assert not any(name.startswith("decoder") for group in groups[:-2] for name in group["names"])


def test_pretraining_groups_equal_the_golden_table():
    golden = GOLDEN["pretraining"]
    ours = by_original_name(pretraining_groups(tiny_pretraining_model(), golden["lr"], golden["weight_decay"]))
    # Both position tables are frozen: the original lists them with decay and without effect, here they are left out.
    theirs = {name: row[:2] for name, row in golden["params"].items() if "pos_embed" not in name}
    assert {name: row[:2] for name, row in ours.items()} == theirs


@pytest.mark.parametrize("curve", SCHEDULE_OPTIONS)
def test_schedules_equal_the_golden_curves(curve):
    factor = learning_rate_factor(**SCHEDULE_OPTIONS[curve], steps_per_epoch=CURVES["iters_per_epoch"])
    for step, *rates in CURVES[curve]["lr"]:
        expected = [base * factor(step) for base in CURVES["base_lrs"]]
        assert expected == pytest.approx(rates, rel=1e-12, abs=1e-30), step


def test_the_scheduler_sets_the_rate_that_each_step_uses():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, CURVES["base_lrs"], strict=True)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = build_scheduler(optimizer, steps_per_epoch=13, **SCHEDULE_OPTIONS["seg"])
    golden = {step: rates for step, *rates in CURVES["seg"]["lr"]}
    for step in range(200):
        if step in golden:
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(golden[step], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_resumed_scheduler_goes_on():
    def build():
        optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=1.0)
        return optimizer, build_scheduler(optimizer, "cosine", steps_per_epoch=2, num_epochs=6, warmup_steps=3)

    def advance(optimizer, scheduler, steps):
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    expected = advance(*build(), 12)
    optimizer, scheduler = build()
    begun = advance(optimizer, scheduler, 5)
    resumed_optimizer, resumed_scheduler = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    assert begun + advance(resumed_optimizer, resumed_scheduler, 7) == expected


def test_shapes_of_the_schedules():
    options = {"steps_per_epoch": 3, "num_epochs": 5}
    cosine = learning_rate_factor("cosine", **options)
    assert [cosine(step) for step in (0, 2, 3)] == [1.0, 1.0, (1 + math.cos(math.pi / 5)) / 2]
    assert cosine(14) == cosine(15) == cosine(99)  # past the end: the last epoch's
    assert learning_rate_factor("poly", **options)(14) == 0.0
    assert learning_rate_factor("poly", steps_per_epoch=3, num_epochs=1)(2) == 1.0
    assert learning_rate_factor("poly", **options, power=2.0)(3) == 0.75**2
    constant = learning_rate_factor("constant", **options, warmup_steps=5, warmup_start_factor=0.2)
    np.testing.assert_allclose([constant(step) for step in range(7)], [0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert learning_rate_factor("constant", **options, warmup_steps=1)(0) == 1.0
    by_step = learning_rate_factor("cosine_by_step", **options, warmup_steps=5)
    assert (by_step(4), by_step(5)) == (1.0, 1.0)
    assert by_step(10) == pytest.approx(0.5)
    assert by_step(15) == by_step(99) == 0.0
    assert learning_rate_factor("multistep", **options, milestones=(1, 3), gamma=0.5)(9) == 0.25


@pytest.mark.parametrize(
    ("schedule", "changes", "message"),
    [
        ("cosin", {}, "'cosine'"),
        ("zzz", {}, "constant, multistep"),
        ("poly", {"steps_per_epoch": 0}, "smaller than one batch"),
        ("poly", {"num_epochs": 0}, "num_epochs=0"),
        ("poly", {"warmup_steps": -1}, "warmup_steps=-1"),
        ("multistep", {}, "milestones="),
    ],
)
def test_bad_schedules_are_refused(schedule, changes, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_factor(schedule, **{"steps_per_epoch": 3, "num_epochs": 5, **changes})


def test_build_optimizer_for_fine_tuning_and_pretraining():
    tuned = build_optimizer(tiny_model("SapiensForSemanticSegmentation"), 5e-4, 0.1, 0.85)
    assert tuned.param_groups[0]["lr"] == GOLDEN["seg"]["params"]["backbone.pos_embed"][0]
    assert {tuple(group["betas"]) for group in tuned.param_groups} == {(0.9, 0.999)}
    pretrained = build_optimizer(tiny_pretraining_model(), 2.4e-3, 0.05, None, betas=(0.9, 0.95))
    assert [group["group_name"] for group in pretrained.param_groups] == ["decay", "no_decay"]
    assert {tuple(group["betas"]) for group in pretrained.param_groups} == {(0.9, 0.95)}


def test_an_optimizer_steps_and_its_state_loads_again():
    model = tiny_model("SapiensForDepthEstimation")
    optimizer = build_optimizer(model, 1e-3, 0.1, 0.85)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = model.model.layernorm.bias.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.model.layernorm.bias)
    again = build_optimizer(model, 1e-3, 0.1, 0.85)
    again.load_state_dict(optimizer.state_dict())
    assert [group["names"] for group in again.param_groups] == [group["names"] for group in optimizer.param_groups]


def test_bad_models_and_rates_are_refused():
    model = tiny_model("SapiensForDepthEstimation")
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match="decay_rate"):
            layer_decay_groups(model, 1e-3, 0.1, rate)
    with pytest.raises(ValueError, match="Linear has no parameters named encoder.layers.N"):
        layer_decay_groups(nn.Linear(2, 3), 1e-3, 0.1, 0.85)
    model.requires_grad_(False)
    for groups in (lambda: layer_decay_groups(model, 1e-3, 0.1, 0.85), lambda: pretraining_groups(model, 1e-3)):
        with pytest.raises(ValueError, match="everything is frozen"):
            groups()


def test_one_group_when_nothing_decays():
    norm = nn.Sequential()
    norm.layernorm = nn.LayerNorm(3)
    assert [group["group_name"] for group in pretraining_groups(norm, 1e-3)] == ["no_decay"]


def test_scaled_lr():
    assert scaled_lr(2.4e-3, 2048, 4096) == 1.2e-3


def test_clipping_equals_torch_and_leaves_small_gradients_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model(torch.randn(7, 5)).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    total = torch.cat([g.ravel() for g in gradients]).norm()
    norm = clip_gradients(model, 0.5)
    assert norm.item() == pytest.approx(total.item())
    after = torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])
    assert after.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert clip_gradients(model, 100.0).item() == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(after, torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None]))


def test_nan_gradients_are_named():
    model = nn.Sequential(*[nn.Linear(2, 3) for _ in range(4)])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[1].bias.grad[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"1 of 8 parameters.*: 1\.bias\."):
        clip_gradients(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    with pytest.raises(FloatingPointError, match=r"8 of 8 .*2\.weight, \.\.\."):
        clip_gradients(model)
    assert torch.isinf(clip_gradients(model, raise_if_nonfinite=False))

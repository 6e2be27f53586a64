"""Muon against linear algebra and torch's own."""

import copy

import pytest
import torch

from tests.test_optim import tiny_model, tiny_pretraining_model
from training.loop import check_optimizer
from training.muon import MuonWithAdamW, orthogonal
from training.optim import build_optimizer, layer_decay_groups, split_groups

RATES = {"lr": 1e-2, "weight_decay": 0.1}


def muon_alone(parameters):
    return MuonWithAdamW([{"params": parameters, "muon": True, **RATES}], **RATES)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 12, 12)])
def test_orthogonal_keeps_directions_and_evens_out_sizes(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-6, 1.0, 1e6])[: shape[0], None, None]
    left, sizes, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonal(matrices) @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3))[sizes > 0.05 * sizes[:, :1]].all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 0.05


def test_orthogonal_of_zeros_is_zero():
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_steps_are_those_of_torch(shape):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizers = muon_alone(ours), torch.optim.Muon(theirs, **RATES, adjust_lr_fn="match_rms_adamw")
    start = torch.stack(ours).detach().clone()
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (torch.stack(ours) - start).abs().mean()
    difference = (torch.stack(ours) - torch.stack(theirs)).abs().mean()
    assert moved > 1e-3
    assert difference < 0.02 * moved  # both in bfloat16, ours for many matrices at once


def test_a_convolution_is_a_matrix_of_its_filters():
    torch.manual_seed(0)
    convolution = torch.nn.Parameter(torch.randn(6, 5, 4, 4))
    matrix = torch.nn.Parameter(convolution.detach().flatten(1))
    gradient = torch.randn(6, 5, 4, 4)
    convolution.grad, matrix.grad = gradient, gradient.flatten(1)
    for parameter in (convolution, matrix):
        muon_alone([parameter]).step()
    assert torch.equal(convolution.flatten(1), matrix)


@pytest.mark.parametrize("class_name", ["SapiensForPoseEstimation", "SapiensForPreTraining"])
def test_hidden_matrices_are_muons_and_the_rest_adamws(class_name):
    pretraining = class_name == "SapiensForPreTraining"
    model = tiny_pretraining_model() if pretraining else tiny_model(class_name)
    optimizer = build_optimizer(model, 1e-3, 0.1, None if pretraining else 0.85, optimizer="muon")
    muon = {name for group in optimizer.param_groups if group["muon"] for name in group["names"]}
    adamw = {name for group in optimizer.param_groups if not group["muon"] for name in group["names"]}
    assert muon | adamw == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not muon & adamw
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim > 1 for name in muon)
    # Matrices that are left to AdamW touch pixels, positions, classes or what is masked.
    left = {name.rsplit(".", 1)[0] for name in adamw if parameters[name].ndim > 1}
    ends = {"model.embeddings", "model.embeddings.patch_embeddings.projection"}
    assert left <= ends | ({"decoder", "decoder.embed", "decoder.predictor"} if pretraining else {"head.final_conv"})
    expected = 6 * (model.config.num_hidden_layers + (model.config.decoder_num_hidden_layers if pretraining else 0))
    assert len(muon) == expected + (0 if pretraining else 4)  # two deconvolutions, two convolutions
    assert {group["lr"] for group in optimizer.param_groups} == (
        {1e-3} if pretraining else {1e-3 * 0.85**number for number in range(5)}
    )


def test_adamws_part_is_adamw():
    torch.manual_seed(0)
    model, reference = (tiny_model("SapiensForDepthEstimation") for _ in range(2))
    reference.load_state_dict(model.state_dict())
    optimizers = (
        build_optimizer(model, 1e-3, 0.1, 0.85, optimizer="muon"),
        build_optimizer(reference, 1e-3, 0.1, 0.85),
    )
    for _ in range(3):
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    muon = {name for group in optimizers[0].param_groups if group["muon"] for name in group["names"]}
    others = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, others[name]) == (name not in muon)


def test_its_state_loads_again():
    torch.manual_seed(0)
    models = [tiny_model("SapiensForDepthEstimation") for _ in range(2)]
    first = build_optimizer(models[0], 1e-2, 0.1, 1.0, optimizer="muon")

    def step(optimizer, model, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step(first, models[0], 1)
    models[1].load_state_dict(models[0].state_dict())
    second = build_optimizer(models[1], 1e-2, 0.1, 1.0, optimizer="muon")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, model in zip((first, second), models, strict=True):
        step(optimizer, model, 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_parameters_without_gradients_stay():
    parameters = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    parameters[0].grad = torch.ones(3, 4)
    muon_alone(parameters).step()
    assert not torch.equal(parameters[0], torch.ones(3, 4))
    assert torch.equal(parameters[1], torch.ones(3, 4))


def test_what_it_cannot_train_is_refused():
    model = tiny_model("SapiensForDepthEstimation")
    with pytest.raises(ValueError, match="There is no optimizer 'moun'"):
        build_optimizer(model, 1e-3, 0.1, 0.85, optimizer="moun")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("final_conv" in name)
    with pytest.raises(ValueError, match="Use --optimizer adamw"):
        split_groups(layer_decay_groups(model, 1e-3, 0.1, 0.85))
    for kind in ("FSDP", "DEEPSPEED"):
        with pytest.raises(ValueError, match=f"does not work with {kind}"):
            check_optimizer("muon", kind)
        check_optimizer("adamw", kind)
    check_optimizer("muon", "MULTI_GPU")

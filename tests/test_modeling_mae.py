"""Pretraining: the masked autoencoder against the original's numbers and a plain rendering."""

import re

import pytest
import reference
import torch
from reference import GOLDEN, Net, golden_state, normalise
from tiny import golden, golden_model, original_state, tiny_config, tiny_model, tiny_pixels

from sapiens_hf import SapiensForPreTraining
from sapiens_hf.losses_sapiens import reconstruction_loss

CLOSE = dict(rtol=1e-5, atol=1e-5)


def array(name: str) -> torch.Tensor:
    return torch.from_numpy(golden("mae")[name])


def golden_inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": normalise(golden("mae")["levels"]), "noise": array("noise")}


# ------------------------------------------------------------------------------------------------------------- golden
def test_prediction_mask_and_order_match_the_original():
    model, inputs = golden_model("pretrain"), golden_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
        kept, *_ = model.random_masking(**inputs)
        latent = model.model(inputs["pixel_values"], kept_patches=kept).last_hidden_state
    assert torch.equal(outputs.mask, array("mask").float())
    assert torch.equal(outputs.ids_restore, array("ids_restore").long())
    torch.testing.assert_close(latent[:, ::3], array("latent"), **CLOSE)
    torch.testing.assert_close(outputs.logits[0, ::7], array("logits0"), **CLOSE)
    torch.testing.assert_close(outputs.logits[1, ::12], array("logits1"), **CLOSE)


@pytest.mark.parametrize("norm_pix_loss, name", [(True, "loss_norm_pix"), (False, "loss_raw_pix")])
def test_loss_matches_the_original(norm_pix_loss, name):
    with torch.no_grad():
        loss = golden_model("pretrain", norm_pix_loss=norm_pix_loss)(**golden_inputs()).loss
    assert float(loss) == pytest.approx(float(array(name)), rel=1e-5)


def test_gradients_match_the_original():
    model = golden_model("pretrain")
    model(**golden_inputs()).loss.backward()
    ours = {
        "backbone.cls_token": model.model.embeddings.cls_token,
        "backbone.patch_embed.projection.bias": model.model.embeddings.patch_embeddings.projection.bias,
        "backbone.layers.0.ffn.layers.0.0.bias": model.model.encoder.layers[0].mlp.fc1.bias,
        "neck.mask_token": model.decoder.mask_token,
        "neck.decoder_embed.bias": model.decoder.embed.bias,
        "neck.decoder_pred.bias": model.decoder.predictor.bias,
    }
    assert {f"grad.{name}" for name in ours} | {"grad_norm_all"} == {k for k in golden("mae") if k.startswith("grad")}
    for name, parameter in ours.items():
        want = array(f"grad.{name}")
        torch.testing.assert_close(parameter.grad, want, rtol=0, atol=1e-4 * float(want.abs().max()))
    squares = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
    assert float(squares.sqrt()) == pytest.approx(float(array("grad_norm_all")), rel=1e-4)


def test_unmasked_features_match_the_original():
    encoder = golden_model("pretrain").model
    with torch.no_grad():
        tokens = encoder(golden_inputs()["pixel_values"]).last_hidden_state
        other = encoder(torch.from_numpy(golden("forward")["encoder_other_size.pixels"])).last_hidden_state
    torch.testing.assert_close(tokens[:, ::4], torch.from_numpy(golden("forward")["encoder.tokens"]), **CLOSE)
    want = torch.from_numpy(golden("forward")["encoder_other_size.features"])
    torch.testing.assert_close(other[:, 1:].transpose(1, 2).unflatten(2, (5, 7)), want, **CLOSE)


@pytest.mark.parametrize("padding", [0, 2])
def test_embeddings_of_kept_patches_are_those_of_all(padding):
    """Only kept patches are projected; weights and pixels get the same gradients."""
    embeddings = tiny_model("pretraining", patch_embeddings_padding=padding).model.embeddings
    pixels = tiny_pixels(2).requires_grad_()
    num_patches = embeddings.position_embeddings.shape[1] - 1
    kept = torch.stack([torch.randperm(num_patches)[: num_patches // 3] for _ in range(2)])
    found = []
    for project_all in (False, True):
        embeddings.zero_grad(set_to_none=True)
        pixels.grad = None
        tokens = embeddings(pixels) if project_all else embeddings(pixels, kept)
        if project_all:
            patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
        tokens.square().sum().backward()
        found.append((tokens.detach(), embeddings.patch_embeddings.projection.weight.grad, pixels.grad))
    for ours, expected in zip(*found, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", [-1, 10_000])
def test_kept_patches_that_are_not_there_are_refused(index):
    model = tiny_model("pretraining")
    with pytest.raises((IndexError, RuntimeError), match="index"):
        model.model(tiny_pixels(2), kept_patches=torch.full((2, 3), index))


def test_patches_match_the_original():
    model = SapiensForPreTraining(tiny_config("pretraining", image_size=[12, 12], patch_size=4))
    pixels = array("small_x")
    patches = model.patchify(pixels)
    assert torch.equal(patches, array("small_patchify"))
    assert torch.equal(model.unpatchify(patches), array("small_unpatchify"))
    normalised = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalised, array("small_target_norm"), **CLOSE)


def test_new_models_start_from_the_fixed_tables_of_the_original():
    model = SapiensForPreTraining(tiny_config("pretraining", image_size=[128, 128], hidden_size=64))
    decoder = SapiensForPreTraining(
        tiny_config("pretraining", image_size=[128, 128], decoder_hidden_size=32, decoder_num_attention_heads=4)
    ).decoder
    for module, name in ((model.model.embeddings, "mae_encoder_init"), (decoder, "mae_decoder_init")):
        want = torch.from_numpy(golden("tables")[name])
        torch.testing.assert_close(module.position_embeddings.detach(), want, rtol=1e-5, atol=1e-6)
        assert not module.position_embeddings.requires_grad


def test_tokens_start_as_the_original_draws_them():
    model = SapiensForPreTraining(tiny_config("pretraining", hidden_size=1024, decoder_hidden_size=1020))
    for token in (model.model.embeddings.cls_token, model.decoder.mask_token):
        assert token.requires_grad and float(token.detach().std()) == pytest.approx(0.02, rel=0.15)


# ---------------------------------------------------------------------------------------------------------- reference
NARROW = Net(
    "pretraining", 24, 3, 3, 40, image_size=(64, 48), seed=7, decoder=dict(width=16, layers=2, heads=2, hidden=28)
)


@pytest.fixture
def narrow_model(monkeypatch):
    monkeypatch.setitem(GOLDEN, "narrow", NARROW)
    yield golden_model("narrow")
    original_state.cache_clear()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_network_equals_the_plain_rendering_on_a_grid_that_is_not_square(narrow_model, norm_pix_loss):
    """In float64, where rounding cannot hide a difference; the loss is float32."""
    model = narrow_model.double()
    model.config.norm_pix_loss = norm_pix_loss
    pixels, noise = tiny_pixels(2).double(), torch.rand(2, 12, generator=torch.Generator().manual_seed(3))
    state = {name: value.double() for name, value in golden_state(NARROW).items()}
    logits, mask, _ = reference.reconstruct(NARROW, state, pixels, noise)
    loss = reference.reconstruction_loss(logits, reference.patches_of(pixels), mask, norm_pix_loss)
    with torch.no_grad():
        outputs = model(pixels, noise=noise)
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-9, atol=1e-9)
    assert torch.equal(outputs.mask, mask) and mask.sum() == 2 * 9
    assert float(outputs.loss) == pytest.approx(float(loss), rel=1e-5)


def test_other_sizes_interpolate_both_tables(narrow_model):
    pixels, noise = tiny_pixels(1, (80, 96)), torch.rand(1, 30, generator=torch.Generator().manual_seed(4))
    state = dict(golden_state(NARROW))
    state["neck.decoder_pos_embed"] = reference.position_table(state["neck.decoder_pos_embed"], (4, 3), (5, 6), True)
    logits, _, _ = reference.reconstruct(NARROW, state, pixels, noise)
    with torch.no_grad():
        torch.testing.assert_close(narrow_model(pixels, noise=noise).logits, logits, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- behaviour
def test_patchify_and_unpatchify_are_inverse():
    model = tiny_model("pretraining")
    for size in ((64, 48), (48, 80)):
        pixels = tiny_pixels(2, size)
        patches = model.patchify(pixels)
        assert torch.equal(patches, reference.patches_of(pixels))
        assert torch.equal(model.unpatchify(patches, size), pixels)
    with pytest.raises(ValueError, match=re.escape("15 patches of 16 x 16 do not make a 64 x 48 image.")):
        model.unpatchify(patches)


@pytest.mark.parametrize("ratio, hidden", [(0.75, 9), (0.5, 6), (0.0, 0)])
def test_random_masks_hide_the_share_that_is_asked_for(ratio, hidden):
    model, pixels = tiny_model("pretraining", mask_ratio=ratio), tiny_pixels(3)
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = model(pixels), model(pixels)
    assert (first.mask.sum(1) == hidden).all()
    assert torch.equal(first.mask, second.mask) == (hidden == 0)
    if hidden:
        assert first.loss.isfinite() and not torch.equal(first.mask[0], first.mask[1])
    else:
        assert float(first.loss) == 0.0  # nothing hidden, nothing to learn


def test_hidden_patches_do_not_reach_the_encoder():
    model, inputs = (
        tiny_model("pretraining"),
        {"pixel_values": tiny_pixels(1), "noise": torch.linspace(0, 1, 12)[None]},
    )
    changed = inputs["pixel_values"].clone()
    changed[:, :, 16:] += 5  # rows 1 to 3 of patches; the three with the smallest noise make up row 0
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(changed, noise=inputs["noise"]).logits)
        changed[:, :, :16] += 5
        assert not torch.equal(model(**inputs).logits, model(changed, noise=inputs["noise"]).logits)


def test_loss_counts_hidden_patches_only_and_is_float32():
    generator = torch.Generator().manual_seed(5)
    logits, patches = (torch.randn(2, 6, 20, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]).float()
    for normalised in (True, False):
        want = reference.reconstruction_loss(logits, patches, mask, normalised)
        torch.testing.assert_close(reconstruction_loss(logits, patches, mask, normalised), want)
    assert reconstruction_loss(logits.half(), patches.bfloat16(), mask).dtype == torch.float32


def test_a_flat_patch_has_a_finite_target():
    logits = torch.ones(1, 2, 12, requires_grad=True)
    loss = reconstruction_loss(logits, torch.full((1, 2, 12), 3.0), torch.ones(1, 2))
    loss.backward()
    assert float(loss.detach()) == 1.0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 11), (1, 12), (12,)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"noise must have shape (2, 12), got {shape}")):
        tiny_model("pretraining")(tiny_pixels(2), noise=torch.rand(shape))


def test_a_class_token_is_needed():
    with pytest.raises(ValueError, match="use_cls_token=True"):
        SapiensForPreTraining(tiny_config("pretraining", use_cls_token=False))


def test_resizing_makes_both_fixed_tables_anew_and_keeps_the_token():
    model = tiny_model("pretraining")
    with pytest.raises(ValueError, match="use_cls_token must be True"):
        model.resize_position_embeddings([64, 48], use_cls_token=False)
    before = model.decoder.position_embeddings.clone()
    model.resize_position_embeddings((64, 48))
    assert torch.equal(model.decoder.position_embeddings, before)
    model.resize_position_embeddings([80, 48])
    fresh = SapiensForPreTraining(tiny_config("pretraining", image_size=[80, 48]))
    assert model.config.image_size == [80, 48]
    for got, want in ((model.model.embeddings, fresh.model.embeddings), (model.decoder, fresh.decoder)):
        assert torch.equal(got.position_embeddings, want.position_embeddings)
        assert not got.position_embeddings.requires_grad
    assert model(tiny_pixels(1, (80, 48))).logits.shape == (1, 15, 768)

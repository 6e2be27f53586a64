"""Losses of the dense heads: values and gradients of the original, an independent rendering, and the edges."""

import re

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from reference import normalise
from tiny import DENSE_TASKS, IMAGE_SIZE, golden, golden_model, golden_pixels, tiny_inputs, tiny_model
from transformers import Trainer, TrainingArguments

from sapiens_hf import SapiensImageProcessorPil
from sapiens_hf.heatmaps_sapiens import encode_heatmaps
from sapiens_hf.losses_sapiens import depth_loss, heatmap_loss, normal_loss, segmentation_loss

DENSE = ("seg", "depth", "normal")
POSES = ("pose17", "pose133", "pose308")
CLASS_WEIGHTS = [0.1, 10, 3, 2, 4, 4, 2, 2, 6, 10, 3, 3, 1, 4, 4, 2, 2, 6, 10, 3, 3, 1, 1, 10, 10, 10, 10, 10]
OPTIONS = {"pose308": dict(keypoint_loss_top_k=128), "seg": dict(semantic_loss_class_weights=CLASS_WEIGHTS)}


def array(name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(golden("losses")[name]))


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unpacked(name: str) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(golden("losses")[name]).reshape(2, 128, 96)).bool()


def gaussian_targets(keypoints: torch.Tensor, visible: torch.Tensor, sigma: int = 2) -> torch.Tensor:
    """Target heatmaps 32 x 24 of keypoints in a 128 x 96 input: a Gaussian in a square window around each."""
    spots = keypoints / torch.tensor([95 / 23, 127 / 31])
    ys, xs = torch.arange(32.0)[:, None], torch.arange(24.0)
    maps = torch.zeros(*keypoints.shape[:2], 32, 24)
    for b in range(len(keypoints)):
        for k, (x, y) in enumerate(spots[b]):
            if visible[b, k] < 0.5:
                continue
            near = ((xs - int(x + 0.5)).abs() <= 3 * sigma) & ((ys - int(y + 0.5)).abs() <= 3 * sigma)
            maps[b, k] = torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2)) * near
    return maps


def golden_batch(name: str) -> dict[str, torch.Tensor]:
    """Inputs of the original's training step."""
    if name in POSES:
        targets = gaussian_targets(array(f"{name}.keypoints"), array(f"{name}.visible"))
        chosen = golden("losses")[f"{name}.target_channels"]
        torch.testing.assert_close(targets[:, chosen], array(f"{name}.targets"), rtol=0, atol=2e-5)
        pixels = golden_pixels(name)
        return dict(pixel_values=pixels, labels=targets, keypoint_weights=array(f"{name}.weights"))
    pixels = normalise(golden("losses")["dense.levels"])
    if name == "seg":
        return dict(pixel_values=pixels, labels=array("seg.labels").long())
    if name == "depth":
        raw, labels = array("depth.raw"), torch.full((2, 128, 96), -1.0)
        for depth, person, target in zip(raw, unpacked("depth.mask"), labels):
            inside = depth[person]
            target[person] = (inside - inside.min()) / (inside.max() - inside.min())
        return dict(pixel_values=pixels, labels=labels)
    normals = array("normal.quarter").repeat_interleave(4, 1).repeat_interleave(4, 2).permute(0, 3, 1, 2)
    return dict(pixel_values=pixels, labels=torch.where(unpacked("normal.mask")[:, None], normals, -1000.0))


def gradient_of(model, name: str) -> torch.Tensor:
    """The gradient of the tensor that bears this name in the original."""
    embeddings, head = model.model.embeddings, model.head
    simple = {
        "backbone.pos_embed": embeddings.position_embeddings,
        "backbone.patch_embed.projection.bias": embeddings.patch_embeddings.projection.bias,
        "backbone.ln1.weight": model.model.layernorm.weight,
        "deconv_layers.0.weight": head.deconv_layers[0].convolution.weight,
        "conv_layers.0.weight": head.conv_layers[0].convolution.weight,
        "final.weight": head.final_conv.weight,
        "final.bias": head.final_conv.bias,
    }
    if name == "backbone.layers.0.attn.qkv.bias":
        attention = model.model.encoder.layers[0].attention
        return torch.cat([p.bias.grad for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    for prefix in ("decode_head.", "head."):
        name = name.removeprefix(prefix)
    return simple[name.replace("conv_seg", "final").replace("final_layer", "final")].grad


# ------------------------------------------------------------------------------------------------------------- golden
@pytest.mark.parametrize("name", (*POSES, *DENSE))
def test_loss_and_gradients_match_the_original(name):
    model = golden_model(name, **OPTIONS.get(name, {}))
    loss = model(**golden_batch(name)).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(array(f"{name}.loss")), rel=1e-5)
    names = [key.split(".grad.")[1] for key in golden("losses") if key.startswith(f"{name}.grad.")]
    assert len(names) >= 5
    for tensor in names:
        want, got = array(f"{name}.grad.{tensor}"), gradient_of(model, tensor)
        if want.shape != got.shape:  # a share of a large one was kept
            step = 16 if got.numel() > 6000 else 4
            got = got.flatten()[::step]
        torch.testing.assert_close(
            got, want, rtol=0, atol=1e-4 * float(want.abs().max()) + 1e-8, msg=lambda m: f"{tensor}: {m}"
        )
    squares = sum(p.grad.double().square().sum() for p in model.parameters())
    assert float(squares.sqrt()) == pytest.approx(float(array(f"{name}.grad_norm_all")), rel=1e-4)


def test_target_heatmaps_of_the_library_are_those_of_the_goldens():
    keypoints, visible = array("pose17.keypoints"), array("pose17.visible")
    maps, weights = encode_heatmaps(keypoints, visible, (128, 96), (32, 24), sigma=2.0)
    torch.testing.assert_close(maps[:, ::4], array("pose17.targets"), rtol=0, atol=2e-5)
    assert torch.equal(weights, array("pose17.weights"))


def test_segmentation_loss_map_matches_the_original():
    """Pixel by pixel: the loss of a map in which all other pixels are ignored."""
    model, batch = golden_model("seg"), golden_batch("seg")
    with torch.no_grad():
        logits = model(batch["pixel_values"]).logits
    want = array("seg.loss_map")  # every 8th row and column
    for row, column in ((0, 0), (3, 7), (9, 2), (15, 11)):
        labels = torch.full_like(batch["labels"], 255)
        at = (slice(None), row * 8, column * 8)
        labels[at] = batch["labels"][at]
        loss = segmentation_loss(logits, labels, CLASS_WEIGHTS) * labels.numel()
        assert float(loss) == pytest.approx(float(want[:, row, column].sum()), rel=1e-4, abs=1e-4)


def test_small_losses_match_the_original():
    output, target, weights = (array(f"small_pose.{n}") for n in ("output", "target", "weights"))
    for options, name in (
        (dict(keypoint_weights=weights), "mse"),
        ({}, "mse_noweight"),
        (dict(keypoint_weights=weights, top_k=8), "ohkm8"),
        (dict(top_k=8), "ohkm8_noweight"),
    ):
        loss = heatmap_loss(output, target, **options)
        assert float(loss) == pytest.approx(float(array(f"small_pose.{name}")), rel=1e-5)
    loss = depth_loss(array("depth.small_pred"), array("depth.small_target"))
    assert float(loss) == pytest.approx(float(array("depth.small_silog")), rel=1e-5)
    loss = normal_loss(array("normal.small_pred"), array("normal.small_target"))
    want = array("normal.small_cos") + array("normal.small_l1")
    assert float(loss) == pytest.approx(float(want), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- reference
def test_heatmap_losses_equal_the_plain_rendering_with_fractional_weights():
    predicted, target = random(3, 7, 8, 6, seed=1), random(3, 7, 8, 6, seed=2)
    weights = random(3, 7, seed=3).abs()
    weights[0, 2] = 0
    torch.testing.assert_close(
        heatmap_loss(predicted, target, weights), reference.heatmap_loss(predicted, target, weights)
    )
    for top_k in (1, 4, 7, 9):  # of 7 keypoints; with 9 the sum is still divided by 9
        torch.testing.assert_close(
            heatmap_loss(predicted, target, weights, top_k),
            reference.hardest_heatmap_loss(predicted, target, weights, top_k),
        )


def test_segmentation_loss_equals_the_plain_rendering():
    logits = random(2, 5, 8, 6, seed=4)
    labels = tiny_inputs("segmentation")["labels"]
    weights = [0.5, 2.0, 1.0, 3.0, 0.0]
    torch.testing.assert_close(
        segmentation_loss(logits, labels, weights), reference.segmentation_loss(logits, labels, weights)
    )
    plain = F.cross_entropy(F.interpolate(logits, IMAGE_SIZE, mode="bilinear"), labels, ignore_index=255)
    counted = (labels != 255).float().mean()  # torch leaves ignored pixels out of the mean, the original does not
    torch.testing.assert_close(segmentation_loss(logits, labels), plain * counted)
    torch.testing.assert_close(
        segmentation_loss(logits, torch.where(labels == 255, -7, labels), ignore_index=-7), plain * counted
    )


def test_depth_and_normal_losses_equal_the_plain_rendering():
    depth, labels = random(3, 16, 12, seed=5), random(3, 16, 12, seed=6).clamp(min=-0.5)
    labels[1] = -1  # nobody in this image
    torch.testing.assert_close(depth_loss(depth, labels), reference.depth_loss(depth, labels))
    normals = tiny_inputs("normal")["labels"]
    predicted = random(2, 3, 32, 24, seed=7)
    torch.testing.assert_close(normal_loss(predicted, normals), sum(reference.normal_losses(predicted, normals)))


def test_depth_predictions_of_another_size_are_resized_to_the_labels():
    labels, small = tiny_inputs("depth")["labels"], random(2, 32, 24, seed=8).abs()
    large = F.interpolate(small[:, None], IMAGE_SIZE, mode="bilinear")[:, 0]
    torch.testing.assert_close(depth_loss(small, labels), depth_loss(large, labels))


@pytest.mark.parametrize("task", DENSE_TASKS)
def test_losses_are_computed_in_float32(task):
    predicted = {
        "pose": random(2, 5, 16, 12, seed=9),
        "segmentation": random(2, 5, 32, 24, seed=9),
        "depth": random(2, 64, 48, seed=9).abs() + 0.1,
        "normal": random(2, 3, 32, 24, seed=9),
    }[task].bfloat16()
    loss = {
        "pose": heatmap_loss,
        "segmentation": segmentation_loss,
        "depth": depth_loss,
        "normal": normal_loss,
    }[task]
    labels = tiny_inputs(task)["labels"]
    low, full = loss(predicted, labels), loss(predicted.float(), labels)
    assert low.dtype == torch.float32 and torch.equal(low, full)
    if labels.is_floating_point():
        assert loss(predicted, labels.bfloat16()).dtype == torch.float32


# -------------------------------------------------------------------------------------------------------------- edges
def loss_with_gradient(loss, predicted: torch.Tensor, *args) -> tuple[float, torch.Tensor]:
    predicted = predicted.clone().requires_grad_()
    value = loss(predicted, *args)
    value.backward()
    return float(value.detach()), predicted.grad


def test_nothing_to_learn_from_gives_zero_and_no_gradient():
    cases = [
        (heatmap_loss, random(2, 5, 8, 6, seed=10), random(2, 5, 8, 6, seed=11), torch.zeros(2, 5)),
        (heatmap_loss, random(2, 5, 8, 6, seed=10), random(2, 5, 8, 6, seed=11), torch.zeros(2, 5), 3),
        (segmentation_loss, random(2, 5, 8, 6, seed=12), torch.full((2, 16, 12), 255)),
        (depth_loss, random(2, 8, 6, seed=13), torch.full((2, 8, 6), -1.0)),
        (depth_loss, random(2, 8, 6, seed=13), torch.zeros(2, 8, 6)),  # the nearest point does not count either
        (normal_loss, random(2, 3, 8, 6, seed=14), torch.full((2, 3, 16, 12), -1000.0)),
    ]
    for loss, predicted, *args in cases:
        value, gradient = loss_with_gradient(loss, predicted, *args)
        assert value == 0.0 and not gradient.any()


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_batch_without_people_costs_nothing(top_k):
    """The processor does not know the number of keypoints then: its labels have none."""
    processor = SapiensImageProcessorPil(size=dict(zip(("height", "width"), IMAGE_SIZE)))
    images = [np.zeros((40, 30, 3), np.uint8), np.zeros((20, 50, 3), np.uint8)]
    batch = processor(images, boxes=[[], []], keypoints=[[], []], return_tensors="pt")
    assert batch["labels"].shape == (0, 0, 16, 12)
    model = tiny_model("pose", keypoint_loss_top_k=top_k).train()
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0.0 and loss.ndim == 0
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and not g.any() for g in gradients)
    for labels in (torch.zeros(0, 5, 16, 12), torch.zeros(0, 9, 16, 12)):
        assert model(batch["pixel_values"], labels=labels).loss == 0.0
    for wrong in (
        dict(labels=torch.zeros(0, 5, 64, 48)),
        dict(labels=torch.zeros(2, 5, 16, 12)),
        dict(labels=batch["labels"], keypoint_weights=torch.ones(2, 5)),
    ):
        with pytest.raises(ValueError, match=r"must have shape \(0, num_keypoints"):
            model(batch["pixel_values"], **wrong)


def test_a_perfect_prediction_has_a_finite_gradient():
    """The original's depth loss has none there: the slope of a square root at 0."""
    depth = random(2, 8, 6, seed=15).abs() + 0.1
    assert loss_with_gradient(depth_loss, depth, depth)[0] == 0.0
    normals = F.normalize(random(2, 3, 8, 6, seed=16), dim=1)
    heatmaps = random(2, 5, 8, 6, seed=17)
    for loss, predicted in ((depth_loss, depth), (normal_loss, normals), (heatmap_loss, heatmaps)):
        value, gradient = loss_with_gradient(loss, predicted, predicted)
        assert value == pytest.approx(0.0, abs=1e-6) and gradient.isfinite().all()
    one = torch.stack([depth[0], depth[1] * 2])  # a perfect image beside another one
    assert loss_with_gradient(depth_loss, one, depth)[1].isfinite().all()


def test_depth_predictions_below_the_floor_have_no_gradient():
    predicted = torch.tensor([[[-0.5, 0.4], [0.0, 0.9]]])
    value, gradient = loss_with_gradient(depth_loss, predicted, torch.full((1, 2, 2), 0.5))
    assert np.isfinite(value) and torch.equal(gradient != 0, predicted > 1e-6)


def test_values_that_are_not_finite():
    """A NaN depth is left out and a normal term that is not finite counts as 0, both as in the original."""
    depth, labels = random(1, 8, 6, seed=18).abs() + 0.1, random(1, 8, 6, seed=19).abs() + 0.1
    broken, without = depth.clone(), labels.clone()
    broken[0, 0, 0], without[0, 0, 0] = torch.nan, -1
    torch.testing.assert_close(depth_loss(broken, labels), depth_loss(depth, without))
    normals, target = random(1, 3, 8, 6, seed=20), F.normalize(random(1, 3, 8, 6, seed=21), dim=1)
    for value in (torch.nan, torch.inf):
        normals[0, 0, 0, 0] = value
        assert float(normal_loss(normals, target)) >= 0.0
    normals[0, 0, 0, 0] = torch.nan
    assert float(normal_loss(normals, target)) == 0.0
    normals[0, 0, 0, 0] = -1e-30
    normals[0, 1:, 0, 0] = 0.0
    assert loss_with_gradient(normal_loss, normals, target)[1].isfinite().all()


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("pose", dict(labels=(2, 5, 64, 48)), "labels (target heatmaps) must have shape (2, 5, 16, 12), got"),
        ("pose", dict(labels=(2, 4, 16, 12)), "labels (target heatmaps) must have shape (2, 5, 16, 12), got"),
        ("pose", dict(keypoint_weights=(2, 5, 1)), "keypoint_weights must have shape (2, 5), got (2, 5, 1)"),
        ("segmentation", dict(labels=(2, 1, 64, 48)), "labels (class indices) must have shape (2, height, width)"),
        ("segmentation", dict(labels=(3, 64, 48)), "labels (class indices) must have shape (2, height, width)"),
        ("depth", dict(labels=(2, 1, 64, 48)), "labels (depth) must have shape (2, height, width)"),
        ("normal", dict(labels=(2, 64, 48, 3)), "labels (normals) must have shape (2, 3, height, width)"),
    ],
)
def test_labels_of_another_shape_are_refused(task, change, message):
    dtype = torch.long if task == "segmentation" else torch.float32
    inputs = {**tiny_inputs(task), **{name: torch.zeros(shape, dtype=dtype) for name, shape in change.items()}}
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model(task)(**inputs)


@pytest.mark.parametrize("value", [5, -1, 254])
def test_labels_out_of_range_are_named(value):
    inputs = tiny_inputs("segmentation")
    inputs["labels"][1, 3, 4] = value
    message = f"labels hold the value {value}: expected 0 to 4, or 255 for pixels to ignore."
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model("segmentation")(**inputs)


# ------------------------------------------------------------------------------------------------------- in the models
def test_config_options_reach_the_losses():
    weights = [0.5, 2.0, 1.0, 3.0, 0.25]
    inputs = tiny_inputs("segmentation")
    inputs["labels"] = torch.where(inputs["labels"] == 255, 77, inputs["labels"])
    options = dict(semantic_loss_class_weights=weights, semantic_loss_ignore_index=77)
    with torch.no_grad():
        outputs = tiny_model("segmentation", **options)(**inputs)
    want = reference.segmentation_loss(outputs.logits, inputs["labels"], weights, 77)
    torch.testing.assert_close(outputs.loss, want)
    inputs = tiny_inputs("pose")
    with torch.no_grad():
        outputs = tiny_model("pose", keypoint_loss_top_k=2)(**inputs)
    want = reference.hardest_heatmap_loss(outputs.heatmaps, inputs["labels"], inputs["keypoint_weights"], 2)
    torch.testing.assert_close(outputs.loss, want)


@pytest.mark.parametrize("task", ("pretraining", *DENSE_TASKS))
def test_trainer_accumulates_to_the_same_step(task, tmp_path):
    """Two batches of two and one of four: Trainer divides mean losses by the steps only if the model says so."""
    inputs = {name: value for name, value in tiny_inputs(task, 4).items() if name != "noise"}
    if task == "pose":
        inputs["keypoint_weights"] = torch.ones(4, 5)
    elif task in ("depth", "normal"):
        inputs["labels"] = inputs["labels"][:1].repeat_interleave(4, 0)  # as many valid pixels in each image
    dataset = [{name: value[i] for name, value in inputs.items()} for i in range(4)]
    losses, weights = [], []
    for batch_size, steps in ((4, 1), (2, 2)):
        model = tiny_model(task)
        assert model.accepts_loss_kwargs is False
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=0.5,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
            max_grad_norm=0.0,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
        trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(dataset)
        if task == "pretraining":  # the same patches hidden in every image, whatever the batch
            masking, hidden = model.random_masking, torch.linspace(0, 1, 12)
            model.random_masking = lambda pixels, noise: masking(pixels, hidden.expand(len(pixels), -1))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")
    start = dict(tiny_model(task).named_parameters())
    assert any(not torch.equal(start[name], weight) for name, weight in weights[0].items())

"""SapiensConfig: sizes and tasks, what it refuses, and that a file gives back the same object."""

import json
import logging
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny import tiny_config
from transformers import AutoConfig
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging as hf_logging

from sapiens_hf import SapiensConfig

REFUSED = (ValueError, TypeError, StrictDataclassClassValidationError, StrictDataclassFieldValidationError)


def warnings_of(work) -> str:
    logger = hf_logging.get_logger("sapiens_hf.configuration_sapiens")
    logger.setLevel(logging.WARNING)
    with CaptureLogger(logger) as captured:
        work()
    return captured.out


# ----------------------------------------------------------------------------------------------------- sizes and tasks
@pytest.mark.parametrize(
    "size, width, layers, heads, hidden",
    [
        ("0.3b", 1024, 24, 16, 4096),
        ("0.6b", 1280, 32, 16, 5120),
        ("1b", 1536, 40, 24, 6144),
        ("2b", 1920, 48, 32, 7680),
    ],
)
def test_sizes_are_those_of_the_paper(size, width, layers, heads, hidden):
    config = SapiensConfig.from_size(size)
    assert (config.hidden_size, config.num_hidden_layers) == (width, layers)
    assert (config.num_attention_heads, config.intermediate_size) == (heads, hidden)
    assert len(config.stage_names) == layers + 1 and config.out_indices == [layers]


def test_plain_defaults_are_segmentation_at_0_3b():
    skip = ("id2label", "label2id")
    plain, sized = (
        {k: v for k, v in c.to_dict().items() if k not in skip}
        for c in (SapiensConfig(), SapiensConfig.from_size("0.3b", "segmentation"))
    )
    assert plain == sized
    config = SapiensConfig()
    assert config.image_size == [1024, 768] and config.grid_size == (64, 48) and config.layer_norm_eps == 1e-6
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (512, 8)


@pytest.mark.parametrize(
    "task, deconv, conv, padding, labels",
    [
        ("pose", [768] * 2, [768] * 2, 2, 308),
        ("segmentation", [768] * 3, [768] * 3, 0, 28),
        ("depth", [384] * 4, [384] * 2, 0, 2),
        ("normal", [768] * 3, [768] * 3, 2, 2),
    ],
)
def test_tasks_bring_head_and_padding(task, deconv, conv, padding, labels):
    config = SapiensConfig.from_size("1b", task)
    assert (config.deconv_out_channels, config.conv_out_channels) == (deconv, conv)
    assert (config.deconv_kernel_sizes, config.conv_kernel_sizes) == ([4] * len(deconv), [1] * len(conv))
    assert (config.patch_embeddings_padding, config.num_labels) == (padding, labels)
    assert config.head_dropout2d_prob == (0.0 if task == "pose" else 0.1) and not config.use_cls_token


def test_pretraining_and_encoder_are_square_with_a_class_token():
    for task in ("pretraining", "encoder"):
        config = SapiensConfig.from_size("0.6b", task)
        assert config.image_size == [1024, 1024] and config.use_cls_token and config.patch_embeddings_padding == 0


def test_overrides_win_and_names_of_labels_replace_their_number():
    names = {0: "nose", 1: "left_eye", 2: "right_eye"}
    config = SapiensConfig.from_size("0.3b", "pose", id2label=names, image_size=[512, 384], flip_pairs=[(1, 2)])
    assert config.num_labels == 3 and config.id2label == names and config.label2id["right_eye"] == 2
    assert config.image_size == [512, 384] and config.flip_pairs == [[1, 2]]
    assert SapiensConfig.from_size("0.3b", "pose", num_labels=17).num_labels == 17


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("1B",), "Unknown Sapiens size '1B': expected one of '0.3b', '0.6b', '1b', '2b'. Did you mean '1b'?"),
        (("0.5b",), "Unknown Sapiens size '0.5b': expected one of '0.3b', '0.6b', '1b', '2b'. Did you mean"),
        (("huge",), "Unknown Sapiens size 'huge': expected one of '0.3b', '0.6b', '1b', '2b'."),
        (("1b", "segmentaton"), "Unknown Sapiens task 'segmentaton': expected one of 'pretraining', 'encoder', "),
        (("1b", "normals"), "Did you mean 'normal'?"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SapiensConfig.from_size(*arguments)


# --------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize(
    "config",
    [
        SapiensConfig(),
        SapiensConfig.from_size("2b", "pose", num_labels=17, flip_pairs=((1, 2), (3, 4)), keypoint_loss_top_k=8),
        SapiensConfig.from_size("0.3b", "depth", drop_path_rate=0, layer_norm_eps=1e-5, mask_ratio=0),
        tiny_config(semantic_loss_class_weights=[1, 0.5, 2, 3, 0.1], out_indices=[1, 3]),
        tiny_config("pretraining", image_size=80, norm_pix_loss=False),
        tiny_config(num_labels=2, flip_pairs=[[0, 1]]),
    ],
    ids=["default", "pose", "depth", "weights", "pretraining", "two labels"],
)
def test_a_saved_config_comes_back_equal(config, tmp_path):
    config.save_pretrained(tmp_path)
    for again in (SapiensConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is SapiensConfig
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        again.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
        assert (again.num_labels, again.out_indices) == (config.num_labels, config.out_indices)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "sapiens"


def test_json_holds_plain_types(tmp_path):
    SapiensConfig(image_size=(512, 384), patch_size=32, flip_pairs=((0, 1),)).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["patch_size"] == 32 and stored["image_size"] == [512, 384] and stored["flip_pairs"] == [[0, 1]]


def test_a_single_image_size_means_a_square():
    assert tiny_config(image_size=80).image_size == [80, 80] and tiny_config(image_size=80).grid_size == (5, 5)


def test_unknown_fields_are_kept_as_attributes():
    config = SapiensConfig.from_dict({**tiny_config().to_dict(), "transformers.js_config": {"dtype": "fp16"}})
    assert config.to_dict()["transformers.js_config"] == {"dtype": "fp16"}


def test_fields_of_other_exporters_fit():
    """What configs of published ONNX conversions hold: integers for floats, tuples for lists."""
    config = SapiensConfig(layer_norm_eps=1, hidden_dropout_prob=0, deconv_out_channels=(8, 6), conv_out_channels=(4,))
    assert config.deconv_kernel_sizes == [4, 4] and config.conv_kernel_sizes == [1]


# --------------------------------------------------------------------------------------------------- overrides on load
def test_overrides_on_load_are_normalised_and_checked(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = SapiensConfig.from_pretrained(tmp_path, image_size=(96, 80), hidden_dropout_prob=0.25)
    assert config.image_size == [96, 80] and config.hidden_dropout_prob == 0.25
    assert SapiensConfig.from_pretrained(tmp_path, out_indices=[1]).out_features == ["stage1"]
    with pytest.raises(REFUSED, match="image_size must be"):
        SapiensConfig.from_pretrained(tmp_path, image_size=[96, 70])
    config, unused = SapiensConfig.from_pretrained(tmp_path, return_unused_kwargs=True, num_labels=3, cats=4)
    assert config.num_labels == 3 and unused == {"cats": 4}


@pytest.mark.parametrize("old", [5, 2])  # transformers does not store two labels
def test_another_number_of_labels_drops_what_speaks_of_the_old_ones(tmp_path, old):
    stored = tiny_config(num_labels=old, flip_pairs=[[0, 1]], semantic_loss_class_weights=[2.0] * old)
    stored.save_pretrained(tmp_path)
    seen = []
    warning = warnings_of(lambda: seen.append(SapiensConfig.from_pretrained(tmp_path, num_labels=3)))
    assert seen[0].flip_pairs is None and seen[0].semantic_loss_class_weights is None and seen[0].num_labels == 3
    assert f"{old} labels become 3: flip_pairs and semantic_loss_class_weights of the checkpoint" in warning
    names = {i: f"part {i}" for i in range(4)}
    warning = warnings_of(
        lambda: seen.append(SapiensConfig.from_pretrained(tmp_path, id2label=names, flip_pairs=[[2, 3]]))
    )
    assert seen[1].id2label == names and seen[1].flip_pairs == [[2, 3]]
    assert (
        seen[1].semantic_loss_class_weights is None and "semantic_loss_class_weights of the checkpoint no" in warning
    )


def test_the_same_number_of_labels_keeps_everything(tmp_path):
    names = {i: f"joint {i}" for i in range(5)}
    tiny_config(num_labels=5, id2label=names, flip_pairs=[[0, 1]]).save_pretrained(tmp_path)
    seen = []
    assert warnings_of(lambda: seen.append(SapiensConfig.from_pretrained(tmp_path, num_labels=5))) == ""
    assert seen[0].id2label == names and seen[0].flip_pairs == [[0, 1]]


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_size=30), "hidden_size (30) must be a multiple of num_attention_heads (4)"),
        (dict(decoder_hidden_size=25), "decoder_hidden_size (25) must be a multiple of decoder_num_attention_heads"),
        (dict(num_attention_heads=0), "num_attention_heads must be at least 1, got 0"),
        (dict(patch_size=0), "patch_size must be at least 1, got 0"),
        (dict(image_size=[64, 50]), "both positive multiples of patch_size (16); got [64, 50]"),
        (dict(image_size=[64]), "image_size must be [height, width]"),
        (dict(image_size=[64, 48, 3]), "image_size must be [height, width]"),
        (dict(image_size=[0, 48]), "both positive multiples"),
        (dict(patch_embeddings_padding=8), "patch_embeddings_padding must lie in [0, patch_size / 2)"),
        (dict(patch_embeddings_padding=-1), "patch_embeddings_padding must lie in [0, patch_size / 2)"),
        (dict(deconv_kernel_sizes=[4, 4]), "deconv_out_channels has 3 entries but deconv_kernel_sizes has 2"),
        (dict(conv_kernel_sizes=[1]), "conv_out_channels has 3 entries but conv_kernel_sizes has 1"),
        (dict(deconv_kernel_sizes=[4, 5, 4]), "deconv_kernel_sizes must be 2, 3 or 4"),
        (dict(conv_kernel_sizes=[1, 2, 1]), "conv_kernel_sizes must be odd"),
        (dict(mask_ratio=1), "mask_ratio must lie in [0, 1), got 1"),
        (dict(drop_path_rate=1.0), "drop_path_rate must lie in [0, 1), got 1.0"),
        (dict(drop_path_rate=-0.1), "drop_path_rate must lie in [0, 1), got -0.1"),
        (dict(keypoint_loss_top_k=0), "keypoint_loss_top_k must be at least 1, got 0"),
        (dict(semantic_loss_class_weights=[1.0] * 4), "semantic_loss_class_weights has 4 entries for 5 labels"),
        (dict(flip_pairs=[[1, 5]]), "flip_pairs holds [1, 5]: expected two keypoint indices from 0 to 4"),
        (dict(flip_pairs=[[1, 2, 3]]), "flip_pairs holds [1, 2, 3]"),
        (dict(flip_pairs=[[1, 2], [3, 2]]), "flip_pairs holds [3, 2] with an index that came before"),
        (dict(flip_pairs=[[1, 1]]), "flip_pairs holds [1, 1] with an index that came before"),
        (dict(flip_pairs=[[1, 2.5]]), "flip_pairs is [[1, 2.5]]: expected pairs of keypoint indices"),
        (dict(flip_pairs=[1, 2]), "flip_pairs is [1, 2]: expected pairs of keypoint indices"),
        (dict(use_cls_token=True, hidden_size=36, num_attention_heads=6, decoder_hidden_size=21), "multiple of 4"),
        (dict(hidden_size="32"), "hidden_size"),
        (dict(image_size="64x48"), "image_size"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, message):
    with pytest.raises(REFUSED, match=re.escape(message)):
        tiny_config(**fields)

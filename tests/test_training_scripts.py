"""The real scripts: each learns eight pictures and leaves a folder that pipeline() opens; options and recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import load_file
from training_helpers import CLASSES, NAMES, arguments, person, write_tree
from transformers import pipeline

import sapiens_hf
from training import hub
from training.build import TINY, build_model, build_processor, freeze
from training.checkpoints import describe_code, read_metrics
from training.layouts import class_layout, keypoint_layout
from training.options import DepthOptions, PoseOptions, SegmentationOptions, parse_options, parse_values
from training.recipes import RECIPES, recipe

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("pose", "segmentation", "depth", "normal")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


def train(task, *given, **options):
    return importlib.import_module(f"training.finetune_{task}").main(arguments(task, *given, **options))


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """One run per task, made when first asked for: eight pictures, no augmentation."""
    made = {}
    more = {
        "pose": ["--heatmap_sigma", "2", "--flip_test"],
        "segmentation": ["--no_class_weights"],
        "depth": [],
        "normal": [],
    }

    def get(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task) / "run"
            extra = ["--val_data", str(data), "--batch_size", "8", "--eval_every", "40", "--learning_rate", "5e-3"]
            results = train(task, data, folder, *extra, *more[task], steps=80, augment=False)
            made[task] = folder, results
        return made[task]

    return get


@pytest.mark.parametrize("task", TASKS)
def test_each_script_learns_eight_pictures(runs, task):
    folder, results = runs(task)
    curve = losses(folder)
    assert len(curve) == 80 and np.mean(curve[-5:]) < 0.5 * np.mean(curve[:3])
    good = {"pose": results.get("pck", 0) > 0.6, "segmentation": results.get("mean_iou", 0) > 0.5,
            "depth": results.get("abs_rel", 1) < 0.05, "normal": results.get("mean", 90) < 15}  # fmt: skip
    assert good[task], results
    lines = read_metrics(folder / "metrics.jsonl")
    evaluated = [line["step"] for line in lines if any(key.startswith("eval_") for key in line)]
    assert evaluated == [40, 80] and lines[0]["images_per_s"] > 0 and lines[-1]["epoch"] == 80


@pytest.mark.parametrize("task", TASKS)
def test_a_run_folder_is_ready_for_pipeline(runs, task):
    folder, results = runs(task)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "metrics.jsonl", "run.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.partial")) and not (folder / "final").exists()
    stored = json.loads((folder / "results.json").read_text())
    assert stored["step"] == 80 and stored["loss"] == results["loss"]
    run = json.loads((folder / "run.json").read_text())
    assert run["options"]["max_steps"] == 80 and run["num_processes"] == 1 and "torch" in run["versions"]
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        p.name for p in (folder / "best").iterdir()
    }
    image = Image.fromarray(person(2)["image"])
    for place in (folder, folder / "best"):
        predict = pipeline(hub.PIPELINES[task], model=str(place))
        if task == "pose":
            (people,) = predict([image], boxes=[[person(2)["box"].tolist()]])
            points = people[0]["keypoints"]
            assert [point["label"] for point in points] == list(NAMES)
        elif task == "segmentation":
            assert {part["label"] for part in predict(image)} <= set(CLASSES)
        elif task == "depth":
            assert predict(image)["predicted_depth"].shape[-2:] == (96, 80)
        else:
            normals = predict(image)["normals"]
            assert normals.shape == (3, 96, 80)
            assert normals[2][torch.from_numpy(person(2)["mask"])].mean() > 0.5


def test_label_names_travel_with_the_model(runs):
    config = json.loads((runs("pose")[0] / "config.json").read_text())
    assert config["id2label"]["4"] == NAMES[4] and config["flip_pairs"] == [[1, 2], [3, 4]]
    processor = json.loads((runs("pose")[0] / "preprocessor_config.json").read_text())
    assert processor["keypoint_heatmap_sigma"] == 2 and processor["size"] == {"height": 64, "width": 48}
    config = json.loads((runs("segmentation")[0] / "config.json").read_text())
    assert config["id2label"]["6"] == "Hat" and not config.get("semantic_loss_class_weights")


def test_evaluators_equal_the_metrics(data):
    """The sums of the training loop give what `sapiens_hf.metrics` gives."""
    from sapiens_hf.metrics import load_metric
    from training.evaluators import DepthEvaluator, NormalEvaluator, PoseEvaluator, SegmentationEvaluator

    rng = np.random.default_rng(0)

    class Answers:
        """A processor whose answers are known."""

        def post_process_semantic_segmentation(self, outputs, target_sizes):
            return [torch.from_numpy(rows) for rows in self.maps]

        def post_process_depth_estimation(self, outputs, target_sizes):
            return [{"predicted_depth": torch.from_numpy(rows)} for rows in self.maps]

        def post_process_normal_estimation(self, outputs, target_sizes):
            return [{"normals": torch.from_numpy(rows)} for rows in self.maps]

        def post_process_pose_estimation(self, outputs, boxes, outputs_flipped=None):
            return [[{"keypoints": torch.from_numpy(rows)}] for rows in self.maps]

    class Outputs:
        logits = predicted_depth = predicted_normal = heatmaps = torch.zeros(3, 1)

    samples, answers = [{"name": str(i), **person(i)} for i in range(3)], Answers()
    samples[1]["segmentation_map"] = samples[1]["segmentation_map"].copy()
    samples[1]["segmentation_map"][:9] = 255

    answers.maps = [
        np.where(rng.random((96, 80)) < 0.3, 4, s["segmentation_map"] % 255).astype(np.int64) for s in samples
    ]
    evaluator = SegmentationEvaluator(answers, 7)
    evaluator.add(Outputs(), samples)
    truth = [s["segmentation_map"] for s in samples]
    expected = load_metric("mean_iou").compute(predictions=answers.maps, references=truth, num_labels=7)
    results = evaluator.compute(evaluator.totals)
    assert results == pytest.approx({name: expected[name] for name in results})

    answers.maps = [(s["depth"] * 0.3 + rng.normal(0, 0.05, (96, 80))).astype(np.float32) for s in samples]
    evaluator = DepthEvaluator(answers)
    evaluator.add(Outputs(), samples)
    given = dict(
        predictions=answers.maps, references=[s["depth"] for s in samples], masks=[s["mask"] for s in samples]
    )
    expected = load_metric("depth_metrics").compute(**given, align="scale_shift")
    results = evaluator.compute(evaluator.totals)
    assert results == pytest.approx({name: expected[name] for name in results})

    answers.maps = [np.moveaxis(s["normals"], -1, 0) + rng.normal(0, 0.2, (3, 96, 80)) for s in samples]
    evaluator = NormalEvaluator(answers)
    evaluator.add(Outputs(), samples)
    truth = [np.moveaxis(s["normals"], -1, 0) for s in samples]
    expected = load_metric("normal_metrics").compute(predictions=answers.maps, references=truth, masks=given["masks"])
    results = evaluator.compute(evaluator.totals)
    assert results == pytest.approx({name: expected[name] for name in results}) and not evaluator.higher_is_better
    assert (
        evaluator.is_better(3.0, 4.0) and not evaluator.is_better(float("nan"), 4.0) and evaluator.is_better(9.0, None)
    )

    answers.maps = [s["keypoints"][:, :2] + rng.normal(0, 3, (5, 2)) for s in samples]
    evaluator = PoseEvaluator(answers)
    evaluator.add((Outputs(), None), samples)
    people = dict(
        predictions=answers.maps, references=[s["keypoints"] for s in samples], bboxes=[s["box"] for s in samples]
    )
    results = evaluator.compute(evaluator.totals)
    assert results["pck"] == pytest.approx(load_metric("pck").compute(**people)["pck"])
    assert results["pck_visible"] == pytest.approx(load_metric("pck").compute(**people, min_visibility=2)["pck"])
    evaluator.reset()
    assert np.isnan(evaluator.compute(evaluator.totals)["pck"])


def test_evaluation_says_what_it_needs(monkeypatch):
    import sys

    from training.evaluators import NormalEvaluator

    monkeypatch.delitem(sys.modules, "sapiens_hf.metrics.normal_metrics.normal_metrics", raising=False)
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"sapiens_hf\[eval\]"):
        NormalEvaluator(None)


def test_bad_samples_of_an_evaluation(data, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(data, own)
    for name in ("p000", "p004"):
        Image.new("L", (80, 96)).save(own / "masks" / f"{name}.png")
    extra = ["--val_data", str(own), "--eval_batch_size", "1"]
    with pytest.raises(ValueError, match="p000.npy: the mask is empty"):
        train("depth", data, tmp_path / "a", *extra, steps=1)
    results = train("depth", data, tmp_path / "b", *extra, "--skip_bad_samples", "--max_eval_samples", "5", steps=1)
    assert results["rmse"] > 0


# ------------------------------------------------------------------------------------------------ ways to train less
def test_lora_trains_adapters_and_ends_merged(data, tmp_path):
    base = tmp_path / "base"
    train("pose", data, base, steps=1)
    started = ["--model_name_or_path", str(base), "--lora_r", "4", "--val_data", str(data), "--eval_every", "2"]
    run = tmp_path / "lora"
    train("pose", data, run, *started, "--save_every", "2", steps=4)
    before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.encoder.layers.1.attention.q_proj.weight", "head.final_conv.weight"} <= changed
    assert not any("layernorm" in name or "embeddings" in name or name.endswith("fc1.bias") for name in changed)
    assert (run / "adapter" / "adapter_model.safetensors").is_file() and (run / "best" / "adapter").is_dir()
    pipeline("keypoint-detection", model=str(run))(Image.fromarray(person(1)["image"]), boxes=[[1, 2, 50, 60]])
    # Saving merged models on the way, and restarting, does not disturb the run.
    again = tmp_path / "again"
    train("pose", data, again, *started[:4], "--save_every", "2", steps=4)
    assert losses(run) == losses(again)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    train("pose", data, run, *started, "--save_every", "2", "--resume_from_checkpoint", "latest", steps=4)
    assert losses(run) == losses(again)
    # Starting a finished run again changes nothing.
    stored = json.loads((run / "results.json").read_text())
    train("pose", data, run, *started, "--save_every", "2", "--resume_from_checkpoint", "latest", steps=4)
    assert json.loads((run / "results.json").read_text()) == stored and not (run / "final").exists()
    assert (run / "adapter" / "adapter_config.json").is_file() and losses(run) == losses(again)


@pytest.mark.parametrize("layers, frozen", [(1, ("embeddings", "encoder.layers.0")), (-1, ("model.",))])
def test_frozen_weights_stay(data, tmp_path, layers, frozen):
    base, run = tmp_path / "base", tmp_path / "run"
    train("segmentation", data, base, steps=1)
    train("segmentation", data, run, "--model_name_or_path", str(base), "--freeze_layers", str(layers), steps=2)
    before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        assert same == any(part in name for part in frozen), name


def test_freezing_more_than_there_is():
    config = sapiens_hf.SapiensConfig(**{**TINY, "deconv_out_channels": [8] * 4, "conv_out_channels": [8]})
    with pytest.raises(ValueError, match="expected -1 to 6"):
        freeze(sapiens_hf.SapiensForDepthEstimation(config), 7)


def test_checkpointing_compilation_and_bf16(data, tmp_path):
    plain = tmp_path / "plain"
    train("normal", data, plain, steps=3)
    ways = {
        "saving memory": (["--gradient_checkpointing"], 1e-5),
        "compiled": (["--torch_compile", "eager", "--attn_implementation", "eager"], 1e-4),
        "bf16": (["--mixed_precision", "bf16"], 0.05),
    }
    for name, (more, tolerance) in ways.items():
        run = tmp_path / name
        AcceleratorState._reset_state()  # precision and compilation are chosen once per process
        train("normal", data, run, *more, steps=3)
        assert AcceleratorState().mixed_precision == ("bf16" if name == "bf16" else "no")
        assert (AcceleratorState().dynamo_plugin.backend.value == "EAGER") == (name == "compiled")
        assert losses(run) == pytest.approx(losses(plain), rel=tolerance)
        weights = load_file(run / "model.safetensors")
        assert weights.keys() == load_file(plain / "model.safetensors").keys()
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert losses(tmp_path / "bf16") != losses(plain)
    AcceleratorState._reset_state()


def test_accumulated_batches_equal_one(data, tmp_path):
    train("segmentation", data, tmp_path / "one", steps=3)
    given = arguments("segmentation", data, tmp_path / "two", "--gradient_accumulation_steps", "2", steps=3)
    given[given.index("--batch_size") + 1] = "2"
    importlib.import_module("training.finetune_segmentation").main(given)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


# ------------------------------------------------------------------------------------------------------ where from
def test_a_pretrained_encoder_starts_every_task(data, tmp_path):
    config = sapiens_hf.SapiensConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 64],
        use_cls_token=True, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=24, deconv_out_channels=[16] * 3, conv_out_channels=[16],
    )  # fmt: skip
    torch.manual_seed(3)
    encoder = sapiens_hf.SapiensForPreTraining(config)
    encoder.save_pretrained(tmp_path / "mae")
    line = arguments("segmentation", data, tmp_path / "run", "--model_name_or_path", str(tmp_path / "mae"))
    options = parse_options(SegmentationOptions, line)
    model = build_model(options, class_layout(data / "classes.layout.json"))
    assert model.config.image_size == [64, 48] and model.config.num_labels == 7 and not model.config.use_cls_token
    weights = model.state_dict()
    name = "model.encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(weights[name], encoder.state_dict()[name])
    assert build_processor(options, model).size["height"] == 64
    assert model.config.patch_embeddings_padding == 0
    pose = ["--model_name_or_path", str(tmp_path / "mae"), *("--config_overrides", "hidden_dropout_prob=0.1")]
    options = parse_options(PoseOptions, ["--train_data", "x", "--output_dir", "y", *pose, "--image_size", "64", "48"])
    assert build_model(options, keypoint_layout(17)).config.patch_embeddings_padding == 2  # as the original's pose


def test_metas_own_file_starts_a_task(data, tmp_path):
    from sapiens_hf.original import to_original_state_dict

    options = parse_options(DepthOptions, arguments("depth", data, tmp_path / "a"))
    donor = build_model(options)
    torch.save({"state_dict": to_original_state_dict(donor), "meta": {}}, tmp_path / "depth.pth")
    more = ["--model_name_or_path", str(tmp_path / "depth.pth")]
    line = arguments("depth", data, tmp_path / "b", *more)
    place = line.index("--config_overrides")
    line[place + 1 : line.index("--batch_size")] = ["num_attention_heads=2"]
    model = build_model(parse_options(DepthOptions, line))
    assert all(torch.equal(tensor, donor.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_new_models_are_whole_where_deepspeed_shares_weights_out(data, tmp_path, monkeypatch):
    """Their weights would have no values otherwise (tests/deepspeed_rehearsal.py runs it with DeepSpeed)."""
    from sapiens_hf.original import to_original_state_dict

    options = parse_options(DepthOptions, arguments("depth", data, tmp_path / "a", "--attn_implementation", "eager"))
    expected = build_model(options).state_dict()
    monkeypatch.setattr("transformers.modeling_utils.is_deepspeed_zero3_enabled", lambda: True)
    model = build_model(options)
    assert model.dtype == torch.float32 and model.config._attn_implementation == "eager"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    torch.save({"state_dict": to_original_state_dict(model), "meta": {}}, tmp_path / "depth.pth")
    loaded = sapiens_hf.SapiensForDepthEstimation.from_pretrained(
        tmp_path / "depth.pth", dtype=torch.bfloat16, num_attention_heads=2
    )
    assert loaded.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32


def test_sizes_and_overrides(data, tmp_path):
    line = ["--train_data", "x", "--output_dir", "y", "--model_size", "tiny"]
    model = build_model(
        parse_options(
            PoseOptions,
            [*line, "--config_overrides", "hidden_size=80", "num_hidden_layers=1", "--keypoint_loss_top_k", "9"],
        ),
        keypoint_layout(17),
    )
    assert (
        model.config.hidden_size == 80
        and model.config.image_size == [256, 192]
        and model.config.keypoint_loss_top_k == 9
    )
    assert model.config.patch_embeddings_padding == 2 and model.config.flip_pairs == [
        list(p) for p in keypoint_layout(17).flip_pairs
    ]
    assert build_model(parse_options(DepthOptions, line)).config.deconv_out_channels == [64, 48, 32, 16]
    with pytest.raises(ValueError, match="unknown name 'hiden_size'. Did you mean 'hidden_size'"):
        build_model(parse_options(DepthOptions, [*line, "--config_overrides", "hiden_size=3"]))
    with pytest.raises(ValueError, match="unknown model size '1.b'. Did you mean '1b'"):
        train("depth", data, tmp_path / "never", "--model_size", "1.b")
    assert not (tmp_path / "never").exists()


def test_loaded_models_take_the_tasks_settings(runs, data, tmp_path):
    source = runs("segmentation")[0]
    weights = {"names": list(CLASSES), "class_weights": [1, 2, 2, 1, 1, 1, 3]}
    (tmp_path / "l.json").write_text(json.dumps(weights))
    line = [
        "--train_data",
        "x",
        "--output_dir",
        "y",
        "--model_name_or_path",
        str(source),
        "--config_overrides",
        "head_dropout2d_prob=0.2",
    ]
    model = build_model(parse_options(SegmentationOptions, line), class_layout(tmp_path / "l.json"))
    assert model.config.semantic_loss_class_weights[6] == 3 and model.config.head_dropout2d_prob == 0.2
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout2d)} == {0.2}
    processor = build_processor(
        parse_options(PoseOptions, [*line[:4], "--model_name_or_path", str(runs("pose")[0])]), model
    )
    assert processor.keypoint_heatmap_sigma == 2


def test_processor_of_a_repository(runs, data, tmp_path, monkeypatch):
    options = ["--train_data", "x", "--output_dir", "y", "--model_name_or_path", "tester/pose"]
    folder = runs("pose")[0]
    with LoopbackHub() as hub:
        hub.patch(monkeypatch, tmp_path)
        for name, sigma in (("with", 2), ("without", 6)):
            kept = ("config.json", "model.safetensors", *["preprocessor_config.json"] * (name == "with"))
            hub.add(f"tester/{name}", {file: (folder / file).read_bytes() for file in kept})
            chosen = parse_options(PoseOptions, [*options[:5], f"tester/{name}"])
            model = build_model(chosen, keypoint_layout(data / "keypoints.layout.json"))
            assert build_processor(chosen, model).keypoint_heatmap_sigma == sigma


def test_class_sets_of_the_original_have_its_padding():
    line = ["--train_data", "x", "--output_dir", "y", "--model_size", "tiny"]
    for name, padding in (("goliath28", 0), ("lip20", 2), ("cihp20", 2), ("face_synthetics19", 0)):
        options = parse_options(SegmentationOptions, [*line, "--class_set", name])
        assert build_model(options, class_layout(name)).config.patch_embeddings_padding == padding
    fine = ["--config_overrides", "patch_size=4", "image_size=[32, 24]"]
    options = parse_options(PoseOptions, [*line, *fine])
    assert build_model(options, keypoint_layout(17)).config.patch_embeddings_padding == 0


@pytest.mark.parametrize("count, expected", [(1, 1), (3, 1), (8, 2), (17, 4), (133, 8), (308, 8)])
def test_crops_need_a_share_of_the_keypoints(count, expected, tmp_path):
    from training.jobs import min_visible_of

    (tmp_path / "p.json").write_text(json.dumps({"names": [f"point_{i}" for i in range(count)]}))
    layout = keypoint_layout(tmp_path / "p.json")
    line = ["--train_data", "x", "--output_dir", "y"]
    assert min_visible_of(parse_options(PoseOptions, line), layout) == expected
    assert min_visible_of(parse_options(PoseOptions, [*line, "--no_augment"]), layout) == 0
    assert min_visible_of(parse_options(PoseOptions, [*line, "--min_visible", "1"]), layout) == 1
    with pytest.raises(ValueError, match=f"--min_visible is {count + 1}, but the model has {count} keypoints"):
        min_visible_of(parse_options(PoseOptions, [*line, "--min_visible", str(count + 1)]), layout)


def test_streams_train(data, tmp_path):
    import datasets

    (tmp_path / "t").mkdir()
    rows = {
        "image": [Image.fromarray(person(i)["image"]) for i in range(8)],
        "depth": [Image.fromarray(person(i)["depth"]) for i in range(8)],
    }
    table = (
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column("depth", datasets.Image())
    )
    table.to_parquet(tmp_path / "t" / "train.parquet")
    line = arguments("depth", tmp_path / "t", tmp_path / "run", "--streaming", steps=3)
    main = importlib.import_module("training.finetune_depth").main
    with pytest.raises(ValueError, match="--samples_per_epoch"):
        main(line)
    main([*line, "--samples_per_epoch", "8", "--resume_from_checkpoint", "latest"])
    assert len(losses(tmp_path / "run")) == 3
    with pytest.raises(ValueError, match="cannot be a stream"):
        from training import jobs

        real = jobs.open_samples
        try:
            jobs.open_samples = lambda *given, **more: real(*given, **{**more, "streaming": True})
            main(
                arguments(
                    "depth", tmp_path / "t", tmp_path / "c", "--val_data", str(tmp_path / "t"), "--val_split", "train"
                )
            )
        finally:
            jobs.open_samples = real


def test_augmentation_can_be_changed(data, tmp_path):
    from training.jobs import make_augment

    line = arguments("segmentation", data, tmp_path, "--augmentation", "zoom=[0.5,0.6]", "rotate_prob=0")
    augment = make_augment(
        parse_options(SegmentationOptions, line), (64, 48), class_layout(data / "classes.layout.json")
    )
    assert augment.keywords["options"].zoom == (0.5, 0.6) and augment.keywords["swap_pairs"] == ((1, 2),)
    with pytest.raises(ValueError, match="unknown name 'zooms'. Did you mean 'zoom'"):
        make_augment(
            parse_options(DepthOptions, arguments("depth", data, tmp_path, "--augmentation", "zooms=1")),
            (64, 48),
            None,
        )


# ---------------------------------------------------------------------------------------------------------- options
def test_later_options_win(tmp_path):
    base = ["--train_data", "a", "--output_dir", "b"]
    assert parse_options(PoseOptions, base).layer_decay_rate == 0.85
    chosen = parse_options(PoseOptions, [*base, "--recipe", "pose-goliath-1b"])
    assert (chosen.layer_decay_rate, chosen.learning_rate, chosen.keypoint_loss_top_k) == (0.95, 5e-5, 128)
    assert chosen.keypoint_set == "goliath" and chosen.min_visible == 8 and chosen.milestones == [170, 200]
    (tmp_path / "o.json").write_text(
        json.dumps({"recipe": "pose-goliath-1b", "learning_rate": 1e-3, "train_data": "c", "output_dir": "d"})
    )
    chosen = parse_options(PoseOptions, [str(tmp_path / "o.json")])
    assert (chosen.layer_decay_rate, chosen.learning_rate, chosen.train_data) == (0.95, 1e-3, "c")
    chosen = parse_options(
        PoseOptions, [str(tmp_path / "o.json"), "--learning_rate", "2e-3", "--recipe", "pose-coco-1b"]
    )
    assert (chosen.layer_decay_rate, chosen.learning_rate, chosen.task) == (0.85, 2e-3, "pose")
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.seed = 3


def test_a_run_can_be_repeated_from_its_run_json(runs, tmp_path):
    folder, _ = runs("depth")
    main = importlib.import_module("training.finetune_depth").main
    main([str(folder / "run.json"), "--output_dir", str(tmp_path / "again"), "--max_steps", "3", "--val_data", ""])
    assert losses(tmp_path / "again") == losses(folder)[:3]


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "--train_data and --output_dir are needed"),
        (["--train_data", "a", "--output_dir", "b", "--image_size", "64"], "height and width"),
        (["--train_data", "a", "--output_dir", "b", "--schedule", "cosinus"], "Did you mean 'cosine'"),
        (
            ["--train_data", "a", "--output_dir", "b", "--learnig_rate", "1"],
            "'--learnig_rate'. Did you mean '--learning_r",
        ),
        (["--train_data", "a", "--output_dir", "b", "--batch_size", "0"], "--batch_size is 0"),
        (["--train_data", "a", "--output_dir", "b", "--mixed_precision", "half"], "no, fp16 or bf16"),
        (
            ["--train_data", "a", "--output_dir", "b", "--recipe", "depth-render_people-1bb"],
            "Did you mean 'depth-render_people-1b'",
        ),
        (["nowhere.json"], "no options file"),
    ],
)
def test_options_that_cannot_work(more, message):
    with pytest.raises(ValueError, match=message):
        parse_options(DepthOptions, more)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--max_steps", "0"], "--max_steps is 0; expected at least 1"),
        (["--max_train_samples", "-1"], "--max_train_samples is -1"),
        (["--max_eval_samples", "0"], "--max_eval_samples is 0"),
        (["--learning_rate", "-1"], "--learning_rate is -1.0; expected a number, not below 0"),
        (["--lora_r", "2", "--freeze_layers", "-1"], "leaves no block for the adapters"),
        (["--max_grad_norm", "-1"], "--max_grad_norm is -1.0; expected 0 or more"),
        (["--warmup_steps", "-1"], "--warmup_steps is -1; expected 0 or more"),
    ],
)
def test_numbers_that_cannot_work(more, message):
    with pytest.raises(ValueError, match=message):
        parse_options(DepthOptions, ["--train_data", "a", "--output_dir", "b", *more])


def test_a_run_does_not_overwrite_its_model(tmp_path):
    line = ["--train_data", "a", "--output_dir", str(tmp_path / "x" / ".."), "--model_name_or_path", str(tmp_path)]
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="which the run would overwrite"):
        parse_options(DepthOptions, line)


@pytest.mark.parametrize(
    "change, expected",
    [
        ("zoom=5", r"\[0.2, 2.0\]"),
        ("zoom=[1]", "zoom"),
        ("rotate_prob=yes", "0.5"),
        ("color=1", "true"),
        ("flip_prob=null", "0.5"),
    ],
)
def test_augmentation_of_another_kind_is_refused(change, expected):
    from training.jobs import make_augment

    line = ["--train_data", "a", "--output_dir", "b", "--augmentation", change]
    with pytest.raises(ValueError, match=f"--augmentation {change.split('=')[0]} is .*; expected something like .*"):
        make_augment(parse_options(DepthOptions, line), (64, 48), None)
    with pytest.raises(ValueError, match=expected):
        make_augment(parse_options(DepthOptions, line), (64, 48), None)


def test_adapters_leave_frozen_blocks_alone():
    line = ["--train_data", "x", "--output_dir", "y", "--model_size", "tiny", "--lora_r", "2", "--freeze_layers", "2"]
    model = build_model(parse_options(DepthOptions, line))
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    assert any("encoder.layers.2." in name for name in trained)
    assert not any(f"encoder.layers.{number}." in name for name in trained for number in (0, 1))


def test_adapters_need_a_block_that_trains():
    line = ["--train_data", "x", "--output_dir", "y", "--model_size", "tiny", "--lora_r", "2", "--freeze_layers", "6"]
    with pytest.raises(ValueError, match="--freeze_layers 6 leaves none of 6 blocks for the adapters"):
        build_model(parse_options(DepthOptions, line))


@pytest.mark.parametrize("task, key", [("pose", "keypoint_set"), ("segmentation", "class_set")])
def test_sides_without_a_partner_are_not_mirrored(data, tmp_path, task, key):
    name = {"pose": "keypoints", "segmentation": "classes"}[task]
    labels = json.loads((data / f"{name}.layout.json").read_text())
    labels["names"] = [name.replace("right_hand", "tail").replace("Right_Arm", "Tail") for name in labels["names"]]
    (tmp_path / "own.json").write_text(json.dumps(labels))
    own = [f"--{key}", str(tmp_path / "own.json")]
    with pytest.raises(ValueError, match="'[lL]eft_(hand|Arm)' of own have a side but no partner"):
        train(task, data, tmp_path / "run", *own)
    train(task, data, tmp_path / "run", *own, "--augmentation", "flip_prob=0", steps=1)


def test_heatmaps_of_the_processor_are_those_of_the_head():
    line = ["--train_data", "x", "--output_dir", "y", "--model_size", "tiny", "--image_size", "64", "48"]
    for fields, factor in (
        (["patch_size=8", "deconv_out_channels=[16]", "deconv_kernel_sizes=[4]"], 4),
        (["patch_size=8", "deconv_out_channels=[16, 16]", "deconv_kernel_sizes=[4, 4]"], 2),
    ):
        options = parse_options(PoseOptions, [*line, "--config_overrides", *fields])
        model = build_model(options, keypoint_layout(17))
        assert build_processor(options, model).keypoint_heatmap_downscale_factor == factor
        heatmaps = model(torch.zeros(1, 3, 64, 48)).heatmaps
        assert heatmaps.shape[-2:] == (64 // factor, 48 // factor)
    fields = ["patch_size=2", "deconv_out_channels=[16, 16]", "deconv_kernel_sizes=[4, 4]"]
    options = parse_options(PoseOptions, [*line, "--config_overrides", *fields])
    with pytest.raises(ValueError, match="make heatmaps larger than the input"):
        build_processor(options, build_model(options, keypoint_layout(17)))


def test_unknown_keys_of_a_file_are_named(tmp_path):
    (tmp_path / "o.json").write_text(json.dumps({"learning_rat": 1}))
    with pytest.raises(ValueError, match="unknown option 'learning_rat'. Did you mean 'learning_rate'"):
        parse_options(DepthOptions, [str(tmp_path / "o.json")])


def test_values():
    values = parse_values(["a=1", "b=[1,2]", "c=None", "d=text"], "abcd", "--x")
    assert values == {"a": 1, "b": [1, 2], "c": None, "d": "text"}
    with pytest.raises(ValueError, match="--x takes name=VALUE"):
        parse_values(["a"], "a", "--x")


# ---------------------------------------------------------------------------------------------------------- recipes
def test_recipes_are_the_originals():
    assert len(RECIPES) == 41 and all(name == made.name for name, made in RECIPES.items())
    table = {  # specification of pose, 4.5
        "coco": (0.85, 0.85, 0.85, 0.85),
        "coco_wholebody": (0.75, 0.75, 0.85, 0.85),
        "goliath": (0.85, 0.85, 0.95, 0.85),
    }
    for label_set, rates in table.items():
        for size, rate in zip(("0.3b", "0.6b", "1b", "2b"), rates):
            made = recipe(f"pose-{label_set}-{size}", "pose")
            assert made.layer_decay_rate == rate and made.learning_rate == (5e-5 if label_set == "goliath" else 5e-4)
            assert (made.num_epochs, made.milestones, made.warmup_steps) == (210, (170, 200), 500)
            assert made.keypoint_loss_top_k == (128 if label_set == "goliath" and size in ("0.3b", "1b") else None)
            assert (made.lr_base_batch == 512) == (label_set == "coco_wholebody" and size == "1b")
            assert made.min_visible == (4 if label_set == "coco" else 8)
    lip = recipe("segmentation-lip20-2b")
    assert (
        lip.schedule == "cosine"
        and lip.num_epochs == 400
        and lip.options()["augmentation"] == ["background_prob=0.0", "zoom=[0.75, 1.25]"]
    )
    assert recipe("segmentation-cihp20-1b").schedule == "poly" and recipe("normal-general-0.3b").augmentation == {
        "background_prob": 0.0
    }
    assert lip.pretrained == "facebook/sapiens-pretrain-2b" and lip.options()["class_set"] == "lip20"
    with pytest.raises(ValueError, match="no depth recipe 'pose-coco-1b'"):
        recipe("pose-coco-1b", "depth")


def test_every_recipe_makes_options():
    from training.options import NormalOptions

    kinds = {"pose": PoseOptions, "segmentation": SegmentationOptions, "depth": DepthOptions, "normal": NormalOptions}
    for name, made in RECIPES.items():
        options = parse_options(kinds[made.task], ["--train_data", "a", "--output_dir", "b", "--recipe", name])
        assert options.model_size == made.size and options.schedule == made.schedule


def test_scaled_learning_rates_are_used(data, tmp_path):
    train("pose", data, tmp_path, "--lr_base_batch", "8", "--warmup_steps", "0", steps=1)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["learning_rate"] == pytest.approx(2e-3 * 4 / 8)


# ------------------------------------------------------------------------------------------------ around the run
def test_trackers(data, tmp_path):
    train("depth", data, tmp_path, "--report_to", "tensorboard", steps=2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (path for path in (tmp_path / "trackers").rglob("events*") if b"images_per_s" in path.read_bytes())
    loaded = EventAccumulator(str(events)).Reload()
    assert [event.step for event in loaded.Scalars("loss")] == [1, 2]
    assert loaded.Scalars("loss")[1].value == pytest.approx(losses(tmp_path)[1])


def test_trackio(data, tmp_path):
    """In a process of its own: trackio reads its folder when it is imported, and starts a server on this machine."""
    line = [sys.executable, str(ROOT / "training" / "finetune_depth.py"), *arguments("depth", data, tmp_path, steps=2)]
    settings = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*line, "--report_to", "trackio"], env={**os.environ, **settings}, check=True, capture_output=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "sapiens_hf.db")) as stored:
        rows = stored.execute("select step, metrics from metrics order by step").fetchall()
    logged = {step: json.loads(values) for step, values in rows if "loss" in json.loads(values)}
    assert [logged[step]["loss"] for step in (1, 2)] == pytest.approx(losses(tmp_path))


def test_upload(runs, monkeypatch, data, tmp_path):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return type("Repo", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    train("normal", data, tmp_path / "mine", "--push_to_hub", "--hub_private", steps=1)
    assert calls[0] == ("mine", {"private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "me/mine" and "checkpoints/*" in calls[1]["ignore_patterns"]
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "pipeline_tag: normal-estimation" in card and "| loss |" in card and "me/mine" in card
    assert str(tmp_path) not in card


def test_launch_configurations():
    """They name what exists, and Accelerate reads them."""
    from accelerate.commands.config.config_args import load_config_from_file

    folder = ROOT / "training" / "configs"
    names = {path.stem for path in folder.iterdir()}
    assert names == {"cpu", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"}
    for name in names:
        read = load_config_from_file(str(folder / f"{name}.yaml"))
        assert read.num_machines == 1
        given = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert given["use_cpu"] == (name == "cpu")
    wrapped = yaml.safe_load((folder / "fsdp2.yaml").read_text())["fsdp_config"]
    assert wrapped["fsdp_version"] == 2
    from sapiens_hf import modeling_sapiens

    assert hasattr(modeling_sapiens, wrapped["fsdp_transformer_layer_cls_to_wrap"])


@pytest.mark.parametrize("task", TASKS)
def test_scripts_show_their_options(task, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"training.finetune_{task}").main(["--help"])
    text = capsys.readouterr().out
    assert (
        stopped.value.code == 0 and "--resume_from_checkpoint" in text and ("--flip_test" in text) == (task == "pose")
    )


def test_the_code_is_described_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    described = describe_code()
    assert described["commit"] is None and described["changed_files"] == [] and "sapiens_hf" in described["versions"]


# ------------------------------------------------------------------------------------------------------ wrong axes
def test_normals_in_another_order_stop_at_the_start(tmp_path):
    people = ROOT / "examples" / "people"
    train_normal = importlib.import_module("training.finetune_normal").main
    for folder in ("images", "masks"):
        shutil.copytree(people / folder, tmp_path / "turned" / folder)
    (tmp_path / "turned" / "normals").mkdir()
    for path in (people / "normals").glob("*.npy"):
        np.save(tmp_path / "turned" / "normals" / path.name, np.load(path)[..., ::-1])
    heads = ["deconv_out_channels=[8]", "deconv_kernel_sizes=[4]", "conv_out_channels=[]", "conv_kernel_sizes=[]"]
    line = ["--output_dir", str(tmp_path / "run"), "--model_size", "tiny", "--max_steps", "1", "--batch_size", "2"]
    line += ["--image_size", "64", "48", "--num_workers", "0", "--config_overrides", *heads, "--train_data"]
    with pytest.raises(
        ValueError, match=r"components look like \(z, y, x\), expected \(x, y, z\), in \d samples: .*000000.png"
    ):
        train_normal([*line, str(tmp_path / "turned")])
    assert "loss" in train_normal([*line, str(tmp_path / "turned"), "--skip_bad_samples", "true"])

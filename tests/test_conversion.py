"""`python -m conversion`: the folder it writes, the parity it checks, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import original_files as files
import pytest
import torch
from original_files import NARROW, random_state
from safetensors.torch import load_file, save_file

import sapiens_hf
from conversion import convert as convert_module
from conversion import recipes, verify
from conversion.__main__ import main
from conversion.convert import convert
from sapiens_hf.configuration_sapiens import SIZES, TASKS
from sapiens_hf.hub import check_repository, file_sha256
from sapiens_hf.model_card import TASK_CARDS
from sapiens_hf.original import load_original

TASK_CLASS = {
    "pose": sapiens_hf.SapiensForPoseEstimation,
    "depth": sapiens_hf.SapiensForDepthEstimation,
    "encoder": sapiens_hf.SapiensModel,
    "pretraining": sapiens_hf.SapiensForPreTraining,
}


@pytest.mark.parametrize("task", TASK_CLASS)
def test_convert_and_load_back(task, tmp_path):
    spec = NARROW[task]
    path = files.write_pth(tmp_path / "a.pth", spec, state=random_state(spec, seed=1))
    folder = convert(path, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "LICENSE.md",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    ours, again = load_original(path), TASK_CLASS[task].from_pretrained(folder)
    assert ours.state_dict().keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    processor = sapiens_hf.SapiensImageProcessor.from_pretrained(folder)
    assert (processor.size["height"], processor.size["width"]) == spec.image_size
    assert "CC BY-NC 4.0" in (folder / "LICENSE.md").read_text()
    assert "a.pth" in (folder / "LICENSE.md").read_text()
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\n") and "\nlicense: cc-by-nc-4.0\n" in readme
    assert TASK_CARDS[task].auto_class in readme and f"`{TASK_CARDS[task].shape}` (" in readme
    assert file_sha256(path) in readme and "Not trained" not in readme
    assert str(tmp_path) not in readme + (folder / "LICENSE.md").read_text()
    assert check_repository(folder)["pipeline_tag"] == TASK_CARDS[task].pipeline_tag


def test_a_released_name_is_credited(tmp_path):
    path = files.write_pth(tmp_path / "sapiens_0.3b_render_people_epoch_100.pth", NARROW["depth"])
    readme = (convert(path, tmp_path / "out") / "README.md").read_text()
    assert "base_model: facebook/sapiens-depth-0.3b\n" in readme and "# Sapiens 0.3b: relative depth" in readme
    assert "(https://huggingface.co/facebook/sapiens-depth-0.3b)" in readme
    assert "| file | `sapiens_0.3b_render_people_epoch_100.pth` |" in readme and "revision" not in readme
    licence = (tmp_path / "out" / "LICENSE.md").read_text()
    assert "sapiens_0.3b_render_people_epoch_100.pth of facebook/sapiens-depth-0.3b" in licence
    with pytest.raises(ValueError, match="license='mit' does not fit"):
        convert(path, tmp_path / "other", license="mit")
    assert not (tmp_path / "other").exists()


def test_a_file_of_the_download_cache_has_a_commit(tmp_path):
    folder = tmp_path / "snapshots" / ("0f" * 20)
    folder.mkdir(parents=True)
    path = files.write_pth(folder / "sapiens_0.3b_render_people_epoch_100.pth", NARROW["depth"])
    assert f"| revision | `{'0f' * 20}` |" in (convert(path, tmp_path / "out") / "README.md").read_text()


def test_a_file_of_a_space_names_no_base_model(tmp_path):
    (recipe,) = (recipe for recipe in recipes.RECIPES if recipe.repo_type == "space")
    path = files.write_torchscript(tmp_path / Path(recipe.file).name, NARROW["segmentation"])
    given = dict(num_attention_heads=NARROW["segmentation"].heads, image_size=NARROW["segmentation"].image_size)
    readme = (convert(path, tmp_path / "out", **given) / "README.md").read_text()
    assert "base_model" not in readme and f"https://huggingface.co/spaces/{recipe.repo}" in readme


def test_weights_of_ones_own_have_their_own_licence(tmp_path):
    path = files.write_pth(tmp_path / "mine.pth", NARROW["depth"])
    assert "was not found out" in (convert(path, tmp_path / "first") / "LICENSE.md").read_text()
    folder = convert(path, tmp_path / "second", license="cc-by-4.0")
    assert check_repository(folder)["license"] == "cc-by-4.0"
    assert "Meta" not in (folder / "LICENSE.md").read_text()
    with pytest.raises(ValueError, match="Did you mean 'cc-by-4.0'"):
        convert(path, tmp_path / "third", license="cc-by-4")


def test_convert_options(tmp_path):
    spec = NARROW["encoder"]
    path = files.write_clean_pth(tmp_path / "a_clean.pth", spec)
    more = dict(num_attention_heads=3, deconv_out_channels=[6], conv_out_channels=[5])
    folder = convert(path, tmp_path / "out", task="pose", dtype="bfloat16", num_labels=17, **more)
    model = sapiens_hf.SapiensForPoseEstimation.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    readme = (folder / "README.md").read_text()
    assert "## Not trained" in readme and "`head.final_conv.weight`" in readme and "`head.deconv_layers.0" in readme
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 64, "width": 48}
    assert all(c.passed for c in verify.verify(folder, path))


def test_convert_never_overwrites_unasked(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["depth"])
    (tmp_path / "out").mkdir()
    convert(path, tmp_path / "out")  # an empty folder is fine
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(path, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(path, tmp_path / "a.pth")
    convert(path, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_convert_saves_nothing_when_a_weight_differs(tmp_path, monkeypatch):
    path = files.write_pth(tmp_path / "a.pth", NARROW["depth"])

    def altered(*args, **kwargs):
        model, loading = load_original(*args, **kwargs)
        model.model.encoder.layers[0].attention.v_proj.weight.data[0, 0] += 1e-3
        return model, loading

    monkeypatch.setattr(convert_module, "load_original", altered)
    with pytest.raises(ValueError, match="differ from the file by up to 0.001"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- verify
@pytest.mark.parametrize("task", NARROW)
def test_verify_a_checkpoint(task, tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW[task], state=random_state(NARROW[task], seed=2))
    rows = verify.verify(path)
    last = {"encoder": "features", "pretraining": "predicted patches"}.get(task, "head")
    assert [row.name for row in rows][1:] == (["features", last] if last != "features" else ["features"])
    assert (
        rows[0].name
        == f"{len(files.state_shapes(NARROW[task]))} of {len(files.state_shapes(NARROW[task]))} stored tensors"
    )
    assert rows[0].difference == 0
    assert all(row.passed and row.magnitude > 0.1 for row in rows)


def test_the_reference_equals_the_network_as_modules():
    """Two renderings of the original, both from its description: functions in conversion/, modules in the tests."""
    for task in ("pose", "segmentation", "depth", "normal", "encoder"):
        spec = replace(NARROW[task], image_size=(64, 96))
        state, pixels = random_state(spec, seed=3), torch.randn(2, 3, 64, 96)
        ours = verify.original_outputs(state, pixels, num_attention_heads=spec.heads, patch_padding=spec.padding)
        net = files.OriginalNet(spec, state)
        with torch.no_grad():
            features = net.backbone(pixels).flatten(2).mT
            torch.testing.assert_close(ours["features"][:, int(spec.has_token) :], features, rtol=1e-5, atol=1e-5)
            if spec.head_prefix:
                torch.testing.assert_close(ours["output"], net(pixels), rtol=1e-5, atol=2e-5)


def test_verify_kernels_of_size_2_and_3(tmp_path):
    spec = NARROW["pose"]
    state = random_state(spec)
    state["head.deconv_layers.0.weight"] = state["head.deconv_layers.0.weight"][..., :3, :3].clone()
    state["head.deconv_layers.3.weight"] = state["head.deconv_layers.3.weight"][..., :2, :2].clone()
    state["head.conv_layers.0.weight"] = torch.randn(9, 10, 3, 3) * 0.2
    path = files.write_pth(tmp_path / "a.pth", spec, state=state)
    config = load_original(path).config
    assert (config.deconv_kernel_sizes, config.conv_kernel_sizes) == ([3, 2], [3, 1])
    assert all(row.passed for row in verify.verify(path))


@pytest.mark.parametrize("what", ["padding", "weight", "heads"])
def test_verify_finds_a_wrong_conversion(what, tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["pose"])
    folder = convert(path, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    if what == "weight":
        weights = load_file(folder / "model.safetensors")
        weights["model.encoder.layers.1.mlp.fc2.weight"][0, 0] += 1e-4
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert not verify.verify(folder, path)[0].passed
        return
    if what == "padding":  # same shapes, other outputs: only a forward pass can tell
        config["patch_embeddings_padding"] = 0
    else:
        config["num_attention_heads"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    model = sapiens_hf.SapiensForPoseEstimation.from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, 96, 64)
    theirs = verify.original_outputs(random_state(NARROW["pose"]), pixels, num_attention_heads=3, patch_padding=2)[
        "output"
    ]
    assert (model.predict_maps(pixels)[0] - theirs).abs().max() > 100 * verify.HEAD_TOLERANCE
    if what == "heads":
        with pytest.raises(ValueError, match="3 attention heads according to its configuration text, not 4"):
            verify.verify(folder, path)
    else:
        weights, features, head = verify.verify(folder, path)
        assert weights.passed
        assert not features.passed
        assert not head.passed


def test_verify_asks_for_the_source_and_names_foreign_files(tmp_path):
    path = files.write_pth(tmp_path / "a.pth", NARROW["depth"])
    folder = convert(path, tmp_path / "out")
    with pytest.raises(ValueError, match="pass source="):
        verify.verify(folder)
    other = files.write_pth(tmp_path / "b.pth", NARROW["pose"])
    with pytest.raises(ValueError, match=r"b.pth has no .* but the model has"):
        verify.verify(folder, other)
    row = verify.Comparison("x", 3e-5, 2.0, 1e-5)
    assert not row.passed
    assert verify.Comparison("x", 3e-5, 4.0, 1e-5).passed
    assert "DIFFERENT" in verify.verdict_table([row])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        verify._difference("x", torch.ones(2), torch.ones(3), 1.0)


# ------------------------------------------------------------------------------------------------------------ recipes
def test_recipes_agree_with_the_tasks():
    """The published padding of each task is the recipe of each row; sizes and counts are those of the networks."""
    assert len(recipes.RECIPES) == 73
    assert len({(recipe.repo, recipe.file) for recipe in recipes.RECIPES}) == 73
    for recipe in recipes.RECIPES:
        if recipe.task == "detector":
            assert recipe.licence == "apache-2.0"
            continue
        assert recipe.licence == "cc-by-nc-4.0"
        assert recipe.size in SIZES
        assert recipe.file.endswith(".pth" if recipe.format == "pth" else ".pt2")
        if "foreground" in recipe.file:
            assert recipe.patch_embeddings_padding is None
        else:
            assert recipe.patch_embeddings_padding == TASKS[recipe.task].get("patch_embeddings_padding", 0)
        assert recipe.num_labels in {"pose": (17, 133, 308), "segmentation": (28, None)}.get(recipe.task, (None, 1, 3))
        assert recipe.task != "encoder" or recipe.file.endswith("_clean.pth")


@pytest.mark.parametrize(
    ("repo", "file", "former"),
    [
        ("facebook/sapiens-pretrain-1b", "sapiens_1b_epoch_173_clean.pth", None),
        ("facebook/sapiens-pretrain-2b-torchscript", "sapiens_2b_epoch_660_torchscript.pt2", None),
        ("facebook/sapiens-pose-1b", "sapiens_1b_goliath_best_goliath_AP_639.pth", "AP_640.pth"),
        ("facebook/sapiens-pose-0.6b-bfloat16", "sapiens_0.6b_goliath_best_goliath_AP_609_bfloat16.pt2", "AP_600_bf"),
        ("facebook/sapiens-seg-0.3b", "sapiens_0.3b_goliath_best_goliath_mIoU_7673_epoch_194.pth", None),
        ("facebook/sapiens-depth-2b", "sapiens_2b_render_people_epoch_25.pth", None),
        ("facebook/sapiens-normal-0.6b", "sapiens_0.6b_normal_render_people_epoch_200.pth", None),
    ],
)
def test_rows_of_the_original_documents(repo, file, former):
    (recipe,) = (recipe for recipe in recipes.RECIPES if recipe.repo == repo)
    assert recipe.file == file
    assert (former is None) == (not recipe.former_files)
    assert former is None or former in recipe.former_files[0]


def test_list_recipes():
    rows = recipes.list_recipes("pose", "2b")
    assert {row.num_labels for row in rows} == {17, 133}
    with pytest.raises(ValueError, match="No released checkpoint has task 'poses'"):
        recipes.list_recipes("poses")
    lines = recipes.recipe_table(rows).splitlines()
    assert lines[0].split()[:3] == ["repository", "file", "task"]
    assert len(lines) == 1 + len(rows)
    assert "82.2 AP on COCO val2017" in lines[1]
    assert "in the file" in recipes.recipe_table(recipes.list_recipes("segmentation"))


# -------------------------------------------------------------------------------------------------------- command line
def test_command_line(tmp_path, capsys):
    spec = NARROW["normal"]
    path = files.write_pth(tmp_path / "a.pth", spec, config=False)
    given = ["--num-attention-heads", str(spec.heads), "--image-size", "96", "64"]
    out = str(tmp_path / "out")
    assert main(["convert", str(path), "--output", out, "--dtype", "bfloat16", *given]) == 0
    assert "weights equal to the file" in capsys.readouterr().out
    assert main(["verify", out, "--source", str(path)]) == 0
    assert capsys.readouterr().out.count("equal") == 3
    assert main(["verify", str(path), *given, "--patch-embeddings-padding", "2"]) == 0
    assert main(["convert", str(path), "--output", out, *given]) == 2
    assert "pass --overwrite, or another output" in capsys.readouterr().err
    assert main(["convert", str(path), "--output", out, *given, "--overwrite", "--license", "mit"]) == 0
    assert check_repository(out)["license"] == "mit"
    assert main(["convert", str(path), "--output", str(tmp_path / "other")]) == 2
    assert "Pass --num-attention-heads (a divisor of 40)" in capsys.readouterr().err
    assert main(["list", "--task", "depth", "--size", "0.3b"]) == 0
    assert capsys.readouterr().out.count("facebook/sapiens-depth-0.3b") == 3
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["head.final_conv.bias"] += 1
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", out, "--source", str(path)]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_errors_of_the_command_line_name_its_options(tmp_path, capsys):
    def error(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    folder = tmp_path / "overwrite=True"  # a name is not an argument
    folder.mkdir()
    spec = NARROW["pose"]
    path = files.write_pth(folder / "a.pth", spec, config=False)
    to = ["--output", tmp_path / "out"]
    heads = ["--num-attention-heads", spec.heads]
    assert "Pass --image-size HEIGHT WIDTH of the training" in error("convert", path, *to, *heads)
    message = error("convert", path, *to, *heads, "--image-size", 64, 48)
    assert "and --image-size 64 48 would need another number" in message
    assert "overwrite=True" in message.partition("/a.pth")[0]
    told = files.write_pth(tmp_path / "told.pth", spec)
    assert "not 4: leave --num-attention-heads out" in error("convert", told, *to, "--num-attention-heads", 4)
    assert "or --task pose; to train" in error("convert", told, *to, "--task", "depth")
    files.write_pth(folder / "b.pth", spec)
    assert "choose one with --filename: ['a.pth', 'b.pth']" in error("convert", folder, *to)
    convert(told, tmp_path / "out")
    assert "pass --source, the checkpoint" in error("verify", tmp_path / "out")

"""Where checkpoints are found: files, folders, and repositories of a Hub on the loopback interface."""

import functools
import http.server
import logging
import threading
from dataclasses import replace

import original_files as files
import pytest
from original_files import NARROW

import sapiens_hf
from sapiens_hf import original_sources
from sapiens_hf.original import is_original_source, load_original, suggest_source


def test_is_original_source(tmp_path):
    spec = NARROW["depth"]
    pth = files.write_pth(tmp_path / "a.pth", spec)
    assert is_original_source(pth)
    assert is_original_source(str(pth))
    assert is_original_source(tmp_path)
    assert is_original_source(files.write_safetensors(tmp_path / "b.safetensors", spec))
    folder = tmp_path / "converted"
    load_original(pth).save_pretrained(folder)
    assert not is_original_source(folder)
    assert not is_original_source(folder / "model.safetensors")
    (tmp_path / "empty").mkdir()
    assert not is_original_source(tmp_path / "empty")
    assert is_original_source("missing.pth")  # so that load_original explains
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"123")
    assert is_original_source(broken)
    assert is_original_source("facebook/sapiens-pose-1b")
    assert is_original_source("facebook/sapiens-seg-foreground-1b-torchscript")
    assert not is_original_source("someone/sapiens-pose-1b")
    assert not is_original_source(None)
    assert not is_original_source({"a": 1})


@pytest.mark.parametrize("source", [None, "", "  ", 3])
def test_no_source(source, tmp_path, monkeypatch):
    files.write_pth(tmp_path / "a.pth", NARROW["depth"])
    monkeypatch.chdir(tmp_path)  # an empty name is not the working folder
    with pytest.raises(
        ValueError, match=r"Expected a checkpoint file .*'facebook/sapiens-pose-1b'; got " + repr(source)
    ):
        load_original(source)
    if isinstance(source, str):
        with pytest.raises(ValueError, match="Expected a checkpoint file"):
            sapiens_hf.SapiensForDepthEstimation.from_pretrained(source)


@pytest.mark.parametrize(
    ("source", "meant", "is_ours"),
    [
        ("facebook/sapiens-pose-1B", "facebook/sapiens-pose-1b", True),
        ("Facebook/Sapiens-Pose-1b", "facebook/sapiens-pose-1b", True),
        ("facebook/sapiens-dept-0.3b", "facebook/sapiens-depth-0.3b", True),
        ("facebook/sapiens-segmentation-0.6b", "facebook/sapiens-seg-0.6b", True),
        ("facebook/sapiens-normal-2b_torchscript", "facebook/sapiens-normal-2b-torchscript", True),
        ("noahcao/sapiens-pose-coc", "noahcao/sapiens-pose-coco", True),
        ("facebok/sapiens-pose-1b", "facebook/sapiens-pose-1b", False),
        ("someone/sapiens-pose-1b", "facebook/sapiens-pose-1b", False),
        ("sapiens-pose-1b", "facebook/sapiens-pose-1b", False),
        ("facebook/sapiens-pose-1b-hf", "facebook/sapiens-pose-1b", False),  # could be a converted one
        ("facebook/sapiens-pose-1b", None, True),
        ("facebook/sapiens2-pose-1b", None, False),
        ("facebook/sapiens-anything-else-at-all", None, False),
        ("facebook/dinov2-base", None, False),
    ],
)
def test_suggest_source(source, meant, is_ours):
    assert suggest_source(source) == meant
    assert is_original_source(source) is is_ours


def test_slips_are_answered_with_the_released_name(tmp_path):
    with pytest.raises(ValueError, match=r"sapiens-pose-1B'.*Did you mean 'facebook/sapiens-pose-1b'\?"):
        sapiens_hf.SapiensForPoseEstimation.from_pretrained("facebook/sapiens-pose-1B")
    with pytest.raises(
        FileNotFoundError, match="sapiens-pose-1b does not exist. Did you mean 'facebook/sapiens-pose-1b'"
    ):
        load_original("sapiens-pose-1b")


def test_folders(tmp_path):
    spec = NARROW["depth"]
    files.write_pth(tmp_path / "a.pth", spec)
    assert type(load_original(tmp_path)) is sapiens_hf.SapiensForDepthEstimation
    files.write_pth(tmp_path / "b.pth", replace(spec, outputs=3, padding=2))
    with pytest.raises(ValueError, match=r"choose one with filename=: \['a.pth', 'b.pth'\]"):
        load_original(tmp_path)
    assert load_original(tmp_path, filename="a.pth").config.model_type == "sapiens"
    with pytest.raises(FileNotFoundError, match="Did you mean 'a.pth'"):
        load_original(tmp_path, filename="a.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no file of the original.*notes.txt.*checkpoint file itself"):
        load_original(tmp_path / "empty")
    load_original(tmp_path / "a.pth").save_pretrained(tmp_path / "converted")
    with pytest.raises(FileNotFoundError, match="converted folder: use from_pretrained"):
        load_original(tmp_path / "converted")
    with pytest.raises(ValueError, match="use from_pretrained on its folder"):
        load_original(tmp_path / "converted" / "model.safetensors")


def test_missing_files_name_their_repository(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"replaced.*AP_639.pth\. facebook/sapiens-pose-1b on the Hub"):
        load_original(tmp_path / "sapiens_1b_goliath_best_goliath_AP_640.pth")
    with pytest.raises(FileNotFoundError, match=r"facebook/sapiens-depth-0.3b.*give that id"):
        sapiens_hf.SapiensForDepthEstimation.from_pretrained(tmp_path / "sapiens_0.3b_render_people_epoch_100.pth")
    with pytest.raises(FileNotFoundError, match="Did you mean 'sapiens_2b_epoch_660_clean.pth'"):
        load_original(tmp_path / "sapiens_2b_epoch_66_clean.pth")
    with pytest.raises(FileNotFoundError, match="does not exist.$"):
        load_original(tmp_path / "qqq.pth")


class _Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the Hub for downloads: files by (repository, revision, path)."""

    def __init__(self, content, *args):
        self.content = content
        super().__init__(*args)

    def do_GET(self, body=True):
        head, _, tail = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = tail.partition("/")
        data = self.content.get((head, revision, name))
        found = data is not None
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{len(data):040x}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(data)))
        else:
            known = any(repo == head for repo, _, _ in self.content)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        if found and body:
            self.wfile.write(data)

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on the loopback interface; returns the dict of its files."""
    from huggingface_hub import constants

    content = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, content))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield content
    server.shutdown()
    server.server_close()


def test_hub_repositories(hub, tmp_path, caplog):
    spec = NARROW["pose"]
    data = files.write_pth(tmp_path / "a.pth", spec).read_bytes()
    hub["facebook/sapiens-pose-1b", "main", "sapiens_1b_goliath_best_goliath_AP_639.pth"] = data
    model = sapiens_hf.SapiensForPoseEstimation.from_pretrained("facebook/sapiens-pose-1b", cache_dir=tmp_path / "own")
    assert model.config._name_or_path == "facebook/sapiens-pose-1b"
    assert (tmp_path / "own").exists()
    folder = "sapiens_host/pose/checkpoints/sapiens_0.3b/"
    name = "sapiens_0.3b_coco_best_coco_AP_796.pth"
    hub["noahcao/sapiens-pose-coco", "v1", folder + name] = data
    assert load_original("noahcao/sapiens-pose-coco", filename=name, revision="v1").config.num_labels == 17
    hub["someone/else", "main", "mine.pth"] = data
    assert load_original("someone/else", filename="mine.pth").config.num_labels == 17
    assert not caplog.records
    hub["facebook/sapiens-pose-0.3b", "old", "sapiens_0.3b_goliath_best_goliath_AP_575.pth"] = data
    assert load_original("facebook/sapiens-pose-0.3b", revision="old").config.num_labels == 17
    assert "AP_575.pth, which Meta replaced" in caplog.text


def test_hub_errors(hub, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no repository facebook/sapiens-seg-1b.*mIoU_7994_epoch_151.pth"):
        load_original("facebook/sapiens-seg-1b")
    hub["facebook/sapiens-seg-1b", "main", "README.md"] = b"moved"
    with pytest.raises(
        FileNotFoundError, match=r"sapiens-seg-1b \(revision main\) has no sapiens_1b.*renamed.*filename="
    ):
        load_original("facebook/sapiens-seg-1b")
    with pytest.raises(ValueError, match=r"released files are.*AP_796.*Pass filename="):
        load_original("noahcao/sapiens-pose-coco")
    with pytest.raises(ValueError, match="Did you mean 'facebook/sapiens-pose-1b'"):
        load_original("facebok/sapiens-pose-1b")
    with pytest.raises(
        FileNotFoundError, match="no repository facebook/sapiens-pose-1B .*hold a.pth. Did you mean 'face"
    ):
        load_original("facebook/sapiens-pose-1B", filename="a.pth")
    with pytest.raises(OSError, match=r"Cannot reach the Hub for sapiens_1b.*of facebook/sapiens-seg-1b"):
        load_original("facebook/sapiens-seg-1b", local_files_only=True)


def test_hub_failures_of_the_server(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match="Cannot download sapiens_1b.*disk full"):
        load_original("facebook/sapiens-seg-1b")
    assert issubclass(HfHubHTTPError, OSError)


def test_logging_is_quiet_by_default(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_original(files.write_pth(tmp_path / "a.pth", NARROW["pose"]))
    assert not caplog.records
    assert (
        original_sources.released_file("sapiens_2b_epoch_660_clean.pth")[0]["repo"] == "facebook/sapiens-pretrain-2b"
    )

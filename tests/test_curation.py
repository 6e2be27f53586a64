"""Curation: what is left out and why, near-duplicates, shards, restarts, several processes."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pretraining_files
import pytest
from PIL import Image
from pretraining_files import jpeg

from training import curate_humans
from training.curate_humans import (
    REASONS,
    CurationOptions,
    curate,
    main,
    make_plan,
    near_duplicates,
    perceptual_hash,
    read_unit,
    transformers_detector,
)
from training.pretrain_sources import open_source
from training.shards import tar_members

ROOT = Path(__file__).resolve().parents[1]
LIMITS = ["--min_box_px", "30", "--min_side_px", "40", "--max_pixels", "100000", "--batch_size", "3"]


def picture(index: int, height: int = 70, width: int = 60) -> Image.Image:
    return pretraining_files.picture(index, height, width, blocks=(8, 7))


def fake_detector(images):
    """One person with a score by the width of the image: a large one, a small one, an unsure one."""
    boxes = {60: [5, 5, 40, 60, 0.97], 61: [5, 5, 20, 60, 0.99], 62: [5, 5, 40, 60, 0.9], 63: [5, 5, 30, 60, 0.99]}
    return [[boxes[image.width], [0, 0, 9, 9, 0.2]] if image.width in boxes else [] for image in images]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """A folder and two shards: eight good images, two near-duplicates, and one or two of each that is left out."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for index in range(4):
        (photos / "sub" / f"good{index}.jpg").write_bytes(jpeg(picture(index)))
    (photos / "again.jpg").write_bytes(jpeg(picture(20)))
    picture(21).save(photos / "lossless.png")
    (photos / "small_box.jpg").write_bytes(jpeg(picture(30, width=61)))
    (photos / "unsure.jpg").write_bytes(jpeg(picture(31, width=62)))
    (photos / "edge.jpg").write_bytes(jpeg(picture(32, width=63)))
    (photos / "nobody.jpg").write_bytes(jpeg(picture(33, width=80)))
    (photos / "cut.jpg").write_bytes(jpeg(picture(34))[:500])
    (photos / "dot.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    Image.new("RGB", (500, 300)).save(photos / "huge.png")
    (photos / "paper.jpg").write_bytes(jpeg(picture(35).convert("CMYK")))
    picture(36).save(photos / "moving.gif", save_all=True, append_images=[picture(37)])
    (photos / "notes.txt").write_text("no image")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "x/one.jpg", jpeg(picture(40)))
        add(archive, "x/one.json", b"{}")
        add(archive, "x/copy.jpg", jpeg(picture(20), quality=60))  # of again.jpg, compressed more
        add(archive, "x/bright.jpg", jpeg(picture(40).point(lambda level: min(255, level + 6))))
        turned = Image.Exif()
        turned[0x0112] = 6
        add(archive, "x/turned.jpg", jpeg(picture(41).transpose(Image.ROTATE_90), exif=turned))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(content[:900])
    return [str(photos), *(str(tmp_path / name) for name in ("a.tar", "empty.tar", "torn.tar"))]


EXPECTED = {
    "images": 20, "kept": 8, "unreadable": 1, "too_small": 1, "too_large": 1, "cmyk": 1, "animated": 1,
    "no_person": 4, "duplicate": 2, "lost": 1,
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                assert member.name not in found
                found[member.name] = archive.extractfile(member).read()
    return found


def test_counts_add_up_and_shards_hold_what_is_left(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(curate_humans, "UNIT_IMAGES", 4)
    out = tmp_path / "out"
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    curate_humans.logger.addHandler(handler)
    counts = main(["--sources", *sources, "--output_dir", str(out), *LIMITS], fake_detector)
    curate_humans.logger.removeHandler(handler)
    assert counts == EXPECTED and sum(counts[name] for name in ("kept", *REASONS)) == counts["images"]
    for named in ("cut.jpg: unreadable", "paper.jpg: cmyk", "dot.png: too_small", "empty.tar", "torn.tar"):
        assert any(named in message for message in heard), named
    report = json.loads((out / "report.json").read_text())
    assert (
        report["duplicate"] == 2 and report["empty_shards"] == [sources[2]] and report["broken_shards"] == [sources[3]]
    )
    assert report["settings"]["min_score"] == 0.9

    kept = contents(out)
    about = {}
    for name, content in kept.items():
        if name.endswith(".json"):
            record = json.loads(content)
            about[record["name"]] = record
            image = Image.open(io.BytesIO(kept[name.replace(".json", ".jpg")]))
            image.load()
            assert image.format == "JPEG"
    assert set(about) == {
        *(f"sub/good{i}.jpg" for i in range(4)),
        "again.jpg",
        "lossless.png",
        "x/one.jpg",
        "x/turned.jpg",
    }
    assert about["lossless.png"]["is_reencoded"] and not about["again.jpg"]["is_reencoded"]
    assert about["x/one.jpg"]["source"] == sources[1] and about["x/one.jpg"]["boxes"] == [[5, 5, 40, 60, 0.97]]
    assert (about["x/turned.jpg"]["width"], about["x/turned.jpg"]["height"]) == (60, 70)  # as a person sees it
    assert (Path(sources[0]) / "again.jpg").read_bytes() in kept.values()  # JPEGs are not compressed again
    rows = open_source(str(out / "shards"), "train", False, 0).rows(0)
    assert len({next(rows).name for _ in range(8)}) == 8  # and pretraining reads them


def test_killed_anywhere_it_neither_repeats_nor_loses(sources, tmp_path, monkeypatch):
    """Stopped after every single detector call and every written file, the result is that of an undisturbed run."""
    monkeypatch.setattr(curate_humans, "UNIT_IMAGES", 4)
    options = CurationOptions(
        sources, str(tmp_path / "whole"), min_box_px=30, min_side_px=40, max_pixels=100_000, batch_size=2
    )
    curate(options, fake_detector)
    stopped = CurationOptions(**{**options.__dict__, "output_dir": str(tmp_path / "stopped")})
    seen: list[str] = []
    real_write, real_add = curate_humans.write_json, curate_humans._add

    class KilledError(BaseException):
        pass

    budget = [0]

    def spend():
        budget[0] -= 1
        if budget[0] < 0:
            raise KilledError

    def write(path, content):
        spend()
        real_write(path, content)

    def detector(images):
        spend()
        seen.extend(perceptual_hash(image) for image in images)
        return fake_detector(images)

    def slow_add(*arguments):
        spend()
        real_add(*arguments)

    monkeypatch.setattr(curate_humans, "write_json", write)
    monkeypatch.setattr(curate_humans, "_add", slow_add)
    kills = 0
    while True:
        budget[0] = 4  # enough for one unit, not for two
        try:
            counts = curate(stopped, detector)
            break
        except KilledError:
            kills += 1
    assert kills > 5 and counts == EXPECTED
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert curate(stopped, detector) == counts  # a finished job does nothing again


def test_killed_by_the_system(sources, tmp_path):
    """SIGKILL while a process works, then the same command again."""
    out = tmp_path / "out"
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_curation import fake_detector
from training import curate_humans

def slow(images):
    time.sleep(0.15)
    return fake_detector(images)

curate_humans.UNIT_IMAGES = 3
curate_humans.main(sys.argv[1:], slow)
"""
    command = [sys.executable, "-c", code, "--sources", *sources, "--output_dir", str(out), *LIMITS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("units/*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("units/*.json")}
    assert main(command[3:], fake_detector) == EXPECTED
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())


def test_processes_share_the_work(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(curate_humans, "UNIT_IMAGES", 4)
    base = dict(sources=sources, min_box_px=30, min_side_px=40, max_pixels=100_000, num_processes=2)
    parts = [
        CurationOptions(**base, output_dir=str(tmp_path / "parts"), stage="detect", process_index=i) for i in (1, 0)
    ]
    curate(parts[0], fake_detector)
    with pytest.raises(FileNotFoundError, match="Unit 0 is not examined yet"):
        curate(CurationOptions(**{**parts[0].__dict__, "stage": "dedup"}), fake_detector)
    with pytest.raises(FileNotFoundError, match="run --stage dedup"):
        curate(CurationOptions(**{**parts[0].__dict__, "stage": "pack"}), fake_detector)
    curate(parts[1], fake_detector)
    for stage, indices in (("dedup", [0]), ("pack", [0, 1])):
        for index in indices:
            assert curate(CurationOptions(**{**parts[0].__dict__, "stage": stage, "process_index": index})) == {}
        if stage == "dedup":
            with pytest.raises(FileNotFoundError, match="not packed yet"):
                curate(CurationOptions(**{**parts[0].__dict__, "stage": "report"}))
    counts = curate(CurationOptions(**{**parts[0].__dict__, "stage": "report"}))
    assert counts == EXPECTED

    monkeypatch.undo()  # the processes below are new ones, with units of a thousand
    together = CurationOptions(**base, output_dir=str(tmp_path / "together"))
    assert curate(together, fake_detector) == EXPECTED
    names = [{json.loads(v)["name"] for n, v in contents(tmp_path / f).items() if n.endswith("json")}
             for f in ("parts", "together")]  # fmt: skip
    assert names[0] == names[1]


def test_images_that_change_meanwhile_are_counted(sources, tmp_path):
    options = CurationOptions(
        sources[:1], str(tmp_path / "out"), min_box_px=30, min_side_px=40, max_pixels=100_000, stage="detect"
    )
    curate(options, fake_detector)
    (Path(sources[0]) / "again.jpg").write_bytes(jpeg(picture(99)))
    (Path(sources[0]) / "lossless.png").unlink()
    counts = curate(CurationOptions(**{**options.__dict__, "stage": "all"}), fake_detector)
    assert counts["lost"] == 2 and counts["kept"] == 4
    late = CurationOptions(**{**options.__dict__, "output_dir": str(tmp_path / "late"), "stage": "all"})
    make_plan(late)
    (Path(sources[0]) / "edge.jpg").unlink()
    assert curate(late, fake_detector)["lost"] == 1  # lossless.png had gone before the plan was made
    unit = {"source": sources[1], "images": ["x/one.jpg", "x/gone.jpg"]}
    assert [content is None for _, content in read_unit(unit)] == [False, True]


def test_damaged_shards_are_named_and_counted(tmp_path):
    """`tarfile` ends in silence at a damaged or cut header, so what is behind the last member decides."""
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for index in range(5):
            add(archive, f"{index}.jpg", jpeg(picture(50 + index)))
    with tarfile.open(whole) as archive:
        starts = [member.offset for member in archive]
        end = archive.offset
    content = whole.read_bytes()
    damaged = {f"cut{cut}": content[:cut] for cut in (20, starts[1], starts[3] + 100, starts[3] + 700, end)}
    damaged["header"] = content[: starts[2]] + b"\xff" * 20 + content[starts[2] + 20 :]
    damaged["behind"] = content + bytes(2 << 20) + b"x"
    damaged["packed"] = gzip.compress(content)[:-900]
    for name, changed in damaged.items():
        (tmp_path / f"{name}.tar").write_bytes(changed)
        assert not tar_members(tmp_path / f"{name}.tar")[1], name
    members = {name: len(tar_members(tmp_path / f"{name}.tar")[0]) for name in ("cut20", f"cut{starts[1]}", "header")}
    assert members == {"cut20": 0, f"cut{starts[1]}": 1, "header": 2}
    (tmp_path / "zeros.tar").write_bytes(bytes(10240))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "short.tar").write_bytes(content[: end + 1024])
    assert all(tar_members(tmp_path / f"{name}.tar")[1] for name in ("whole", "zeros", "empty", "short"))

    sources = [str(tmp_path / f"{name}.tar") for name in ("whole", "header", "packed")]
    counts = main(["--sources", *sources, "--output_dir", str(tmp_path / "out"), *LIMITS], fake_detector)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["broken_shards"] == sources[1:] and report["empty_shards"] == [] and counts["kept"] == 5


def test_shards_below_a_folder_are_read_and_other_files_are_named(tmp_path):
    crawl = tmp_path / "crawl"
    (crawl / "deep" / "er").mkdir(parents=True)
    (crawl / "a.jpg").write_bytes(jpeg(picture(60)))
    for name in ("phone.HEIC", "deep/two.heic", "deep/new.avif", "README", "deep/more.tar.gz"):
        (crawl / name).write_bytes(b"?")
    for name, index in (("top.tar", 61), ("deep/er/low.TAR", 62)):
        with tarfile.open(crawl / name, "w") as archive:
            add(archive, "x.jpg", jpeg(picture(index)))
            add(archive, "x.json", b"{}")
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    curate_humans.logger.addHandler(handler)
    counts = main(["--sources", str(crawl), "--output_dir", str(tmp_path / "out"), *LIMITS], fake_detector)
    curate_humans.logger.removeHandler(handler)
    assert counts["images"] == counts["kept"] == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["not_read"] == {
        "without suffix": {"files": 1, "first": str(crawl / "README")},
        ".gz": {"files": 1, "first": str(crawl / "deep" / "more.tar.gz")},
        ".avif": {"files": 1, "first": str(crawl / "deep" / "new.avif")},
        ".heic": {"files": 2, "first": str(crawl / "deep" / "two.heic")},
        ".json": {"files": 2, "first": str(crawl / "deep" / "er" / "low.TAR" / "x.json")},
    }
    (message,) = [text for text in heard if "not read" in text]
    assert f"2 .heic ({crawl / 'deep' / 'two.heic'})" in message


def test_near_duplicates_are_those_of_a_full_comparison():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 60, dtype=np.uint64)
    changed = []
    for value in hashes[:30]:
        bits = rng.choice(64, rng.integers(0, 9), replace=False)
        changed.append(int(value) ^ sum(1 << int(bit) for bit in bits))
    everything = np.array([*hashes.tolist(), *changed], dtype=np.uint64)
    for distance in (0, 4, 7):
        want, kept = {}, []
        for place, value in enumerate(everything.tolist()):
            near = [other for other in kept if bin(value ^ int(everything[other])).count("1") <= distance]
            if near:
                want[place] = near[0]
            else:
                kept.append(place)
        assert near_duplicates(everything, distance) == want and want
    assert near_duplicates(np.zeros(0, np.uint64), 4) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--stage", "all of it"], "no stage"),
        (["--num_processes", "2", "--process_index", "2"], "--process_index is 2 of 2"),
        (["--num_processes", "2", "--process_index", "1"], "must be told its stage"),
        (["--max_distance", "16"], "expected 0 to 15"),
        (["--min_score", "0.5"], "begun with min_score = 0.9, now it is 0.5"),
        (["--output_dir", ""], "are needed"),
    ],
)
def test_options_that_cannot_work(change, message, sources, tmp_path):
    line = ["--sources", sources[0], "--output_dir", str(tmp_path / "out"), *LIMITS]
    make_plan(CurationOptions([sources[0]], str(tmp_path / "out"), min_box_px=30, min_side_px=40, max_pixels=100_000))
    with pytest.raises(ValueError, match=message):
        main([*line, *change], fake_detector)


def test_sources_without_images(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        curate(CurationOptions([str(tmp_path / "bare")], str(tmp_path / "out")), fake_detector)
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        curate(CurationOptions([str(tmp_path / "nothing")], str(tmp_path / "out")), fake_detector)


def test_a_detector_of_transformers(tmp_path):
    """A detector with random weights, loaded as `--detector` loads a real one: boxes are COCO with a score."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=[64, 48],
        num_detection_tokens=5, id2label={0: "Person", 1: "dog"}, label2id={"Person": 0, "dog": 1},
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    bias = model.class_labels_classifier.layers[-1].bias.data
    bias[:] = 0
    bias[0] = 9
    model.save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 64, "width": 48}, do_pad=False).save_pretrained(tmp_path)
    found = transformers_detector(str(tmp_path), "cpu", 2)([picture(0), picture(1, 90, 80)])
    assert [len(boxes) for boxes in found] == [5, 5]
    assert all(score > 0.9 and width >= 0 and height >= 0 for boxes in found for *_, width, height, score in boxes)

    config.id2label = {index: f"kind {index}" for index in range(12)}
    model = YolosForObjectDetection(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no label 'person'.*kind 0, .*kind 7, ... \(12 in all\)"):
        transformers_detector(str(tmp_path), "cpu", 2)

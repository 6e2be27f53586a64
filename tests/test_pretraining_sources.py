"""Where pretraining's images come from: folders, tables, shards, mixtures; their order, and what goes wrong."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pretraining_files import Listener, jpeg, line, picture, write_data, write_folder, write_tar

from training import pretrain_sources, pretrain_streams
from training.checkpoints import read_metrics
from training.data import StepPlan
from training.pretrain_mae import main as pretrain
from training.pretrain_sources import FolderSource, ImagePlan, Mixture, TableSource, open_source
from training.pretrain_streams import Row, StreamDroppedError, StreamSource, read_ahead
from training.tables import encoded


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def asked(mixture: Mixture, plan: StepPlan) -> list[list[tuple]]:
    """Source, index or name, and place of each image of each batch, without the spare ones."""
    return [
        [(a.source, a.name or a.index, a.epoch, a.position) for a in asks[: plan.batch_size]]
        for asks in ImagePlan(mixture, plan)
    ]


def test_every_image_of_an_epoch_once(data):
    """Over two processes, three epochs and a length that the batch does not divide."""
    mixture = Mixture([FolderSource(data / "photos")])
    plans = [StepPlan(9, 2, num_processes=2, process=p, num_epochs=3, seed=5) for p in range(2)]
    batches = [asked(mixture, plan) for plan in plans]
    order = [ask for pair in zip(*batches) for batch in pair for ask in batch]
    assert len(order) == 36 and [(a[2], a[3]) for a in order] == [(e, i) for e in range(3) for i in range(12)]
    drawn = [ask[1] for ask in order]
    for cycle in range(4):  # the fill of an epoch's last step begins the next round of the images
        assert sorted(drawn[9 * cycle : 9 * cycle + 9]) == list(range(9))
    assert drawn[:9] != drawn[9:18]
    later = StepPlan(9, 2, num_processes=2, process=1, num_epochs=3, seed=5, start_step=4)
    assert asked(mixture, later) == batches[1][4:]
    assert len(ImagePlan(mixture, later)) == 5


def test_mixtures_hold_their_shares(data):
    sources = [FolderSource(data / "photos"), open_source(str(data / "table"), "train", False, 0)]
    assert isinstance(sources[1], TableSource) and [len(source) for source in sources] == [9, 6]
    mixture = Mixture(sources, [3.0, 1.0], samples_per_epoch=40)
    plan = StepPlan(len(mixture), 5, num_epochs=2)
    order = [ask for batch in asked(mixture, plan) for ask in batch]
    for epoch in range(2):
        part = order[40 * epoch : 40 * epoch + 40]
        assert Counter(ask[0] for ask in part) == {0: 30, 1: 10}
        assert len({ask[0] for ask in part[:8]}) == 2  # mixed, not one after the other
    photos = Counter(ask[1] for ask in order if ask[0] == 0)
    assert set(photos.values()) == {6, 7}  # 60 draws of 9 images: none is favoured, over both epochs
    assert Mixture(sources).counts(15).tolist() == [9, 6]
    assert Mixture([sources[0]], [], samples_per_epoch=4).num_samples == 4


def test_long_epochs_are_arranged_in_blocks(data, monkeypatch):
    """The shares hold within each block, nothing is drawn twice, and a restart far into an epoch finds its place."""
    sources = [FolderSource(data / "photos"), open_source(str(data / "shards"), "train", False, 0)]
    monkeypatch.setattr(pretrain_sources, "BLOCK_SIZE", 16)
    mixture = Mixture(sources, [0.7, 0.3], samples_per_epoch=50)
    blocks = list(mixture.blocks(50, 3, 1))
    assert [start for start, *_ in blocks] == [0, 16, 32] and [len(part) for _, part, _ in blocks] == [16, 16, 18]
    assert all(abs((part == 0).mean() - 0.7) < 0.08 for _, part, _ in blocks)
    for number in range(2):
        drawn = np.concatenate([draws[part == number] for _, part, draws in blocks])
        assert np.array_equal(drawn, np.arange(len(drawn)))
    for process in range(2):
        shape = dict(num_processes=2, process=process, seed=3, num_epochs=2)
        whole = asked(mixture, StepPlan(50, 2, **shape))
        for start in (1, 9, 12, 14):
            assert asked(mixture, StepPlan(50, 2, **shape, start_step=start)) == whole[start:]
    with pytest.raises(ValueError, match="share 0.0099; leave it out"):
        Mixture(sources, [100, 1], samples_per_epoch=50)


def take(stream: StreamSource, count: int, *where: int) -> list[Row]:
    """Some rows from a place on, of a process."""
    rows = stream.rows(*where)
    return [next(rows) for _ in range(count)]


def test_streams_are_read_once_and_shared_out(data):
    stream = open_source(str(data / "shards"), "train", False, 7)
    assert isinstance(stream, StreamSource) and stream.column == "image"
    first = take(stream, 40)
    assert first == take(stream, 40) and [row.is_repeat for row in first] == [False] * 12 + [True] * 28
    names = [row.name for row in first]
    assert len(set(names[:12])) == 12 and set(names[12:24]) == set(names[:12]) == set(names[24:36])
    assert len({tuple(names[12 * i : 12 * i + 12]) for i in range(3)}) == 3  # another order in each pass
    with Image.open(io.BytesIO(first[0].raw)) as image:
        assert image.size == (76, 90)
    for kind in ("shards", "table/*.parquet"):
        for process, num_processes in ((0, 1), (0, 2), (1, 2), (3, 4)):
            whole = take(open_source(str(data / kind), "train", True, 7), 40, 0, process, num_processes)
            for start in (1, 5, 12, 13, 29):  # of another program, which has to find the place
                later = open_source(str(data / kind), "train", True, 7)
                assert take(later, 40 - start, start, process, num_processes) == whole[start:]


@pytest.mark.parametrize(("num_processes", "shards_each"), [(2, {1, 2}), (3, {1}), (4, {3})])
def test_each_process_reads_its_own_shards(num_processes, shards_each, data, monkeypatch):
    """Whether or not they divide the shards; with fewer shards than processes all read all, and it is said."""
    opened: list[str] = []
    real = tarfile.open
    monkeypatch.setattr(
        pretrain_streams.tarfile, "open", lambda path, *args: (opened.append(path), real(path, *args))[1]
    )
    parts, read = [], set()
    for process in range(num_processes):
        stream = open_source(str(data / "shards"), "train", False, 7)
        opened.clear()
        with Listener(pretrain_streams.logger) as heard:
            rows = take(stream, 12, 0, process, num_processes)
        parts.append([row.name for row in rows if not row.is_repeat])
        read.add(len(set(opened)))
        assert any("Cut it into at least 4" in m for m in heard.messages) == (num_processes == 4 and process == 0)
    assert read == shards_each
    assert sorted(sum(parts, [])) == sorted(row.name for row in take(stream, 12))


def test_short_epochs_go_on_in_the_stream(data):
    """Twelve rows in epochs of five, alone and in a mixture: each is seen before one comes again, also resumed."""
    stream = open_source(str(data / "shards"), "train", False, 7)
    for sources, weights in (([stream], []), ([FolderSource(data / "photos"), stream], [0.4, 0.6])):
        mixture = Mixture(sources, weights, 5)
        order = asked(mixture, StepPlan(5, 5, num_epochs=8))
        names = [ask[1] for batch in order for ask in batch if ask[0] == len(sources) - 1]
        assert len(names) >= 24 and set(names[:12]) == set(names[12:24]) and len(set(names[:12])) == 12
        for start in (1, 3, 6):
            assert asked(mixture, StepPlan(5, 5, num_epochs=8, start_step=start)) == order[start:]


def test_counted_rows_are_passed_over_without_reading(data, monkeypatch):
    stream = open_source(str(data / "shards"), "train", False, 7)
    monkeypatch.setattr(pretrain_streams, "MIXED_ROWS", 4)
    whole = take(stream, 24)
    assert [row.name for row in whole[:4]] != sorted(row.name for row in whole[:4])
    opened: list[int] = []
    real = StreamSource._shard_rows
    monkeypatch.setattr(
        StreamSource,
        "_shard_rows",
        lambda self, share, own, *more: (opened.append(own), real(self, share, own, *more))[1],
    )
    fresh = open_source(str(data / "shards"), "train", False, 7)
    assert take(fresh, 1, 11) == whole[11:12] and opened == [2, 1]  # not shard 0
    assert take(fresh, 1, 12) == whole[12:13]


def test_a_stream_without_a_length_or_weights(data):
    sources = [open_source(str(data / "shards"), "train", False, 0), FolderSource(data / "photos")]
    with pytest.raises(ValueError, match="--samples_per_epoch"):
        Mixture(sources)
    with pytest.raises(ValueError, match="--weights, one per source"):
        Mixture(sources, samples_per_epoch=10)
    assert open_source(str(data / "table" / "*.parquet"), "train", True, 0).column == "photo"


class Flaky:
    """A stream of numbers that breaks off at the rows told, once or for ever."""

    column_names, features, num_shards = ["__key__", "jpg"], None, 1

    def __init__(self, breaks: list[int], for_ever: bool = False):
        self.breaks, self.for_ever = list(breaks), for_ever

    def decode(self, _):
        return self

    def shard(self, num_shards, index):
        return self

    def __iter__(self):
        for number in range(10):
            if number in self.breaks:
                if not self.for_ever:
                    self.breaks.remove(number)
                raise OSError("connection reset")
            yield {"__key__": f"k{number}", "jpg": {"bytes": b"%d" % number, "path": None}}


def test_a_stream_that_drops_goes_on_where_it_was(monkeypatch):
    with Listener(pretrain_streams.logger) as heard:
        source = StreamSource(Flaky([3, 3, 7]), "cam", wait_s=0.0)
        rows = take(source, 20)
        assert sorted(row.raw for row in rows[:10]) == sorted(row.raw for row in rows[10:])
        assert {row.raw for row in rows} == {b"%d" % i for i in range(10)}
    assert [row for row in rows if row.counts] == [rows[0]] and rows[0].counts == {"stream_retries": 3}
    assert sum("shard 1 of 1 of cam broke off after its row 3" in message for message in heard.messages) == 2
    monkeypatch.setattr(pretrain_streams, "MIXED_ROWS", 2)
    broken = StreamSource(Flaky([4], for_ever=True), "cam", wait_s=0.0).rows(2)
    assert {next(broken).name for _ in range(2)} == {"cam[k2]", "cam[k3]"}
    with pytest.raises(StreamDroppedError, match="shard 1 of 1 of cam broke off after its row 4 .*4 times.*resume"):
        next(broken)
    monkeypatch.setattr(Flaky, "__iter__", lambda self: iter(()))
    with pytest.raises(ValueError, match="holds nothing for process 1 of 2"):
        next(StreamSource(Flaky([]), "cam").rows(0, 1, 2))


def cut_tars(folder: Path, count: int = 4) -> Path:
    """Tars of five images; the second is cut in the middle of its third image, the third before its fourth header."""
    for number in range(count):
        write_tar(folder / f"{number}.tar", 10 * number, 5)
    for name, member, more in (("1.tar", 2, 700), ("2.tar", 3, 0)):
        with tarfile.open(folder / name) as archive:
            end = archive.getmembers()[member].offset + more
        (folder / name).write_bytes((folder / name).read_bytes()[:end])
    return folder


def test_damaged_shards_are_left_out_named_and_counted(tmp_path, monkeypatch):
    """What can be read of them is; up to the share that is allowed, and with the same order after a restart."""
    monkeypatch.setattr(pretrain_streams.time, "sleep", lambda _: None)
    folder = cut_tars(tmp_path / "shards")
    with Listener(pretrain_streams.logger) as heard:
        rows = take(open_source(str(folder), "train", False, 3, max_bad_share=0.5), 45)
    names = [row.name.split("[")[1] for row in rows]
    whole = {f"s{i:03d}]" for i in (*range(5), 10, 11, 20, 21, 22, *range(30, 35))}
    assert all(set(names[i : i + 15]) == whole for i in (0, 15, 30)) and len(whole) == 15
    total = Counter({"damaged_shards": 6, "stream_retries": 18})  # in three passes
    assert sum((Counter(row.counts) for row in rows), Counter()) == total
    for name, place in (("1.tar", 2), ("2.tar", 3)):
        assert sum(f"{name} broke off after its row {place} " in m and "left out" in m for m in heard.messages) == 3
    for start in (1, 14, 15, 37):
        assert take(open_source(str(folder), "train", False, 3, max_bad_share=0.5), 45 - start, start) == rows[start:]
    with pytest.raises(StreamDroppedError, match=r"[12].tar broke off .*2 of 4 shards .*1.tar, .*2.tar.*move them"):
        take(open_source(str(folder), "train", False, 3, max_bad_share=0.3), 1)
    # In small groups the damage is not all counted at the start of a pass: none is counted again after a restart.
    for size in (1, 4):
        monkeypatch.setattr(pretrain_streams, "MIXED_ROWS", size)
        rows = take(open_source(str(folder), "train", False, 3, max_bad_share=0.5), 46)
        assert 6 <= sum(row.counts.get("damaged_shards", 0) for row in rows) <= 8  # the last row may begin a pass
        assert all(not row.counts for row in rows[:4])
        for start in (4, 8, 9, 12, 16, 37):
            rest = take(open_source(str(folder), "train", False, 3, max_bad_share=0.5), 46 - start, start)
            assert rest == rows[start:], (size, start)
    monkeypatch.setattr(pretrain_streams, "MIXED_ROWS", 2)
    told = [
        take(open_source(str(folder), "train", False, 3, max_bad_share=0.5), 3, 0, process, 5) for process in range(5)
    ]
    counted = [sum((Counter(row.counts) for row in rows), Counter()) for rows in told]  # all read all four shards
    assert counted[0]["damaged_shards"] == 2 and not any(map(Counter.total, counted[1:]))


def test_damaged_shards_reach_the_metrics(tmp_path, monkeypatch):
    """Counted in the step that trains on the next row, so that a run that was resumed has the same counts."""
    monkeypatch.setattr(pretrain_streams.time, "sleep", lambda _: None)
    folder = cut_tars(tmp_path / "shards")
    mixture = Mixture([open_source(str(folder), "train", False, 3, max_bad_share=0.5)], [], 12)
    counts = []
    for start in (0, 3, 4, 5):
        plan = ImagePlan(mixture, StepPlan(12, 4, num_epochs=3, start_step=start))
        list(plan)
        counts.append([plan.take_counts(step + 1) for step in range(start, 9)])
    assert counts[0] == [[6, 2] if step in (0, 3, 7) else [0, 0] for step in range(9)]
    assert all(later == counts[0][start:] for start, later in zip((3, 4, 5), counts[1:]))

    pretrain(line(tmp_path / "run", folder, steps=2, more=("--samples_per_epoch", "8", "--max_bad_share", "0.5")))
    (last,) = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1:]
    assert (last["damaged_shards"], last["stream_retries"], last["images"]) == (2, 6, 8)


def write_members(path: Path, names: Sequence[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            content = jpeg(picture(len(name)))
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_damaged_table_is_left_out_named_and_counted(tmp_path, monkeypatch):
    """Its rows cannot be counted, so it is not empty; what cannot be read of it is left out."""
    monkeypatch.setattr(pretrain_streams.time, "sleep", lambda _: None)
    for number in range(3):
        rows = {"image": [{"bytes": jpeg(picture(10 * number + row)), "path": None} for row in range(4)]}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(tmp_path / f"{number}.parquet")
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[: len(content) // 2])
    rows = take(open_source(str(tmp_path), "train", True, 0, max_bad_share=0.5), 8)
    assert len({row.raw for row in rows}) == 8 and not any(row.is_repeat for row in rows)
    assert rows[0].counts == {"damaged_shards": 1, "stream_retries": 3}
    with pytest.raises(StreamDroppedError, match="1.parquet broke off after its row 0 .*1 of 3 shards"):
        take(open_source(str(tmp_path), "train", True, 0), 1)


def test_a_saved_table_is_streamed_in_shards(tmp_path):
    """So that processes share its rows, and more than neighbours are mixed."""
    rows = {"image": [{"bytes": jpeg(picture(row)), "path": None} for row in range(12)]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(tmp_path / "table")
    sources = [open_source(str(tmp_path / "table"), "train", True, 0) for _ in range(2)]
    parts = [{row.raw for row in take(source, 6, 0, process, 2)} for process, source in enumerate(sources)]
    assert parts[0].isdisjoint(parts[1]) and parts[0] | parts[1] == {row["bytes"] for row in rows["image"]}


def test_images_that_lie_elsewhere_are_fetched(tmp_path):
    """A folder of pictures on the Hub is streamed as addresses; here they lie in a zip file."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.jpg", jpeg(picture(1)))
    (tmp_path / "b.jpg").write_bytes(jpeg(picture(2)))
    there = f"zip://a.jpg::{tmp_path}/all.zip"
    assert encoded({"bytes": None, "path": there}) == jpeg(picture(1))
    assert encoded({"bytes": None, "path": str(tmp_path / "b.jpg")}) == tmp_path / "b.jpg"
    assert encoded({"bytes": b"x", "path": there}) == b"x" and encoded({"bytes": None, "path": None}) is None
    rows = {"image": [{"bytes": None, "path": there}] * 2}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    stream = StreamSource(table.to_iterable_dataset(), "hub", wait_s=0.0)
    assert take(stream, 1)[0].raw == jpeg(picture(1))
    gone = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": there.replace("a.jpg", "c.jpg")}]})
    gone = gone.cast_column("image", datasets.Image()).to_iterable_dataset()
    with pytest.raises(StreamDroppedError, match="hub broke off after its row 0 .*c.jpg"):
        take(StreamSource(gone, "hub", wait_s=0.0), 1)


def test_names_with_dots_in_tars_are_named(tmp_path):
    names = ["a/0.depth.png", "a/0.jpg", "a/0.mask.png", "a/1.mask.png", "a/example.com_1.jpg", "a/example.com_2.jpg"]
    path = write_members(tmp_path / "x.tar", names)
    with Listener(pretrain_streams.logger) as heard:
        rows = take(open_source(str(path), "train", False, 0), 2)
    assert {row.name for row in rows} == {f"{path}[a/0]"}
    assert f"{path}: 2 images such as a/1.mask.png are left out" in heard.messages[0]
    with Listener(pretrain_streams.logger) as heard:
        take(open_source(str(path), "train", False, 0, "mask.png"), 2)
    assert heard.messages == []


def test_a_tar_of_images_of_several_kinds(tmp_path):
    """One image per key, of any kind; what is hidden or a label is none, unless its ending is asked for."""
    names = ["a/0.jpg", "a/0.json", "a/1.txt", "a/1.PNG", "a/1.mask.png", "b/1.webp", "._b.jpg", "2.mask.png", "3.gif"]
    path = write_members(tmp_path / "x.tar", names)
    want = {f"{path}[{key}]" for key in ("a/0", "a/1", "b/1", "3")}
    assert {row.name for row in take(open_source(str(path), "train", False, 0), 4)} == want
    assert pretrain_streams.count_tar_rows(path) == 4 and pretrain_streams.count_tar_rows(path, "mask.png") == 2
    masks = take(open_source(str(path), "train", False, 0, "mask.png"), 3)
    assert {row.name for row in masks} == {f"{path}[a/1]", f"{path}[2]"} and masks[2].is_repeat
    with pytest.raises(
        ValueError, match=r"no \*.tif; its files end in PNG, _b.jpg, gif, jpg, json, mask.png, txt, webp"
    ):
        open_source(str(path), "train", False, 0, "tif")
    write_members(tmp_path / "y.tar", ["0.txt"])
    with Listener(pretrain_streams.logger) as heard:
        take(open_source(str(tmp_path / "*.tar"), "train", False, 0), 9)
    assert any("y.tar holds no image" in message for message in heard.messages)


def test_reading_ahead_keeps_order_and_errors():
    def rows():
        yield from range(5)
        raise OSError("gone")

    ahead = read_ahead(rows(), 2)
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    before = threading.active_count()
    endless = read_ahead(iter(range(10**9)), 3)
    assert next(endless) == 0 and threading.active_count() == before + 1
    endless.close()  # ends the thread, which waits for room
    assert threading.active_count() == before


def test_empty_and_missing_sources(data, tmp_path):
    write_tar(tmp_path / "s" / "a.tar", 0, 2)
    write_tar(tmp_path / "s" / "b.tar", 0, 0)
    (tmp_path / "s" / "c.tar").write_bytes(b"")
    with Listener(pretrain_sources.logger) as heard:
        rows = open_source(str(tmp_path / "s"), "train", False, 0).rows(0)
        assert {next(rows).name.split("[")[1] for _ in range(2)} == {"s000]", "s001]"}
    assert sum("is empty" in message for message in heard.messages) == 2
    for name in ("b.tar", "c.tar"):
        (tmp_path / "s2").mkdir(exist_ok=True)
        (tmp_path / "s" / name).rename(tmp_path / "s2" / name)
    with pytest.raises(ValueError, match="All 2 shards"):
        open_source(str(tmp_path / "s2"), "train", False, 0)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        open_source(str(tmp_path), "train", False, 0)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_source(str(tmp_path / "nothing"), "train", False, 0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        FolderSource(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no column of images; it has a, b"):
        pretrain_sources.image_column(None, ["a", "b"], "x")
    import datasets
    import pyarrow
    import pyarrow.parquet

    datasets.Dataset.from_dict({"image": [picture(1)]}).save_to_disk(tmp_path / "disk")
    assert open_source(str(tmp_path / "disk"), "train", False, 0).raw(0)[0].endswith("disk[0]")
    assert next(open_source(str(tmp_path / "disk"), "train", True, 0).rows(0)).name.endswith("[0]")
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), empty)
    assert pretrain_sources.is_empty(empty)
    torn = tmp_path / "torn.tar"
    torn.write_bytes(b"no tar at all" * 100)
    assert not pretrain_sources.is_empty(torn)  # it fails, with its name, when it is read


def test_names_that_are_no_ascii(tmp_path):
    folder = write_folder(tmp_path / "photos", 1)
    odd = [b"caf\xc3\xa9.jpg", b"caf\xe9.jpg"]  # the second is no UTF-8
    for name in odd:
        shutil.copy(folder / "00.jpg", folder / os.fsdecode(name))
    source = FolderSource(folder)
    assert [os.fsencode(source.raw(i)[1].name) for i in range(3)] == [b"00.jpg", *odd]
    assert all(source.raw(i)[1].is_file() for i in range(3))


def test_files_of_several_kinds_are_not_left_out_in_silence(data, tmp_path):
    both = write_folder(tmp_path / "both", 3)
    write_tar(both / "x.tar", 0, 2)
    with pytest.raises(ValueError, match="1 .tar files, 3 images. Give each kind as a source of its own"):
        open_source(str(both), "train", False, 0)
    assert len(open_source(str(both / "*.jpg"), "train", False, 0)) == 3
    assert open_source(str(both / "*.jpg"), "train", False, 0).raw(1)[1] == both / "01.jpg"
    assert isinstance(open_source(str(both / "*.tar"), "train", False, 0), StreamSource)
    assert len(open_source(str(both / "02.jpg"), "train", False, 0)) == 1
    shutil.copy(data / "table" / "a.parquet", both / "x.parquet")
    with pytest.raises(ValueError, match="1 .parquet files, 1 .tar files"):
        open_source(str(both / "x.*"), "train", False, 0)
    write_tar(tmp_path / "nest" / "a" / "0.tar", 0, 2)
    with pytest.raises(FileNotFoundError, match=r"no image, but 1 shards in folders below.*nest/\*/\*.tar"):
        open_source(str(tmp_path / "nest"), "train", False, 0)
    write_tar(tmp_path / "nest" / "1.tar", 9, 3)
    with pytest.raises(ValueError, match=r"the folders in it as well.*\*\*/\*.tar"):
        open_source(str(tmp_path / "nest"), "train", False, 0)
    assert len({row.name for row in take(open_source(f"{tmp_path}/nest/**/*.tar", "train", False, 0), 5)}) == 5
    write_folder(tmp_path / "deep" / "photos", 2)
    write_tar(tmp_path / "deep" / "shards" / "0.tar", 0, 1)
    with pytest.raises(ValueError, match="1 .tar files, 2 images"):
        open_source(str(tmp_path / "deep"), "train", False, 0)
    (tmp_path / "list.txt").write_text("a.jpg")
    with pytest.raises(ValueError, match="neither image nor shard"):
        open_source(str(tmp_path / "list.txt"), "train", False, 0)


def test_misspelt_sources(data, monkeypatch):
    """What cannot be a data set's id never goes to the Hub; the rest does, and then both are said."""
    import datasets

    def unreachable(source, **_):
        raise ConnectionError(f"Couldn't reach '{source}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(data)
    for source, meant in (
        *(("photoz/", "photos"), ("shardz/*.tar", "shards"), ("./tabel", "table"), ("photos/00.jpq/", "00.jpg")),
        *(("photoz.tar", "photos"), ("a/b/c", None), ("07.jpg", None), ("synthetik:0:9:8x6", None)),
    ):
        with pytest.raises(FileNotFoundError, match="no file or folder") as caught:
            open_source(source, "train", False, 0)
        assert (f"{meant}'?" in str(caught.value)) if meant else ("did you mean" not in str(caught.value)), source
    for source in ("photoz", "photos/shardz"):
        with pytest.raises(
            FileNotFoundError, match=f"{source} here.*As the id .* ConnectionError|{source} here"
        ) as caught:
            open_source(source, "train", False, 0)
        assert "could not be read either (ConnectionError" in str(caught.value)
        assert ("did you mean 'photos'" in str(caught.value)) == (source == "photoz")
    for message, hint in (
        ("share the same prefix or the same types", "Copy the tars"),
        ("Unknown split", "owner/name: Unknown split Name another split"),
    ):

        def refuse(source, message=message, **_):
            raise ValueError(message)

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(ValueError, match=hint):
            open_source("owner/name", "train", True, 0)

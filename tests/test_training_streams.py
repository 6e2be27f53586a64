"""Streams with rows that cannot be used: what replaces them, in whole runs and in ones that go on."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training.checkpoints import PARTIAL, SavingError, naming_what_fails, whole_file, write_json
from training.data import MAX_ATTEMPTS, StepPlan, StreamingSet
from training.formats import BadSampleError


def reader(bad=(), broken=(), shy=()):
    """Rows are numbers: `bad` ones raise when read, `broken` ones when their people are, `shy` ones show nothing."""

    def people(row, name):
        if row in broken:
            raise BadSampleError(f"{name}: broken")
        return [row], None

    def samples(row, name):
        if row in bad:
            raise BadSampleError(f"{name}: bad")
        points = np.array([[3.0, 2.0, row not in shy]])
        return [{"name": name, "row": row, "image": np.zeros((8, 12, 3), np.uint8), "keypoints": points}]

    return SimpleNamespace(task="pose", people=people, samples=samples)


def stream(count, **kinds):
    rows = [(f"row {number}", number) for number in range(count)]
    return SimpleNamespace(name="stream", reader=reader(**kinds), rows=lambda epoch: iter(rows))


def rows_of(source, plan=None, skip_bad=True, min_visible=0):
    """(row, chance) of each sample."""

    def augment(sample, rng):
        return {**sample, "chance": rng.random()}

    plan = plan or StepPlan(6, 1)
    return [(s["row"], s["chance"]) for s in StreamingSet(source, augment, plan, min_visible, skip_bad)]


@pytest.mark.parametrize(
    "kinds, expected",
    [
        (dict(), [0, 1, 2, 3, 4, 5]),
        (dict(bad=[0]), [1, 1, 2, 3, 4, 5]),
        (dict(bad=[2, 3]), [0, 1, 4, 4, 4, 5]),
        (dict(bad=[4, 5]), [0, 1, 2, 3, 3, 3]),
        (dict(broken=[1]), [0, 2, 3, 4, 5, 6]),  # takes no place
    ],
)
def test_the_next_one_that_can_be_used_takes_the_place(kinds, expected):
    found = rows_of(stream(7, **kinds))
    assert [row for row, _ in found] == expected
    assert [chance for _, chance in found] == [chance for _, chance in rows_of(stream(7))]  # that of the place
    for start in range(6):
        assert rows_of(stream(7, **kinds), StepPlan(6, 1, start_step=start)) == found[start:]


def test_crops_that_show_too_little_are_replaced():
    source = stream(6, shy=[1])
    assert [row for row, _ in rows_of(source, min_visible=1)] == [0, 2, 2, 3, 4, 5]
    assert [row for row, _ in rows_of(source)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kinds, message", [(dict(bad=[0]), "row 0: bad"), (dict(broken=[0]), "row 0: broken")])
def test_bad_rows_are_named(kinds, message):
    with pytest.raises(BadSampleError, match=message):
        rows_of(stream(6, **kinds), skip_bad=False)


def test_a_stream_of_bad_rows_stops():
    with pytest.raises(BadSampleError, match="6 samples in a row could not be used"):
        rows_of(stream(6, bad=range(6)))
    count = 2 * MAX_ATTEMPTS
    with pytest.raises(BadSampleError, match=f"{MAX_ATTEMPTS} samples in a row could not be used"):
        rows_of(stream(count, bad=range(count)), StepPlan(count, 1))
    with pytest.raises(ValueError, match="holds nothing to train on"):
        rows_of(stream(6, broken=range(6)))


def test_what_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(SavingError, match=r"metrics.jsonl could not be written \(OSError: .*No space left"),
        naming_what_fails(tmp_path / "metrics.jsonl"),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
    (tmp_path / "a.json").mkdir()
    with pytest.raises(SavingError, match="a.json could not be written"):
        write_json(tmp_path / "a.json", {})


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    with whole_file(path) as partial, whole_file(tmp_path / "b") as other:
        assert partial.name.endswith(PARTIAL) and str(os.getpid()) in partial.name  # no other process has it
        partial.write_text("gone")
        partial.unlink()
        other.write_text("whole")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {
        "a.json": '{\n "step": 1\n}\n',
        "b": "whole",
    }


def test_workers_end_with_an_error_of_the_main_process():
    """They leave SIGTERM to it, which is how Python would end them."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from test_training_streams import Plain
from training.data import StepPlan, make_loader

batches = iter(make_loader(Plain(), StepPlan(40, 2), 1))
next(batches)
raise KeyError("an error of the training step")
"""
    tests = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tests.parent), str(tests)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.strip().endswith("KeyError: 'an error of the training step'")


class Plain:
    def __len__(self):
        return 40

    def __getitem__(self, key):
        return {"name": str(key), "image": np.zeros((8, 12, 3), np.uint8)}

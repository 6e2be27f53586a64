"""Look at a data set before training on it: what is in it, and what would train wrongly.

    python -m training.check_data my_normals --task normal
    python -m training.check_data coco/annotations/person_keypoints_val2017.json --task pose --keypoint_set coco

Prints facts, warnings and problems, and ends with status 1 if there is a problem.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from transformers import HfArgumentParser

from .formats import TASKS, BadSampleError, CocoKeypoints, Sample
from .layouts import ClassLayout, KeypointLayout, class_layout, keypoint_layout, missing_pairs
from .options import check_names, parse_values
from .sources import open_samples
from .tables import COLUMNS, StreamSamples

# A sign or an order that fewer than this share of the samples agree on is mixed.
AGREEMENT = 0.8
RIM_SHARE = 0.12
SHOWN = 8


@dataclass(frozen=True)
class CheckOptions:
    """Options of check_data."""

    data: str = field(default="", metadata={"help": "as --train_data of the scripts"})
    task: str = field(default="", metadata={"help": ", ".join(TASKS)})
    split: str = field(default="train", metadata={"help": "split, where there are several"})
    keypoint_set: str = field(default="coco", metadata={"help": "pose: as in finetune_pose"})
    class_set: str = field(default="goliath28", metadata={"help": "segmentation: as in finetune_segmentation"})
    image_folder: str | None = field(default=None, metadata={"help": "pose: where the images are"})
    columns: list[str] = field(default_factory=list, metadata={"help": "of a `datasets` source, role=NAME"})
    streaming: bool = field(default=False, metadata={"help": "stream a `datasets` source"})
    limit: int | None = field(default=None, metadata={"help": "look at so many samples, spread over the data set"})
    as_json: bool = field(default=False, metadata={"help": "print one JSON object"})


@dataclass
class Report:
    """What was found. `problems` train wrongly; `warnings` may be as they should."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Lines to read."""
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"WARNING  {text}" for text in self.warnings] + [f"PROBLEM  {text}" for text in self.problems]
        return "\n".join([*lines, f"{len(self.problems)} problems, {len(self.warnings)} warnings"])


def check(samples: Iterable[Any], task: str, layout: KeypointLayout | ClassLayout | None = None) -> Report:
    """Check samples one by one; memory does not grow with their number.

    Args:
        samples: functions without arguments that return a sample or raise `BadSampleError`.
        task: one of the four.
        layout: keypoints or classes.
    """
    report = Report()
    if layout is not None:
        pairs = layout.flip_pairs if isinstance(layout, KeypointLayout) else layout.swap_pairs
        alone = missing_pairs(layout.names, pairs)
        if alone:
            report.problems.append(
                f"{len(alone)} labels have a side but no partner that a mirrored image would exchange them with: "
                f"{_some(alone)}. Add flip_pairs (keypoints) or swap_pairs (classes) to the layout."
            )
    statistics = STATISTICS[task](layout)
    sizes, count, bad = [], 0, 0
    for get in samples:
        count += 1
        try:
            sample = get()
        except BadSampleError as error:
            bad += 1
            if bad <= SHOWN:
                report.problems.append(str(error))
            continue
        sizes.append(sample["image"].shape[:2])
        sizes = [tuple(np.min(sizes, axis=0)), tuple(np.max(sizes, axis=0))]
        statistics.add(sample, report)
    report.facts["samples looked at"] = count
    if count == 0:
        report.problems.append("The data set is empty.")
    if bad:
        report.facts["samples that cannot be used"] = bad
    if sizes:
        report.facts["image sizes (height x width)"] = " to ".join(f"{h} x {w}" for h, w in sizes)
        statistics.finish(report)
    return report


class PoseStatistics:
    """How often each keypoint is labelled, and whether keypoints lie in their boxes."""

    def __init__(self, layout: KeypointLayout):
        self.layout = layout
        self.labelled = np.zeros((2, len(layout.names)), dtype=np.int64)
        self.num_people = self.num_misfits = self.num_outside = 0
        self.misfits: list[str] = []

    def add(self, sample: Sample, report: Report) -> None:
        """Count one person."""
        x, y, visibility = sample["keypoints"].T
        left, top, width, height = sample["box"]
        seen = visibility > 0
        self.num_people += 1
        self.labelled += np.stack([seen, visibility >= 2])
        inside = (
            (x >= left - width / 2) & (x <= left + 1.5 * width) & (y >= top - height / 2) & (y <= top + 1.5 * height)
        )
        rows, columns = sample["image"].shape[:2]
        on_image = (x >= 0) & (x <= columns) & (y >= 0) & (y <= rows)
        self.num_outside += int((seen & ~on_image).sum())
        if seen.any() and (seen & inside).sum() < 0.5 * seen.sum():
            self.num_misfits += 1
            self.misfits.append(sample["name"]) if len(self.misfits) < SHOWN else None

    def finish(self, report: Report) -> None:
        """Report them."""
        names = self.layout.names
        labelled, visible = self.labelled
        report.facts["people"] = self.num_people
        report.facts["labelled keypoints per person"] = round(float(labelled.sum()) / max(self.num_people, 1), 2)
        report.facts["of these seen, not hidden"] = f"{visible.sum() / max(labelled.sum(), 1):.1%}"
        never = [name for name, total in zip(names, labelled, strict=True) if total == 0]
        if never:
            report.warnings.append(f"{len(never)} of {len(names)} keypoints are never labelled: {_some(never)}.")
        if self.num_outside:
            report.warnings.append(f"{self.num_outside} labelled keypoints lie outside their image.")
        if self.num_misfits:
            text = f"{self.num_misfits} people have most keypoints far from their box: {_some(self.misfits)}."
            many = self.num_misfits > 0.02 * self.num_people
            hint = " Are boxes (x, y, width, height), and keypoints (x, y, visibility)?"
            (report.problems if many else report.warnings).append(text + hint if many else text)


class SegmentationStatistics:
    """The histogram of labels."""

    def __init__(self, layout: ClassLayout):
        self.layout = layout
        self.pixels = np.zeros(256, dtype=np.int64)
        self.images = np.zeros(256, dtype=np.int64)
        self.num_single = 0

    def add(self, sample: Sample, report: Report) -> None:
        """Count one label map."""
        counts = np.bincount(sample["segmentation_map"].ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        self.num_single += np.count_nonzero(np.delete(counts, self.layout.ignore_index)) <= 1

    def finish(self, report: Report) -> None:
        """Report them."""
        names, ignored = self.layout.names, int(self.pixels[self.layout.ignore_index])
        total = max(int(self.pixels.sum()), 1)
        report.facts["share of pixels, and images, per class"] = "".join(
            f"\n    {name}: {self.pixels[index] / total:.2%}, {self.images[index]}" for index, name in enumerate(names)
        )
        report.facts["ignored pixels"] = f"{ignored / total:.2%}"
        never = [name for index, name in enumerate(names) if self.pixels[index] == 0]
        if never:
            report.warnings.append(f"{len(never)} of {len(names)} classes never occur: {_some(never)}.")
        if self.num_single:
            report.warnings.append(f"{self.num_single} label maps hold a single class.")


class DepthStatistics:
    """The range of depth, and whether larger is farther."""

    def __init__(self, layout: None = None):
        self.low, self.high, self.shares, self.farther = np.inf, -np.inf, [], Votes()  # type: ignore[var-annotated]

    def add(self, sample: Sample, report: Report) -> None:
        """Measure one map."""
        mask, depth = sample["mask"], sample["depth"]
        values = depth[mask]
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.shares = _extend_range(self.shares, float(mask.mean()))
        if values.max() == values.min():
            _limited(report, f"{sample['name']}: depth is {values.min():g} on the whole person.")
            return
        # A body bends away from the camera at its outline, so depth grows toward the rim.
        rim, _ = rim_of(mask)
        inner = mask & ~rim
        if rim.any() and inner.any():
            self.farther.add(float(np.median(depth[rim]) - np.median(depth[inner])))

    def finish(self, report: Report) -> None:
        """Report them."""
        report.facts["depth on people"] = f"{self.low:.4g} to {self.high:.4g}"
        report.facts["share of the picture that is people"] = _range_text(self.shares)
        report.facts["larger is"] = self.farther.words("farther", "nearer")
        if self.low <= 0:
            report.warnings.append("Depth is 0 or negative somewhere on a person; is it distance along z?")
        if self.farther.share <= 1 - AGREEMENT and self.farther.count:
            report.problems.append(
                "Depth looks like inverse depth (disparity): outlines are larger than the middle of the body in few "
                "of the samples. The model learns that larger is farther: store 1 / value."
            )


class NormalStatistics:
    """The order and the signs of the axes, from how bodies bend away at their outline."""

    def __init__(self, layout: None = None):
        self.shares: list[float] = []
        self.x, self.y, self.z = Votes(), Votes(), Votes()
        # How much each stored component follows the picture's columns, rows, and the line of sight.
        self.follows = np.zeros((3, 3))

    def add(self, sample: Sample, report: Report) -> None:
        """Measure one map."""
        mask, normals = sample["mask"], sample["normals"]
        self.shares = _extend_range(self.shares, float(mask.mean()))
        rim, outward = rim_of(mask)
        if not rim.any():
            return
        sideways = normals[rim].T @ outward[rim] / np.count_nonzero(rim)  # (3, 2): component by column, row
        facing = normals[mask & ~rim].mean(axis=0) if (mask & ~rim).any() else normals[mask].mean(axis=0)
        self.follows += np.abs(np.column_stack([sideways, facing]))
        self.x.add(sideways[0, 0])
        self.y.add(-sideways[1, 1])  # rows count down
        self.z.add(facing[2])

    def finish(self, report: Report) -> None:
        """Report them."""
        report.facts["share of the picture that is people"] = _range_text(self.shares)
        order = max(
            itertools.permutations(range(3)), key=lambda p: sum(self.follows[p[axis], axis] for axis in range(3))
        )
        names = ["", "", ""]
        for axis, component in zip("xyz", order, strict=True):
            names[component] = axis
        report.facts["order of the components"] = ", ".join(names)
        if order != (0, 1, 2):
            report.problems.append(
                f"The components look like ({', '.join(names)}), expected (x, y, z): a mirrored image negates the "
                "first, which must be x."
            )
            return
        signs = {
            "x": (self.x, "right", "left"),
            "y": (self.y, "up", "down"),
            "z": (self.z, "toward the camera", "away from the camera"),
        }
        for axis, (votes, positive, negative) in signs.items():
            report.facts[f"{axis} points"] = votes.words(positive, negative)
            if votes.is_mixed:
                report.problems.append(
                    f"{axis} points {positive} in {votes.share:.0%} of the samples: conventions are mixed."
                )
            elif votes.share < 0.5:
                report.warnings.append(
                    f"{axis} points {negative}; here and in the synthetic humans it points {positive}. Train all data "
                    "with one convention, and a released checkpoint with its own."
                )


@dataclass
class Votes:
    """How many samples have a positive value."""

    count: int = 0
    positive: int = 0

    def add(self, value: float) -> None:
        """Count one sample."""
        self.count += 1
        self.positive += value > 0

    @property
    def share(self) -> float:
        """Share of the samples that are positive, 0 for none."""
        return self.positive / self.count if self.count else 0.0

    @property
    def is_mixed(self) -> bool:
        """Whether neither sign has a clear majority."""
        return self.count > 0 and 1 - AGREEMENT < self.share < AGREEMENT

    def words(self, positive: str, negative: str) -> str:
        """The sign in words."""
        if not self.count:
            return "unknown"
        share = max(self.share, 1 - self.share)
        return f"{positive if self.share >= 0.5 else negative} ({share:.0%} of {self.count} samples)"


STATISTICS: dict[str, Any] = {
    "pose": PoseStatistics,
    "segmentation": SegmentationStatistics,
    "depth": DepthStatistics,
    "normal": NormalStatistics,
}


def rim_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outer part of a mask, and the direction out of it.

    Returns:
        rim (height, width) bool: an eighth of the deepest distance to the outline; where the mask meets the border of
        the picture it has no outline. outward (height, width, 2): unit vectors (x, y) in picture axes, y down.
    """
    distance = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    rows, columns = np.gradient(ndimage.gaussian_filter(distance, 1.0))
    outward = -np.stack([columns, rows], axis=-1)
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-6)
    return mask & (distance <= max(1.5, RIM_SHARE * distance.max())), outward


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; the status to exit with."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given = ["--data", *given]
    (options,) = HfArgumentParser(CheckOptions, description=__doc__).parse_args_into_dataclasses(args=given)
    check_names("task", [options.task], TASKS, "--task")
    layout = None
    if options.task == "pose":
        layout = keypoint_layout(options.keypoint_set)
    elif options.task == "segmentation":
        layout = class_layout(options.class_set)
    try:
        samples = open_samples(
            options.data,
            options.task,
            layout,
            options.split,
            image_folder=options.image_folder,
            streaming=options.streaming,
            columns=parse_values(options.columns, list(COLUMNS), "--columns"),
        )
        report = check(_getters(samples, options.limit), options.task, layout)
        if isinstance(samples, CocoKeypoints) and samples.left_out:
            left = ", ".join(f"{count} {reason}" for reason, count in samples.left_out.items())
            report.facts["people left out"] = left
    except (FileNotFoundError, ValueError) as error:
        report = Report(problems=[str(error)])
    print(json.dumps(dataclasses.asdict(report), default=str) if options.as_json else report.text())
    return 1 if report.problems else 0


def _getters(samples: Any, limit: int | None) -> Iterable[Any]:
    """Each sample as a function, so that one that cannot be read does not end the others."""
    if isinstance(samples, StreamSamples):
        for name, row in itertools.islice(samples.rows(0), limit):
            try:
                found = samples.reader.samples(row, name)
            except BadSampleError as error:
                yield _raiser(error)
                continue
            yield from (lambda sample=sample: sample for sample in found)
        return
    count = len(samples)
    chosen = range(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).round().astype(int)
    yield from (lambda index=int(index): samples[index] for index in chosen)


def _raiser(error: BadSampleError) -> Any:
    def get() -> Sample:
        raise error

    return get


def _limited(report: Report, text: str) -> None:
    if len(report.problems) < 2 * SHOWN:
        report.problems.append(text)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _extend_range(values: list[float], value: float) -> list[float]:
    return [min([*values, value]), max([*values, value])]


def _range_text(values: Sequence[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}"


if __name__ == "__main__":
    sys.exit(main())

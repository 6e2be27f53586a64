"""Look at a data set before training on it: what is in it, and what would train wrongly.

    python -m training.check_data my_normals --task normal
    python -m training.check_data coco/annotations/person_keypoints_val2017.json --task pose --keypoint_set coco

Prints facts, warnings and problems, names the files, and ends with status 1 if there is a problem, or 2 if the
command line is wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from transformers import HfArgumentParser
from transformers.utils import logging

from sapiens_hf.labels import has_side, missing_pairs

from .formats import MAX_HOLES, TASKS, BadSampleError, CocoKeypoints, Sample
from .layouts import ClassLayout, KeypointLayout, class_layout, keypoint_layout
from .options import check_names, parse_values
from .sources import open_samples
from .tables import COLUMNS, StreamSamples

logger = logging.get_logger(__name__)

# Where the axes of normals point: as in the synthetic humans, and the other way.
WAYS = {"x": ("right", "left"), "y": ("up", "down"), "z": ("toward the camera", "away from the camera")}
RIM_SHARE = 0.12
# What a sample must show to have a vote, from 270 synthetic pictures and 1800 close or coarse views of them: on whole
# people none votes wrongly, of all with so many pixels one in a thousand.
MIN_RIM_PIXELS = 50  # that face sideways, and so many that face up or down
MIN_ORDER_LEAD, MIN_SLOPE = 0.4, 0.2  # of 3, and of 1
MIN_PAIRS, MIN_PAIRS_SHARE = 100, 0.6
MIN_OTHERS = 4  # votes among which a single one may be wrong
SHOWN = 8
TINY_BOX_PX = 2
# Without masks people fill so much of a picture only where the background has a value too.
WHOLE_PICTURE = 0.99


@dataclass(frozen=True)
class CheckOptions:
    """Options of check_data."""

    data: str = field(metadata={"help": "as --train_data of the scripts"})
    task: str = field(metadata={"help": ", ".join(TASKS)})
    split: str = field(default="train", metadata={"help": "split, where there are several"})
    keypoint_set: str = field(default="coco", metadata={"help": "pose: as in finetune_pose"})
    class_set: str = field(default="goliath28", metadata={"help": "segmentation: as in finetune_segmentation"})
    image_folder: str | None = field(default=None, metadata={"help": "pose: where the images are"})
    columns: list[str] = field(default_factory=list, metadata={"help": "of a `datasets` source, role=NAME"})
    streaming: bool = field(default=False, metadata={"help": "stream a `datasets` source"})
    limit: int | None = field(
        default=None, metadata={"help": "look at so many samples, spread over the data set; of a stream the first"}
    )
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
        if isinstance(layout, KeypointLayout) and not pairs and not any(map(has_side, layout.names)):
            report.warnings.append(
                f"No keypoint of {layout.name} has a side in its name (left_x, LeftX, l_x), so a mirrored image "
                "exchanges none. If there are lefts and rights, add flip_pairs to the layout."
            )
    statistics = STATISTICS[task](layout)
    sizes, count, bad = [], 0, 0
    for get in samples:
        count += 1
        try:
            sample = get()
        except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:
            bad += 1
            if bad <= SHOWN:
                named = isinstance(error, BadSampleError)
                report.problems.append(str(error) if named else f"Sample {count} cannot be read: {_words(error)}.")
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
        self.num_people = self.num_misfits = self.num_outside = self.num_tiny = self.num_shares = 0
        self.misfits: list[str] = []

    def add(self, sample: Sample, report: Report) -> None:
        """Count one person."""
        x, y, visibility = sample["keypoints"].T
        left, top, width, height = sample["box"]
        seen = visibility > 0
        self.num_people += 1
        self.num_tiny += int(min(width, height) < TINY_BOX_PX)
        self.labelled += np.stack([seen, visibility >= 2])
        inside = (
            (x >= left - width / 2) & (x <= left + 1.5 * width) & (y >= top - height / 2) & (y <= top + 1.5 * height)
        )
        rows, columns = sample["image"].shape[:2]
        self.num_shares += int(seen.sum() > 1 and max(x[seen].max(), y[seen].max()) < TINY_BOX_PX)
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
        if self.num_tiny > 0.5 * self.num_people:
            report.problems.append(
                f"{self.num_tiny} of {self.num_people} boxes are less than {TINY_BOX_PX} pixels wide or high. Boxes "
                "and keypoints are in pixels, not in shares of the image."
            )
        elif self.num_shares > 0.5 * self.num_people:
            report.problems.append(
                f"The keypoints of {self.num_shares} of {self.num_people} people lie within {TINY_BOX_PX} pixels of "
                "the upper left corner. Keypoints are in pixels, not in shares of the image."
            )
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
        if len(never) == len(names) - 1:
            only = next(name for name in names if name not in never)
            index = self.layout.ignore_index
            or_ignored = f" or has the label {index}, which does not count" if ignored else ""
            hint = f" In masks of 0 and {index} write 1 for {index}, or set another ignore_index in the class set."
            report.problems.append(
                f"Every pixel is {only}{or_ignored}: nothing can be learned.{hint if ignored else ''}"
            )
        elif never:
            report.warnings.append(f"{len(never)} of {len(names)} classes never occur: {_some(never)}.")
        if self.num_single:
            report.warnings.append(f"{self.num_single} label maps hold a single class.")


class DepthStatistics:
    """The range of depth, whether larger is farther, and holes."""

    def __init__(self, layout: None = None):
        self.low, self.high, self.shares, self.farther = np.inf, -np.inf, [], Votes("farther")  # type: ignore[var-annotated]
        # By what is wrong: samples that have some of it, and those that have too much.
        self.holes = {kind: (Votes(kind), Votes(kind)) for kind in ("0 or negative", "NaN or infinite")}
        self.coverage = Coverage("depth is above 0")

    def add(self, sample: Sample, report: Report) -> None:
        """Measure one map."""
        mask, depth, name = sample["mask"], sample["depth"], sample["name"]
        if self.coverage.is_whole(sample):
            return
        values = depth[mask]
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.shares = _extend_range(self.shares, float(mask.mean()))
        for kind, count in zip(self.holes, ((values <= 0).sum(), sample.get("num_not_finite", 0)), strict=True):
            if count:
                self.holes[kind][int(count > MAX_HOLES * values.size)].add(kind, f"{name} ({count} pixels)")
        if values.max() == values.min():
            _limited(report, f"{name}: depth is {values.min():g} on the whole person.")
            return
        # A body bends away from the camera at its outline: depth grows from a place further in to the rim.
        rim, outward, width = rim_of(mask)
        rows, columns = np.nonzero(rim)
        inner = np.rint(np.stack([rows, columns]) - 2 * width * outward[rim].T[::-1]).astype(int)
        inner_rows, inner_columns = np.clip(inner, 0, np.array(mask.shape)[:, None] - 1)
        usable = (mask & ~rim & (depth > 0))[inner_rows, inner_columns] & (depth[rim] > 0)
        if usable.sum() >= MIN_PAIRS:
            growth = np.sign(depth[rim] - depth[inner_rows, inner_columns])[usable].mean()
            self.farther.add(_clear(growth, "farther", "nearer", 2 * MIN_PAIRS_SHARE - 1), name)

    def finish(self, report: Report) -> None:
        """Report them."""
        self.coverage.finish(report)
        if not self.shares:
            return
        report.facts["depth on people"] = f"{self.low:.4g} to {self.high:.4g}"
        report.facts["share of the picture that is people"] = _range_text(self.shares)
        report.facts["larger is"] = self.farther.words()
        for kind, (few, many) in self.holes.items():
            hint = (
                "Is it distance along z? Leave the holes out of the masks."
                if kind == "0 or negative"
                else "Without masks they count as background: fill holes, write 0 where nobody is, or add masks."
            )
            if few.count:
                report.warnings.append(f"Depth is {kind} on a few pixels in {few.who(kind)}. {hint}")
            if many.count:
                report.problems.append(
                    f"Depth is {kind}, in number over {MAX_HOLES:.0%} of the pixels of people, in {many.who(kind)}. "
                    f"{hint}"
                )
        self.judge_directions(report)

    def directions(self) -> list[Votes]:
        """What samples may disagree on."""
        return [self.farther]

    def judge_directions(self, report: Report) -> None:
        """Report inverse depth."""
        if self.farther.counts["nearer"]:
            report.problems.append(
                "Depth looks like inverse depth (disparity), larger at outlines than further in, in "
                f"{self.farther.who('nearer')}. The model learns that larger is farther: store 1 / value."
            )


class NormalStatistics:
    """The order and the signs of the axes, from how bodies bend away at their outline."""

    def __init__(self, layout: None = None):
        self.shares: list[float] = []
        self.order = Votes("x, y, z")
        self.signs = {letter: Votes(way) for letter, (way, _) in WAYS.items()}
        self.coverage = Coverage("the normal is not zero")

    def add(self, sample: Sample, report: Report) -> None:
        """Measure one map."""
        mask, normals, name = sample["mask"], sample["normals"], sample["name"]
        if self.coverage.is_whole(sample):
            return
        self.shares = _extend_range(self.shares, float(mask.mean()))
        rim, outward, _ = rim_of(mask)
        inner = mask & ~rim
        sideways = outward[rim] * (1, -1)  # right and up; rows count down
        evidence = (sideways**2).sum(axis=0)
        if evidence.min() < MIN_RIM_PIXELS or not inner.any():
            return
        # How much each stored component follows right, up, and the line of sight: (3 components, 3 axes).
        follows = np.column_stack([normals[rim].T @ sideways / evidence, normals[inner].mean(axis=0)])
        scores = {p: sum(abs(follows[p[axis], axis]) for axis in range(3)) for p in itertools.permutations(range(3))}
        second, best = sorted(scores, key=scores.__getitem__)[-2:]
        if best != (0, 1, 2):
            second = (0, 1, 2)
        if scores[best] - scores[second] < MIN_ORDER_LEAD:
            return
        self.order.add(", ".join("xyz"[best.index(component)] for component in range(3)), name)
        if best == (0, 1, 2):
            for axis, (letter, ways) in enumerate(WAYS.items()):
                self.signs[letter].add(_clear(follows[axis, axis], *ways, MIN_SLOPE), name)

    def finish(self, report: Report) -> None:
        """Report them."""
        self.coverage.finish(report)
        if not self.shares:
            return
        report.facts["share of the picture that is people"] = _range_text(self.shares)
        report.facts["order of the components"] = self.order.words()
        if not self.order.count:
            report.warnings.append("Order and signs of the components cannot be told: no sample shows them clearly.")
        for letter, votes in self.signs.items():
            report.facts[f"{letter} points"] = votes.words()
        self.judge_directions(report)

    def directions(self) -> list[Votes]:
        """What samples may disagree on."""
        return [self.order, *self.signs.values()]

    def judge_directions(self, report: Report) -> None:
        """Report another order, and signs that are mixed or not as here."""
        for order in sorted(set(self.order.counts) - {self.order.expected}):
            report.problems.append(
                f"The components look like ({order}), expected (x, y, z), in {self.order.who(order)}. A mirrored "
                "image negates the first, which must be x."
            )
        for letter, votes in self.signs.items():
            most = votes.most
            for other in set(votes.counts) - {most}:
                report.problems.append(
                    f"Conventions are mixed: {letter} points {most} in {votes.counts[most]} samples, but {other} in "
                    f"{votes.who(other)}."
                )
            if len(votes.counts) == 1 and most != votes.expected:
                report.warnings.append(
                    f"{letter} points {most}; here and in the synthetic humans it points {votes.expected}. Train all "
                    "data with one convention, and a released checkpoint with its own."
                )


class Coverage:
    """Pictures without masks in which the whole background has a value, and so counts as people."""

    def __init__(self, rule: str):
        self.rule, self.votes, self.count = rule, Votes("people"), 0

    def is_whole(self, sample: Sample) -> bool:
        """Whether a sample is such a one."""
        self.count += 1
        is_whole = "mask_is_derived" in sample and float(sample["mask"].mean()) >= WHOLE_PICTURE
        self.votes.add("whole" if is_whole else None, sample["name"])
        return is_whole

    def finish(self, report: Report) -> None:
        """A problem where many pictures are so; a face may fill one."""
        if self.votes.count:
            found = report.problems if self.votes.count > 0.5 * self.count else report.warnings
            found.append(
                f"Without masks people are where {self.rule}: the whole picture in {self.votes.who('whole')}. Add "
                "masks, or write 0 where nobody is."
            )


class Votes:
    """Which answer each sample gives, with the names of the first few of each."""

    def __init__(self, expected: str):
        self.expected = expected
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def add(self, answer: str | None, name: str) -> None:
        """Count one sample; None has no vote."""
        if answer is not None:
            self.counts[answer] += 1
            names = self.names.setdefault(answer, [])
            names.append(name) if len(names) < SHOWN else None

    def forget_single(self) -> list[str]:
        """Drop answers of one sample if there are enough others: a view from close up may look wrong without being.

        Returns:
            The names of the samples that gave them.
        """
        single = [a for a, count in self.counts.items() if count == 1] if self.count >= MIN_OTHERS else []
        for answer in single:
            del self.counts[answer]
        return [name for answer in single for name in self.names[answer]]

    @property
    def count(self) -> int:
        """Number of samples with a vote."""
        return self.counts.total()

    @property
    def most(self) -> str:
        """The answer of most samples; of equals, the expected one."""
        return max(self.counts, key=lambda answer: (self.counts[answer], answer == self.expected), default="unknown")

    def words(self) -> str:
        """The answer of most samples and their share."""
        share = self.counts[self.most] / max(self.count, 1)
        return f"{self.most} ({share:.0%} of {self.count} samples)" if self.count else "unknown"

    def who(self, answer: str) -> str:
        """How many samples gave an answer, and the first few of them."""
        return f"{self.counts[answer]} samples: {_some(self.names[answer], self.counts[answer])}"


def _clear(value: float, positive: str, negative: str, least: float) -> str | None:
    """The answer of a value that is far enough from 0."""
    return (positive if value > 0 else negative) if abs(value) >= least else None


STATISTICS: dict[str, Any] = {
    "pose": PoseStatistics,
    "segmentation": SegmentationStatistics,
    "depth": DepthStatistics,
    "normal": NormalStatistics,
}


def rim_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The outer part of a mask, the direction out of it, and how wide it is.

    Returns:
        rim (height, width) bool: an eighth of the deepest distance to the outline; where the mask meets the border of
        the picture it has no outline. outward (height, width, 2): unit vectors (x, y) in picture axes, y down.
        width in pixels.
    """
    distance = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    rows, columns = np.gradient(ndimage.gaussian_filter(distance, 1.0))
    outward = -np.stack([columns, rows], axis=-1)
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-6)
    width = max(1.5, RIM_SHARE * float(distance.max()))
    return mask & (distance <= width), outward, width


def check_labels(samples: Any, layout: ClassLayout, look_at: int = 16) -> str | None:
    """Whether some label maps, spread over the data set, hold nothing to learn; None if they do.

    For the start of a run: whole data sets are for `check`.
    """
    statistics, report = SegmentationStatistics(layout), Report()
    for sample in _spread(samples, look_at):
        statistics.add(sample, report)
    if statistics.pixels[layout.ignore_index]:  # a few that are all background say little of the others
        statistics.finish(report)
    return report.problems[0] if report.problems else None


def check_geometry(samples: Any, task: str, look_at: int = 16) -> str | None:
    """What is wrong with some samples of depth or normals, spread over the data set; None if nothing is.

    For the start of a run: whole data sets are for `check`. A single sample that differs from the others, and whole
    pictures that count as people, are named in a warning.
    """
    statistics, report, doubts = STATISTICS[task](None), Report(), Report()
    for sample in _spread(samples, look_at):
        statistics.add(sample, report)
    statistics.coverage.finish(doubts)
    odd = {name for votes in statistics.directions() for name in votes.forget_single()}
    if odd:
        doubts.warnings.append(f"{', '.join(sorted(odd))}: the axes are, or depth runs, another way than in the rest.")
    for text in doubts.problems + doubts.warnings:
        logger.warning(text)
    statistics.judge_directions(report)
    return report.problems[0] if report.problems else None


def check_boxes(samples: Any) -> str | None:
    """What is wrong with the boxes of an annotation file as a whole; None if nothing is."""
    count = getattr(samples, "num_overhanging", 0)
    if count <= 0.5 * len(samples):
        return None
    return (
        f"{count} of {len(samples)} boxes reach beyond the right or lower side of their image. Boxes are x, y, width, "
        "height, not two corners."
    )


def _spread(samples: Any, look_at: int) -> Iterator[Sample]:
    """Some samples of all parts of a list; of those that cannot be used training speaks when they come."""
    places = np.unique(np.linspace(0, len(samples) - 1, look_at).round().astype(int)) if len(samples) else ()
    for place in places:
        with suppress(BadSampleError):
            yield samples[int(place)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; the status to exit with."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given = ["--data", *given]
    parser = HfArgumentParser(CheckOptions, description=__doc__)
    options, unknown = parser.parse_args_into_dataclasses(args=given, return_remaining_strings=True)
    layout: KeypointLayout | ClassLayout | None = None
    try:
        if unknown:
            names = [f"--{entry.name}" for entry in dataclasses.fields(CheckOptions)]
            check_names("option", unknown[:1], names, "arguments")
        check_names("task", [options.task], TASKS, "--task")
        if options.limit is not None and options.limit < 1:
            raise ValueError(f"--limit is {options.limit}; expected at least 1.")
        columns = parse_values(options.columns, list(COLUMNS), "--columns")
        if options.task == "pose":
            layout = keypoint_layout(options.keypoint_set)
        elif options.task == "segmentation":
            layout = class_layout(options.class_set)
    except ValueError as error:
        parser.error(str(error))  # ends with status 2
    try:
        samples = open_samples(
            options.data,
            options.task,
            layout,
            options.split,
            image_folder=options.image_folder,
            streaming=options.streaming,
            columns=columns,
        )
        report = check(_getters(samples, options.limit), options.task, layout)
        if isinstance(samples, CocoKeypoints) and samples.left_out:
            left = ", ".join(f"{count} {reason}" for reason, count in samples.left_out.items())
            report.facts["people left out"] = left
        wrong = None if isinstance(samples, StreamSamples) else check_boxes(samples)
        if wrong:
            report.problems.append(wrong)
    except (FileNotFoundError, ValueError, ImportError) as error:
        report = Report(problems=[str(error)])
    except Exception as error:  # whatever a broken file, a lost connection or a library of a data format raises
        report = Report(problems=[f"{options.data} cannot be read as {options.task} data: {_words(error)}."])
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


def _some(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    return ", ".join(names[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _extend_range(values: list[float], value: float) -> list[float]:
    return [min([*values, value]), max([*values, value])]


def _range_text(values: Sequence[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}"


if __name__ == "__main__":
    sys.exit(main())

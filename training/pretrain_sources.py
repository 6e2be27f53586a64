"""Where the images of pretraining come from: folders, tables and shards of `datasets`, synthetic people, mixtures.

A source hands out encoded images; workers decode them. Sources at hand (`MapSource`) are asked by index, streams are
read in order, once, by the process that trains, so nothing depends on the number of loader workers.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers.utils import logging

from .data import StepPlan
from .formats import PICTURE_SUFFIXES
from .pretrain_streams import (
    MIXED_ROWS,
    STREAM_COUNTS,
    Row,
    StreamSource,
    count_tar_rows,
    image_column,
    open_tars,
    read_ahead,
)
from .shards import SHARD_SUFFIXES
from .sources import SyntheticSamples
from .tables import datasets_library, encoded, is_saved_table, load_table, undecoded

logger = logging.get_logger(__name__)

# Places of an epoch that are arranged at a time; within each, every source has its share.
BLOCK_SIZE = 65_536


class MapSource(Protocol):
    """Images that can be asked for by index."""

    name: str

    def __len__(self) -> int: ...

    def raw(self, index: int) -> tuple[str, Any]:
        """Name and encoded image."""
        ...


class FolderSource:
    """All images below a folder, in the order of their paths, or the given ones.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
        ValueError: if shards lie among the images.
    """

    def __init__(self, folder: str | Path, files: Sequence[Path] | None = None):
        self.name, self.folder = str(folder), Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        kinds: Counter[str] = Counter()
        names: list[bytes] = []  # not paths: of a hundred million these would take tens of gigabytes
        for path in self.folder.rglob("*") if files is None else files:
            if path.suffix.lower() in PICTURE_SUFFIXES + SHARD_SUFFIXES:
                kinds[kind_of(path)] += 1
                names.append(os.fsencode(path.relative_to(self.folder)))
        check_one_kind(folder, kinds)
        if not names:
            raise FileNotFoundError(f"{folder} holds no image with one of {', '.join(PICTURE_SUFFIXES)}.")
        self.files = np.sort(np.array(names, dtype=np.bytes_))  # one array of text, which workers share
        if "images" not in kinds:
            first = self.folder / os.fsdecode(self.files[0])
            raise FileNotFoundError(
                f"{folder} holds no image, but {len(names)} shards in folders below it: give those folders, or a "
                f"pattern such as '{first.parent.parent}/*/*{first.suffix}'."
            )

    def __len__(self) -> int:
        return len(self.files)

    def raw(self, index: int) -> tuple[str, Any]:
        path = self.folder / os.fsdecode(self.files[index])
        return str(path), path


class TableSource:
    """A map-style `datasets.Dataset` with a column of images."""

    def __init__(self, table: Any, name: str, column: str | None = None):
        column = column or image_column(table.features, table.column_names, name)
        self.name, self.column, self.table = name, column, undecoded(table.select_columns([column]))
        if not len(table):
            raise ValueError(f"{name} holds no image.")

    def __len__(self) -> int:
        return len(self.table)

    def raw(self, index: int) -> tuple[str, Any]:
        return f"{self.name}[{index}]", encoded(self.table[int(index)][self.column])


class SyntheticSource:
    """Synthetic people made while training: `synthetic:SEED:COUNT:HxW`."""

    def __init__(self, source: str):
        self.name, self.samples = source, SyntheticSamples(source, "segmentation", None)

    def __len__(self) -> int:
        return len(self.samples)

    def raw(self, index: int) -> tuple[str, Any]:
        sample = self.samples[index]
        return sample["name"], sample["image"]


def open_source(
    source: str,
    split: str,
    streaming: bool,
    seed: int,
    column: str | None = None,
    max_bad_share: float = 0.01,
) -> MapSource | StreamSource:
    """A source from its text.

    Args:
        source: a folder, pattern or file of images or of `.tar` or `.parquet` shards, a folder or Hub id of the
            `datasets` library, or `synthetic:SEED:COUNT:HxW`.
        split: of a source that has splits.
        streaming: read shards and tables as they come, without a copy; tar shards always are.
        seed: of a stream's order.
        column: of the images.
        max_bad_share: share of a stream's shards that may be damaged.

    Raises:
        FileNotFoundError, ValueError: if nothing is there or it is of no known kind, or of several.
        ImportError: if shards or a table are meant and `datasets` is not installed.
    """
    if source.startswith("synthetic:"):
        return SyntheticSource(source)
    path = Path(source)
    is_table = is_saved_table(path)
    files = [] if is_table else find_files(source)
    if files and files[0].suffix.lower() in PICTURE_SUFFIXES:
        return FolderSource(os.path.commonpath([file.parent for file in files]), files)
    if path.is_dir() and not files and not is_table:
        return FolderSource(path)
    if files:
        full = full_shards(source, files)
        if full[0].suffix.lower() == ".tar":
            counter = partial(count_tar_rows, column=column)
            stream = open_tars(full, column)
            return StreamSource(
                stream, source, seed, "image", files=full, max_bad_share=max_bad_share, count_rows=counter
            )
        data_files = {"train": [str(shard) for shard in full]}
        table = datasets_library().load_dataset("parquet", data_files=data_files, split="train", streaming=streaming)
        if streaming:
            return StreamSource(table, source, seed, column, files=full, max_bad_share=max_bad_share)
    else:
        table = load_of_one_kind(source, split, streaming)
    return StreamSource(table, source, seed, column) if streaming else TableSource(table, source, column)


def load_of_one_kind(source: str, split: str, streaming: bool) -> Any:
    """`load_table`, with a way out where tars hold files of several kinds."""
    try:
        return load_table(source, split, streaming)
    except ValueError as error:
        if "same types" not in str(error):
            raise
        raise ValueError(
            f"{source}: {error} `datasets` takes one kind of file per row. Copy the tars to a folder and give that: "
            "read from there, each row may have an image of any kind."
        ) from error


def kind_of(path: Path) -> str:
    """What a file of a source is, in words."""
    suffix = path.suffix.lower()
    return "images" if suffix in PICTURE_SUFFIXES else f"{suffix} files"


def check_one_kind(source: str | Path, kinds: Mapping[str, int]) -> None:
    """Raise a ValueError if a source has images and shards, or shards of two kinds; counts them."""
    if len(kinds) > 1:
        found = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        raise ValueError(
            f"{source} means files of several kinds: {found}. Give each kind as a source of its own, with a pattern: "
            "--train_data 'FOLDER/*.tar' 'FOLDER/*.jpg'."
        )


def find_files(source: str) -> list[Path]:
    """What a file name or pattern means, or the shards of a folder: sorted, of one kind; empty for a folder of images.

    Raises:
        ValueError: if there are several kinds, or a file of none.
    """
    path = Path(source)
    if path.is_dir():
        has_shards = any(entry.suffix.lower() in SHARD_SUFFIXES for entry in path.iterdir())
        found = path.rglob("*") if has_shards else iter(())
    else:
        found = (Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207 - it may be absolute
    known = PICTURE_SUFFIXES + SHARD_SUFFIXES
    listed = list(found)
    files = sorted(file for file in listed if file.suffix.lower() in known)
    check_one_kind(source, Counter(map(kind_of, files)))
    if listed and not files:
        raise ValueError(f"{source} is neither image nor shard ({', '.join(known)}).")
    if path.is_dir() and any(file.parent != path for file in files):
        raise ValueError(
            f"{source} holds shards, and the folders in it as well: give each folder, or the pattern "
            f"'{source}/**/*{files[0].suffix}' for all."
        )
    return files


def full_shards(source: str, shards: Sequence[Path]) -> list[Path]:
    """The shards that hold something; the others are named.

    Raises:
        ValueError: if all are empty.
    """
    full = [shard for shard in shards if not is_empty(shard)]
    for shard in sorted(set(shards) - set(full)):
        logger.warning(f"Left out: the shard {shard} is empty.")
    if not full:
        raise ValueError(f"All {len(shards)} shards of {source} are empty.")
    return full


def is_empty(shard: Path) -> bool:
    """Whether a local shard holds no row; one that is damaged is not, and fails when it is read."""
    if shard.stat().st_size == 0:
        return True
    try:
        if shard.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(shard).num_rows == 0
        with tarfile.open(shard) as archive:
            return archive.next() is None
    except Exception:  # tarfile, the decompressors and pyarrow raise many kinds
        return False


class Mixture:
    """Several sources with weights; an epoch takes a fixed number of images of each.

    All sources are gone through completely before an image comes again, over epochs too.

    Args:
        sources: where images come from.
        weights: shares of an epoch; by default in proportion to the sources' lengths.
        samples_per_epoch: length of an epoch; by default the sum of the lengths.

    Raises:
        ValueError: if weights are missing, of another number, or not positive, or a length is needed.
    """

    def __init__(
        self,
        sources: Sequence[MapSource | StreamSource],
        weights: Sequence[float] = (),
        samples_per_epoch: int | None = None,
    ):
        lengths = [None if isinstance(source, StreamSource) else len(source) for source in sources]
        if samples_per_epoch is None or (not weights and len(sources) > 1):
            streams = [source.name for source, length in zip(sources, lengths) if length is None]
            if streams and samples_per_epoch is None:
                raise ValueError(
                    f"{streams[0]} is a stream and has no length: say how many images an epoch has with "
                    "--samples_per_epoch."
                )
            if streams:
                raise ValueError(f"{streams[0]} is a stream and has no length: give --weights, one per source.")
        if weights and (len(weights) != len(sources) or min(weights) <= 0):
            raise ValueError(
                f"--weights are {list(weights)}; expected {len(sources)} positive numbers, one per source."
            )
        if not weights:
            weights = [float(length or 1) for length in lengths]
        self.sources = list(sources)
        self.weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        if self.weights.min() * BLOCK_SIZE < 2:
            raise ValueError(f"--weights gives a source the share {self.weights.min():.2g}; leave it out.")
        self.num_samples = samples_per_epoch or sum(length or 0 for length in lengths)

    def __len__(self) -> int:
        return self.num_samples

    def counts(self, num_samples: int) -> np.ndarray:
        """Images of each source in an epoch of so many: rounded so that the sum is right."""
        return np.diff(np.rint(np.cumsum([0.0, *self.weights]) * num_samples).astype(np.int64))

    def blocks(self, num_samples: int, seed: int, epoch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The order of an epoch of `num_samples` in blocks, so that one of a billion images needs no memory.

        Returns:
            For each block its first place, the number of the source (block_size,) for each place, and how often that
            source was drawn before in the epoch (block_size,).
        """
        edges = [*range(0, max(num_samples - BLOCK_SIZE, 0) + 1, BLOCK_SIZE), num_samples]  # the last is not short
        for start, end in zip(edges[:-1], edges[1:]):
            before = self.counts(start)
            shares = self.counts(end) - before
            sources = np.repeat(np.arange(len(self.sources), dtype=np.int16), shares)
            if len(self.sources) > 1:
                sources = np.random.default_rng([seed, epoch, start, 1]).permutation(sources)
            draws = np.zeros(len(sources), dtype=np.int64)
            for number, (first, share) in enumerate(zip(before, shares)):
                draws[sources == number] = first + np.arange(share)
            yield start, sources, draws


class Ask(NamedTuple):
    """What a worker is asked for: an image and the numbers that its chance follows from."""

    epoch: int
    position: int
    source: int
    name: str
    raw: Any
    """None for a source at hand: the worker reads it, by `index`."""
    index: int
    is_repeat: bool


class ImagePlan:
    """Batch sampler of a run: for each batch of this process its images, and some spare ones.

    A batch's images follow from the seed and the step alone. Spare images stand in for those that cannot be used when
    all of a batch are bad; they are the first of those that follow.

    Args:
        mixture: where images come from.
        plan: which places of an epoch's order belong to this process.
    """

    def __init__(self, mixture: Mixture, plan: StepPlan):
        self.mixture, self.plan = mixture, plan
        self.num_spares = max(1, 8 // plan.batch_size)
        self.num_ahead = max(4 * plan.batch_size, MIXED_ROWS)  # streams come in groups of mixed rows
        self._per_epoch = mixture.counts(plan.samples_per_epoch).tolist()
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}
        self._stream_counts: deque[tuple[int, Mapping[str, int]]] = deque()  # step in which they count, and counts

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Ask]]:
        """Lists of `batch_size` images and then the spare ones."""
        batches = self._batches()
        window = [next(batches)]
        for _ in range(len(self)):
            while (len(window) - 1) * self.plan.batch_size < self.num_spares:
                window.append(next(batches))
            spares = [ask for batch in window[1:] for ask in batch]
            yield window.pop(0) + spares[: self.num_spares]

    def take_counts(self, num_steps: int) -> list[int]:
        """What happened to the streams up to a step and was not taken yet, in the order of `STREAM_COUNTS`."""
        taken: Counter[str] = Counter()
        while self._stream_counts and self._stream_counts[0][0] < num_steps:
            taken.update(self._stream_counts.popleft()[1])
        return [taken[name] for name in STREAM_COUNTS]

    def _batches(self) -> Iterator[list[Ask]]:
        plan, sources = self.plan, self.mixture.sources
        begin = plan.start_step * plan.samples_per_step  # places of all epochs that a restart leaves out
        has_streams = any(isinstance(source, StreamSource) for source in sources)
        streams: dict[int, Iterator[Row]] | None = None
        skipped = np.zeros(len(sources), dtype=np.int64)  # this process's rows of each source: a stream's first place
        asks: list[Ask] = []
        for epoch in count(0 if has_streams else plan.start_step // plan.steps_per_epoch):
            first = begin - epoch * plan.samples_per_epoch
            for start, chosen, draws in self.mixture.blocks(plan.samples_per_epoch, plan.seed, epoch):
                places = np.arange(start, start + len(chosen))
                mine = plan.is_mine(places)
                skipped += np.bincount(chosen[mine & (places < first)], minlength=len(skipped))
                wanted = np.flatnonzero(mine & (places >= first))
                if len(wanted) and streams is None:
                    streams = self._open_streams(skipped)
                for place in wanted:
                    ask = self._ask(epoch, start + int(place), int(chosen[place]), int(draws[place]), streams or {})
                    asks.append(ask)
                    if len(asks) == plan.batch_size:
                        yield asks
                        asks = []

    def _open_streams(self, skipped: np.ndarray) -> dict[int, Iterator[Row]]:
        plan, opened = self.plan, {}
        for number, source in enumerate(self.mixture.sources):
            if isinstance(source, StreamSource):
                rows = source.rows(int(skipped[number]), plan.process, plan.num_processes)
                opened[number] = read_ahead(rows, self.num_ahead)
        return opened

    def _ask(self, epoch: int, place: int, number: int, draw: int, streams: dict[int, Iterator[Row]]) -> Ask:
        if number in streams:
            row = next(streams[number])
            if row.counts:
                step = (epoch * self.plan.samples_per_epoch + place) // self.plan.samples_per_step
                self._stream_counts.append((step, row.counts))
            return Ask(epoch, place, number, row.name, row.raw, -1, row.is_repeat)
        size = len(self.mixture.sources[number])  # type: ignore[arg-type]
        cycle, within = divmod(epoch * self._per_epoch[number] + draw, size)
        if self._permutations.get(number, (None,))[0] != cycle:
            order = np.random.default_rng([self.plan.seed, number, cycle, 2]).permutation(size)
            self._permutations[number] = (cycle, order)
        return Ask(epoch, place, number, "", None, int(self._permutations[number][1][within]), cycle > 0)

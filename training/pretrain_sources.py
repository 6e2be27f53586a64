"""Where the images of pretraining come from: folders, tables and shards of `datasets`, synthetic people, mixtures.

A source hands out encoded images; workers decode them. Sources at hand (`MapSource`) are asked by index, streams are
read in order, once, by the process that trains, so nothing depends on the number of loader workers.
"""

from __future__ import annotations

import glob
import queue
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers.utils import logging

from .data import StepPlan
from .formats import IMAGE_SUFFIXES
from .sources import SyntheticSamples

logger = logging.get_logger(__name__)

SHARD_SUFFIXES = {".tar": "webdataset", ".parquet": "parquet"}
SHUFFLE_BUFFER = 256
MAX_RETRIES = 3
# Places of an epoch that are arranged at a time; within each, every source has its share.
BLOCK_SIZE = 65_536


class StreamDroppedError(ConnectionError):
    """A stream that breaks off at the same place again and again."""


class Row(NamedTuple):
    """An encoded image of a stream."""

    name: str
    raw: Any
    """Path, bytes, PIL image or array."""
    is_repeat: bool
    """The stream had ended and started over within the epoch."""


class MapSource(Protocol):
    """Images that can be asked for by index."""

    name: str

    def __len__(self) -> int: ...

    def raw(self, index: int) -> tuple[str, Any]:
        """Name and encoded image."""
        ...


class FolderSource:
    """All images below a folder, in the order of their paths.

    Raises:
        FileNotFoundError: if the folder is missing or holds no image.
    """

    def __init__(self, folder: str | Path):
        self.name, self.folder = str(folder), Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        found = (path for path in self.folder.rglob("*") if path.suffix.lower() in (*IMAGE_SUFFIXES, ".gif"))
        # One array of text: a list of a hundred million strings would take tens of gigabytes in every worker.
        self.files = np.array(sorted(path.relative_to(self.folder).as_posix() for path in found), dtype=np.bytes_)
        if not len(self.files):
            raise FileNotFoundError(f"{folder} holds no image with one of {', '.join(IMAGE_SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self.files)

    def raw(self, index: int) -> tuple[str, Any]:
        path = self.folder / self.files[index].decode()
        return str(path), path


class TableSource:
    """A map-style `datasets.Dataset` with a column of images."""

    def __init__(self, table: Any, name: str, column: str | None = None):
        column = column or image_column(table.features, table.column_names, name)
        self.name, self.column, self.table = name, column, _undecoded(table.select_columns([column]), column)
        if not len(table):
            raise ValueError(f"{name} holds no image.")

    def __len__(self) -> int:
        return len(self.table)

    def raw(self, index: int) -> tuple[str, Any]:
        return f"{self.name}[{index}]", _encoded(self.table[int(index)][self.column])


class SyntheticSource:
    """Synthetic people made while training: `synthetic:SEED:COUNT:HxW`."""

    def __init__(self, source: str):
        self.name, self.samples = source, SyntheticSamples(source, "segmentation", None)

    def __len__(self) -> int:
        return len(self.samples)

    def raw(self, index: int) -> tuple[str, Any]:
        sample = self.samples[index]
        return sample["name"], sample["image"]


class StreamSource:
    """A streamed `datasets.IterableDataset`: shards in a random order per epoch, rows mixed within a small buffer.

    Args:
        stream: the data set.
        name: for messages.
        seed: of the order.
        column: of the images; found by its type or name if absent.
        wait_s: seconds before a stream that dropped is opened again; grows with each attempt.
    """

    def __init__(self, stream: Any, name: str, seed: int = 0, column: str | None = None, wait_s: float = 1.0):
        if stream.column_names is None:
            stream = stream._resolve_features()  # without metadata, the first rows say which columns there are
        self.column = column or image_column(stream.features, stream.column_names, name)
        self.name, self.seed, self.wait_s = name, seed, wait_s
        self.names = next((c for c in ("__key__", "name", "file_name", "path") if c in stream.column_names), None)
        self.stream = stream.decode(False)
        self.num_retries = 0

    def rows(self, epoch: int, process: int = 0, num_processes: int = 1, skip: int = 0) -> Iterator[Row]:
        """This process's rows of an epoch, from row `skip` on; a stream that ends starts over.

        Raises:
            StreamDroppedError: if the stream drops at one place `MAX_RETRIES` times in a row.
            ValueError: if it holds nothing.
        """
        from datasets.distributed import split_dataset_by_node

        position, failures = 0, 0  # rows read in the epoch; times the stream dropped at this place
        number, pass_start = 0, 0  # of the pass through the stream, and the rows before it
        while True:
            seed = int(np.random.SeedSequence([self.seed, epoch, number]).generate_state(1)[0])
            shuffled = self.stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
            place = pass_start
            try:
                for row in split_dataset_by_node(shuffled, process, num_processes):
                    place += 1
                    if place <= position:
                        continue  # read already, before the stream dropped
                    position, failures = place, 0
                    if position > skip:
                        key = row.get(self.names) if self.names else None
                        label = f"{self.name}[{key if key is not None else place - pass_start - 1}]"
                        yield Row(label, _encoded(row[self.column]), number > 0)
            except Exception as error:  # every file system and format has its own kinds
                failures += 1
                self.num_retries += 1
                if failures > MAX_RETRIES:
                    raise StreamDroppedError(
                        f"{self.name} dropped {failures} times in a row after row {position} of epoch {epoch} "
                        f"({type(error).__name__}: {error}). No image was lost: repair the stream or its shard and go "
                        "on with --resume_from_checkpoint latest."
                    ) from error
                logger.warning(f"{self.name} dropped after row {position} ({error}); opening it again.")
                time.sleep(self.wait_s * failures)
                continue
            if place == pass_start:
                raise ValueError(
                    f"{self.name} holds nothing for process {process} of {num_processes}; give it at least as many "
                    "rows as there are processes."
                )
            number, pass_start = number + 1, place


def image_column(features: Any, names: Sequence[str], where: str) -> str:
    """The column that holds images: by its type, else by its name.

    Raises:
        ValueError: if there is none; lists the columns.
    """
    for name in names:
        if type((features or {}).get(name)).__name__ == "Image":
            return name
    for name in ("image", "jpg", "jpeg", "png", "webp", "img", "bytes"):
        if name in names:
            return name
    raise ValueError(f"{where} has no column of images; it has {', '.join(names)}. Name it with --image_column.")


def open_source(
    source: str, split: str, streaming: bool, seed: int, column: str | None = None
) -> MapSource | StreamSource:
    """A source from its text.

    Args:
        source: a folder of images, a folder, pattern or file of `.tar` or `.parquet` shards, a folder or Hub id of the
            `datasets` library, or `synthetic:SEED:COUNT:HxW`.
        split: of a source that has splits.
        streaming: read shards and tables as they come, without a copy; tar shards always are.
        seed: of a stream's order.
        column: of the images.

    Raises:
        FileNotFoundError, ValueError: if nothing is there or it is of no known kind.
    """
    if source.startswith("synthetic:"):
        return SyntheticSource(source)
    shards = find_shards(source)
    path = Path(source)
    is_table = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if path.is_dir() and not shards and not is_table:
        return FolderSource(path)
    if path.is_absolute() and not path.exists() and not shards:
        raise FileNotFoundError(f"There is no file, folder or shard {source}.")
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Shards and tables need the `datasets` package: pip install sapiens_hf[train].") from error
    if shards:
        kind = SHARD_SUFFIXES[shards[0].suffix]
        full = [shard for shard in shards if not is_empty(shard)]
        for shard in sorted(set(shards) - set(full)):
            logger.warning(f"Left out: the shard {shard} is empty.")
        if not full:
            raise ValueError(f"All {len(shards)} shards of {source} are empty.")
        streaming = streaming or kind == "webdataset"
        files = {"train": [str(shard) for shard in full]}
        table = datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)
    elif is_table:
        table = datasets.load_from_disk(source)
        table = table[split] if isinstance(table, dict) else table
        table = table.to_iterable_dataset() if streaming else table
    else:
        table = datasets.load_dataset(source, split=split, streaming=streaming)
    return StreamSource(table, source, seed, column) if streaming else TableSource(table, source, column)


def find_shards(source: str) -> list[Path]:
    """Tar or parquet files that a file name, folder or pattern means; sorted, of one kind."""
    path = Path(source)
    if path.is_dir():
        for suffix in SHARD_SUFFIXES:
            found = sorted(path.glob(f"*{suffix}"))
            if found:
                return found
        return []
    found = sorted(Path(name) for name in glob.glob(source))  # noqa: PTH207 - the pattern may be absolute
    return [file for file in found if file.suffix in SHARD_SUFFIXES and file.suffix == found[0].suffix]


def is_empty(shard: Path) -> bool:
    """Whether a local shard holds no row; one that is damaged is not, and fails when it is read."""
    if shard.stat().st_size == 0:
        return True
    if shard.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(shard).num_rows == 0
    try:
        with tarfile.open(shard) as archive:
            return archive.next() is None
    except tarfile.TarError:
        return False


def _undecoded(table: Any, column: str) -> Any:
    import datasets

    if type(table.features[column]).__name__ == "Image":
        return table.cast_column(column, datasets.Image(decode=False))
    return table


def _encoded(value: Any) -> Any:
    """Path, bytes, picture or array out of what a column holds."""
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        return value["bytes"] if value.get("bytes") is not None else Path(value["path"])
    return value


def read_ahead(rows: Iterator[Row], num_rows: int) -> Iterator[Row]:
    """The same rows, read by a thread while the model trains; it starts with the first one asked for."""
    ready: queue.Queue[Row | Exception] = queue.Queue(max(num_rows, 1))
    is_over = threading.Event()

    def put(item: Row | Exception) -> None:
        while not is_over.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            for row in rows:
                put(row)
                if is_over.is_set():
                    return
        except Exception as error:  # raised again where the rows are used
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        is_over.set()


class Mixture:
    """Several sources with weights; an epoch takes a fixed number of images of each.

    Sources at hand are gone through completely before an image comes again, over epochs too. Streams start anew with
    each epoch.

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
        self.num_ahead = 4 * plan.batch_size
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

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

    def _batches(self) -> Iterator[list[Ask]]:
        plan = self.plan
        epoch, in_epoch = divmod(plan.start_step, plan.steps_per_epoch)
        first = in_epoch * plan.samples_per_step  # place in the epoch's order
        asks: list[Ask] = []
        while True:
            streams: dict[int, Iterator[Row]] | None = None
            skipped = np.zeros(len(self.mixture.sources), dtype=np.int64)  # this process's rows of each source
            for start, sources, draws in self.mixture.blocks(plan.samples_per_epoch, plan.seed, epoch):
                places = np.arange(start, start + len(sources))
                mine = plan.is_mine(places)
                skipped += np.bincount(sources[mine & (places < first)], minlength=len(skipped))
                wanted = np.flatnonzero(mine & (places >= first))
                if len(wanted) and streams is None:
                    streams = self._open_streams(epoch, skipped)
                for row in wanted:
                    asks.append(self._ask(epoch, start + int(row), int(sources[row]), int(draws[row]), streams or {}))
                    if len(asks) == plan.batch_size:
                        yield asks
                        asks = []
            epoch, first = epoch + 1, 0

    def _open_streams(self, epoch: int, skipped: np.ndarray) -> dict[int, Iterator[Row]]:
        plan, opened = self.plan, {}
        for number, source in enumerate(self.mixture.sources):
            if isinstance(source, StreamSource):
                rows = source.rows(epoch, plan.process, plan.num_processes, int(skipped[number]))
                opened[number] = read_ahead(rows, self.num_ahead)
        return opened

    def _ask(self, epoch: int, place: int, number: int, draw: int, streams: dict[int, Iterator[Row]]) -> Ask:
        if number in streams:
            row = next(streams[number])
            return Ask(epoch, place, number, row.name, row.raw, -1, row.is_repeat)
        size = len(self.mixture.sources[number])  # type: ignore[arg-type]
        per_epoch = int(self.mixture.counts(self.plan.samples_per_epoch)[number])
        cycle, within = divmod(epoch * per_epoch + draw, size)
        if self._permutations.get(number, (None,))[0] != cycle:
            order = np.random.default_rng([self.plan.seed, number, cycle, 2]).permutation(size)
            self._permutations[number] = (cycle, order)
        return Ask(epoch, place, number, "", None, int(self._permutations[number][1][within]), False)

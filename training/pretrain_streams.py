"""Streams of pretraining images: shards that are read one after the other, by the process that trains.

A process has its own shards (`process`, `process + num_processes`, ...) and goes through them in a new order in each
pass. Its rows have places that count on over passes and epochs, and what is at a place follows from the seed and the
shards alone: a restart passes over the rows before its place and goes on with the same one.
"""

from __future__ import annotations

import queue
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import logging

from .formats import PICTURE_SUFFIXES
from .shards import is_whole, tar_members
from .tables import datasets_library, encoded

logger = logging.get_logger(__name__)

# Rows that follow each other and are mixed.
MIXED_ROWS = 256
MAX_RETRIES = 3
STREAM_COUNTS = ("stream_retries", "damaged_shards")


class StreamDroppedError(ConnectionError):
    """A stream that cannot be read on: it breaks off at the same place again and again, or much of it is damaged."""


class Row(NamedTuple):
    """An encoded image of a stream."""

    name: str
    raw: Any
    """Path, bytes, PIL image or array."""
    is_repeat: bool
    """The stream had ended and started over."""
    counts: Mapping[str, int] = {}
    """What happened since the row before, by the names of `STREAM_COUNTS`."""


class Share(NamedTuple):
    """What a process reads of a stream."""

    stream: Any
    """Of its shards only."""
    shards: range
    """Their numbers in the whole stream."""
    step: int
    offset: int
    """Of the rows of these shards it keeps those at `offset`, `offset + step`, ..."""
    key: int
    """Of the random order."""


class StreamSource:
    """A streamed `datasets.IterableDataset`: shards in a random order per pass, rows mixed among `MIXED_ROWS`.

    Args:
        stream: the data set.
        name: for messages.
        seed: of the order.
        column: of the images; found by its type or name if absent.
        wait_s: seconds before a shard that dropped is opened again; grows with each attempt.
        files: of the shards, where they are at hand. What cannot be read of one that is damaged is left out.
        max_bad_share: share of a process's shards that may be damaged.
        count_rows: file -> rows in it if that is known without reading them; makes restarts short.
    """

    def __init__(
        self,
        stream: Any,
        name: str,
        seed: int = 0,
        column: str | None = None,
        wait_s: float = 1.0,
        files: Sequence[Path] = (),
        max_bad_share: float = 0.01,
        count_rows: Callable[[Path], int | None] | None = None,
    ):
        if stream.column_names is None:
            stream = stream._resolve_features()  # without metadata, the first rows say which columns there are
        self.column = column or image_column(stream.features, stream.column_names, name)
        self.name, self.seed, self.wait_s = name, seed, wait_s
        self.files, self.max_bad_share, self.count_rows = list(files), max_bad_share, count_rows
        self.names = next((c for c in ("__key__", "name", "file_name", "path") if c in stream.column_names), None)
        self.stream = stream.decode(False)
        self.lengths: dict[int, int] = {}  # rows of the shards that were read or counted
        self.damaged: set[int] = set()

    def rows(self, start: int = 0, process: int = 0, num_processes: int = 1) -> Iterator[Row]:
        """This process's rows, from its row `start` on, without end: a stream that ends starts over.

        Raises:
            StreamDroppedError: if a shard that is not at hand drops `MAX_RETRIES` times in a row at one place, or more
                shards are damaged than may be.
            ValueError: if there is nothing for this process.
        """
        share = self._share(process, num_processes)
        number, before = 0, 0  # of the pass through the stream, and the rows of those before it
        counts: Counter[str] = Counter()
        while True:
            length = yield from self._pass(share, number, max(start - before, 0), counts)
            if not length:
                raise ValueError(
                    f"{self.name} holds nothing for process {process} of {num_processes}; give it at least as many "
                    "rows as there are processes."
                )
            passes = max(1, (start - before) // length)  # all have the same length: those before `start` are left out
            number, before = number + passes, before + passes * length

    def shard_name(self, shard: int) -> str:
        """The file of a shard, or its number."""
        if self.files:
            return str(self.files[shard])
        return f"shard {shard + 1} of {self.stream.num_shards} of {self.name}"

    def _share(self, process: int, num_processes: int) -> Share:
        total = self.stream.num_shards
        if total >= num_processes:
            stream = self.stream
            if num_processes > 1:
                stream = stream.shard(num_shards=num_processes, index=process, contiguous=False)
            return Share(stream, range(process, total, num_processes), 1, 0, process)
        if process == 0:
            logger.warning(
                f"{self.name} has {total} shards for {num_processes} processes: each process reads all of them and "
                f"keeps one row of {num_processes}. Cut it into at least {num_processes} shards."
            )
        return Share(self.stream, range(total), num_processes, process, 0)

    def _pass(self, share: Share, number: int, skip: int, counts: Counter[str]) -> Generator[Row, None, int]:
        """Rows of a pass after the first `skip`; returns how many there are in it.

        What happens is counted with the group of rows that is read then; `counts` holds what no row has told yet.
        """
        order = np.random.default_rng([self.seed, number, share.key]).permutation(len(share.shards))
        place = skip - skip % MIXED_ROWS  # rows are mixed in groups, which begin at multiples
        group: list[tuple[str, Any]] = []

        def mixed() -> Iterator[Row]:
            rng = np.random.default_rng([self.seed, number, share.key, place])
            for at, chosen in enumerate(rng.permutation(len(group))):
                if place + at >= skip:  # what happened belongs to the group's first row, and was counted with it
                    name, raw = group[chosen]
                    yield Row(name, raw, number > 0, {} if at else dict(counts))

        end = 0
        for end, row in self._read(share, order, place * share.step, counts):
            if row is not None and (end - 1) % share.step == share.offset:
                group.append(row)
            if len(group) == MIXED_ROWS:
                yield from mixed()
                place += MIXED_ROWS
                group.clear()
                counts.clear()
        yield from mixed()
        if group:
            counts.clear()
        return len(range(share.offset, end, share.step))

    def _read(
        self, share: Share, order: np.ndarray, start: int, counts: Counter[str]
    ) -> Iterator[tuple[int, tuple[str, Any] | None]]:
        """Name and image of each row of the shards from row `start` on, after the number of rows up to it.

        After each shard comes a None.
        """
        before = 0  # rows of the shards before
        # Up to the row that filled the last group before `start`, what happens was counted with rows now left out.
        counted = start - share.step + share.offset + 1 if start else 0
        for own in order:
            shard = share.shards[own]
            skip = max(start - before, 0)
            length = self._length(shard) if skip else None
            if length is None or length > skip:
                length = 0
                for length, row in self._shard_rows(share, int(own), skip, counts):
                    if before + length <= counted:
                        counts.clear()
                    if length > skip:
                        key = row.get(self.names) if self.names else None
                        label = f"{self.name}[{key if key is not None else before + length - 1}]"
                        yield before + length, (label, row[self.column])
                self.lengths[shard] = length
                if not length and shard not in self.damaged:
                    logger.warning(f"{self.shard_name(shard)} holds no image.")
            before += length
            if before < counted:
                counts.clear()
            yield before, None

    def _length(self, shard: int) -> int | None:
        """Rows of a shard, if that is known without reading it."""
        if shard not in self.lengths and self.count_rows is not None:
            length = self.count_rows(self.files[shard])
            if length is not None:
                self.lengths[shard] = length
        return self.lengths.get(shard)

    def _shard_rows(
        self, share: Share, own: int, skip: int, counts: Counter[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Rows of one shard with their numbers from 1; one that drops is opened again.

        The images of the first `skip` rows are not fetched.
        """
        shard, place, failures = share.shards[own], 0, 0
        while True:
            try:
                rows = share.stream.shard(num_shards=len(share.shards), index=own)
                for number, row in enumerate(rows, start=1):
                    if number > place:  # else it was read before the shard dropped
                        if number > skip:
                            row = {**row, self.column: encoded(row[self.column])}
                        place, failures = number, 0
                        yield number, row
                return
            except Exception as error:  # every file system and format has its own kinds
                failures += 1
                where = f"{self.shard_name(shard)} broke off after its row {place} ({type(error).__name__}: {error})"
                if failures > MAX_RETRIES:
                    self._leave_out(share, shard, f"{where}, {failures} times in a row.", error)
                    counts["damaged_shards"] += share.offset == 0  # else all processes would count it
                    return
            counts["stream_retries"] += share.offset == 0
            logger.warning(f"{where}; opening it again.")
            time.sleep(self.wait_s * failures)

    def _leave_out(self, share: Share, shard: int, problem: str, error: Exception) -> None:
        """Go on without the rest of a file that is damaged; a stream from elsewhere may come back, and is waited for.

        Raises:
            StreamDroppedError: if it is not at hand, or too many are damaged.
        """
        if not self.files:
            raise StreamDroppedError(
                f"{problem} The run is as it was at its last checkpoint: see that {self.name} can be read and go on "
                "with --resume_from_checkpoint latest. If that shard stays damaged, copy the others to a folder and "
                "train on that."
            ) from error
        self.damaged.add(shard)
        if len(self.damaged) > self.max_bad_share * len(share.shards):
            names = ", ".join(self.shard_name(number) for number in sorted(self.damaged)[:5])
            raise StreamDroppedError(
                f"{problem} So {len(self.damaged)} of {len(share.shards)} shards are damaged, more than the share of "
                f"{self.max_bad_share:g} that --max_bad_share allows: {names}. Put whole files in their place and go "
                "on with --resume_from_checkpoint latest; or allow more, and what cannot be read of them is left out; "
                "or move them away, which changes the order of the others."
            ) from error
        logger.warning(f"{problem} The rest of it is left out.")


class DamagedTarError(ValueError):
    """A tar that ends before its end mark."""


def open_tars(files: Sequence[Path], column: str | None = None) -> Any:
    """Tar shards as a stream of `datasets`, with the columns `name` and `image`.

    Args:
        files: that are not empty.
        column: ending of the images' names after their first dot; by default that of any image.

    Raises:
        ValueError: if the first tar holds no such file; lists the endings in it.
    """
    datasets = datasets_library()
    names, _ = tar_members(files[0])
    if names and not any(tar_images(names, column)):
        endings = sorted({split_name(name)[1] for name in names})
        expected = f"*.{column}" if column else "image"
        raise ValueError(
            f"{files[0]} holds no {expected}; its files end in {', '.join(endings)}. Name the images' ending with "
            "--image_column."
        )
    return datasets.IterableDataset.from_generator(
        tar_rows,
        features=datasets.Features({"name": datasets.Value("string"), "image": datasets.Value("binary")}),
        gen_kwargs={"files": [str(file) for file in files], "column": column},
    )


def tar_rows(files: Sequence[str], column: str | None = None) -> Iterator[dict[str, Any]]:
    """Name and content of each image in tars.

    Raises:
        DamagedTarError: behind the last image of a tar that breaks off there; `tarfile` is silent about most.
    """
    for file in files:
        left_out: dict[str, str] = {}
        with tarfile.open(file) as archive:
            members = (member for member in archive if member.isfile())
            for name, member in tar_images(members, column, left_out):
                content = archive.extractfile(member)
                yield {"name": name, "image": content.read()}  # type: ignore[union-attr]
            if left_out:
                name = next(iter(left_out.values()))
                logger.warning(
                    f"{file}: {len(left_out)} images such as {name} are left out: in a tar a file's ending begins at "
                    f"its first dot, so that one ends in {split_name(name)[1]!r}. Write the tar without dots in names."
                )
            if not is_whole(archive):
                raise DamagedTarError("its end is missing")


def count_tar_rows(file: Path, column: str | None = None) -> int | None:
    """Images in a tar, by its headers; None if it is damaged."""
    names, ends = tar_members(file)
    return sum(1 for _ in tar_images(names, column)) if ends else None


def tar_images(
    members: Iterable[Any], column: str | None, left_out: dict[str, str] | None = None
) -> Iterator[tuple[str, Any]]:
    """Members (or their names) that are images, with their keys: the first of those that follow each other with a key.

    Into `left_out` go the keys and names of pictures whose names have more dots, if there is no image of their key: a
    mask beside its image (`1.jpg`, `1.mask.png`) is none.

    Source: the WebDataset format; a key is what comes before the first dot of a file's name, with its folder.
    """
    last = None
    for member in members:
        name = getattr(member, "name", member)
        key, ending = split_name(name)
        if key == last or PurePosixPath(key).name.startswith(("__", ".")):
            continue
        if ending == column if column else f".{ending.lower()}" in PICTURE_SUFFIXES:
            last = key
            if left_out:
                left_out.pop(key, None)
            yield key, member
        elif left_out is not None and not column and PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES:
            left_out[key] = name


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a file in a tar."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, ending


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

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        is_over.set()
        thread.join(timeout=10)  # a thread that still reads when Python ends can abort it

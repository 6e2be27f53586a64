r"""Choose pictures of people for pretraining, as the paper did: a detector, size filters, no near-duplicates.

    python -m training.curate_humans --sources photos/ crawl/*.tar --output_dir curated --num_processes 4

Three stages, each of which can be killed at any moment and started again with the same command:

    plan.json              every image of the sources, in units of a thousand (or one shard)
    units/NNNNNN.json      detect: per image why it was left out, or its boxes and perceptual hash
    duplicates.json        dedup: which of the candidates are near-duplicates of one before them
    shards/NNNNNN.tar      pack: the JPEGs that are left, each with a JSON of boxes and provenance
    report.json            counts per reason; they add up to the number of images

A file appears under its name only when it is whole, and what is there is not made again: nothing is lost or done
twice. On a cluster, start `--stage detect` and then `--stage pack` with `--process_index` on every node, `--stage
dedup` once between them and `--stage report` at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers import HfArgumentParser
from transformers.utils import logging

from sapiens_hf.image_loading_sapiens import EXIF_ORIENTATION

from .checkpoints import PARTIAL, whole_file, write_json
from .formats import PICTURE_SUFFIXES, read_rgb
from .pretrain_data import BadImageError, CropOptions, open_image, reading
from .shards import tar_members

logger = logging.get_logger(__name__)

STAGES = ("all", "detect", "dedup", "pack", "report")
SHARD_SUFFIX = ".tar"
UNIT_IMAGES = 1000
HASH_BITS = 64
PERSON = "person"  # a detector's label for people, in any case
# Why an image is left out; with "kept" they are all that can become of one.
REASONS = ("unreadable", "too_small", "too_large", "cmyk", "animated", "no_person", "duplicate", "lost")

Box = list[float]
"""x, y, width, height in pixels and score."""
Detector = Callable[[list[Image.Image]], list[list[Box]]]
"""People of each image, as boxes."""


@dataclass(frozen=True)
class CurationOptions:
    """Options of curate_humans.py."""

    sources: list[str] = field(default_factory=list, metadata={"help": "folders of images and .tar shards"})
    output_dir: str = field(default="", metadata={"help": "folder of the result"})
    detector: str = field(default="PekingU/rtdetr_r50vd", metadata={"help": "a transformers object detector"})
    device: str = field(default="cpu", metadata={"help": "of the detector: cpu, cuda, cuda:1, ..."})
    batch_size: int = field(default=8, metadata={"help": "images per call of the detector"})
    min_score: float = field(default=0.9, metadata={"help": "boxes must score higher (paper: 0.9)"})
    min_box_px: float = field(default=300.0, metadata={"help": "boxes must be wider and taller (paper: 300)"})
    min_side_px: int = field(default=300, metadata={"help": "images with a shorter side are left out"})
    max_pixels: int = field(default=80_000_000, metadata={"help": "images with more pixels are left out"})
    max_distance: int = field(default=4, metadata={"help": "bits of 64 in which the hashes of duplicates may differ"})
    jpeg_quality: int = field(default=95, metadata={"help": "of images that were no JPEGs; JPEGs stay as they are"})
    stage: str = field(default="all", metadata={"help": ", ".join(STAGES)})
    num_processes: int = field(default=1, metadata={"help": "processes that share the work"})
    process_index: int | None = field(default=None, metadata={"help": "this one; default: start all of them here"})


def main(arguments: Sequence[str] | None = None, detector: Detector | None = None) -> dict[str, int]:
    """Run from command-line arguments; returns the counts of the report, or of nothing if that comes later."""
    (options,) = HfArgumentParser(CurationOptions, description=CurationOptions.__doc__).parse_args_into_dataclasses(
        args=None if arguments is None else list(arguments)
    )
    return curate(options, detector)


def curate(options: CurationOptions, detector: Detector | None = None) -> dict[str, int]:
    """Run the stages that `options` ask for.

    Args:
        options: of the job.
        detector: people of images; by default the transformers model `options.detector`.

    Raises:
        ValueError: if the options do not fit each other or the folder was made with others.
        FileNotFoundError: if a source is missing or a stage before has not ended.
    """
    check(options)
    folder = Path(options.output_dir)
    plan = make_plan(options)
    if options.process_index is None and options.num_processes > 1:
        return _with_processes(options, folder, plan, detector)
    index = options.process_index or 0
    mine = list(range(len(plan["units"])))[index :: options.num_processes]
    if options.stage in ("detect", "all"):
        detect(folder, plan, mine, options, detector)
    if options.stage in ("dedup", "all"):
        dedup(folder, plan, options.max_distance)
    if options.stage in ("pack", "all"):
        pack(folder, plan, mine, options)
    return report(folder, plan) if options.stage in ("report", "all") else {}


def check(options: CurationOptions) -> None:
    """Refuse options that cannot work."""
    if not options.sources or not options.output_dir:
        raise ValueError("--sources and --output_dir are needed: what to choose from, and where the result goes.")
    if options.stage not in STAGES:
        raise ValueError(f"There is no stage {options.stage!r}; there are {', '.join(STAGES)}.")
    if options.num_processes < 1 or not 0 <= (options.process_index or 0) < options.num_processes:
        raise ValueError(f"--process_index is {options.process_index} of {options.num_processes} processes.")
    if options.process_index is not None and options.num_processes > 1 and options.stage == "all":
        raise ValueError(
            "One of several processes must be told its stage: all of them end detect before dedup starts."
        )
    if not 0 <= options.max_distance < HASH_BITS // 4:
        raise ValueError(
            f"--max_distance is {options.max_distance}; expected 0 to {HASH_BITS // 4 - 1} of {HASH_BITS} bits."
        )


def _with_processes(
    options: CurationOptions, folder: Path, plan: dict[str, Any], detector: Detector | None
) -> dict[str, int]:
    """The stages in several processes of this machine; the first error of one of them is raised here."""
    context = multiprocessing.get_context("spawn")  # a forked detector would share the parent's GPU context
    jobs = [replace(options, process_index=index) for index in range(options.num_processes)]
    with ProcessPoolExecutor(options.num_processes, mp_context=context) as pool:
        if options.stage in ("detect", "all"):
            list(pool.map(curate, [replace(job, stage="detect") for job in jobs], [detector] * len(jobs)))
        if options.stage in ("dedup", "all"):
            dedup(folder, plan, options.max_distance)
        if options.stage in ("pack", "all"):
            list(pool.map(curate, [replace(job, stage="pack") for job in jobs]))
    return report(folder, plan) if options.stage in ("report", "all") else {}


# --------------------------------------------------------------------------------------------------------------- plan
def make_plan(options: CurationOptions) -> dict[str, Any]:
    """The work in units; written once, and the same ever after, whatever happens to the sources.

    Raises:
        FileNotFoundError: if a source is missing, or there is no image in any.
        ValueError: if the folder was made from other sources or with other filters.
    """
    settings = {
        name: getattr(options, name)
        for name in ("sources", "detector", "min_score", "min_box_px", "min_side_px", "max_pixels", "max_distance")
    }
    path = Path(options.output_dir) / "plan.json"
    if path.is_file():
        plan = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if plan["settings"].get(name) != value]
        if changed:
            raise ValueError(
                f"{path.parent} was begun with {changed[0]} = {plan['settings'].get(changed[0])!r}, now it is "
                f"{settings[changed[0]]!r}. Take another --output_dir."
            )
        return plan
    units: list[dict[str, Any]] = []
    empty, broken = [], []
    not_read: dict[str, dict[str, Any]] = {}
    for source in options.sources:
        place = Path(source)
        if place.is_dir():
            names, others = _split(_files(place))
            shards = [place / name for name in others if Path(name).suffix.lower() == SHARD_SUFFIX]
            _note_others(not_read, place, (name for name in others if Path(name).suffix.lower() != SHARD_SUFFIX))
        elif place.is_file() and place.suffix.lower() == SHARD_SUFFIX:
            names, shards = [], [place]
        else:
            raise FileNotFoundError(f"{source} is neither a folder nor a .tar shard.")
        for first in range(0, len(names), UNIT_IMAGES):
            units.append({"source": str(place), "images": names[first : first + UNIT_IMAGES]})
        for shard in shards:
            found, is_whole = tar_members(shard)
            members, others = _split(found)
            _note_others(not_read, shard, others)
            if not is_whole:
                broken.append(str(shard))
                logger.warning(f"The shard {shard} is damaged: it gives {len(members)} images up to there.")
            elif not members:
                empty.append(str(shard))
                logger.warning(f"The shard {shard} holds no image.")
            if members:
                units.append({"source": str(shard), "images": members})
    if not_read:
        kinds = ", ".join(f"{about['files']} {suffix} ({about['first']})" for suffix, about in not_read.items())
        logger.warning(f"Files that are not read, with the first of each kind: {kinds}.")
    if not units:
        raise FileNotFoundError(f"There is no image in {', '.join(options.sources)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = {"settings": settings, "units": units, "empty_shards": empty, "broken_shards": broken, "not_read": not_read}
    write_json(path, plan)
    return json.loads(path.read_text(encoding="utf-8"))  # another process may have written its own at the same time


def _files(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    found = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The images among the names of files, and the others."""
    images = [name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    return images, [name for name in names if Path(name).suffix.lower() not in PICTURE_SUFFIXES]


def _note_others(not_read: dict[str, dict[str, Any]], place: Path, names: Iterable[str]) -> None:
    """Count files by their suffix, and keep the first of each."""
    for name in names:
        suffix = Path(name).suffix.lower() or "without suffix"
        not_read.setdefault(suffix, {"files": 0, "first": str(place / name)})["files"] += 1


def read_unit(unit: dict[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of each image of a unit, in its order; None for one that has gone."""
    source = Path(unit["source"])
    if source.is_dir():
        for name in unit["images"]:
            try:
                yield name, (source / name).read_bytes()
            except OSError:
                yield name, None
        return
    waiting = list(unit["images"])
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if waiting and member.name == waiting[0]:
                    file = archive.extractfile(member)
                    content = file.read() if file is not None else None  # fails before the name is crossed out
                    yield waiting.pop(0), content
    except Exception as error:  # tarfile and the decompressors raise many kinds
        logger.warning(f"{source} breaks off ({error}).")
    for name in waiting:
        yield name, None


# ------------------------------------------------------------------------------------------------------------- detect
def detect(
    folder: Path, plan: dict[str, Any], units: list[int], options: CurationOptions, detector: Detector | None
) -> None:
    """Filters and detector on units that are not done yet."""
    for number in units:
        path = _unit_file(folder, number)
        if path.is_file():
            continue
        detector = detector or transformers_detector(options.detector, options.device, options.batch_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _examine(plan["units"][number], options, detector))


def _unit_file(folder: Path, number: int) -> Path:
    return folder / "units" / f"{number:06d}.json"


def _examine(unit: dict[str, Any], options: CurationOptions, detector: Detector) -> list[dict[str, Any]]:
    limits = CropOptions((1, 1), min_side_px=options.min_side_px, max_pixels=options.max_pixels)
    records: list[dict[str, Any]] = []
    waiting: list[tuple[dict[str, Any], Image.Image]] = []

    def ask_detector() -> None:
        if not waiting:
            return
        found = detector([image for _, image in waiting])
        for (record, image), boxes in zip(waiting, found, strict=True):
            people = [
                [round(float(number), 4) for number in box]
                for box in boxes
                if box[4] > options.min_score and min(box[2:4]) > options.min_box_px
            ]
            if people:
                record |= {"boxes": people, "hash": perceptual_hash(image)}
            else:
                record["reason"] = "no_person"
        waiting.clear()

    for name, content in read_unit(unit):
        record: dict[str, Any] = {"name": name}
        records.append(record)
        try:
            if content is None:
                raise BadImageError(name, "lost", "it was listed, and has gone")
            image = upright(content, name, limits)
        except BadImageError as error:
            record |= {"reason": error.reason, "detail": str(error)}
            logger.warning(f"Left out: {error}")
            continue
        record |= {"sha256": hashlib.sha256(content).hexdigest(), "width": image.width, "height": image.height}
        waiting.append((record, image))
        if len(waiting) == options.batch_size:
            ask_detector()
    ask_detector()
    return records


def upright(content: bytes, name: str, limits: CropOptions) -> Image.Image:
    """The image as a person sees it, in RGB.

    Raises:
        BadImageError: says why it cannot be used.
    """
    image = open_image(content, name, limits)
    with reading(name):
        image.load()
        image = ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION, 1) != 1 else image
        return image if image.mode == "RGB" else Image.fromarray(read_rgb(image, name))


def perceptual_hash(image: Image.Image) -> str:
    """64 bits that stay nearly the same under scaling, compression and small changes of brightness.

    Raises:
        ImportError: if `imagehash` is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise ImportError("Near-duplicates need the `imagehash` package: pip install imagehash.") from error
    return str(imagehash.phash(image))


def transformers_detector(name: str, device: str, batch_size: int) -> Detector:
    """People found by an object detector of transformers.

    Raises:
        ValueError: if people are not among what it finds; lists some of its labels.
    """
    from transformers import pipeline

    find = pipeline("object-detection", model=name, device=device)
    labels = list((find.model.config.id2label or {}).values())
    if not any(label.lower() == PERSON for label in labels):
        raise ValueError(
            f"--detector {name} has no label {PERSON!r}, so it would find nobody. It has {', '.join(labels[:8])}"
            f"{', ...' if len(labels) > 8 else ''} ({len(labels)} in all). Take one that was trained on COCO or "
            f"Objects365, such as {CurationOptions.detector}."
        )

    def detect_people(images: list[Image.Image]) -> list[list[Box]]:
        return [
            [
                [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"], one["score"]]
                for one in found
                if one["label"].lower() == PERSON
                for box in [one["box"]]
            ]
            for found in find(images, batch_size=batch_size, threshold=0.5)
        ]

    return detect_people


# -------------------------------------------------------------------------------------------------------------- dedup
def dedup(folder: Path, plan: dict[str, Any], max_distance: int) -> None:
    """Candidates that are near-duplicates of one kept before them, in the order of the plan."""
    path = folder / "duplicates.json"
    if path.is_file():
        return
    places, hashes = [], []
    for number in range(len(plan["units"])):
        for row, record in enumerate(read_records(folder, number)):
            if "reason" not in record:
                places.append((number, row))
                hashes.append(int(record["hash"], 16))
    originals = near_duplicates(np.array(hashes, dtype=np.uint64), max_distance)
    pairs = {
        f"{places[index][0]}/{places[index][1]}": f"{places[original][0]}/{places[original][1]}"
        for index, original in originals.items()
    }
    write_json(path, pairs)


def read_records(folder: Path, number: int) -> list[dict[str, Any]]:
    """What `detect` found in a unit.

    Raises:
        FileNotFoundError: if it has not been there yet.
    """
    path = _unit_file(folder, number)
    if not path.is_file():
        raise FileNotFoundError(f"Unit {number} is not examined yet: run --stage detect to its end in all processes.")
    return json.loads(path.read_text(encoding="utf-8"))


def near_duplicates(hashes: np.ndarray, max_distance: int) -> dict[int, int]:
    """For each hash that is near an earlier one that stays: the place of that one.

    Two hashes that differ in at most d bits agree in at least one of d + 1 bands, so only hashes with a common band
    are compared.

    Args:
        hashes: (num_images,) uint64.
        max_distance: bits in which duplicates may differ.
    """
    edges = np.linspace(0, HASH_BITS, max_distance + 2).astype(int)
    bands: list[dict[int, list[int]]] = [{} for _ in edges[1:]]
    found: dict[int, int] = {}
    for place, value in enumerate(int(one) for one in hashes):
        keys = [value >> int(low) & (1 << int(high - low)) - 1 for low, high in zip(edges[:-1], edges[1:])]
        near = sorted({other for band, key in zip(bands, keys) for other in band.get(key, ())})
        original = next((other for other in near if (value ^ int(hashes[other])).bit_count() <= max_distance), None)
        if original is not None:
            found[place] = original
            continue
        for band, key in zip(bands, keys):
            band.setdefault(key, []).append(place)
    return found


# --------------------------------------------------------------------------------------------------------------- pack
def pack(folder: Path, plan: dict[str, Any], units: list[int], options: CurationOptions) -> None:
    """A shard of JPEGs and their JSON for each unit that has images left.

    Raises:
        FileNotFoundError: if `dedup` has not been run.
    """
    duplicates = _read_duplicates(folder)
    for number in units:
        path = folder / "shards" / f"{number:06d}.tar"
        counts = path.with_suffix(".counts.json")
        if counts.is_file():  # written last: the shard is whole, or there is none to write
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{path.name}.*{PARTIAL}"):  # by one that was killed: a unit is one process's
            left.unlink()
        tally: Counter[str] = Counter()
        records = read_records(folder, number)
        with whole_file(path) as partial:
            with tarfile.open(partial, "w") as archive:
                found = read_unit(plan["units"][number])
                for row, (record, (name, content)) in enumerate(zip(records, found, strict=True)):
                    reason = record.get("reason") or ("duplicate" if f"{number}/{row}" in duplicates else None)
                    if reason is None and (content is None or hashlib.sha256(content).hexdigest() != record["sha256"]):
                        reason = "lost"
                        logger.warning(f"{name} has gone or changed since it was examined.")
                    if reason is None:
                        reason = "kept"
                        assert content is not None
                        _add(archive, f"{number:06d}_{row:06d}", content, record, plan["units"][number], options)
                    tally[reason] += 1
            if not tally["kept"]:
                partial.unlink()
        write_json(counts, tally)


def _read_duplicates(folder: Path) -> dict[str, str]:
    path = folder / "duplicates.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: run --stage dedup, once, after all processes ended detect.")
    return json.loads(path.read_text(encoding="utf-8"))


def _add(
    archive: tarfile.TarFile,
    key: str,
    content: bytes,
    record: dict[str, Any],
    unit: dict[str, Any],
    options: CurationOptions,
) -> None:
    is_jpeg = content[:2] == b"\xff\xd8"
    if not is_jpeg:
        file = io.BytesIO()
        limits = CropOptions((1, 1), max_pixels=options.max_pixels)
        upright(content, record["name"], limits).save(file, "JPEG", quality=options.jpeg_quality, subsampling=0)
        content = file.getvalue()
    about = {
        **{name: record[name] for name in ("width", "height", "boxes", "hash", "sha256")},
        **{"source": unit["source"], "name": record["name"], "is_reencoded": not is_jpeg},
        **{"detector": options.detector, "min_score": options.min_score, "min_box_px": options.min_box_px},
    }
    for suffix, part in (("jpg", content), ("json", json.dumps(about).encode())):
        entry = tarfile.TarInfo(f"{key}.{suffix}")
        entry.size = len(part)
        archive.addfile(entry, io.BytesIO(part))


def report(folder: Path, plan: dict[str, Any]) -> dict[str, int]:
    """Counts per reason, also in report.json.

    Raises:
        FileNotFoundError: if a unit is not packed yet.
        RuntimeError: if the counts do not add up to the images of the plan.
    """
    total: Counter[str] = Counter()
    for number in range(len(plan["units"])):
        path = folder / "shards" / f"{number:06d}.counts.json"
        if not path.is_file():
            raise FileNotFoundError(f"Unit {number} is not packed yet: run --stage pack to its end in all processes.")
        total.update(json.loads(path.read_text(encoding="utf-8")))
    num_images = sum(len(unit["images"]) for unit in plan["units"])
    if sum(total.values()) != num_images:
        raise RuntimeError(f"{num_images} images were listed and {sum(total.values())} counted: {dict(total)}.")
    counts = {name: total[name] for name in ("kept", *REASONS)}
    others = {name: plan.get(name, {}) for name in ("empty_shards", "broken_shards", "not_read")}
    write_json(folder / "report.json", {"images": num_images, **counts, **others, "settings": plan["settings"]})
    return {"images": num_images, **counts}


if __name__ == "__main__":
    counts = main()
    logger.warning(", ".join(f"{name} {count}" for name, count in counts.items() if count))

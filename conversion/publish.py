"""Released checkpoints -> model repositories on the Hub: download, convert, verify, build, upload; resumable.

    python -m conversion publish facebook/sapiens-pose-0.3b --namespace me --with-code
    python -m conversion publish --all --namespace me --dry-run

A checkpoint is done in one piece: until everything about it was checked, nothing of it is uploaded. What was done is
noted in `publish.json` of the work folder, with the commit and the SHA-256 of the source file; calling again goes on
from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

import sapiens_hf
from sapiens_hf.hub import WeightSource, build_repository, file_sha256, push_repository
from sapiens_hf.model_card import TASK_CARDS

from .recipes import RECIPES, Recipe, format_table
from .verify import compare_outputs, compare_weights

STATE_FILE = "publish.json"


@dataclass(frozen=True)
class Publication:
    """What became of one checkpoint.

    Attributes:
        recipe: The released file.
        target: Repository that it goes to.
        status: `"published"`, `"unchanged"` (the Hub has it already), `"checked"` (a dry run), `"left out"` or
            `"failed"`.
        note: Why it was left out or failed.
        revision: Commit of the source repository.
        sha256: Of the source file.
        difference: Largest difference of an output from the original network.
        commit: Of the target repository.
        folder: What was uploaded.
    """

    recipe: Recipe
    target: str
    status: str
    note: str = ""
    revision: str = ""
    sha256: str = ""
    difference: float | None = None
    commit: str = ""
    folder: str = ""


def target_name(recipe: Recipe) -> str:
    """Name of the repository for a released file; each file has its own.

    Example:
        >>> target_name(RECIPES[0])
        'sapiens-pretrain-0.3b'
    """
    name = recipe.repo.split("/")[1]
    if recipe.repo_type == "space":
        name = f"{name}-{recipe.size}"
    elif sum(other.repo == recipe.repo for other in RECIPES) > 1:
        name = f"sapiens-{recipe.task}-{(recipe.labels or '').replace('_', '-')}-{recipe.size}"
    kind = {"torchscript": "-torchscript", "bfloat16": "-bfloat16"}.get(recipe.format, "")
    return name if name.endswith(kind) else name + kind


def find_recipes(sources: Sequence[str], everything: bool = False) -> list[Recipe]:
    """The released files that repository ids, file names or target names mean.

    Raises:
        ValueError: One of them is none, or nothing was asked for.
    """
    if everything:
        return list(RECIPES)
    if not sources:
        raise ValueError("Name at least one released checkpoint, or pass --all. `python -m conversion list` has them.")
    found: list[Recipe] = []
    for source in sources:
        fits = [r for r in RECIPES if source in (r.repo, r.file, Path(r.file).name, target_name(r))]
        if not fits:
            raise ValueError(f"{source!r} is no released checkpoint: `python -m conversion list` has them.")
        found += fits
    return list({(recipe.repo, recipe.file): recipe for recipe in found}.values())


def publish(
    recipes: Iterable[Recipe],
    namespace: str,
    work: str | Path,
    *,
    dry_run: bool = False,
    with_code: bool = False,
    onnx: Sequence[str] = (),
    token: str | None = None,
    private: bool = False,
    replace_existing: bool = False,
    accept_new_source: bool = False,
    keep_folders: bool = False,
    config_overrides: dict[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> list[Publication]:
    """Publishes checkpoints one after the other; one that fails does not stop the rest.

    Args:
        recipes: Released files.
        namespace: User or organisation on the Hub.
        work: Folder for downloads in progress, built repositories and the notes of what was done.
        dry_run: Whether to do everything but the upload.
        with_code: Whether repositories get the modelling code, for use without sapiens_hf.
        onnx: Number formats of ONNX models to add: `"fp32"`, `"fp16"`, `"int8"`.
        token: Token with write access; the one of `hf auth login` by default.
        private: Whether new repositories are private.
        replace_existing: Whether to commit onto repositories that have other content.
        accept_new_source: Whether a source file may differ from the one noted by a former run.
        keep_folders: Whether to keep the built folders after the upload.
        config_overrides: Fields of `SapiensConfig` that a file does not tell.
        report: Called with one line per checkpoint.

    Returns:
        What became of each, in order.
    """
    work, recipes = Path(work), list(recipes)
    work.mkdir(parents=True, exist_ok=True)
    done = _read_notes(work)
    results = []
    for number, recipe in enumerate(recipes, 1):
        target = f"{namespace}/{target_name(recipe)}"
        result = Publication(recipe, target, "failed")
        try:
            result = _publish_one(
                result,
                work,
                noted=done.get(target, {}),
                accept_new_source=accept_new_source,
                with_code=with_code,
                onnx=onnx,
                config_overrides=config_overrides or {},
                push=dict(token=token, private=private, replace=replace_existing, dry_run=dry_run),
            )
        except (OSError, ValueError, HfHubHTTPError) as error:
            result = replace(result, note=" ".join(str(error).split()))
        if result.status in ("published", "unchanged"):
            done[target] = {name: getattr(result, name) for name in ("sha256", "revision", "commit", "difference")}
            (work / STATE_FILE).write_text(json.dumps(done, indent=2, sort_keys=True) + "\n")
            if result.folder and not keep_folders:
                shutil.rmtree(result.folder)
        results.append(result)
        report(f"[{number:{len(str(len(recipes)))}}/{len(recipes)}] {_line(result)}")
    return results


def _read_notes(work: Path) -> dict[str, dict[str, Any]]:
    path = work / STATE_FILE
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it; what is on the Hub is then compared anew."
        ) from error


def _publish_one(
    result: Publication,
    work: Path,
    *,
    noted: dict[str, Any],
    accept_new_source: bool,
    with_code: bool,
    onnx: Sequence[str],
    config_overrides: dict[str, Any],
    push: dict[str, Any],
) -> Publication:
    recipe = result.recipe
    if recipe.task not in TASK_CARDS:
        return replace(result, status="left out", note=f"a person {recipe.task}, not a Sapiens network")
    source, path = _download(recipe)
    result = replace(result, revision=source.revision, sha256=source.sha256)
    if noted and noted["sha256"] != source.sha256 and not accept_new_source:
        raise ValueError(
            f"{recipe.repo}/{recipe.file} has changed: SHA-256 {source.sha256[:12]}..., but {noted['sha256'][:12]}... "
            "was published before. Nothing was uploaded. Find out why, then pass --accept-new-source --replace."
        )
    if noted and noted["sha256"] == source.sha256 and not push["dry_run"] and _is_there(result.target, noted, push):
        return replace(result, status="unchanged", **{n: noted[n] for n in ("commit", "difference")})

    dtype = torch.bfloat16 if recipe.format == "bfloat16" else torch.float32
    model = sapiens_hf.load_original(path, dtype=dtype, **config_overrides)
    comparisons = compare_weights(model, path)
    if all(comparison.passed for comparison in comparisons):
        comparisons += compare_outputs(model, path)
    for comparison in comparisons:
        if not comparison.passed:
            raise ValueError(
                f"{comparison.name} differs from the original by {comparison.difference:.3g} (allowed "
                f"{comparison.tolerance:g}). Nothing was uploaded: this is a fault of the conversion, please report "
                "it."
            )
    folder = work / "folders" / result.target.split("/")[1]
    if folder.exists():  # what an interrupted run left
        shutil.rmtree(folder)
    build_repository(
        model.to(dtype),
        None,
        folder,
        repo_id=result.target,
        name=f"Sapiens {recipe.size}: {TASK_CARDS[recipe.task].title}",
        with_code=with_code,
        base_model=None if recipe.repo_type == "space" else recipe.repo,
        eval_results=_published_score(recipe),
        source=source,
        dtype=dtype,
        onnx_dtypes=onnx,
    )
    if onnx:
        from .onnx import export_onnx

        export_onnx(folder, folder, dtypes=onnx, task="encoder" if recipe.task == "pretraining" else None)
    commit = push_repository(folder, result.target, **push)
    return replace(
        result,
        status="checked" if push["dry_run"] else "published",
        difference=max(comparison.difference for comparison in comparisons),
        commit=commit,
        folder=str(folder),
    )


def _is_there(target: str, noted: dict[str, Any], push: dict[str, Any]) -> bool:
    """Whether the Hub still has the commit that a former run made as its newest."""
    try:
        return HfApi(token=push["token"]).model_info(target).sha == noted["commit"]
    except RepositoryNotFoundError:
        return False


def _download(recipe: Recipe) -> tuple[WeightSource, Path]:
    """The source file, from the newest commit, whole: its hash is the one that the Hub states.

    Raises:
        FileNotFoundError: The repository or the file is gone.
        OSError: The file that arrived has another hash.
    """
    for filename in (recipe.file, *recipe.former_files):
        try:
            url = hf_hub_url(recipe.repo, filename, repo_type=recipe.repo_type)
            metadata = get_hf_file_metadata(url)
            path = Path(
                hf_hub_download(recipe.repo, filename, revision=metadata.commit_hash, repo_type=recipe.repo_type)
            )
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"There is no repository {recipe.repo}, or it is private: expected it to hold {recipe.file}."
            ) from error
        sha256 = file_sha256(path)
        if len(metadata.etag or "") == len(sha256) and metadata.etag != sha256:
            raise OSError(
                f"{filename} of {recipe.repo} arrived damaged: SHA-256 {sha256[:12]}..., the Hub states "
                f"{metadata.etag[:12]}... Delete {path} and call again."
            )
        return WeightSource(recipe.repo, filename, metadata.commit_hash or "", sha256, recipe.repo_type), path
    raise FileNotFoundError(f"{recipe.repo} has no {recipe.file}: look at its file list; it may have been renamed.")


def _published_score(recipe: Recipe) -> list[EvalResult]:
    if recipe.score is None:
        return []
    metric, _, dataset = recipe.score["metric"].partition(" on ")
    dataset = dataset.removesuffix(" (file name)")
    return [
        EvalResult(
            task_type=TASK_CARDS[recipe.task].pipeline_tag,
            dataset_type=dataset.split()[0].lower(),
            dataset_name=dataset,
            metric_type=metric.split()[-1].lower(),
            metric_name=metric,
            metric_value=recipe.score["value"],
            source_name="the authors; not measured again here",
            source_url=f"https://huggingface.co/{recipe.repo}",
        )
    ]


def _line(result: Publication) -> str:
    facts = f"output difference {result.difference:.1g}" if result.difference is not None else ""
    hashes = f"source {result.sha256[:12]}" if result.sha256 else ""
    return ", ".join(part for part in (f"{result.target}: {result.status}", result.note, hashes, facts) if part)


def publication_table(results: Sequence[Publication]) -> str:
    """One row per checkpoint."""
    rows = [("repository", "task", "size", "format", "status", "source SHA-256", "difference", "commit")]
    for result in results:
        recipe = result.recipe
        difference = "-" if result.difference is None else f"{result.difference:.1g}"
        hashes = (result.sha256[:12] or "-", difference, result.commit[:8] or "-")
        rows.append((result.target, recipe.task, recipe.size, recipe.format, result.status, *hashes))
    return format_table(rows)

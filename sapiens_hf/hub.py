# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Complete model repositories: built in a folder, checked, and put on the Hub.

    model + processor --build_repository--> folder --check_repository--> push_repository --> owner/name

A folder holds config.json, safetensors, preprocessor_config.json, README.md and LICENSE.md; with `with_code=True` also
the modelling code and what transformers needs to find it, so that `trust_remote_code=True` replaces this package.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from .image_processing_pil_sapiens import SapiensImageProcessorPil
from .model_card import (
    ADAPTED_NOTE,
    CODE_NOTE,
    CONVERTED_NOTE,
    META_COMPATIBLE_LICENSES,
    META_LICENSE,
    META_LICENSE_TEXT,
    TASK_CARDS,
    WeightSource,
    validate_card,
    write_card,
)
from .original_sources import released_checkpoints, released_file

__all__ = [
    "WeightSource",
    "build_repository",
    "check_repository",
    "export_remote_code",
    "file_sha256",
    "push_repository",
    "task_of",
]

logger = logging.get_logger(__name__)
T = TypeVar("T")

CLASS_TASKS = {
    "SapiensForPreTraining": "pretraining",
    "SapiensModel": "encoder",
    "SapiensBackbone": "encoder",
    "SapiensForPoseEstimation": "pose",
    "SapiensForSemanticSegmentation": "segmentation",
    "SapiensForDepthEstimation": "depth",
    "SapiensForNormalEstimation": "normal",
}
# `save_pretrained` of a class writes its own entry only; with all of them, any folder opens through any auto class.
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_sapiens.SapiensConfig",
    "AutoModel": "modeling_sapiens.SapiensModel",
    "AutoBackbone": "modeling_sapiens.SapiensBackbone",
    "AutoModelForPreTraining": "modeling_mae_sapiens.SapiensForPreTraining",
    "AutoModelForPoseEstimation": "modeling_sapiens.SapiensForPoseEstimation",
    "AutoModelForSemanticSegmentation": "modeling_sapiens.SapiensForSemanticSegmentation",
    "AutoModelForDepthEstimation": "modeling_sapiens.SapiensForDepthEstimation",
    "AutoModelForNormalEstimation": "modeling_sapiens.SapiensForNormalEstimation",
}
# One entry per backend: a plain string would give machines without torchvision a class that they cannot use.
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_sapiens.SapiensImageProcessor",
        "pil": "image_processing_pil_sapiens.SapiensImageProcessorPil",
    }
}
CUSTOM_PIPELINES = {
    "pose": {
        "keypoint-detection": {
            "impl": "pipeline_sapiens.SapiensKeypointDetectionPipeline",
            "pt": ["AutoModelForPoseEstimation"],
            "type": "image",
        }
    },
    "normal": {
        "normal-estimation": {
            "impl": "pipeline_sapiens.SapiensNormalEstimationPipeline",
            "pt": ["AutoModelForNormalEstimation"],
            "type": "image",
        }
    },
}
REQUIRED_FILES = ("config.json", "preprocessor_config.json", "README.md", "LICENSE.md")
HUB_FILES = (".gitattributes",)  # what the Hub puts into a new repository by itself


# ------------------------------------------------------------------------------------------------------ build a folder
def task_of(model: Any) -> str:
    """The task of a model, by its class.

    Raises:
        ValueError: It is not one of the Sapiens models.
    """
    task = CLASS_TASKS.get(type(model).__name__)
    if task is None:
        raise ValueError(f"{type(model).__name__} is not a Sapiens model: expected one of {', '.join(CLASS_TASKS)}.")
    return task


def build_repository(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    with_code: bool = False,
    license: str | None = None,
    license_text: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | list[str] | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    language: str | None = None,
    eval_results: Sequence[EvalResult] = (),
    source: WeightSource | None = None,
    onnx_dtypes: Sequence[str] = (),
    max_shard_size: str = "50GB",
    overwrite: bool = False,
) -> Path:
    """Write a complete model repository into a folder. Everything is checked before the first file is written.

    Args:
        model: A Sapiens model. It is not changed.
        processor: Its image processor, of either backend; one for `config.image_size` if `None`.
        folder: Where to write.
        repo_id: The id that it will have on the Hub, for the snippets of the card; the folder's name by default.
        name: Heading of the card; the last part of `repo_id` by default.
        dtype: Type of the stored weights, such as `torch.bfloat16`; the model's own by default.
        with_code: Whether to add the modelling code, for use without sapiens_hf (`trust_remote_code=True`).
        license: Licence of the weights. May be left out only where they come from Meta's: then theirs.
        license_text: What LICENSE.md says; needed for a licence of your own, unless `license_link` is given.
        license_name: With `license="other"`: its name.
        license_link: With `license="other"`: where to read it.
        base_model: Repository that the weights were trained from. Found by itself for a model that was loaded from one
            of Meta's.
        datasets: Hub ids of the training data.
        tags: Further tags of the card.
        language: Language code, if it matters.
        eval_results: Scores for the card; `source_name` says who measured them.
        source: The file that the weights were converted from.
        onnx_dtypes: Number formats of the models in the folder's `onnx`, for the card.
        max_shard_size: Largest file of weights, as in `save_pretrained`.
        overwrite: Whether to write into a folder that is not empty.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: A missing or wrong licence, a card field that the Hub refuses, or a processor that does not fit.

    Example:
        >>> from sapiens_hf.hub import build_repository
        >>> build_repository(model, processor, "my-pose", license="mit", with_code=True)  # doctest: +SKIP
    """
    folder, task = Path(folder), task_of(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise FileExistsError(f"{folder} exists and is not an empty folder: pass overwrite=True, or another folder.")
    processor = _fitting_processor(model, processor)
    origin = _meta_origin(model, base_model, source)
    license = _checked_license(license, license_text, license_link, origin)
    is_model = source is None or source.repo_type == "model"  # a Space is not what base_model may name
    if base_model is None and is_model and origin is not None and origin.count("/") == 1:
        base_model = origin
    repo_id = repo_id or folder.name
    card = write_card(
        model,
        task,
        name=name or repo_id.split("/")[-1],
        repo_id=repo_id,
        license_id=license,
        license_name=license_name,
        license_link=license_link,
        with_code=with_code,
        base_model=base_model,
        datasets=datasets,
        tags=tags,
        language=language,
        eval_results=eval_results,
        source=source,
        onnx_dtypes=onnx_dtypes,
    )
    _save_weights(model, folder, dtype, max_shard_size)
    processor.save_pretrained(folder)
    card.save(folder / "README.md")
    text = license_text or _license_text(license, license_link, origin, source, dtype)
    (folder / "LICENSE.md").write_text(text + (CODE_NOTE if with_code else ""))
    _edit_json(folder / "config.json", remove=("auto_map", "custom_pipelines"))
    _edit_json(folder / "preprocessor_config.json", remove=("auto_map",))
    if with_code:
        export_remote_code(folder)
    return folder


def export_remote_code(folder: str | Path) -> list[Path]:
    """Add the modelling code to a folder of `save_pretrained`, and the entries by which transformers finds it.

    Args:
        folder: Folder with a config.json; preprocessor_config.json gets its entry if there is one.

    Returns:
        The copied files.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: The model in the folder is not a Sapiens model.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} does not exist: save the model into this folder first.")
    architectures = json.loads(config_file.read_text()).get("architectures") or [None]
    task = CLASS_TASKS.get(architectures[0])
    if task is None:
        raise ValueError(f"{config_file} is of {architectures[0]}; expected one of {', '.join(CLASS_TASKS)}.")
    copied = [
        Path(shutil.copyfile(file, folder / file.name)) for file in sorted(Path(__file__).parent.glob("*_sapiens.py"))
    ]
    pipelines = CUSTOM_PIPELINES.get(task)
    _edit_json(config_file, auto_map=MODEL_AUTO_MAP, **({"custom_pipelines": pipelines} if pipelines else {}))
    if (folder / "preprocessor_config.json").is_file():
        _edit_json(folder / "preprocessor_config.json", auto_map=PROCESSOR_AUTO_MAP)
    return copied


def _edit_json(path: Path, remove: Sequence[str] = (), **entries: Any) -> None:
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in remove}
    path.write_text(json.dumps(content | entries, indent=2, sort_keys=True) + "\n")


def _fitting_processor(model: Any, processor: Any) -> Any:
    """The processor, or one for the model's size.

    Raises:
        ValueError: Its size is no multiple of the patch size.
    """
    height, width = model.config.image_size
    if processor is None:
        return SapiensImageProcessorPil(size={"height": height, "width": width})
    patch, size = model.config.patch_size, processor.size
    if processor.do_resize and (size.height % patch or size.width % patch):
        raise ValueError(
            f"The image processor makes {size.height} x {size.width} pixels, which is no multiple of the model's "
            f"patch size {patch}; expected for example {height} x {width}."
        )
    return processor


def _save_weights(model: Any, folder: Path, dtype: torch.dtype | None, max_shard_size: str) -> None:
    if dtype is None or dtype == model.dtype:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    _edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))


# ------------------------------------------------------------------------------------------------------------- licence
def _meta_origin(model: Any, base_model: str | list[str] | None, source: WeightSource | None) -> str | None:
    """What of Meta's the weights come from: a repository id or a file name; `None` if nothing says so."""
    bases = [base_model] if isinstance(base_model, str) else list(base_model or ())
    loaded_from = str(getattr(model.config, "_name_or_path", "") or "")
    repositories = {row["repo"] for row in released_checkpoints() if row["licence"] == META_LICENSE}
    for name in [*([source.repo] if source else ()), *bases, loaded_from]:
        if name in repositories:
            return name
    row, _ = released_file(Path(loaded_from).name)
    if row is not None:
        return None if row["licence"] != META_LICENSE else row["repo"]
    readme = Path(loaded_from) / "README.md"
    if loaded_from and readme.is_file():
        data = ModelCard.load(readme, ignore_metadata_errors=True).data
        if data.license in META_COMPATIBLE_LICENSES and "sapiens" in (data.tags or ()):
            return data.base_model if isinstance(data.base_model, str) else Path(loaded_from).name
    return None


def _checked_license(license: str | None, text: str | None, link: str | None, origin: str | None) -> str:
    """The licence to state.

    Raises:
        ValueError: None was given where nobody else can know it, or one that Meta's does not allow.
    """
    if origin is not None:
        if license is not None and license not in META_COMPATIBLE_LICENSES:
            raise ValueError(
                f"license={license!r} does not fit: these weights come from {origin}, which is under {META_LICENSE}, "
                "and what is made of them may not be offered for commercial use. Leave license= out for "
                f"{META_LICENSE}, or start from weights of your own."
            )
        return license or META_LICENSE
    if license is None:
        raise ValueError(
            "Weights of your own need license=, for example 'apache-2.0' or 'cc-by-4.0'. If they were trained from "
            f"one of Meta's checkpoints, pass base_model= its repository; the licence is then {META_LICENSE}."
        )
    if license == "other" and not (text or link):
        raise ValueError("license='other' needs license_text=, what it says, or license_link=, where to read it.")
    return license


def _license_text(
    license: str, link: str | None, origin: str | None, source: WeightSource | None, dtype: torch.dtype | None
) -> str:
    if origin is None:
        where = link or f"https://spdx.org/licenses/ (identifier `{license}`)"
        return f"# Licence of these weights\n\n`{license}`: {where}\n"
    if source is not None:
        is_rounded = dtype not in (None, torch.float32)
        rounded = f" and rounded to {str(dtype).removeprefix('torch.')}" if is_rounded else ""
        return META_LICENSE_TEXT + CONVERTED_NOTE.format(file=source.file, repo=source.repo, rounded=rounded)
    return META_LICENSE_TEXT + ADAPTED_NOTE.format(base=origin)


# ------------------------------------------------------------------------------------------------------------ checking
def check_repository(folder: str | Path) -> dict[str, Any]:
    """Whether a folder is complete and its card is one that the Hub takes; no network.

    Returns:
        The data of the card.

    Raises:
        FileNotFoundError: Files are missing; names them.
        ValueError: The card has a field that the Hub refuses, or belongs to another licence or task than the folder.
    """
    folder = Path(folder)
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: make it with sapiens_hf.hub.build_repository.")
    data = ModelCard.load(folder / "README.md").data.to_dict()
    validate_card(data)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    tag = TASK_CARDS[CLASS_TASKS[architecture]].pipeline_tag
    if data["pipeline_tag"] != tag:
        raise ValueError(
            f"{folder}: the card says pipeline_tag {data['pipeline_tag']!r}, but the model is {architecture}; "
            f"expected {tag!r}."
        )
    is_metas = META_LICENSE_TEXT.splitlines()[5] in (folder / "LICENSE.md").read_text()
    if is_metas and data["license"] not in META_COMPATIBLE_LICENSES:
        raise ValueError(
            f"{folder}: the card says license {data['license']!r}, but LICENSE.md is {META_LICENSE}. Build the folder "
            "again instead of editing one of the two."
        )
    return data


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file of any size, as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _git_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# ----------------------------------------------------------------------------------------------------------- uploading
def push_repository(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> str:
    """Put a folder of `build_repository` on the Hub: one commit, after every check that can be made without one.

    Large files that a former, interrupted call had uploaded are not sent again. Server errors are retried.

    Args:
        folder: The folder.
        repo_id: `owner/name`; made if it does not exist.
        token: A token with write access; the one of `hf auth login` by default.
        private: Whether a new repository is private.
        replace: Whether to commit onto a repository that already has other content.
        dry_run: Whether to stop before anything is sent.

    Returns:
        The commit hash; of the existing commit if the Hub has all files already, and "" for a new one in a dry run.

    Raises:
        PermissionError: The token is missing, wrong or may not write there.
        FileExistsError: The repository exists with other content.
        ValueError: As `check_repository`, or the Hub refuses the card.
        ConnectionError: The Hub failed in spite of retries.
    """
    folder = Path(folder)
    check_repository(folder)
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id is {repo_id!r}; expected owner/name.")
    api = HfApi(token=token)
    try:
        _retry(lambda: api.whoami(token=token))
        _retry(lambda: _validate_on_hub(folder))
        commit, differing = _retry(lambda: _compare_with_hub(api, folder, repo_id))
        if commit and not differing:
            return commit
        if commit and not replace and set(differing) != {"(empty)"}:
            raise FileExistsError(
                f"{repo_id} exists on the Hub with other content ({', '.join(differing[:4])}"
                f"{', ...' if len(differing) > 4 else ''}). Nothing was uploaded. Choose another name, or pass "
                "replace=True (--replace) to commit onto it; the old state stays in its history."
            )
        if dry_run:
            return ""
        _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        upload = _retry(
            lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload Sapiens")
        )
        return upload.oid
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise _explained(error, repo_id) from error


def _validate_on_hub(folder: Path) -> None:
    try:
        ModelCard.load(folder / "README.md").validate()
    except ValueError as error:
        raise ValueError(
            f"The Hub refuses the card of {folder}: {error} Nothing was uploaded. Correct the argument of "
            "build_repository that it names, and build again."
        ) from error


def _compare_with_hub(api: HfApi, folder: Path, repo_id: str) -> tuple[str, list[str]]:
    """The commit on the Hub, "" if there is none, and the files in which it differs from the folder."""
    try:
        commit = api.model_info(repo_id).sha or ""
    except RepositoryNotFoundError:
        return "", []
    remote = {item.path: item for item in api.list_repo_tree(repo_id, recursive=True) if isinstance(item, RepoFile)}
    names = set(remote) - set(HUB_FILES)
    if not names:
        return commit, ["(empty)"]
    local = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    differing = names ^ set(local)
    for name in names & set(local):
        entry, path = remote[name], local[name]
        same_size = entry.size == path.stat().st_size
        if not same_size or (file_sha256(path) != entry.lfs.sha256 if entry.lfs else _git_blob(path) != entry.blob_id):
            differing.add(name)
    return commit, sorted(differing)


def _retry(call: Callable[[], T], attempts: int = 4, first_wait_s: float = 1.0) -> T:
    """Calls until it succeeds, while the server or the line fails; other errors come through at once."""
    for attempt in range(attempts):
        try:
            return call()
        except HfHubHTTPError as error:
            is_servers = error.response is not None and error.response.status_code >= 500
            if not is_servers or attempt == attempts - 1:
                raise
            reason: Any = error.response.status_code
        except _line_errors() as error:
            if attempt == attempts - 1:
                raise ConnectionError(
                    f"The Hub does not answer: {error}. Try again; nothing is sent twice."
                ) from error
            reason = type(error).__name__
        wait_s = first_wait_s * 2**attempt
        logger.warning(f"The Hub failed ({reason}); trying again in {wait_s:g} s.")
        time.sleep(wait_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _line_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client of huggingface_hub raises where there is no answer; the client changed between versions."""
    from huggingface_hub.utils import get_session

    module = type(get_session()).__module__.split(".")[0]
    errors = __import__(module)
    if module == "requests":
        return (errors.exceptions.ConnectionError, errors.exceptions.Timeout)
    return (errors.TransportError,)


def _explained(error: Exception, repo_id: str) -> Exception:
    """The same error, saying what to do next."""
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError("No token: run `hf auth login`, or pass token= (one with write access).")
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if status == 401:
        return PermissionError(
            "The Hub does not accept the token: make a new one with write access at "
            "https://huggingface.co/settings/tokens, then `hf auth login`, or pass token=."
        )
    if status == 403:
        return PermissionError(
            f"The token may not write to {repo_id}: it needs write access to {repo_id.split('/')[0]}. Nothing was "
            "uploaded."
        )
    if isinstance(error, BadRequestError):
        return ValueError(f"The Hub refused {repo_id}: {error}")
    return ConnectionError(
        f"The Hub failed with status {status} for {repo_id} in spite of retries. Try again; files that arrived are "
        "not sent twice."
    )

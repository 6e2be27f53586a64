"""Where the original's checkpoints are: the table of released files, local paths, and Meta's Hub repositories.

Part of `original.py`: this module knows places and no network.
"""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .original_readers import safetensors_header

logger = logging.get_logger(__name__)

ASSETS = Path(__file__).parent / "assets"
SUFFIXES = (".pth", ".pt", ".pt2", ".safetensors")
# Under these owners, a name like that of a released repository is a slip of the pen, unless it ends as a conversion's.
OWNERS = ("facebook", "noahcao")
CONVERSIONS = ("-hf", "-onnx", "-transformers")
# Arguments of `from_pretrained` that concern the download, not the network.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


@functools.lru_cache(None)
def released_checkpoints() -> tuple[dict[str, Any], ...]:
    """Rows of `assets/released_checkpoints.json`: repository, file, task, size, labels, padding, score, licence."""
    return tuple(json.loads((ASSETS / "released_checkpoints.json").read_text())["checkpoints"])


def released_file(name: str) -> tuple[dict[str, Any] | None, bool]:
    """The released file called `name`, and whether that is a name that Meta has since replaced."""
    for row in released_checkpoints():
        if name in (row["file"], Path(row["file"]).name):
            return row, False
        if name in row.get("former_files", ()):
            return row, True
    return None, False


def suggest_source(source: str | Path) -> str | None:
    """The released repository that a mistyped id means: another case, a letter too many, no owner or a wrong one.

    Args:
        source: What a user gave as a repository id.

    Returns:
        Its id, or `None` if `source` is one already, is near none, or is one of Sapiens 2, which are other networks.
    """
    repos = {row["repo"].partition("/")[2]: row["repo"] for row in released_checkpoints()}
    name = str(source).lower().rpartition("/")[2].replace("_", "-").replace("segmentation", "seg")
    if str(source) in repos.values() or name.startswith("sapiens2"):
        return None
    near = difflib.get_close_matches(name, repos, n=1, cutoff=0.8)
    return repos[near[0]] if near else None


def is_original_source(source: Any) -> bool:
    """Whether `load_original` is the way to open `source`. Looks at names and at most one header; no network.

    True for a file in a format of the original, a folder that holds such a file and no `config.json` of transformers,
    the repository ids of the released checkpoints, and what only `load_original` explains: an empty name, or a slip
    in one of those ids.

    Args:
        source: What a user gave to `from_pretrained`.
    """
    if not isinstance(source, (str, Path)):
        return False
    if not str(source).strip():
        return True
    path = Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_original_files(path))
    if path.suffix in SUFFIXES:
        return not path.is_file() or _has_original_names(path)
    return any(row["repo"] == str(source) for row in released_checkpoints()) or _is_slip(str(source))


def _is_slip(source: str) -> bool:
    """Whether an id that is not released can only be meant for one that is."""
    owner, _, name = source.lower().partition("/")
    is_owned = owner in OWNERS and name.startswith("sapiens-") and not name.endswith(CONVERSIONS)
    return is_owned and suggest_source(source) is not None


def _has_original_names(path: Path) -> bool:
    """Every other suffix is the original's own; a `.safetensors` may as well be a converted one."""
    if path.suffix != ".safetensors":
        return True
    try:
        names = safetensors_header(path)[0]
    except ValueError:
        return True  # load_original says what is wrong with it
    return any(name.removeprefix("backbone.") == "pos_embed" for name in names)


def _original_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES and _has_original_names(p))


def local_file(path: Path, filename: str | None) -> Path:
    """The checkpoint that a local path means.

    Raises:
        FileNotFoundError: There is none; names the nearest file and the repository that has it.
        ValueError: A folder holds several.
    """
    if path.is_dir() and filename is None:
        found = _original_files(path)
        if len(found) > 1:
            raise ValueError(
                f"{path} holds {len(found)} checkpoints: choose one with filename=: {[p.name for p in found]}."
            )
        if not found:
            config = path / "config.json"
            converted = config.exists() and json.loads(config.read_text()).get("model_type") == "sapiens"
            raise FileNotFoundError(
                f"{path} holds no file of the original ({', '.join(SUFFIXES)}); it has "
                f"{sorted(p.name for p in path.iterdir())[:8]}. "
                + (
                    "It is a converted folder: use from_pretrained."
                    if converted
                    else "Give the checkpoint file itself."
                )
            )
        return found[0]
    path = path / filename if path.is_dir() and filename else path
    if path.is_file():
        return path
    row, replaced = released_file(path.name)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hints = []
    if row and replaced:
        hints.append(f"Meta replaced that file on 2024-10-07 by {row['file']}.")
    if row:
        hints.append(f"{row['repo']} on the Hub has {row['file']}: give that id in the place of the path.")
    known = [Path(r["file"]).name for r in released_checkpoints()]
    near = difflib.get_close_matches(path.name, [*siblings, *known], n=1)
    meant = near[0] if near else suggest_source(path)
    if meant and not row:
        hints.append(f"Did you mean {meant!r}?")
    raise FileNotFoundError(" ".join([f"{path} does not exist.", *hints]))


def hub_file(repo: str, filename: str | None, revision: str | None, options: dict[str, Any]) -> Path:
    """Downloads the checkpoint of a repository.

    Raises:
        FileNotFoundError: No such repository or file; names both and what is known about them.
        ValueError: It is not known which file of the repository is meant.
        OSError: The Hub cannot be reached and the file is not in the cache.
    """
    # Not needed for local files, and slow to import.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    rows = [row for row in released_checkpoints() if row["repo"] == repo]
    meant = suggest_source(repo)
    hint = f" Did you mean {meant!r}?" if meant else ""
    if filename is None:
        if len(rows) != 1:
            files = f" Its released files are {[row['file'] for row in rows]}." if rows else ""
            raise ValueError(
                f"{repo!r} is not a local file, and not a repository with one known file.{hint}{files} Pass filename=."
            )
        filename = rows[0]["file"]
    else:  # the base name is enough for a file in a folder of the repository
        filename = next((row["file"] for row in rows if Path(row["file"]).name == filename), filename)
    row = next((row for row in rows if row["file"] == filename), None)
    kind = row.get("repo_type") if row else None
    where = f"{filename} of {repo} (revision {revision or 'main'})"
    for candidate in (filename, *(row.get("former_files", ()) if row else ())):
        try:
            path = Path(hf_hub_download(repo, candidate, revision=revision, repo_type=kind, **options))
        except LocalEntryNotFoundError as error:
            raise OSError(
                f"Cannot reach the Hub for {where}, and it is not in the local cache. Download that file elsewhere "
                "and pass its path, or set HF_ENDPOINT to a mirror."
            ) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"There is no repository {repo} (or it is private): expected it to hold {filename}.{hint}"
            ) from error
        except (HfHubHTTPError, OSError) as error:
            raise OSError(f"Cannot download {where}: {error}") from error
        if candidate != filename:
            logger.warning(f"{repo} holds {candidate}, which Meta replaced by {filename} on 2024-10-07.")
        return path
    raise FileNotFoundError(
        f"{repo} (revision {revision or 'main'}) has no {filename}. It may have been renamed: look at the file list "
        f"of https://huggingface.co/{repo}/tree/{revision or 'main'} and pass filename=, or revision= for an older "
        "state."
    )


def find_original(source: str | Path, filename: str | None, revision: str | None, options: dict[str, Any]) -> Path:
    """The local file that `source` means, downloaded if it is a repository.

    Args:
        source: A file, a folder that holds one, or a repository id.
        filename: File of the folder or repository, where there are several.
        revision: Branch, tag or commit of the repository.
        options: Those of `HUB_OPTIONS` that the caller set.

    Raises:
        FileNotFoundError: No such file, folder content or repository; names what was expected where.
        ValueError: `source` is empty or no name at all, or it is not known which of several files is meant.
        OSError: The Hub cannot be reached.
    """
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise ValueError(
            f"Expected a checkpoint file ({', '.join(SUFFIXES)}), a folder that holds one, or a repository id such as "
            f"'facebook/sapiens-pose-1b'; got {source!r}."
        )
    path = Path(source)
    if path.exists() or path.suffix in SUFFIXES or str(source).count("/") != 1:
        return local_file(path, filename)
    return hub_file(str(source), filename, revision, options)

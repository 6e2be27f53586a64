"""What reading COCO JSON takes wherever it is read: the file, the fields of an entry, and who is a person."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def require(entry: Any, names: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the fields which an entry lacks, and where it stands."""
    missing = [name for name in names if not isinstance(entry, Mapping) or name not in entry]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}: {str(entry)[:200]}.")


def person_categories(categories: Iterable[Mapping[str, Any]]) -> set[Any]:
    """Ids of the categories called "person"."""
    return {category["id"] for category in categories if category.get("name") == "person"}


def is_person(annotation: Mapping[str, Any], categories: set[Any]) -> bool:
    """Whether an annotation counts: of a person, or of no category; all do where no category is called "person"."""
    return not categories or "category_id" not in annotation or annotation["category_id"] in categories

"""The floors of docs/architecture.md as a test: imports point down only. Reads the source, imports nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sapiens_hf"
# Floor 0 are the flat *_sapiens.py files, which travel with every Hub repository.
FLOORS = {
    "version": 0,
    "coco": 1,
    "labels": 1,
    "metrics": 1,
    "model_card": 1,
    "original": 1,
    "visualization": 2,
    "synthetic": 2,
    "evaluation": 2,
    "hub": 2,
    "onnxruntime_backend": 2,
    "prediction": 3,
    "cli": 4,
    "registration": 4,
    "__init__": 5,
}
# Rooms of several files, named after the first: original_keys.py belongs to original.py. They may import each other.
ROOMS = ("original", "hub")
TRAVELLING_LIBRARIES = {"torch", "torchvision", "transformers", "numpy", "PIL", "huggingface_hub"}


def room_of(name: str) -> str:
    return next((room for room in ROOMS if name.startswith(f"{room}_")), name)


def floor_of(name: str) -> int:
    if name.endswith("_sapiens"):
        return 0
    name = room_of(name)
    assert name in FLOORS, f"sapiens_hf/{name} has no floor: add it to FLOORS and to docs/architecture.md"
    return FLOORS[name]


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """First-level names of sapiens_hf that a file imports, also inside functions."""
    found = set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == depth:
                found.update([parts[0]] if node.module else [alias.name for alias in node.names])
            elif node.level == 0 and parts[0] == "sapiens_hf":
                found.update([parts[1]] if len(parts) > 1 else ["__init__"])
            assert node.level <= depth, f"{path} imports from above the package"
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found.update(n[1] if len(n) > 1 else "__init__" for n in names if n[0] == "sapiens_hf")
    return found


def runtime_files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize("path", runtime_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    name = module_name(path)
    if name in ("__init__", "registration"):
        return  # the roof may see every floor
    for imported in own_imports(path) - {name, "__init__"}:
        same_room = room_of(imported) == room_of(name)
        flat = floor_of(imported) == floor_of(name) == 0
        assert same_room or flat or floor_of(imported) < floor_of(name), (
            f"{path.relative_to(ROOT)} (floor {floor_of(name)}) imports {imported} (floor {floor_of(imported)})"
        )


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*_sapiens.py")), ids=lambda path: path.name)
def test_travelling_files_are_flat_and_light(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module and node.module.endswith("_sapiens"), (
                f"{path.name}: `from {'.' * node.level}{node.module or ''} import` does not survive on the Hub"
            )
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for top in {name.split(".")[0] for name in names}:
                assert top in TRAVELLING_LIBRARIES or top in __import__("sys").stdlib_module_names, (
                    f"{path.name}: {top}"
                )


def test_synthetic_shares_no_code_with_what_it_judges():
    imported = set().union(*(own_imports(path) for path in (PACKAGE / "synthetic").rglob("*.py")))
    assert imported - {"synthetic"} <= {"labels", "version"}, imported


@pytest.mark.parametrize("folder, other", [("conversion", "training"), ("training", "conversion")])
def test_checkout_rooms_do_not_meet(folder, other):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert other not in {name.split(".")[0] for name in names}, f"{path.relative_to(ROOT)} imports {other}"


@pytest.mark.parametrize("path", runtime_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path):
    assert len(path.read_text().splitlines()) <= 720, f"{path.relative_to(ROOT)} is two rooms: split it"

"""Imports go downwards only: every package stands in one order, with no exceptions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "condseg"
ORDER = (
    "api",
    "cli",
    "training",
    "export",
    "inference",
    "zoo",
    "models",
    "evaluation",
    "data",
    "layers",
    "ops",
    "native",
    "structures",
    "cache",
    "errors",
)
"""From the top to the bottom; a package may import those after it."""


def imports(path: Path) -> set[str]:
    """Packages of condseg that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    packages = {name.split(".")[1] for name in names if name.startswith("condseg.")}
    return {package for package in packages if not package.startswith("_")}


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_downwards(package: str) -> None:
    place = PACKAGE / package
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    below = set(ORDER[ORDER.index(package) :])
    for path in files:
        above = imports(path) - below
        assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)} from above"


def test_every_package_is_ordered() -> None:
    found = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")
    }
    assert {name for name in found if not name.startswith("_")} == set(ORDER)


def test_layers_know_nothing_of_detection() -> None:
    for path in (PACKAGE / "layers").glob("*.py"):
        assert imports(path) <= {"layers", "native"}, path.name


def test_the_product_does_not_import_the_tools() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "studies" not in path.read_text(), path.name

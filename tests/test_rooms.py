"""Imports go downwards only: rooms of one ring never import from a ring above."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "condseg"
RINGS = (
    {"errors", "structures", "transfer", "ops", "layers", "native"},
    {"models", "data", "evaluation", "weights"},
)


def ring(room: str) -> int:
    return next((i for i, rooms in enumerate(RINGS) if room in rooms), len(RINGS))


def imports(path: Path) -> set[str]:
    """Rooms of condseg that a file imports, wherever in the file."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("condseg.")}
    return {r for r in rooms if not r.startswith("_")}


def test_imports_go_downwards() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        above = {r for r in imports(path) if ring(r) > ring(room)}
        assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)} from above"


def test_layers_know_nothing_of_detection() -> None:
    for path in (PACKAGE / "layers").glob("*.py"):
        assert imports(path) <= {"layers", "native"}, path.name
